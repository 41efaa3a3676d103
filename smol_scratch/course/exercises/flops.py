"""Checkers for notebook 09, FLOPs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from smol_scratch.accounting import matrix_products
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import SmolLM2


@exercise
def check_one_long(answer: float) -> str:
    """Expect the FLOPs of one sequence of 8,192 tokens, by those of 32 sequences of 256."""
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, a factor")
    config = SmolLM2Config(block_size=8192)
    one, many = (
        sum(p.flops for p in matrix_products(config, B, T)) for B, T in ((1, 8192), (32, 256))
    )
    factor = one / many
    if math.isclose(answer, 1):
        raise Hint("the products with weights cost the same either way; what about the scores?")
    if math.isclose(answer, 8192 / 256):
        raise Hint("only scores and values grow by that much; what about the rest of the model?")
    if math.isclose(answer, 1 / factor, rel_tol=0.01):
        raise Hint("the other way round: the longer sequence takes more")
    if math.isclose(answer, 1 + 8192 / 3891, rel_tol=0.01):
        raise Hint("nearly: the 32 short sequences have scores and values too")
    if not math.isclose(answer, factor, rel_tol=0.02):
        raise Hint(
            "take what costs the same per token as 1; how much are scores and values per token at "
            "256, and how much at 8,192, if they are 1 at 3,891?"
        )
    return f"{factor:.2f} times the FLOPs for 32 times the length"


@exercise
def check_batch_to_fill(answer: Callable[[int, int, float, int], int | None]) -> str:
    """Expect a function (k, n, ridge, bytes a number) -> smallest batch, or None."""
    cases = (
        (576, 1536, 2.5, 4),
        (576, 1536, 153.0, 2),
        (576, 576, 153.0, 2),
        (576, 192, 153.0, 2),
        (576, 49_152, 295.3, 2),
        (64, 64, 0.4, 2),
        (8, 8, 2.0, 2),
    )
    for k, n, ridge, size in cases:

        def intensity(m: int, k: int = k, n: int = n, size: int = size) -> float:
            return 2 * m * k * n / (size * (m * k + k * n + m * n))

        # By bisection: the intensity grows with m towards 2 k n / (size (k + n)).
        reached = 2 * k * n / (size * (k + n)) > ridge
        low, high = 0, 1
        while reached and intensity(high) < ridge:
            high *= 2
        while reached and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if intensity(middle) >= ridge else (middle, high)
        expected = high if reached else None
        found = answer(k, n, ridge, size)
        where = f"k={k}, n={n}, ridge={ridge}, {size} bytes a number"
        if expected is None and found is not None:
            raise Hint(f"{where}: no batch suffices; what does the intensity tend to as m grows?")
        if found == expected:
            continue
        if found is None:
            raise Hint(f"{where}: there is such a batch")
        if found == expected - 1:
            raise Hint(f"{where}: one too few; round up")
        if found == expected + 1:
            raise Hint(f"{where}: one too many; the ridge itself is enough")
        raise Hint(f"{where}: {found} is not the smallest; solve 2mkn / bytes = ridge for m")
    return "a small matrix can be too small for a fast card, whatever the batch"


@exercise
def check_recomputed(answer: float) -> str:
    """Expect the FLOPs of a training step with checkpoints, by those without."""
    if not isinstance(answer, int | float):
        raise Hint(
            "answer with one number: the FLOPs with checkpoints divided by the FLOPs without"
        )
    with torch.device("meta"):
        plain, again = SmolLM2(SmolLM2Config()), SmolLM2(SmolLM2Config())
        idx = torch.zeros(1, 256, dtype=torch.long)
    for block in again.model.layers:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    total = []
    for model in (plain, again):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, loss = model(idx, idx)
            loss.backward()
        total.append(counter.get_total_flops())
    ratio = total[1] / total[0]
    if abs(answer - 1) < 0.002:
        raise Hint("nothing was computed again; was the backward pass inside the counter?")
    if abs(answer - 4 / 3) < 0.002:
        raise Hint("that is every product forward once more; the head is in no block. Count it")
    if abs(answer - 1.2675) < 0.002:
        raise Hint("every product of the blocks once more: a good hand count. PyTorch counts less")
    if abs(answer - ratio) >= 0.002:
        raise Hint("not what PyTorch counts for the full model at T = 256, to three digits")
    return "recomputation is paid for in FLOPs that teach the model nothing"
