"""What the notebooks stand on: the set-up of a first cell, and the commands that run them.

``python -m smol_scratch.course.notebook run`` executes all notebooks into ``build/notebooks`` and
compares their outputs with the committed ones; ``refresh`` executes them in place; ``address``
writes the repository's address from pyproject.toml into badges and set-up cells.
"""

from __future__ import annotations

import argparse
import base64
import logging
import math
import os
import re
import sys
import time
import tomllib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smol_scratch import assets

if TYPE_CHECKING:
    from nbformat import NotebookNode

# The version that the committed outputs were made with; constraints.txt holds all of them.
MADE_WITH_TORCH = "2.13"
NAME = "python -m smol_scratch.course.notebook"
ROOT = assets.ROOT
IGNORE = "nbval-ignore-output"


def setup() -> None:
    """Prepare a notebook: assets, seed, threads, the figures' style.

    The number of threads is fixed, since the order of additions, and with it the last digit,
    depends on it.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    assets.fetch()
    from IPython import get_ipython

    from smol_scratch.course.figures import use_style

    if shell := get_ipython():
        shell.run_line_magic("matplotlib", "inline")  # show figures that no window holds
    use_style()
    warnings.simplefilter("ignore", FutureWarning)  # of other libraries
    warnings.filterwarnings("ignore", message="IProgress not found")
    torch.set_num_threads(2)
    torch.manual_seed(0)
    if not torch.__version__.startswith(MADE_WITH_TORCH):
        print(
            f"The outputs below were made with torch {MADE_WITH_TORCH}; this is "
            f"{torch.__version__}, so last digits may differ."
        )


def compare(label: str, ours: Tensor, theirs: Tensor) -> None:
    """Print whether two tensors are equal, and how large the largest difference is.

    The difference is given as the next power of ten above it: its exact value changes with the
    processor.

    Raises:
        ValueError: when the shapes differ, since broadcasting would compare the wrong things.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{label}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ")
    largest = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    print(f"{label:<34} exact: {torch.equal(ours, theirs)!s:<5}  {magnitude(largest)}")


def magnitude(difference: float) -> str:
    """Say how large a difference is: "largest difference: below 1e-06", 0, inf or nan."""
    if difference == 0:
        return "largest difference: 0"
    if not math.isfinite(difference):
        return f"largest difference: {difference}"
    exponent = next(e for e in range(-45, 40) if difference < 10.0**e)
    return f"largest difference: below 1e{exponent:+03d}"


def repository() -> str:
    """Return the repository's address, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"]


def set_up_cell(address: str) -> str:
    """Return the source of the set-up cell, the same in every notebook."""
    return f"""\
import sys

if "google.colab" in sys.modules:  # on Colab: install the package, keep Colab's own torch
    from importlib.metadata import version

    with open("/tmp/keep-torch.txt", "w") as file:
        file.write(f"torch=={{version('torch')}}\\n")
    package = "smol_scratch[colab] @ git+{address}"
    get_ipython().run_line_magic("pip", f"install -q -c /tmp/keep-torch.txt '{{package}}'")

from smol_scratch.course.notebook import setup

setup()"""


def badge(address: str, name: str) -> str:
    """Return the Markdown of a notebook's Colab badge."""
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
        kept = ("tags", "figure")
        cell.metadata = {key: cell.metadata[key] for key in kept if key in cell.metadata}
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


def changed_cells(old: NotebookNode, new: NotebookNode) -> list[int]:
    """Return the numbers of the code cells whose outputs differ, tagged cells aside.

    Text and pictures are compared exactly.
    """

    def essence(cell: NotebookNode) -> list[Any]:
        outputs = _merged(cell.outputs)
        return [(o.get("text"), o.get("data"), o.get("ename")) for o in outputs]

    pairs = zip(old.cells, new.cells, strict=True)
    return [
        number
        for number, (a, b) in enumerate(pairs, start=1)
        if a.cell_type == "code"
        and IGNORE not in a.metadata.get("tags", [])
        and essence(a) != essence(b)
    ]


def cleared(notebook: NotebookNode) -> NotebookNode:
    """Take the outputs out, so that those of another execution cannot be left beside new ones."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def run(paths: list[Path], folder: Path) -> int:
    """Execute notebooks into ``folder``, print a table, and return how many failed."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    rows, failures = [], 0
    for path in paths:
        committed, notebook = read(path), cleared(read(path))
        code = sum(cell.cell_type == "code" for cell in notebook.cells)
        start = time.perf_counter()
        try:
            execute(notebook, path.stem)
            changed = changed_cells(committed, notebook)
            result = "same outputs" if not changed else f"other outputs in {len(changed)}"
        except CellExecutionError as error:
            failures += 1
            result = f"FAILED: {error.ename}: {error.evalue}"[:60]
        except (CellTimeoutError, DeadKernelError) as error:
            failures += 1
            result = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"[:60]
        write(notebook, folder / path.name)
        rows.append((path.stem, str(code), f"{time.perf_counter() - start:.0f}", result))
        print(f"{path.stem}: {result}", flush=True)
    print()
    for row in (("notebook", "cells", "seconds", "result"), *rows):
        print(f"{row[0]:<20} {row[1]:>6} {row[2]:>8}  {row[3]}")
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(f"\nexecuted copies are in {shown}/")
    return failures


def refresh(paths: list[Path]) -> None:
    """Execute notebooks in place, redraw ``figures/``, and say which outputs changed."""
    for path in paths:
        committed, notebook = read(path), cleared(read(path))
        seconds = execute(notebook, path.stem)
        changed = changed_cells(committed, notebook)
        write(notebook, path)
        what = f"changed outputs in cells {changed}" if changed else "no output changed"
        print(f"{path.stem}: {seconds:.0f} s, {what}", flush=True)
        for name, picture in pictures(notebook).items():
            assets.write_atomically(ROOT / "figures" / name, picture)


def pictures(notebook: NotebookNode) -> dict[str, bytes]:
    """Return the pictures that cells mark with ``figure`` in their metadata: name to PNG."""
    return {
        cell.metadata["figure"]: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        if "figure" in cell.metadata
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }


def write_address(paths: list[Path], address: str, root: Path = ROOT) -> None:
    """Write the repository's address into badges, set-up cells, README and CITATION.cff."""
    for name, before in (("README.md", "pip install git+"), ("CITATION.cff", "repository-code: ")):
        file = root / name
        text = re.sub(rf"({re.escape(before)})\S+", rf"\g<1>{address}", file.read_text("utf-8"))
        assets.write_atomically(file, text.encode())
    for path in paths:
        notebook = read(path)
        for cell in notebook.cells:
            if "Open in Colab" in cell.source:
                cell.source = re.sub(
                    r"\[!\[Open in Colab\].*?\)\]\(.*?\)", badge(address, path.name), cell.source
                )
            if "set-up" in cell.metadata.get("tags", []):
                cell.source = set_up_cell(address)
        write(notebook, path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument("command", choices=("run", "refresh", "address"))
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of them unless named")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "notebooks")
    chosen = parser.parse_args(arguments)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    paths = [path.resolve() for path in chosen.paths] or notebooks()
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if chosen.command == "run":
        return min(run(paths, chosen.output), 1)
    if chosen.command == "refresh":
        refresh(paths)
    else:
        write_address(paths, repository())
        print(f"{len(paths)} notebooks now point to {repository()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
