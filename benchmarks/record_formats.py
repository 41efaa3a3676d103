"""Measure what storing the weights in fewer bits costs, and let llama.cpp read our file.

``python -m benchmarks.record_formats`` writes ``data/records/formats.csv`` (loss by passage and
format), ``data/records/layers.csv`` (what it adds to the loss when one block alone is stored with
one step of 5 bits for each matrix) and, where llama-cpp-python is installed,
``data/records/llama_cpp.json``: what llama.cpp writes, greedily, from the file that ``export_gguf``
makes. They belong to notebook 12.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from smol_scratch import assets, export_gguf, load_pretrained, load_text, load_tokenizer
from smol_scratch.course.measure import sharing as measure
from smol_scratch.evaluation import evenly_spaced
from smol_scratch.generation import chat_prompt

RECORDS = assets.ROOT / "data" / "records"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES, T = 16, 128
LARGEST_OUTLIER = 27  # the layer that has it, in its gate
PROMPTS = ("The capital of France is", "She looked out of the window and saw a", "a  1")
QUESTION = "Why is the sky blue?"
NEW = 24


def formats() -> str:
    model = load_pretrained(WEIGHTS).eval().requires_grad_(False)
    rows = evenly_spaced(load_tokenizer().encode(load_text()), T, PASSAGES)
    state = model.state_dict()
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_formats; torch {torch.__version__}\n")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["way", "bits", *(f"passage_{i}" for i in range(PASSAGES))])
    for way, (bits, _) in measure.WAYS.items():
        losses = measure.passage_losses(model, measure.stored(state, way), rows)
        writer.writerow([way, bits, *(f"{loss:.5f}" for loss in losses)])
        print(way, f"{losses.mean():.4f}", flush=True)
    return table.getvalue()


def layers() -> str:
    """Store each block in 5 bits; of the worst and its rivals each matrix, and test the causes."""
    model = load_pretrained(WEIGHTS).eval().requires_grad_(False)
    one = measure.OneLayer(
        model, evenly_spaced(load_tokenizer().encode(load_text()), T // 2, PASSAGES)
    )
    table = io.StringIO()
    table.write(f"# python -m benchmarks.record_formats --only layers; torch {torch.__version__}\n")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "matrices", "way", *(f"passage_{i}" for i in range(PASSAGES))])

    def add(layer: int, matrices: str, way: str, **how: Any) -> float:
        added = one.added(layer, "" if matrices == "all" else matrices, **how)
        writer.writerow([layer, matrices, way, *(f"{x:.5f}" for x in added)])
        print(layer, matrices, way, f"{added.mean():.4f}", flush=True)
        return added.mean().item()

    harm = [add(i, "all", "5 bits") for i in range(len(one.before) - 1)]
    worst = sorted(range(len(harm)), key=lambda i: -harm[i])[:3]
    for layer in sorted({*worst, LARGEST_OUTLIER, LARGEST_OUTLIER + 1}):
        for name in one.weights(layer):
            add(layer, name, "5 bits")
        for way, how in measure.LAYER_TESTS.items():
            add(layer, "all", way, **how)
    return table.getvalue()


def llama_cpp() -> str:
    import llama_cpp

    tokenizer, model = load_tokenizer(), load_pretrained(WEIGHTS)
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        path = export_gguf(model, Path(folder) / "model.gguf", "q8_0", tokenizer=tokenizer)
        llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, logits_all=True)
        prompts = [(text, llama.tokenize(text.encode(), add_bos=False)) for text in PROMPTS]
        prompts += [(QUESTION, chat_prompt(tokenizer, QUESTION))]
        for text, prompt in prompts:
            llama.reset()
            tokens = llama.generate(prompt, temp=0.0)
            made = [int(next(tokens)) for _ in range(NEW)]
            sessions.append({"prompt": text, "prompt_ids": list(map(int, prompt)), "made": made})
    content = {
        "made_with": f"python -m benchmarks.record_formats; llama-cpp-python "
        f"{llama_cpp.__version__}, export_gguf(..., 'q8_0')",
        "sessions": sessions,
    }
    return json.dumps(content, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--only", choices=("formats", "layers", "llama_cpp"), help="one of three")
    chosen = parser.parse_args()
    if chosen.only in (None, "llama_cpp") and importlib.util.find_spec("llama_cpp"):
        assets.write_atomically(chosen.out / "llama_cpp.json", llama_cpp().encode())
    if chosen.only in (None, "formats"):
        assets.write_atomically(chosen.out / "formats.csv", formats().encode())
    if chosen.only in (None, "layers"):
        assets.write_atomically(chosen.out / "layers.csv", layers().encode())


if __name__ == "__main__":
    main()
