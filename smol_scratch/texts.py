"""Text files to tokens, a piece at a time: a large file never stands in memory as a whole.

A text is cut only where the tokenizer certainly cuts too, so the tokens are those of the whole.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from smol_scratch.tokenizer import SmolLM2Tokenizer

PIECE = 1 << 18  # characters that are encoded at once
# A stretch without a place to cut is one piece up to so many characters, and then is cut all the
# same, so that memory stays bounded: a megabyte of spaces, or of one letter.
LONGEST = 1 << 21
# A word ends here and the next begins with its space: the tokenizer's pattern matches across no
# such place, whatever stands around it.
CUT = re.compile(r"(?<=\S)(?= [^\W\d_])")
# What a file begins with that is no UTF-8, longest first.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class Cuts:
    """The places at which a text can be cut, so that its pieces have the tokens of the whole.

    Spaces before a letter are taken first. Where there are none (Chinese, one word a line, base64)
    a place is good in front of a newline or another blank, and between any two characters whose
    neighbouring bytes stand side by side in no token of the vocabulary: what the pattern cuts is
    cut there or is one word on both sides, and no merge joins the two. Blanks, where the pattern
    looks ahead, and what may be an English contraction ('s, 're) are let alone, and so is every
    place that an added token stands at, or may stand at when more of the text comes.
    """

    def __init__(self, tokenizer: object = None) -> None:
        """Take what is to be known of the tokenizer.

        Args:
            tokenizer: a ``SmolLM2Tokenizer``; for any other only spaces before letters are taken.
        """
        self.tokenizer = tokenizer
        self.added: tuple[str, ...] = getattr(tokenizer, "added_tokens", ("<|endoftext|>",))
        self.reach = 1 + max(map(len, self.added), default=0)

    def last(self, text: str, since: int = 0) -> int:
        """Return the last place in a text that may go on, or 0 where there is none.

        Args:
            text: so far.
            since: no place but a space is looked for before this one.
        """
        tail = max(0, len(text) - (1 << 12))  # from the end, so that little is left over
        spaces = [found.start() for found in CUT.finditer(text, tail)]
        others = range(len(text) - 1, since, -1)
        places = chain(reversed(spaces), (at for at in others if self._is_apart(text, at)))
        return next((at for at in places if at and not self.is_in_added(text, at)), 0)

    def _is_apart(self, text: str, at: int) -> bool:
        """Say whether no word and no token reaches across a place, added tokens aside."""
        joined: Collection[bytes] | None = getattr(self.tokenizer, "joined", None)
        before, after = text[at - 1], text[at]
        if joined is None or before.isspace():
            return False
        if after in " \t\n\r":
            return True
        if after.isspace() or "'" in text[max(0, at - 2) : at + 1]:
            return False
        left, right = (c.encode("utf-8", "surrogatepass") for c in (before, after))
        return left[-1:] + right[:1] not in joined

    def is_in_added(self, text: str, at: int) -> bool:
        """Say whether an added token stands at a place, or may when more of the text comes."""
        return any(
            token.startswith(text[start : start + len(token)])
            for token in self.added
            for start in range(max(0, at - len(token)), min(at + 1, len(text)))
        )


def pieces_of(parts: Iterable[str], cuts: Cuts) -> Iterator[str]:
    """Yield a text that comes in parts again, in pieces that can be encoded one by one.

    A piece ends where the last place to cut is found in the text so far. Where there is none for
    ``LONGEST`` characters it ends anywhere, and some tokens there are not those of the whole.
    """
    rest, since = "", 0
    for part in parts:
        rest += part
        place = cuts.last(rest, since)
        if not place and len(rest) >= LONGEST:
            ends = range(len(rest), 0, -1)
            place = next((at for at in ends if not cuts.is_in_added(rest, at)), len(rest))
        if place:
            yield rest[:place]
            rest = rest[place:]
        since = max(0, len(rest) - cuts.reach)
    if rest:
        yield rest


def cut(text: str, size: int, cuts: Cuts) -> Iterator[str]:
    """Yield a text in pieces of about ``size`` characters that can be encoded one by one."""
    return pieces_of((text[at : at + size] for at in range(0, len(text), size)), cuts)


def read_pieces(path: Path, cuts: Cuts, size: int = PIECE) -> Iterator[str]:
    """Yield a UTF-8 file's text in order, in pieces that can be encoded one by one.

    Args:
        path: of the file; a byte order mark of UTF-8 is left out, line ends become newlines.
        cuts: of the tokenizer.
        size: characters in a piece, as a rule; more where no place to cut is found.

    Raises:
        ValueError: when the file is no UTF-8, naming what it probably is and how to convert it.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in MARKS.items():
        if start.startswith(mark):
            raise ValueError(
                f"{path} is {name}, as some editors and Windows' own tools save text: save it as "
                f"UTF-8, or convert it with `iconv -f {name} -t UTF-8 {path.name}`"
            )
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from pieces_of(iter(lambda: file.read(size), ""), cuts)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{path} is no UTF-8 text: it holds the byte 0x{byte:02X} where no character can have "
            "it, as in Latin-1 or Windows-1252. Save it as UTF-8, or convert it with "
            f"`iconv -f WINDOWS-1252 -t UTF-8 {path.name}`"
        ) from error


def text_files(path: Path) -> list[Path]:
    """Return a file as a list of one, or the .txt files below a folder, sorted by their paths.

    Raises:
        FileNotFoundError: when there is nothing of that name.
        ValueError: when a folder holds no .txt file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise ValueError(
            f"{path} is a folder without .txt files: name one that has some, or a file"
        )
    return files


def encode_files(path: Path, tokenizer: SmolLM2Tokenizer) -> np.ndarray:
    """Return the tokens of a file, or of a folder's .txt files with end-of-text after each.

    Args:
        path: a file or folder.
        tokenizer: whose vocabulary decides the type: 2 bytes a token up to 65,536 entries.

    Returns:
        (tokens,) uint16 or uint32.

    Raises:
        ValueError: for text that is no UTF-8, or characters that the vocabulary lacks: all of
            them, with their counts.
        OSError: when something cannot be read.
    """
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    files, unknown, cuts = text_files(path), Counter[str](), Cuts(tokenizer)
    tokens = bytearray()  # grows in place: nothing stands in memory twice
    for file in files:
        for piece in read_pieces(file, cuts):
            if found := tokenizer.unencodable(piece):
                unknown += found
            elif not unknown:
                (ids,) = tokenizer.encode_batch([piece])
                tokens += np.array(ids, kind).tobytes()
        if path.is_dir():
            tokens += kind(tokenizer.eos_id).tobytes()
    if unknown:
        listed = ", ".join(f"U+{ord(c):04X} ({n:,} times)" for c, n in unknown.most_common(8))
        more = f" and {len(unknown) - 8} others" if len(unknown) > 8 else ""
        classes = "".join(rf"\x{{{ord(c):X}}}" for c in unknown)
        raise ValueError(
            f"{path}: SmolLM2's vocabulary has no token for {listed}{more}. Leave them out, for "
            f"example with `perl -CSD -i -pe 's/[{classes}]//g' FILE`"
        )
    return np.frombuffer(tokens, kind)
