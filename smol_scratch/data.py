"""Tokens to batches.

Letters: B sequences in a batch, T tokens in a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from smol_scratch.shards import TokenShards


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
        whole = dict.fromkeys(self.state_dict(), int)
        if not isinstance(state, dict) or {n: type(value) for n, value in state.items()} != whole:
            raise ValueError(
                f"state={state!r:.99}: is no state of a DataLoaderLite; it has the whole numbers "
                f"{', '.join(whole)}"
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
    if isinstance(tokens, str | bytes | Mapping) or not hasattr(tokens, "__getitem__"):
        raise TypeError(
            f"tokens={type(tokens).__name__}: must be token numbers in order, as tokenizer.encode "
            "gives them: a list, an array, a tensor or TokenShards"
        )
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
