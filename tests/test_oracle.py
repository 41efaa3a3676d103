"""Ours against ``transformers``: modules, blocks, logits and gradients, then the real weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import smol_scratch.model
from smol_scratch import KVCache, SmolLM2, SmolLM2Config, to_transformers
from smol_scratch.tokenizer import SmolLM2Tokenizer
from tests.checks import (
    Measured,
    Trio,
    close,
    largest,
    oracle_attention,
    oracle_block,
    oracle_gradients,
    oracle_logits,
    oracle_rmsnorm,
    oracle_rope,
    oracle_swiglu,
)

# H:G, D, C, MLP, layers, theta, eps, tied, length. H · D is not always C.
ROWS = [
    (1, 1, 8, 8, 24, 1, 1e4, 1e-5, True, 7),
    (2, 2, 8, 16, 40, 2, 1e5, 1e-5, False, 13),
    (4, 4, 16, 64, 172, 3, 1e4, 1e-6, True, 31),
    (8, 8, 4, 32, 88, 2, 1.3e5, 1e-5, True, 9),
    (2, 1, 32, 48, 100, 2, 5e5, 1e-5, True, 17),
    (4, 2, 16, 64, 96, 2, 1e4, 1e-5, False, 2),
    (6, 3, 8, 42, 128, 2, 1e5, 1e-6, True, 23),
    (3, 1, 64, 96, 256, 2, 1e5, 1e-5, True, 33),
    (6, 2, 16, 96, 256, 4, 1e5, 1e-5, True, 64),
    (9, 3, 16, 144, 384, 2, 1e5, 1e-5, True, 63),
    (9, 3, 8, 90, 99, 2, 1e6, 1e-5, False, 5),
    (15, 5, 8, 120, 320, 2, 1e5, 1e-5, True, 21),
    (4, 1, 8, 32, 77, 3, 1e3, 1e-4, False, 27),
    (8, 2, 16, 128, 200, 2, 1e5, 1e-5, True, 19),
    (5, 1, 12, 60, 160, 2, 1e5, 1e-5, True, 3),
    (10, 2, 6, 60, 64, 2, 10.0, 1e-5, False, 35),
    (6, 1, 10, 36, 65, 2, 1e5, 1e-6, True, 41),
    (7, 1, 8, 56, 144, 2, 2e4, 1e-5, False, 29),
    (8, 1, 8, 64, 128, 2, 1e5, 1e-5, True, 37),
    (16, 2, 4, 48, 50, 2, 1e4, 1e-3, True, 11),
    (9, 1, 16, 144, 384, 2, 1e5, 1e-5, True, 15),
    (9, 1, 2, 27, 30, 6, 1e5, 1e-5, False, 45),
    (3, 3, 128, 96, 31, 2, 1e5, 1e-5, True, 25),
    (9, 3, 64, 576, 1536, 2, 1e5, 1e-5, True, 67),  # the released model's width
]


def config_of(row: tuple) -> SmolLM2Config:
    heads, groups, head_dim, width, hidden, layers, theta, eps, tied, _ = row
    return SmolLM2Config(
        block_size=256,
        vocab_size=307,
        n_layer=layers,
        n_head=heads,
        n_kv_head=groups,
        n_embd=width,
        intermediate_size=hidden,
        head_dim=head_dim,
        rope_theta=theta,
        norm_eps=eps,
        tie_embeddings=tied,
    )


MODULES = [oracle_rmsnorm, oracle_rope, oracle_swiglu]
SEQUENCES = [oracle_attention, oracle_block, oracle_logits, oracle_gradients]


def row_name(row: tuple) -> str:
    heads, groups, head_dim, width, *_, tied, length = row
    return f"{heads}to{groups}-D{head_dim}-C{width}-T{length}{'' if tied else '-untied'}"


@pytest.mark.parametrize("row", ROWS, ids=row_name)
@pytest.mark.parametrize("check", MODULES, ids=lambda check: check.__name__)
def test_module_equals_transformers(check, row):
    check(smol_scratch.model, config_of(row))


@pytest.mark.parametrize("row", ROWS, ids=row_name)
@pytest.mark.parametrize("check", SEQUENCES, ids=lambda check: check.__name__)
def test_sequence_equals_transformers(check, row):
    check(smol_scratch.model, config_of(row), length=row[-1])


@pytest.mark.parametrize("check", [oracle_attention, oracle_block, oracle_logits])
def test_one_token_alone_equals_transformers(check):
    check(smol_scratch.model, length=1)


def test_rope_equals_transformers_at_every_released_position():
    oracle_rope(smol_scratch.model, SmolLM2Config(n_layer=1, vocab_size=8, block_size=8192))


def measure_real_logits(model: SmolLM2, ids: Tensor) -> Measured:
    """Hold the logits of real weights on real text against ``transformers``'."""
    ours, theirs, floor = Trio(smol_scratch.model, model.config, ours=model).logits(ids)
    return close("logits of the real weights", largest(ours - theirs), floor)


def real_ids(text: str, tokenizer: SmolLM2Tokenizer) -> Tensor:
    return torch.tensor([tokenizer.encode(text[:900])])


def test_real_weights_give_transformers_logits(real_model, tokenizer, text):
    ids = real_ids(text, tokenizer)
    assert 200 <= ids.numel() <= 400
    measure_real_logits(real_model, ids)


@torch.no_grad()
def greedy(model: SmolLM2, ids: Tensor, count: int) -> list[int]:
    cache, new, found = KVCache(model.config, max_length=ids.shape[1] + count), ids, []
    for _ in range(count):
        new = model(new, cache=cache)[0][:, -1:].argmax(-1)
        found.append(int(new))
    return found


@torch.no_grad()
def greedy_transformers(model: LlamaForCausalLM, ids: Tensor, count: int) -> list[int]:
    model.generation_config.eos_token_id = None  # or it would stop early
    return model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist()


def test_real_weights_write_the_same_hundred_tokens(real_model, tokenizer):
    ids = torch.tensor([tokenizer.encode("Gravity is")])
    ours = greedy(real_model, ids, 100)
    assert len(set(ours)) > 20, "a text that repeats itself proves little"
    assert ours == greedy_transformers(to_transformers(real_model), ids, 100)
