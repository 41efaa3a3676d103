"""Run the trainings that notebooks 04 and 05 compare, and write down how each one ended.

``python -m benchmarks.record_races`` writes ``fit_race.csv``, ``gate_race.csv`` and
``wiring_race.csv`` in ``data/records``: half an hour on one core.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

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


def wiring(task: tuple[str, str, float, int]) -> list[object]:
    torch.set_num_threads(1)
    name, spread, rate, seed = task
    history = races.wiring_race(name, SPREADS[spread], rate, seed, races.characters())
    return [*task, *(f"{statistics.mean(history[i : i + 20]):.3f}" for i in range(0, 200, 20))]


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_races; torch {torch.__version__}\n")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    assets.write_atomically(path, table.getvalue().encode())
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RECORDS)
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.jobs) as pool:
        rows = list(pool.map(fit, FITS))
        write(chosen.out / "fit_race.csv", ["kind", "target", "seed", "error"], rows)
        rows = list(pool.map(gate, GATES))
        header = ["kind", "width", "rate", "seed", "held_out"]
        header += [f"to_{step}" for step in range(10, 201, 10)]
        write(chosen.out / "gate_race.csv", header, rows)
        rows = list(pool.map(wiring, WIRINGS))
        header = ["wiring", "spread", "rate", "seed"]
        write(
            chosen.out / "wiring_race.csv",
            header + [f"to_{step}" for step in range(20, 201, 20)],
            rows,
        )


if __name__ == "__main__":
    main()
