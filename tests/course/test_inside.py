"""The instruments of notebook 13 do what they say, and leave the model as it was."""

import pytest
import torch

from smol_scratch import SmolLM2, SmolLM2Config, load_tokenizer
from smol_scratch.course import inside

CONFIG = SmolLM2Config(
    vocab_size=64,
    block_size=16,
    n_layer=3,
    n_head=6,
    n_kv_head=2,
    n_embd=48,
    intermediate_size=32,
    head_dim=8,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmolLM2(CONFIG).requires_grad_(False)


@pytest.fixture
def ids():
    return torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))


def test_streams_begin_with_the_embedding_and_end_before_the_norm(model, ids):
    found = inside.streams(model, ids)  # (4, 2, 9, 48)
    assert torch.equal(found[0], model.model.embed_tokens(ids))
    assert torch.equal(inside.streams(model, ids, until=2), found[:3])
    logits = model.model.norm(found[-1]) @ model.model.embed_tokens.weight.T
    torch.testing.assert_close(logits, model(ids)[0])


def swapped(mine, theirs, heads, start):
    """What exercise 2 asks for, for heads of 8 channels."""
    result = mine.clone()
    for head in heads:
        result[:, start:, 8 * head : 8 * head + 8] = theirs[:, start:, 8 * head : 8 * head + 8]
    return result


@pytest.mark.parametrize(
    "silence",
    [
        lambda m: inside.silenced_channels(m, 1, [3]),
        lambda m: inside.silenced_heads(m, [(0, 1), (2, 5)]),
        lambda m: inside.silenced_branch(m, 1, "self_attn"),
        lambda m: inside.without_values(m, [1, 2], 0),
        lambda m: inside.first_token_of(m, torch.zeros(4, 2, 9, 48), [1, 2], ["keys"]),
        lambda m: inside.unheard(m, "input_layernorm", [0, 1], 5),
        lambda m: inside.transplanted(m, torch.zeros(2, 9, dtype=int), [(1, 2)], 3, swapped),
        lambda m: inside.changed_output(m.model.layers[0], torch.zeros_like),
    ],
)
def test_an_intervention_acts_and_is_taken_out_even_after_an_error(model, ids, silence):
    before = model(ids)[0]
    unused = silence(model)  # made, but not entered
    assert torch.equal(model(ids)[0], before), unused
    with silence(model):
        assert not torch.allclose(model(ids)[0], before, atol=1e-4)
    assert torch.equal(model(ids)[0], before)
    with pytest.raises(RuntimeError, match="on purpose"), silence(model):
        raise RuntimeError("on purpose")
    assert torch.equal(model(ids)[0], before)


def test_a_silenced_channel_is_one_whose_column_is_zero(model, ids):
    with inside.silenced_channels(model, 1, [3, 7]):
        found = model(ids)[0]
    model.model.layers[1].mlp.down_proj.weight[:, [3, 7]] = 0
    torch.testing.assert_close(found, model(ids)[0])


def test_a_silenced_head_is_one_whose_columns_of_o_proj_are_zero(model, ids):
    with inside.silenced_heads(model, [(2, 4)]):
        found = model(ids)[0]
    model.model.layers[2].self_attn.o_proj.weight[:, 8 * 4 : 8 * 5] = 0
    torch.testing.assert_close(found, model(ids)[0])


