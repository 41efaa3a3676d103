"""Notebook 07's measurements: what counting can reach, and what it writes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Row = tuple[int, ...]


def rows(tokens: Sequence[int], n: int) -> Counter[Row]:
    """Count the n-grams: every run of ``n`` tokens."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


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


class KneserNey:
    """A smoothed table of runs of ``order`` tokens, which gives every token a probability.

    Interpolated, with three discounts: the modified form of Chen and Goodman, 1999. A shorter
    context counts in how many different surroundings a token occurs, not how often.

    Source: Kneser and Ney, 1995.
    """

    def __init__(self, train: Sequence[int], order: int, vocab_size: int) -> None:
        """Count.

        Args:
            train: the text that is counted.
            order: tokens in a row, the predicted one included.
            vocab_size: entries of the vocabulary; below the shortest table all are equally likely.
        """
        longer = rows(train, order)
        levels = [_Discounted(longer)]
        for _ in range(order - 1):
            longer = Counter(row[1:] for row in longer)
            levels.append(_Discounted(longer))
        self.levels = levels[::-1]  # the shortest first
        self.vocab_size = vocab_size

    @property
    def discounts(self) -> list[float]:
        """What the longest table takes off the counts 1, 2, and 3 or more."""
        return self.levels[-1].discount[1:]

    def surprises(self, tokens: Sequence[int], start: int = 0) -> list[float]:
        """Return the surprise of each token, in nats.

        Args:
            tokens: any text.
            start: the first token that is predicted; at least ``order - 1`` are seen.
        """
        found = []
        for i in range(max(start, len(self.levels) - 1), len(tokens)):
            p = 1 / self.vocab_size
            for n, level in enumerate(self.levels):
                p = level.probability(tuple(tokens[i - n : i + 1]), p)
            found.append(-math.log(p))
        return found

    def loss(self, tokens: Sequence[int], start: int = 0) -> float:
        """Return the mean surprise, in nats per token."""
        surprises = self.surprises(tokens, start)
        return math.fsum(surprises) / len(surprises)


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


def only_in_one(first: Sequence[str], second: Sequence[str]) -> tuple[set[int], set[int]]:
    """Return the places of the tokens that only one of two cuts of the same text has."""
    spans = []
    for tokens in (first, second):
        ends = list(accumulate(map(len, tokens)))
        spans.append(list(pairwise([0, *ends])))
    return (
        {i for i, span in enumerate(spans[0]) if span not in spans[1]},
        {i for i, span in enumerate(spans[1]) if span not in spans[0]},
    )
