"""What notebook 16 examines with: a case at a table."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from smol_scratch import clinic, hub
from smol_scratch.clinic import instruments
from smol_scratch.clinic.instruments import (
    INSTRUMENTS,
    apart,
    losses,
    model,
    steady,
    tokens,
    trainee,
)
from smol_scratch.clinic.instruments import language as text_with_a_rule
from smol_scratch.clinic.page import Measured, bits, measured
from smol_scratch.clinic.patient import Patient, admit
from smol_scratch.clinic.symptoms import symptom


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

    def observe(self) -> None:
        """Do what the complaint tells of with the copy as it is now, and print what is seen."""
        for line in symptom(self.one, self.patient):
            print(f"  | {line}")

    def test(self, text: str) -> bool:
        """Run a case's smallest test, and return whether the copy passes."""
        given = vars(instruments) | {"torch": torch, "hub": hub, "p": self.patient}
        with torch.random.fork_rng(devices=[]), self.patient.inside():
            torch.manual_seed(0)
            try:
                exec(text, given)
            except (AssertionError, ValueError):
                return False
        return True

    def use_all(self) -> dict[str, bool]:
        """Use every instrument, print nothing, and return whether all is as it must be."""
        return {name: use(self.patient).fine for name, use in INSTRUMENTS.items()}

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
            code, _, comment = lines[i].partition("  # ")
            if comment and len(lines[i]) > 76:  # too wide with its number: above the line
                print(f"{'':>4}  {code[: len(code) - len(code.lstrip())]}# {comment}")
            print(f"{i + 1:>4}  {code if len(lines[i]) > 76 else lines[i]}")

    def change(self, file: str, old: str, new: str) -> None:
        """Exchange a piece of the copy, and load it anew."""
        path = self.folder / "smol_scratch" / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {file}, not once")
        path.write_text(text.replace(old, new), "utf-8")
        self.patient = Patient(self.folder)


def narrowed(number: int | str) -> list[str]:
    """Return the cases that could give a report about greedy text with and without a cache.

    Every case is asked: does what the report did show some ✗ with its copy?
    """
    return list(_narrowed(clinic.case(number).key))


@functools.cache
def _narrowed(number: str) -> tuple[str, ...]:
    report = clinic.case(number)
    return tuple(one.key for one in clinic.cases() if "✗" in marks(report, one.key))


def marks(report: clinic.Case, key: str) -> str:
    """Do with the copy of a case what another's report did; return ✓ and ✗, none if it stops."""
    table = Table(key)
    try:
        return "".join(symptom(report, table.patient)).rpartition(" ")[2]
    except ValueError:
        return ""


def three_learn() -> dict[str, tuple[float, float, bool]]:
    """Return the first loss, the one that ``learns`` looks at, and its mark, for three copies."""
    healthy, without, made = Table("healthy"), Table("healthy"), "return self.o_proj("
    without.change("model.py", made, made.replace("return", "return 0 *"))
    tables = {
        "a healthy copy": healthy,
        "attention's output times zero": without,
        "our patient": Table("blame-the-cache"),
    }
    found = {}
    for name, table in tables.items():
        p = table.patient
        with p.inside(), steady(), torch.random.fork_rng(devices=[]):
            state = trainee(p, text_with_a_rule(100 * 64 + 1), steps=100)
            curve = losses(p, state)
        found[name] = curve[0], statistics.mean(curve[-20:]), INSTRUMENTS["learns"](p).fine
    return found


def rounding(dtype: torch.dtype) -> float:
    """Return the largest difference of scores with and without a cache, in a healthy copy."""
    p = Table("healthy").patient
    with p.inside(), torch.no_grad():
        made, ids = model(p).to(dtype), tokens(2, 13)
        store = p.cache.KVCache(made.config, 2, dtype=dtype)
        ones = [made(ids[:, i : i + 1], cache=store)[0] for i in range(13)]
        return apart(made(ids)[0].float(), torch.cat(ones, dim=1).float())


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
                before = [w.detach().clone() for w in state.model.parameters()]
                loss = p.training.train_step(state)[0]
                after = list(state.model.parameters())
                step = torch.cat(
                    [(w.detach() - old).flatten() for w, old in zip(after, before, strict=True)]
                )
                grads = torch.cat([w.grad.flatten() for w in after])
                found.append((loss, step, grads))
    (loss, step, grads), (loss_4, step_4, grads_4) = found
    return {
        "the losses agree within 1%": abs(loss_4 / loss - 1) > 0.01,
        "the changes of the weights agree within 1%": bool(
            (step_4 - step).norm() > 0.01 * step.norm()
        ),
        "the gradients agree within 1%": bool((grads_4 - grads).norm() > 0.01 * grads.norm()),
    }


def drawer_of(one: clinic.Case) -> str:
    """Return the drawer that a case's fault lies in."""
    return next(name for name, causes in clinic.drawers().items() if one.cause in causes)


Choose = Callable[[list[str], list[str]], str]  # suspects and instruments left: the next one


