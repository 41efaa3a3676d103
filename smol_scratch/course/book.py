"""Build the book: a website of the committed notebooks and the pages of ``docs/``.

``python -m smol_scratch.course.book`` gathers the sources in ``build/book-source`` and lets Sphinx
make ``build/book`` of them; what it does to a page on the way stands in ``book_pages``. Nothing is
executed, and the pages ask no other host for anything.
"""

from __future__ import annotations

import ast
import base64
import html
import importlib.util
import json
import os
import re
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import smol_scratch
from smol_scratch import assets
from smol_scratch.assets import ROOT
from smol_scratch.course import explorer, notebook

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE, BOOK = ROOT / "build" / "book-source", ROOT / "build" / "book"
# The parts of the walk: the number of the first notebook, a title, and how it goes on from there.
PARTS = [
    (0, "Build the model", "A finished model speaks; then you build it, piece by piece, each equal "
        "to the original, until yours says what it says."),
    (7, "What goes in, what it costs", "The text that it learns from, the memory that it needs, "
        "and every product that it computes."),
    (10, "Train, write, share", "Train it, let it write, and hand it on without breaking it."),
    (13, "Look deeper", "What training wrote into the numbers, what more of everything would "
        "change, and how to find a fault."),
]  # fmt: skip
PAGES = ["glossary", "interface", "api", "proofs", "training", "clinic"]
# Folders of pages that Sphinx does not make.
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
# What stands on a folded cell, by its tag.
PROMPTS = {"set-up": "Set-up", "claims": "What checks the prose"}


@dataclass(frozen=True)
class Stop:
    """One notebook of the walk, as the landing page shows it."""

    stem: str
    title: str
    question: str
    minutes: int | None

    @property
    def part(self) -> str:
        """The part that it belongs to, by its number."""
        return [title for first, title, _ in PARTS if first <= int(self.stem[:2])][-1]


def walk(nbs: dict[str, NotebookNode]) -> list[Stop]:
    """Return all notebooks with what the README's table says of them."""
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(.*?)\]\(notebooks/(.*?)\.ipynb\) \| (.*?) \|$", readme, re.M)
    said = {stem: (title, question) for title, stem, question in rows}
    stops = []
    for stem, nb in nbs.items():
        first = str(nb.cells[0].source)
        heading = first.splitlines()[0].lstrip("# ").replace(" ·", "")
        title, question = said.get(stem, (heading, ""))
        minutes = re.search(r"(\d+) minutes", first)
        stops.append(Stop(stem, title, question, int(minutes[1]) if minutes else None))
    return stops


# The notebooks' pages


def explorable(name: str) -> str:
    """Return what embeds ``docs/explore/NAME.html`` in a notebook's page.

    Without JavaScript it is the picture ``NAME.png`` and a link; ``book.js`` makes a frame of it.

    Raises:
        ValueError: when there is no such page, or it lacks its title or description.
    """
    title, about = about_explorable(name)
    picture = f'<img src="../explore/{name}.png" alt="{about}">'
    return (
        f'<figure class="explore" data-src="../explore/{name}.html" data-title="{title}">\n'
        + (f'<a href="../explore/{name}.html">{picture}</a>\n'
           if (ROOT / "docs" / "explore" / f"{name}.png").is_file() else "")
        + f'<figcaption><a href="../explore/{name}.html">{title}</a></figcaption>\n</figure>'
    )  # fmt: skip


def about_explorable(name: str) -> tuple[str, str]:
    """Return the title and the description of an explorable's page, as HTML."""
    page = ROOT / "docs" / "explore" / f"{name}.html"
    if not page.is_file():
        raise ValueError(f'a cell says "explore": "{name}", but there is no {page}')
    text = page.read_text("utf-8")
    title = re.search(r"<title>(.*?)</title>", text, re.S)
    about = re.search(r'<meta\s+name="description"\s+content="([^"]*)"', text)
    if not title or not about:
        raise ValueError(f'{page} needs a <title> and a <meta name="description" content="…">')
    return html.escape(html.unescape(title[1].strip())), about[1]


