"""Measure with which loss fresh models of full size begin, and write it down for notebook 06.

``python -m benchmarks.record_starts`` writes ``data/records/starts.csv``: twenty seeds, two ways to
draw the weights; five minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import SmolLM2, SmolLM2Config, assets, load_text, load_tokenizer

SPREADS = {"0.02": 0.02, "1/24": 1 / 24}
HEADER = ["std", "seed", "tied", "tied_shuffled", "untied", "stream", "without_norm"]


@torch.no_grad()
def start(label: str, seed: int, ids: Tensor) -> list[object]:
    """Return the losses of one fresh model on 256 tokens: ids (257,).

    With the embedding as head and with a head of its own; with the tokens that come replaced by
    other ones, drawn by lot a hundred times; and with the final norm forgotten. Before that last
    loss stands the stream's mean square, by whose root the norm would have divided.
    """
    torch.manual_seed(seed)
    model = SmolLM2(SmolLM2Config(init_std=SPREADS[label]))
    x = model.model.embed_tokens(ids[None, :-1])  # (1, T, C)
    for block in model.model.layers:
        x = block(x)
    without = F.cross_entropy(F.linear(x[0], model.model.embed_tokens.weight), ids[1:])
    stream = x.pow(2).mean()
    x = model.model.norm(x)[0]  # (T, C)
    logits = F.linear(x, model.model.embed_tokens.weight)  # (T, V)
    tied = F.cross_entropy(logits, ids[1:])
    others = [F.cross_entropy(logits, torch.randperm(logits.shape[1])[ids[1:]]) for _ in range(100)]
    head = torch.randn_like(model.model.embed_tokens.weight) * SPREADS[label]
    untied = F.cross_entropy(F.linear(x, head), ids[1:])
    numbers = (tied, torch.stack(others).mean(), untied, stream, without)
    return [label, seed, *(f"{number:.4f}" for number in numbers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=assets.ROOT / "data" / "records")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    ids = torch.tensor(load_tokenizer().encode(load_text()[:4000])[:257])
    rows = [start(label, seed, ids) for seed in range(20) for label in SPREADS]
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_starts; torch {torch.__version__}\n")
    csv.writer(table, lineterminator="\n").writerows([HEADER, *rows])
    assets.write_atomically(chosen.out / "starts.csv", table.getvalue().encode())
    print(f"wrote {chosen.out / 'starts.csv'}")


if __name__ == "__main__":
    main()
