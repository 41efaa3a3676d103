"""Tables of n-grams: probabilities that add up to one, and what a table is tested on."""

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
    table = measure.KneserNey(TEXT, order, V)
    total = sum(math.exp(-table.loss(h, start=2)) for h in held)
    assert total == pytest.approx(1, abs=1e-9)  # a few hundred additions of float64


def test_what_was_never_seen_is_possible():
    assert measure.KneserNey(TEXT, 3, V).loss([0, 1, 6], start=2) < math.inf


def test_a_surprise_for_each_token_that_has_its_context():
    table = measure.KneserNey(TEXT, 3, V)
    assert len(table.surprises(TEXT)) == len(TEXT) - 2
    assert table.surprises(TEXT, start=100) == table.surprises(TEXT)[98:]
    assert table.loss(TEXT) == pytest.approx(sum(table.surprises(TEXT)) / (len(TEXT) - 2))


def test_discounts_by_hand():
    # Nine runs once, three twice, one three times: y = 9 / (9 + 2 · 3) = 0.6.
    text = [0] * 3 + [1, 1, 2, 2, 3, 3] + list(range(4, 13))
    expected = [1 - 2 * 0.6 * 3 / 9, 2 - 3 * 0.6 * 1 / 3, 3.0]
    assert measure.KneserNey(text, 1, 13).discounts == pytest.approx(expected)


def test_babble_writes_only_what_followed_and_repeats_itself_by_seed():
    written = measure.babble(TEXT, 2, 50, seed=1)
    pairs = set(measure.rows(TEXT, 2))
    assert set(measure.rows(written, 2)) <= pairs
    assert written == measure.babble(TEXT, 2, 50, seed=1)


def test_where_two_cuts_of_a_text_differ():
    assert measure.only_in_one(["a", "bc", "d"], ["a", "b", "c", "d"]) == ({1}, {1, 2})
    assert measure.only_in_one(["ab", "ab"], ["ab", "ab"]) == (set(), set())
