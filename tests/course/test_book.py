"""The book is whole: each page with its pictures, no broken link, nothing asked of other hosts."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import smol_scratch
from smol_scratch.course import book, notebook

pytest.importorskip("myst_nb", reason='pip install -e ".[book]"')
from smol_scratch.course import book_pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
STEMS = [path.stem for path in notebook.notebooks()]
slow = pytest.mark.slow
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
GLOSSARY = book_pages.glossary_terms((notebook.ROOT / "docs" / "glossary.md").read_text("utf-8"))


# What is done to a notebook and to a page


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

    book.copy_explorables(tmp_path / "book")
    assert "exploreHeight" in (tmp_path / "book" / "explore" / "ab.html").read_text()

    with pytest.raises(ValueError, match=r"there is no .*cd\.html"):
        book.explorable("cd")
    (folder / "ef.html").write_text("<title>only this</title>")
    with pytest.raises(ValueError, match="description"):
        book.explorable("ef")


def test_what_is_folded_says_what_it_is_and_each_picture_has_its_own_words():
    def picture(words):
        return new_output("display_data", {"image/png": ""}, metadata={"image/png": {"alt": words}})

    hidden = {"jupyter": {"source_hidden": True}}
    cells = [
        new_code_cell("a", metadata=hidden | {"tags": ["set-up"]}),
        new_code_cell("b", metadata=hidden, outputs=[picture("One."), picture("Two.")]),
    ]
    first, second, third = book.prepared(new_notebook(cells=cells)).cells
    assert first.metadata["mystnb"]["code_prompt_show"] == "Set-up"
    assert "hide-input" in second.metadata["tags"]
    assert second.metadata["mystnb"]["image"]["alt"] == "One."
    assert third.metadata["tags"] == ["remove-input"]
    assert third.metadata["mystnb"]["image"]["alt"] == "Two."


def test_a_definition_leads_to_the_packages_own():
    line = book.in_package("class RMSNorm:\n    pass\n\n\ndef mine():\n    pass")
    assert "{py:obj}`RMSNorm <smol_scratch.model.RMSNorm>`" in line
    assert 'href="../_modules/smol_scratch/model.html#RMSNorm"' in line
    assert "mine" not in line
    assert book.in_package("def mine():\n    pass") == ""


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("see [00](../notebooks/00_start.ipynb)", "see [00](../notebooks/00_start.ipynb)"),
        ("[proofs](../docs/proofs.md)", "[proofs](../proofs.md)"),
        ("[live](../docs/explorer/page.html)", '<a href="../explorer/index.html">live</a>'),
        ("[rope](../docs/explore/rope.html)", '<a href="../explore/rope.html">rope</a>'),
        ("[`generate`](../smol_scratch/generation.py)",
         "{py:obj}`generate <smol_scratch.generation.generate>`"),
        ("[records](../data/records)", "records"),
        ("[a paper](https://arxiv.org)", "[a paper](https://arxiv.org)"),
    ],
)  # fmt: skip
def test_links_into_the_repository_lead_to_pages_or_nowhere(text, linked, monkeypatch):
    monkeypatch.setattr(notebook, "repository", lambda: "https://github.com/OWNER/smol_scratch")
    assert book.with_links(text, up="../") == linked


def test_once_the_repository_has_a_home_what_the_book_lacks_is_linked_there(monkeypatch):
    monkeypatch.setattr(notebook, "repository", lambda: "https://example.org/x")
    linked = "[records](https://example.org/x/blob/main/data/records)"
    assert book.with_links("[records](../data/records)") == linked


@pytest.mark.parametrize(
    ("term", "text", "found"),
    [
        ("grouped-query attention (GQA)", "In grouped-query attention", "grouped-query attention"),
        ("grouped-query attention (GQA)", "and GQA too", "GQA"),
        ("top-k, top-p (nucleus)", "with top-p", "top-p"),
        ("causal mask", "Causal masks hide", "Causal masks"),
        ("GGUF", "a gguf file", None),
        ("MLP", "an MLP-like thing", None),
        ("block", "Thirty blocks add", "Thirty blocks"),
        ("block", "q8_0 does it in blocks of 32", None),
        ("block", "it neither passes nor blocks", None),
        ("embedding", "rotary positional embeddings", None),
        ("checkpoint", "Checkpoints. Of each block", None),
    ],
)
def test_a_term_is_found_where_it_is_meant(term, text, found):
    match = book_pages.pattern(term).search(text)
    assert (match and match[0]) == found


def test_only_the_first_use_on_the_main_line_links_and_the_longest_term_wins():
    from docutils import nodes
    from docutils.utils import new_document

    page = new_document("")
    page += nodes.section("", nodes.title("", "Attention"))
    page[0] += book_pages.raw("<details><summary>Predict</summary>")
    page[0] += nodes.paragraph("", "attention, folded")
    page[0] += book_pages.raw("</details>")
    words = nodes.paragraph(
        "", "", nodes.strong("", "Attention sinks"), nodes.Text(" and attention;")
    )
    page[0] += words
    page[0] += nodes.paragraph("", "attention again")
    terms = {"attention": "A mean.", "attention sink": "A place."}
    places = {("term", term): ("glossary", f"term-{term[-4:]}") for term in terms}
    domain = SimpleNamespace(objects=places)
    app = SimpleNamespace(
        env=SimpleNamespace(domains=SimpleNamespace(standard_domain=domain)),
        config=SimpleNamespace(glossary_terms=terms),
        builder=SimpleNamespace(get_relative_uri=lambda page, to: f"../{to}.html"),
    )
    book_pages.link_terms(app, page, "notebooks/03_gqa")
    links = [(link.astext(), link["refuri"]) for link in page.findall(nodes.reference)]
    at = "../glossary.html#term-"
    assert links == [("Attention sinks", f"{at}sink"), ("attention", f"{at}tion")]
    assert all(link.parent in (words, words[0]) for link in page.findall(nodes.reference))


# The whole book


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
    command = [sys.executable, "-m", "smol_scratch.course.book"]
    made = subprocess.run(command, cwd=notebook.ROOT, capture_output=True, text=True)
    assert made.returncode == 0, f"warnings are errors: {made.stderr}"
    return book.BOOK


@pytest.fixture(scope="session")
def pages(built):
    return {file.relative_to(built).as_posix(): Page(file) for file in built.rglob("*.html")}


@pytest.fixture(scope="session")
def own(pages):
    """The pages that Sphinx made; what explorables promise is tested with them."""
    return {name: page for name, page in pages.items() if not name.startswith(book.FOLDERS)}


@slow
def test_every_notebook_has_its_page_with_all_pictures_and_their_words(pages):
    for stem in STEMS:
        cells = notebook.read(notebook.ROOT / "notebooks" / f"{stem}.ipynb").cells
        drawn = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        shown = [p for p in pages[f"notebooks/{stem}.html"].pictures if "_images" in p["src"]]
        assert len(shown) == drawn, stem
        assert all(picture.get("alt") for picture in shown), stem


@slow
def test_the_landing_page_has_a_card_a_picture_and_a_reading_time_for_each_notebook(built, pages):
    page, text = pages["index.html"], (built / "index.html").read_text("utf-8")
    for stem in STEMS:
        assert f"notebooks/{stem}.html" in page.links, stem
        assert any(stem in p["src"] and p.get("alt") for p in page.pictures), stem
    assert len(re.findall(r"\d+ minutes", text)) == len(STEMS)
    for folder in (notebook.ROOT / "docs" / "explore").glob("*.html"):
        assert f"explore/{folder.name}" in page.links


@slow
def test_no_link_and_no_anchor_is_broken(built, pages, own):
    broken = []
    for name, page in own.items():
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


@slow
def test_no_page_loads_anything_from_elsewhere(pages):
    loaded = {link for page in pages.values() for link in page.loads}
    assert [link for link in loaded if re.match(r"(https?:)?//", link)] == []


@slow
def test_it_is_small(built):
    # The explorer's weights are a link, and no part of it.
    files = [file for file in built.rglob("*") if file.is_file() and not file.is_symlink()]
    assert sum(file.stat().st_size for file in files) < 30_000_000


@slow
def test_notebooks_link_each_term_once_and_the_one_that_derives_it_does(built, pages):
    derives = dict(re.findall(
        r"^(\S.*)\n  .*\[\d\d\]\(../notebooks/(.*)\.ipynb\)$",
        (notebook.ROOT / "docs" / "glossary.md").read_text("utf-8"), re.M,
    ))  # fmt: skip
    assert derives.keys() == GLOSSARY.keys()
    linked = {}
    for stem in STEMS:
        text = (built / "notebooks" / f"{stem}.html").read_text("utf-8")
        linked[stem] = re.findall(r'<a class="term[^"]*" href="../glossary.html#(.*?)"', text)
        assert len(set(linked[stem])) == len(linked[stem]), stem
    page = (built / "glossary.html").read_text("utf-8")
    anchors = dict(re.findall(r'<dt id="(term-.*?)">(.*?)<', page))
    used = {stem: {anchors[anchor] for anchor in found} for stem, found in linked.items()}
    assert [term for term, stem in derives.items() if term not in used[stem]] == []


@slow
def test_classes_lead_to_the_notebook_that_derives_them_and_back(built, pages):
    origin = book.derived_in({s: notebook.read(notebook.ROOT / "notebooks" / f"{s}.ipynb")
                              for s in STEMS})  # fmt: skip
    parts = {"RMSNorm", "RotaryPositionalEmbedding", "GroupedQueryAttention", "SwiGLU", "Block"}
    assert parts | {"SmolLM2", "DataLoaderLite", "causal_mask", "rotate"} <= origin.keys()
    for name, stem in origin.items():
        module = getattr(smol_scratch, name).__module__
        assert f"notebooks/{stem}.html" in pages["api.html"].links
        back = pages[f"notebooks/{stem}.html"].links
        assert f"../api.html#{module}.{name}" in back
        assert f"../_modules/{module.replace('.', '/')}.html#{name}" in back


@slow
def test_side_trips_and_solutions_are_folded(built):
    for stem in STEMS:
        text = (built / "notebooks" / f"{stem}.html").read_text("utf-8")
        source = (notebook.ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8")
        assert text.count("<details") == text.count("</details>")
        if "## Side trips" in source:
            trips = text.partition('<section id="side-trips">')[2]
            assert trips.count('<details class="side-trip">') >= 1, stem
        assert text.count("<summary>Solution") == source.count("<summary>Solution"), stem


# In a browser


def probes():
    """Return for each notebook a word that stands in its text, and in no other notebook at all."""
    from snowballstemmer import stemmer

    whole = {stem: (notebook.ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8").lower()
             for stem in STEMS}  # fmt: skip
    found = {}
    for stem in STEMS:
        cells = notebook.read(notebook.ROOT / "notebooks" / f"{stem}.ipynb").cells
        text = " ".join(cell.source for cell in cells if cell.cell_type == "markdown").lower()
        text = re.sub(r"\(http.*?\)|```.*?```|\$.*?\$|`.*?`", "", text, flags=re.S)
        others = "".join(text for name, text in whole.items() if name != stem)
        # A search is for stems ("findings" is "find"), in the middle of words too.
        words = sorted(set(re.findall(r"\b[a-z]{8,12}\b", text)))
        found[stem] = next(
            word for word in words if stemmer("english").stemWord(word) not in others
        )
    return found


@pytest.fixture(scope="session")
def served(built):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=str(built))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def unfold(page):
    """Open all that is folded; wait for the formulas, and until what fades in is there."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    if page.evaluate("!!document.querySelector('.math')"):
        page.wait_for_selector("mjx-container", state="attached")
    page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished)).then(() => 0)")


