"""The questions of each notebook: to predict before, and to answer after.

One TOML file per notebook holds them; ``python -m smol_scratch.course.notebook questions`` writes
them into its two cells.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

BEFORE, AFTER = "questions-before", "questions-after"  # the tags of the two cells
LETTERS = "ABCDE"


def read(stem: str) -> list[dict[str, Any]]:
    """Return a notebook's questions.

    Args:
        stem: its file's name without ".ipynb".

    Returns:
        Of each question ``ask``, and its ``choice`` list: what it ``say``s, ``why`` it is right or
        wrong, and ``right`` for the one that is.

    Raises:
        ValueError: when a question has not exactly one right choice of three to five, or a choice
            lacks its reason.
    """
    text = files(__package__).joinpath(f"{stem}.toml").read_text("utf-8")
    questions = tomllib.loads(text)["question"]
    for question in questions:
        choices = question["choice"]
        if not 3 <= len(choices) <= 5 or sum(c.get("right", False) for c in choices) != 1:
            raise ValueError(f"{stem}: {question['ask']!r} needs 3 to 5 choices, one of them right")
        if missing := [c["say"] for c in choices if not c.get("why")]:
            raise ValueError(f"{stem}: the choice {missing[0]!r} lacks its reason")
    return questions


def before(stem: str) -> str:
    """Return the Markdown of the cell near the top: the questions and their choices, unanswered."""
    lines = ["<details><summary><b>Predict first</b>: guess now, check at the end</summary>", ""]
    for number, question in enumerate(read(stem), start=1):
        lines += [f"{number}. {question['ask']}"]
        choices = zip(LETTERS, question["choice"], strict=False)
        lines += [f"    - **{letter}** {choice['say']}" for letter, choice in choices] + [""]
    return "\n".join([*lines, "</details>"])


def after(stem: str) -> str:
    """Return the Markdown of the cell at the end: each question with every choice explained."""
    lines = ["## What did you predict?", ""]
    for number, question in enumerate(read(stem), start=1):
        lines += [f"<details><summary>{number}. {question['ask']}</summary>", ""]
        for letter, choice in zip(LETTERS, question["choice"], strict=False):
            sign = "✓" if choice.get("right") else "✗"
            lines += [f"- {sign} **{letter}** *{choice['say']}* {choice['why']}"]
        lines += ["", "</details>", ""]
    return "\n".join(lines).strip()
