"""Documents out of files that others made: text, JSON Lines, Parquet, Hugging Face data sets.

Everything is read as a stream, and handed on in pieces that can be encoded one by one. What cannot
be used is left out and counted, with the reason; a file that is torn is an error, since nobody can
say what is missing.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import json
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tqdm import tqdm

from smol_scratch import assets
from smol_scratch.shards import PIECE, Piece, TokenShards, write_shards
from smol_scratch.texts import Cuts, cut, read_pieces
from smol_scratch.tokenizer import SmolLM2Tokenizer

END = "<|endoftext|>"
# What a document is held back for until it is known to be usable: a longer one cannot be left out.
HELD = 1 << 24  # characters
KINDS = (".txt", ".md", ".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".parquet")

# What a folder of shards holds, an interrupted writer's halves included.
OURS = re.compile(r"\.?(shard-|documents-|index\.json|report\.json|seen\.sqlite)")


@dataclass
class Report:
    """What became of what was read.

    Attributes:
        documents: kept.
        bytes: of their texts, as UTF-8.
        skipped: how many documents were left out, by reason.
        examples: for each reason the first place.
        files: read so far.
    """

    documents: int = 0
    bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    files: int = 0

    def reasons(self) -> str:
        """Return how many documents were left out, and why."""
        return "; ".join(
            f"{count:,} left out, since each {reason} (first: {self.examples[reason]})"
            for reason, count in self.skipped.most_common()
        )

    def skip(self, reason: str, where: str) -> None:
        """Count a document that is left out."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, where)


class Part(NamedTuple):
    """A piece of a document, and where it stood."""

    where: str
    piece: Piece


Advance = Callable[[int], object]  # called with bytes of a file that were read


