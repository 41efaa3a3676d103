"""What the notebooks promise beyond their outputs, and that the strict comparison is strict.

The outputs themselves are compared by nbval: ``make test`` runs it over ``notebooks/``.
"""

import ast
import base64
import contextlib
import copy
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import metadata_tags
from PIL import Image

import smol_scratch
from smol_scratch.course import notebook, questions

ROOT = Path(__file__).parent.parent
PATHS = notebook.notebooks()
HEADINGS = [
    "The question",
    "By hand",
    "Slow and obvious, then the real thing",
    "Checks",
    "Break it",
    "What it costs",
    "Dark corners",
    "Exercises",
    "Recap",
]
# What else exempts a cell from nbval's comparison; none of it is used here.
OTHER_TAGS = set(metadata_tags) - {notebook.IGNORE, "raises-exception", "nbval-skip"}
EXEMPTIONS = r"NBVAL|PYTEST_VALIDATE"
IGNORED = 0.10  # share of code cells whose outputs may be left out of the comparison

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def problems(nb, size, name):
    """Return what is wrong with a committed notebook, one line for each thing."""
    found = []
    cells = code_cells(nb)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not executed once, from top to bottom")
    if sum(bool(cell.outputs) for cell in cells) < 0.6 * len(cells):
        found.append("most cells have no output: nbval would have nothing to compare")
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                found.append(f"ends in an error: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"writes to stderr: {output.text[:60]!r}")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append("shows a widget")
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            if re.search(r"(/home|/tmp|/root|/work|/Users|[A-Z]:\\)|0x[0-9a-f]{6,}", text):
                found.append(f"prints a path or an address: {text[:60]!r}")
    if "widgets" in nb.metadata:
        found.append("holds widget state")
    setups = [cell for cell in cells if "set-up" in tags(cell)]
    if [cell.source for cell in setups] != [notebook.set_up_cell(notebook.repository())]:
        found.append("the set-up cell is not the common one: run `make address`")
    link = notebook.badge(notebook.repository(), name)
    if link not in nb.cells[0].source or ("colab" in nb.cells[0].source) != bool(link):
        found.append("the badge is missing or points elsewhere: run `make address`")
    ignored = [c for c in cells if {notebook.IGNORE, "raises-exception", "nbval-skip"} & tags(c)]
    others = [c for c in cells if OTHER_TAGS & tags(c) or re.search(EXEMPTIONS, c.source)]
    if len(ignored) >= IGNORED * len(cells) or others:
        found.append(f"{len(ignored)} of {len(cells)} code cells are exempt from the comparison")
    if size > 1_000_000:
        found.append(f"{size:,} bytes")
    if questions.BEFORE in {tag for cell in nb.cells for tag in tags(cell)}:
        return found + unclear(nb, name)
    if not 25 <= len(nb.cells) <= 45:
        found.append(f"{len(nb.cells)} cells instead of 25 to 45")
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    headings = [h for h in re.findall(r"^## (.*)$", text, re.M) if h in HEADINGS]
    if headings != HEADINGS:
        found.append(f"sections {headings} instead of {HEADINGS}")
    return found


# What no native technical author would write; the field's own word stands beside each.
FOREIGN = {
    r"\b(nats?|bits?|bytes?|tokens?|FLOPs|seconds?) a (token|block|step|byte|character|second)\b":
        "per",
    r"\bthe description\b": "the original project",
    r"\bWhoever\b": "you, or readers who",
    r"\blikeliest\b": "most probable",
    r"\blearn(t|ed) by heart\b": "memorised",
    r"\bsmall end first\b": "little-endian",
    r"\bline ends?\b": "newline",
    r"\bdrawing a token\b": "sampling a token",
    r"\bholds the computer to\b": "checks",
    r"\bexact: False\b": "a verdict",
    r"\bhands of hours\b": "hours",
}  # fmt: skip
EXERCISE = r"^### Exercise (\d) · (predict|implement|investigate) · (easy|medium|hard) · \d+ min"
CELLS, WORDS, MINUTES, LINES, WIDTH = 32, 3_000, 45, 30, 82


def unclear(nb, name):
    """Return where a notebook asks more of its reader than the design allows."""
    found = []
    sources = [cell.source for cell in nb.cells]
    for tag, text in ((questions.BEFORE, questions.before), (questions.AFTER, questions.after)):
        if [c.source for c in nb.cells if tag in tags(c)] != [text(Path(name).stem)]:
            found.append("the questions are not those of its TOML file: run `make address`")
    side = [i for i, source in enumerate(sources) if re.search(r"^## Side trips", source, re.M)]
    main = nb.cells[: min(side, default=len(sources))]
    own = [
        c for c in main
        if not {"exercise", "solution"} & tags(c) and "### Exercise" not in c.source
        and not c.metadata.get("jupyter", {}).get("source_hidden", False)  # folded: not read
    ]  # fmt: skip
    if len(own) > CELLS:
        found.append(f"{len(own)} cells on the main line, exercises aside; {CELLS} at most")
    text = "\n".join(cell.source for cell in main if cell.cell_type == "markdown")
    words = len(re.sub(r"<details>.*?</details>", "", text, flags=re.S).split())
    if words > WORDS:
        found.append(f"{words:,} words on the main line; {WORDS:,} at most")
    minutes = re.search(r"(\d+) minutes", sources[0])
    if minutes is None or int(minutes[1]) > MINUTES:
        found.append(f"the first cell must say how many minutes it takes, at most {MINUTES}")
    for cell in code_cells(nb):
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        lines = [line for line in cell.source.splitlines() if line.strip()]
        derives = any(tree == PACKAGE.get(n) for n, tree in definitions_of(cell.source).items())
        if len(lines) > LINES and not (derives or hidden):
            found.append(f"a cell of {len(lines)} lines, {LINES} at most: {lines[0][:50]!r}")
        wide = [line for line in lines if len(line) > WIDTH and line not in PACKAGE_LINES]
        if wide and not hidden:
            found.append(f"a line of more than {WIDTH} characters: {wide[0][:50]!r}")
        if re.search(r"^\s*assert ", cell.source, re.M) and not hidden:
            found.append(f"an assert in the reader's way: {lines[0][:50]!r}")
        for output in cell.outputs:
            image = "image/png" in output.get("data", {})
            if image and not output.metadata.get("image/png", {}).get("alt"):
                found.append(f"a picture without alternative text: {lines[-1][:50]!r}")
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    for idiom, better in FOREIGN.items():
        if match := re.search(idiom, prose):
            found.append(f"{match[0]!r}: write {better!r}")
    headed = [c for c in nb.cells if re.search(EXERCISE, c.source, re.M)]
    if len(headed) != sum("exercise" in tags(c) for c in nb.cells):
        found.append("each exercise needs a heading with kind, difficulty and minutes")
    for cell in headed:
        if len(re.findall(r"<details><summary>Hint", cell.source)) != 2:
            found.append(f"two folded hints are missing: {cell.source.splitlines()[0]!r}")
    if not re.search(r"^## .*Recap", prose, re.M):
        found.append("no recap")
    return found


def definitions_of(source):
    """Return a cell's definitions; none where it holds a line that only IPython reads."""
    return {} if re.search(r"^[%!]", source, re.M) else definitions(source)


def tags(cell):
    return set(cell.metadata.get("tags", []))


@each
def test_policy(path):
    assert problems(notebook.read(path), path.stat().st_size, path.name) == []


def test_policy_notices():
    path = PATHS[0]
    good = notebook.read(path)

    def after(change):
        nb = copy.deepcopy(good)
        change(nb)
        return " ".join(problems(nb, 1, path.name))

    def strip(nb):
        for cell in code_cells(nb):
            cell.outputs = []

    assert "not executed" in after(lambda nb: code_cells(nb)[3].update(execution_count=None))
    assert "no output" in after(strip)
    error = new_output("error", ename="NameError", evalue="x", traceback=[])
    assert "error: NameError" in after(lambda nb: code_cells(nb)[2].outputs.append(error))
    stderr = new_output("stream", name="stderr", text="careful")
    assert "stderr" in after(lambda nb: code_cells(nb)[2].outputs.append(stderr))
    assert "widget state" in after(lambda nb: nb.metadata.update(widgets={}))
    assert "set-up cell" in after(lambda nb: code_cells(nb)[0].update(source="import sys"))
    badge = notebook.badge("https://github.com/somebody/fork", path.name)
    assert "badge" in after(lambda nb: nb.cells[0].update(source=f"# Title\n\n{badge}"))
    assert "exempt" in after(
        lambda nb: [c.metadata.update(tags=[notebook.IGNORE]) for c in code_cells(nb)[3:9]]
    )
    for tag in ("nbval-raises-exception", "pytest-validate-ignore-output"):
        assert "exempt" in after(lambda nb, tag=tag: code_cells(nb)[3].metadata.update(tags=[tag]))
    comment = "# PYTEST_VALIDATE_IGNORE_OUTPUT"
    assert "exempt" in after(lambda nb: code_cells(nb)[3].update(source=comment))
    path_printed = new_output("stream", name="stdout", text="/tmp/somewhere")
    assert "prints a path" in after(lambda nb: code_cells(nb)[2].outputs.append(path_printed))
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
    assert "shows a widget" in after(lambda nb: code_cells(nb)[2].outputs.append(widget))
    assert "1,000,001 bytes" in " ".join(problems(good, 1_000_001, path.name))


def test_unclear_notices():
    path = ROOT / "notebooks" / "00_start.ipynb"
    good = notebook.read(path)

    def after(change):
        nb = copy.deepcopy(good)
        change(nb)
        return " ".join(unclear(nb, path.name))

    def picture(nb):
        return next(
            o for c in code_cells(nb) for o in c.outputs if "image/png" in o.get("data", {})
        )

    def headed(nb):
        return next(cell for cell in nb.cells if "### Exercise 1" in cell.source)

    def add(text):
        return lambda nb: nb.cells.insert(5, new_markdown_cell(text))

    def asked(nb):
        return next(cell for cell in nb.cells if questions.BEFORE in tags(cell))

    assert unclear(good, path.name) == []
    assert "cells on the main line" in after(lambda nb: [add("a")(nb) for _ in range(20)])
    assert "words on the main line" in after(add("word " * 3_000))
    assert "words on" not in after(add(f"<details>{'word ' * 3_000}</details>"))
    assert "how many minutes" in after(
        lambda nb: nb.cells[0].update(source="# Title\n\n50 minutes")
    )
    assert "a cell of 31 lines" in after(lambda nb: code_cells(nb)[3].update(source="x = 1\n" * 31))
    assert "more than 82" in after(
        lambda nb: code_cells(nb)[3].update(source="x = 1  # " + "x" * 75)
    )
    assert "an assert" in after(lambda nb: code_cells(nb)[3].update(source="if x:\n    assert x"))
    assert "without alternative" in after(lambda nb: picture(nb).metadata.clear())
    assert "write 'per'" in after(add("It takes 3 nats a token."))
    assert "needs a heading" in after(lambda nb: headed(nb).update(source="### Exercise 1"))
    one_hint = headed(good).source.replace("<summary>Hint 2", "<summary>More")
    assert "two folded hints" in after(lambda nb: headed(nb).update(source=one_hint))
    assert "no recap" in after(lambda nb: [c.update(source="") for c in nb.cells[-4:]])
    assert "questions are not" in after(lambda nb: asked(nb).update(source="Guess!"))


@pytest.mark.parametrize("fault", ["no reason", "two right", "two choices"])
def test_questions_that_teach_nothing_are_refused(fault, monkeypatch):
    choice = {"say": "a", "why": "b"}
    choices = [choice | {"right": True}, choice, choice]
    if fault == "no reason":
        choices[1] = {"say": "a"}
    elif fault == "two right":
        choices[1] = choices[0]
    else:
        choices.pop()
    monkeypatch.setattr(
        questions.tomllib, "loads", lambda _: {"question": [{"ask": "?", "choice": choices}]}
    )
    with pytest.raises(ValueError, match="00_start: "):
        questions.read("00_start")


# --- definitions -------------------------------------------------------------------------------


CHECKS = ("checked", "explained")  # decorators that look at arguments' types, and do nothing else


def validates(node):
    """Say whether a statement only checks or unwraps: it is left out of what the reader reads."""
    if isinstance(node, ast.Assign) and ast.unparse(node) == "model = unwrapped(model)":
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        name = getattr(node.value.func, "attr", getattr(node.value.func, "id", ""))
        return name.startswith("_check")
    return isinstance(node, ast.FunctionDef) and node.name.startswith("_check")


def bare(tree):
    """Return a definition's syntax tree as text, without docstrings and checks of arguments."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            kept = [mark for mark in node.decorator_list if getattr(mark, "id", "") not in CHECKS]
            node.decorator_list = kept
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = body = [part for part in body if not validates(part)]
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:]
    return ast.dump(tree)


def definitions(source):
    """Return the top-level classes and functions of a source text: name to syntax tree."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: bare(node) for node in ast.parse(source).body if isinstance(node, kinds)}


PACKAGE = {
    name: tree
    for file in sorted((ROOT / "smol_scratch").glob("*.py"))
    # Commands, and what examines a machine, have short names of their own, and are taught nowhere.
    if file.stem not in ("commands", "__main__", "__init__", "doctor", "probes")
    for name, tree in definitions(file.read_text("utf-8")).items()
    if not name.startswith("_")
}


# What is shown word for word is as wide as it is in the package.
PACKAGE_LINES = {
    line
    for file in sorted((ROOT / "smol_scratch").glob("*.py"))
    for line in file.read_text("utf-8").splitlines()
}


def shared_definitions(nb):
    found = {}
    for cell in code_cells(nb):
        found |= {n: t for n, t in definitions_of(cell.source).items() if n in PACKAGE}
    return found


@each
def test_definitions_are_the_packages(path):
    found = shared_definitions(notebook.read(path))
    assert [name for name, tree in found.items() if tree != PACKAGE[name]] == []


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("01_rmsnorm", "RMSNorm"),
        ("02_rope", "rotate"),
        ("02_rope", "RotaryPositionalEmbedding"),
        ("03_gqa", "causal_mask"),
        ("03_gqa", "explicit_attention"),
        ("03_gqa", "fast_attention"),
        ("03_gqa", "GroupedQueryAttention"),
        ("04_swiglu", "SwiGLU"),
        ("05_block", "Block"),
        ("06_model", "SmolLM2"),
        ("07_dataset", "train_bpe"),
        ("07_dataset", "BytePairEncoding"),
        ("07_dataset", "DataLoaderLite"),
        ("08_parameters", "parameters"),
        ("10_training", "cosine"),
        ("10_training", "warmup_stable_decay"),
        ("11_generation", "apply_temperature"),
        ("11_generation", "keep_top_k"),
        ("11_generation", "keep_top_p"),
        ("11_generation", "keep_min_p"),
        ("11_generation", "penalise_repetition"),
    ],
)
def test_notebook_derives(stem, name):
    assert name in shared_definitions(notebook.read(ROOT / "notebooks" / f"{stem}.ipynb"))


