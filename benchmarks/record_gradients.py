"""Train small models with wrong gradients, and with two rules; write down what became of them.

``python -m benchmarks.record_gradients`` writes ``data/records/wrong_gradients.csv`` and
``data/records/rows_moved.csv``, read by notebook 15: some minutes on one core.

Characters of Shakespeare, two blocks 48 wide, 8 × 32 characters a step, every gradient written by
hand (``smol_scratch/backward.py``). The first record: AdamW at 0.01 for 60 steps, with one bug of
``course/measure/backward.py`` in the backward pass. The second: the right gradient for 60 steps
with AdamW at 0.003 or plain gradient descent at 0.3: how far each row of the table moved, and how
steadily its gradients pointed one way.
"""

from __future__ import annotations

import csv
import io

import torch

from smol_scratch import assets
from smol_scratch.course import races
from smol_scratch.course.measure import backward as measure

SEEDS = range(3)


def wrong_gradients() -> None:
    letters, table = races.characters(), io.StringIO()
    table.write("# python -m benchmarks.record_gradients; nats per character, means of 10 steps\n")
    out = csv.writer(table, lineterminator="\n")
    out.writerow(["gradient", "seed", *(f"to_{step}" for step in range(10, 61, 10))])
    for name in ("right", *measure.WRONG):
        for seed in SEEDS:
            losses, _ = measure.trained(name, seed, letters)
            means = [sum(losses[i : i + 10]) / 10 for i in range(0, 60, 10)]
            out.writerow([name, seed, *(f"{mean:.4f}" for mean in means)])
            print(name, seed, f"{means[-1]:.4f}", flush=True)
    records = assets.ROOT / "data" / "records"
    assets.write_atomically(records / "wrong_gradients.csv", table.getvalue().encode())


def rows_moved() -> None:
    letters, table = races.characters(), io.StringIO()
    table.write("# python -m benchmarks.record_gradients; how far each character's row moved\n")
    out = csv.writer(table, lineterminator="\n")
    out.writerow(["rule", "seed", "character", "count", "distance", "steadiness"])
    for rule in ("AdamW", "SGD"):
        for seed in SEEDS:
            rows = measure.rows_moved(rule, seed, letters)
            each = zip(
                rows.counts.tolist(), rows.distance.tolist(), rows.steadiness.tolist(), strict=True
            )
            for number, (count, distance, steady) in enumerate(each):
                out.writerow([rule, seed, number, count, f"{distance:.4f}", f"{steady:.3f}"])
            print(rule, seed, flush=True)
    records = assets.ROOT / "data" / "records"
    assets.write_atomically(records / "rows_moved.csv", table.getvalue().encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    wrong_gradients()
    rows_moved()
