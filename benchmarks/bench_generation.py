"""Measure decoding: ours, plain and compiled, beside ``transformers`` and the memory's limit.

    python -m benchmarks.bench_generation

One sequence, a prompt of 32 tokens, greedy. Each variant is a process of its own; they take turns,
one at a time, round after round, so that a busy moment of the machine hits all of them. Printed are
medians over the rounds. Numbers of a shared machine waver; the ratios waver less.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.bench_training import machine
from smol_scratch import assets, load_pretrained, load_text, load_tokenizer, to_transformers
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import generate

PROMPT = 32
PARAMETERS = 134_515_008  # all are read for each token: the embedding is also the head
VARIANTS = [
    f"{who} {dtype}"
    for dtype in ("float32", "bfloat16")
    for who in ("transformers", "ours, eager", "ours, compiled")
]
LLAMA = "llama.cpp bfloat16"


def read_bandwidth() -> float:
    """Return the bytes a second at which all cores together read memory: a sum of integers."""
    block = torch.ones(PARAMETERS * 2 // 8, dtype=torch.int64)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return block.nbytes / median(seconds)


def peak_memory() -> float:
    """Return the largest resident size since the last ``forget_peak``, in bytes (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(found[1]) * 1024 if found else float("nan")


def forget_peak() -> None:
    """Give freed memory back and count the peak from here, loading left aside (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def write_gguf(path: Path) -> None:
    """Write the asset wheel's model in bfloat16, for llama.cpp."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
    from gguf import quantize as in_type

    reader = GGUFReader(assets.verified(assets.GGUF))
    writer = GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        kind = GGMLQuantizationType.BF16 if weight.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, in_type(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def writer_of(variant: str, folder: str) -> Callable[[list[int], int], object]:
    """Return what writes so many tokens after a prompt."""
    who, dtype = variant.rsplit(" ", 1)
    if variant == LLAMA:
        from llama_cpp import Llama

        llama = Llama(f"{folder}/model.gguf", n_ctx=1024, n_threads=os.cpu_count(), verbose=False)

        def write(prompt: list[int], count: int) -> object:
            llama.reset()
            tokens = llama.generate(prompt, temp=0.0)
            return [next(tokens) for _ in range(count)]

        return write
    ours = load_pretrained(assets.verified(assets.GGUF), quiet=True).requires_grad_(False)
    ours.to(getattr(torch, dtype))
    if who == "transformers":
        theirs = to_transformers(ours).to(getattr(torch, dtype))
        theirs.generation_config.eos_token_id = None  # or it might stop early
        theirs.generation_config.pad_token_id = 0

        def write(prompt: list[int], count: int) -> Tensor:
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            options = {"max_new_tokens": count, "do_sample": False, "attention_mask": mask}
            return theirs.generate(ids, **options)

        return write
    decoder = CompiledDecoder(ours) if who == "ours, compiled" else None
    return lambda prompt, count: generate(ours, prompt, count, temperature=0, decoder=decoder)


def child(variant: str, folder: str, prompt: list[int]) -> None:
    """Measure whenever a line with a number of tokens comes in, and write what was found."""
    write = writer_of(variant, folder)
    start = time.perf_counter()
    write(prompt, 3)  # whatever is done once, compilation above all
    cold = time.perf_counter() - start
    forget_peak()
    print(json.dumps({"cold": cold}), flush=True)
    for line in sys.stdin:
        write(prompt, 1)  # the memory of a process that waited for its turn may have been put away
        start = time.perf_counter()
        write(prompt, 1)
        first = time.perf_counter() - start
        write(prompt, int(line))
        whole = time.perf_counter() - start - first
        rate = (int(line) - 1) / (whole - first)
        print(json.dumps({"first": first, "rate": rate, "peak": peak_memory()}), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="new tokens after the prompt")
    parser.add_argument("--write", action="store_true", help="keep the result in data/records/")
    parser.add_argument("--only", help="variants with this in their name, as bfloat16")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    prompt = load_tokenizer().encode(load_text()[:1000])[:PROMPT]
    if given.child:
        child(*given.child, prompt)
        return
    variants = list(VARIANTS)
    if importlib.util.find_spec("llama_cpp"):
        variants.append(LLAMA)
    else:
        print("llama_cpp is not installed: no row for llama.cpp")
    variants = [variant for variant in variants if (given.only or "") in variant]
    with tempfile.TemporaryDirectory() as folder:
        if LLAMA in variants:
            write_gguf(Path(folder) / "model.gguf")
        found = measure(variants, folder, given.rounds, given.tokens)
    report(variants, found, given.rounds, given.tokens)
    if given.write:
        record(found, " ".join(["python -m benchmarks.bench_generation", *sys.argv[1:]]))


Found = dict[str, dict[str, list[float]]]


def measure(variants: list[str], folder: str, rounds: int, tokens: int) -> Found:
    """Start a process for each variant, and let them take turns."""
    children, found = {}, {"memory": {"bandwidth": []}}
    try:
        for i, variant in enumerate(variants):
            # An empty cache of compiled code for each: cold means cold.
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{i}"}
            command = [
                sys.executable,
                "-m",
                "benchmarks.bench_generation",
                "--child",
                variant,
                folder,
            ]
            children[variant] = subprocess.Popen(
                command, text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            found[variant] = {name: [] for name in ("cold", "first", "rate", "peak")}
            answer(children[variant], found[variant])  # loads and warms up alone
        for _ in range(rounds):
            found["memory"]["bandwidth"].append(read_bandwidth())
            for variant, process in children.items():
                process.stdin.write(f"{tokens}\n")
                process.stdin.flush()
                answer(process, found[variant])
    finally:
        for process in children.values():
            process.stdin.close()
            process.wait()
    return found


def answer(process: subprocess.Popen[str], found: dict[str, list[float]]) -> None:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a variant's process ended with {process.wait()}: see above")
    for name, value in json.loads(line).items():
        found[name].append(value)


def times_transformers(variant: str, found: Found) -> float:
    """Return the median over the rounds of a variant's speed by that of ``transformers``.

    Round by round, for what disturbed one variant disturbed its neighbour too.
    """
    reference = found[f"transformers {variant.rpartition(' ')[2]}"]["rate"]
    pairs = zip(found[variant]["rate"], reference, strict=True)
    return median(ours / theirs for ours, theirs in pairs)


def record(found: Found, command: str) -> None:
    """Write the medians into ``data/records/generation_speed.csv``."""
    table = io.StringIO()
    table.write(f"# {machine()}; {command}\n")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["variant", "tokens_per_s", "times_transformers", "first_ms", "peak_mb"])
    bandwidth = median(found["memory"]["bandwidth"])
    for variant, numbers in found.items():
        if variant == "memory":
            for dtype, width in (("float32", 4), ("bfloat16", 2)):
                limit = bandwidth / (PARAMETERS * width)
                writer.writerow([f"memory limit {dtype}", f"{limit:.4g}", "", "", ""])
            continue
        row = (median(numbers["rate"]), times_transformers(variant, found),
               median(numbers["first"]) * 1e3, max(numbers["peak"]) / 1e6)  # fmt: skip
        writer.writerow([variant, *(f"{number:.4g}" for number in row)])
    path = assets.ROOT / "data" / "records" / "generation_speed.csv"
    assets.write_atomically(path, table.getvalue().encode())
    print(f"written: {path}")


def report(variants: list[str], found: Found, rounds: int, tokens: int) -> None:
    bandwidth = median(found["memory"]["bandwidth"])
    print(
        f"{PROMPT} + {tokens} tokens, greedy, medians of {rounds} rounds, {torch.get_num_threads()}"
        f" threads; memory is read at {bandwidth / 1e9:.1f} GB/s\n"
    )
    print(f"{'':24}{'tokens/s':>9}{'× trans-':>10}{'of the':>8}{'first':>9}{'peak':>8}{'cold':>7}")
    print(f"{'':24}{'':>9}{'formers':>10}{'limit':>8}{'token':>9}{'memory':>8}{'':>7}")
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        if not any(variant.endswith(dtype) for variant in variants):
            continue
        limit = bandwidth / (PARAMETERS * width)
        reference = found.get(f"transformers {dtype}", {}).get("rate")
        for variant in variants:
            if not variant.endswith(dtype):
                continue
            rate = median(found[variant]["rate"])
            ratio = f"{times_transformers(variant, found):.2f}" if reference else ""
            print(
                f"{variant:24}{rate:9.1f}{ratio:>10}{rate / limit:8.0%}"
                f"{median(found[variant]['first']) * 1e3:6.0f} ms"
                f"{max(found[variant]['peak']) / 1e6:5.0f} MB{found[variant]['cold'][0]:5.1f} s"
            )
        print(f"{'memory limit ' + dtype:24}{limit:9.1f}\n")


if __name__ == "__main__":
    main()
