"""Measure decoding: ours, eager and compiled, beside ``transformers``, llama.cpp and the limit.

    python -m benchmarks.bench_generation

One sequence, a prompt of 32 tokens, greedy. Each variant is a process of its own; they take turns,
one at a time, round after round, so that a busy moment of the machine hits all of them. Printed are
medians over the rounds, then the targets with what was reached. Numbers of a shared machine waver;
the ratios waver less, and least the tokens per second of processor time, which other work on the
machine hardly touches (set OMP_WAIT_POLICY=PASSIVE there: threads that spin count as busy).
``--write`` adds the sitting to ``data/records/generation_speed.csv``, which keeps the kinds of
processor apart; make several, at different times.

"Q4_1" is the released file with its own numbers, whose embedding has 8 bits. llama.cpp takes part
where llama-cpp-python is installed: here, or in the environment whose Python ``--llama`` or
LLAMA_PYTHON names (``pip install llama-cpp-python`` compiles it for the machine).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import kinds
from benchmarks.bench_training import machine
from benchmarks.llama_writer import serve
from smol_scratch import assets, load_pretrained, load_text, load_tokenizer, to_transformers
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import generate
from smol_scratch.hub import load_quantized
from smol_scratch.quantize import quantize

RECORD = assets.ROOT / "data" / "records" / "generation_speed.csv"
PROMPT = 32
PARAMETERS = 134_515_008  # all are read for each token: the embedding is also the head
TABLE = 49_152 * 576
# Bytes that are read for a token: whole number and scale, in 4 bits a minimum too.
BYTES = {
    "float32": 4 * PARAMETERS,
    "bfloat16": 2 * PARAMETERS,
    "int8": PARAMETERS * 9 // 8,
    "int4": PARAMETERS * 5 // 8,
    "Q4_1": TABLE * 9 // 8 + (PARAMETERS - TABLE) * 5 // 8,
}
FEW = ("int8", "int4", "Q4_1")
EAGER, COMPILED, THEIRS, LLAMA = "ours, eager", "ours, compiled", "transformers", "llama.cpp"
IN_FILE = {"bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}


def variants(llama: bool) -> list[str]:
    """Return who writes in which form."""
    found = []
    for form in BYTES:
        who = [EAGER, COMPILED] if form in FEW else [THEIRS, EAGER, COMPILED]
        found += [f"{name} {form}" for name in who]
        if llama and form != "float32":
            found.append(f"{LLAMA} {form}")
    return found


def read_bandwidth() -> float:
    """Return the bytes a second at which all cores together read memory: a sum of integers."""
    block = torch.ones(PARAMETERS * 2 // 8, dtype=torch.int64)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return block.nbytes / median(seconds)


def write_gguf(path: Path, form: str) -> None:
    """Write the asset wheel's model in one type for all matrices, for llama.cpp."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
    from gguf import quantize as in_type

    source = assets.verified(assets.GGUF)
    if form == "Q4_1":
        shutil.copy(source, path)
        return
    reader = GGUFReader(source)
    writer = GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        kind = GGMLQuantizationType[IN_FILE[form] if weight.ndim > 1 else "F32"]
        writer.add_tensor(tensor.name, in_type(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def writer_of(variant: str) -> Callable[[list[int], int], object]:
    """Return what writes so many tokens after a prompt."""
    who, form = variant.rsplit(" ", 1)
    source = assets.verified(assets.GGUF)
    if form == "Q4_1":
        ours = load_quantized(source, "int4", quiet=True)
    else:
        ours = load_pretrained(source, quiet=True).requires_grad_(False)
        ours = quantize(ours, form) if form in FEW else ours.to(getattr(torch, form))
    if who == THEIRS:
        theirs = to_transformers(ours).to(getattr(torch, form))
        theirs.generation_config.eos_token_id = None  # or it might stop early
        theirs.generation_config.pad_token_id = 0

        def write(prompt: list[int], count: int) -> Tensor:
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            options = {"max_new_tokens": count, "do_sample": False, "attention_mask": mask}
            return theirs.generate(ids, **options)

        return write
    decoder = CompiledDecoder(ours) if who == COMPILED else None
    return lambda prompt, count: generate(ours, prompt, count, temperature=0, decoder=decoder)


def child(variant: str, prompt: list[int]) -> None:
    """Measure whenever a line with a number of tokens comes in, and write what was found."""
    write = writer_of(variant)
    serve(lambda count: write(prompt, count))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="new tokens after the prompt")
    parser.add_argument("--write", action="store_true", help="keep the result in data/records/")
    parser.add_argument(
        "--only",
        nargs="+",
        help="variants with one of these in their name; start: seconds to the first word",
    )
    parser.add_argument("--llama", default=os.environ.get("LLAMA_PYTHON", sys.executable),
                        help="a Python that has llama_cpp")  # fmt: skip
    parser.add_argument(
        "--compiled", help="folder of compiled code; without it compilation is timed"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    prompt = load_tokenizer().encode(load_text()[:1000])[:PROMPT]
    if given.child:
        child(given.child, prompt)
        return
    there = subprocess.run([given.llama, "-c", "import llama_cpp"], capture_output=True)
    if there.returncode:
        print("llama_cpp is not installed: no row for llama.cpp")
    wanted = [name for name in variants(llama=not there.returncode)
              if any(part in name for part in given.only or [""])]  # fmt: skip
    print(f"{machine()}; {kinds.kind()}")
    with tempfile.TemporaryDirectory() as folder:
        code = given.compiled or folder
        found = measure(wanted, folder, code, given.rounds, given.tokens, given.llama, prompt)
        starts = {}
        if not given.only or "start" in given.only:
            starts = startup(code, given.rounds)
        if given.compiled:  # perhaps nothing was compiled
            for numbers in found.values():
                numbers["cold"] = [float("nan")]
    report(wanted, found, given.rounds, given.tokens)
    print_targets(found, starts)
    if given.write:
        record(found, starts, kinds.command("python -m benchmarks.bench_generation"))


Found = dict[str, dict[str, list[Any]]]


def measure(
    wanted: list[str],
    folder: str,
    code: str,
    rounds: int,
    tokens: int,
    llama: str,
    prompt: list[int],
) -> Found:
    """Start a process for each variant, and let them take turns."""
    children: dict[str, subprocess.Popen[str]] = {}
    found: Found = {"memory": {"bandwidth": []}}
    try:
        for variant in wanted:
            # An empty cache of compiled code for each: cold means cold.
            environment = os.environ | {
                "TORCHINDUCTOR_CACHE_DIR": f"{code}/{re.sub('[ ,]+', '_', variant)}"
            }
            who, form = variant.rsplit(" ", 1)
            if who == LLAMA:
                write_gguf(path := Path(folder) / f"{form}.gguf", form)
                script = str(Path(__file__).parent / "llama_writer.py")
                command = [llama, script, str(path), json.dumps(prompt)]
            else:
                command = [sys.executable, "-m", "benchmarks.bench_generation", "--child", variant]
            children[variant] = subprocess.Popen(
                command, text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            found[variant] = {
                name: [] for name in ("cold", "first", "rate", "by_cpu", "peak", "version")
            }
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


STARTS = {
    "bfloat16": ["--dtype", "bfloat16"],
    "int8": ["--quantize", "int8"],
    "Q4_1": ["--quantize", "int4"],
}


def startup(code: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds from the command to its first word, by variant; compiled code is there."""
    asked = [sys.executable, "-m", "smol_scratch", "generate", "Why is the sky blue?", "--tokens",
             "3", "--temperature", "0"]  # fmt: skip
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{code}/start"}
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for form, flags in STARTS.items():
            for who, compiled in ((EAGER, []), (COMPILED, ["--compile"])):
                command = [*asked, *flags, *compiled]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                start = time.perf_counter()
                with subprocess.Popen(command, env=environment, **pipes) as run:
                    run.stdout.read(1)
                    took = time.perf_counter() - start
                    run.stdout.read()
                if turn:  # the first one compiles
                    seconds.setdefault(f"{who} {form}", []).append(took)
    return seconds


def answer(process: subprocess.Popen[str], found: dict[str, list[float]]) -> None:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a variant's process ended with {process.wait()}: see above")
    for name, value in json.loads(line).items():
        found[name].append(value)


def ratios(variant: str, other: str, found: Found, what: str = "rate") -> list[float]:
    """Return a variant's number by another's, round by round.

    For what disturbed one variant disturbed its neighbour too.
    """
    pairs = zip(found[variant][what], found[other][what], strict=True)
    return [ours / theirs for ours, theirs in pairs]


class Target(NamedTuple):
    """What was aimed at.

    Attributes:
        ours: a variant.
        other: what it is held against; "" for a number of its own.
        what: is compared: "rate", "first", "peak" or "start".
        bound: of the ratio, or of the number.
        least: the bound is the least, not the most.
    """

    ours: str
    other: str
    what: str
    bound: float
    least: bool = True


TARGETS = [
    Target(f"{COMPILED} int8", f"{LLAMA} int8", "rate", 0.9),
    Target(f"{COMPILED} int4", f"{LLAMA} int4", "rate", 0.8),
    Target(f"{COMPILED} Q4_1", f"{LLAMA} Q4_1", "rate", 0.8),
    Target(f"{COMPILED} bfloat16", f"{LLAMA} bfloat16", "rate", 1.0),
    Target(f"{COMPILED} int8", f"{COMPILED} bfloat16", "rate", 1.6),
    *(Target(f"{COMPILED} {form}", f"{THEIRS} bfloat16", "first", 1.0, least=False)
      for form in ("bfloat16", *FEW)),
    *(Target(f"{COMPILED} {form}", "", "peak", 350e6, least=False) for form in ("int4", "Q4_1")),
    *(Target(f"{EAGER} {form}", "", "start", 2.5, least=False) for form in STARTS),
    *(Target(f"{COMPILED} {form}", "", "start", 3.0, least=False) for form in STARTS),
]  # fmt: skip
UNITS = {"rate": "tokens/s", "first": "first token", "peak": "peak memory", "start": "first word"}


def print_targets(found: Found, starts: dict[str, list[float]]) -> None:
    """Print each target with what was reached, its spread over the rounds, and a verdict."""
    print("targets; in brackets the spread over the rounds")
    for target in TARGETS:
        if target.what == "start":
            values = starts.get(target.ours, [])
        elif not {target.ours, target.other or target.ours} <= found.keys():
            values = []
        elif target.other:
            values = ratios(target.ours, target.other, found, target.what)
        else:
            values = [max(found[target.ours][target.what])]
        if not values:
            continue
        reached, scale = median(values), 1e6 if target.what == "peak" else 1
        good = reached >= target.bound if target.least else reached <= target.bound
        by_cpu = ""
        if target.what == "rate":
            share = median(ratios(target.ours, target.other, found, "by_cpu"))
            by_cpu = f"{share:.3g} × by processor time; "
        unit = {"peak": " MB", "start": " s"}.get(target.what, " ×")
        low, high, bound = (f"{x / scale:.4g}" for x in (min(values), max(values), target.bound))
        print(f"{'✓ met   ' if good else '✗ missed'} {target.ours}: {UNITS[target.what]} "
              f"{reached / scale:.3g}{unit} ({low} to {high}) {target.other}; {by_cpu}"
              f"{'at least' if target.least else 'at most'} {bound}{unit}")  # fmt: skip


def record(found: Found, starts: dict[str, list[float]], command: str) -> None:
    """Add the medians to ``data/records/generation_speed.csv``."""
    bandwidth = median(found["memory"]["bandwidth"])
    rows, version = [], ""
    for variant, numbers in found.items():
        if variant == "memory":
            continue
        form, theirs = variant.rpartition(" ")[2], f"{LLAMA} {variant.rpartition(' ')[2]}"
        version = (numbers["version"] or [version])[0]
        held = {
            "tokens_per_cpu_s": median(numbers["by_cpu"]),
            "cpu_times_bfloat16": rate_by(variant, f"{COMPILED} bfloat16", found, "by_cpu"),
            "cpu_times_llama": rate_by(variant, theirs, found, "by_cpu"),
            "of_limit": median(numbers["rate"]) * BYTES[form] / bandwidth,
            "times_transformers": rate_by(variant, f"{THEIRS} {form}", found),
            "times_bfloat16": rate_by(variant, f"{COMPILED} bfloat16", found),
            "times_llama": rate_by(variant, theirs, found),
            "first_ms": median(numbers["first"]) * 1e3,
            "first_times_transformers": rate_by(variant, f"{THEIRS} bfloat16", found, "first"),
            "peak_mb": max(numbers["peak"]) / 1e6,
            "cold_s": numbers["cold"][0],
            "first_word_s": median(starts[variant]) if variant in starts else None,
        }
        rows.append(
            {"variant": variant, "tokens_per_s": f"{median(numbers['rate']):.4g}"}
            | {
                name: "" if value is None or value != value else f"{value:.4g}"
                for name, value in held.items()
            }
        )
    more = f"llama-cpp-python {version}" if version else ""
    kinds.keep(RECORD, rows, command, more, one=False)


def rate_by(variant: str, other: str, found: Found, what: str = "rate") -> float | None:
    """Return the median over the rounds of a ratio; None where the other did not take part."""
    return median(ratios(variant, other, found, what)) if other in found else None


def report(wanted: Sequence[str], found: Found, rounds: int, tokens: int) -> None:
    """Print a table for each form."""
    bandwidth = median(found["memory"]["bandwidth"])
    print(
        f"{PROMPT} + {tokens} tokens, greedy, medians of {rounds} rounds, {torch.get_num_threads()}"
        f" threads; memory is read at {bandwidth / 1e9:.1f} GB/s\n"
    )
    print(f"{'':24}{'tokens/s':>9}{'of CPU':>9}{'× trans-':>10}{'× llama':>9}{'of the':>8}"
          f"{'first':>9}{'peak':>8}{'cold':>7}")  # fmt: skip
    print(
        f"{'':24}{'':>9}{'tokens/s':>9}{'formers':>10}{'.cpp':>9}{'limit':>8}{'token':>9}{'memory':>8}"
    )
    for form, size in BYTES.items():
        if not any(variant.endswith(form) for variant in wanted):
            continue
        limit = bandwidth / size
        for variant in wanted:
            if not variant.endswith(form):
                continue
            numbers = found[variant]
            rate = median(numbers["rate"])
            by = [rate_by(variant, f"{other} {form}", found) for other in (THEIRS, LLAMA)]
            by_others = [f"{ratio:.2f}" if ratio else "" for ratio in by]
            print(
                f"{variant:24}{rate:9.1f}{median(numbers['by_cpu']):9.1f}"
                f"{by_others[0]:>10}{by_others[1]:>9}{rate / limit:8.0%}"
                f"{median(numbers['first']) * 1e3:6.0f} ms"
                f"{max(numbers['peak']) / 1e6:5.0f} MB{numbers['cold'][0]:5.1f} s"
            )
        print(f"{'memory limit ' + form:24}{limit:9.1f}\n")


if __name__ == "__main__":
    main()
