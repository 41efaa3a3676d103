"""Count how much of what the recorded runs write stands in the training text, word for word.

``python -m benchmarks.record_copied`` reads the samples beside the runs' records, counts for every
length from 2 tokens on, and writes ``data/records/copied.csv``: a minute on one core. For
comparison it counts the same for what Shakespeare wrote in plays that the text does not hold.
``copied_speech.csv`` is the same count without the lines that name a speaker, on both sides.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from smol_scratch import assets, load_text, load_tokenizer
from smol_scratch.corpus import unseen_plays
from smol_scratch.course.measure.training import spoken
from smol_scratch.evaluation import evenly_spaced, longest_copies

RECORDS = assets.ROOT / "data" / "records"
RUNS = {"135M": "full_run", "13M": "tenth_run", "fine-tuned": "finetuned_run"}
LENGTHS = range(2, 25)
PIECES, T = 200, 119


def texts(part: Callable[[str], str]) -> Iterator[tuple[str, str, int, list[int]]]:
    """Yield who wrote, how, after how many steps, and the tokens: the prompt is left out.

    Args:
        part: what is kept of a text.
    """
    tokenizer = load_tokenizer()
    for who, name in RUNS.items():
        content = json.loads((RECORDS / f"{name}_samples.json").read_text("utf-8"))
        for record in content["records"]:
            for sample in record["samples"]:
                how = "greedy" if sample["greedy"] else "sampled"
                yield who, how, record["step"], tokenizer.encode(part(sample["text"]))
    unseen = tokenizer.encode(part("\n".join(unseen_plays().values())))
    for piece in evenly_spaced(unseen, T, PIECES).tolist():
        yield "Shakespeare", "his own", 0, piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORDS)
    chosen = parser.parse_args()
    parts: dict[str, Callable[[str], str]] = {"copied": str, "copied_speech": spoken}
    for name, part in parts.items():
        tokens = load_tokenizer().encode(part(load_text()))
        table = io.StringIO()
        table.write("# python -m benchmarks.record_copied\n")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["who", "how", "step", "tokens", *(f"at_least_{n}" for n in LENGTHS)])
        for who, how, step, ids in texts(part):
            runs = longest_copies(ids, tokens)
            counts = (sum(r >= n for r in runs) for n in LENGTHS)
            writer.writerow([who, how, step, len(ids), *counts])
        assets.write_atomically(chosen.out / f"{name}.csv", table.getvalue().encode())


if __name__ == "__main__":
    main()
