"""Checkers for notebook 08, parameters and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.checkpoint import checkpoint

from smol_scratch.accounting import measured_activations, total_parameters, training_memory
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import SmolLM2


@exercise
def check_no_grouping(answer: int) -> str:
    """Expect how many parameters more the model has with a key-value head for each query head."""
    config = SmolLM2Config()
    with torch.device("meta"):
        models = [SmolLM2(config), SmolLM2(replace(config, n_kv_head=config.n_head))]
    few, many = (sum(weight.numel() for weight in model.parameters()) for model in models)
    if not isinstance(answer, int):
        raise Hint("answer with a whole number of parameters")
    if answer == many:
        raise Hint("that is the total; how many more is it than with three key-value heads?")
    if answer * config.n_layer == many - few:
        raise Hint("right for one layer; there are more")
    if 2 * answer == many - few:
        raise Hint("keys and values both have heads")
    if answer == 3 * (many - few) // 2:
        raise Hint("that is all that nine heads take; three of them are there already")
    if answer != many - few:
        raise Hint(
            "a key-value head takes two matrices of 576 × 64 in each layer, one for keys and one "
            "for values; how many heads are new?"
        )
    return "six heads more in thirty layers, a tenth of the model"


@exercise
def check_largest_batch(answer: Callable[[SmolLM2Config, int, int], int]) -> str:
    """Expect a function (config, T, memory in bytes) -> largest batch that fits, 0 if none."""
    full, tiny = SmolLM2Config(), SmolLM2Config.preset("tiny")
    for config, T, memory in (
        (full, 256, 16 * 10**9),
        (full, 1024, 16 * 10**9),
        (full, 256, 2 * 10**9),
        (full, 1, 2_380_000_000),
        (tiny, 64, training_memory(tiny, 7, 64, torch.bfloat16)["peak"]),
    ):
        expected = 0
        # Doubling and halving, since the peak grows with the batch.
        step = 1 << 14
        while step:
            peak = training_memory(config, expected + step, T, torch.bfloat16)["peak"]
            expected += step if peak <= memory else 0
            step //= 2
        found = answer(config, T, memory)
        if found == expected:
            continue
        where = f"T={T} and {memory:,} bytes for a model of {total_parameters(config):,}"
        if isinstance(found, int) and found == expected + 1:
            raise Hint(f"{where}: one too many; does your last batch still fit?")
        if isinstance(found, int) and found == expected - 1:
            raise Hint(f"{where}: one too few; a batch that fills the memory to the byte fits")
        if expected == 0:
            raise Hint(f"{where}: not even one sequence fits, so the answer is 0")
        raise Hint(
            f"{where}: {found} is not the largest batch; ask training_memory(config, B, T, "
            "torch.bfloat16)['peak'] for several B"
        )
    return "what fits can be computed before a machine is rented"


@exercise
def check_checkpointed(answer: float) -> str:
    """Expect the share of activation bytes left when each block is computed again."""
    config = SmolLM2Config.preset("tiny", vocab_size=64)
    idx = torch.zeros(2, 128, dtype=torch.long)
    targets = idx.clone()
    whole, less = SmolLM2(config), SmolLM2(config)
    for block in less.model.layers:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    share = measured_activations(less, idx, targets) / measured_activations(whole, idx, targets)
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, the bytes with checkpoints by the bytes without")
    if abs(answer - 100 * share) < 1:
        raise Hint("a share, not a percentage: between 0 and 1")
    if abs(answer - (1 - share)) < 0.005:
        raise Hint("that is the share that is saved; which share is left?")
    if abs(answer - 1) < 0.005:
        raise Hint(
            "nothing was saved: did the model call the new forward? replace `block.forward` on "
            "each block, before the model runs"
        )
    if abs(answer - share) >= 0.005:
        raise Hint(
            "not what a measurement shows, to two digits. Take SmolLM2Config.preset('tiny', "
            "vocab_size=64), 2 × 128 tokens, in float32, and every block"
        )
    return "of each block its input is left, and what stands outside the blocks"
