"""What a model knows, in numbers: loss, perplexity, bits a byte, and what it repeats by heart.

Letters: B sequences at a time, T tokens in a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from smol_scratch.data import Tokens


def evenly_spaced(tokens: Tokens, T: int, sequences: int) -> torch.Tensor:
    """Cut sequences out of a text at even distances, so that a few stand for all of it.

    Args:
        tokens: the text, at least T + 1 of them.
        T: tokens in a sequence.
        sequences: how many; fewer are returned where the text holds fewer without overlap.

    Returns:
        (sequences, T + 1) int64: each with the token that follows it.

    Raises:
        ValueError: when the text is shorter than one sequence.
    """
    room = (len(tokens) - 1) // T
    if room < 1:
        raise ValueError(
            f"{len(tokens):,} tokens are less than one sequence: {T + 1} are needed; take a longer "
            "held-out text or shorter sequences"
        )
    sequences = min(sequences, room)
    starts = [T * (room * i // sequences) for i in range(sequences)]
    rows = [np.asarray(tokens[start : start + T + 1]).astype(np.int64) for start in starts]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def mean_loss(
    model: torch.nn.Module,
    rows: torch.Tensor,
    B: int = 4,
    autocast: torch.dtype | None = None,
) -> float:
    """Return the mean cross-entropy of the next token, in nats a token.

    Dropout is off while it runs, and no generator is touched.

    Args:
        model: called as ``model(idx, targets)``; returns (logits, loss).
        rows: (sequences, T + 1), as from ``evenly_spaced``.
        B: sequences at a time.
        autocast: type of the matrix products; the weights' own where None.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        for batch in rows.split(B):
            batch = batch.to(device)
            context = torch.autocast(device.type, autocast) if autocast else nullcontext()
            with context:
                loss = model(batch[:, :-1], batch[:, 1:])[1]
            total += loss.item() * len(batch)
    finally:
        model.train(was_training)
    return total / len(rows)


def perplexity(loss: float) -> float:
    """Return among how many equally likely tokens the model seems to choose: e ** loss."""
    return math.exp(loss)


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """Turn nats a token into bits a byte, which does not depend on the tokenizer.

    Args:
        loss: nats a token.
        tokens: how many tokens the text has.
        n_bytes: how many bytes it has in UTF-8.
    """
    return loss / math.log(2) * tokens / n_bytes


def longest_copies(sample: Sequence[int], text: Tokens) -> list[int]:
    """Say for each token of a sample how long the copied run is that it belongs to.

    A run is copied when it stands in the text, token for token; each token counts the longest
    such run around it. Zero: not even this token stands there.

    Args:
        sample: token numbers.
        text: token numbers of the training text.

    Returns:
        One length for each token of the sample.
    """
    numbers = np.asarray(text[0 : len(text)]).astype(np.int64)
    places: dict[int, np.ndarray] = {}
    best = [0] * len(sample)
    for start, token in enumerate(sample):
        if token not in places:
            places[token] = np.flatnonzero(numbers == token)
        ends, length = places[token] + 1, min(1, len(places[token]))
        while len(ends) and start + length < len(sample):
            ends = ends[ends < len(numbers)]
            ends = ends[numbers[ends] == sample[start + length]] + 1
            if not len(ends):
                break
            length += 1
        for place in range(start, start + length):
            best[place] = max(best[place], length)
    return best


def copied_share(sample: Sequence[int], text: Tokens, at_least: int) -> float:
    """Return the share of a sample's tokens that stand in runs copied word for word.

    Args:
        sample: token numbers.
        text: token numbers of the training text.
        at_least: shortest run that counts as copied, in tokens.
    """
    if not len(sample):
        raise ValueError("sample has no tokens: nothing can be copied or new")
    return sum(length >= at_least for length in longest_copies(sample, text)) / len(sample)
