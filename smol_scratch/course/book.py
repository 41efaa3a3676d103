"""Build the book: a website of the committed notebooks and the pages of ``docs/``.

``python -m smol_scratch.course.book`` gathers the sources in ``build/book-source`` and lets Sphinx
make ``build/book`` of them. Nothing is executed, and the pages ask no other host for anything.
"""

from __future__ import annotations

import ast
import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nbformat.v4 import new_markdown_cell

import smol_scratch
from smol_scratch.assets import ROOT
from smol_scratch.course import notebook

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE, BOOK = ROOT / "build" / "book-source", ROOT / "build" / "book"
PARTS = {
    "Begin": ["00"],
    "Build the model": ["01", "02", "03", "04", "05", "06"],
    "What goes in, what it costs": ["07", "08", "09"],
    "Train, write, share": ["10", "11", "12"],
    "Look inside": ["13"],
}
# Folders that are copied as they are, first from docs/, then what was built of them from build/.
FOLDERS = ("explore", "explorer")
# Added to each page of docs/explore: it says how high it is, and hears whether the book is dark
# (then its <html> has data-theme="dark"); by messages, since pages of file:// may not touch others.
EXPLORE_SCRIPT = """<script>
if (parent !== window) {
  const say = (hello) => parent.postMessage(
    { exploreHeight: document.documentElement.getBoundingClientRect().height, hello }, "*");
  addEventListener("message", (event) => {
    if (event.source === parent && event.data.theme)
      document.documentElement.dataset.theme = event.data.theme;
  });
  addEventListener("load", () => say(true));
  new ResizeObserver(() => say(false)).observe(document.documentElement);
}
</script>
"""
PAGES = {"Reference": ["glossary", "interface", "api", "proofs", "training"]}


def questions_of_the_walk() -> dict[str, tuple[str, str]]:
    """Return what the README's table says: file's stem to short title and question."""
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(.*?)\]\(notebooks/(.*?)\.ipynb\) \| (.*?) \|$", readme, re.M)
    return {stem: (title, question) for title, stem, question in rows}


def explorable(name: str) -> str:
    """Return what embeds ``docs/explore/NAME.html`` in a notebook's page.

    Without JavaScript it is the picture ``NAME.png`` and a link; ``book.js`` makes a frame of it.

    Raises:
        ValueError: when there is no such page, or it lacks its title or description.
    """
    page = ROOT / "docs" / "explore" / f"{name}.html"
    if not page.is_file():
        raise ValueError(f'a cell says "explore": "{name}", but there is no {page}')
    text = page.read_text("utf-8")
    title = re.search(r"<title>(.*?)</title>", text, re.S)
    about = re.search(r'<meta name="description" content="([^"]*)"', text)
    if not title or not about:
        raise ValueError(f'{page} needs a <title> and a <meta name="description" content="…">')
    words = html.escape(html.unescape(title[1].strip()))
    picture = f'<img src="../explore/{name}.png" alt="{about[1]}">'
    return (
        f'<figure class="explore" data-src="../explore/{name}.html" data-title="{words}">\n'
        + (f'<a href="../explore/{name}.html">{picture}</a>\n'
           if page.with_suffix(".png").is_file() else "")
        + f'<figcaption><a href="../explore/{name}.html">{words}</a></figcaption>\n</figure>'
    )  # fmt: skip


