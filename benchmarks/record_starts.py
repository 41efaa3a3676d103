"""Measure with which loss fresh models of full size begin, and write it down for notebook 06.

``python -m benchmarks.record_starts`` writes ``data/records/starts.csv``: twenty seeds, two ways to
draw the weights; three minutes on one core.
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
KINDS = ("tied", "untied", "without_norm")
HEADER = ["std", "seed", "stream", *KINDS, *(f"{kind}_log_sum" for kind in KINDS)]


@torch.no_grad()
def start(label: str, seed: int, ids: Tensor) -> list[object]:
    """Return the losses of one fresh model on 256 tokens, and a part of each: ids (257,).

    With the embedding as head, with a head of its own, and with the final norm forgotten. Before
    them stands the stream's mean square, by whose root the norm would have divided. Behind them
    stands of each the mean of ln Σ exp(z), from which the mean logit of the tokens that came is
    taken to make the loss.
    """
    torch.manual_seed(seed)
    model = SmolLM2(SmolLM2Config(init_std=SPREADS[label]))
    table = model.model.embed_tokens.weight  # (V, C)
    x = model.model.embed_tokens(ids[None, :-1])  # (1, T, C)
    for block in model.model.layers:
        x = block(x)
    normed = model.model.norm(x)[0]  # (T, C)
    head = torch.randn_like(table) * SPREADS[label]
    losses, sums = [], []
    for stream, rows in ((normed, table), (normed, head), (x[0], table)):
        logits = F.linear(stream, rows)  # (T, V)
        losses.append(F.cross_entropy(logits, ids[1:]))
        sums.append(logits.logsumexp(dim=1).mean())
    return [label, seed, *(f"{number:.4f}" for number in (x.pow(2).mean(), *losses, *sums))]


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
