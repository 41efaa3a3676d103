"""How fast text becomes shards, beside the tokenizer library alone, and in what memory.

    python -m benchmarks.bench_shards [--megabytes 40] [--rounds 3]
    python -m benchmarks.bench_shards --trial 2000

The text is the plays, scene by scene in an order that a seed decides, written as JSON Lines, gzip
and Parquet. The library alone encodes the same texts from memory, on the same cores, in batches of
the same size. All take turns; medians, and the ratio within each turn. Memory is the peak of a
process of its own.

``--trial`` stores so many megabytes, as one file of JSON Lines, and 10,000 small text files, among
them an empty one and one document longer than a shard. Then it makes a hundred steps of the tiny
model on both, and says what each command took.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
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


def write_trial(folder: Path, megabytes: float) -> list[Path]:
    """Write the trial's text a piece at a time; return the file and the folder."""
    large, small = folder / "large.jsonl", folder / "small"
    with large.open("w", encoding="utf-8") as file:
        for text in texts(megabytes):
            file.write(json.dumps({"text": text}) + "\n")
    small.mkdir()
    for number, text in enumerate(islice(texts(1e6, seed=1), 9_998)):
        (small / f"{number:04}.txt").write_text(text, encoding="utf-8")
    (small / "empty.txt").touch()
    (small / "long.txt").write_text("\n\n".join(texts(6, seed=2)), encoding="utf-8")
    return [large, small]


def command(*words: str | Path) -> str:
    """Run one of our commands; return what it took, and the last of what it said.

    Raises:
        RuntimeError: when it fails; its own message is on standard error.
    """
    start = time.perf_counter()
    words = ("-m", "smol_scratch", *words)
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read().splitlines()  # type: ignore[union-attr]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise RuntimeError(f"{shlex.join(map(str, words))}: status {process.returncode}")
    seconds = time.perf_counter() - start
    kept = [line for line in said if "documents, " in line or "left out" in line or "loss" in line]
    lines = "".join(f"\n    {line}" for line in kept[-2:])
    return f"  {seconds:,.0f} s, at most {used.ru_maxrss / 1024:,.0f} MiB{lines}"


def trial(megabytes: float) -> None:
    """Store a large file and many small ones, train on both, and print what it took."""
    print(find_hardware(torch.device("cpu")).name)
    with tempfile.TemporaryDirectory() as place:
        stored = []
        for source in write_trial(Path(place), megabytes):
            files = [source] if source.is_file() else list(source.iterdir())
            size = sum(path.stat().st_size for path in files)
            print(f"{len(files):,} file(s), {size / 1e6:,.0f} MB")
            stored.append(Path(place) / f"{source.stem}.stored")
            flags = ["--input", source, "--output", stored[-1], "--shard-tokens", str(1 << 20)]
            print(command("shards", *flags), flush=True)
        flags = ["--preset", "tiny", "--steps", "100", "--held-out", "0.001"]
        print("a hundred steps on both")
        print(command("train", "--shards", *stored, *flags, "--save", Path(place) / "run"))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trial", type=float, metavar="MEGABYTES", help="store and train instead")
    asked = parser.parse_args()
    if asked.trial is not None:
        trial(asked.trial)
        return
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