def prepared(nb: NotebookNode) -> NotebookNode:
    """Return a notebook as the book shows it: folded cells folded, links that lead somewhere."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    cells = []
    for cell in nb.cells:
        cells.append(cell)
        tags = cell.metadata.setdefault("tags", [])
        shown = cell.metadata.setdefault("mystnb", {})
        if cell.cell_type == "markdown":
            cell.source = with_links(cell.source, up="../")
        else:
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                tags.append("hide-input")
                label = next((PROMPTS[tag] for tag in tags if tag in PROMPTS), "Show the code")
                shown |= {"code_prompt_show": label, "code_prompt_hide": label}
            pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
            # myst-nb takes the alternative text from the cell: a picture a cell, then.
            while len(pictures) > 1:
                picture = pictures.pop()
                cell.outputs.remove(picture)
                extra = new_code_cell("...", outputs=[picture])
                extra.metadata["tags"] = ["remove-input"]
                extra.metadata["mystnb"] = {"image": {"alt": alt(picture)}}
                cells.append(extra)
            if pictures:
                shown["image"] = {"alt": alt(pictures[0])}
            if names := in_package(cell.source):
                cells.append(new_markdown_cell(names))
        if name := cell.metadata.get("explore"):
            # The notebook itself shows the picture.
            cell.source = re.sub(r"!\[[^\]]*\]\([./]*explore/[^)]*\)\n*", "", cell.source)
            cells.append(new_markdown_cell(f"```{{raw}} html\n{explorable(name)}\n```"))
    nb.cells = cells
    return nb


def alt(output: NotebookNode) -> str:
    """Return the words for a picture."""
    return str(output.get("metadata", {}).get("image/png", {}).get("alt", ""))


def with_links(text: str, up: str = "") -> str:
    """Return a text with its links into the repository led to the book's pages.

    What the book lacks is linked on the web, once ``pyproject.toml`` names the repository's home.

    Args:
        text: Markdown of ``docs/`` or of a notebook: both stand one folder below the root.
        up: what leads from the text's page to the book's root.
    """

    def link(found: re.Match[str]) -> str:
        mark, words, path = found.groups()
        if path.startswith(tuple(f"docs/{folder}/" for folder in FOLDERS)):
            path = re.sub("explorer/.*", "explorer/index.html", path.removeprefix("docs/"))
            return f"![{words}]({up}{path})" if mark else f'<a href="{up}{path}">{words}</a>'
        if re.match(r"(docs/\w+\.md|notebooks/\w+\.ipynb|figures/)", path):
            return f"{mark}[{words}]({up}{path.removeprefix('docs/')})"
        if name := re.fullmatch(r"smol_scratch/(\w+)\.py", path):
            role = f"{{py:obj}}`{words.strip('`')} <smol_scratch.{name[1]}.{words.strip('`')}>`"
            if words.strip("`") in smol_scratch.__all__:
                return role
        home = notebook.repository()
        return words if notebook.PLACEHOLDER in home else f"[{words}]({home}/blob/main/{path})"

    text = re.sub(r"(!?)\[([^\]]*)\]\(\.\./([^)]*)\)", link, text)
    return re.sub(r"(?<=\]\()(?=\w+\.md)", "", text)


# The landing page


def card_picture(nb: NotebookNode) -> tuple[bytes, str] | None:
    """Return the picture that stands for a notebook, and its words.

    The first after the map that is not too wide to be read on a card, else simply the first.
    """
    found = [
        (base64.b64decode(output.data["image/png"]), alt(output))
        for cell in nb.cells
        if "model_map" not in cell.source
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    sizes = [struct.unpack(">II", png[16:24]) for png, _ in found]  # from the header of a PNG
    fitting = [one for one, (width, height) in zip(found, sizes, strict=True)
               if width / height < 2.3]  # fmt: skip
    return next(iter(fitting + found), None)


def card(title: str, about: str, picture: str, words: str, *, link: str, kind: str = "doc",
         minutes: int | None = None) -> list[str]:  # fmt: skip
    """Return a card of the landing page."""
    lines = [f":::{{grid-item-card}} {title}", f":link: {link}", f":link-type: {kind}"]
    if picture:
        lines += [f":img-top: {picture}", f":img-alt: {' '.join(words.split())}"]
    lines += ["", about, ""]
    if minutes:
        lines += ["```{card-footer}", f"{minutes} minutes", "```"]
    return [*lines, ":::", ""]


GRID = ["::::{grid} 1 2 3 4", ":gutter: 3", ""]


def cards(stops: list[Stop], words: dict[str, str]) -> str:
    """Return the landing page's cards, one for each notebook, part by part."""
    lines = []
    for _, part, thread in PARTS:
        if mine := [stop for stop in stops if stop.part == part]:
            lines += [f"## {part}", "", thread, "", *GRID]
            for stop in mine:
                picture = f"_static/cards/{stop.stem}.png" if stop.stem in words else ""
                lines += card(stop.title, stop.question, picture, words.get(stop.stem, ""),
                              link=f"notebooks/{stop.stem}", minutes=stop.minutes)  # fmt: skip
            lines += ["::::", ""]
    return "\n".join(lines)


