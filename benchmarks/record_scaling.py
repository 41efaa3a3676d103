"""Train small models of many sizes on many amounts of text, for notebook 14.

``python -m benchmarks.record_scaling`` appends to ``data/records/scaling.csv`` as each run ends
and skips what is there: stop it when you like and call it again. Three quarters of an hour on
one core.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch

from smol_scratch import assets
from smol_scratch.course import law, races, scaling


class Task(NamedTuple):
    """One run: its part in the notebook, and what ``scaling.train`` takes."""

    part: str
    width: int
    seed: int
    rule: str
    rate: float
    unique: int
    budgets: tuple[int, ...]


RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
RATE = 0.01  # of all runs but those that compare rates
WIDTHS = (16, 32, 48, 64, 96, 128)
ALL = scaling.TRAINED
SHORT = scaling.BUDGETS[:1]
AWARE = "width-aware"


def compared(width: int, seed: int, rule: str) -> list[Task]:
    """Return short runs that differ in the learning rate.

    With the width-aware rule, the rate of the sizes has been run with them: see its first branch.
    """
    rates = [rate for rate in RATES if rule == "plain" or rate != RATE]
    return [Task("rates", width, seed, rule, rate, ALL, SHORT) for rate in rates]


def sized(part: str, width: int, seed: int, unique: int = ALL) -> Task:
    return Task(part, width, seed, AWARE, RATE, unique, scaling.BUDGETS)


TASKS = [
    # Three seeds of three sizes say how much luck there is.
    *(sized("sizes", width, 0) for width in WIDTHS),
    *(sized("sizes", width, seed) for seed in (1, 2) for width in (16, 32, 64)),
    # Predicted from the runs above, then trained.
    sized("larger", 256, 0)._replace(budgets=scaling.BUDGETS[-2:]),
    # How often the same text can be read again.
    *(sized("repeats", 64, 0, ALL // n) for n in (16, 4)),
    # How the best rate moves with the width. At width 32 both rules are the same.
    *compared(32, 0, "plain"),
    *(task for rule in scaling.RULES for task in compared(128, 0, rule)),
    *(task for rule in scaling.RULES for task in compared(64, 0, rule)),
    sized("repeats", 16, 0, ALL // 16),
]
HEADER = ["part", "width", "seed", "rule", "rate", "unique", "budget"]
HEADER += ["parameters", "training", "held_out", "new_plays", "uncooled"]


def predict_larger(path: Path, target: Path) -> None:
    """Write down what the larger run should reach, from the sizes alone; only once."""
    if target.exists():
        return
    lines = (line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    rows = [row for row in csv.DictReader(lines) if row["part"] == "sizes"]
    runs = (
        [int(row["parameters"]) for row in rows],
        [int(row["budget"]) for row in rows],
        [float(row["held_out"]) for row in rows],
        [(row["width"], row["seed"]) for row in rows],
    )
    [task] = [task for task in TASKS if task.part == "larger"]
    size = parameters(task.width)
    found = [law.predict(*runs, size=size, length=budget) for budget in task.budgets]
    predicted = [
        [task.width, size, budget, *(f"{loss:.4f}" for loss in loss_low_high)]
        for budget, loss_low_high in zip(task.budgets, found, strict=True)
    ]
    head = f"# python -m benchmarks.record_scaling, from {len(rows)} losses, before the run itself"
    lines = [",".join(map(str, row)) for row in predicted]
    table = ["width,parameters,budget,loss,low,high", *lines]
    target.write_text("\n".join([head, *table, ""]))
    print(*table, sep="\n", flush=True)


def parameters(width: int) -> int:
    return sum(p.numel() for p in scaling.model(width, 0).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=assets.ROOT / "data" / "records")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = chosen.out / "scaling.csv"
    if not path.exists():
        first = f"# python -m benchmarks.record_scaling; torch {torch.__version__}\n"
        path.write_text(first + ",".join(HEADER) + "\n")
    with path.open() as file:
        there = {tuple(row[:7]) for row in csv.reader(file)}
    numbers = races.characters()
    for task in TASKS:
        if (*map(str, task[:6]), str(task.budgets[-1])) in there:
            continue
        if task.part == "larger":
            predict_larger(path, chosen.out / "scaling_prediction.csv")
        size = parameters(task.width)
        rows = []
        for budget, *losses in scaling.train(
            task.width, task.seed, numbers, rate=task.rate, rule=task.rule,
            unique=task.unique, budgets=task.budgets,
        ):  # fmt: skip
            shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
            rows.append([*task[:6], budget, size, *shown])
        with path.open("a") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