@slow
@in_browser
def test_nothing_is_asked_of_others_and_a_phone_shows_all(served, own, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    asked, errors, wide = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in own:
        page.goto(f"{served}/{name}", wait_until="load")
        unfold(page)
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 390:
            wide.append((name, width))
    assert wide == []
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
    assert errors == []
    page.close()


# What paper cuts off: a box that would have to scroll, or that sticks out.
CUT = """() => [...document.querySelectorAll("article *")].filter((one) => {
  if (!one.getClientRects().length) return false;
  const scrolls = one.matches("pre, table, figure, dt, div.cell, section, details, iframe")
    && one.scrollWidth > one.clientWidth + 1;  // a pixel: widths are rounded
  return scrolls || one.getBoundingClientRect().right > innerWidth + 0.5;
}).map((one) => `${one.tagName} ${one.textContent.trim().slice(0, 60)}`)"""
A4 = round((210 - 2 * 12) / 25.4 * 96)  # pixels between the margins of book.css


@slow
@in_browser
def test_on_paper_nothing_is_cut_off(built, own, chromium):
    assert "@page { margin: 12mm; }" in (built / "_static" / "book.css").read_text("utf-8")
    page = chromium.new_page(viewport={"width": A4, "height": 1000})
    page.emulate_media(media="print")
    cut = {}
    for name in own:
        page.goto(f"{built.as_uri()}/{name}", wait_until="load")
        unfold(page)
        if found := page.evaluate(CUT):
            cut[name] = found[:5]
    assert cut == {}
    page.close()


@slow
@in_browser
def test_a_dark_page_is_printed_light_and_is_dark_again(built, chromium):
    dark = chromium.new_context(color_scheme="dark")
    page = dark.new_page()
    page.goto(f"{built.as_uri()}/notebooks/{STEMS[3]}.html", wait_until="load")
    theme = "document.documentElement.dataset.theme"
    page.evaluate(f"""addEventListener("beforeprint", () => {{ window.printed = {theme}; }})""")
    assert page.evaluate(theme) == "dark"
    page.pdf(format="A4")
    assert page.evaluate("window.printed") == "light"
    page.wait_for_function(f'{theme} === "dark"')
    dark.close()


@slow
@in_browser
@pytest.mark.parametrize("custom", [False, True])
def test_the_line_for_jupyters_own_print_breaks_long_lines(tmp_path, chromium, custom):
    if custom:
        guide = (notebook.ROOT / "CONTRIBUTING.md").read_text("utf-8")
        (tmp_path / "custom").mkdir()
        line = re.search(r"```css\n(.*?)```", guide, re.S)[1]
        (tmp_path / "custom" / "custom.css").write_text(line, "utf-8")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path)]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path)}
    source = notebook.ROOT / "notebooks" / f"{STEMS[3]}.ipynb"
    subprocess.run([*command, str(source)], env=environment, capture_output=True, check=True)
    page = chromium.new_page(viewport={"width": A4, "height": 1000})
    page.route("http*://**", lambda route: route.abort())
    page.emulate_media(media="print")
    page.goto((tmp_path / f"{STEMS[3]}.html").as_uri(), wait_until="load")
    wide = page.evaluate("""() => [...document.querySelectorAll("pre")].filter(
      (one) => one.scrollWidth > one.clientWidth + 1).length""")
    page.close()
    assert (wide == 0) == custom