def input_files(paths: Iterable[Path]) -> list[Path]:
    """Return files as they are and folders as the files in them of a kind that can be read, sorted.

    Raises:
        FileNotFoundError: for what is not there.
        ValueError: for a file of another kind, or a folder that holds none.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(KINDS))
            if not found:
                raise ValueError(f"{path}: is a folder without files of {', '.join(KINDS)}")
            files += found
        elif not path.name.endswith(KINDS):
            raise ValueError(f"{path}: must be a file of {', '.join(KINDS)}, or a folder of them")
        else:
            files.append(path)
    return files


def read_documents(
    files: Iterable[Path],
    column: str,
    report: Report,
    advance: Advance = lambda count: None,
    cuts: Cuts = Cuts(),  # noqa: B008 (never changed)
) -> Iterator[Part]:
    """Yield the documents of files, in order, in pieces.

    A text file is one document, or several with ``<|endoftext|>`` between them; so is a row.

    Args:
        files: as from ``input_files``.
        column: field of a row that holds the text.
        report: counts what is left out.
        advance: told of the bytes that were read.
        cuts: where long texts can be cut; only at spaces unless told.

    Raises:
        ValueError: for a file that is torn, or is not what its name says.
    """
    for path in files:
        if path.name.endswith((".txt", ".md")):
            yield from _text(path, report, advance, cuts)
        elif path.name.endswith(".parquet"):
            yield from _rows(_parquet(path, column, advance), column, report, cuts)
        else:
            yield from _rows(_json_lines(path, report, advance), column, report, cuts)
        report.files += 1


def read_dataset(
    name: str,
    split: str,
    column: str,
    report: Report,
    cuts: Cuts = Cuts(),  # noqa: B008
) -> Iterator[Part]:
    """Yield the documents of a Hugging Face data set, streamed, in pieces.

    Args:
        name: a local folder, or on the hub with a revision pinned, "owner/name@revision", where the
            revision is a commit's 40 digits: a name alone may hold other documents tomorrow.
        split: of the data set.
        column: that holds the text.
        report: counts what is left out.
        cuts: where long texts can be cut; only at spaces unless told.

    Raises:
        ValueError: for a name without a revision, or a data set that cannot be read.
    """
    path, _, revision = name.partition("@")
    local = Path(name).exists()
    if not local and not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(
            f"--dataset {name}: is no local folder, and on the hub a revision must be pinned: "
            "owner/name@COMMIT, with the 40 digits of the commit"
        )
    datasets = library("datasets")
    try:
        rows = datasets.load_dataset(
            name if local else path, split=split, streaming=True, revision=revision or None
        )
        named = ((f"{name} row {i}", row) for i, row in enumerate(rows))
        yield from _rows(named, column, report, cuts)
    except (OSError, LookupError, ValueError) as error:
        raise ValueError(f"--dataset {name}: {assets.one_line(str(error))}") from error
    report.files += 1


def usable(
    parts: Iterable[Part],
    tokenizer: SmolLM2Tokenizer,
    report: Report,
    seen: Seen | None = None,
) -> Iterator[Piece]:
    """Yield the pieces of the documents that can be stored, and count the others.

    Args:
        parts: of documents, in order. A document is held back until its end, or until it has more
            than ``HELD`` characters: then it is neither left out nor compared.
        tokenizer: which characters it can express.
        report: counts what is left out, and what is kept.
        seen: leave out documents that were there before, exactly.

    Raises:
        ValueError: for a fault in a document too long to be left out.
    """
    parts = iter(parts)
    for where, piece in parts:
        held, size = [piece], len(piece.text)
        while not held[-1].last and size <= HELD:
            held.append(next(parts).piece)
            size += len(held[-1].text)
        fault = _fault(held, tokenizer)
        if held[-1].last:
            if not any(each.text.strip() for each in held):
                fault = "is empty"
            if not fault and seen is not None:
                text = hashlib.sha256()
                for each in held:
                    text.update(each.text.encode())
                fault = "" if seen.is_new(text.digest()) else "was there before"
            if fault:
                report.skip(fault, where)
                continue
        report.documents += 1
        while True:
            if fault:
                raise ValueError(f"{where}: {fault}, and is too long to be left out; mend the file")
            for each in held:
                report.bytes += len(each.text.encode())
                yield each
            if held[-1].last:
                break
            held = [next(parts).piece]
            fault = _fault(held, tokenizer)


def _fault(pieces: list[Piece], tokenizer: SmolLM2Tokenizer) -> str:
    """Return why pieces cannot be stored; nothing where they can."""
    for piece in pieces:
        if unknown := tokenizer.unencodable(piece.text):
            return f"holds U+{ord(min(unknown)):04X}, which the vocabulary lacks"
    return ""


class Seen:
    """Remembers which documents were there, in a file, so that memory does not grow with them."""

    def __init__(self, path: Path) -> None:
        """Begin with none; what lies at ``path`` is replaced."""
        path.unlink(missing_ok=True)
        self.path = path
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.execute("PRAGMA journal_mode = OFF")  # it is begun anew after an interruption
        self.base.execute("PRAGMA synchronous = OFF")
        self.base.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def is_new(self, digest: bytes) -> bool:
        """Remember a document's digest; say whether it was not there yet."""
        return self.base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        """Forget everything."""
        self.base.close()
        self.path.unlink(missing_ok=True)


