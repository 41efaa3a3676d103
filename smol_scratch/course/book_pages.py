"""What Sphinx does to the book's pages while it makes them: an extension, see ``docs/conf.py``.

The first time that a notebook uses a word of the glossary, it links there; and each side trip is
folded under its title.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

# Words that also mean something else: how the texts write them where the glossary's sense is meant.
MEANT = {
    "block": r"(?:thirty|two|the|these|later|all|other) blocks|each block|blocks(?= \d)",
    "checkpoint": r"checkpoints?(?!\.)",  # "Checkpoints." are activations kept
    "embedding": r"(?<!rotary )(?<!position )(?<!positional )embeddings?",
    "quantisation": r"quantis(?:ation|ing|ed?|es)",
    "head": r"heads|(?:query|attention) head",
}
# In these a word is no use of it (a title, a link), or none that a reader sees at once.
NOT_IN = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.raw)


def glossary_terms(text: str) -> dict[str, str]:
    """Return the glossary's terms and the first line of what it says of each."""
    return dict(re.findall(r"^(\S.*)\n  (.*?)(?: \[\d\d[^\]]*\]\(.*)?$", text, re.M))


def pattern(term: str) -> re.Pattern[str]:
    """Return what finds a term in a text, in the plural too; the capitals that it has count.

    "attention head (AH), or other" is found as "attention head", "AH" and "or other".
    """
    found = []
    for word in re.findall(r"[^,()]*[^,() ]", term) if term not in MEANT else ():
        spelt = re.sub(r"[ -]", r"[ \\-\\n]", word.strip()) + "s?"
        found.append(spelt if re.search(r"[A-Z]", word) else f"(?i:{spelt})")
    wanted = "|".join(found) if found else f"(?i:{MEANT[term]})"
    return re.compile(rf"(?<![\w-])(?:{wanted})(?![\w-])")


def main_line(doctree: nodes.document) -> Iterator[nodes.Text]:
    """Yield the texts that a reader of the page sees at once: no title, no code, nothing folded."""
    folded = 0
    for node in doctree.findall():
        if isinstance(node, nodes.raw):
            words = node.astext()
            folded += len(re.findall("<details", words)) - len(re.findall("</details", words))
        elif isinstance(node, nodes.Text) and not folded:
            if not any(isinstance(above, NOT_IN) for above in ancestors(node)):
                yield node


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield what a node stands in, from the nearest outwards."""
    while node.parent is not None:
        node = node.parent
        yield node


def link_terms(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make a link to the glossary of the first use of each of its terms in a notebook."""
    if not page.startswith("notebooks/"):
        return
    places = {
        name: anchor
        for (kind, name), (_, anchor) in app.env.domains.standard_domain.objects.items()
        if kind == "term"
    }
    glossary = app.builder.get_relative_uri(page, "glossary")
    terms = app.config.glossary_terms
    # Longer terms first: an attention sink is no use of "attention".
    waiting = {term: pattern(term) for term in sorted(terms, key=len, reverse=True)}
    for text in list(main_line(doctree)):
        pieces: list[nodes.Node] = [text]
        for term, wanted in list(waiting.items()):
            for at, piece in enumerate(pieces):
                if not isinstance(piece, nodes.Text) or not (found := wanted.search(piece)):
                    continue
                link = nodes.reference(
                    "", found[0], internal=True, refuri=f"{glossary}#{places[term]}",
                    reftitle=terms[term], classes=["term"],
                )  # fmt: skip
                before, after = piece[: found.start()], piece[found.end() :]
                pieces[at : at + 1] = [
                    part
                    for part in (before and nodes.Text(before), link, after and nodes.Text(after))
                    if part
                ]
                del waiting[term]
                break
        if pieces[0] is not text or len(pieces) > 1:
            text.parent.replace(text, pieces)


def raw(words: str) -> nodes.raw:
    """Return HTML as it is."""
    return nodes.raw("", words, format="html")


def fold_side_trips(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Fold each side trip: a section under "Side trips", or what begins in bold."""
    for section in list(doctree.findall(nodes.section)):
        if section[0].astext() != "Side trips":
            continue
        trips: list[list[nodes.Node]] = [[]]
        checks = []  # of the whole notebook, in its last cell
        for node in section[1:]:
            if "tag_claims" in getattr(node, "attributes", {}).get("classes", []):
                checks.append(node)
                continue
            if isinstance(node, nodes.paragraph) and not node[0].astext():
                del node[0]  # MyST puts an empty text before what is bold
            named = isinstance(node, nodes.paragraph) and isinstance(node[0], nodes.strong)
            if named or isinstance(node, nodes.section):
                trips.append([])
            trips[-1].append(node)
        section[1:] = trips[0]
        for first, *rest in trips[1:]:
            assert isinstance(first, nodes.Element)
            if isinstance(first, nodes.section):
                # The section stays outside: there links and the outline look for it.
                first[1:] = [raw("</summary>"), *first[1:], *rest, raw("</details>")]
                first.insert(0, raw('<details class="side-trip"><summary>'))
                section.append(first)
                continue
            title = html.escape(first[0].astext().rstrip("."))
            if isinstance(after := first[1], nodes.Text):
                first[1] = nodes.Text(after.lstrip())
            del first[0]
            start = raw(f'<details class="side-trip"><summary>{title}</summary>')
            section += [start, first, *rest, raw("</details>")]
        section += checks


def plain_summaries(
    app: Sphinx, page: str, template: str, context: dict[str, Any], *_: Any
) -> None:
    """Take away the name that myst-nb gives to all that is folded: what is shown says more."""
    if "body" in context:
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")


def read_terms(app: Sphinx) -> None:
    """Read the glossary, so that every page knows its terms."""
    text = (Path(app.srcdir) / "glossary.md").read_text("utf-8")
    app.config.glossary_terms = glossary_terms(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx what is done, and when."""
    app.add_config_value("glossary_terms", {}, "")
    app.connect("builder-inited", read_terms)
    app.connect("doctree-resolved", link_terms)  # before side trips are folded: they may be first
    app.connect("doctree-resolved", fold_side_trips)
    app.connect("html-page-context", plain_summaries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
