"""Rehearse training steps of growing length, and write down the most memory that each one holds.

``python -m benchmarks.record_memory`` writes ``data/records/memory_by_length.csv``: two minutes on
one core, no arithmetic, no GPU. Notebook 08 reads it and repeats one row.
"""

from __future__ import annotations

import csv
import io

import torch

from smol_scratch import SmolLM2Config, assets, explicit_attention, fast_attention
from smol_scratch.course.measure import parameters as measure

LENGTHS = (512, 1024, 2048, 3072, 4096, 6144, 8192)
KINDS = {"fused": fast_attention, "written out": explicit_attention}


def main() -> None:
    config = SmolLM2Config.preset("135M")
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_memory; torch {torch.__version__}; bytes\n")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["sequences", "tokens", "attention", "peak", "attention_at_the_peak"])
    shapes = [(1, T, kind) for T in LENGTHS for kind in KINDS] + [(4, 256, "written out")]
    for B, T, kind in shapes:
        diary = measure.rehearse(config, B, T, attend=KINDS[kind])
        rows.writerow([B, T, kind, diary.peak, diary.at_the_peak()[measure.ATTENTION]])
        print(B, T, kind, f"{diary.peak / 1e9:.2f} GB", flush=True)
    path = assets.ROOT / "data" / "records" / "memory_by_length.csv"
    assets.write_atomically(path, table.getvalue().encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
