"""How fast text becomes shards, beside the tokenizer library alone, and in what memory.

    python -m benchmarks.bench_shards [--megabytes 40] [--rounds 3]

The text is the plays, scene by scene in an order that a seed decides, written as JSON Lines, gzip
and Parquet. The library alone encodes the same texts from memory, on the same cores, in batches of
the same size. All take turns; medians, and the ratio within each turn. Memory is the peak of a
process of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from smol_scratch.corpus import load_text
from smol_scratch.hardware import find_hardware
from smol_scratch.shards import BATCH
from smol_scratch.tokenizer import load_tokenizer


def texts(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Yield scenes of the plays in a random order, again and again, until there are enough."""
    speeches = load_text().split("\n\n")
    scenes = ["\n\n".join(speeches[at : at + 20]) for at in range(0, len(speeches), 20)]
    chance, left = random.Random(seed), megabytes * 1e6
    while left > 0:
        for scene in chance.sample(scenes, len(scenes)):
            yield scene
            left -= len(scene)
            if left <= 0:
                return


def write(folder: Path, megabytes: float) -> dict[str, Path]:
    """Write the texts in each form; return the files."""
    import pyarrow
    import pyarrow.parquet as parquet

    rows = [json.dumps({"text": text}) + "\n" for text in texts(megabytes)]
    plain, packed, table = (folder / f"text.{end}" for end in ("jsonl", "jsonl.gz", "parquet"))
    plain.write_text("".join(rows), encoding="utf-8")
    packed.write_bytes(gzip.compress("".join(rows).encode(), compresslevel=1))
    parquet.write_table(pyarrow.table({"text": list(texts(megabytes))}), table)
    return {"JSON Lines": plain, "gzip": packed, "Parquet": table}


def library_alone(megabytes: float) -> float:
    """Return the seconds that the library needs for the texts, in batches as large as ours."""
    backend, every = load_tokenizer().backend, list(texts(megabytes))
    start, batch, size = time.perf_counter(), list[str](), 0
    for text in every:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            backend.encode_batch_fast(batch, add_special_tokens=False)
            batch, size = [], 0
    backend.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - start


COMMAND = """
import resource, sys, time
from pathlib import Path
from smol_scratch.documents import store
from smol_scratch.tokenizer import load_tokenizer
tokenizer = load_tokenizer()
tokenizer.encode("warm")
start = time.perf_counter()
store([Path(sys.argv[1])], None, Path(sys.argv[2]), tokenizer)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def ours(source: Path, output: Path) -> tuple[float, float]:
    """Return seconds and peak memory in MiB of storing a file, in a process of its own."""
    words = [sys.executable, "-c", COMMAND, str(source), str(output)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds, memory = map(float, done.stdout.split())
    shutil.rmtree(output)
    return seconds, memory


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = write(Path(place), asked.megabytes)
        alone, found = [], {name: list[tuple[float, float]]() for name in files}
        for _ in range(asked.rounds):
            alone.append(library_alone(asked.megabytes))
            for name, path in files.items():
                found[name].append(ours(path, Path(place) / "out"))
    name = find_hardware(torch.device("cpu")).name
    print(f"{name}, {asked.megabytes:g} MB of text, {asked.rounds} rounds")
    print(f"tokenizers alone, from memory: {asked.megabytes / statistics.median(alone):.2f} MB/s")
    for name, rounds in found.items():
        speed = asked.megabytes / statistics.median(seconds for seconds, _ in rounds)
        ratio = statistics.median(a / s for a, (s, _) in zip(alone, rounds, strict=True))
        memory = max(memory for _, memory in rounds)
        verdict = "as wanted" if ratio >= 0.8 else "below the wanted 0.80"
        print(f"{name:<11} {speed:.2f} MB/s, {ratio:.2f} × the library ({verdict}), "
              f"at most {memory:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
