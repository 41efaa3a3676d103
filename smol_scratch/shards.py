"""Tokens in files, for text that does not fit into memory: written once, read by position.

A folder of NumPy files with 16-bit tokens; beside each a table of the documents that end in it; and
index.json, which says what they are. A shard is listed in the index only after it has its name, and
it gets its name only when it is whole; so whatever stands in the index can be read, and whatever
does not is written anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cached_property
from itertools import islice
from operator import index as whole_number
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, Protocol

import numpy as np

from smol_scratch import assets
from smol_scratch.arguments import checked
from smol_scratch.texts import Cuts, cut

INDEX = "index.json"
FORMAT = "smol_scratch token shards, version 2"
PIECE = 1 << 16  # characters that are encoded as one; a longer document is cut
BATCH = 1 << 20  # characters whose pieces are encoded side by side


class TokenizerLike(Protocol):
    """What writing shards asks of a tokenizer; ``SmolLM2Tokenizer`` has it.

    Where it has ``encode_batch`` too, that is used.
    """

    eos_id: int

    @property
    def vocab_size(self) -> int:
        """Entries in the vocabulary (V)."""

    @property
    def fingerprint(self) -> str:
        """What tells this tokenizer from others."""

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text."""


class Piece(NamedTuple):
    """A part of a document that can be encoded by itself.

    Attributes:
        text: of it.
        last: whether the document ends with it.
    """

    text: str
    last: bool


def pieces_of_documents(documents: Iterable[str | Piece], cuts: Cuts) -> Iterator[Piece]:
    """Cut long documents; what is in pieces already stays so."""
    for document in documents:
        if isinstance(document, Piece):
            yield document
        elif len(document) <= PIECE:
            yield Piece(document, True)
        else:
            parts = cut(document, PIECE, cuts)
            before = next(parts)
            for part in parts:
                yield Piece(before, False)
                before = part
            yield Piece(before, True)