def test_maps_are_what_attention_used(model, ids):
    plain, maps = model(ids)[0], inside.attention_maps(model, ids)  # (3, 2, 6, 9, 9)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 6, 9))
    assert not maps.triu(1).any()
    torch.testing.assert_close(model(ids)[0], plain)
    gathered = inside.inputs_of(model, model.model.layers[0].self_attn.o_proj, ids)
    read = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    v = model.model.layers[0].self_attn.v_proj(read).view(2, 9, 2, 8).transpose(1, 2)
    again = (maps[0] @ v.repeat_interleave(3, dim=1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(gathered, again)


def test_a_token_reaches_the_others_by_its_keys_and_values_and_by_nothing_else(model, ids):
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % 64
    own, plain = inside.streams(model, ids), model(ids)[0]

    def given(*parts):
        with inside.first_token_of(model, own, range(3), parts):
            return model(other)[0]

    torch.testing.assert_close(given("keys", "values")[:, 1:], plain[:, 1:])
    for parts in ((), ("keys",), ("values",)):
        assert not torch.allclose(given(*parts)[:, 1:], plain[:, 1:], atol=1e-4), parts
    assert torch.equal(given(), model(other)[0])


def test_an_unheard_channel_still_counts_in_the_norm(model, ids):
    """The branch behind the norm reads zero there, and the rest divided as before."""
    block = model.model.layers[1]
    own = inside.streams(model, ids, until=1)[1]
    read = block.input_layernorm(own)
    expected = read.clone()
    expected[:, 2, 5] = 0
    with inside.unheard(model, "input_layernorm", [1], 5, place=2):
        assert torch.equal(block.input_layernorm(own), expected)
        assert torch.equal(inside.inputs_of(model, block.self_attn.q_proj, ids), expected)
    assert float((expected != read).sum()) == 2, "one number in each of two rows"


def test_a_transplanted_head_brings_what_it_gathered_in_the_donor(model, ids):
    """Written down plainly: the head's columns of o_proj read the donor's part, from there on."""
    donor, attention = ids.flip(1), model.model.layers[2].self_attn
    mine, theirs = (inside.inputs_of(model, attention.o_proj, x) for x in (ids, donor))
    more = torch.zeros(2, 9, 48)
    for head in (1, 4):
        part = slice(8 * head, 8 * head + 8)
        difference = (theirs - mine)[:, 4:, part]
        more[:, 4:] += difference @ attention.o_proj.weight[:, part].T
    with inside.changed_output(attention, lambda y: y + more):
        expected = model(ids)[0]
    for transplant in (swapped, None):
        with inside.transplanted(model, donor, [(2, 1), (2, 4)], 4, transplant):
            found = model(ids)[0]
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, model(ids)[0], atol=1e-3), "or the test says little"


def test_donors_are_recorded_before_a_head_is_changed(model, ids):
    donor = ids.flip(1)
    theirs = inside.inputs_of(model, model.model.layers[2].self_attn.o_proj, donor)
    seen = []

    def look(mine, there, heads, start):
        seen.append(there)
        return torch.zeros_like(mine)

    with inside.transplanted(model, donor, [(0, 1), (2, 3)], 0, look):
        model(ids)
    assert torch.equal(seen[1], theirs)


def test_a_token_without_values_is_looked_at_and_read_as_nothing(model, ids):
    attention = model.model.layers[0].self_attn
    maps = inside.attention_maps(model, ids)
    gathered = inside.inputs_of(model, attention.o_proj, ids)  # (2, 9, 48)
    with inside.without_values(model, [0], 3):
        torch.testing.assert_close(inside.attention_maps(model, ids)[0], maps[0])
        found = inside.inputs_of(model, attention.o_proj, ids)
    read = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    v = attention.v_proj(read)[:, 3].view(2, 2, 8).repeat_interleave(3, dim=1)  # (2, 6, 8)
    missing = (maps[0][:, :, :, 3, None] * v[:, :, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, gathered - missing)


def test_lengths_of_values_are_means_over_blocks(model, ids):
    own = inside.streams(model, ids)
    first, later = inside.value_lengths(model, own, [0, 2])
    lengths = []
    for layer in (0, 2):
        block = model.model.layers[layer]
        v = (block.input_layernorm(own[layer]) @ block.self_attn.v_proj.weight.T).square()
        lengths.append(v.sum(-1).sqrt())
    both = (lengths[0] + lengths[1]) / 2  # (2, 9)
    assert first == pytest.approx(float(both[:, 0].mean()))
    assert later == pytest.approx(float(both[:, 1:].mean()))


def test_exchanging_everything_that_differs_changes_the_answer_wholly(model):
    prompts = torch.tensor([[5, 9, 1], [5, 10, 1], [5, 11, 1]])
    answers = torch.tensor([20, 30, 40])
    means, errors = inside.patched_streams(model, prompts, answers, place=1)
    assert means[0] == pytest.approx(1, abs=1e-3)  # the embeddings: all that differs
    assert means[-1] == pytest.approx(0, abs=1e-3)  # too late for the last token to see it
    assert len(means) == len(errors) == 4
    assert inside.patched_streams(model, prompts, answers, 1, depths=[2])[0] == means[2:3]
    # From the prompts in another order: the exchange brings each its own vector, and nothing turns.
    own = inside.patched_streams(model, prompts, answers, 1, source=prompts.roll(1, dims=0))[0]
    assert own == pytest.approx([0] * 4, abs=1e-3)
    means, _ = inside.patched_streams(model, prompts, answers, place=2)
    assert means[0] == pytest.approx(0, abs=1e-3)
    assert means[-1] == pytest.approx(1, abs=1e-3)


def test_an_exchanged_head_adds_the_other_prompts_part_in_place_of_its_own(model):
    """Written down plainly: what the head's columns of o_proj make of what it gathered."""
    prompts, answers = torch.tensor([[5, 9, 1], [5, 10, 1], [5, 11, 1]]), torch.tensor([20, 30, 40])
    attention = model.model.layers[2].self_attn
    gathered = inside.inputs_of(model, attention.o_proj, prompts)[:, 2]  # (3, 48)
    rows, other = torch.arange(3), answers.roll(-1)

    def apart(logits):
        return logits[rows, other] - logits[rows, answers]

    before = model(prompts)[0][:, -1]
    own, moved = apart(before), apart(before.roll(-1, dims=0))
    found = inside.patched_heads(model, prompts, answers, place=2, layer=2)
    assert len(found) == 6
    for head, (mean, error) in enumerate(found):
        mine = slice(8 * head, 8 * head + 8)
        more = (gathered.roll(-1, dims=0) - gathered)[:, mine] @ attention.o_proj.weight[:, mine].T

        def add(y, more=more):
            return torch.cat((y[:, :2], y[:, 2:] + more[:, None]), dim=1)

        with inside.changed_output(attention, add):
            shares = (apart(model(prompts)[0][:, -1]) - own) / (moved - own)
        assert mean == pytest.approx(float(shares.mean()), abs=1e-4)
        assert error == pytest.approx(float(shares.std()) / 3**0.5, abs=1e-4)
        assert abs(mean) > 1e-3, "or the test says little"


def test_a_control_has_other_heads_of_the_same_blocks():
    heads = [(3, 0), (3, 1), (7, 8)]
    for seed in range(20):
        others = inside.other_heads(heads, seed)
        assert [layer for layer, _ in others] == [3, 3, 7]
        assert len({*heads, *others}) == 6
        assert all(0 <= head < 9 for _, head in others)
        assert others == inside.other_heads(heads, seed)
    assert len({tuple(inside.other_heads(heads, seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize("skip", [0, 3])
def test_losses_are_each_rows_own_without_what_is_skipped(model, ids, skip):
    found = inside.losses(model, ids, skip)
    for row, loss in zip(ids, found, strict=True):
        scores = model(row[None, :-1])[0][0].log_softmax(-1)  # (T, V)
        each = -scores[range(8), row[1:]]
        assert loss == pytest.approx(each[skip:].mean().item(), rel=1e-5)  # float32's sums
    if skip == 0:  # what the model says itself
        assert sum(found) / 2 == pytest.approx(model(ids[:, :-1], ids[:, 1:])[1].item(), rel=1e-5)


def test_a_spread_is_taken_row_by_row():
    rows = torch.tensor([[3.0, 1.0, 2.0], [9.0, 9.0, 4.0]])
    assert inside.spread(rows) == ([1.0, 4.0], [2.0, 9.0], [3.0, 9.0])


def test_a_rise_is_a_mean_of_pairs():
    assert inside.rise([1.5, 2.5], [1.0, 1.0]) == "+1.00 ± 0.50"
    assert inside.rise([1.0, 0.999], [1.0, 1.0]) == "+0.00 ± 0.00", "a zero has no sign"


def test_prompts_are_made_from_a_template_and_must_be_equally_long():
    tokenizer = load_tokenizer()
    prompts, right = inside.prompts_of(tokenizer, "The sound of a {} is", {"dog": " bark"})
    assert prompts.tolist() == [tokenizer.encode("The sound of a dog is")]
    assert right.tolist() == tokenizer.encode(" bark")[:1]
    with pytest.raises(ValueError, match="equally many tokens"):
        inside.prompts_of(tokenizer, "The sound of a {} is", {"dog": " a", "hippopotamus": " b"})


def test_prompts_of_the_notebook_are_its_sentences():
    tokenizer = load_tokenizer()
    for prompts_of, first, answer in (
        (inside.capital_prompts, "The capital of France is", " Paris"),
        (inside.language_prompts, "People in France speak", " French"),
        (inside.opposite_prompts, 'The opposite of "hot" is "', "cold"),
    ):
        prompts, right = prompts_of(tokenizer)
        assert tokenizer.decode(prompts[0].tolist()) == first
        assert tokenizer.decode([int(right[0])]) == answer
