"""No checker of an exercise takes a plausible wrong answer, and each has a hint that fits."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tests.course.wrong
from smol_scratch.course import exercises
from tests.course.wrong.rmsnorm import WRONG as OF_RMSNORM

TOPICS = [module.name for module in pkgutil.iter_modules(exercises.__path__)]
CHECKERS = [
    (topic, name)
    for topic in TOPICS
    for name in vars(importlib.import_module(f"{exercises.__name__}.{topic}"))
    if name.startswith("check_")
]


def wrong_answers(topic, name):
    return importlib.import_module(f"{tests.course.wrong.__name__}.{topic}").WRONG[name]


def unfit(topic, name, answers, capsys):
    """Return what of a checker's answers to wrong ones is no hint, or not the one expected."""
    checker = getattr(importlib.import_module(f"{exercises.__name__}.{topic}"), name)
    found = []
    for number, (answer, hint) in enumerate(answers):
        checker(answer)
        line = capsys.readouterr().out
        if not line.startswith("not yet: ") or "your code stopped" in line or hint not in line:
            found.append(f"answer {number}: {line.strip()}")
    return found


# These checkers run the real model, or count through it, for each wrong answer.
LONG = [*(pair for pair in CHECKERS if pair[0] == "inside"), ("flops", "check_recomputed"),
        ("parameters", "check_leak")]  # fmt: skip


def test_the_long_ones_are_there():
    assert set(LONG) <= set(CHECKERS)


@pytest.mark.parametrize(
    ("topic", "name"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair in LONG else []) for pair in CHECKERS],
)
def test_three_plausible_wrong_answers_get_the_hint_that_fits(topic, name, capsys):
    answers = wrong_answers(topic, name)
    assert len(answers) >= 3, f"tests/course/wrong/{topic}.py: three wrong answers for {name}"
    assert unfit(topic, name, answers, capsys) == []


@pytest.mark.parametrize("topic", TOPICS)
def test_the_tables_name_the_checkers_that_are_there(topic):
    module = importlib.import_module(f"{tests.course.wrong.__name__}.{topic}")
    assert set(module.WRONG) == {name for of, name in CHECKERS if of == topic}


def test_a_crash_or_a_right_answer_is_no_wrong_answer(capsys):
    assert len(unfit("rmsnorm", "check_neighbours", [(0.197, ""), ("x", "")], capsys)) == 2
    assert unfit("rmsnorm", "check_neighbours", OF_RMSNORM["check_neighbours"], capsys) == []
