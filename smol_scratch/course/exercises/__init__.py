"""Checkers for the notebooks' exercises: what is still wrong, with a hint.

One file per notebook. A checker is called with the reader's answer, prints one line, and returns
nothing; the line starts with "correct" when the answer is right. It compares the answer with a
result that it computes itself, and never shows that result before the reader has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import wraps
from typing import Any

import torch


class Hint(Exception):  # noqa: N818 (not an error: a hint)
    """Raised by a checker to say what is still wrong."""


def exercise(check: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a checker out of a function that raises ``Hint`` or returns what was shown.

    An answer that is None or ``...``, or a dictionary with ``...`` in it, or a function that raises
    NotImplementedError, counts as not done yet; any other error of the reader's code is named, not
    raised. A single number may come as a tensor, an array or a fraction. The reader's random
    numbers stay where they were.
    """

    @wraps(check)
    def checker(answer: Any) -> None:
        values = answer.values() if isinstance(answer, Mapping) else (answer,)
        if answer is None or any(value is ... for value in values):
            print("not done yet: fill in your answer and run the cell again")
            return
        if getattr(answer, "ndim", None) == 0:
            answer = answer.item()
        if isinstance(answer, Fraction):
            answer = float(answer)
        if isinstance(answer, float) and math.isnan(answer):
            print("not yet: nan is no number; something was divided by zero on the way")
            return
        try:
            with torch.random.fork_rng(devices=[]):
                shown = check(answer)
            print(f"correct: {shown}")
        except NotImplementedError:
            print("not done yet: write your code in place of `raise NotImplementedError`")
        except Hint as hint:
            print(f"not yet: {hint}")
        except Exception as error:
            print(f"not yet: your code stopped with {type(error).__name__}: {error}")

    return checker
