"""Run the trainings that notebooks 04 and 05 compare, and write down how each one ended.

``python -m benchmarks.record_races`` writes ``fit_race.csv``, ``gate_race.csv``,
``wiring_race.csv`` and ``causes_race.csv`` in ``data/records``: an hour on one core.
``--only causes`` (or another) writes one of them.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from smol_scratch import assets
from smol_scratch.course import races

RECORDS = assets.ROOT / "data" / "records"
# (kind, target, seed)
FITS = list(itertools.product(races.FITS, races.TARGETS, range(12)))
# (kind, width, rate, seed)
GATES = list(itertools.product(races.GATES, (24, 48), (0.01, 0.02), range(12)))
# (wiring, spread, rate, seed)
SPREADS = {"0.18": 32**-0.5, "0.02": 0.02}
WIRINGS = list(itertools.product(races.WIRINGS, SPREADS, (1e-3, 2e-3, 4e-3), range(3)))
# What stops a wiring: (wiring, attention, gate, ε, spread, rate, seed), parts taken out one by one.
CAUSES = [
    *((wiring, *parts, 1e-5, "0.18", rate, seed)
      for wiring in races.WITHOUT_ATTENTION
      for parts in ((True, False), (False, True), (False, False))
      for rate in (1e-3, 2e-3, 4e-3)
      for seed in range(3)),
    *(("no residual", True, True, 1e-20, "0.02", 2e-3, seed) for seed in range(3)),
]  # fmt: skip


def fit(task: tuple[str, str, int]) -> list[object]:
    torch.set_num_threads(1)
    return [*task, f"{races.fit(*task)[1]:.4f}"]


def gate(task: tuple[str, int, float, int]) -> list[object]:
    torch.set_num_threads(1)
    kind, width, rate, seed = task
    model = races.gate_model(races.GATES[kind], width, seed)
    history, end = races.gate_race(model, seed, races.characters(), rate)
    means = [statistics.mean(history[i : i + 10]) for i in range(0, len(history), 10)]
    return [*task, f"{end:.4f}", *(f"{mean:.3f}" for mean in means)]


def twenties(history: list[float]) -> list[str]:
    return [f"{statistics.mean(history[i : i + 20]):.3f}" for i in range(0, 200, 20)]


def wiring(task: tuple[str, str, float, int]) -> list[object]:
    torch.set_num_threads(1)
    name, spread, rate, seed = task
    history = races.wiring_race(name, SPREADS[spread], rate, seed, races.characters())
    return [*task, *twenties(history)]


def cause(task: tuple[str, bool, bool, float, str, float, int]) -> list[object]:
    torch.set_num_threads(1)
    name, attention, gate, eps, spread, rate, seed = task
    history = races.wiring_race(
        name, SPREADS[spread], rate, seed, races.characters(),
        attention=attention, gate=gate, eps=eps,
    )  # fmt: skip
    with_or_not = ["with" if part else "without" for part in (attention, gate)]
    return [name, *with_or_not, eps, spread, rate, seed, *twenties(history)]


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_races; torch {torch.__version__}\n")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    assets.write_atomically(path, table.getvalue().encode())
    print(f"wrote {path}")


TENS = [f"to_{step}" for step in range(10, 201, 10)]
# name: (how one is run, which ones, the columns)
RACES: dict[str, tuple[Callable[..., list[object]], list[Any], list[str]]] = {
    "fit": (fit, FITS, ["kind", "target", "seed", "error"]),
    "gate": (gate, GATES, ["kind", "width", "rate", "seed", "held_out", *TENS]),
    "wiring": (wiring, WIRINGS, ["wiring", "spread", "rate", "seed", *TENS[1::2]]),
    "causes": (cause, CAUSES, ["wiring", "attention", "gate", "eps", "spread", "rate", "seed",
                               *TENS[1::2]]),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--only", choices=RACES)
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for name in [chosen.only] if chosen.only else RACES:
            run, tasks, header = RACES[name]
            write(chosen.out / f"{name}_race.csv", header, list(pool.map(run, tasks)))


if __name__ == "__main__":
    main()
