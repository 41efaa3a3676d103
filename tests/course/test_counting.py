"""Tables of n-grams: probabilities that add up to one, and an entropy known by hand."""

import math
import random

import pytest

from smol_scratch.course.measure import dataset as measure

V = 7
TEXT = random.Random(0).choices(range(V - 1), weights=[8, 4, 2, 2, 1, 1], k=400)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("context", [[0, 1], [5, 4], [6, 6], [0, 6]])  # 6 never occurs
def test_kneser_ney_shares_out_one_probability(order, context):
    held = [[*context, token] for token in range(V)]
    total = sum(math.exp(-measure.kneser_ney(TEXT, h, order, V, start=2)) for h in held)
    assert total == pytest.approx(1, abs=1e-9)  # a few hundred additions of float64


def test_what_was_never_seen_is_possible():
    assert measure.kneser_ney(TEXT, [0, 1, 6], 3, V, start=2) < math.inf


def test_entropy_of_a_coin_and_of_a_circle():
    assert measure.entropy([0, 1] * 500, 1) == pytest.approx(math.log(2))
    assert measure.entropy([0, 1, 2] * 300, 2) == pytest.approx(0, abs=1e-12)


def test_babble_writes_only_what_followed_and_repeats_itself_by_seed():
    written = measure.babble(TEXT, 2, 50, seed=1)
    pairs = set(measure.rows(TEXT, 2))
    assert set(measure.rows(written, 2)) <= pairs
    assert written == measure.babble(TEXT, 2, 50, seed=1)
