"""A model without numbers is the model in all but its numbers."""

from __future__ import annotations

import pytest
import torch

from smol_scratch import SmolLM2, SmolLM2Config
from smol_scratch.layout import laid_out


@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_tables_are_the_models_and_nothing_is_drawn(tied):
    config = SmolLM2Config.preset("tiny", tie_embeddings=tied)
    real = SmolLM2(config)
    before = torch.get_rng_state()
    made = laid_out(SmolLM2, config)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: p.shape for name, p in made.named_parameters()} == {
        name: p.shape for name, p in real.named_parameters()
    }
    assert {p.device.type for p in made.parameters()} == {"meta"}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in made.parameters())
    tables = dict(made.named_buffers())
    assert tables.keys() == dict(real.named_buffers()).keys()
    for name, table in real.named_buffers():
        torch.testing.assert_close(tables[name], table, rtol=0, atol=0)


def test_outside_of_it_models_are_made_as_always():
    laid_out(SmolLM2, SmolLM2Config.preset("tiny"))
    made = SmolLM2(SmolLM2Config.preset("tiny"))
    assert made.model.embed_tokens.weight.device.type == "cpu"
    assert made.model.embed_tokens.weight.std() > 0
