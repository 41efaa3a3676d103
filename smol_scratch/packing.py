"""Batches out of stored documents, in an order that a seed decides and nothing stores.

Documents stand one after the other, an end-of-text token after each, and the row of tokens that
they make is cut into sequences: nothing is padded. Letters: B sequences in a batch, T tokens in a
sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.model import GroupedQueryAttention, SmolLM2
from smol_scratch.shards import TokenShards

Order = Literal["document", "block", "stored"]


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return where places go in a pseudo-random order of ``size`` places, each to its own.

    A Feistel network of four rounds over the next power of four, walked until it comes back below
    ``size``: the order is never stored, and whole numbers give the same one on every machine.

    Args:
        places: (n,) from 0 to below ``size``.
        size: of the order.
        seed: another seed, another order.

    Returns:
        (n,) int64.

    Source: Luby and Rackoff, 1988, for the rounds; Black and Rogaway, 2002, for the walk.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    digest = hashlib.sha256(f"{seed}".encode()).digest()
    keys = [np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8], "little")) for i in range(4)]
    at, open_ = places.astype(np.uint64), np.ones(len(places), bool)
    while open_.any():
        left, right = at[open_] >> half, at[open_] & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps round
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
        at[open_] = (left << half) | right
        open_ = at >= np.uint64(size)
    return at.astype(np.int64)


class Documents:
    """Some documents of a folder of shards, one after the other, read by position.

    ``documents[a:b]`` is an array, (b - a,) uint16: tokens, and only these are read.

    Attributes:
        shards: where they are stored.
        numbers: of the documents, in order, (n,).
    """

    def __init__(self, shards: TokenShards, numbers: np.ndarray) -> None:
        self.shards, self.numbers = shards, numbers
        ends = shards.ends
        starts = np.concatenate((ends[:1] * 0, ends[:-1]))
        self._starts = starts[numbers]
        self._until = np.cumsum(ends[numbers] - self._starts)  # behind each, in this order

    def __len__(self) -> int:
        return int(self._until[-1]) if len(self._until) else 0

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield which documents lie from ``start`` to ``stop``: index here, and where in shards."""
        i = int(np.searchsorted(self._until, start, side="right"))
        while start < stop:
            end = min(stop, int(self._until[i]))
            before = int(self._until[i - 1]) if i else 0
            at = int(self._starts[i]) + start - before
            yield i, at, at + end - start
            start, i = end, i + 1

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: documents are read in steps of 1")
        parts = [self.shards[a:b] for _, a, b in self._spans(start, max(start, stop))]
        return np.concatenate([np.empty(0, np.uint16), *parts])

    def belongs(self, start: int, stop: int) -> np.ndarray:
        """Return for each token from ``start`` to ``stop`` a number that its document has alone."""
        spans = list(self._spans(start, stop))
        return np.repeat([i for i, _, _ in spans], [b - a for _, a, b in spans])


