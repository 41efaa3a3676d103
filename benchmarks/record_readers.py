"""Silence the heads that notebook 03 chose once more, on passages that no choice has seen.

``python -m benchmarks.record_readers`` writes two records, in some minutes of one core.
``data/records/heads_again.csv`` holds, for each passage, what silence costs on the repeated word.
``data/records/looks.csv`` holds, for each head, how much weight it gives to that word at the end of
these passages: as trained, with head 0 of layer 16 ("before") silent, and with "before" unheard by
key head 1 of layer 17 alone; and how much of its look head 5 of layer 17 ("after") keeps when the
row's own head is silent.
"""

from __future__ import annotations

import csv
import io
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import SmolLM2, assets, load_pretrained, load_text, load_tokenizer
from smol_scratch.course.measure import gqa
from smol_scratch.course.measure.rmsnorm import passages

HEADS = {"before": (16, 0), "first": (18, 8), "after": (17, 5), "itself": (11, 6)}
READERS = ((17, 3), (17, 4), (17, 5), (18, 6))


def answer_loss(model: SmolLM2, repeats: Tensor, layer: int, x: Tensor) -> Tensor:
    """Return the loss on each passage's repeated word, from the input of one block on: (N,)."""
    for block in list(model.model.layers)[layer:]:
        x = block(x)
    logits = F.linear(model.model.norm(x[:, -1]), model.model.embed_tokens.weight)  # (N, V)
    return F.cross_entropy(logits, repeats[:, -1], reduction="none")


def write(name: str, comment: str, rows: list[dict[str, object]]) -> None:
    """Write a record with a comment at its head."""
    file = io.StringIO()
    file.write(f"# python -m benchmarks.record_readers: {comment}; torch {torch.__version__}\n")
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assets.write_atomically(assets.records() / name, file.getvalue().encode())


@torch.no_grad()
def main() -> None:
    """Measure, and write both records."""
    model = load_pretrained(quiet=True).requires_grad_(False)
    tokenizer, text = load_tokenizer(), load_text()
    repeats = gqa.fresh_repeats(tokenizer, text)
    ids, others = repeats[:, :-1], passages(tokenizer, text, count=6)[:, :-1]

    def look(streams: list[Tensor]) -> dict[int, Tensor]:
        return gqa.looks(model, repeats, dict(enumerate(streams)))

    whole = gqa.stream(model, ids)
    costs = {"loss": answer_loss(model, repeats, 29, whole[29])}
    for name, (layer, head) in HEADS.items():
        mean = gqa.mean_output(model, others, layer, head)
        for label, instead in ((name, 0.0), (f"{name}_mean", mean)):
            with gqa.silenced(model, layer, head, instead):
                loss = answer_loss(model, repeats, layer, whole[layer])
            costs[label] = loss - costs["loss"]
    with ExitStack() as stack:
        for layer, head in READERS:
            stack.enter_context(gqa.silenced(model, layer, head))
        costs["readers"] = answer_loss(model, repeats, 17, whole[17]) - costs["loss"]
    with gqa.silenced(model, *HEADS["before"]):
        without = gqa.stream(model, ids)
    tables = {"look": look(whole), "without": look(without)}
    for group in range(3):
        with gqa.unheard(model, 17, group, without[17]):
            loss = answer_loss(model, repeats, 17, whole[17])
            if group == 1:
                tables["unheard"] = look(gqa.stream(model, ids))
        costs[f"unheard_{group}"] = loss - costs["loss"]
    rows: list[dict[str, object]] = [
        {"passage": i} | {name: f"{values[i]:.3f}" for name, values in costs.items()}
        for i in range(len(repeats))
    ]
    write(
        "heads_again.csv",
        f"{len(repeats)} passages; the loss of the repeated word, and its rise with one head's "
        "output set to zero or to its mean, with four readers of head 0 of layer 16 silent, and "
        "with that head unheard by one key head of layer 17",
        rows,
    )
    after, rows = HEADS["after"], []
    for layer in range(30):
        for head in range(9):
            row: dict[str, object] = {"layer": layer, "head": head}
            for name, table in tables.items():
                values = table[layer][head]
                row[name] = f"{values.mean():.4f}"
                row[f"{name}_error"] = f"{values.std() / len(values) ** 0.5:.4f}"
            if layer < after[0]:
                x = whole[layer]
                with gqa.silenced(model, layer, head):
                    for block in list(model.model.layers)[layer : after[0]]:
                        x = block(x)
                weights = gqa.looks(model, repeats, {after[0]: x})[after[0]][after[1]]
                row["after_look"] = f"{weights.mean():.4f}"
            else:  # this head comes too late to change it
                row["after_look"] = f"{tables['look'][after[0]][after[1]].mean():.4f}"
            rows.append(row)
    write(
        "looks.csv",
        f"weight that each head gives to the word to be copied, mean and standard error over "
        f"{len(repeats)} passages: as trained, without head 0 of layer 16, and with that head "
        "unheard by key head 1 of layer 17; and the look of head 5 of layer 17 without this head",
        rows,
    )


if __name__ == "__main__":
    main()
