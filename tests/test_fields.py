"""Dataclasses that check themselves: each field's type, each bound, from either side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from smol_scratch.fields import check, number


@dataclass(frozen=True)
class Sample:
    count: int = number(1, least=1, most=9)
    share: float = number(0.5, above=0, below=1)
    maybe: int | None = number(None, least=2)
    word: Literal["one", "two"] = "one"
    on: bool = True
    name: str | None = None
    path: Path = Path("x")

    def __post_init__(self):
        check(self)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("count", 0, "at least 1 and at most 9"),
        ("count", 10, "at least 1 and at most 9"),
        ("count", 1.5, "a whole number"),
        ("count", True, "a whole number"),
        ("count", "3", "a whole number"),
        ("count", None, "a whole number"),
        ("share", 0.0, "above 0 and below 1"),
        ("share", 1, "above 0 and below 1"),
        ("share", float("nan"), "a finite number"),
        ("share", float("inf"), "a finite number"),
        ("share", "0.5", "a finite number"),
        ("share", 10**40, "above 0 and below 1"),
        ("maybe", 1, "at least 2"),
        ("maybe", 2**63, "a whole number of at most 64 bits"),
        ("word", "three", "one of one, two"),
        ("on", 1, "True or False"),
        ("name", 3, "a string"),
        ("path", "x", "a Path"),
    ],
)
def test_what_does_not_fit_is_named_with_its_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"^{field}={value!r}: must be {rule}$"):
        Sample(**{field: value})


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("field", ["count", "share", "maybe"])
@pytest.mark.parametrize("digits", [400, 5000])  # more than a float has, more than Python prints
def test_a_huge_number_is_refused_in_few_words(field, digits, sign):
    shown = f"{'-' * (sign < 0)}~10\\^{digits}"
    with pytest.raises(ValueError, match=rf"^{field}={shown}: must be ") as told:
        Sample(**{field: sign * 10**digits})
    assert len(str(told.value)) < 80


@pytest.mark.parametrize(
    "fine",
    [{"count": 9}, {"share": 0.01}, {"maybe": 2}, {"maybe": None}, {"word": "two"}, {"name": "a"}],
)
def test_what_fits_is_taken(fine):
    Sample(**fine)


def test_a_long_value_is_refused_and_told_in_short():
    with pytest.raises(ValueError, match=r"^share=.{60}: must be a finite number$"):
        Sample(share="9" * 4000)
