"""Each planted bug is caught by the check that is there for it; the committed table says so."""

from __future__ import annotations

import pytest

import smol_scratch.model
from tests.checks import CHECKS, FACTOR
from tests.planted_bugs import BUGS, TABLE, bug, failures, gentlest, plant, table, verdicts


@pytest.fixture(scope="module")
def found():
    return verdicts()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_package_passes(check):
    check(smol_scratch.model)


@pytest.mark.parametrize("planted", BUGS, ids=lambda planted: planted.name)
def test_the_named_check_catches_it(planted, found):
    assert planted.check in found[planted.name]


def test_every_check_catches_something(found):
    assert set(CHECKS) == {check for caught in found.values() for check in caught}


def test_no_verdict_is_close(found):
    """Far enough from the tolerance for another processor to give the same table."""
    assert gentlest(found)[0] > 3 * FACTOR


def test_only_the_oracle_sees_another_rotation(found):
    for name in (
        "neighbours rotated, not halves",
        "theta 10,000, whatever the config",
        "exponents off by one",
        "rotated the other way round",
    ):
        assert set(found[name]) == {"rope", "attn", "block", "logits", "grads"}, name


def test_committed_table_is_this_one(found):
    assert TABLE.read_text("utf-8") == table(found), "run `python -m tests.planted_bugs --write`"


@pytest.mark.parametrize("times", [1, 3])
def test_planting_fails_loudly_when_the_text_is_not_there_as_often(times):
    with pytest.raises(ValueError, match=f"occurs 2 times, not {times}"):
        plant(bug("wrong", "norm", ("persistent=False", "persistent=True", times)))


def test_the_copy_without_a_bug_is_the_package():
    assert dict(failures(plant(bug("nothing", "norm")))) == {}