def held_out_by_hash(shards: TokenShards, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the documents to train on and of those held out.

    A document's own text decides, by its SHA-256: the same document is on the same side in every
    folder, in every order, whatever else is there, and so are its exact repetitions.

    Raises:
        ValueError: when one of the two would be empty.
    """
    held = shards.digests < np.uint64(int(share * 2**64))
    if share and (held.all() or not held.any()):
        raise ValueError(
            f"held_out={share:g}: of {len(held):,} document(s) it takes {int(held.sum()):,}; store "
            "more and shorter ones, or choose another share"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


class Source:
    """Sequences of T + 1 tokens out of documents, shuffled anew in every pass.

    Attributes:
        documents: in the order in which they are stored.
        sequences: in a pass.
    """

    def __init__(self, documents: Documents, T: int, order: Order, seed: int) -> None:
        self.documents, self.T, self.order, self.seed = documents, T, order, seed
        self.sequences = (len(documents) - 1) // T
        if self.sequences < 1:
            raise ValueError(
                f"{documents.shards.folder}: {len(documents):,} tokens to train on are less than "
                f"one sequence, {T + 1}; take shorter sequences, or more text"
            )
        self._pass, self._mixed = -1, documents

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a sequence of the endless row of passes.

        Args:
            number: of the sequence, from 0.

        Returns:
            Its tokens and the one that follows, (T + 1,) int64, and for each of the T the number
            that all tokens of its document have, (T,).
        """
        passes, place = divmod(number, self.sequences)
        seed = self.seed + 0x5851F42D * passes
        documents = self.documents
        if self.order == "block":
            [place] = shuffled(np.array([place]), self.sequences, seed).tolist()
        elif self.order == "document":
            if self._pass != passes:
                count = len(documents.numbers)
                mixed = documents.numbers[shuffled(np.arange(count), count, seed)]
                self._pass, self._mixed = passes, Documents(documents.shards, mixed)
            documents = self._mixed
        start = place * self.T
        tokens = documents[start : start + self.T + 1].astype(np.int64)
        return tokens, documents.belongs(start, start + self.T)


class PackedLoader:
    """Hand out batches of stored documents; several folders are mixed by their weights.

    What the next batch holds depends only on how many sequences were handed out, so a run goes on
    with the next one, bit for bit, and on another number of processes too: rank r gets the r-th
    batch of B sequences of the W that all ranks take together.

    Attributes:
        drawn: sequences handed out so far by each source, to all ranks.
        step: tokens that all ranks take together.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        B: int,
        *,
        weights: Sequence[float] = (1.0,),
        rank: int = 0,
        world_size: int = 1,
        mask_documents: bool = False,
    ) -> None:
        """Stand before the first sequence.

        Args:
            sources: of sequences, all of the same length.
            B: sequences in a batch of this rank.
            weights: share of each source in the sequences, of any sum.
            rank: of this process, from 0.
            world_size: how many processes share the sequences.
            mask_documents: hand out which document each token belongs to.
        """
        self.sources, self.B, self.rank, self.world_size = list(sources), B, rank, world_size
        self.weights = np.array(weights, dtype=np.float64) / sum(weights)
        self.mask_documents = mask_documents
        self.T = self.sources[0].T
        self.step = B * self.T * world_size
        self.drawn = [0] * len(self.sources)

    @property
    def position(self) -> int:
        """Tokens handed out so far, to all ranks."""
        return sum(self.drawn) * self.T

    @property
    def batches_per_pass(self) -> int:
        """Batches that each rank gets before the documents have been seen about once."""
        return max(1, sum(s.sequences for s in self.sources) // (self.B * self.world_size))

    def next_batch(self) -> tuple[Tensor, ...]:
        """Return the next batch and move on.

        Returns:
            The tokens, (B, T) int64; for each the one that follows it, (B, T) int64; and with
            ``mask_documents`` numbers that tell its document from the others of its row, (B, T).
        """
        rows = []
        for row in range(self.B * self.world_size):
            chosen = self._next_source()
            if row // self.B == self.rank:
                rows.append(self.sources[chosen].read(self.drawn[chosen]))
            self.drawn[chosen] += 1
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in rows]))  # (B, T + 1)
        batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if not self.mask_documents:
            return batch
        return *batch, torch.from_numpy(np.stack([numbers for _, numbers in rows]))

    def _next_source(self) -> int:
        """Return the source that is furthest behind its share."""
        behind = self.weights * (sum(self.drawn) + 1) - self.drawn
        return int(np.argmax(behind))

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands: plain numbers, the same on every rank."""
        return {"drawn": list(self.drawn), "sequences": [s.sequences for s in self.sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where another loader stood.

        Raises:
            ValueError: for what is no state of a loader over the same documents and the same
                length of sequences. The loader then stays where it is.
        """
        here, drawn = self.state_dict(), state.get("drawn")
        if (
            set(state) != set(here)
            or not isinstance(drawn, list)
            or len(drawn) != len(self.drawn)
            or not all(type(count) is int and count >= 0 for count in drawn)
        ):
            raise ValueError(f"{state}: is no state of a loader of {len(self.drawn)} folder(s)")
        if state["sequences"] != here["sequences"]:
            raise ValueError(
                f"the place was saved among {state['sequences']} sequences and these are "
                f"{here['sequences']}: go on with the same shards and the same --sequence-length"
            )
        self.drawn = list(drawn)


class Joined:
    """Tokens of several parts, one after the other, read by position."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = [part for part in parts if len(part)]
        self._until = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._until[-1] if self._until else 0

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(len(self))
        found = [np.empty(0, np.uint16)]
        for part, until in zip(self.parts, self._until, strict=True):
            before = until - len(part)
            if start < until and before < stop:
                found.append(part[max(start - before, 0) : min(stop, until) - before])
        return np.concatenate(found)


@dataclass(frozen=True)
class Mixture:
    """Documents to train on, out of one folder of shards or several.

    Attributes:
        parts: the documents of each.
        weights: their shares in the sequences, of any sum.
        order: of documents, of blocks (sequences where they stand), or as stored.
        seed: of the order.
        mask_documents: whether attention ends where a document does.
    """

    parts: tuple[Documents, ...]
    weights: tuple[float, ...]
    order: Order = "document"
    seed: int = 0
    mask_documents: bool = False

    @classmethod
    def read(
        cls,
        folders: Sequence[Path],
        fingerprint: str,
        *,
        held_out: float = 0.0,
        weights: Sequence[float] = (),
        order: Order = "document",
        seed: int = 0,
        mask_documents: bool = False,
    ) -> tuple[Mixture, Joined | None]:
        """Open folders of shards; return what to train on, and what is held out.

        Args:
            folders: as ``write_shards`` made them.
            fingerprint: of the tokenizer that the tokens are meant for.
            held_out: share of the documents, chosen by their SHA-256.
            weights: share of each folder in the sequences; by its tokens where not told.
            order: of documents, of blocks, or as stored.
            seed: of the order.
            mask_documents: whether attention ends where a document does.

        Raises:
            OSError, ValueError: for folders that cannot be used, and an impossible share.
        """
        every = [TokenShards(folder, fingerprint) for folder in folders]
        chosen = [held_out_by_hash(shards, held_out) for shards in every]
        pairs = list(zip(every, chosen, strict=True))
        parts = tuple(Documents(shards, train) for shards, (train, _) in pairs)
        mixture = cls(parts, tuple(weights) or tuple(map(len, parts)), order, seed, mask_documents)
        if not held_out:
            return mixture, None
        return mixture, Joined([Documents(shards, held) for shards, (_, held) in pairs])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def sha256(self) -> str:
        """What tells this text from another: which shards, and how many of their documents."""
        said = [(part.shards.sha256, len(part.numbers)) for part in self.parts]
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def loader(self, B: int, T: int, *, rank: int = 0, world_size: int = 1) -> PackedLoader:
        """Return what hands out batches, standing before the first."""
        sources = [Source(part, T, self.order, self.seed + i) for i, part in enumerate(self.parts)]
        return PackedLoader(
            sources,
            B,
            weights=self.weights,
            rank=rank,
            world_size=world_size,
            mask_documents=self.mask_documents,
        )


class WithinDocuments:
    """Attention that sees only a token's own document, where it is told which that is.

    Attributes:
        attend: what attends otherwise.
        mask: which key each query may see, (B, 1, T, T) booleans, or None.
    """

    def __init__(self, attend: Any) -> None:
        self.attend = attend
        self.mask: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        """Attend as ``fast_attention`` does, (B, H, T, D), within documents."""
        if self.mask is None:
            return self.attend(q, k, v, dropout_p)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, dropout_p=dropout_p, enable_gqa=True
        )


def same_document(documents: Tensor) -> Tensor:
    """Say which key each query may see: those at its own place and before, in its own document.

    Args:
        documents: a number for each token that its document has alone, (B, T).

    Returns:
        Booleans, (B, 1, T, T); True where attention is allowed.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones_like(same[0, 0]).tril()


@contextmanager
def attending_within(model: SmolLM2, documents: Tensor | None = None) -> Iterator[None]:
    """Let a model's attention see only a token's own document.

    Positions stay those in the sequence: attention depends on distances alone.

    Args:
        model: whose layers attend.
        documents: a number for each token that its document has alone, (B, T); None: all is seen.
    """
    if documents is None:
        yield
        return
    mask = same_document(documents)
    layers = [m for m in model.modules() if isinstance(m, GroupedQueryAttention)]
    told = []
    for layer in layers:
        attend = layer.attend
        if not isinstance(attend, WithinDocuments):
            attend = WithinDocuments(attend)
            layer.attend = attend
        attend.mask = mask
        told.append(attend)
    try:
        yield
    finally:
        for attend in told:
            attend.mask = None
