import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_scratch import load_text, load_tokenizer
from smol_scratch.data import DataLoaderLite, ngram_overlap, split


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.encode(load_text())


# The loader


def test_the_walkthroughs_batches(tokens):
    loader = DataLoaderLite(tokens, 4, 256)
    assert len(tokens) == 341_094
    assert loader.batches_per_pass == 333
    text = torch.tensor(tokens)
    for batch in range(333):
        x, y = loader.next_batch()
        assert torch.equal(x.flatten(), text[batch * 1024 : (batch + 1) * 1024])
        assert torch.equal(y.flatten(), text[batch * 1024 + 1 : (batch + 1) * 1024 + 1])
    assert (loader.position, loader.passes) == (0, 1)
    assert torch.equal(loader.next_batch()[0].flatten(), text[:1024])


def test_shapes_and_types_from_every_kind_of_tokens():
    row = list(range(40))
    expected = DataLoaderLite(row, 2, 3).next_batch()
    assert expected[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert expected[1].tolist() == [[1, 2, 3], [4, 5, 6]]
    kinds = [tuple(row), np.array(row), np.array(row, dtype=np.uint16), torch.tensor(row)]
    for kind in [*kinds, torch.tensor(row, dtype=torch.int32)]:
        for ours, theirs in zip(DataLoaderLite(kind, 2, 3).next_batch(), expected, strict=True):
            assert ours.dtype == torch.int64
            assert torch.equal(ours, theirs)


def test_writing_into_a_batch_changes_nothing_else():
    row = np.arange(20)
    x, y = DataLoaderLite(row, 2, 3).next_batch()
    x.fill_(-1)
    assert y.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert row.tolist() == list(range(20))


sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 60))


@settings(max_examples=50)
@given(sizes)
def test_against_a_plain_walk_through_the_text(size):
    """What the description's loader does, over any text and on any number of ranks."""
    B, T, ranks, more = size
    step = B * T * ranks
    text = list(range(step + 1 + more))
    loaders = [DataLoaderLite(text, B, T, rank=r, world_size=ranks) for r in range(ranks)]
    one = DataLoaderLite(text, B * ranks, T)
    position = 0
    for _ in range(2 * one.batches_per_pass + 1):
        x, y = one.next_batch()
        assert x.flatten().tolist() == text[position : position + step]
        assert y.flatten().tolist() == text[position + 1 : position + step + 1]
        position += step
        if position + step + 1 > len(text):
            position = 0
        parts = [loader.next_batch() for loader in loaders]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
        assert all(loader.state_dict() == one.state_dict() for loader in loaders)


@settings(max_examples=50)
@given(sizes, st.integers(0, 40))
def test_a_restored_loader_goes_on_as_the_first_would_have(size, taken):
    B, T, _, more = size
    text = list(range(B * T + 1 + more))
    first = DataLoaderLite(text, B, T)
    for _ in range(taken):
        first.next_batch()
    state = json.loads(json.dumps(first.state_dict()))  # it survives being stored
    second = DataLoaderLite(text, B, T)
    second.load_state_dict(state)
    assert second.passes == first.passes == taken // first.batches_per_pass
    for _ in range(first.batches_per_pass + 1):
        ours, theirs = second.next_batch(), first.next_batch()
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"position": 0, "passes": 0}, "is no state"),
        ({"position": 0, "passes": 0, "tokens": 100, "seed": 1}, "is no state"),
        ({"position": 6.0, "passes": 0, "tokens": 100}, "is no state"),
        ({"position": 6, "passes": 0, "tokens": 99}, "99 tokens and this one has 100"),
        ({"position": 100, "passes": 0, "tokens": 100}, "position=100: must lie between 0 and 99"),
        ({"position": -6, "passes": 0, "tokens": 100}, "position=-6: must lie between 0 and 99"),
        ({"position": 6, "passes": -1, "tokens": 100}, "passes=-1"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(state, message):
    loader = DataLoaderLite(range(100), 2, 3)
    loader.next_batch()
    before = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


def test_a_text_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"1,024 tokens are less than one batch.*1,025"):
        DataLoaderLite(range(1024), 4, 256)
    assert DataLoaderLite(range(1025), 4, 256).batches_per_pass == 1
    with pytest.raises(ValueError, match="on 2 rank"):
        DataLoaderLite(range(1025), 4, 256, world_size=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"B": 0}, "B=0"),
        ({"T": 2.0}, "T=2.0"),
        ({"world_size": 0}, "world_size=0"),
        ({"rank": 1}, "rank=1"),
        ({"rank": -1, "world_size": 2}, "rank=-1"),
    ],
)
def test_impossible_sizes_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DataLoaderLite(range(100), **{"B": 2, "T": 3, **given})


@pytest.mark.parametrize("tokens", [[0.5] * 50, np.zeros((50, 2), dtype=np.int64)])
def test_what_are_no_tokens_is_refused(tokens):
    with pytest.raises(ValueError, match="must be whole numbers in a row"):
        DataLoaderLite(tokens, 2, 3).next_batch()


# Parts


def test_the_last_tenth_is_held_out(tokens):
    train, held_out = split(tokens)
    assert (len(train), len(held_out)) == (306_985, 34_109)
    assert train + held_out == tokens
    train, held_out = split(torch.arange(10), 0.25)
    assert (train.tolist(), held_out.tolist()) == (list(range(8)), [8, 9])


@pytest.mark.parametrize(("n", "fraction"), [(9, 0.1), (0, 0.5), (10, 0.0), (10, 1.0), (10, -0.1)])
def test_a_split_with_an_empty_part_is_refused(n, fraction):
    with pytest.raises(ValueError, match="fraction="):
        split(list(range(n)), fraction)


def test_ngram_overlap():
    assert ngram_overlap([1, 2, 3, 4], [2, 3, 9, 3, 4], 1) == 4 / 5
    assert ngram_overlap([1, 2, 3, 4], [2, 3, 9, 3, 4], 2) == 2 / 4
    assert ngram_overlap([1, 2, 3, 4], [2, 3, 9, 3, 4], 3) == 0
    assert ngram_overlap([1, 2], [2, 1, 2, 1, 2], 2) == 2 / 4  # order and repetition count
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"n={n}: must lie between 1 and .* 2 tokens"):
            ngram_overlap([1, 2], [1, 2, 3], n)


def test_longer_ngrams_overlap_less(tokens):
    train, held_out = split(tokens)
    overlap = [ngram_overlap(train, held_out, n) for n in (1, 2, 4, 8, 16)]
    assert overlap == sorted(overlap, reverse=True)
    assert [round(share, 4) for share in overlap] == [0.9751, 0.7339, 0.234, 0.0359, 0.0]
