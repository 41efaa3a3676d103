"""Checkers for notebook 11, generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.generation import filter_logits, keep_min_p


@exercise
def check_hot_limit(answer: float) -> str:
    """Expect the likeliest token's probability for top-k 3 and a temperature without bound."""
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, a probability")
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]).log() * 2
    ids = torch.zeros(1, 1, dtype=torch.int64)
    limit = F.softmax(filter_logits(logits, ids, temperature=1e6, top_k=3), dim=-1).max().item()
    if math.isclose(answer, 1 / 5, abs_tol=1e-3):
        raise Hint("that is the limit without top-k; how many tokens are left with it?")
    if math.isclose(answer, 25 / 50, abs_tol=1e-3):
        raise Hint("that is temperature 1; without bound, every difference between scores vanishes")
    if not math.isclose(answer, limit, abs_tol=5e-3):
        raise Hint("divide the scores by a very large number: what is e to the power of each?")
    return "heat flattens what is left, and top-k still says what is left"


@exercise
def check_min_p(answer: Callable[[Tensor, float], Tensor]) -> str:
    """Expect a function (logits, min_p) -> logits that equals ``keep_min_p``."""
    generator = torch.Generator().manual_seed(41)
    for shift, min_p in ((0.0, 0.1), (0.0, 0.5), (-30.0, 0.02), (7.0, 1.0)):
        logits = 4 * torch.randn(3, 200, generator=generator) + shift
        before, expected = logits.clone(), keep_min_p(logits, min_p)
        found = answer(logits, min_p)
        if not isinstance(found, Tensor) or found.shape != logits.shape:
            raise Hint("the result must be a tensor of the shape of logits, (B, V)")
        if not torch.equal(logits, before):
            raise Hint("your function changes its input: use masked_fill without an underscore")
        if torch.equal(found, expected):
            continue
        if not torch.equal(found[found.isfinite()], logits[found.isfinite()]):
            raise Hint("what stays must keep its score, what goes must be minus infinity")
        if torch.equal(found, logits.masked_fill(logits < min_p * logits.amax(), -math.inf)):
            raise Hint("min_p times the largest score is not the score of min_p times as much")
        if torch.equal(found, logits.masked_fill(logits < logits.amax() + math.log(min_p),
                                                 -math.inf)):  # fmt: skip
            raise Hint("every row has its own largest score: amax(-1, keepdim=True)")
        kept, wanted = int(found.isfinite().sum()), int(expected.isfinite().sum())
        raise Hint(
            f"min_p={min_p}: you keep {kept} tokens of 600, it should be {wanted}. What is the "
            "logarithm of the quotient of two probabilities, in scores?"
        )
    return "in scores min-p is a distance from the top, and needs no softmax"


def _language(seed: int, V: int) -> Callable[[list[int]], Tensor]:
    """Return a made-up language: the logarithms of the next token's probabilities after ids."""

    def score(ids: list[int]) -> Tensor:
        number = seed
        for token in ids:
            number = (number * 31 + token + 1) % 1_000_003
        generator = torch.Generator().manual_seed(number)
        return F.log_softmax(2 * torch.randn(V, generator=generator, dtype=torch.double), dim=-1)

    return score


def _beam_search(
    score: Callable[[list[int]], Tensor], start: list[int], beams: int, length: int
) -> list[int]:
    kept = [(0.0, list(start))]
    for _ in range(length):
        longer = [
            (total + value, [*ids, token])
            for total, ids in kept
            for token, value in enumerate(score(ids).tolist())
        ]
        kept = sorted(longer, key=lambda pair: pair[0], reverse=True)[:beams]
    return kept[0][1]


@exercise
def check_beam_search(
    answer: Callable[[Callable[[list[int]], Tensor], list[int], int, int], list[int]],
) -> str:
    """Expect a function (score, start, beams, length) -> the best text found, start included."""
    V, length = 3, 4
    for seed in range(8):  # in the last, two beams lose the best text
        score, start = _language(seed, V), [seed % V]

        def total(ids: list[int], score: Callable[[list[int]], Tensor] = score) -> float:
            return sum(float(score(ids[:i])[ids[i]]) for i in range(1, len(ids)))

        texts = [start + list(tail) for tail in product(range(V), repeat=length)]
        best = max(texts, key=total)
        for beams in (1, 2, V**length):
            found = answer(score, list(start), beams, length)
            if isinstance(found, Tensor):
                found = found.tolist()
            expected = _beam_search(score, start, beams, length)
            if not isinstance(found, list) or len(found) != len(expected):
                raise Hint(f"return a list of {len(expected)} tokens: start, and {length} new ones")
            if found == expected:
                continue
            if beams == 1:
                raise Hint("with one beam it must be the greedy text")
            if beams == V**length and found != best:
                raise Hint(
                    "with a beam for every possible text it must find the likeliest of all; do "
                    "you add up the logarithms along the whole text?"
                )
            raise Hint(
                f"wrong with {beams} beams: in each round extend every kept text by every token, "
                "and keep the best of all of these together"
            )
    return "one beam is greedy, all beams are a search through everything"