def store(
    inputs: Sequence[Path],
    dataset: str | None,
    output: Path,
    tokenizer: SmolLM2Tokenizer,
    *,
    split: str = "train",
    column: str = "text",
    unique: bool = False,
    shard_tokens: int = 1 << 24,
) -> tuple[TokenShards, Report]:
    """Store documents as shards, with a bar of progress; write beside them what became of them.

    Killed, it goes on when it is called again with the same arguments.

    Args:
        inputs: files and folders.
        dataset: a Hugging Face data set, behind them.
        output: folder of the shards.
        tokenizer: encodes the documents.
        split: of the data set.
        column: field of a row that holds the text.
        unique: leave out documents that were there before, exactly.
        shard_tokens: least number of tokens in each shard but the last.

    Returns:
        The shards, open for reading, and the report, which is in ``report.json`` too.

    Raises:
        OSError, ValueError: for what cannot be read or stored.
    """
    if not inputs and dataset is None:
        raise ValueError("shards: nothing to read; name --input or --dataset")
    strange = [file.name for file in output.glob("*") if not OURS.match(file.name)]
    if strange:
        raise ValueError(
            f"--output {output}: holds {min(strange)}, which is no part of shards; name another "
            "folder"
        )
    files, report, cuts = input_files(inputs), Report(), Cuts(tokenizer)
    output.mkdir(parents=True, exist_ok=True)
    seen = Seen(output / ".seen.sqlite") if unique else None
    total = sum(file.stat().st_size for file in files) if dataset is None else None
    try:
        with tqdm(total=total, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
            parts = read_documents(files, column, report, bar.update, cuts)
            if dataset is not None:
                parts = chain(parts, read_dataset(dataset, split, column, report, cuts))
            shards = write_shards(
                output, usable(parts, tokenizer, report, seen), tokenizer, shard_tokens
            )
    except ValueError as error:
        if report.documents == 0 and report.skipped:
            raise ValueError(f"no document can be used: {report.reasons()}") from error
        raise
    finally:
        if seen is not None:
            seen.close()
    content = {
        "inputs": [str(path) for path in inputs],
        "dataset": dataset,
        "documents": report.documents,
        "tokens": len(shards),
        "bytes": report.bytes,
        "bytes_per_token": round(report.bytes / len(shards), 4),
        "files": report.files,
        "skipped": dict(report.skipped),
        "first_skipped": report.examples,
        "sha256": shards.sha256,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    assets.write_atomically(output / "report.json", text.encode())
    return shards, report


# The kinds of files.


def _text(path: Path, report: Report, advance: Advance, cuts: Cuts) -> Iterator[Part]:
    """Read a text file; a short one that is no UTF-8 is left out."""
    pieces: Iterable[str] = read_pieces(path, cuts, PIECE)
    if path.stat().st_size <= HELD:
        try:
            pieces = list(pieces)
        except ValueError:
            report.skip("is no UTF-8", str(path))
            return
    for part in _split(str(path), pieces):
        yield part
        advance(len(part.piece.text.encode()))


def _split(where: str, pieces: Iterable[str]) -> Iterator[Part]:
    """Divide a text where ``<|endoftext|>`` stands; what is blank between two of them is nothing.

    A text is never cut within ``<|endoftext|>``: no space is in it, and it is an added token.
    """
    pending, begun, found = None, False, 0
    for text in pieces:
        first, *others = text.split(END)
        if pending is not None:
            yield Part(where, Piece(pending, False))
            begun = True
        pending = first
        for other in others:
            if begun or pending.strip():
                yield Part(where, Piece(pending, True))
            pending, begun, found = other, False, found + 1
    pending = pending or ""
    if begun or pending.strip() or not found:
        yield Part(where, Piece(pending, True))


def _rows(
    rows: Iterable[tuple[str, Any]], column: str, report: Report, cuts: Cuts
) -> Iterator[Part]:
    """Yield the documents of rows; a row without a text is left out."""
    for where, row in rows:
        if not isinstance(row, dict) or column not in row:
            report.skip(f"has no field {column!r}", where)
        elif not isinstance(row[column], str):
            report.skip(f"holds no text in its field {column!r}", where)
        else:
            yield from _split(where, cut(row[column], PIECE, cuts))


class _Counted(io.FileIO):
    """A file that says how much of it was read."""

    def __init__(self, path: Path, advance: Advance) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, into: Any) -> int | None:
        """Read, as ``io.RawIOBase`` does."""
        count = super().readinto(into)
        self._advance(count or 0)
        return count


def _json_lines(path: Path, report: Report, advance: Advance) -> Iterator[tuple[str, Any]]:
    """Yield the rows of JSON Lines, plain or compressed; a line that is no JSON is left out."""
    with io.BufferedReader(_Counted(path, advance), 1 << 20) as file:
        lines: Iterable[bytes] = file
        if path.name.endswith(".gz"):
            lines = gzip.GzipFile(fileobj=file)
        elif path.name.endswith(".zst"):
            pyarrow = library("pyarrow")
            inner = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
            lines = io.BufferedReader(inner, 1 << 20)
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    report.skip("is no JSON", where)
                    continue
                yield where, row
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: is torn or damaged ({error}); fetch it again") from error


def _parquet(path: Path, column: str, advance: Advance) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a Parquet file, with that one column."""
    library("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise LookupError(
                    f"has no column {column!r}, it has {', '.join(names)}: name one with "
                    "--text-column"
                )
            number, size = 0, path.stat().st_size
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield f"{path} row {number}", {column: value}
                    number += 1
                advance(size * len(batch) // max(file.metadata.num_rows, 1))
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: {assets.one_line(str(error))}") from error


def library(name: str) -> ModuleType:
    """Return a library that only some kinds of files need.

    Raises:
        ValueError: when it is not installed, with the way to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'{name}: is not installed; `pip install "smol_scratch[shards]"` brings it'
        ) from error
