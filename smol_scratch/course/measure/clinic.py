"""What notebook 16 examines with: a case at a table."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from smol_scratch import clinic
from smol_scratch.clinic.instruments import INSTRUMENTS, trainee
from smol_scratch.clinic.instruments import language as text_with_a_rule
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
