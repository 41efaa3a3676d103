"""Silence each of the sixty branches of the real model, and record what it costs.

``python -m benchmarks.record_inside`` writes ``data/records/inside_branches.csv``, which notebook
13 draws: sixty passes over eight excerpts, five minutes on two quiet cores.
"""

from __future__ import annotations

import csv
import io

import torch
from tqdm import tqdm

from smol_scratch import assets, load_pretrained, load_text, load_tokenizer
from smol_scratch.course import inside
from smol_scratch.evaluation import evenly_spaced

NAME = "inside_branches.csv"
EXCERPTS, T = 8, 64


def main() -> None:
    """Measure, and write the record."""
    model = load_pretrained().requires_grad_(False)
    rows = evenly_spaced(load_tokenizer().encode(load_text()), T, EXCERPTS)
    before = inside.losses(model, rows)
    lines = []
    for layer in tqdm(range(model.config.n_layer), unit="block"):
        for branch in ("self_attn", "mlp"):
            with inside.silenced_branch(model, layer, branch):
                after = inside.losses(model, rows)
            rises = [f"{a - b:.4f}" for a, b in zip(after, before, strict=True)]
            lines.append([layer, branch, *rises])
    file = io.StringIO()
    print(
        f"# python -m benchmarks.record_inside: rise of the loss in nats per token when a branch "
        f"writes nothing, on {EXCERPTS} excerpts of {T} tokens; torch {torch.__version__}",
        file=file,
    )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["layer", "branch", *(f"excerpt_{i}" for i in range(EXCERPTS))])
    writer.writerows(lines)
    assets.write_atomically(assets.records() / NAME, file.getvalue().encode())


if __name__ == "__main__":
    main()
