"""Checkers for notebook 11, generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import explicit_attention
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.generation import apply_temperature, keep_min_p, keep_top_p


@exercise
def check_tokens_per_second(answer: float) -> str:
    """Expect the limit for 1.7 billion weights of 4.5 bits at 50 GB per second."""
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, tokens per second")
    right = 50e9 / (1.7e9 * 4.5 / 8)
    slips = {
        50 / 1.7 / 4.5: "4.5 are bits; memory's bandwidth is given in bytes",
        50 / 1.7 / 4: "that is float32, four bytes per weight; these have 4.5 bits",
        50 / 1.7 / 2: "that is bfloat16, two bytes per weight; these have 4.5 bits",
        50 / 1.7: "that is one byte per weight; how many bytes are 4.5 bits?",
        50 / 1.7 / 4.5 * 64: "eight bits are one byte: divide the bits by 8 once",
        1.7 * 4.5 / 8 / 50: "that is seconds per token; the question asks for tokens per second",
        50 / (1.7 * 4.5 / 8) / 2: "each weight is read once per token, not once per operation",
    }
    for value, hint in slips.items():
        if math.isclose(answer, value, rel_tol=0.02):
            raise Hint(hint)
    if not math.isclose(answer, right, rel_tol=0.02):
        raise Hint("bytes per second, divided by the bytes that one token has to read")
    return "no program can be faster on that laptop, whatever its processor"


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


@exercise
def check_one_head(answer: Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]) -> str:
    """Expect a function (q, k, v, cache) -> y that attends to all tokens so far."""
    generator = torch.Generator().manual_seed(7)
    for T, D in ((1, 4), (6, 8), (9, 16)):
        q, k, v = (torch.randn(T, D, generator=generator) for _ in range(3))
        whole = explicit_attention(q[None, None], k[None, None], v[None, None])[0, 0]  # (T, D)
        cache: dict[str, Tensor] = {}
        for t in range(T):
            found = answer(q[t].clone(), k[t].clone(), v[t].clone(), cache)
            if not isinstance(found, Tensor) or found.shape != (D,):
                raise Hint(f"token {t + 1}: return a tensor of shape (D,), here ({D},)")
            if torch.allclose(found, whole[t], atol=1e-5):  # sums of 16 numbers of size 1
                continue
            unscaled = (k[: t + 1] @ q[t]).softmax(0) @ v[: t + 1]
            if torch.allclose(found, unscaled, atol=1e-5):
                raise Hint("divide the scores by the square root of D before the softmax")
            if t and torch.allclose(found, v[t], atol=1e-5):
                raise Hint("the second token sees only itself: does your cache keep anything?")
            earlier = (k[:t] @ q[t] / D**0.5).softmax(0) @ v[:t] if t else None
            if earlier is not None and torch.allclose(found, earlier, atol=1e-5):
                raise Hint("a token also attends to itself: append its key and value first")
            raise Hint(f"token {t + 1} of {T} is wrong: compare softmax(K q / √D) V by hand")
        if T > 1 and not cache:
            raise Hint("right, but the cache is empty: what was stored must be in `cache`")
    return "each step attends to everything so far, and computes one row"


def mystery(logits: Tensor) -> Tensor:
    """Return the probabilities that a program draws from, (B, V), given scores (B, V).

    What it does with temperature and top-p is what the exercise asks: find out from outside.
    """
    return F.softmax(apply_temperature(keep_top_p(logits.double(), 0.75), 1.6), dim=-1)


@exercise
def check_mystery(answer: Mapping[str, Any]) -> str:
    """Expect temperature, top_p, and which of the two comes "first"."""
    names = ("temperature", "top_p", "first")
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise Hint(f"answer with a dictionary of {', '.join(names)}")
    temperature, top_p = float(answer["temperature"]), float(answer["top_p"])
    if math.isclose(temperature, 1 / 1.6, abs_tol=0.02):
        raise Hint("the temperature's reciprocal: it divides the scores")
    if not math.isclose(temperature, 1.6, abs_tol=0.03):
        raise Hint(
            "temperature: give it two tokens close enough that both stay, and compare the "
            "logarithm of their ratio with the difference of their scores"
        )
    if math.isclose(top_p, 0.665, abs_tol=0.01):
        raise Hint("top_p: that would be it if the temperature came first; try equal scores")
    if not math.isclose(top_p, 0.75, abs_tol=0.011):
        raise Hint("top_p: of a thousand tokens with equal scores, how many stay?")
    if answer["first"] == "temperature":
        raise Hint(
            "first: move two scores apart until the second token goes. What probability did the "
            "other one have then, with the temperature and without it?"
        )
    if answer["first"] != "top_p":
        raise Hint('first must be "temperature" or "top_p"')
    return "top-p cut the model's own list, and the heat came too late to let anybody in"
