"""Train tiny models with 9, 3, 1 or no key-value heads, and write down how each one ended.

``python -m benchmarks.record_groups`` writes ``data/records/grouped_runs.csv``: some minutes on
one core. Without key-value heads there is no attention.
"""

from __future__ import annotations

import csv
import io

import torch

from smol_scratch import assets
from smol_scratch.course.measure.gqa import grouped_run

SEEDS = 3


def main() -> None:
    torch.set_num_threads(1)
    file = io.StringIO()
    file.write(f"# python -m benchmarks.record_groups; torch {torch.__version__}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["key_value_heads", "seed", "held_out"])
    for seed in range(SEEDS):
        for groups in (9, 3, 1, 0):
            writer.writerow([groups, seed, f"{grouped_run(groups, seed):.4f}"])
    path = assets.ROOT / "data" / "records" / "grouped_runs.csv"
    assets.write_atomically(path, file.getvalue().encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
