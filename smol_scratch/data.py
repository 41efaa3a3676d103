"""Tokens to batches, and tokens in files for text that does not fit into memory.

Letters: B sequences in a batch, T tokens in a sequence.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from itertools import islice
from operator import index as whole_number
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from smol_scratch import assets


class Tokens(Protocol):
    """Token numbers in order, in anything with a length and slices.

    A list, a NumPy array, a tensor and ``TokenShards`` all are.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


def _read(tokens: Tokens, start: int, stop: int) -> np.ndarray:
    """Return a copy of some tokens, (stop - start,) int64."""
    part = np.asarray(tokens[start:stop])
    if part.ndim != 1 or part.dtype.kind not in "iu":
        raise ValueError(
            f"tokens of type {part.dtype} in {part.ndim} dimensions: must be whole numbers in a row"
        )
    return part.astype(np.int64)


class DataLoaderLite:
    """Hand out tokens in order, a batch at a time, and start over when less than one is left.

    Nothing is shuffled: two loaders over the same tokens give the same batches, and ``position``
    is all that the next batch depends on.

    In distributed training each of ``world_size`` ranks has its own loader. Together they take
    ``world_size`` batches at once; rank r gets the r-th of them. So the W batches of B sequences
    are, one above the other, the single batch of W · B sequences that one process would take, and
    a position saved by W ranks can be loaded by one.

    Attributes:
        tokens, B, T: as given.
        position: place of the first token that no rank has taken yet.
        passes: how often the loader has started over.
    """

    def __init__(
        self, tokens: Tokens, B: int, T: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Stand before the first token.

        Args:
            tokens: at least B · T · world_size + 1 of them: the last one is only predicted.
            B: sequences in a batch of this rank.
            T: tokens in a sequence.
            rank: of this process, from 0.
            world_size: how many processes share the tokens.

        Raises:
            ValueError: for sizes that are no positive whole numbers, a rank that does not exist, or
                too few tokens.
        """
        _check_sizes(tokens, B, T, rank, world_size)
        self.tokens, self.B, self.T, self.rank = tokens, B, T, rank
        self.step = B * T * world_size  # tokens that all ranks take together
        self.position = 0
        self.passes = 0

    @property
    def batches_per_pass(self) -> int:
        """Batches that each rank gets before the loader starts over."""
        return (len(self.tokens) - 1) // self.step

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch and move on.

        Returns:
            The tokens, (B, T) int64, and for each the one that follows it, (B, T) int64.
        """
        start = self.position + self.rank * self.B * self.T
        part = torch.from_numpy(_read(self.tokens, start, start + self.B * self.T + 1))
        self.position += self.step
        self._start_over_at_the_end()
        # y is a copy, so that writing into one does not change the other.
        return part[:-1].view(self.B, self.T), part[1:].clone().view(self.B, self.T)

    def _start_over_at_the_end(self) -> None:
        """Go back to the first token where less than a whole batch is left."""
        if self.position + self.step + 1 > len(self.tokens):
            self.position = 0
            self.passes += 1

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands: plain numbers, the same on every rank."""
        return {"position": self.position, "passes": self.passes, "tokens": len(self.tokens)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go where another loader stood: the next batch begins at the token that it would have.

        Its batches may have been of another size. Where less than a whole batch is left, the next
        one is the first of a new pass.

        Raises:
            ValueError: for anything that is no state of a loader over as many tokens. The loader
                then stays where it is.
        """
        self._check_state(state)
        self.position, self.passes = state["position"], state["passes"]
        self._start_over_at_the_end()

    def _check_state(self, state: dict[str, int]) -> None:
        wrong = {name: value for name, value in state.items() if type(value) is not int}
        if set(state) != set(self.state_dict()) or wrong:
            raise ValueError(
                f"{state}: is no state of a DataLoaderLite; it has the whole numbers "
                f"{', '.join(self.state_dict())}"
            )
        if state["tokens"] != len(self.tokens):
            raise ValueError(
                f"the position was saved in a text of {state['tokens']:,} tokens and this one has "
                f"{len(self.tokens):,}: go on with the same text and the same tokenizer"
            )
        position = state["position"]
        if not 0 <= position < len(self.tokens):
            raise ValueError(
                f"position={position}: must lie between 0 and {len(self.tokens) - 1:,}, the last "
                "token's"
            )
        if state["passes"] < 0:
            raise ValueError(f"passes={state['passes']}: must not be negative")


def _check_sizes(tokens: Tokens, B: int, T: int, rank: int, world_size: int) -> None:
    for name, value in (("B", B), ("T", T), ("world_size", world_size)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    if type(rank) is not int or not 0 <= rank < world_size:
        raise ValueError(f"rank={rank!r}: must lie between 0 and {world_size - 1}")
    step = B * T * world_size
    if len(tokens) < step + 1:
        raise ValueError(
            f"{len(tokens):,} tokens are less than one batch: {B} × {T} on {world_size} "
            f"rank(s) needs {step + 1:,}; take smaller B or T, or a longer text"
        )


def split(tokens: Tokens, fraction: float = 0.1) -> tuple[Tokens, Tokens]:
    """Cut off the end as held-out text.

    One piece from the end and not sentences from everywhere: a sentence whose neighbours are in the
    training text is half known already.

    Args:
        tokens: in order; shards are cut without being read.
        fraction: share held out, rounded down to whole tokens.

    Returns:
        Training and held-out tokens; together they are all.

    Raises:
        ValueError: when one of the two would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: must lie between 0 and 1")
    held_out = int(len(tokens) * fraction)
    if held_out == 0:
        raise ValueError(f"fraction={fraction} of {len(tokens)} tokens is none: take more of them")
    cut = len(tokens) - held_out
    if isinstance(tokens, TokenShards):
        return tokens.part(0, cut), tokens.part(cut, len(tokens))
    return tokens[:cut], tokens[cut:]


def ngram_overlap(train: Tokens, held_out: Tokens, n: int) -> float:
    """Return the share of the held-out text's n-grams that also stand in the training text.

    Each place counts, so an n-gram that stands there twice counts twice.

    Args:
        train: tokens of the training text.
        held_out: tokens of the held-out text.
        n: tokens in an n-gram.

    Raises:
        ValueError: when n is below 1 or a text is shorter than n.
    """
    shortest = min(len(train), len(held_out))
    if not 1 <= n <= shortest:
        raise ValueError(f"n={n}: must lie between 1 and the shorter text's {shortest} tokens")
    known = set(_ngrams(train, n))
    found = [ngram in known for ngram in _ngrams(held_out, n)]
    return sum(found) / len(found)


def _ngrams(tokens: Tokens, n: int) -> Iterable[tuple[int, ...]]:
    numbers = _read(tokens, 0, len(tokens)).tolist()
    return zip(*(numbers[i:] for i in range(n)), strict=False)


# Shards: a folder of NumPy files with 16-bit tokens, and index.json, which says what they are. A
# shard is listed in the index only after it has its name, and it gets its name only when it is
# whole; so whatever stands in the index can be read, and whatever does not is written anew.

INDEX = "index.json"
FORMAT = "smol_scratch token shards, version 1"


class TokenizerLike(Protocol):
    """What writing shards asks of a tokenizer; ``SmolLM2Tokenizer`` has it."""

    eos_id: int

    @property
    def vocab_size(self) -> int:
        """Entries in the vocabulary (V)."""

    @property
    def fingerprint(self) -> str:
        """What tells this tokenizer from others."""

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text."""


def write_shards(
    folder: str | Path,
    documents: Iterable[str],
    tokenizer: TokenizerLike,
    shard_tokens: int = 1 << 24,
) -> TokenShards:
    """Store documents as 16-bit tokens, each followed by the end-of-text token.

    A shard ends with a document: the first that brings it to ``shard_tokens``. No more than one
    shard is in memory. When interrupted, run it again with the same documents: those in finished
    shards are compared but not encoded again. Documents after the last one stored are added.

    Args:
        folder: made where it is missing; holds nothing else.
        documents: texts in order.
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
    for pattern in (".shard-*.npy.*", f".{INDEX}.*"):  # halves that an interruption left
        for stray in folder.glob(pattern):
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    documents = iter(documents)
    done = 0  # documents that are stored
    for number, shard in enumerate(content["shards"]):
        _check_shard(folder, number, shard)
        same = hashlib.sha256()
        for text in islice(documents, len(shard["documents"])):
            same.update(_digest(text))
        if same.hexdigest() != shard["source_sha256"]:
            raise ValueError(
                f"{folder / _shard_name(number)} holds other documents than those given: begin "
                "with the same ones, or name another folder"
            )
        done += len(shard["documents"])
    for full in _fill(documents, done, tokenizer, shard_tokens):
        file = io.BytesIO()
        np.save(file, np.array(full.tokens, dtype="<u2"), allow_pickle=False)
        data = file.getvalue()
        assets.write_atomically(folder / _shard_name(len(content["shards"])), data)
        entry = {
            "tokens": len(full.tokens),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "source_sha256": full.source_sha256,
            "documents": full.documents,
        }
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
    documents: list[int]  # where they begin
    source_sha256: str  # of the texts


def _fill(
    documents: Iterable[str], number: int, tokenizer: TokenizerLike, shard_tokens: int
) -> Iterator[_Shard]:
    """Encode documents, the first of them number ``number``, and give one shard after another."""
    tokens, starts, source = array("H"), list[int](), hashlib.sha256()
    for number, text in enumerate(documents, start=number):  # noqa: B020
        ids = tokenizer.encode(text)
        _check_document(number, ids, tokenizer)
        starts.append(len(tokens))
        tokens.extend(ids)
        tokens.append(tokenizer.eos_id)
        source.update(_digest(text))
        if len(tokens) >= shard_tokens:
            yield _Shard(tokens, starts, source.hexdigest())
            tokens, starts, source = array("H"), [], hashlib.sha256()
    if tokens:
        yield _Shard(tokens, starts, source.hexdigest())


def _check_document(number: int, ids: list[int], tokenizer: TokenizerLike) -> None:
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


def _digest(text: str) -> bytes:
    """Return a document's SHA-256, so that where one ends and the next begins counts too."""
    return hashlib.sha256(text.encode()).digest()


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


def _whole_shard(shard: Any) -> bool:
    """Say whether an entry of the index has all that is read of it."""
    return (
        isinstance(shard, dict)
        and _count(shard.get("tokens"), 1)
        and _count(shard.get("bytes"), 1)
        and isinstance(shard.get("sha256"), str)
        and isinstance(shard.get("source_sha256"), str)
        and isinstance(shard.get("documents"), list)
        and all(_count(start) and start < shard["tokens"] for start in shard["documents"])
    )


# What the index holds, and how to tell. Its SHA-256 says that nothing was damaged on the way, not
# that it was written by us.
_INDEX: dict[str, Callable[[Any], bool]] = {
    "fingerprint": lambda value: isinstance(value, str),
    "vocab_size": lambda value: _count(value, 1),
    "eos_id": _count,
    "complete": lambda value: type(value) is bool,
    "shards": lambda value: isinstance(value, list) and all(map(_whole_shard, value)),
}


def _check_shard(folder: Path, number: int, shard: dict[str, Any], *, whole: bool = True) -> Path:
    """Return a shard's path after comparing its size and, where ``whole``, its SHA-256."""
    path, remedy = folder / _shard_name(number), "delete the folder and write it again"
    if not path.is_file():
        raise assets.MissingAssetError(f"{path} is missing: {remedy}")
    if (size := path.stat().st_size) != shard["bytes"]:
        raise assets.CorruptAssetError(
            f"{path} has {size:,} bytes instead of {shard['bytes']:,}: {remedy}"
        )
    if whole and (found := assets.sha256(path)) != shard["sha256"]:
        raise assets.CorruptAssetError(
            f"{path} is damaged: SHA-256 {found}, expected {shard['sha256']}; {remedy}"
        )
    return path


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
        for number, shard in enumerate(self._shards):
            _check_shard(self.folder, number, shard, whole=False)
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
            path = _check_shard(self.folder, number, self._shards[number])
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, SyntaxError, TokenError) as error:  # numpy's, of a broken header
                raise assets.CorruptAssetError(f"{path} holds no tokens: {error}") from error
            if stored.dtype != np.uint16 or stored.shape != (self._shards[number]["tokens"],):
                raise assets.CorruptAssetError(
                    f"{path} holds {stored.dtype} of shape {stored.shape}, and the index speaks of "
                    f"{self._shards[number]['tokens']:,} tokens in 16 bits: write it again"
                )
            self._maps[number] = stored
        return self._maps[number]

    @property
    def documents(self) -> np.ndarray:
        """Where documents begin, (documents,) int64, counted from this part's first token."""
        starts = [
            begin + np.array(shard["documents"], dtype=np.int64)
            for begin, shard in zip(self._starts[:-1], self._shards, strict=True)
        ]
        every = np.concatenate(starts)
        return every[(every >= self._first) & (every < self._last)] - self._first

    def part(self, start: int, stop: int) -> TokenShards:
        """Return the same shards, seen as only the tokens from ``start`` to before ``stop``.

        Raises:
            ValueError: when they are not all there, or none are asked for.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"tokens {start} to {stop}: must lie between 0 and {len(self):,}")
        part = copy(self)
        part._first, part._last = self._first + start, self._first + stop
        return part

    def verify(self) -> None:
        """Compare the SHA-256 of every shard now.

        Raises:
            CorruptAssetError: for the first one that is damaged.
        """
        for number, shard in enumerate(self._shards):
            _check_shard(self.folder, number, shard)
