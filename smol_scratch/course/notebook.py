"""What the notebooks stand on: the set-up of a first cell, and the commands that run them.

``python -m smol_scratch.course.notebook run`` executes all notebooks into ``build/notebooks`` and
compares their outputs with the committed ones (``one``: a single notebook, in this process);
``portable`` does so as other machines would; ``refresh`` executes them in place; ``address`` writes
what is common into them: badge and set-up cell with the address from pyproject.toml, questions.
"""

from __future__ import annotations

import argparse
import base64
import csv
import itertools
import logging
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smol_scratch import assets
from smol_scratch.course import pictures, questions

if TYPE_CHECKING:
    from nbformat import NotebookNode

# The version that the committed outputs were made with; constraints.txt holds all of them.
MADE_WITH_TORCH = "2.13"
NAME = "python -m smol_scratch.course.notebook"
ROOT = assets.ROOT
IGNORE = "nbval-ignore-output"
# Stands in pyproject.toml for the owner until the repository has a home: no link leads there.
PLACEHOLDER = "OWNER"


def setup() -> None:
    """Prepare a notebook: assets, seed, threads, the figures' style.

    The number of threads is fixed, since the order of additions, and with it the last digit,
    depends on it. `make portable` asks for another machine by environment variables.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    assets.fetch()
    from IPython import get_ipython
    from IPython.core.pylabtools import print_figure

    from smol_scratch.course.figures import show_alternative_text, use_style

    if shell := get_ipython():
        shell.run_line_magic("matplotlib", "inline")  # show figures that no window holds
        show_alternative_text(shell, print_figure)
    use_style()
    warnings.simplefilter("ignore", FutureWarning)  # of other libraries
    warnings.filterwarnings("ignore", message="IProgress not found")
    torch.set_num_threads(int(os.environ.get("SMOL_SCRATCH_THREADS", "2")))
    if os.environ.get("SMOL_SCRATCH_ONEDNN") == "off":
        torch.backends.mkldnn.set_flags(False)
    torch.manual_seed(0)
    if not torch.__version__.startswith(MADE_WITH_TORCH):
        print(
            f"The outputs below were made with torch {MADE_WITH_TORCH}; this is "
            f"{torch.__version__}, so last digits may differ."
        )


# How far apart two right ways of computing the same thing may be, in units of the type's last place
# of the largest number. `make report`: two orders of summation inside `transformers` differ by
# 9.4e-05 in logits of the real weights, of which the largest is about 30, so by less than half of
# this; the gentlest planted bug lies 22 times above such a floor. Products of 16-bit numbers are
# summed in float32 and rounded a few times.
ROUNDING = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 4, torch.float16: 4}


def compare(
    label: str, ours: Tensor, theirs: Tensor, *, exact: bool = False, within: float | None = None
) -> bool:
    """Print one verdict on two tensors: equal, equal up to rounding, or different.

    Args:
        label: what is compared.
        ours: any shape.
        theirs: the same shape.
        exact: ask for the same bits. Only what is promised on every machine is asked so: copies,
            a saved and loaded model, a resumed run, the same operations on the same shapes.
        within: another bound than rounding, absolute, where something else is known to differ.

    Returns:
        Whether they are equal in the sense that was asked for.

    Raises:
        ValueError: when the shapes differ, since broadcasting would compare the wrong things.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{label}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ")
    a, b = ours.detach().double(), theirs.detach().double()
    largest = (a - b).abs().max().item() if a.numel() else 0.0
    if exact:
        same, words = torch.equal(ours, theirs), "✓ equal, bit for bit"
    elif within is not None:
        same, words = largest <= within, f"✓ equal within {within:g}"
    else:
        same, words = largest <= rounding(ours, theirs), "✓ equal up to rounding"
    print(f"{label:<36} {words if same else f'✗ different, by up to {largest:.1g}'}")
    return same