def steps(
    found: Measured, guilty: str, suspects: Iterable[str], choose: Choose
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each instrument that a search uses, and the suspects before and after it.

    It ends when no instrument could tell apart what is left.

    Args:
        found: what each instrument says of each case: only ✓ or ✗ is used.
        guilty: the case on the table.
        suspects: cases that are thought possible before anything was asked.
        choose: names the next instrument.
    """
    left, tools = list(suspects), list(found.cost)
    while len({found.seen[case] for case in left}) > 1:
        tool = choose(left, tools)
        tools.remove(tool)
        before = left
        left = [case for case in left if (tool in found.seen[case]) == (tool in found.seen[guilty])]
        yield tool, before, left


def search(found: Measured, guilty: str, suspects: Iterable[str], choose: Choose) -> int:
    """Return the points that it takes until no instrument could tell apart what is left."""
    return sum(found.cost[tool] for tool, _, _ in steps(found, guilty, suspects, choose))


def value(found: Measured, tool: str, left: Sequence[str]) -> float:
    """Return what an instrument's mark is worth while these are the suspects, in bits."""
    return bits(sum(tool in found.seen[case] for case in left), len(left))


def agreeing(found: Measured, left: Iterable[str], asked: Mapping[str, str]) -> list[str]:
    """Return the suspects that agree with the marks: instrument to ✓ or ✗."""
    return [
        case for case in left
        if all((mark == "✗") == (tool in found.seen[case]) for tool, mark in asked.items())
    ]  # fmt: skip


def split(left: Sequence[str], asked: Mapping[str, str] | None = None) -> None:
    """Print what instruments are worth, the most bits per point first.

    Args:
        left: the suspects before anything was asked.
        asked: the marks since: instrument to ✓ or ✗. Suspects that do not agree are out.
    """
    found = measured()
    left = agreeing(found, left, asked or {})
    print(f"{len(left)} suspect{'s' if len(left) != 1 else ''} left")
    worth = {tool: value(found, tool, left) for tool in found.cost} if left else {}
    for tool in sorted(worth, key=lambda tool: -worth[tool] / found.cost[tool]):
        if worth[tool]:
            sees = sum(tool in found.seen[case] for case in left)
            print(f"  {tool:<10}cost {found.cost[tool]}   would see {sees} of {len(left)}   "
                  f"{worth[tool]:.2f} bits")  # fmt: skip


def best_split(found: Measured) -> Choose:
    """Return the rule that takes the most bits per point; among equals, the first in the list."""
    return lambda left, tools: max(
        tools, key=lambda tool: value(found, tool, left) / found.cost[tool]
    )


def strategies(found: Measured) -> dict[str, float]:
    """Return the mean points of a search over all cases, for some ways to choose a question.

    No way asks an instrument that would say the same of each suspect left.
    """
    every = [one.key for one in clinic.cases()]

    def in_order(left: list[str], tools: list[str]) -> str:
        return tools[0]

    def most_seeing(left: list[str], tools: list[str]) -> str:
        return max(tools, key=lambda tool: sum(tool in found.seen[case] for case in every))

    def among(group: Callable[[clinic.Case], str], choose: Choose) -> float:
        def useful(left: list[str], tools: list[str]) -> str:
            return choose(left, [tool for tool in tools if value(found, tool, left)])

        return statistics.mean(
            search(found, one.key, [other.key for other in clinic.cases()
                                    if group(other) == group(one)], useful)
            for one in clinic.cases()
        )  # fmt: skip

    return {
        "in list order, cheap ones first": among(lambda one: "", in_order),
        "what sees most faults first": among(lambda one: "", most_seeing),
        "the most bits per point": among(lambda one: "", best_split(found)),
        "the most bits per point,\ntold the right drawer": among(drawer_of, best_split(found)),
    }


def by_drawer(found: Measured) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return each case's drawer and who sees it, drawer by drawer, in no telling order."""
    order = list(clinic.drawers())
    cases = sorted(
        clinic.cases(), key=lambda one: (order.index(drawer_of(one)), one.cause)
    )  # within a drawer by the letters of the cause
    return {one.key: (drawer_of(one), found.seen[one.key]) for one in cases}


def shelf(first: Sequence[str], found: Measured, left: Sequence[str]) -> str:
    """Return some instruments with what they are worth for these suspects; the others folded."""
    tools, places = clinic.tools(), [drawer_of(clinic.case(key)) for key in left]
    drawers = [drawer for drawer in clinic.drawers() if drawer in places]
    rows = [
        f"| instrument | its question | would see ({' + '.join(drawers)}) | bits | cost "
        "| bits per point |",
        "|---|---|:-:|:-:|:-:|:-:|",
    ]
    for name in first:
        seen = [place for case, place in zip(left, places, strict=True) if name in found.seen[case]]
        sees = " + ".join(str(seen.count(drawer)) for drawer in drawers)
        rows.append(
            f"| `{name}` | {tools[name].asks} | {sees} of {len(left)} | "
            f"{value(found, name, left):.2f} | {tools[name].cost} | "
            f"{value(found, name, left) / tools[name].cost:.2f} |"
        )
    others = ["| instrument | its question | cost |", "|---|---|:-:|"]
    others += [
        f"| `{name}` | {tool.asks} | {tool.cost} |"
        for name, tool in tools.items()
        if name not in first
    ]
    shown, folded = "\n".join(rows), "\n".join(others)
    return (
        f"{shown}\n\n<details><summary>The other {len(others) - 2}, for the exercises</summary>"
        f"\n\n{folded}\n\n</details>"
    )