def moving() -> str:
    """Return the landing page's cards of what moves: the explorables."""
    lines = []
    for page in sorted((ROOT / "docs" / "explore").glob("*.html")):
        title, about = (html.unescape(words) for words in about_explorable(page.stem))
        has = page.with_suffix(".png").is_file()
        picture = f"_static/cards/{page.stem}.png" if has else ""
        lines += card(title, "", picture, about, link=f"explore/{page.stem}.html", kind="url")
    about = "The real model in your browser: your words, every head, every number."
    lines += card("The explorer", "", "", about, link="explorer/index.html", kind="url")
    return "\n".join(["## See it move", "", *GRID, *lines, "::::", ""])


def contents(stops: list[Stop]) -> str:
    """Return the table of contents, hidden on the page and shown at the left."""
    lines = []
    for _, part, _ in PARTS:
        if mine := [stop for stop in stops if stop.part == part]:
            lines += ["```{toctree}", ":hidden:", f":caption: {part}", ""]
            lines += [f"{stop.title} <notebooks/{stop.stem}>" for stop in mine] + ["```", ""]
    lines += ["```{toctree}", ":hidden:", ":caption: Reference", "", *PAGES, "```", ""]
    return "\n".join(lines)


# The reference


def definitions(source: str) -> list[str]:
    """Return the names of the classes and functions that a cell or file defines at its top."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with % or !
        return []
    return [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


PACKAGE = {
    name: file.stem
    for file in sorted((ROOT / "smol_scratch").glob("*.py"))
    # Commands, and what examines a machine, have short names of their own, and are taught nowhere.
    if file.stem not in ("commands", "__main__", "__init__", "doctor", "probes")
    for name in definitions(file.read_text("utf-8"))
}
DOCUMENTED = {getattr(smol_scratch, name).__module__ for name in smol_scratch.__all__}


def in_package(source: str) -> str:
    """Return a line that leads from the definitions in a cell to the package's own."""
    lines = []
    for name in definitions(source):
        module = f"smol_scratch.{PACKAGE.get(name)}"
        if module not in DOCUMENTED:
            continue
        public = name in smol_scratch.__all__
        code = f"../_modules/{module.replace('.', '/')}.html{f'#{name}' if public else ''}"
        reference = f"{{py:obj}}`{name} <{module}.{name}>`" if public else f"`{name}`"
        lines.append(f'{reference} in <a href="{code}">`{module}`</a>')
    found = "; ".join(lines)
    return f":::{{div}} in-package\nThe package's own: {found}\n:::" if found else ""


def derived_in(nbs: dict[str, NotebookNode]) -> dict[str, str]:
    """Return the notebook that derives each public name, where one does."""
    found: dict[str, str] = {}
    for stem, nb in nbs.items():
        for cell in nb.cells:
            for name in definitions(cell.source) if cell.cell_type == "code" else ():
                found.setdefault(name, stem)
    return {name: found[name] for name in smol_scratch.__all__ if name in found}


def reference(nbs: dict[str, NotebookNode]) -> str:
    """Return the page of the public names, written from their docstrings."""
    origin = derived_in(nbs)
    titles = {stop.stem: stop.title for stop in walk(nbs)}
    lines = ["# Public names", "", "Everything that `from smol_scratch import …` offers, with a "
             "link to the notebook that derives it and to its source.", ""]  # fmt: skip
    for module in sorted(DOCUMENTED):
        about = (sys.modules[module].__doc__ or "").strip().splitlines()[0]
        lines += [f"## {module}", "", about, ""]
        for name in smol_scratch.__all__:
            thing = getattr(smol_scratch, name)
            if thing.__module__ != module:
                continue
            is_class = isinstance(thing, type)
            lines += [f"### {name}", ""]
            if name in origin:
                stem = origin[name]
                lines += [f"Derived in [{titles[stem]}](notebooks/{stem}.ipynb).", ""]
            lines += ["```{eval-rst}",
                      f".. {'autoclass' if is_class else 'autofunction'}:: {module}.{name}",
                      *(["   :members:"] if is_class else []), "```", ""]  # fmt: skip
    return "\n".join(lines)