def rounding(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference that rounding alone explains, for tensors of these sizes."""
    kinds = [kind for kind in (ours.dtype, theirs.dtype) if kind in ROUNDING]
    units = max((ROUNDING[kind] * torch.finfo(kind).eps for kind in kinds), default=0.0)
    largest = max(float(t.detach().double().abs().max()) for t in (ours, theirs))
    return units * largest


def read_record(name: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV file of ``data/records``; what looks like a number is one.

    Empty fields are None; lines that begin with # say how the file was made.
    """
    lines = (assets.records() / name).read_text("utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [{key: _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def repository() -> str:
    """Return the repository's address, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"]


def set_up_cell(address: str) -> str:
    """Return the source of the set-up cell, the same in every notebook.

    As long as the repository has no home, nothing can be installed from there.
    """
    if PLACEHOLDER in address:
        return """\
import sys
from importlib.util import find_spec

needed = ("smol_scratch", "transformers", "matplotlib")
if missing := [name for name in needed if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"this kernel ({sys.executable}) has no {missing[0]}. Choose the kernel of "
        "the environment that README.md sets up, or start with `make lab`"
    )

from smol_scratch.course.notebook import setup

setup()"""
    return f"""\
import os
import sys
from importlib.util import find_spec

needed = ("smol_scratch", "transformers", "matplotlib")
if missing := [name for name in needed if find_spec(name) is None]:
    hosts = ("COLAB_", "KAGGLE_", "DEEPNOTE_", "PAPERSPACE_", "BINDER_")
    hosted = any(name.startswith(hosts) for name in os.environ)
    if not hosted and "google.colab" not in sys.modules:
        raise ModuleNotFoundError(
            f"this kernel ({{sys.executable}}) has no {{missing[0]}}. Choose the kernel of "
            "the environment that README.md sets up, or start with `make lab`"
        )
    with open("/tmp/keep-torch.txt", "w") as file:  # the host's own stays
        if find_spec("torch"):
            from importlib.metadata import version

            file.write(f"torch=={{version('torch')}}\\n")
    package = "smol_scratch[colab] @ git+{address}"
    get_ipython().run_line_magic("pip", f"install -q -c /tmp/keep-torch.txt '{{package}}'")

from smol_scratch.course.notebook import setup

setup()"""


def badge(address: str, name: str) -> str:
    """Return the Markdown of a notebook's Colab badge; none while the repository has no home."""
    if PLACEHOLDER in address:
        return ""
    place = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})]({link})"


def notebooks() -> list[Path]:
    """Return the walkthrough's notebooks in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    import nbformat

    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in the one form that is committed, whole or not at all."""
    import nbformat

    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number:02d}"
        kept = ("tags", "figure", "explore", "jupyter")
        cell.metadata = {key: cell.metadata[key] for key in kept if key in cell.metadata}
        if "set-up" in cell.metadata.get("tags", []):
            # Folded, since it is not what is read first: in JupyterLab, and in Colab.
            cell.metadata["jupyter"] = {"source_hidden": True}
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["cellView"] = "form"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    assets.write_atomically(path, (nbformat.writes(notebook) + "\n").encode())


def execute(notebook: NotebookNode, label: str = "") -> float:
    """Run every cell in order in a fresh kernel, in place, and return the seconds it took.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails that is not meant to.
    """
    from nbclient import NotebookClient
    from tqdm import tqdm

    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=code, desc=label, unit="cell", leave=False) as progress:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(ROOT / "notebooks")}},
            on_cell_executed=lambda **_: progress.update(),
        )
        start = time.perf_counter()
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = pictures.smaller(picture)
    return time.perf_counter() - start