def test_a_changed_definition_is_noticed():
    source = (ROOT / "smol_scratch" / "model.py").read_text("utf-8")
    assert definitions(source)["RMSNorm"] == PACKAGE["RMSNorm"]
    assert definitions(source.replace("mean(-1", "mean(1"))["RMSNorm"] != PACKAGE["RMSNorm"]
    assert definitions(source.replace("Scale each", "Shrink each"))["RMSNorm"] == PACKAGE["RMSNorm"]
    for change in (("x = self.model.norm(x)", "x = x"), ("self._check(idx", "self._other(idx")):
        assert definitions(source.replace(*change))["SmolLM2"] != PACKAGE["SmolLM2"]


# --- exercises ---------------------------------------------------------------------------------


# Their solutions take minutes together: they run the real model again and again.
LONG = ("13_inside", "12_sharing-4")


def exercise_cells():
    """Return (notebook's stem, number, stub, solution) of every exercise."""
    for path in PATHS:
        cells = notebook.read(path).cells
        stubs = [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]
        for number, i in enumerate(stubs, start=1):
            yield pytest.param(
                path.stem,
                cells[i].source,
                cells[i + 1],
                id=f"{path.stem}-{number}",
                marks=[pytest.mark.slow]
                if {path.stem, f"{path.stem}-{number}"} & set(LONG)
                else [],
            )