def with_explorables(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return the cells with an explorable after each whose metadata names one."""
    shown = []
    for cell in cells:
        shown.append(cell)
        if name := cell.metadata.get("explore"):
            # The notebook itself shows the picture.
            cell.source = re.sub(r"!\[[^\]]*\]\(\.\./docs/explore/[^)]*\)\n*", "", cell.source)
            shown.append(new_markdown_cell(f"```{{raw}} html\n{explorable(name)}\n```"))
    return shown


def prepared(nb: NotebookNode) -> NotebookNode:
    """Return a notebook as the book shows it: folded cells folded, links that lead somewhere."""
    nb.cells = with_explorables(nb.cells)
    for cell in nb.cells:
        tags = cell.metadata.setdefault("tags", [])
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            tags.append("hide-input")
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                rf"(?<!!)\[([^\]]*)\]\(\.\./docs/(({'|'.join(FOLDERS)})/[^)]*)\)",
                r'<a href="../\2">\1</a>',
                cell.source,
            )
            # Files of the repository are no pages of the book.
            cell.source = re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", cell.source)
        for output in cell.get("outputs", []):
            words = output.get("metadata", {}).get("image/png", {}).get("alt")
            if words:  # myst-nb takes the alternative text from the cell
                cell.metadata["mystnb"] = {"image": {"alt": words}}
    return nb


def first_picture(nb: NotebookNode) -> bytes | None:
    """Return the first picture of a notebook after its map."""
    found = [
        base64.b64decode(output.data["image/png"])
        for cell in nb.cells
        if "model_map" not in cell.source
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    return found[0] if found else None


def cards(picture: dict[str, bytes | None]) -> str:
    """Return the landing page's cards, one for each notebook, part by part."""
    about = questions_of_the_walk()
    lines = []
    for part, numbers in PARTS.items():
        lines += [f"## {part}", "", "::::{grid} 1 2 2 3", ":gutter: 3", ""]
        for stem, (title, question) in about.items():
            if stem[:2] not in numbers:
                continue
            minutes = re.search(r"(\d+) minutes", _first_cell(stem))
            lines += [f":::{{grid-item-card}} {title}", f":link: notebooks/{stem}",
                      ":link-type: doc"]  # fmt: skip
            if picture.get(stem):
                lines += [f":img-bottom: _static/cards/{stem}.png", ":img-alt: "]
            lines += [
                "",
                question,
                *(["", f"*{minutes[1]} minutes*"] if minutes else []),
                ":::",
                "",
            ]
        lines += ["::::", ""]
    return "\n".join(lines)


def _first_cell(stem: str) -> str:
    return str(notebook.read(ROOT / "notebooks" / f"{stem}.ipynb").cells[0].source)


def contents() -> str:
    """Return the table of contents, hidden on the page and shown at the left."""
    stems = list(questions_of_the_walk())
    lines = []
    for part, numbers in PARTS.items():
        lines += ["```{toctree}", ":hidden:", f":caption: {part}", ""]
        lines += [f"notebooks/{stem}" for stem in stems if stem[:2] in numbers] + ["```", ""]
    for part, pages in PAGES.items():
        lines += ["```{toctree}", ":hidden:", f":caption: {part}", "", *pages, "```", ""]
    return "\n".join(lines)


def derived_in(nbs: dict[str, NotebookNode]) -> dict[str, str]:
    """Return the notebook that derives each public name, where one does."""
    found: dict[str, str] = {}
    for stem, nb in nbs.items():
        for cell in nb.cells:
            if cell.cell_type != "code" or re.search(r"^[%!]", cell.source, re.M):
                continue
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    found.setdefault(node.name, stem)
    return {name: found[name] for name in smol_scratch.__all__ if name in found}


def reference(nbs: dict[str, NotebookNode]) -> str:
    """Return the page of the public names, written from their docstrings."""
    origin = derived_in(nbs)
    lines = ["# Public names", "", "Everything that `from smol_scratch import …` offers.", ""]
    for name in smol_scratch.__all__:
        thing = getattr(smol_scratch, name)
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        lines += [f"## {name}", ""]
        if name in origin:
            title = questions_of_the_walk()[origin[name]][0]
            lines += [f"Derived in [{title}](notebooks/{origin[name]}.ipynb).", ""]
        lines += ["```{eval-rst}", f".. {kind}:: {thing.__module__}.{name}",
                  *(["   :members:"] if isinstance(thing, type) else []), "```", ""]  # fmt: skip
    return "\n".join(lines)


def gather(source: Path = SOURCE) -> None:
    """Write all sources of the book into a folder, which is emptied first."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source, ignore=lambda at, names: FOLDERS)
    (source / "notebooks").mkdir()
    (source / "_static" / "cards").mkdir(parents=True)
    nbs = {path.stem: notebook.read(path) for path in notebook.notebooks()}
    pictures = {stem: first_picture(nb) for stem, nb in nbs.items()}
    for stem, png in pictures.items():
        if png:
            (source / "_static" / "cards" / f"{stem}.png").write_bytes(png)
    (source / "api.md").write_text(reference(nbs), "utf-8")
    index = (source / "index.md").read_text("utf-8")
    (source / "index.md").write_text(f"{index}\n{cards(pictures)}\n{contents()}", "utf-8")
    for page in source.glob("*.md"):
        text = page.read_text("utf-8").replace("](../notebooks/", "](notebooks/")
        page.write_text(re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", text), "utf-8")
    for stem, nb in nbs.items():
        (source / "notebooks" / f"{stem}.ipynb").write_text(json.dumps(prepared(nb)), "utf-8")


# Of MathJax's 24 MB the pages load one program, its fonts, and what it loads for a rare command.
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2/*", "input/tex/extensions/*")


def trim(book: Path = BOOK) -> None:
    """Take out of a built book what no page loads."""
    mathjax = book / "_static" / "mathjax"
    kept = {file for pattern in MATHJAX for file in mathjax.glob(pattern)}
    leftovers = [*book.rglob("*.map"), *book.rglob("*webpack-macros.html"), book / ".buildinfo"]
    for file in [*mathjax.rglob("*"), *leftovers]:
        if file.is_file() and file not in kept:
            file.unlink()
    shutil.rmtree(book / ".doctrees", ignore_errors=True)


def copy_folders(book: Path = BOOK) -> None:
    """Copy the explorables and the explorer, as they are and as they were built."""
    for name in FOLDERS:
        for folder in (ROOT / "docs" / name, ROOT / "build" / name):
            if folder.is_dir():
                shutil.copytree(folder, book / name, dirs_exist_ok=True)
    for page in (book / "explore").glob("*.html"):
        text = page.read_text("utf-8")
        page.write_text(text.replace("</body>", f"{EXPLORE_SCRIPT}</body>"), "utf-8")


def main() -> int:
    """Build the book; warnings are errors."""
    gather()
    shutil.rmtree(BOOK, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
    failed = subprocess.run([*command, str(SOURCE), str(BOOK)], check=False).returncode
    trim()
    copy_folders()
    size = sum(file.stat().st_size for file in BOOK.rglob("*") if file.is_file()) / 1e6
    print(f"{BOOK.relative_to(ROOT)}: {size:.1f} MB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
