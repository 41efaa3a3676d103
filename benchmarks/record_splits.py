"""Hold out a tenth of tiny Shakespeare in several ways, and write down what a table then reaches.

``python -m benchmarks.record_splits`` writes ``data/records/splits.csv``: five minutes on one core.
Each row is a Kneser–Ney table of three tokens, counted on the training part.

contiguous: each of the ten tenths in turn. random: one in ten sequences of 256. "8 apart": one in
60 sequences, counted without its eight neighbours on either side; its control leaves out as many
that are no neighbours. Likewise "2 apart", one in 20, and "20 apart", one in 120: so few that with
their neighbours they leave enough of the text.
"""

from __future__ import annotations

import csv
import io
import random

from smol_scratch import assets, load_text, load_tokenizer
from smol_scratch.course.measure import dataset as measure

SEQUENCE = 256
SEEDS = range(10)
# One in so many sequences is held out; so many neighbours on either side are not trained on.
APART = ((20, 2), (60, 8), (120, 20))


def joined(pieces: list[list[int]], chosen: set[int]) -> list[int]:
    return [token for i, piece in enumerate(pieces) if i in chosen for token in piece]


def main() -> None:
    tokenizer = load_tokenizer()
    ids = tokenizer.encode(load_text())
    count = len(ids) // SEQUENCE
    pieces = [ids[i * SEQUENCE : (i + 1) * SEQUENCE] for i in range(count)]
    lines = io.StringIO()
    lines.write("# python -m benchmarks.record_splits; Kneser-Ney, three tokens; nats per token\n")
    out = csv.writer(lines, lineterminator="\n")
    out.writerow(["held_out", "number", "loss"])

    def write(kind: str, number: int, train: set[int], held: set[int]) -> None:
        table = measure.KneserNey(joined(pieces, train), 3, tokenizer.vocab_size)
        loss = table.loss(joined(pieces, held))
        out.writerow([kind, number, f"{loss:.3f}"])
        print(kind, number, f"{loss:.3f}", flush=True)

    everything = set(range(count))
    for tenth in range(10):
        held = set(range(count * tenth // 10, count * (tenth + 1) // 10))
        write("contiguous", tenth, everything - held, held)
    for seed in SEEDS:
        held = set(measure.chosen_tenth(count, seed))
        write("random", seed, everything - held, held)
    for part, reach in APART:
        for seed in SEEDS:
            held = set(measure.chosen_tenth(count, seed, part))
            steps = [d for d in range(-reach, reach + 1) if d]
            beside = {i + d for i in held for d in steps} & everything - held
            others = sorted(everything - held - beside)
            instead = set(random.Random(seed).sample(others, len(beside)))
            write(f"{reach} apart", seed, everything - held - beside, held)
            write(f"{reach} apart, control", seed, everything - held - instead, held)
    path = assets.ROOT / "data" / "records" / "splits.csv"
    assets.write_atomically(path, lines.getvalue().encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