def _merged(outputs: list[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: how a stream is cut depends on timing."""
    joined: list[Any] = []
    for output in outputs:
        if joined and "stream" == output.output_type == joined[-1].output_type:
            if output.name == joined[-1].name:
                joined[-1]["text"] += output["text"]
                continue
        joined.append(output)
    return joined


def differences(old: NotebookNode, new: NotebookNode) -> dict[int, str]:
    """Return the code cells whose outputs differ, tagged cells aside: number to what differs.

    Text is compared exactly, pictures as a reader sees them.
    """
    found = {}
    for number, (a, b) in enumerate(zip(old.cells, new.cells, strict=True), start=1):
        if a.cell_type == "code" and IGNORE not in a.metadata.get("tags", []):
            if what := _difference(_merged(a.outputs), _merged(b.outputs)):
                found[number] = what
    return found


def _difference(old: list[Any], new: list[Any]) -> str:
    """Say what differs first between two cells' outputs; nothing where they are the same."""
    if len(old) != len(new):
        return f"{len(old)} outputs, now {len(new)}"
    for a, b in zip(old, new, strict=True):
        if (a.output_type, a.get("name"), a.get("ename")) != (
            b.output_type, b.get("name"), b.get("ename"),
        ):  # fmt: skip
            return f"{a.output_type}, now {b.output_type}"
        kinds, others = a.get("data", {}), b.get("data", {})
        texts = [(a.get("text", ""), b.get("text", ""))]
        texts += [(kinds[kind], others.get(kind, "")) for kind in kinds if kind != "image/png"]
        for before, after in texts:
            if before != after:
                lines = itertools.zip_longest(
                    before.splitlines(), after.splitlines(), fillvalue="nothing"
                )
                return "{!r}, now {!r}".format(*next(pair for pair in lines if len({*pair}) > 1))
        if set(kinds) != set(others):
            return f"{sorted(kinds)}, now {sorted(others)}"
        if "image/png" in kinds:
            apart = pictures.distance(kinds["image/png"], others["image/png"])
            if apart > pictures.TOLERANCE:
                return f"pictures {apart:.2f} apart, {pictures.TOLERANCE:g} allowed"
    return ""


def cleared(notebook: NotebookNode) -> NotebookNode:
    """Take the outputs out, so that those of another execution cannot be left beside new ones."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def run(paths: list[Path], folder: Path, jobs: int = 2) -> int:
    """Execute notebooks into ``folder``, print a table, and return how many failed.

    Several at a time, each on one thread, take less time than one after the other on two.
    """
    print(f"{len(paths)} notebooks, up to {jobs} at a time; some take a minute or two", flush=True)

    def once(path: Path) -> list[str]:
        start = time.perf_counter()
        threads = {"SMOL_SCRATCH_THREADS": "1"} if jobs > 1 else {}
        result = _run_alone(path, folder, threads)
        print(f"{path.stem}: {result[0]}", flush=True)
        for line in result[1:]:
            print(f"  {line}", flush=True)
        return [path.stem, f"{time.perf_counter() - start:.0f}", result[0]]

    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(once, paths))
    print(f"\n{'notebook':<20} {'seconds':>8}  result")
    for stem, seconds, result in rows:
        print(f"{stem:<20} {seconds:>8}  {result}")
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(f"\nexecuted copies are in {shown}/")
    return sum(result.startswith("FAILED") for _, _, result in rows)


def _run_alone(path: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    """Execute a notebook in a process of its own; return the result, and what differs."""
    command = [sys.executable, "-m", "smol_scratch.course.notebook", "one", str(path)]
    done = subprocess.run(
        [*command, "--output", str(folder)], env=os.environ | environment, cwd=ROOT,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
    return lines or [f"FAILED: {done.stderr.strip().splitlines()[-1:]}"]


def run_one(path: Path, folder: Path) -> None:
    """Execute a notebook into ``folder``, and print how it went and what differs."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    committed, notebook = read(path), cleared(read(path))
    try:
        execute(notebook, path.stem)
        changed = differences(committed, notebook)
        print("same outputs" if not changed else f"other outputs in {len(changed)}")
        for number, what in changed.items():
            print(f"cell {number}: {what}")
    except CellExecutionError as error:
        print(f"FAILED: {error.ename}: {error.evalue}"[:200].replace("\n", " "))
    except (CellTimeoutError, DeadKernelError) as error:
        print(f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"[:200])
    write(notebook, folder / path.name)


# Ways to make one machine compute as another would: name to environment variables. The first has
# differed most.
X86 = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "plain-x86": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "no-bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
ANY = {
    "one-thread": {"SMOL_SCRATCH_THREADS": "1"},
    "no-onednn": {"SMOL_SCRATCH_ONEDNN": "off"},
}
MACHINES = (X86 if platform.machine().lower() in ("x86_64", "amd64") else {}) | ANY


def portable(paths: list[Path], machines: list[str], folder: Path, jobs: int = 2) -> int:
    """Execute notebooks as other machines would, and compare with the committed outputs.

    Prints a table of machines and notebooks, and below it what differs.

    Args:
        paths: the notebooks.
        machines: names from ``MACHINES``.
        folder: executed copies go to a folder in it for each machine.
        jobs: how many notebooks run at a time.

    Returns:
        How many of the executions were not the same.
    """

    def once(machine: str, path: Path) -> str:
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **MACHINES[machine]}
        result = _run_alone(path, folder / machine, environment)
        print(f"{machine:<14} {path.stem}: {result[0]}", flush=True)
        return "\n".join(result)

    tasks = [(machine, path) for machine in machines for path in paths]
    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip(tasks, pool.map(lambda task: once(*task), tasks), strict=True))
    print(f"\n{'':<14} " + " ".join(path.stem[:2] for path in paths))
    for machine in machines:
        marks = ("✓ " if results[machine, p] == "same outputs" else "✗ " for p in paths)
        print(f"{machine:<14} " + " ".join(marks))
    different = {task: result for task, result in results.items() if result != "same outputs"}
    for (machine, path), result in different.items():
        print(f"\n{machine}, {path.stem}: " + result.replace("\n", "\n  "))
    print(f"\n{len(tasks) - len(different)} of {len(tasks)} the same")
    return len(different)


def refresh(paths: list[Path]) -> None:
    """Execute notebooks in place, redraw ``figures/``, and say which outputs changed."""
    for path in paths:
        committed, notebook = read(path), cleared(read(path))
        complete(notebook, path.name, repository())
        seconds = execute(notebook, path.stem)
        changed = differences(committed, notebook)
        write(notebook, path)
        what = f"changed outputs in cells {[*changed]}" if changed else "no output changed"
        print(f"{path.stem}: {seconds:.0f} s, {what}", flush=True)
        for name, picture in marked_pictures(notebook).items():
            assets.write_atomically(ROOT / "figures" / name, picture)


def marked_pictures(notebook: NotebookNode) -> dict[str, bytes]:
    """Return the pictures that cells mark with ``figure`` in their metadata: name to PNG."""
    return {
        cell.metadata["figure"]: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        if "figure" in cell.metadata
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }


def complete(notebook: NotebookNode, name: str, address: str) -> None:
    """Write into a notebook what is common to all: set-up cell, badge, and its questions."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "set-up" in tags:
            cell.source = set_up_cell(address)
        if questions.BEFORE in tags:
            cell.source = questions.before(Path(name).stem)
        if questions.AFTER in tags:
            cell.source = questions.after(Path(name).stem)
    first = notebook.cells[0]
    title, _, rest = first.source.partition("\n")
    rest = re.sub(r"\[!\[Open in Colab\].*?\)\]\(.*?\)", "", rest).strip()
    first.source = "\n\n".join(part for part in (title, badge(address, name), rest) if part)


def write_address(paths: list[Path], address: str, root: Path = ROOT) -> None:
    """Write the repository's address into badges, set-up cells, README and CITATION.cff.

    With the placeholder, take it out again: a link that leads nowhere is worse than none.
    """
    home = PLACEHOLDER not in address
    readme, citation = root / "README.md", root / "CITATION.cff"
    install = f"pip install git+{address}" if home else "pip install .    # in the checkout"
    text = re.sub(r"^pip install (git\+|\.  ).*$", install, readme.read_text("utf-8"), flags=re.M)
    assets.write_atomically(readme, text.encode())
    text = re.sub(r"^repository-code: .*\n", "", citation.read_text("utf-8"), flags=re.M)
    text += f"repository-code: {address}\n" if home else ""
    assets.write_atomically(citation, text.encode())
    for path in paths:
        notebook = read(path)
        complete(notebook, path.name, address)
        write(notebook, path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument("command", choices=("run", "one", "refresh", "portable", "address"))
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of them unless named")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "notebooks")
    parser.add_argument("--machine", choices=MACHINES, nargs="+", default=[*MACHINES],
                        help="portable: simulated machines; all of them unless named")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    chosen = parser.parse_args(arguments)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    paths = [path.resolve() for path in chosen.paths] or notebooks()
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if chosen.command == "run":
        return min(run(paths, chosen.output, chosen.jobs), 1)
    if chosen.command == "one":
        for path in paths:
            run_one(path, chosen.output)
        return 0
    if chosen.command == "portable":
        folder = ROOT / "build" / "portable"
        return min(portable(paths, chosen.machine, folder, chosen.jobs), 1)
    if chosen.command == "refresh":
        refresh(paths)
    else:
        write_address(paths, repository())
        print(f"{len(paths)} notebooks have the set-up cell and badge for {repository()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
