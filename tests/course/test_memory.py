"""A rehearsal holds what a real step holds, after every operation; its families are those meant."""

import pytest
import torch

from smol_scratch import SmolLM2Config, accounting, explicit_attention
from smol_scratch.course.measure import parameters as measure

SMALL = SmolLM2Config.preset("tiny", vocab_size=300, n_layer=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attend", [None, explicit_attention])
def test_a_rehearsal_is_the_real_step(dtype, attend):
    fake, real = (
        measure.rehearse(SMALL, 2, 24, dtype, attend=attend, fake=fake) for fake in (True, False)
    )
    assert fake == real


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_the_formulas(dtype):
    """Up to AdamW's counters of steps (4 bytes for each tensor) and the loss, to the byte."""
    B, T = 32, 128  # enough tokens that the loss is the peak
    diary = measure.rehearse(SMALL, B, T, dtype)
    tensors = len(list(accounting.SmolLM2(SMALL).parameters()))
    predicted = accounting.training_memory(SMALL, B, T, dtype)["peak"]
    assert diary.peak == predicted + 4 * tensors + 4


def test_families_are_the_formulas_kinds():
    B, T = 32, 128
    kinds = accounting.activations(SMALL, B, T, torch.bfloat16)
    held = measure.rehearse(SMALL, B, T).at_the_peak()
    assert held[measure.MLP] == (
        kinds["SwiGLU: gate, SiLU, up, product"] + 2 * SMALL.n_layer * B * T * 2 * SMALL.n_embd
    )  # with the 16-bit copies of what gate and up read
    assert held[measure.COPIES] == kinds["matrices in bfloat16"]
    assert held[measure.VOCABULARY] == (2 + 4 + 4 + 4) * B * T * SMALL.vocab_size
    assert sum(held.values()) == measure.rehearse(SMALL, B, T).peak
