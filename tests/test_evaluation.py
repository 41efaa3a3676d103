"""What a model knows, in numbers: each against a plain computation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smol_scratch.evaluation import (
    bits_per_byte,
    copied_share,
    evenly_spaced,
    longest_copies,
    mean_loss,
    perplexity,
)
from smol_scratch.model import SmolLM2
from tests.checks import SMALL

# Held-out rows


@given(st.integers(2, 90), st.integers(1, 12), st.integers(1, 9))
def test_sequences_are_spread_evenly_without_overlap(n, T, sequences):
    tokens = list(range(n))
    if n < T + 1:
        with pytest.raises(ValueError, match=rf"{n} tokens are less than one .*{T + 1} are needed"):
            evenly_spaced(tokens, T, sequences)
        return
    rows = evenly_spaced(tokens, T, sequences)
    assert rows.dtype == torch.int64
    assert rows.shape == (min(sequences, (n - 1) // T), T + 1)
    starts = rows[:, 0].tolist()
    assert rows.tolist() == [list(range(start, start + T + 1)) for start in starts]
    assert starts[0] == 0
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(gap >= T for gap in gaps)  # no token is predicted twice
    assert not gaps or max(gaps) - min(gaps) <= T  # and none is left out for long
    assert n - 1 - starts[-1] < T * (math.ceil((n - 1) // T / len(rows)) + 1)


def test_rows_are_read_from_arrays_of_any_width():
    tokens = np.arange(60_000, 60_025, dtype=np.uint16)
    assert evenly_spaced(tokens, 8, 3).tolist()[2] == list(range(60_016, 60_025))


# Loss


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (7, 13), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("B", [1, 3, 4, 7, 100])  # the last batch is smaller, and counts as much
def test_mean_loss_is_the_mean_over_all_tokens(rows, B):
    model = SmolLM2(SMALL)
    model.eval()
    with torch.no_grad():
        logits = model(rows[:, :-1])[0]
    expected = F.cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten())
    assert mean_loss(model, rows, B) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_mean_loss_leaves_everything_as_it_was(rows, training):
    model = SmolLM2(SMALL)  # with dropout
    model.train(training)
    before = torch.get_rng_state()
    assert mean_loss(model, rows) == mean_loss(model, rows)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training == training for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_mean_loss_gives_the_training_mode_back_after_an_error(rows):
    model = SmolLM2(SMALL)
    with pytest.raises((ValueError, IndexError)):
        mean_loss(model, rows + SMALL.vocab_size)
    assert model.training


def test_mean_loss_in_bfloat16_is_near_and_not_the_same(rows):
    model = SmolLM2(SMALL)
    exact, rounded = mean_loss(model, rows), mean_loss(model, rows, autocast=torch.bfloat16)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=2**-8)  # one rounding


def test_perplexity_and_bits():
    assert perplexity(math.log(49_152)) == pytest.approx(49_152)  # a model that knows nothing
    assert perplexity(0.0) == 1.0
    # A byte at a time, each of 256 equally likely: 8 bits.
    assert bits_per_byte(math.log(256), tokens=10, n_bytes=10) == pytest.approx(8.0)
    # The description's text: 341,094 tokens for 1,115,394 bytes.
    assert bits_per_byte(1.95, 341_094, 1_115_394) == pytest.approx(0.8603, abs=1e-4)


# Copies


def brute(sample: list[int], text: list[int]) -> list[int]:
    """The longest run of the sample around each token that stands in the text."""
    best = [0] * len(sample)
    for start in range(len(sample)):
        for stop in range(start + 1, len(sample) + 1):
            run = sample[start:stop]
            if any(text[i : i + len(run)] == run for i in range(len(text))):
                for place in range(start, stop):
                    best[place] = max(best[place], len(run))
    return best


few = st.lists(st.integers(0, 3), max_size=14)


@given(few, few, st.integers(1, 5))
def test_copies_are_those_of_brute_force(sample, text, at_least):
    expected = brute(sample, text)
    assert longest_copies(sample, text) == expected
    assert longest_copies(sample, np.array(text, dtype=np.uint16)) == expected
    if sample:
        share = sum(length >= at_least for length in expected) / len(sample)
        assert copied_share(sample, text, at_least) == share


def test_copies_by_hand():
    text = [1, 2, 3, 4, 5, 1, 2, 9]
    assert longest_copies([8, 1, 2, 3, 7, 1, 2, 9], text) == [0, 3, 3, 3, 0, 3, 3, 3]
    assert longest_copies(text, text) == [8] * 8
    assert longest_copies([], text) == []
    assert copied_share([8, 1, 2, 3, 7, 1, 2, 9], text, at_least=3) == 0.75
    with pytest.raises(ValueError, match="sample has no tokens"):
        copied_share([], text, 3)
