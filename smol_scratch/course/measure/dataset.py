"""Notebook 07's measurements: what counting can reach, and what it writes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

Row = tuple[int, ...]


def rows(tokens: Sequence[int], n: int) -> Counter[Row]:
    """Count the n-grams: every run of ``n`` tokens."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def entropy(tokens: Sequence[int], n: int) -> float:
    """Return the conditional entropy of a token after the ``n - 1`` before it, in nats per token.

    Counted on the text and used on the same text: what a table reaches that has seen the answers.
    """
    counts, contexts = rows(tokens, n), Counter[Row]()
    for row, count in counts.items():
        contexts[row[:-1]] += count
    total = sum(counts.values())
    return -sum(c * math.log(c / contexts[row[:-1]]) for row, c in counts.items()) / total


class _Discounted:
    """One order of a Kneser–Ney model: counts less a discount, and what that leaves to share."""

    def __init__(self, counts: Counter[Row]) -> None:
        self.counts = counts
        of_counts = Counter(min(count, 5) for count in counts.values())
        y = of_counts[1] / max(of_counts[1] + 2 * of_counts[2], 1)
        self.discount = [0.0] + [
            max(i - (i + 1) * y * of_counts[i + 1] / max(of_counts[i], 1), 0.0) for i in (1, 2, 3)
        ]
        self.total, self.left = Counter[Row](), Counter[Row]()
        for row, count in counts.items():
            self.total[row[:-1]] += count
            self.left[row[:-1]] += self.discount[min(count, 3)]  # type: ignore[assignment]

    def probability(self, row: Row, shorter: float) -> float:
        """Return the probability of a row's last token, given that with one token less to see."""
        total = self.total[row[:-1]]
        if not total:
            return shorter
        count = self.counts[row]
        kept = max(count - self.discount[min(count, 3)], 0.0)
        return (kept + self.left[row[:-1]] * shorter) / total


def kneser_ney(
    train: Sequence[int], held: Sequence[int], order: int, vocab_size: int, *, start: int = 0
) -> float:
    """Return the loss of a table of runs of ``order`` tokens on text that was not counted.

    Interpolated, with three discounts (Chen and Goodman, 1999). A shorter context counts in how
    many different surroundings a token occurs, not how often.

    Args:
        train: the text that is counted.
        held: the text that is predicted.
        order: tokens in a row, the predicted one included.
        vocab_size: entries of the vocabulary; before anything is counted all are equally likely.
        start: the first token of ``held`` that is predicted; at least ``order - 1`` are seen.

    Returns:
        Nats per token.

    Source: Kneser and Ney, 1995.
    """
    longer = rows(train, order)
    levels = [_Discounted(longer)]
    for _ in range(order - 1):
        longer = Counter(row[1:] for row in longer)
        levels.append(_Discounted(longer))
    levels.reverse()
    surprise, first = 0.0, max(start, order - 1)
    for i in range(first, len(held)):
        p = 1 / vocab_size
        for n, level in enumerate(levels):
            p = level.probability(tuple(held[i - n : i + 1]), p)
        surprise -= math.log(p)
    return surprise / (len(held) - first)


def babble(tokens: Sequence[int], n: int, length: int, seed: int) -> list[int]:
    """Write with a table of runs of ``n`` tokens: each next one as often as it followed.

    Args:
        tokens: the text that is counted.
        n: tokens in a row.
        length: tokens to write.
        seed: of Python's own generator, which is the same on every machine.
    """
    rng = random.Random(seed)
    follow: dict[Row, Counter[int]] = {}
    for row, count in rows(tokens, n).items():
        follow.setdefault(row[:-1], Counter())[row[-1]] += count
    written = list(tokens[: n - 1])
    for _ in range(length):
        after = follow.get(tuple(written[len(written) - n + 1 :])) or follow[()]
        sums = list(accumulate(after.values()))
        place = rng.randrange(sums[-1])
        written.append(next(t for t, s in zip(after, sums, strict=True) if s > place))
    return written[n - 1 :]


@torch.no_grad()
def losses(model: torch.nn.Module, pieces: Tensor) -> Tensor:
    """Return a model's loss on each of several sequences, in nats per token.

    Args:
        model: called as ``model(idx, targets)``.
        pieces: (sequences, T + 1).

    Returns:
        (sequences,).
    """
    return torch.stack([model(piece[None, :-1], piece[None, 1:])[1] for piece in pieces])


def chosen_tenth(sequences: int, seed: int, part: int = 10) -> list[int]:
    """Choose one in ``part`` of so many sequences, in order."""
    return sorted(random.Random(seed).sample(range(sequences), sequences // part))