def verdict(stem, code):
    """Run an exercise's cell with its notebook's checkers, and return what is printed."""
    module = __import__(
        f"smol_scratch.course.exercises.{CHECKERS.get(stem, stem[3:])}", fromlist=["check"]
    )
    namespace = {name: getattr(smol_scratch, name) for name in smol_scratch.__all__}
    namespace |= {"math": math, "torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    namespace |= {"exercises": module}
    # With what the notebook itself has imported.
    nb = notebook.read(next(path for path in PATHS if path.stem == stem))
    for cell in code_cells(nb):
        lines = [] if {"set-up", "exercise"} & tags(cell) else ast.parse(cell.source).body
        imports = [line for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), f"<{stem}>", "exec"), namespace)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"<{stem}>", "exec"), namespace)
    return printed.getvalue()


# Notebooks whose checkers bear another name than the notebook.
CHECKERS = {"06_model": "assembled"}


@pytest.mark.parametrize(("stem", "stub", "folded"), list(exercise_cells()))
def test_exercise(stem, stub, folded):
    assert "solution" in tags(folded), "the cell after an exercise must hold its solution"
    assert "<details>" in folded.source
    blocks = re.findall(r"```python\n(.*?)```", folded.source, re.S)
    assert len(blocks) == 1
    assert verdict(stem, stub).startswith("not done yet")
    last_line = stub.strip().splitlines()[-1]
    assert last_line.startswith("exercises.")
    answer = verdict(stem, f"{blocks[0]}\n{last_line}")
    assert answer.splitlines()[-1].startswith("correct"), answer


