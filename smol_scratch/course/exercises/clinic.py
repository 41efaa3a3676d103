"""Checkers for notebook 16: two cases to solve, a fault to plant, and a check to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smol_scratch import clinic
from smol_scratch.clinic.instruments import INSTRUMENTS
from smol_scratch.clinic.page import measured
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure import clinic as measure
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


POINTS = 2  # that are enough to tell four suspects apart, each instrument splitting what is left


@exercise
def check_second_report(answer: tuple[dict[str, str], str, int | str, str]) -> str:
    """Expect the marks of two points that leave one suspect, then file, line and cause."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 4 or not isinstance(answer[0], dict):
        raise Hint("an answer is (asked, file, line, cause); asked maps instruments to ✓ or ✗")
    asked, *place = answer
    key, found = clinic.case(27).key, measured()
    left = measure.narrowed(key)
    for tool, mark in asked.items():
        if tool not in found.cost:
            raise Hint(f"{tool}: no such instrument")
        if mark not in ("✓", "✗"):
            raise Hint(f"{tool}: its mark is ✓ or ✗, not {mark!r}")
        if (mark == "✗") != (tool in found.seen[key]):
            raise Hint(f"`{tool}` does not say {mark} of this copy: ask it with table.use")
        if not measure.value(found, tool, left):
            raise Hint(
                f"`{tool}` would say the same of each suspect left when you ask it: 0 bits. "
                "measure.split shows who splits them"
            )
        left = measure.agreeing(found, left, {tool: mark})
    if len(left) > 1:
        raise Hint(f"{len(left)} suspects agree with these marks: go on asking")
    if (spent := sum(found.cost[tool] for tool in asked)) > POINTS:
        raise Hint(f"these marks cost {spent} points; {POINTS} are enough, if each halves")
    return _solved(key, tuple(place))


@exercise
def check_planted(answer: tuple[str, str, str]) -> str:
    """Expect a change of a healthy copy that batch sees and causality does not."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise Hint("an answer is (file, old, new): a piece of text, and what takes its place")
    table = measure.Table("healthy")
    try:
        table.change(*answer)
    except (ValueError, FileNotFoundError) as error:
        raise Hint(str(error)) from None
    found = INSTRUMENTS["batch"](table.patient)
    if "stopped with" in found.lines[-1]:
        raise Hint(f"your copy cannot be asked, it {found.lines[-1][2:]}")
    if found.fine:
        raise Hint("`batch` still says ✓: with your change, each sequence is read by itself")
    if not INSTRUMENTS["causality"](table.patient).fine:
        raise Hint("`causality` sees it, too: your change mixes tokens of one sequence")
    return "`batch` can fail, and what it sees, `causality` does not"


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


class _ShortStride(DataLoaderLite):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = self.B * self.T


class _Overlapping(DataLoaderLite):
    def next_batch(self) -> tuple[Tensor, Tensor]:
        start = self.position + self.rank * self.B  # a rank begins B tokens on, not B · T
        super().next_batch()
        part = torch.tensor([int(i) for i in self.tokens[start : start + self.B * self.T + 1]])
        return part[:-1].view(self.B, self.T), part[1:].view(self.B, self.T)


_WRONG: dict[str, type[DataLoaderLite]] = {
    "the targets are the inputs": _Copies,
    "the targets are the token after the next": _TwoAhead,
    "every batch is the first": _Stuck,
    "two processes read the same batch": _SameForAll,
    "every second batch is skipped": _Skips,
    "two processes take overlapping batches": _Overlapping,
    "each process moves on by one batch, whatever the others took": _ShortStride,
}


def glance(Loader: type[DataLoaderLite]) -> bool:
    """Say whether one process gets what follows, in its first two batches: too little."""
    loader = Loader(list(range(61)), 2, 5)
    (x, y), (following, _) = loader.next_batch(), loader.next_batch()
    return torch.equal(y, x + 1) and bool(following[0, 0] == y[-1, -1])


def _right(loader: type[DataLoaderLite]) -> bool:
    """Compare a loader's batches with those of the package: one to three ranks, two passes."""
    for world in (1, 2, 3):
        for B, T in ((2, 5), (1, 4), (3, 2)):
            text = list(range(3 * world * B * T + 2))
            for rank in range(world):
                mine, right = (
                    kind(text, B, T, rank=rank, world_size=world)
                    for kind in (loader, DataLoaderLite)
                )
                for _ in range(7):
                    pairs = zip(mine.next_batch(), right.next_batch(), strict=True)
                    if not all(torch.equal(a, b) for a, b in pairs):
                        return False
    return True


def _passes(check: Callable[[type[DataLoaderLite]], object], loader: type[DataLoaderLite]) -> bool:
    try:
        return bool(check(loader))
    except NotImplementedError:
        raise
    except Exception:  # a crash tells, too
        return False


@exercise
def check_loader_check(
    answer: tuple[type[DataLoaderLite], Callable[[type[DataLoaderLite]], object]],
) -> str:
    """Expect a wrong loader that ``glance`` passes, and a check that sees it and seven others."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise Hint("an answer is (Faulty, loader_is_right): a class of loaders and a function")
    faulty, check = answer
    if not glance(faulty):
        raise Hint("`glance` sees the fault of your loader: plant one that it cannot see")
    if _right(faulty):
        raise Hint("your loader hands out the right batches: it has no fault to be seen")
    if not check(DataLoaderLite):
        raise Hint("your check refuses the right loader")
    for fault, wrong in _WRONG.items():
        if _passes(check, wrong):
            raise Hint(f"your check passes a loader in which {fault}")
    if _passes(check, faulty):
        raise Hint("your check passes the faulty loader that you wrote yourself")
    return "`glance` stays green with your fault; your check is red for it, and for seven others"
