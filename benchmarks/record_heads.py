"""Silence each of the 270 heads of the real model where a text repeats itself, and record the cost.

``python -m benchmarks.record_heads`` writes ``data/records/silenced_heads.csv``, which notebook 03
draws: 270 passes over sixteen passages, some minutes on two quiet cores.
"""

from __future__ import annotations

import csv
import io

import torch
from tqdm import tqdm

from smol_scratch import assets, load_pretrained, load_text, load_tokenizer
from smol_scratch.course.measure import gqa

NAME = "silenced_heads.csv"
PASSAGES = 16


def main() -> None:
    """Measure, and write the record."""
    model = load_pretrained().requires_grad_(False)
    tokenizer = load_tokenizer()
    repeats = gqa.repeats(tokenizer, load_text(), PASSAGES)
    line = gqa.answer_and_line(tokenizer)
    streams = [gqa.stream(model, ids) for ids in (line[0], repeats[:, :-1])]
    horse, copied, rest = gqa.fetched(model, line, repeats, streams)
    lines = []
    heads = [(layer, head) for layer in range(30) for head in range(9)]
    for layer, head in tqdm(heads, unit="head"):
        with gqa.silenced(model, layer, head):
            p, c, r = gqa.fetched(model, line, repeats, streams, layer)
        more = r - rest
        error = more.std() / len(more) ** 0.5
        costs = [f"{x:.2f}" for x in (c - copied).tolist()]
        lines.append([layer, head, f"{p:.4f}", f"{more.mean():.4f}", f"{error:.4f}", *costs])
    file = io.StringIO()
    print(
        f"# python -m benchmarks.record_heads: one head silenced; the probability of horse (with "
        f"all heads {horse:.4f}); in {PASSAGES} passages the rise of the loss of a repeated token, "
        f"and of the other tokens (mean and standard error); torch {torch.__version__}",
        file=file,
    )
    writer = csv.writer(file, lineterminator="\n")
    columns = [f"copied_{i}" for i in range(PASSAGES)]
    writer.writerow(["layer", "head", "horse", "rest", "rest_error", *columns])
    writer.writerows(lines)
    assets.write_atomically(assets.records() / NAME, file.getvalue().encode())


if __name__ == "__main__":
    main()
