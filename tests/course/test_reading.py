"""What programs that show notebooks make of ours: folded cells, exercises apart, whole tables."""

from __future__ import annotations

import re

import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from smol_scratch.course import notebook

each = pytest.mark.parametrize("path", notebook.notebooks(), ids=lambda path: path.stem)


def tags(cell):
    return set(cell.metadata.get("tags", []))


# Folding


@each
def test_a_folded_cell_is_folded_everywhere_and_the_plumbing_is_folded(path):
    """JupyterLab reads ``jupyter.source_hidden``, Colab ``cellView``.

    VS Code folds by no field of the file; it remembers what its user folds (microsoft/vscode,
    issue 158716).
    """
    cells = [cell for cell in notebook.read(path).cells if cell.cell_type == "code"]
    for cell in cells:
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert (cell.metadata.get("cellView") == "form") == hidden, cell.source[:60]
        # What the classic notebook calls so would hide outputs, which are there to be seen.
        assert not cell.metadata.get("collapsed", False)
        assert not cell.metadata.get("jupyter", {}).get("outputs_hidden", False)
        if {"set-up", "claims"} & tags(cell):
            assert hidden, cell.source[:60]
    imports = [
        cell for cell in cells
        if all(re.match(r"(import|from) |[ )#]|$", line) for line in cell.source.splitlines())
    ]  # fmt: skip
    for cell in imports:
        assert cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source[:60]


# Exercises


@each
def test_a_solution_shares_no_cell_with_the_next_exercise(path):
    cells = notebook.read(path).cells
    for cell in (cell for cell in cells if "solution" in tags(cell)):
        assert cell.source.lstrip().startswith("<details>")
        assert cell.source.rstrip().endswith("</details>")
        assert "### Exercise" not in cell.source


# Tables


def tables(source: str) -> list[list[str]]:
    """Return the lines of each table in a Markdown text."""
    found: list[list[str]] = []
    inside = False
    for line in source.splitlines():
        is_row = line.lstrip().startswith("|")
        if is_row and not inside:
            found.append([])
        if is_row:
            found[-1].append(line.strip())
        inside = is_row
    return found


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


TABLES = [
    pytest.param(lines, id=f"{path.stem}-{number}")
    for path in notebook.notebooks()
    for number, lines in enumerate(
        lines
        for cell in notebook.read(path).cells
        if cell.cell_type == "markdown"
        for lines in tables(cell.source)
    )
]


def faults(lines: list[str]) -> list[str]:
    """Return what nbconvert's page would lose of a table, or would tear apart."""
    page = markdown2html_mistune("\n".join(lines))
    header, _, *body = lines
    shown = [re.findall(r"<t[hd]", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    found = []
    if [len(row) for row in shown] != [len(cells_of(row)) for row in (header, *body)]:
        found.append("rows or columns are lost")
    if len({len(row) for row in shown}) > 1:
        found.append("rows of several lengths")
    # MathJax 2 breaks a formula over lines, and one alone in a header takes a whole line's width.
    if alone := [cell for cell in cells_of(header) if re.fullmatch(r"\$[^$]+\$", cell)]:
        found.append(f"a column headed by a formula alone: {alone[0]}")
    return found


@pytest.mark.parametrize("lines", TABLES)
def test_a_table_survives_nbconvert(lines):
    assert faults(lines) == []


def test_tables_that_fall_apart_are_seen():
    assert TABLES
    good = ["| a | $b$ of it |", "|---|---|", "| 1 | $x_1$ |"]
    assert faults(good) == []
    assert faults([*good, "| 2 | $|x|$ |"])
    assert faults([*good, "| 2 |"])
    assert faults([good[0].replace(" of it", ""), *good[1:]])
