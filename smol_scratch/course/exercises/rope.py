"""Checkers for notebook 02, RoPE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import RotaryPositionalEmbedding


@exercise
def check_slowest(answer: float) -> str:
    """Expect the factor by which pair 31 of 32 slows down when theta grows tenfold."""

    def wavelength(theta: float) -> float:
        return 2 * math.pi * theta ** (62 / 64)

    expected = wavelength(100_000.0) / wavelength(10_000.0)
    if abs(answer - 10) < 1e-6:
        raise Hint("close: 10 would belong to a pair with i = 32, and the last one has i = 31")
    if abs(answer - 1) < 1e-6:
        raise Hint("that is pair 0, whose exponent is 0: it never notices theta")
    if abs(answer - expected) > 0.01:
        raise Hint(
            f"{answer} is not it. The wavelength is 2π times theta to the power 2 i / 64: put in "
            "i = 31 and divide the two"
        )
    return "only the slow pairs feel theta, and none of them slows down by all of the ten"


@exercise
def check_shift_keys(answer: Callable[[Tensor, RotaryPositionalEmbedding, int], Tensor]) -> str:
    """Expect a function (turned keys, rope, n) -> the keys as if each stood n positions earlier."""
    generator = torch.Generator().manual_seed(3)
    for theta, n in ((100_000.0, 5), (100.0, 9)):
        rope = RotaryPositionalEmbedding(16, 64, theta)
        content = torch.randn(2, 3, 20, 16, generator=generator)  # (B, heads, T, D)
        stored = rope(content, start=n)
        found = answer(stored.clone(), rope, n)
        expected = rope(content)
        if not isinstance(found, Tensor) or found.shape != stored.shape:
            raise Hint(f"the result must be a tensor of the keys' shape, {tuple(stored.shape)}")
        if torch.allclose(found, rope(content, start=2 * n), atol=1e-4):
            raise Hint("the keys went n positions forward; turn them the other way")
        if torch.allclose(found, stored):
            raise Hint("the keys did not move")
        if not torch.allclose(found, expected, atol=1e-4):
            raise Hint(
                "not the keys of n positions earlier. Every key turns back by the same angles, "
                "those of position n, wherever it stands"
            )
    return "rotations add up, so a stored key moves without being computed again"


@exercise
def check_theta(answer: float) -> str:
    """Expect the smallest multiple of 10,000 that leaves 12 pairs unturned in 32,768 positions."""

    def unturned(theta: float) -> int:
        return sum(2 * math.pi * theta ** (2 * i / 64) > 32_768 for i in range(32))

    if answer % 10_000:
        raise Hint(f"{answer} is no multiple of 10,000")
    if answer <= 0:
        raise Hint("theta must be above 0")
    if unturned(answer) < 12:
        raise Hint(f"with theta {answer:,.0f} only {unturned(answer)} pairs stay below one turn")
    if unturned(answer - 10_000) >= 12:
        raise Hint("these are enough pairs, but a smaller multiple of 10,000 does it too")
    return "four times the context asks for almost nine times the theta"
