"""Measure what notebook 11 says about loops and about people's texts, and write it down.

``python -m benchmarks.record_generation`` writes ``data/records/surprise.csv`` (how surprising
continuations of Shakespeare's passages are: the most probable tokens', sampled ones, his own) and
``data/records/copying_heads.csv`` (how far a phrase's repetitions become certain, with the heads
that copy silenced, and with as many others): ten minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
from collections.abc import Iterable
from pathlib import Path

import torch

from smol_scratch import assets, generate, load_pretrained, load_text, load_tokenizer
from smol_scratch.course.measure import generation as measure
from smol_scratch.evaluation import evenly_spaced, mean_loss

RECORDS = assets.ROOT / "data" / "records"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES, PROMPT, NEW = 64, 60, 60
WAYS = {
    "greedy": {"temperature": 0},
    "greedy, penalty 1.3": {"temperature": 0, "repetition_penalty": 1.3},
    "top-p 0.9": {"top_p": 0.9},
    "sampled": {},
}
COPYING = 16  # heads that are silenced
CONTROLS = 6  # other sets of as many heads


def surprises() -> Iterable[list[object]]:
    tokens = load_tokenizer().encode(load_text())
    model = load_pretrained(WEIGHTS).eval().requires_grad_(False)
    rows = evenly_spaced(tokens, PROMPT + NEW - 1, PASSAGES)  # (B, T)
    texts = {"human": rows}
    for way, options in WAYS.items():
        generator = torch.Generator().manual_seed(0)
        made = generate(model, rows[:, :PROMPT], NEW, generator=generator, **options)
        texts[way] = torch.stack(made)
    for way, continued in texts.items():
        came, expected = measure.surprise(model, continued, PROMPT)
        again = measure.repeated(continued, PROMPT)
        columns = zip(came.mean(-1), expected.mean(-1), again, strict=True)
        for passage, values in enumerate(columns):
            yield [way, passage, *(f"{value:.3f}" for value in values)]


def heads() -> Iterable[list[object]]:
    tokenizer = load_tokenizer()
    rows = evenly_spaced(tokenizer.encode(load_text()), 128, 8)
    model = load_pretrained(WEIGHTS).eval().requires_grad_(False)
    scores = measure.copying_scores(model)
    every = [divmod(i, model.config.n_head) for i in scores.flatten().argsort().tolist()][::-1]
    copying, others = every[:COPYING], every[COPYING:]
    sets = [("none", 0, []), ("copying", 0, copying)]
    rng = random.Random(0)
    near = [head for head in others if head[0] in {layer for layer, _ in copying}]
    for draw in range(CONTROLS):
        sets.append(("others of the same layers", draw, rng.sample(near, COPYING)))
        sets.append(("others of any layer", draw, rng.sample(others, COPYING)))
    for name, draw, quiet in sets:
        with measure.silenced(model, quiet):
            loss = mean_loss(model, rows, 8)
            for phrase in measure.PHRASES:
                values = measure.rounds(model, tokenizer, phrase)
                yield [name, draw, phrase.strip(), f"{loss:.3f}", *(f"{v:.4f}" for v in values)]


def write(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_generation; torch {torch.__version__}\n")
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    assets.write_atomically(path, table.getvalue().encode())
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--only", choices=("surprise", "copying_heads"), help="one of the two")
    chosen = parser.parse_args()
    if chosen.only != "copying_heads":
        header = ["way", "passage", "surprise", "expected", "repeated"]
        write(chosen.out / "surprise.csv", header, surprises())
    if chosen.only != "surprise":
        header = ["silenced", "draw", "phrase", "loss", *(f"round_{i}" for i in range(1, 10))]
        write(chosen.out / "copying_heads.csv", header, heads())


if __name__ == "__main__":
    main()