def write_shards(
    folder: str | Path,
    documents: Iterable[str | Piece],
    tokenizer: TokenizerLike,
    shard_tokens: int = 1 << 24,
) -> TokenShards:
    """Store documents as 16-bit tokens, each followed by the end-of-text token.

    A shard ends with the piece that brings it to ``shard_tokens``, so a long document lies in
    several. No more than one shard is in memory, and no document whole. When interrupted, run it
    again with the same documents: those in finished shards are compared but not encoded again.
    Documents after the last one stored are added.

    Args:
        folder: made where it is missing.
        documents: texts in order, or pieces of them: a long text is cut where SmolLM2's tokenizer
            certainly cuts.
        tokenizer: encodes them.
        shard_tokens: least number of tokens in each shard but the last; 2²⁴ are 32 MiB.

    Returns:
        The shards, open for reading.

    Raises:
        ValueError: for a vocabulary that does not fit 16 bits, a token outside the vocabulary, an
            end-of-text token within a document, no documents, one bare text, or other documents
            or another tokenizer than those of the shards that are there.
        CorruptAssetError: when those shards are damaged.
    """
    folder = Path(folder)
    if isinstance(documents, str):
        raise ValueError("documents is one text: give a list of texts, [text] for a single one")
    if tokenizer.vocab_size > 1 << 16:
        raise ValueError(
            f"a vocabulary of {tokenizer.vocab_size:,}: shards hold 16-bit tokens, below 65,536"
        )
    if type(shard_tokens) is not int or shard_tokens < 1:
        raise ValueError(f"shard_tokens={shard_tokens!r}: must be a whole number of at least 1")
    content: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "complete": False,
        "shards": [],
    }
    if (folder / INDEX).exists():
        stored = _read_index(folder)
        for name in ("fingerprint", "vocab_size", "eos_id"):
            if stored[name] != content[name]:
                raise ValueError(
                    f"{folder} was written with {name} {stored[name]}, not {content[name]}: "
                    "use that tokenizer, or another folder"
                )
        content = stored
    for pattern in (
        ".shard-*.npy.*",
        ".documents-*.npy.*",
        f".{INDEX}.*",
    ):  # halves that an interruption left
        for stray in folder.glob(pattern):
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    pieces = pieces_of_documents(documents, Cuts(tokenizer))
    number = 0  # of the document that the next piece belongs to
    unfinished = hashlib.sha256()  # of the text of a document that began in an earlier shard
    for at, shard in enumerate(content["shards"]):
        for name in (_shard_name(at), _documents_name(at)):
            _check_file(folder / name, shard)
        same = hashlib.sha256()
        for piece in islice(pieces, shard["pieces"]):
            same.update(_digest(piece))
            unfinished.update(piece.text.encode())
            if piece.last:
                number, unfinished = number + 1, hashlib.sha256()
        if same.hexdigest() != shard["source_sha256"]:
            raise ValueError(
                f"{folder / _shard_name(at)} holds other documents than those given: begin "
                "with the same ones, or name another folder"
            )
    for full in _fill(pieces, number, unfinished, tokenizer, shard_tokens):
        at = len(content["shards"])
        entry: dict[str, Any] = {
            "tokens": len(full.tokens),
            "documents": len(full.ends),
            "pieces": full.pieces,
            "source_sha256": full.source_sha256,
            "files": {},
        }
        table = np.array([full.ends, full.digests], dtype="<u8").T  # (documents, 2)
        for name, values in (
            (_shard_name(at), np.array(full.tokens, dtype="<u2")),
            (_documents_name(at), table),
        ):
            file = io.BytesIO()
            np.save(file, values, allow_pickle=False)
            data = file.getvalue()
            assets.write_atomically(folder / name, data)
            entry["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content["shards"].append(entry)
        content["complete"] = False
        _write_index(folder, content)
    if not content["shards"]:
        raise ValueError("no documents: nothing to store")
    if not content["complete"]:
        _write_index(folder, content | {"complete": True})
    return TokenShards(folder, tokenizer.fingerprint)


class _Shard(NamedTuple):
    tokens: array[int]
    ends: array[int]  # behind each document that ends here
    digests: array[int]  # of those documents' texts
    pieces: int
    source_sha256: str  # of the pieces


def _fill(
    pieces: Iterable[Piece],
    number: int,
    text: hashlib._Hash,
    tokenizer: TokenizerLike,
    shard_tokens: int,
) -> Iterator[_Shard]:
    """Encode pieces, the first of them of document ``number``, and give one shard after another."""

    def empty() -> tuple[array[int], array[int], array[int]]:
        return array("H"), array("Q"), array("Q")

    (tokens, ends, digests), count, source = empty(), 0, hashlib.sha256()
    for piece, ids in _encoded(pieces, tokenizer):
        _check_ids(number, ids, tokenizer)
        tokens.extend(ids)
        text.update(piece.text.encode())
        source.update(_digest(piece))
        count += 1
        if piece.last:
            tokens.append(tokenizer.eos_id)
            ends.append(len(tokens))
            digests.append(int.from_bytes(text.digest()[:8], "little"))
            number, text = number + 1, hashlib.sha256()
        if len(tokens) >= shard_tokens:
            yield _Shard(tokens, ends, digests, count, source.hexdigest())
            (tokens, ends, digests), count, source = empty(), 0, hashlib.sha256()
    if count:
        yield _Shard(tokens, ends, digests, count, source.hexdigest())


def _encoded(
    pieces: Iterable[Piece], tokenizer: TokenizerLike
) -> Iterator[tuple[Piece, list[int]]]:
    """Yield pieces with their tokens; several are encoded at once, on all cores."""
    encode_batch: Callable[[list[str]], list[list[int]]] = getattr(
        tokenizer, "encode_batch", lambda texts: [tokenizer.encode(text) for text in texts]
    )
    pieces = iter(pieces)
    while batch := list(_up_to(pieces, BATCH)):
        yield from zip(batch, encode_batch([piece.text for piece in batch]), strict=True)


def _up_to(pieces: Iterator[Piece], characters: int) -> Iterator[Piece]:
    """Take pieces until they have so many characters together."""
    while characters > 0 and (piece := next(pieces, None)) is not None:
        yield piece
        characters -= len(piece.text) + 64  # empty ones count too


def _check_ids(number: int, ids: list[int], tokenizer: TokenizerLike) -> None:
    """Raise unless every token of a document can be stored and the document has one end."""
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < tokenizer.vocab_size:
            raise ValueError(
                f"document {number} has token {token}: must lie between 0 and "
                f"{tokenizer.vocab_size - 1}, the vocabulary's last"
            )
    if tokenizer.eos_id in ids:
        raise ValueError(
            f"document {number} has the end-of-text token {tokenizer.eos_id} within: split it there"
        )


def _digest(piece: Piece) -> bytes:
    """Return a piece's SHA-256; where it ends, and whether the document does, counts too."""
    return hashlib.sha256(piece.text.encode()).digest() + bytes([piece.last])


def _documents_name(number: int) -> str:
    return f"documents-{number:05d}.npy"


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.npy"


def _write_index(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    checked = {"content": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assets.write_atomically(folder / INDEX, json.dumps(checked).encode())


def _read_index(folder: Path) -> dict[str, Any]:
    """Return what the index says, after comparing its own SHA-256."""
    path = folder / INDEX
    if not path.is_file():
        raise assets.MissingAssetError(f"{path}: no such file; write_shards makes it")
    try:
        checked = json.loads(path.read_bytes())
        text = json.dumps(checked["content"])
        intact = checked["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, TypeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise assets.CorruptAssetError(f"{path} is damaged: delete the folder and write it again")
    content = checked["content"]
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format {found!r:.60}, expected {FORMAT!r}")
    if wrong := [name for name, whole in _INDEX.items() if not whole(content.get(name))]:
        raise assets.CorruptAssetError(
            f"{path}: {wrong[0]}={content.get(wrong[0])!r:.60} is not what write_shards writes: "
            "delete the folder and write it again"
        )
    return content


def _count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _whole_shard(number: int, shard: Any) -> bool:
    """Say whether an entry of the index has all that is read of it."""
    return (
        isinstance(shard, dict)
        and _count(shard.get("tokens"), 1)
        and _count(shard.get("documents"))
        and _count(shard.get("pieces"), 1)
        and isinstance(shard.get("source_sha256"), str)
        and isinstance(shard.get("files"), dict)
        and set(shard["files"]) == {_shard_name(number), _documents_name(number)}
        and all(
            isinstance(file, dict)
            and _count(file.get("bytes"), 1)
            and isinstance(file.get("sha256"), str)
            for file in shard["files"].values()
        )
    )


# What the index holds, and how to tell. Its SHA-256 says that nothing was damaged on the way, not
# that it was written by us.
_INDEX: dict[str, Callable[[Any], bool]] = {
    "fingerprint": lambda value: isinstance(value, str),
    "vocab_size": lambda value: _count(value, 1),
    "eos_id": _count,
    "complete": lambda value: type(value) is bool,
    "shards": lambda value: (
        isinstance(value, list) and all(_whole_shard(i, each) for i, each in enumerate(value))
    ),
}


def _check_file(path: Path, shard: dict[str, Any], *, whole: bool = True) -> Path:
    """Return a file of a shard after comparing its size and, where ``whole``, its SHA-256."""
    expected, remedy = shard["files"][path.name], "delete the folder and write it again"
    if not path.is_file():
        raise assets.MissingAssetError(f"{path} is missing: {remedy}")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise assets.CorruptAssetError(
            f"{path} has {size:,} bytes instead of {expected['bytes']:,}: {remedy}"
        )
    if whole and (found := assets.sha256(path)) != expected["sha256"]:
        raise assets.CorruptAssetError(
            f"{path} is damaged: SHA-256 {found}, expected {expected['sha256']}; {remedy}"
        )
    return path


def _open(path: Path, shard: dict[str, Any], kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a file of a shard, memory-mapped, after comparing all that the index says of it."""
    _check_file(path, shard)
    try:
        stored = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    except (ValueError, SyntaxError, TokenError) as error:  # numpy's, of a broken header
        raise assets.CorruptAssetError(f"{path} holds no tokens: {error}") from error
    if stored.dtype != np.dtype(kind) or stored.shape != shape:
        raise assets.CorruptAssetError(
            f"{path} holds {stored.dtype} of shape {stored.shape}, and the index speaks of "
            f"{np.dtype(kind)} of shape {shape}: write it again"
        )
    return stored


@checked
class TokenShards:
    """Tokens in memory-mapped files, read by position: the disk is the memory.

    ``shards[a:b]`` is an array, (b - a,) uint16, and only these tokens are read; ``shards[a]`` is a
    number. The size of every file is compared at once, its SHA-256 when it is first read.

    Attributes:
        vocab_size: entries in the vocabulary (V).
        eos_id: the end-of-text token, which follows every document.
        fingerprint: of the tokenizer that wrote them.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Open what ``write_shards`` has stored.

        Args:
            folder: with the index.
            fingerprint: of the tokenizer that the tokens are meant for.

        Raises:
            MissingAssetError: when the index or a shard is not there.
            CorruptAssetError: when one is damaged (a shard's content: on first reading it).
            ValueError: when writing was interrupted, or the tokenizer was another.
        """
        self.folder = Path(folder)
        index = _read_index(self.folder)
        if index["fingerprint"] != fingerprint:
            raise ValueError(
                f"{self.folder} holds tokens of the tokenizer {index['fingerprint']}, not "
                f"{fingerprint}: load that tokenizer, or write the shards again"
            )
        if not index["complete"]:
            raise ValueError(f"{self.folder} is unfinished: run write_shards again to go on")
        if not index["shards"]:
            raise assets.CorruptAssetError(f"{self.folder} holds no shard: write it again")
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.fingerprint = fingerprint
        self._shards: list[dict[str, Any]] = index["shards"]
        for shard in self._shards:
            for name in shard["files"]:
                _check_file(self.folder / name, shard, whole=False)
        ends = np.cumsum([shard["tokens"] for shard in self._shards])
        self._starts = np.concatenate(([0], ends))  # of each shard, and the end of the last
        self._maps: dict[int, np.ndarray] = {}
        self._first, self._last = 0, int(ends[-1])  # the part of it that this object shows

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            place = whole_number(index)
            if not -len(self) <= place < len(self):
                raise IndexError(f"token {place}: there are {len(self):,}")
            place %= len(self)
            return int(self[place : place + 1][0])
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: shards are read in steps of 1")
        at, end = self._first + start, self._first + max(start, stop)
        pieces = [np.empty(0, np.uint16)]
        while at < end:
            number = int(np.searchsorted(self._starts, at, side="right")) - 1
            begin, until = int(self._starts[number]), int(self._starts[number + 1])
            pieces.append(self._map(number)[at - begin : min(end, until) - begin])
            at = until
        return np.concatenate(pieces)

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            path, shard = self.folder / _shard_name(number), self._shards[number]
            self._maps[number] = _open(path, shard, "<u2", (shard["tokens"],))
        return self._maps[number]

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends and digests of all documents, whatever part of them this object shows."""
        ends, digests = [], []
        for number, shard in enumerate(self._shards):
            path = self.folder / _documents_name(number)
            table = _open(path, shard, "<u8", (shard["documents"], 2))
            ends.append(table[:, 0].astype(np.int64) + self._starts[number])
            digests.append(table[:, 1].astype(np.uint64))
        every = np.concatenate(ends)
        if (
            len(every) == 0
            or every[-1] != self._starts[-1]
            or (np.diff(every, prepend=0) < 1).any()
        ):
            raise assets.CorruptAssetError(
                f"{self.folder}: the tables of documents do not fit the tokens: write it again"
            )
        return every, np.concatenate(digests)

    @property
    def documents(self) -> np.ndarray:
        """Where documents begin, (documents,) int64, counted from this part's first token."""
        ends, _ = self._tables
        starts = np.concatenate((ends[:1] * 0, ends[:-1]))
        return starts[(starts >= self._first) & (starts < self._last)] - self._first

    @property
    def ends(self) -> np.ndarray:
        """Where the documents end that lie in this part, (documents,) int64: behind their last."""
        ends, _ = self._tables
        return ends[(ends > self._first) & (ends <= self._last)] - self._first

    @property
    def digests(self) -> np.ndarray:
        """The first 64 bits of the SHA-256 of those documents' texts, (documents,) uint64."""
        ends, digests = self._tables
        return digests[(ends > self._first) & (ends <= self._last)]

    @property
    def sha256(self) -> str:
        """SHA-256 of the index's own of all files: it tells one text from another, unread."""
        files = [shard["files"][_shard_name(i)]["sha256"] for i, shard in enumerate(self._shards)]
        return hashlib.sha256(f"{self._first} {self._last} {files}".encode()).hexdigest()

    def part(self, start: int, stop: int) -> TokenShards:
        """Return the same shards, seen as only the tokens from ``start`` to before ``stop``.

        Raises:
            ValueError: when they are not all there, or none are asked for.
        """
        start, stop = whole_number(start), whole_number(stop)
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"tokens {start} to {stop}: must lie between 0 and {len(self):,}")
        part = copy(self)
        part._first, part._last = self._first + start, self._first + stop
        return part

    def verify(self) -> None:
        """Compare the SHA-256 of every file now.

        Raises:
            CorruptAssetError: for the first one that is damaged.
        """
        for shard in self._shards:
            for name in shard["files"]:
                _check_file(self.folder / name, shard)
