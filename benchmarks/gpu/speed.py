"""How fast a step and a token are: ours, ``transformers``', and what the card would allow.

The limit of a training step has two terms: its matrix products, each measured alone as the card
does them, and the bytes that must be moved besides, at the speed at which the card was seen to
copy. That of a token is the bytes of the weights and of the cache, at the speed of reading.

Variants take turns in one process. What others do to the card falls on all of them, so the ratios
of their medians say more than the milliseconds.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_training import Variant, factors, make_step
from benchmarks.gpu.graphs import GraphDecoder
from benchmarks.gpu.measure import bandwidth, seconds_each
from benchmarks.gpu.stage import Stage
from smol_scratch import SmolLM2, SmolLM2Config
from smol_scratch.accounting import (
    activations,
    kv_cache_bytes,
    matrix_products,
    parameters,
    total_parameters,
    training_memory,
)
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import generate
from smol_scratch.hardware import choose_precision, device_peak, find_hardware

# Sequences and tokens of a step. Without a card it is only tried, so a few will do.
SHAPES = {"cuda": (4, 256), "cpu": (1, 32)}
PROMPT = 32
TURNS = {"cuda": 8, "cpu": 2}  # at most
# Without a card what is compiled is captured and differentiated as on one, but PyTorch's operators
# run its graphs: to make code of them takes a processor a minute each. `paths` does that once.
TRIED_WITH = "aot_eager"

OURS = Variant("ours", fused=True)
THEIRS = Variant("transformers", theirs=True)
TRAINING = [
    OURS,
    THEIRS,
    THEIRS._replace(name="transformers, fused AdamW", fused=True),
    OURS._replace(name="ours, blocks compiled", compiled="blocks"),
    OURS._replace(name="ours, model compiled", compiled="model"),
    THEIRS._replace(name="transformers, fused AdamW, compiled", fused=True, compiled="model"),
    OURS._replace(name="ours, model compiled, CUDA graphs", compiled="graphs"),
]


def speed(stage: Stage) -> None:
    """Measure limits, steps and tokens."""
    card = stage.device.type == "cuda"
    config = SmolLM2Config.preset(stage.preset)
    dtype = choose_precision(find_hardware(stage.device)).dtype
    torch.set_float32_matmul_precision("high")  # as in training
    size = 2**30 if card else 2**26
    moved = stage.part("bandwidth", lambda: bandwidth(stage.device, size), needs=2)
    if moved:
        stage.part("step, limit", lambda: limit(config, dtype, stage.device, moved["copy"]), 3)
    until = stage.until
    stage.until -= 0.35 * stage.left()  # what decoding gets
    read = moved["read"] if moved else float("nan")
    if not card:
        stage.keep(compiler=TRIED_WITH)
    with nullcontext() if card else torch.compiler.set_stance(force_backend=TRIED_WITH):
        try:
            train(stage, config, dtype)
        finally:
            stage.until = until
        decode(stage, config, dtype, read)


# Training.


def bytes_beside_products(config: SmolLM2Config, B: int, T: int, dtype: torch.dtype) -> int:
    """Return what a step must move that no matrix product moves, in bytes, each thing once.

    AdamW reads weight, gradient and two moments and writes all but the gradient. Under autocast
    matrices are read in float32 and written in 16 bits, their gradients the other way round. Of
    what is kept for the backward pass, the products write queries, keys, values, gate and up, and
    read what they multiply; the rest is written once forward and read once backward.
    """
    N = total_parameters(config)
    kept = activations(config, B, T, dtype)
    cast = dtype != torch.float32
    matrices = N - parameters(config)["RMSNorm"]
    optimizer = 7 * 4 * N
    casts = 2 * (4 + dtype.itemsize) * matrices if cast else 0
    written = kept["residual stream, before each norm"] + kept["normalised vectors"]
    written += kept["inputs of projections and head"] if cast else 0
    written += kept["SwiGLU: gate, SiLU, up, product"] // 2 + kept["log-probabilities"]
    elementwise = (
        kept["residual stream, before each norm"]
        + kept["SwiGLU: gate, SiLU, up, product"] * 3 // 4  # gate, SiLU and up are read
        + kept["log-probabilities"]
    )
    return optimizer + casts + written + elementwise


def limit(
    config: SmolLM2Config, dtype: torch.dtype, device: torch.device, copying: float
) -> dict[str, Any]:
    """Return the two terms of a step's limit, in seconds, and the FLOPs of its products."""
    B, T = SHAPES[device.type]
    products = matrix_products(config, B, T)
    times = 20 if device.type == "cuda" else 2
    total = 0.0
    for product in products:
        with torch.device(device):
            a, b = factors(product, dtype, B * config.n_head)
        one = seconds_each(functools.partial(torch.matmul, a, b), device, times, rounds=3)
        total += one * (product.times if a.ndim == 2 else product.times / len(a))
        del a, b
    moved = bytes_beside_products(config, B, T, dtype)
    flops = sum(product.flops for product in products)
    return {
        "products_s": total,
        "bytes": moved,
        "bytes_s": moved / copying,
        "s": total + moved / copying,
        "flops": flops,
        "tokens_per_s": B * T / (total + moved / copying),
        "products_share_of_peak": flops / total / device_peak(device, dtype),
        "dtype": dtype,
    }


