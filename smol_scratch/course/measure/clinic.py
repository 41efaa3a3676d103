"""What notebook 16 examines with: a case at a table."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from smol_scratch import clinic
from smol_scratch.clinic.instruments import INSTRUMENTS, trainee
from smol_scratch.clinic.instruments import language as text_with_a_rule
from smol_scratch.clinic.page import Measured, bits, symptoms
from smol_scratch.clinic.patient import Patient, admit


class Table:
    """A case on the table: its copy in a temporary folder, and what was spent on it.

    Attributes:
        one: the case.
        spent: points.
    """

    def __init__(self, name: int | str) -> None:
        """Open a case by number or key; "healthy" is a copy without a fault."""
        self._drawer = tempfile.TemporaryDirectory()
        healthy = name == "healthy"
        self.one = clinic.case(1 if healthy else name)
        faults = () if healthy else self.one.faults
        self.folder = admit(Path(self._drawer.name) / "copy", faults)
        self.patient = Patient(self.folder)
        self.spent = 0

    def complaint(self) -> None:
        """Print what somebody writes, and what is seen."""
        print(f"Case {self.one.number}, “{self.one.title}”\n")
        words, line = self.one.complaint.split(), ""
        for word in words:
            if len(line) + len(word) > 76:
                print(line)
                line = ""
            line = f"{line} {word}".strip()
        print(line)
        for line in clinic.recorded()[self.one.key]:
            print(f"  | {line}")

    def lines(self) -> dict[str, int]:
        """Return how many lines each file of the copy has."""
        files = sorted((self.folder / "smol_scratch").glob("*.py"))
        return {path.name: len(path.read_text("utf-8").splitlines()) for path in files}

    def use(self, name: str) -> bool:
        """Use an instrument, print its reading, and return whether all is as it must be."""
        cost = clinic.tools()[name].cost
        self.spent += cost
        reading = INSTRUMENTS[name](self.patient)
        print(f"{name} (cost {cost})")
        for line in reading.lines:
            print(f"  {line}")
        return reading.fine

    def read(self, file: str, first: str, last: str) -> None:
        """Print the lines of a file of the copy from the one that holds ``first`` to ``last``."""
        lines = (self.folder / "smol_scratch" / file).read_text("utf-8").splitlines()
        start = next(i for i, line in enumerate(lines) if first in line)
        end = next(i for i, line in enumerate(lines) if last in line and i >= start)
        for i in range(start, end + 1):
            print(f"{i + 1:>4}  {lines[i].replace('  # ', chr(10) + '            # ', 1)}"
                  if len(lines[i]) > 76 else f"{i + 1:>4}  {lines[i]}")  # fmt: skip

    def change(self, file: str, old: str, new: str) -> None:
        """Exchange a piece of the copy, and load it anew."""
        path = self.folder / "smol_scratch" / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {file}, not once")
        path.write_text(text.replace(old, new), "utf-8")
        self.patient = Patient(self.folder)


def moved_by_a_mask_off_by_one() -> str:
    """Return what causality says where each position sees the next one, too."""
    table = Table("healthy")
    mask = "None if whole or n_query == 1 else causal_mask(n_query, n_key, q.device)"
    table.change("model.py", f"mask = {mask}", "mask = q.new_ones(n_query, n_key).tril(1).bool()")
    table.change("model.py", "is_causal=whole", "is_causal=False")
    return INSTRUMENTS["causality"](table.patient).lines[0]


def three_checks() -> dict[str, bool]:
    """Say which of three checks of gradient accumulation see that it is not averaged."""
    case = clinic.case("loud-chorus")
    with tempfile.TemporaryDirectory() as folder:
        p = Patient(admit(Path(folder) / "copy", case.faults))
        with p.inside():
            found = []
            for size, parts in ((4, 1), (1, 4)):
                state = trainee(
                    p, text_with_a_rule(200), batch_size=size, accumulate=parts, clip=1e9
                )
                loss = p.training.train_step(state)[0]
                weights = torch.cat([w.detach().flatten() for w in state.model.parameters()])
                grads = torch.cat([w.grad.flatten() for w in state.model.parameters()])
                found.append((loss, weights, grads))
    (loss, weights, grads), (loss_4, weights_4, grads_4) = found
    return {
        "the losses agree within 1%": abs(loss_4 / loss - 1) > 0.01,
        "the weights after the step agree within 1%": bool(
            (weights_4 - weights).norm() > 0.01 * weights.norm()
        ),
        "the gradients agree within 1%": bool((grads_4 - grads).norm() > 0.01 * grads.norm()),
    }


def drawer_of(one: clinic.Case) -> str:
    """Return the drawer that a case's fault lies in."""
    return next(name for name, causes in clinic.drawers().items() if one.cause in causes)


Choose = Callable[[list[str], list[str]], str]  # suspects and instruments left: the next one


def search(found: Measured, guilty: str, suspects: Iterable[str], choose: Choose) -> int:
    """Return the points that it takes until no instrument could tell apart what is left.

    Args:
        found: what each instrument says of each case: only ✓ or ✗ is used.
        guilty: the case on the table.
        suspects: cases that are thought possible before anything was asked.
        choose: names the next instrument.
    """
    left, tools, spent = list(suspects), list(found.cost), 0
    while len({found.seen[case] for case in left}) > 1:
        tool = choose(left, tools)
        tools.remove(tool)
        spent += found.cost[tool]
        left = [case for case in left if (tool in found.seen[case]) == (tool in found.seen[guilty])]
    return spent


def strategies(found: Measured) -> dict[str, float]:
    """Return the mean points of a search over all cases, for some ways to choose a question."""

    def sees(tool: str, left: list[str]) -> int:
        return sum(tool in found.seen[case] for case in left)

    def in_order(left: list[str], tools: list[str]) -> str:
        return tools[0]

    every = [one.key for one in clinic.cases()]

    def most_thorough(left: list[str], tools: list[str]) -> str:
        return max(tools, key=lambda tool: sees(tool, every))

    def best_split(left: list[str], tools: list[str]) -> str:
        return max(tools, key=lambda tool: bits(sees(tool, left), len(left)) / found.cost[tool])

    def among(group: Callable[[clinic.Case], str], choose: Choose) -> float:
        return statistics.mean(
            search(found, one.key, [other.key for other in clinic.cases()
                                    if group(other) == group(one)], choose)
            for one in clinic.cases()
        )  # fmt: skip

    return {
        "in the list's order": among(lambda one: "", in_order),
        "the most thorough first": among(lambda one: "", most_thorough),
        "the best split for its price": among(lambda one: "", best_split),
        "… and the drawer known": among(drawer_of, best_split),
    }


def by_drawer(found: Measured) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return each case's drawer and who sees it, drawer by drawer, in no telling order."""
    order = list(clinic.drawers())
    cases = sorted(
        clinic.cases(), key=lambda one: (order.index(drawer_of(one)), one.cause)
    )  # within a drawer by the letters of the cause
    return [drawer_of(one) for one in cases], [found.seen[one.key] for one in cases]


def suspects(found: Measured) -> str:
    """Return the table from symptoms to suspects, in Markdown."""
    said = clinic.causes()
    lines = ["| symptom | suspect | seen by (cost) |", "|---|---|---|"]
    for like, cases in symptoms():
        for one in cases:
            by = ", ".join(f"{tool} ({found.cost[tool]})" for tool in found.seen[one.key])
            lines.append(f"| {like} | {said[one.cause]} | {by} |")
    return "\n".join(lines)
