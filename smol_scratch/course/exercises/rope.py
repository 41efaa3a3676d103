"""Checkers for notebook 02, RoPE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure.rope import RopeOnNeighbours
from smol_scratch.hub import halves_from_neighbours, neighbours_from_halves
from smol_scratch.model import RotaryPositionalEmbedding

_LATER = {"query at 2, key at 9": -1, "query at 9, key at 2": 1}


@exercise
def check_later_key(answer: Mapping[str, float]) -> str:
    """Expect the scores of the query (2, 1) and the key (3, 1), a quarter turn per position."""
    if not isinstance(answer, Mapping) or set(answer) != set(_LATER):
        raise Hint(f"a dictionary with {' and '.join(map(repr, _LATER))} is wanted")
    found = {name: float(answer[name]) for name in _LATER}
    for name, score in found.items():
        if math.isclose(score, 7, abs_tol=1e-3):
            raise Hint(f"{name}: that is the score with no turn at all, at offset 0")
        if math.isclose(score, -7, abs_tol=1e-3):
            raise Hint(f"{name}: that is half a turn, offset 2 or -2")
    first, second = found.values()
    if math.isclose(first, second, abs_tol=1e-3):
        raise Hint("both the same: the offsets are -7 and +7, and their sign counts")
    if math.isclose(first, 1, abs_tol=1e-3) and math.isclose(second, -1, abs_tol=1e-3):
        raise Hint("the two are exchanged: the offset is the query's position minus the key's")
    for name, score in found.items():
        if not math.isclose(score, _LATER[name], abs_tol=1e-3):
            raise Hint(f"{name}: {score:g} is not it. Seven quarters back are one forwards")
    return "the score sees the signed offset, and one pair takes -7 for 1"


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
        if torch.allclose(found, rope(stored), atol=1e-4):
            raise Hint("each key was turned by its own place in the tensor; all turn by the same n")
        if not torch.allclose(found, expected, atol=1e-4):
            raise Hint(
                "not the keys of n positions earlier. Every key turns back by the same angles, "
                "those of position n, wherever it stands"
            )
    return "rotations add up, so a stored key moves without being computed again"


@exercise
def check_back_to_halves(answer: Callable[[Tensor, int], Tensor]) -> str:
    """Expect a function (rows for neighbours, head_dim) -> the same rows, for halves."""
    for heads, head_dim in ((3, 8), (2, 64)):
        weight = torch.arange(heads * head_dim * 5.0).view(-1, 5)  # (heads · D, C)
        stored = neighbours_from_halves(weight, head_dim)
        found = answer(stored.clone(), head_dim)
        if not isinstance(found, Tensor) or found.shape != weight.shape:
            raise Hint(f"the result must be a tensor of the weight's shape, {tuple(weight.shape)}")
        if torch.equal(found, stored):
            raise Hint("the rows did not move")
        if torch.equal(found, neighbours_from_halves(stored, head_dim)):
            raise Hint("that is the same step once more; it has to be undone")
        if torch.equal(found, halves_from_neighbours(stored, heads * head_dim)):
            raise Hint("that takes all heads for one: reorder within each head of head_dim rows")
        if not torch.equal(found, weight):
            raise Hint(
                "the rows are not those for halves. Rows 0, 2, 4, … of a head come first, then "
                "rows 1, 3, 5, …, and every row stays whole"
            )
    return "what a reader of GGUF files does with every query and key matrix"


_FOUND = {"theta": 250_000.0, "pairs": "neighbours", "direction": "backwards"}


def mystery_rope() -> RotaryPositionalEmbedding:
    """Return a rotation for heads of 64 channels whose settings nobody wrote down."""
    rope = RopeOnNeighbours(64, 512, _FOUND["theta"])
    rope.sin = -rope.sin
    return rope


@exercise
def check_mystery(answer: Mapping[str, Any]) -> str:
    """Expect the theta, the pairs and the direction of ``mystery_rope()``."""
    if not isinstance(answer, Mapping) or set(answer) != set(_FOUND):
        raise Hint('a dictionary with "theta", "pairs" and "direction" is wanted')
    if answer["pairs"] != _FOUND["pairs"]:
        raise Hint("the pairs: feed it a 1 in channel 0 and zeros; where does the rest appear?")
    if answer["direction"] != _FOUND["direction"]:
        raise Hint("the direction: turn (1, 0) by one position. Is the second number above 0?")
    theta = float(answer["theta"])
    if theta < 1.2:
        raise Hint("pair 0 turns by 1 radian whatever theta; look at pair 1 or a later one")
    if math.isclose(theta, _FOUND["theta"] ** (1 / 32), rel_tol=1e-3):
        raise Hint("that is theta to the power 2/64; theta itself is its 32nd power")
    if not math.isclose(theta, _FOUND["theta"], rel_tol=0.01):
        raise Hint(f"theta is not {theta:,.0f}: pair i turns by theta ** (-2 i / 64) per position")
    return "three settings read off a black box, with a handful of probes"