def train(stage: Stage, config: SmolLM2Config, dtype: torch.dtype) -> None:
    """Measure the training variants; they take turns."""
    steps: dict[str, Callable[[], float]] = {}
    rows: dict[str, dict[str, Any]] = {}
    variants = TRAINING
    B, T = SHAPES[stage.device.type]
    if stage.device.type == "cuda":
        # All are there at once: weights, gradients and moments of each, activations of one.
        needed = len(variants) * 16 * total_parameters(config) + training_memory(
            config, B, T, dtype)["peak"]  # fmt: skip
        free_bytes, _ = torch.cuda.mem_get_info(stage.device)
        if 1.5 * needed > free_bytes:
            variants = [one for one in TRAINING if one.compiled in ("", "blocks")][:4]
            stage.note(f"{free_bytes / 1e9:.0f} GB are free, so {len(variants)} ways of a step")
    for variant in variants:
        needs = 20 if variant.compiled else 4

        def first(variant: Variant = variant) -> dict[str, Any]:
            step = make_step(variant, config, (B, T), stage.device, dtype)
            begin = time.perf_counter()
            losses = [step()]
            stage.wait()
            cold = time.perf_counter() - begin
            losses += [step() for _ in range(3)]  # a graph is recorded at the second or third
            # A first measurement, for the case that there is no time for turns.
            once = timed(step, stage, 3)
            steps[variant.name] = step
            return {"first_step_s": cold, "losses": losses, "s_per_step": once,
                    "tokens_per_s": B * T / once, "turns": 0}  # fmt: skip

        if found := stage.part(f"step, {variant.name}", first, needs):
            rows[variant.name] = found
    if not steps:
        return
    trial = {name: rows[name]["s_per_step"] for name in steps}
    # As many steps in a turn as take a quarter of a second, as many turns as there is time for.
    count = {name: max(1, min(20, round(0.25 / seconds))) for name, seconds in trial.items()}
    turn = sum(trial[name] * count[name] for name in steps)
    turns = max(1, min(TURNS[stage.device.type], int(stage.left() / 2 / turn)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(turns):
        order = list(steps) if i % 2 == 0 else list(reversed(steps))
        if found[order[0]] and stage.left() < 1.5 * turn:
            break
        for name in order:
            found[name].append(timed(steps[name], stage, count[name]))
    limited = stage.result.get("step, limit", {}).get("s")
    for name, seconds in found.items():
        middle = median(seconds)
        row = rows[name] | {
            "s_per_step": middle,
            "tokens_per_s": B * T / middle,
            "turns": len(seconds),
        }
        row |= {"least_s": min(seconds), "most_s": max(seconds)}
        if limited:
            row["of_limit"] = limited / middle
        if THEIRS.name in found:
            pairs = zip(found[THEIRS.name], seconds, strict=True)
            row["times_transformers"] = median(a / b for a, b in pairs)
        stage.keep(**{f"step, {name}": row})
    steps.clear()
    free(stage)


def timed(step: Callable[[], object], stage: Stage, count: int) -> float:
    """Return the seconds of a step: a mean of so many in a row."""
    stage.wait()
    begin = time.perf_counter()
    for _ in range(count):
        step()
    stage.wait()
    return (time.perf_counter() - begin) / count


def free(stage: Stage) -> None:
    """Give memory back that nobody uses any more."""
    gc.collect()
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()


# Decoding.

Writer = Callable[[int], list[int]]


def decode(stage: Stage, config: SmolLM2Config, chosen: torch.dtype, reading: float) -> None:
    """Measure a token of one sequence in the chosen type and in float32, greedy."""
    tokens = 128 if stage.device.type == "cuda" else 24
    torch.manual_seed(0)
    model = SmolLM2(config).eval().requires_grad_(False).to(stage.device)
    prompt = torch.randint(config.vocab_size, (PROMPT,)).tolist()
    for dtype in dict.fromkeys((chosen, torch.float32)):
        model.to(dtype)
        kind = str(dtype).removeprefix("torch.")
        weights = total_parameters(config) * dtype.itemsize
        cache = kv_cache_bytes(config, PROMPT + tokens // 2, dtype)
        most = reading / (weights + cache)
        stage.keep(**{f"token, {kind}, limit": {"tokens_per_s": most, "bytes": weights + cache}})
        writers: dict[str, Writer] = {}
        texts: dict[str, list[int]] = {}
        for name, make in makers(model, prompt, tokens).items():
            label = f"token, {kind}, {name}"

            def first(
                name: str = name,
                make: Callable[[], Writer] = make,
                writers: dict[str, Writer] = writers,
                texts: dict[str, list[int]] = texts,
                most: float = most,
            ) -> dict[str, Any]:
                begin = time.perf_counter()
                write = make()
                write(4)  # compilation, and a graph's recording
                stage.wait()
                cold = time.perf_counter() - begin
                texts[name] = write(tokens)
                once = rate(write, tokens, stage)  # for the case that there is no time for turns
                writers[name] = write
                return {"cold_s": cold, "tokens_per_s": once, "of_limit": once / most}

            stage.part(label, first, needs=15 if "compiled" in name or "graph" in name else 3)
        rates: dict[str, list[float]] = {name: [] for name in writers}
        for _ in range(3):
            for name, write in writers.items():
                if stage.left() > 3:
                    rates[name].append(rate(write, tokens, stage))
        for name, measured in rates.items():
            if not measured:
                continue
            middle = median(measured)
            row = stage.result[f"token, {kind}, {name}"] | {
                "tokens_per_s": middle,
                "of_limit": middle / most,
                # Sums in another order choose another token where two are all but equal.
                "tokens_as_eager": same(texts[name], texts.get("ours", [])),
            }
            if rates.get("transformers"):
                row["times_transformers"] = middle / median(rates["transformers"])
            stage.keep(**{f"token, {kind}, {name}": row})
        writers.clear()
        free(stage)


def makers(model: SmolLM2, prompt: list[int], most: int) -> dict[str, Callable[[], Writer]]:
    """Return for each variant what makes its writer: so many greedy tokens after the prompt."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)

    def ours(decoder: Any = None) -> Writer:
        def write(count: int) -> list[int]:
            [whole] = generate(model, ids, count, temperature=0, decoder=decoder)
            return whole[len(prompt) :].tolist()

        return write

    def theirs(**settings: Any) -> Writer:
        from smol_scratch.hub import to_transformers

        llama = to_transformers(model).to(ids.device, next(model.parameters()).dtype)
        llama.generation_config.eos_token_id = None  # or it might stop early
        llama.generation_config.pad_token_id = 0
        options = {"do_sample": False, "attention_mask": torch.ones_like(ids), **settings}

        def write(count: int) -> list[int]:
            whole: Tensor = llama.generate(ids, max_new_tokens=count, **options)
            return whole[0, len(prompt) :].tolist()

        return write

    found: dict[str, Callable[[], Writer]] = {
        "ours": ours,
        "transformers": theirs,
        "ours, compiled": lambda: ours(CompiledDecoder(model)),
        "ours, CUDA graphs": lambda: ours(GraphDecoder(model, len(prompt) + most)),
    }
    if ids.device.type == "cuda":  # on a processor it compiles nothing
        found["transformers, static cache, compiled"] = lambda: theirs(
            cache_implementation="static"
        )
    return found


def rate(write: Writer, tokens: int, stage: Stage) -> float:
    """Return the tokens a second after the first one."""
    stage.wait()
    begin = time.perf_counter()
    write(1)
    stage.wait()
    first = time.perf_counter()
    write(tokens)
    stage.wait()
    return (tokens - 1) / (time.perf_counter() - first - (first - begin))


def same(text: list[int], other: list[int]) -> int:
    """Return how many tokens at the beginning are equal."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
