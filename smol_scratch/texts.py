"""Text files to tokens, a piece at a time: a large file never stands in memory as a whole.

A text is cut only where the tokenizer certainly cuts too, so the tokens are those of the whole.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from smol_scratch.tokenizer import SmolLM2Tokenizer

PIECE = 1 << 20  # characters that are encoded at once; it takes some 150 bytes for each of them
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


def pieces_of(parts: Iterable[str]) -> Iterator[str]:
    """Yield a text that comes in parts again, in pieces that can be encoded one by one.

    A piece ends where the last place to cut is found in the text so far.
    """
    rest = ""
    for part in parts:
        rest += part
        # From the end, so that little is left over.
        tail = max(0, len(rest) - (1 << 12))
        places = [tail + found.start() for found in CUT.finditer(rest[tail:])]
        if places and places[-1]:
            yield rest[: places[-1]]
            rest = rest[places[-1] :]
    if rest:
        yield rest


def cut(text: str, size: int) -> Iterator[str]:
    """Yield a text in pieces of about ``size`` characters that can be encoded one by one."""
    return pieces_of(text[at : at + size] for at in range(0, len(text), size))


def read_pieces(path: Path, size: int = PIECE) -> Iterator[str]:
    """Yield a UTF-8 file's text in order, in pieces that can be encoded one by one.

    Args:
        path: of the file; a byte order mark of UTF-8 is left out, line ends become newlines.
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
            yield from pieces_of(iter(lambda: file.read(size), ""))
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
    files, parts, unknown = text_files(path), [], Counter[str]()
    for file in files:
        for piece in read_pieces(file):
            if found := tokenizer.unencodable(piece):
                unknown += found
            elif not unknown:
                parts.append(np.array(tokenizer.encode(piece), kind))
        if path.is_dir():
            parts.append(np.array([tokenizer.eos_id], kind))
    if unknown:
        listed = ", ".join(f"U+{ord(c):04X} ({n:,} times)" for c, n in unknown.most_common(8))
        more = f" and {len(unknown) - 8} others" if len(unknown) > 8 else ""
        classes = "".join(rf"\x{{{ord(c):X}}}" for c in unknown)
        raise ValueError(
            f"{path}: SmolLM2's vocabulary has no token for {listed}{more}. Leave them out, for "
            f"example with `perl -CSD -i -pe 's/[{classes}]//g' FILE`"
        )
    return np.concatenate(parts) if parts else np.empty(0, kind)
