"""Let the real weights read with wrong, rounded and stretched rotations, and write down the losses.

``python -m benchmarks.record_rope`` writes two files into ``data/records``, from passages of the
tiny Shakespeare text at even distances: ``rotations.csv``, five of 768 tokens; and
``beyond_context.csv``, three that are one and a half times as long as the context that the model
was trained for, in bfloat16 (but RoPE's tables), which moves a mean by less than 0.01. A quarter of
an hour on one core with units for bfloat16; ``--only`` does one of them.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from smol_scratch import assets, load_pretrained, load_text, load_tokenizer
from smol_scratch.course.measure import rope as measure

RECORDS = assets.ROOT / "data" / "records"
Row = list[object]
TYPES = {"rotations": torch.float32, "beyond_context": torch.bfloat16}
# file: (passages, of how many that lie evenly in the text, tokens of one, tokens of one mean)
SIZES = {"rotations": (5, 6, 768, 128), "beyond_context": (3, 3, 12_288, 1_024)}


def rows(only: str) -> Iterator[list[Row]]:
    passages, places, length, stretch = SIZES[only]
    model = load_pretrained(quiet=True).eval().to(TYPES[only])
    text = torch.tensor(load_tokenizer().encode(load_text()))
    if only == "rotations":
        names = (*measure.WRONG, *measure.ROUNDED, *measure.SLOWED)
        rotations = {name: measure.rotation(name, length) for name in names}
    else:
        rotations = {name: measure.stretched(name, length, 1.5) for name in measure.STRETCHED}
    for passage in range(passages):
        start = passage * (len(text) - length - 1) // (places - 1)
        tokens = text[start : start + length + 1]
        for name, rope in rotations.items():
            losses = measure.losses_with(model, rope, tokens[None])[0]
            yield summary(name, passage, losses, stretch)


def summary(name: str, passage: int, losses: Tensor, stretch: int) -> list[Row]:
    means = losses.view(-1, stretch).mean(1).tolist()
    return [[name, passage, stretch * i, f"{mean:.4f}"] for i, mean in enumerate(means, start=1)]


def write(path: Path, table: list[Row], stretch: int, dtype: torch.dtype) -> None:
    file = io.StringIO()
    file.write(f"# python -m benchmarks.record_rope; torch {torch.__version__}, "
               f"{str(dtype).removeprefix('torch.')}; means over {stretch} tokens that end at "
               "position `end`, in nats per token\n")  # fmt: skip
    csv.writer(file, lineterminator="\n").writerows([["rotation", "passage", "end", "loss"]])
    csv.writer(file, lineterminator="\n").writerows(table)
    assets.write_atomically(path, file.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SIZES)
    parser.add_argument("--out", type=Path, default=RECORDS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for only in [chosen.only] if chosen.only else SIZES:
        table: list[Row] = []
        for some in rows(only):
            table += some
            write(chosen.out / f"{only}.csv", table, SIZES[only][3], TYPES[only])
            print(only, some[0][:2], [row[3] for row in some], flush=True)


if __name__ == "__main__":
    main()