@slow
@in_browser
@pytest.mark.parametrize("stem", STEMS)
def test_without_javascript_the_text_is_all_there(built, chromium, stem):
    off = chromium.new_context(java_script_enabled=False)
    page = off.new_page()
    page.goto(f"{built.as_uri()}/notebooks/{stem}.html")
    shown = page.locator("article").inner_text()
    missing = []
    for cell in notebook.read(notebook.ROOT / "notebooks" / f"{stem}.ipynb").cells:
        if cell.cell_type != "markdown" or "<details" in cell.source:
            continue
        if cell.source.startswith("## Side trips"):
            break  # the rest is folded
        plain = re.findall(r"^[A-Z][\w ,.:;]{40,}", cell.source, re.M)
        missing += [words for words in plain if words.rstrip() not in shown]
    assert missing == []
    off.close()


@slow
@in_browser
@pytest.mark.parametrize("way", ["http", "file"])
def test_the_search_page_finds_what_stands_in_one_notebook_only(built, served, chromium, way):
    home = served if way == "http" else built.as_uri()
    page = chromium.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for stem, probe in probes().items():
        page.goto(f"{home}/search.html?q={probe}")
        page.wait_for_selector("#search-results ul.search li a")
        found = page.eval_on_selector_all(
            "#search-results ul.search li a", "(links) => links.map((link) => link.href)"
        )
        found = {link for link in found if "/notebooks/" in link}
        assert {Path(link.partition("?")[0].partition("#")[0]).stem for link in found} == {stem}
    assert errors == []
    page.close()