@each
def test_two_to_four_exercises(path):
    # The first notebook teaches how to walk, and ends before there is anything to exercise.
    assert (
        (0 if path.stem == "00_start" else 2)
        <= sum("exercise" in tags(cell) for cell in notebook.read(path).cells)
        <= 4
    )


# --- the strict comparison ---------------------------------------------------------------------

PICTURE = """\
from matplotlib.figure import Figure
figure = Figure(figsize=(1, 1))
figure.subplots().plot([0, {}])
figure"""


def small_notebook(height=1, number=2):
    cells = [
        new_code_cell("%matplotlib inline"),
        new_code_cell(PICTURE.format(height)),
        new_code_cell(f"print({number})"),
    ]
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def executed():
    nb = small_notebook()
    notebook.execute(nb)
    return nb


def nbval(nb, folder):
    """Compare a notebook as `make test` does; return pytest's output."""
    nbformat.write(nb, folder / "small.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "tests.strict_nbval", "--nbval"]
    command += ["--nbval-current-env", "-q", "-p", "no:cacheprovider", str(folder / "small.ipynb")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_nbval_accepts_the_same_outputs(executed, tmp_path):
    assert "3 passed" in nbval(executed, tmp_path)


def test_nbval_refuses_another_number_and_another_picture(executed, tmp_path):
    doctored = copy.deepcopy(executed)
    other = small_notebook(height=2, number=3)
    for cell, replacement in zip(doctored.cells, other.cells, strict=True):
        cell.source = replacement.source
    assert "2 failed, 1 passed" in nbval(doctored, tmp_path)


def test_differences_sees_text_and_pictures(executed):
    other = small_notebook(height=2, number=3)
    notebook.execute(other)
    assert notebook.differences(executed, executed) == {}
    found = notebook.differences(executed, other)
    assert list(found) == [2, 3]
    assert "apart" in found[2]
    assert found[3] == "'2', now '3'"
    tagged = copy.deepcopy(executed)
    tagged.cells[2].metadata["tags"] = [notebook.IGNORE]
    assert list(notebook.differences(tagged, other)) == [2]
    gone = copy.deepcopy(executed)
    gone.cells[1].outputs = []
    assert list(notebook.differences(executed, gone)) == [2]


def faint(nb):
    """Return a copy whose picture has one pixel a shade darker."""
    changed = copy.deepcopy(nb)
    data = changed.cells[1].outputs[0].data
    pixels = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    pixels.putpixel((5, 5), (254, 255, 255))
    file = io.BytesIO()
    pixels.save(file, "png")
    data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return changed


def test_a_picture_that_no_eye_can_tell_apart_is_the_same(executed, tmp_path):
    other = faint(executed)
    assert other.cells[1].outputs != executed.cells[1].outputs
    assert notebook.differences(executed, other) == {}
    assert "3 passed" in nbval(other, tmp_path)


@pytest.mark.slow
def test_portable_runs_as_other_machines_and_says_what_differs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SMOL_SCRATCH_THREADS", "2")
    path = tmp_path / "01_small.ipynb"
    cells = [
        new_code_cell("import os, torch\nfrom smol_scratch.course.notebook import setup\nsetup()"),
        new_code_cell("print(torch.get_num_threads())"),
    ]
    nb = new_notebook(cells=cells)
    notebook.execute(nb)
    nbformat.write(nb, path)
    machines = ["one-thread", "no-onednn"]
    assert notebook.portable([path], machines, tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "1 of 2 the same" in out
    assert "cell 2: '2', now '1'" in out
    assert (tmp_path / "out" / "one-thread" / path.name).exists()


def test_run_reports_failures_and_leaves_the_notebook_alone(tmp_path, capsys):
    path = tmp_path / "01_small.ipynb"
    nb = small_notebook()
    nb.cells.append(new_code_cell("raise RuntimeError('on purpose')"))
    nbformat.write(nb, path)
    before = path.read_bytes()
    assert notebook.run([path], tmp_path / "out") == 1
    assert "FAILED: RuntimeError: on purpose" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert (tmp_path / "out" / path.name).exists()


# --- pictures, links, address --------------------------------------------------------------------


def test_figures_are_what_the_notebooks_drew():
    drawn = {}
    for path in PATHS:
        drawn |= notebook.marked_pictures(notebook.read(path))
    committed = {file.name: file.read_bytes() for file in (ROOT / "figures").glob("*.png")}
    assert committed.pop("demo.png")  # of the page in a browser: tests/test_demo.py takes it
    assert committed == drawn, "run `make refresh`"
    assert drawn, "no notebook marks a picture for figures/"


@pytest.mark.parametrize(
    "file",
    [*PATHS, *ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda file: file.name,
)
def test_local_links_lead_somewhere(file):
    text = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        text = "\n".join(c.source for c in notebook.read(file).cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (file.parent / link).exists(), f"{file.name} links to {link}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_in_the_one_form_that_write_gives(path, tmp_path):
    """So that executing it again changes outputs only, and takes no cell's metadata away."""
    notebook.write(notebook.read(path), tmp_path / path.name)
    assert (tmp_path / path.name).read_text("utf-8") == path.read_text("utf-8")


def test_set_up_and_what_asks_for_it_are_written_folded(tmp_path):
    """By the metadata that JupyterLab and Colab obey; all other cells stay open."""
    nb = small_notebook()
    nb.cells[0].metadata["tags"] = ["set-up"]
    nb.cells[1].metadata |= {"jupyter": {"source_hidden": True}, "trusted": True}
    notebook.write(nb, tmp_path / "a.ipynb")
    folded = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    written = notebook.read(tmp_path / "a.ipynb").cells
    assert [cell.metadata for cell in written] == [folded | {"tags": ["set-up"]}, folded, {}]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_set_up_cell_is_folded(path):
    [cell] = [cell for cell in notebook.read(path).cells if "set-up" in tags(cell)]
    assert cell.metadata["jupyter"] == {"source_hidden": True}


def test_address_rewrites_badges_and_set_up_cells(tmp_path):
    path = tmp_path / PATHS[0].name
    path.write_bytes(PATHS[0].read_bytes())
    others = [tmp_path / name for name in ("README.md", "CITATION.cff")]
    for other in others:
        other.write_bytes((ROOT / other.name).read_bytes())
    notebook.write_address([path], "https://github.com/somebody/fork", tmp_path)
    assert "pip install git+https://github.com/somebody/fork\n" in others[0].read_text("utf-8")
    assert "repository-code: https://github.com/somebody/fork\n" in others[1].read_text("utf-8")
    text = path.read_text("utf-8")
    assert "github/somebody/fork/blob/main/notebooks/" in text
    assert "git+https://github.com/somebody/fork" in text
    assert notebook.repository().removeprefix("https://github.com/") not in text
    notebook.write_address([path], notebook.repository(), tmp_path)
    assert path.read_bytes() == PATHS[0].read_bytes()
    for other in others:
        assert other.read_bytes() == (ROOT / other.name).read_bytes()


# --- Colab ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="an environment is laid out otherwise there")
def test_colab_installs_the_package_and_leaves_torch_alone(tmp_path):
    """Run the set-up cell as Colab would, with a local git address in place of GitHub's."""
    origin = tmp_path / "smol_scratch.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(origin)], check=True)
    colab = tmp_path / "machine"
    subprocess.run([sys.executable, "-m", "venv", str(colab)], check=True)
    # Colab brings torch, transformers and matplotlib, but not this package.
    site = next((colab / "lib").glob("python3*")) / "site-packages"
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").write_text("")
    for found in sys.path:
        if found.endswith("site-packages"):
            for entry in Path(found).iterdir():
                ours = "smol_scratch" in entry.name or entry.name.startswith("__editable__")
                if not ours and not (site / entry.name).exists():
                    (site / entry.name).symlink_to(entry)
    # pip 23 takes a file address only with a host.
    cell = notebook.set_up_cell(f"file://localhost{origin}")
    program = f"""
import google.colab, sys
from IPython.testing.globalipapp import start_ipython
from importlib.metadata import version
shell = start_ipython()
before = version("torch")
shell.run_cell({cell!r}, silent=False).raise_error()
import smol_scratch, torch
assert version("torch") == before, "torch was replaced"
print("installed in", smol_scratch.__file__)
print(smol_scratch.RMSNorm(4)(torch.ones(1, 4)))
"""
    data = tmp_path / "data"
    data.mkdir()
    (data / "assets").symlink_to(ROOT / "data" / "assets")
    result = subprocess.run(
        [str(colab / "bin" / "python"), "-c", program],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "SMOL_SCRATCH_DATA": str(data),
            "IPYTHONDIR": str(tmp_path / "ipython"),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"installed in {site}" in result.stdout
    assert "tensor([[1.0000" in result.stdout


def run_set_up_cell_without_the_package(**environment):
    program = f"""
class Shell:
    def run_line_magic(self, magic, line):
        raise SystemExit(f"{{magic}} {{line}}")
get_ipython = Shell
exec({notebook.set_up_cell("https://example.org/it")!r})
"""
    command = [sys.executable, "-I", "-S", "-c", program]  # a Python with nothing installed
    hosts = ("COLAB_", "KAGGLE_", "DEEPNOTE_", "PAPERSPACE_", "BINDER_")
    here = {name: value for name, value in os.environ.items() if not name.startswith(hosts)}
    ran = subprocess.run(command, env=here | environment, capture_output=True, text=True)
    assert ran.returncode == 1
    return ran.stderr.splitlines()[-1]


def test_a_kernel_without_the_package_says_so_and_what_to_do():
    said = run_set_up_cell_without_the_package()
    assert f"this kernel ({sys.executable}) has no smol_scratch. Choose the kernel" in said
    assert "make lab" in said


@pytest.mark.parametrize("sign", ["KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "BINDER_REPO_URL"])
def test_every_hosted_notebook_installs_the_package(sign):
    said = run_set_up_cell_without_the_package(**{sign: "yes"})
    assert said == (
        "pip install -q -c /tmp/keep-torch.txt 'smol_scratch[colab] @ git+https://example.org/it'"
    )


def test_pictures_decode():
    nb = new_notebook(cells=[new_markdown_cell("text"), new_code_cell("1")])
    picture = base64.b64encode(b"\x89PNG").decode()
    nb.cells[1].outputs = [new_output("display_data", data={"image/png": picture})]
    nb.cells[1].metadata["figure"] = "x.png"
    assert notebook.marked_pictures(nb) == {"x.png": b"\x89PNG"}
