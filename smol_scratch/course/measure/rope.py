"""Measurements of notebook 02: rotations that are wrong, stretched or rounded, in a real model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.course.measure.replaced import replaced
from smol_scratch.model import RotaryPositionalEmbedding, SmolLM2

THETA = 100_000.0
STRETCHED = ("as released", "interpolated", "NTK-aware")
WRONG = (
    "right",
    "theta 10,000",
    "exponents off by one",
    "turned the other way",
    "neighbours",
    "angles in bfloat16",
    "no rotation",
)
# What of the rounding does the harm, and which pairs an interpolation harms.
ROUNDED = (
    "positions in bfloat16",
    "frequencies in bfloat16",
    "products in bfloat16",
    "cosines in bfloat16",
)
SLOWED = ("all pairs slowed", "pairs 0 to 15 slowed", "pairs 16 to 31 slowed")
SLOWER = 1.5  # times


class RopeOnNeighbours(RotaryPositionalEmbedding):
    """Turn the pairs (0, 1), (2, 3), … as the paper does, in place of the pairs (i, i + D/2)."""

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Turn ``x``, whose first token stands at position ``start``: (B, heads, T, D)."""
        cos, sin = (table[start : start + x.shape[-2]] for table in (self.cos, self.sin))
        first, second = x[..., 0::2], x[..., 1::2]  # (B, heads, T, D/2) each
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.stack(turned, dim=-1).flatten(-2)


def with_angles(angles: Tensor) -> RotaryPositionalEmbedding:
    """Make a rotation for heads of 64 channels out of any table of angles, (positions, 32)."""
    rope = RotaryPositionalEmbedding(64, len(angles))
    rope.cos, rope.sin = angles.float().cos(), angles.float().sin()
    return rope


def frequencies(theta: float = THETA) -> Tensor:
    """Return the angle per position of each of the 32 pairs, in radians."""
    return 1.0 / theta ** (torch.arange(0, 64, 2).float() / 64)


def rotation(kind: str, positions: int) -> RotaryPositionalEmbedding:
    """Make the released rotation, or one with a mistake.

    Args:
        kind: one of ``WRONG``, ``ROUNDED`` (of what enters the table, one thing has 8 significant
            bits) or ``SLOWED`` (some pairs turn by two thirds of their angle).
        positions: how many the table has.
    """
    position, frequency = torch.arange(positions).float(), frequencies()
    if kind == "neighbours":
        return RopeOnNeighbours(64, positions, THETA)
    if kind == "theta 10,000":
        frequency = frequencies(10_000.0)
    elif kind == "exponents off by one":
        frequency = 1.0 / THETA ** (torch.arange(2, 66, 2).float() / 64)
    elif kind == "turned the other way":
        frequency = -frequency
    elif kind == "no rotation":
        frequency = 0 * frequency
    elif kind == "angles in bfloat16":
        return with_angles(torch.outer(position.bfloat16(), frequency.bfloat16()))
    elif kind == "positions in bfloat16":
        position = position.bfloat16().float()
    elif kind == "frequencies in bfloat16":
        frequency = frequency.bfloat16().float()
    elif kind in SLOWED:
        slow = {"all pairs slowed": slice(32), "pairs 0 to 15 slowed": slice(16)}
        frequency[slow.get(kind, slice(16, 32))] /= SLOWER
    angles = torch.outer(position, frequency)
    if kind == "products in bfloat16":
        angles = angles.bfloat16()
    rope = with_angles(angles)
    if kind == "cosines in bfloat16":
        rope.cos, rope.sin = rope.cos.bfloat16().float(), rope.sin.bfloat16().float()
    elif kind not in (*WRONG, *ROUNDED, *SLOWED):
        raise ValueError(f"{kind!r}: must be one of {', '.join((*WRONG, *ROUNDED, *SLOWED))}")
    return rope


def stretched(kind: str, positions: int, factor: float) -> RotaryPositionalEmbedding:
    """Make the released rotation reach ``factor`` times as far, in one of two ways, or not.

    Args:
        kind: "as released"; "interpolated" (every position divided by the factor; Chen et al.,
            2023, arXiv:2306.15595); "NTK-aware" (theta raised so that the slowest pair slows down
            by the factor and the fastest not at all).
        positions: how many the table has.
        factor: above 1.
    """
    position, theta = torch.arange(positions).float(), THETA
    if kind == "interpolated":
        position = position / factor
    elif kind == "NTK-aware":
        theta = THETA * factor ** (64 / 62)
    elif kind not in STRETCHED:
        raise ValueError(f"{kind!r}: must be one of {', '.join(STRETCHED)}")
    return with_angles(torch.outer(position, frequencies(theta)))


def other_rope(model: SmolLM2, rope: RotaryPositionalEmbedding) -> AbstractContextManager[None]:
    """Let a model turn with another rotation, for as long as the ``with`` block lasts."""
    return replaced([block.self_attn for block in model.model.layers], "rope", rope)


def reorder(model: SmolLM2, order: Callable[[Tensor, int], Tensor]) -> None:
    """Put the rows of all query and key matrices into another order, in place.

    Args:
        model: any.
        order: a function of a matrix and the size of a head, such as ``neighbours_from_halves``.
    """
    for block in model.model.layers:
        for linear in (block.self_attn.q_proj, block.self_attn.k_proj):
            linear.weight.data = order(linear.weight.data, model.config.head_dim)


@torch.no_grad()
def losses_with(model: SmolLM2, rope: RotaryPositionalEmbedding, tokens: Tensor) -> Tensor:
    """Return the losses of a model that turns with ``rope``, in nats: (B, T + 1) -> (B, T).

    The context may be longer than the model's own.
    """
    with other_rope(model, rope):
        x = model.model.embed_tokens(tokens[:, :-1])  # (B, T, C)
        for block in model.model.layers:
            x = block(x)
    x, head = model.model.norm(x), model.model.embed_tokens.weight
    # The head in pieces: all the scores of a long text would take gigabytes.
    pieces = zip(x.split(512, dim=1), tokens[:, 1:].split(512, dim=1), strict=True)
    losses = [F.cross_entropy((h @ head.T).float().mT, y, reduction="none") for h, y in pieces]
    return torch.cat(losses, dim=1)


def _by_passage(record: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return each rotation's losses, (passages, stretches)."""
    names = list(dict.fromkeys(row["rotation"] for row in record))
    passages = len({row["passage"] for row in record})
    return {
        name: torch.tensor([row["loss"] for row in record if row["rotation"] == name]).view(
            passages, -1
        )
        for name in names
    }


def extra_losses(record: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Summarise ``rotations.csv``: how much more each rotation costs than the right one.

    Returns:
        Name to (label of a stretch to mean over the passages and its standard error), in nats.
    """
    losses = _by_passage(record)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, own in losses.items():
        more = own - losses["right"]  # (passages, 6)
        found[name] = {}
        for label, part in (
            ("tokens 1 to 256", more[:, :2].mean(1)),
            ("tokens 257 to 768", more[:, 2:].mean(1)),
        ):
            found[name][label] = mean_and_error(part)
    return found


def long_losses(record: list[dict[str, Any]]) -> tuple[list[int], dict[str, Tensor]]:
    """Return what ``beyond_context.csv`` holds: the last position of each stretch, and the losses.

    The losses of each rotation are (passages, stretches).
    """
    return sorted({row["end"] for row in record}), _by_passage(record)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of some passages' values and its standard error: (passages,) -> two."""
    return values.mean().item(), values.std().item() / len(values) ** 0.5
