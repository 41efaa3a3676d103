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


def test_no_passage_by_which_heads_were_chosen_is_a_fresh_one():
    tokenizer, text = load_tokenizer(), load_text()
    chosen = {tuple(row[-2:]) for row in gqa.repeats(tokenizer, text, 2).tolist()}
    fresh = gqa.fresh_repeats(tokenizer, text, 2).tolist()
    assert 4 <= len(fresh) <= 8
    assert not chosen & {tuple(row[-2:]) for row in fresh}


def _ending_in_a_pair(generator):
    """Passages whose last token stood before: so that there is a word to look at."""
    rows = [torch.randperm(11, generator=generator)[:9] for _ in range(3)]
    for row in rows:
        row[7:] = row[2:4]
    return torch.stack(rows)


def test_looks_are_the_weights_of_the_attention_map(small, monkeypatch):
    model, *_ = small
    passages = _ending_in_a_pair(torch.Generator().manual_seed(1))
    streams = dict(enumerate(gqa.stream(model, passages[:, :-1])))
    found = gqa.looks(model, passages, streams)
    assert [table.shape for table in found.values()] == [(4, 3)] * 3
    monkeypatch.setattr(gqa, "answer_and_line", lambda _: (passages[1:2, :-1], 0))
    for layer, head in ((0, 0), (2, 3)):
        weight = gqa.attention_map(model, None, layer, head)[-1, 3]
        assert found[layer][head, 1].item() == pytest.approx(float(weight), rel=1e-4)


def test_one_key_head_can_be_deaf_and_the_others_hear(small):
    model, *_ = small
    passages = _ending_in_a_pair(torch.Generator().manual_seed(2))
    ids = passages[:, :-1]
    whole = gqa.stream(model, ids)
    with gqa.silenced(model, 0, 1):
        without = gqa.stream(model, ids)
    apart = [gqa.looks(model, passages, {1: x[1]})[1] for x in (whole, without)]
    with gqa.unheard(model, 1, 0, without[1]):
        deaf = gqa.looks(model, passages, {1: whole[1]})[1]
    torch.testing.assert_close(deaf[2:], apart[0][2:])  # key head 1
    assert not torch.allclose(deaf[:2], apart[0][:2], atol=1e-3)  # key head 0
    with gqa.unheard(model, 1, 0, whole[1]):
        same = gqa.looks(model, passages, {1: whole[1]})[1]
    torch.testing.assert_close(same, apart[0])


def test_a_head_set_to_its_mean_says_the_same_everywhere(small):
    model, (line, _), *_ = small
    mean = gqa.mean_output(model, line, 1, 2, first=True)
    heard = []
    linear = model.model.layers[1].self_attn.o_proj
    with gqa.silenced(model, 1, 2, mean):
        hook = linear.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        model(line)
        hook.remove()
    torch.testing.assert_close(heard[0][0, :, 128:192], mean.expand(7, 64))


def test_the_records_of_the_new_passages():
    again = gqa.columns(read_record("heads_again.csv"))
    assert len({len(column) for column in again.values()}) == 1
    looks = gqa.looks_record(read_record("looks.csv"))
    assert looks["look"].shape == looks["after_look"].shape == (30, 9)
