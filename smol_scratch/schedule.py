"""How the learning rate moves over a run: two schedules, each a function of the step alone."""

from __future__ import annotations

import math


def cosine(step: int, *, peak: float, minimum: float, warmup: int, total: int) -> float:
    """Rise in a straight line for ``warmup`` steps, then fall along half a cosine.

    The first step has peak / warmup, the last of the rise the peak. From step ``total`` on it stays
    at the minimum, so that a finished run can be continued.

    Args:
        step: updates made before this one.
        peak: highest learning rate.
        minimum: lowest, at the end.
        warmup: steps of the rise.
        total: step at which the minimum is reached.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983, without restarts.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * done)) / 2


def warmup_stable_decay(
    step: int, *, peak: float, minimum: float, warmup: int, total: int, decay: int
) -> float:
    """Rise, stay at the peak, and fall in a straight line over the last ``decay`` steps.

    SmolLM2 was trained so: 2,000 steps up, constant to step 1,600,000, then 400,000 down to zero.
    A run can be made longer at the peak without having decided its length before.

    Args:
        step: updates made before this one.
        peak: highest learning rate.
        minimum: lowest, at the end.
        warmup: steps of the rise.
        total: step at which the minimum is reached.
        decay: steps of the fall.

    Source: Hu et al., 2024, arXiv:2404.06395; Ben Allal et al., 2025, arXiv:2502.02737.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    left = min(max((total - step) / max(decay, 1), 0.0), 1.0)
    return minimum + (peak - minimum) * left
