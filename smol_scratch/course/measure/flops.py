"""Notebook 09's measurements: tokens side by side, and which check sees which wrong count."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smol_scratch.accounting import MatrixProduct, matrix_products
from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2

WITHOUT_WEIGHTS = ("scores", "weighted values")


def fastest(run: Callable[[], object], rounds: int = 5) -> float:
    """Return the least processor time of a function in seconds, on one thread.

    Time of the processor, not of the clock: other programs on a crowded machine do not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = float("inf")
    try:
        for _ in range(rounds):
            start = time.process_time()
            run()
            best = min(best, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return best


def next_tokens(model: SmolLM2, sequences: int, rounds: int = 5) -> float:
    """Return the seconds for one token of each of several sequences, side by side."""
    idx = torch.zeros(sequences, 1, dtype=torch.long)
    with torch.no_grad():
        model(idx)
        return fastest(lambda: model(idx), rounds)


def pytorch_counts(config: SmolLM2Config, B: int, T: int, math: bool) -> int:
    """Return the FLOPs of a training step as PyTorch's counter sees them on a CPU.

    Args:
        config: the model.
        B: sequences.
        T: tokens in each.
        math: whether attention is spelt out in products, so that the counter can see them.
    """
    model, idx = SmolLM2(config), torch.zeros(B, T, dtype=torch.long)
    backend: Any = sdpa_kernel(SDPBackend.MATH) if math else nullcontext()
    with FlopCounterMode(display=False) as counter, backend:
        _, loss = model(idx, idx)
        loss.backward()
    return counter.get_total_flops()


def caught(factor: Callable[[MatrixProduct], float], config: SmolLM2Config) -> dict[str, bool]:
    """Say which checks object to a count in which each product is weighed by a factor.

    Args:
        factor: of a product; 1 for each is the right count.
        config: the model.

    Returns:
        Check to whether it objects.
    """

    def flops(B: int, direction: str = "") -> int:
        listed = [p for p in matrix_products(config, B, 16) if p.direction.startswith(direction)]
        return round(sum(p.flops * factor(p) for p in listed))

    return {
        "backward": flops(2, "backward") != 2 * flops(2, "forward"),
        "batch": flops(4) != 2 * flops(2),
        "counter, CPU": flops(2) != pytorch_counts(config, 2, 16, math=False),
        "counter, math": flops(2) != pytorch_counts(config, 2, 16, math=True),
    }
