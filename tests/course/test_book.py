"""The book is whole: each page with its pictures, no broken link, nothing asked of other hosts."""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from smol_scratch.course import book, notebook

pytest.importorskip("myst_nb", reason='pip install -e ".[book]"')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
STEMS = [path.stem for path in notebook.notebooks()]


class Page(HTMLParser):
    """What a page holds: its anchors, links, pictures and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loads, self.pictures = set(), [], [], []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        at = dict(attributes)
        self.ids |= {at[key] for key in ("id", "name") if at.get(key)}
        if tag == "a" and at.get("href"):
            self.links.append(at["href"])
        if tag == "img":
            self.pictures.append(at)
        if tag in ("script", "img", "iframe", "source") and at.get("src"):
            self.loads.append(at["src"])
        if tag == "link" and at.get("rel") not in ("canonical", "search") and at.get("href"):
            self.loads.append(at["href"])


@pytest.fixture(scope="session")
def built():
    assert book.main() == 0, "warnings are errors"
    return book.BOOK


@pytest.fixture(scope="session")
def pages(built):
    return {file.relative_to(built).as_posix(): Page(file) for file in built.rglob("*.html")}


def test_an_explorable_stands_after_the_cell_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "explore"
    folder.mkdir(parents=True)
    page = (
        '<html><head><title>A &lt; "B"</title><meta name="description" content="Two."></head>'
        "<body>A</body></html>"
    )
    (folder / "ab.html").write_text(page)
    (folder / "ab.png").write_bytes(b"")
    words = "See.\n\n![Two.](../docs/explore/ab.png)\n\n[Try it](../docs/explore/ab.html)"
    cell = new_markdown_cell(words, metadata={"explore": "ab"})
    first, second = book.prepared(new_notebook(cells=[cell])).cells
    assert first.source == 'See.\n\n<a href="../explore/ab.html">Try it</a>'
    assert 'data-src="../explore/ab.html" data-title="A &lt; &quot;B&quot;"' in second.source
    assert '<img src="../explore/ab.png" alt="Two.">' in second.source

    (tmp_path / "build" / "explorer").mkdir(parents=True)
    (tmp_path / "build" / "explorer" / "built.wasm").write_bytes(b"")
    book.copy_folders(tmp_path / "book")
    assert "exploreHeight" in (tmp_path / "book" / "explore" / "ab.html").read_text()
    assert (tmp_path / "book" / "explorer" / "built.wasm").exists()

    with pytest.raises(ValueError, match=r"there is no .*cd\.html"):
        book.explorable("cd")
    (folder / "ef.html").write_text("<title>only this</title>")
    with pytest.raises(ValueError, match="description"):
        book.explorable("ef")


@pytest.mark.slow
def test_every_notebook_has_its_page_with_all_pictures(pages):
    for stem in STEMS:
        cells = notebook.read(notebook.ROOT / "notebooks" / f"{stem}.ipynb").cells
        drawn = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        shown = [p for p in pages[f"notebooks/{stem}.html"].pictures if "_images" in p["src"]]
        assert len(shown) == drawn, stem
        if any(questions in c.metadata.get("tags", []) for c in cells
               for questions in ("questions-before",)):  # fmt: skip
            assert all(picture.get("alt") for picture in shown), stem


@pytest.mark.slow
def test_no_link_and_no_anchor_is_broken(built, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r"(https?|mailto|data|javascript):", link):
                continue
            path, _, anchor = link.partition("#")
            target = (built / name).parent / path.partition("?")[0] if path else built / name
            if not target.exists():
                broken.append(f"{name}: {link}")
            elif anchor and target.suffix == ".html":
                ids = pages[target.resolve().relative_to(built.resolve()).as_posix()].ids
                if anchor not in ids:
                    broken.append(f"{name}: {link}")
    assert broken == []


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(pages):
    loaded = {link for page in pages.values() for link in page.loads}
    assert [link for link in loaded if re.match(r"(https?:)?//", link)] == []


@pytest.mark.slow
def test_it_is_small(built):
    assert sum(file.stat().st_size for file in built.rglob("*") if file.is_file()) < 30_000_000


@pytest.mark.slow
def test_the_search_index_finds_words_of_one_notebook(built):
    index = (built / "searchindex.js").read_text("utf-8")
    for stem in STEMS:
        assert f'"notebooks/{stem}"' in index
    assert "patch" in index


@pytest.fixture(scope="session")
def served(built):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(built))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_in_a_browser_nothing_is_asked_of_others_and_a_phone_shows_all(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index", "glossary", "api", *(f"notebooks/{stem}" for stem in STEMS)):
            page.goto(f"{served}/{name}.html", wait_until="load")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{name} is {wide} pixels wide"
        page.goto(f"{served}/notebooks/01_rmsnorm.html", wait_until="load")
        page.wait_for_selector("mjx-container", state="attached")  # formulas are typeset
        browser.close()
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
    assert errors == []