# The whole

# Of MathJax's 24 MB the pages load one program, its fonts, and what it loads for a rare command.
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2/*", "input/tex/extensions/*")


def copy_mathjax(to: Path) -> None:
    """Copy what the pages load of MathJax, which a package of PyPI brings."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec
    assert spec.origin
    mathjax = Path(spec.origin).parent / "static" / "mathjax"
    for pattern in MATHJAX:
        for file in mathjax.glob(pattern):
            if file.is_file():
                (to / file.relative_to(mathjax)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to / file.relative_to(mathjax))


def gather(source: Path = SOURCE) -> None:
    """Write all sources of the book into a folder, which is emptied first."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source, ignore=lambda at, names: FOLDERS)
    shutil.copytree(ROOT / "figures", source / "figures")
    copy_mathjax(source / "_static" / "mathjax")
    (source / "notebooks").mkdir()
    (source / "_static" / "cards").mkdir()
    nbs = {path.stem: notebook.read(path) for path in notebook.notebooks()}
    stops = walk(nbs)
    words = {}
    for stem, nb in nbs.items():
        if picture := card_picture(nb):
            (source / "_static" / "cards" / f"{stem}.png").write_bytes(picture[0])
            words[stem] = picture[1]
    for still in (ROOT / "docs" / "explore").glob("*.png"):
        shutil.copy(still, source / "_static" / "cards")
    for page in source.glob("*.md"):
        page.write_text(with_links(page.read_text("utf-8")), "utf-8")
    (source / "api.md").write_text(reference(nbs), "utf-8")
    glossary = (source / "glossary.md").read_text("utf-8")
    for stop in stops:  # a link says where it leads
        glossary = glossary.replace(
            f"[{stop.stem[:2]}](notebooks/{stop.stem}.ipynb)",
            f"[{stop.title}](notebooks/{stop.stem}.ipynb)",
        )
    (source / "glossary.md").write_text(glossary, "utf-8")
    hours = round(sum(stop.minutes or 0 for stop in stops) / 60)
    index = (source / "index.md").read_text("utf-8")
    index = index.replace("NOTEBOOKS", str(len(stops))).replace("HOURS", str(hours))
    parts = [index, cards(stops, words), moving(), contents(stops)]
    (source / "index.md").write_text("\n".join(parts), "utf-8")
    for stem, nb in nbs.items():
        (source / "notebooks" / f"{stem}.ipynb").write_text(json.dumps(prepared(nb)), "utf-8")


def copy_explorables(book: Path = BOOK) -> None:
    """Copy the explorables, and let each say to the page around it how high it is."""
    folder = ROOT / "docs" / "explore"
    if folder.is_dir():
        shutil.copytree(folder, book / "explore")
    for page in (book / "explore").glob("*.html"):
        text = page.read_text("utf-8")
        page.write_text(text.replace("</body>", f"{EXPLORE_SCRIPT}</body>"), "utf-8")


def main() -> int:
    """Build the book; warnings are errors."""
    # jsonschema, which myst-nb loads, would compile 38 grammars (six seconds) for formats that no
    # notebook has; without this module it leaves them out.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from sphinx.cmd.build import main as sphinx

    gather()
    shutil.rmtree(BOOK, ignore_errors=True)
    doctrees = SOURCE.with_name("book-doctrees")
    shutil.rmtree(doctrees, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-j", str(os.cpu_count() or 1), "-d", str(doctrees)]
    failed = sphinx(["-b", "html", *options, str(SOURCE), str(BOOK)])
    copy_explorables()
    # With the real weights beside it, where they are; they are no part of the book's size.
    has_weights = assets.verified(assets.GGUF) is not None
    explorer.build(BOOK / "explorer", weights="link" if has_weights else "none")
    for leftover in (
        *BOOK.rglob("*.map"),
        *BOOK.rglob("*webpack-macros.html"),
        BOOK / ".buildinfo",
    ):
        leftover.unlink()
    files = [file for file in BOOK.rglob("*") if file.is_file() and not file.is_symlink()]
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{BOOK.relative_to(ROOT)}: {size:.1f} MB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
