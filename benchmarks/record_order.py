"""Train a small model on pages in order and on shuffled ones, and write down both courses.

``python -m benchmarks.record_order`` writes ``data/records/order.csv``, which notebook 10 reads:
three seeds each, four passes, ten minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from smol_scratch import assets, load_text, load_tokenizer
from smol_scratch.corpus import unseen_plays
from smol_scratch.course.measure import training as measure
from smol_scratch.evaluation import evenly_spaced
from smol_scratch.tokenizer import BytePairEncoding, merges_of

RECORDS = assets.ROOT / "data" / "records"
PASSES, SEEDS = 4, 3


def run(task: tuple[str, int]) -> list[list[object]]:
    torch.set_num_threads(1)
    bpe = BytePairEncoding(merges_of(load_tokenizer().backend)[: measure.SMALL.vocab_size - 256])
    tokens = bpe.encode(load_text())
    held_out = evenly_spaced(bpe.encode("\n".join(unseen_plays().values())), measure.T, 16)
    a_pass = (len(tokens) - 1) // measure.T // measure.B
    steps = PASSES * a_pass + 1
    course = measure.read_in_order(*task, tokens, held_out, steps)
    rows, losses = [], []
    for step, loss, seen in course:
        losses.append(loss)
        if seen is not None:
            mean = sum(losses) / len(losses)
            rows.append([*task, step, a_pass, f"{mean:.4f}", f"{seen:.4f}"])
            losses = []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDS)
    chosen = parser.parse_args()
    tasks = [(order, seed) for seed in range(SEEDS) for order in ("in order", "shuffled")]
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_order; torch {torch.__version__}\n")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["order", "seed", "step", "steps_per_pass", "loss", "held_out"])
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for rows in pool.map(run, tasks):
            writer.writerows(rows)
            print(rows[-1], flush=True)
    assets.write_atomically(chosen.out / "order.csv", table.getvalue().encode())


if __name__ == "__main__":
    main()
