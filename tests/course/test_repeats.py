"""Passages that end with a pair of words read before, and what a silenced head costs there."""

import pytest
import torch

from smol_scratch import SmolLM2, SmolLM2Config, load_text, load_tokenizer
from smol_scratch.course.measure import gqa
from smol_scratch.course.notebook import read_record

CONFIG = SmolLM2Config(
    vocab_size=11, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, intermediate_size=24
)


def test_the_earlier_pair_tells_what_comes():
    passages = gqa.repeats(load_tokenizer(), load_text(), 5)
    assert passages.shape == (5, 25)
    for *passage, answer in passages.tolist():
        assert passage.count(answer) == 1
        assert passage.count(passage[-1]) == 2
        assert passage[passage.index(passage[-1]) + 1] == answer


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = SmolLM2(CONFIG).requires_grad_(False)
    for weight in model.parameters():  # large enough that a head matters
        weight.mul_(10) if weight.ndim > 1 else None
    line, passages = torch.randint(11, (1, 7)), torch.randint(11, (3, 9))
    streams = [gqa.stream(model, line), gqa.stream(model, passages[:, :-1])]
    return model, (line, 4), passages, streams


def test_a_silent_head_costs_the_same_from_its_layer_on_as_from_the_start(small):
    model, *rest = small
    with gqa.silenced(model, 1, 2):
        found = [gqa.fetched(model, *rest, layer=layer) for layer in (0, 1)]
    intact = gqa.fetched(model, *rest)
    for whole, late, before in zip(*found, intact, strict=True):
        whole, late, before = map(torch.as_tensor, (whole, late, before))
        torch.testing.assert_close(whole, late)
        assert not torch.equal(late, before)


def test_only_the_last_loss_is_that_of_the_answer(small):
    model, line, passages, streams = small
    _, copied, others = gqa.fetched(model, line, passages, streams)
    logits, _ = model(passages[:, :-1])
    losses = -logits.log_softmax(-1).gather(-1, passages[:, 1:, None])[..., 0]  # (N, T)
    torch.testing.assert_close(copied, losses[:, -1])
    torch.testing.assert_close(others, losses[:, [1, 4]].mean(1))


def test_the_record_holds_every_head():
    found = gqa.silenced_heads(read_record("silenced_heads.csv"))
    assert found["copied"].shape == (30, 9, 16)
    assert found["rest"].shape == found["horse"].shape == (30, 9)
