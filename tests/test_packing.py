"""Batches out of shards: every document once in a pass, any number of processes, bit for bit."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_scratch.__main__ import main
from smol_scratch.checkpoint import load_checkpoint, read_state, save_checkpoint
from smol_scratch.fast import attention_by_size
from smol_scratch.model import GroupedQueryAttention, SmolLM2, explicit_attention
from smol_scratch.packing import (
    Documents,
    Joined,
    Mixture,
    Source,
    attending_within,
    held_out_by_hash,
    same_document,
    shuffled,
)
from smol_scratch.recipe import TrainingConfig
from smol_scratch.shards import write_shards
from tests.test_shards import Letters
from tests.test_training import SHAPE, begin, losses, same, weights

pytestmark = pytest.mark.usefixtures("peak")  # none measures the processor first


def texts(count, first=1):
    """Return documents of different lengths whose letters say which one it is."""
    return [chr(first + n % 60) * (1 + (7 * n) % 11) for n in range(count)]


@pytest.fixture
def stored(tmp_path):
    return write_shards(tmp_path / "shards", texts(60), Letters(), shard_tokens=50)


@pytest.fixture
def other(tmp_path):
    return write_shards(tmp_path / "other", texts(25, 61), Letters(), shard_tokens=50)


def mixture(*shards, **how):
    return Mixture.read([each.folder for each in shards], "letters", **how)


# The order


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_each_place_goes_to_its_own(size):
    found = shuffled(np.arange(size), size, seed=5)
    assert sorted(found.tolist()) == list(range(size))
    one_by_one = [shuffled(np.array([i]), size, seed=5)[0] for i in range(min(size, 50))]
    assert one_by_one == found[:50].tolist()


def test_the_order_is_the_same_on_every_machine():
    """Whole numbers alone decide: a changed one would make resumed runs see other batches."""
    assert shuffled(np.arange(12), 12, seed=0).tolist() == GOLDEN[0]
    assert shuffled(np.arange(5), 10**12, seed=7).tolist() == GOLDEN[1]


GOLDEN = (
    [3, 0, 8, 1, 2, 4, 7, 11, 6, 5, 9, 10],
    [883499918939, 32315539998, 601054579787, 132850652563, 531066422337],
)


def test_the_order_looks_like_chance():
    """No neighbours stay together, and where a place goes depends on the seed."""
    size = 10_000
    orders = np.stack([shuffled(np.arange(size), size, seed) for seed in range(20)])
    # Of a random order 1 place in `size` stays, and 1 in `size` is followed by its neighbour.
    assert (orders == np.arange(size)).sum() < 60  # 20 expected; of Poisson's, 60 is never
    assert (np.diff(orders, axis=1) == 1).sum() < 60
    middle = orders[:, : size // 2].mean()  # of 100,000 places, standard error 9
    assert abs(middle - size / 2) < 60
    lags = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]  # standard error 0.01
    assert np.abs(lags).max() < 0.05


# Documents, one after the other


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_documents_in_any_order_are_their_texts_in_that_order(tmp_path_factory, data):
    given_ = data.draw(st.lists(st.text("abc", max_size=9), min_size=1, max_size=12))
    at = data.draw(st.integers(1, 15))
    shards = write_shards(tmp_path_factory.mktemp("any"), given_, Letters(), at)
    order = data.draw(st.permutations(range(len(given_))))[: data.draw(st.integers(1, 12))]
    documents = Documents(shards, np.array(order))
    flat = [ord(c) for i in order for c in f"{given_[i]}\0"]
    belongs = [k for k, i in enumerate(order) for _ in f"{given_[i]}\0"]
    a = data.draw(st.integers(0, len(flat)))
    b = data.draw(st.integers(0, len(flat)))
    assert len(documents) == len(flat)
    assert documents[a:b].tolist() == flat[a:b]
    assert documents.belongs(a, max(a, b)).tolist() == belongs[a : max(a, b)]


# Held out


def test_a_documents_own_text_decides_whether_it_is_held_out(tmp_path, stored):
    train, held = held_out_by_hash(stored, 0.3)
    assert sorted([*train, *held]) == list(range(60))
    assert 8 <= len(held) <= 28  # 18 expected, standard deviation 3.5
    mixed = [*texts(25, 61), *reversed(texts(60)), *texts(60)[:20]]
    again = write_shards(tmp_path / "again", mixed, Letters(), 30)
    wanted = {texts(60)[i] for i in held}
    _, there = held_out_by_hash(again, 0.3)
    assert {mixed[i] for i in there} & set(texts(60)) == wanted


def test_nothing_that_is_held_out_is_trained_on(stored, other):
    training, held_out = mixture(stored, other, held_out=0.3)
    seen = set()
    loader = training.loader(2, 6)
    for _ in range(3 * loader.batches_per_pass):
        seen |= set(loader.next_batch()[0].flatten().tolist())
    shards = [(s, held_out_by_hash(s, 0.3)) for s in (stored, other)]
    apart = set()  # letters that stand only in documents that are held out
    for each, (train, held) in shards:
        rows = [set(Documents(each, part)[:].tolist()) for part in (train, held)]
        apart |= rows[1] - rows[0]
    assert len(apart) > 5
    assert not seen & apart
    assert set(held_out[0 : len(held_out)].tolist()) >= apart
    assert len(training) + len(held_out) == len(stored) + len(other)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_share_that_leaves_nothing_is_refused(stored, share):
    with pytest.raises(ValueError, match=r"held_out=.*: of 60 document\(s\) it takes (0|60)"):
        held_out_by_hash(stored, share)


# Batches


@pytest.mark.parametrize("order", ["document", "block", "stored"])
def test_a_pass_holds_each_sequence_once_and_the_next_in_another_order(stored, order):
    training, _ = mixture(stored, order=order)
    T, count = 8, (len(stored) - 1) // 8
    loader = training.loader(1, T)
    passes = [[loader.next_batch() for _ in range(count)] for _ in range(2)]
    rows = [["".join(map(chr, x[0].tolist())) for x, _ in each] for each in passes]
    flat = "".join(map(chr, stored[:].tolist()))
    if order == "document":
        for each in rows:  # whole documents, in any order; the end of the last is cut off
            found = "".join(each).split("\0")
            assert set(found[:-1]) <= set(texts(60))
            assert len(found) >= 59
        assert rows[0] != rows[1]
    else:
        blocks = [flat[i * T : i * T + T] for i in range(count)]
        assert sorted(rows[0]) == sorted(rows[1]) == sorted(blocks)
        assert (rows[0] == rows[1] == blocks) == (order == "stored")
    for x, y in itertools.chain(*passes):
        assert torch.equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("order", ["document", "block"])
def test_ranks_share_the_batch_that_one_process_would_take(stored, other, order):
    training, _ = mixture(stored, other, weights=(0.7, 0.3), order=order)
    one = training.loader(4, 8)
    ranks = [training.loader(2, 8, rank=rank, world_size=2) for rank in range(2)]
    for step in range(25):
        if step == 9:  # the two are stopped, and one goes on with the four: and back
            state = json.loads(json.dumps(ranks[0].state_dict()))
            assert state == ranks[1].state_dict() == one.state_dict()
            one = training.loader(4, 8)
            one.load_state_dict(state)
            ranks = [training.loader(1, 8, rank=rank, world_size=4) for rank in range(4)]
            for each in ranks:
                each.load_state_dict(state)
        whole, parts = one.next_batch(), [each.next_batch() for each in ranks]
        for i in range(2):
            assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


@pytest.mark.parametrize(
    ("order", "letters"), [("block", "[kJ"), ("document", "XfI"), ("stored", "AAA")]
)
def test_each_pass_has_its_own_order_the_same_on_every_machine(stored, order, letters):
    """The first letter that three passes begin with; a resumed run must find the same."""
    source = Source(Documents(stored, np.arange(60)), 8, order, seed=3)
    found = [int(source.read(n * source.sequences)[0][0]) for n in range(3)]
    assert "".join(chr(64 + letter) for letter in found) == letters


def test_an_order_unless_told_is_that_of_documents_and_of_seed_0(stored):
    told = mixture(stored, order="document", seed=0)[0]
    for unless_told in (mixture(stored)[0], Mixture(told.parts, told.weights)):
        one, other = (each.loader(2, 8).next_batch()[0] for each in (unless_told, told))
        assert torch.equal(one, other)
    another = mixture(stored, seed=1)[0].loader(2, 8).next_batch()[0]
    assert not torch.equal(another, one)


def test_nothing_joined_is_empty_and_parts_are_read_across_their_ends(stored, other):
    assert len(Joined([])) == 0
    assert Joined([])[:].tolist() == []
    parts = [Documents(stored, np.arange(3)), Documents(other, np.arange(0)),
             Documents(other, np.arange(4, 7)), Documents(stored, np.arange(3))]  # fmt: skip
    flat = [token for part in parts for token in part[:].tolist()]
    joined = Joined(parts)
    assert len(joined) == len(flat)
    for start in range(len(flat)):
        for stop in (start, start + 1, start + 9, len(flat)):
            assert joined[start:stop].tolist() == flat[start:stop]


def test_folders_are_mixed_by_their_weights(stored, other):
    training, _ = mixture(stored, other, weights=(3, 1))
    loader = training.loader(1, 8)
    for step in range(1, 80):
        x, _ = loader.next_batch()
        of_the_other = int((x >= 61).any())
        assert of_the_other in (0, 1)
        assert abs(loader.drawn[1] - step / 4) <= 1
    assert loader.drawn == [59, 20]
    by_tokens, _ = mixture(stored, other)
    assert by_tokens.weights == (len(stored), len(other))


@pytest.mark.parametrize(
    "state",
    [{}, {"position": 0}, {"drawn": [1], "sequences": [5]}, {"drawn": [-1, 0], "sequences": [5, 5]},
     {"drawn": [1.0, 0], "sequences": [5, 5]}, {"drawn": [1, 0], "sequences": [5, 6]}],
)  # fmt: skip
def test_a_wrong_state_is_refused_and_changes_nothing(stored, other, state):
    loader = mixture(stored, other)[0].loader(1, 8)
    loader.next_batch()
    before = loader.state_dict()
    with pytest.raises(ValueError, match=r"is no state|was saved among"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


def test_too_little_text_is_named(stored):
    with pytest.raises(ValueError, match="tokens to train on are less than one sequence, 5001"):
        mixture(stored)[0].loader(1, 5000)


# Attention within documents


@pytest.mark.parametrize("attend", [None, attention_by_size, explicit_attention])
def test_within_documents_is_each_document_by_itself(attend):
    torch.manual_seed(0)
    model = SmolLM2(SHAPE).double()
    for module in model.modules():
        if isinstance(module, GroupedQueryAttention) and attend:
            module.attend = attend
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    idx = torch.randint(0, 61, (2, 12))
    documents = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3, [7] * 12])
    apart = [(0, 0, 5), (0, 5, 9), (0, 9, 12), (1, 0, 12)]
    expected = torch.cat([model(idx[b : b + 1, i:j])[0][0] for b, i, j in apart])
    plain = model(idx)[0].flatten(0, 1)
    with attending_within(model, documents):
        found = model(idx)[0].flatten(0, 1)
    # All is float64 but the tables of cosines: turned by float32's angles, a score at another place
    # of the sequence differs by some 1e-7.
    assert (found - expected).abs().max() < 1e-6
    assert (plain - expected).abs().max() > 1e-2
    assert torch.equal(model(idx)[0].flatten(0, 1), plain)  # afterwards everything is seen again


def test_the_mask():
    allowed = same_document(torch.tensor([[4, 4, 9]]))
    assert allowed[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, True],
    ]


def test_the_loader_says_which_document_a_token_is_of(stored):
    loader = mixture(stored, mask_documents=True)[0].loader(3, 9)
    for _ in range(20):
        x, _, documents = loader.next_batch()
        for row, numbers in zip(x.tolist(), documents.tolist(), strict=True):
            for (a, b), (m, n) in zip(
                itertools.pairwise(row), itertools.pairwise(numbers), strict=True
            ):
                assert (m != n) == (a == 0)  # a new document begins behind each end
                assert b == 0 or m != n or a == b


# A run


def run(training, held_out=None, **how):
    """Return a small run over letters before its first step."""
    torch.manual_seed(0)
    model = SmolLM2(dataclasses.replace(SHAPE, vocab_size=128))
    return begin(training, held_out, model, **how)


HOW = {"sequence_length": 8, "batch_size": 2, "steps": 12}


@pytest.mark.parametrize("how", [{}, {"mask_documents": True, "order": "block"}])
def test_a_run_goes_on_bit_for_bit(tmp_path, stored, other, how):
    folders = tuple(each.folder for each in (stored, other))
    recipe = {**HOW, **how, "shards": folders, "weights": (0.5, 0.5)}
    training, held_out = mixture(stored, other, held_out=0.2, weights=(0.5, 0.5), **how)
    state = run(training, held_out, **recipe)
    first = losses(state, 5)
    save_checkpoint(state, tmp_path / "half")
    straight = losses(state, 7)
    resumed = load_checkpoint(tmp_path / "half", training, held_out)
    assert resumed.config.shards == folders
    assert losses(resumed, 7) == straight
    assert same(weights(resumed), weights(state))
    assert first[0] != first[1]
    smaller, _ = mixture(stored, held_out=0.2, **how)
    with pytest.raises(ValueError, match="begun with another text"):
        load_checkpoint(tmp_path / "half", smaller)


def test_the_mask_reaches_the_training(stored):
    """Also where the backward pass computes blocks again."""
    found = [
        losses(run(mixture(stored, mask_documents=mask)[0], **HOW, checkpoint_activations=again), 3)
        for mask, again in ((False, False), (True, False), (True, True))
    ]
    assert found[0] != found[1] == found[2]


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"{n} is a number, and a word is what stands beside it." for n in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in words))
    assert main(["shards", "--input", "a.jsonl", "--output", "stored"]) == 0
    small = ["--preset", "tiny", "--batch-size", "2", "--sequence-length", "16", "--device", "cpu"]
    train = ["train", "--shards", "stored", "--held-out", "0.1", *small, "--eval-interval", "2"]
    assert main([*train, "--steps", "4", "--checkpoint-interval", "2", "--save", "run"]) == 0
    said = capsys.readouterr().out
    assert "100% of the batches" in said
    assert "held-out loss" in said
    assert read_state(tmp_path / "run_step_2")["config"].shards[0].name == "stored"
    assert main(["train", "--ckpt", "run_step_2", "--save", "again"]) == 0
    one, two = (tmp_path / f"{name}.csv" for name in ("run", "again"))
    rows = [
        {line.split(",")[0]: line.split(",")[1] for line in path.read_text().splitlines()}
        for path in (one, two)
    ]
    assert rows[0]["3"] == rows[1]["3"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": (1.0,)}, "weights=.*only|weights=.*is for shards only"),
        ({"order": "block"}, "order='block': is for shards only"),
        ({"mask_documents": True}, "mask_documents=True: is for shards only"),
        ({"shards": ("a",), "weights": (1.0, 2.0)}, "weights='1.0 2.0': must be 1, one for each"),
        ({"shards": ("a",), "weights": (0.0,)}, "weights=0.0: must be above 0"),
        ({"shards": ("a",), "text": "b"}, "text='b': is trained on in place of shards"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    for name in ("shards", "text"):
        if name in fields:
            value = fields[name]
            fields[name] = tuple(map(Path, value)) if name == "shards" else Path(value)
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)
