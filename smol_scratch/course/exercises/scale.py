"""Checkers for notebook 14, scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.notebook import read_record

_KEYS = ("N", "D", "N, a hundred times the budget")


@exercise
def check_split(answer: Mapping[str, float]) -> str:
    """Expect the best split of N · D = 1,000,000 under L = 1 + 10/√N + 20/√D, and how it grows."""
    if not isinstance(answer, Mapping) or set(answer) != set(_KEYS):
        raise Hint(f"the answer is a dictionary with {', '.join(repr(key) for key in _KEYS)}")
    n, d, more = (float(answer[key]) for key in _KEYS)
    if n <= 0 or d <= 0 or abs(n * d / 1e6 - 1) > 0.01:
        raise Hint(f"N · D is {n * d:,.0f}; the budget is 1,000,000")
    if abs(n / d - 1) < 0.01:
        raise Hint("half and half: but a token's term starts twice as large as a parameter's")
    if abs(n / 2000 - 1) < 0.01:
        raise Hint("the two are the wrong way round: it is text that is dear here")
    if abs(n / 500 - 1) > 0.01:
        loss, there = (1 + 10 / x**0.5 + 20 / (1e6 / x) ** 0.5 for x in (n, n * 1.1))
        way = "larger" if there < loss else "smaller"
        raise Hint(f"with N = {n:,.0f} the loss is {loss:.3f}; a {way} model would be better")
    if abs(more / 50_000 - 1) < 0.01:
        raise Hint("all of the hundred went into the model; the text wants its share")
    if abs(more / 5000 - 1) > 0.01:
        raise Hint(f"{more:,.0f} parameters: both terms must stay equal as N and D grow together")
    return "equal exponents: model and text grow alike, each with the root of the budget"


class Wire:
    """Carries numbers from one worker to another, and counts how many each has sent."""

    def __init__(self, workers: int) -> None:
        self.sent = [0] * workers

    def __call__(self, sender: int, numbers: Tensor) -> Tensor:
        """Return what arrives of what ``sender`` has sent."""
        self.sent[sender] += numbers.numel()
        return numbers.clone()


@exercise
def check_ring(answer: Callable[[list[Tensor], Wire], list[Tensor]]) -> str:
    """Expect an all-reduce in which no worker sends more than 2 (n − 1) / n of the tensor."""
    most = 0.0
    for workers, length in ((2, 8), (4, 24), (5, 40)):
        generator = torch.Generator().manual_seed(workers)
        tensors = [torch.randint(9, (length,), generator=generator) for _ in range(workers)]
        total = torch.stack(tensors).sum(0)
        wire = Wire(workers)
        found = answer([tensor.clone() for tensor in tensors], wire)
        if not isinstance(found, list | tuple) or len(found) != workers:
            raise Hint(f"return a list of {workers} tensors, one for each worker")
        if any(not isinstance(t, Tensor) or t.shape != total.shape for t in found):
            raise Hint(f"each worker ends with a tensor of {length} numbers, as it began")
        right = [torch.equal(t, total) for t in found]
        if not any(right):
            raise Hint(f"with {workers} workers nobody holds the sum at the end")
        if not all(right):
            raise Hint(f"with {workers} workers, worker {right.index(False)} lacks the sum of all")
        if sum(wire.sent) < 2 * (workers - 1) * length:
            raise Hint(
                "the sum is with workers that nothing was sent to: use `wire` for each piece"
            )
        allowed = 2 * (workers - 1) * length // workers
        if max(wire.sent) > allowed:
            busiest = wire.sent.index(max(wire.sent))
            raise Hint(
                f"right, but worker {busiest} of {workers} sent {max(wire.sent)} numbers; "
                f"in a ring {allowed} are enough"
            )
        most = max(most, max(wire.sent) / length)
    return f"nobody sent more than {most:.1f} times the tensor, and 2 is the limit for any number"


class Run(NamedTuple):
    """One loss as a colleague reports it: parameters, seed, characters, and nats."""

    size: int
    seed: int
    length: int
    loss: float


Place = tuple[int, int, int]  # parameters, seed and characters
SPOILED: Place = (89_472, 0, 458_752)  # the run that was read before its cooldown


def reported(spoiled: Place = SPOILED) -> list[Run]:
    """Return the 48 losses of the law, of which one was read before its cooldown."""
    runs = []
    for row in read_record("scaling.csv"):
        if row["part"] == "sizes":
            place = row["parameters"], row["seed"], row["budget"]
            runs.append(Run(*place, row["uncooled" if place == spoiled else "held_out"]))
    return runs


def spoilable() -> list[Place]:
    """Return where a loss without cooldown is recorded too: everywhere but at the last length."""
    return [
        (row["parameters"], row["seed"], row["budget"])
        for row in read_record("scaling.csv")
        if row["part"] == "sizes" and row["uncooled"]
    ]


@exercise
def check_spoiled(answer: int) -> str:
    """Expect the place of the loss that was read too early."""
    runs = reported()
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(runs):
        raise Hint(f"the answer is a place in the list, from 0 to {len(runs) - 1}")
    run = runs[answer]
    if run[:3] == SPOILED:
        return "its rate was still high: the cooldown was missing, and with it several percent"
    if (run.size, run.seed) == (7_008, 0):
        raise Hint("all four lengths of this run lie well above the law: that is a seed's luck. "
                   "A missing cooldown lifts one length alone")  # fmt: skip
    if (run.size, run.length) == (7_008, 917_504):
        raise Hint("above the rest of its run, but on the law: this seed's short lengths were "
                   "lucky. And the trunk does not go on to the last length without a "
                   "cooldown")  # fmt: skip
    raise Hint(f"the run of {run.size:,} parameters, seed {run.seed}, on {run.length:,} characters "
               "lies closer to the rest of its run than another one does")  # fmt: skip