@slow
@in_browser
def test_figures_keep_their_white_page_in_the_dark(built, chromium):
    dark = chromium.new_context(color_scheme="dark")
    page = dark.new_page()
    for name in ("index", *(f"notebooks/{stem}" for stem in STEMS)):
        page.goto(f"{built.as_uri()}/{name}.html")
        plates = page.eval_on_selector_all(
            "article img",
            "(all) => all.map((one) => [getComputedStyle(one).backgroundColor, "
            "getComputedStyle(one).filter])",
        )
        assert plates, name
        assert {tuple(plate) for plate in plates} == {("rgb(255, 255, 255)", "brightness(0.92)")}
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != plates[0][0]
    dark.close()


@slow
@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(built, own, chromium, scheme):
    """``npm pack axe-core``, unpack it, and name its ``axe.min.js`` in AXE_CORE."""
    if not (axe := os.environ.get("AXE_CORE")):
        pytest.skip("AXE_CORE names no axe.min.js")
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    said = []
    for name in own:
        page.goto(f"{built.as_uri()}/{name}{'?q=attention' if name == 'search.html' else ''}")
        if name == "search.html":
            page.wait_for_selector("#search-results ul.search li a")
        unfold(page)
        page.add_script_tag(path=axe)
        found = page.evaluate("axe.run(document).then((result) => result.violations)")
        said += [
            (name, v["id"], v["impact"], [(node["html"][:120], node["failureSummary"][-160:])
                                          for node in v["nodes"]][:4])
            for v in found if v["impact"] in ("serious", "critical")
        ]  # fmt: skip
    assert said == []
    context.close()
