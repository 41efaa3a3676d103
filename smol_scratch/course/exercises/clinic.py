"""Checkers for notebook 16: three cases to solve, and a check to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smol_scratch import clinic
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.data import DataLoaderLite


def _solved(key: str, answer: Any) -> str:
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise Hint("an answer is (file, line, cause): the line as a number, or a piece of its text")
    file, line, cause = answer
    if not isinstance(line, str):
        line = int(line)
    try:
        verdict = clinic.judge(clinic.case(key), str(file), line, str(cause))
    except ValueError as error:
        raise Hint(str(error)) from None
    if not verdict.right:
        raise Hint(verdict.words)
    return clinic.case(key).solution


@exercise
def check_nothing_happens(answer: tuple[str, int | str, str]) -> str:
    """Expect file, line and cause of case 1."""
    return _solved("nothing-happens", answer)


@exercise
def check_selective_memory(answer: tuple[str, int | str, str]) -> str:
    """Expect file, line and cause of the case with a cache that was cut."""
    return _solved("selective-memory", answer)


@exercise
def check_no_way_back(answer: tuple[str, int | str, str]) -> str:
    """Expect file, line and cause of the case with equal weights and other scores."""
    return _solved("no-way-back", answer)


class _Copies(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        x, _ = super().next_batch()
        return x, x.clone()


class _TwoAhead(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        x, y = super().next_batch()
        return x, y.flatten().roll(-1).view_as(y)


class _Stuck(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        batch = super().next_batch()
        self.position = 0
        return batch


class _SameForAll(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.rank = 0
        return super().next_batch()


class _Skips(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        batch = super().next_batch()
        super().next_batch()
        return batch


_WRONG: dict[str, type[DataLoaderLite]] = {
    "the targets are the inputs": _Copies,
    "the targets are the token after the next": _TwoAhead,
    "every batch is the first": _Stuck,
    "two processes read the same batch": _SameForAll,
    "every second batch is skipped": _Skips,
}


@exercise
def check_loader_check(answer: Callable[[type[DataLoaderLite]], object]) -> str:
    """Expect a function that says whether a class of loaders is right."""
    with torch.random.fork_rng(devices=[]):
        if not answer(DataLoaderLite):
            raise Hint("your check refuses the right loader")
        for fault, wrong in _WRONG.items():
            try:
                passed = answer(wrong)
            except Exception:  # a crash tells, too
                passed = False
            if passed:
                raise Hint(f"your check passes a loader in which {fault}")
    return "it passes the right loader, and you have seen it fail on five wrong ones"
