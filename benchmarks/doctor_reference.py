"""Make what ``doctor`` compares with: ``python -m benchmarks.doctor_reference``.

The right results come from the formulas, written out here in float64 without a line of
``model.py``; so do those of wrong programs. The floors come from running the probes and the
training run on simulated machines, each a process of its own that is told to compute as another
processor would. All goes into ``smol_scratch/doctor_reference.json``, and a table is printed: for
each probe its floor and how far above the tolerance the gentlest of its wrong programs stands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import assets, model, probes
from smol_scratch.config import SmolLM2Config
from smol_scratch.course import notebook
from smol_scratch.probes import FACTOR, FAR, PROBES, RUN, SMALL, B, C, D, H, T, exact
from smol_scratch.tokenizer import BytePairEncoding, merges_of

# The machines of `make portable`, and one that differs in all ways at once.
MACHINES: dict[str, dict[str, str]] = {
    "this one": {},
    **notebook.MACHINES,
    "all at once": {key: value for way in notebook.MACHINES.values() for key, value in way.items()},
}


@dataclass(frozen=True)
class Way:
    """How to compute: the right way, or one that real code has shipped."""

    eps: float = 1e-5
    eps_outside: bool = False
    norm_weight: bool = True
    norm_axis: int = -1
    final_norm: bool = True
    neighbours: bool = False
    theta: float = 100_000.0
    turn: int = 1
    shift: int = 0
    coarse: bool = False  # positions in bfloat16
    mask: int | None = 0  # diagonal above the usual one, or none
    from_first: bool = False  # the mask counts from the first key
    scale: bool = True
    in_turn: bool = False  # key-value heads
    swapped: bool = False  # gate and up
    activation: Callable[[Tensor], Tensor] = F.silu
    residual: bool = True
    parallel: bool = False
    post_norm: bool = False
    shifted_targets: bool = False
    counted: bool = False  # padding
    head_dim: int = D


RIGHT = Way()


def norm(x: Tensor, weight: Tensor, way: Way) -> Tensor:
    mean_square = (x * x).mean(way.norm_axis, keepdim=True)
    root = mean_square.sqrt() + way.eps if way.eps_outside else (mean_square + way.eps).sqrt()
    return x / root * weight if way.norm_weight else x / root


def rope(x: Tensor, way: Way, start: int = 0) -> Tensor:
    half = x.shape[-1] // 2
    wavelengths = way.theta ** ((torch.arange(half).double() * 2 + 2 * way.shift) / x.shape[-1])
    positions = torch.arange(start, start + x.shape[-2]).double()
    if way.coarse:
        positions = positions.bfloat16().double()
    angle = way.turn * positions[:, None] / wavelengths
    turn = torch.polar(torch.ones_like(angle), angle)
    if way.neighbours:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (half, 2))) * turn).flatten(
            -2
        )
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
    group, (n_query, n_key) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    heads = [h % k.shape[1] if way.in_turn else h // group for h in range(q.shape[1])]
    scores = q @ k[:, heads].mT
    if way.scale:
        scores = scores / math.sqrt(q.shape[-1])
    if way.mask is not None:
        first = 0 if way.from_first else n_key - n_query
        late = torch.arange(n_key) > torch.arange(n_query)[:, None] + first + way.mask
        scores = scores.masked_fill(late, -math.inf)
    return scores.softmax(-1) @ v[:, heads]


Weights = dict[str, Tensor]


def gather(x: Tensor, w: Weights, at: str, way: Way) -> Tensor:
    def heads(name: str) -> Tensor:
        wide = x @ w[f"{at}{name}_proj.weight"].T
        return wide.unflatten(-1, (-1, way.head_dim)).transpose(1, 2)

    mixed = attention(rope(heads("q"), way), rope(heads("k"), way), heads("v"), way)
    return mixed.transpose(1, 2).flatten(2) @ w[f"{at}o_proj.weight"].T


def mlp(x: Tensor, w: Weights, at: str, way: Way) -> Tensor:
    gate, up = (x @ w[f"{at}{name}_proj.weight"].T for name in ("gate", "up"))
    gate, up = (up, gate) if way.swapped else (gate, up)
    return (way.activation(gate) * up) @ w[f"{at}down_proj.weight"].T


def block(x: Tensor, w: Weights, at: str, way: Way) -> Tensor:
    first, second = (
        lambda x, name=name: norm(x, w[f"{at}{name}_layernorm.weight"], way)
        for name in ("input", "post_attention")
    )
    if way.post_norm:
        x = first(x + gather(x, w, f"{at}self_attn.", way))
        return second(x + mlp(x, w, f"{at}mlp.", way))
    gathered = x + gather(first(x), w, f"{at}self_attn.", way)
    made = mlp(second(x if way.parallel else gathered), w, f"{at}mlp.", way)
    return gathered + made if way.residual else made


def logits(ids: Tensor, w: Weights, config: SmolLM2Config, way: Way) -> Tensor:
    x = w["model.embed_tokens.weight"][ids]
    for i in range(config.n_layer):
        x = block(x, w, f"model.layers.{i}.", way)
    if way.final_norm:
        x = norm(x, w["model.norm.weight"], way)
    return x @ w["model.embed_tokens.weight"].T


def small_weights() -> Weights:
    return {name: weight.double() for name, weight in probes.small_weights().items()}


def of_small(way: Way) -> Way:
    """Return a way with the small model's epsilon."""
    return replace(way, eps=SMALL.norm_eps)


def small_loss(way: Way, w: Weights | None = None) -> Tensor:
    scores = logits(probes.small_ids(), w or small_weights(), SMALL, of_small(way))
    targets = probes.small_targets()
    if way.shifted_targets:
        scores, targets = scores[:, :-1], targets[:, 1:]
    logs, counts = scores.log_softmax(-1), targets >= 0
    chosen = logs.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * counts
    return -chosen.sum() / (targets.numel() if way.counted else counts.sum())


def small_gradients(way: Way) -> list[Tensor]:
    w = {name: weight.requires_grad_() for name, weight in small_weights().items()}
    return list(torch.autograd.grad(small_loss(way, w), list(w.values())))


def rounded(x: Tensor, bits: int) -> Tensor:
    """Round to so many bits after the leading one: 10 is TF32 and float16, 7 is bfloat16."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)), exponent - bits - 1)


def product(bits: int | None = None) -> list[Tensor]:
    """Multiply, rounding what is multiplied to so many bits, if to any."""
    a, b = (part.double() for part in probes.product_inputs())
    return 2 * [a @ b if bits is None else rounded(a, bits) @ rounded(b, bits)]


def half_product(bits: int, narrow_sums: bool = False) -> list[Tensor]:
    """Multiply in 16 bits; each sum is rounded once, or after each addition."""
    a, b = (rounded(part.double(), bits) for part in probes.half_product_inputs())
    if not narrow_sums:
        return 2 * [rounded(a @ b, bits)]
    total = torch.zeros(len(a), b.shape[1], dtype=torch.float64)
    for i in range(len(b)):
        total = rounded(total + a[:, i : i + 1] * b[i], bits)
    return 2 * [total]


def rmsnorm(way: Way) -> list[Tensor]:
    return [norm(probes.rmsnorm_input().double(), (1 + 0.3 * exact(8, C)).double(), way)]


def rmsnorm_half(overflowing: bool = False) -> list[Tensor]:
    x = (512 * exact(7, B, T, C)).half().double()
    w = (1 + 0.3 * exact(8, C)).half().double()
    square = (x * x).half().double() if overflowing else x * x
    normed = x / (square.mean(-1, keepdim=True) + 1e-5).sqrt()
    return [(normed.half().double() * w).half().double()]


def adamw(
    beta2: float = 0.95, decay: float = 0.1, corrected: bool = True, coupled: bool = False
) -> list[Tensor]:
    """Loshchilov and Hutter, arXiv:1711.05101, algorithm 2."""
    start, gradients = probes.adamw_inputs()
    rate, beta1, weight = probes.ADAMW["lr"], 0.9, start.double()
    first = second = torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.double() + (decay * weight if coupled else 0)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        a, b = (1 - beta1**step, 1 - beta2**step) if corrected else (1.0, 1.0)
        kept = weight if coupled else weight * (1 - rate * decay)
        weight = kept - rate * (first / a) / ((second / b).sqrt() + 1e-8)
    return [weight - start.double()]


def gguf_numbers() -> list[int]:
    """Number = scale · n + smallest, the low halves of the bytes before the high ones."""
    blocks = probes.gguf_inputs()
    q4 = [
        n + 16 * -1.5
        for row in blocks["Q4_1"][:, 4:].tolist()
        for n in [b & 15 for b in row] + [b >> 4 for b in row]
    ]
    q8 = [n - 256 * (n > 127) for row in blocks["Q8_0"][:, 2:].tolist() for n in row]
    return [int(n) for numbers in (q4, q8) for n in numbers[::37]]


def layout() -> list[int]:
    """The released checkpoint's names and shapes."""
    q, kv, width, hidden = 9 * 64, 3 * 64, 576, 1536
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (49_152, width)}
    for i in range(30):
        at = f"model.layers.{i}."
        shapes |= {at + f"self_attn.{name}_proj.weight": (kv, width) for name in "kv"}
        shapes |= {at + "self_attn.q_proj.weight": (q, width)}
        shapes |= {at + "self_attn.o_proj.weight": (width, q)}
        shapes |= {at + f"mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        shapes |= {at + "mlp.down_proj.weight": (width, hidden)}
        shapes |= {at + f"{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    digest = hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()
    return [len(shapes), sum(map(math.prod, shapes.values())), int(digest[:8], 16)]


def tokenizer_numbers() -> list[int]:
    """By the byte-pair encoding that notebook 07 writes out; nothing is lost."""
    backend = probes.real()[1].backend
    by_hand = BytePairEncoding(merges_of(backend), backend.get_vocab())
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", "".join(probes.SENTENCES)):
        special = part.startswith("<|")
        ids += [by_hand.vocabulary[part]] if special else by_hand.encode(part)
    return [*ids, 0]


def real_logits(way: Way = RIGHT) -> list[Tensor]:
    return [logits(torch.tensor([probes.real()[1].encode(probes.PROMPT)]), *real(), way)]


def real() -> tuple[Weights, SmolLM2Config]:
    loaded = probes.real()[0]
    return {name: weight.double() for name, weight in loaded.state_dict().items()}, loaded.config


def greedy_tokens() -> tuple[list[int], float]:
    """Return the tokens, and the least distance between the first and the second logit."""
    prompt, (w, config) = probes.real()[1].encode(probes.PROMPT), real()
    made: list[int] = []
    margin = math.inf
    for _ in range(probes.TOKENS):
        last = logits(torch.tensor([prompt + made]), w, config, RIGHT)[0, -1]
        best = last.topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        made.append(int(best.indices[0]))
    return made, margin


# What is right and what is wrong, by probe. A wrong program's name ends the sentence
# "the result is that of a program that ...".

Result = list[int] | list[Tensor]

WRONG_ATTENTION = {
    "lets each token see all later ones: the mask is missing": Way(mask=None),
    "lets each token see the next one: the mask is off by one": Way(mask=1),
    "does not divide the scores by the root of D": Way(scale=False),
    "gives key-value heads to the query heads in turn, not in groups": Way(in_turn=True),
}
WRONG_ROTATION = {
    "turns neighbouring channels (the interleaved pairing), where the released weights pair the "
    "two halves of a head": Way(neighbours=True),
    "turns the other way round": Way(turn=-1),
    "has theta 10,000 in place of 100,000": Way(theta=10_000.0),
    "has exponents that are off by one": Way(shift=1),
}
WRONG_NORM = {
    "adds 1e-6 to the mean of squares in place of 1e-5": Way(eps=1e-6),
    "adds epsilon outside the root": Way(eps_outside=True),
    "leaves out the norm's weight": Way(norm_weight=False),
    "takes the mean over the tokens, not over the channels": Way(norm_axis=-2),
}
WRONG_MLP = {
    "exchanges gate and up": Way(swapped=True),
    "has GELU in place of SiLU": Way(activation=F.gelu),
}
WRONG_BLOCK = {
    "normalises after the sums (post-norm)": Way(post_norm=True),
    "puts the MLP beside attention, not after it": Way(parallel=True),
    "leaves out the sum around the MLP": Way(residual=False),
}
NO_FINAL_NORM = {"leaves out the last norm": Way(final_norm=False)}
WRONG_LOSS = {
    "shifts the targets a second time": Way(shifted_targets=True),
    "divides by all targets, padding included": Way(counted=True),
}


def several(
    right: Callable[[Way], list[Tensor]], wrong: dict[str, Way]
) -> tuple[Result, dict[str, Result]]:
    return right(RIGHT), {name: right(way) for name, way in wrong.items()}


def attended(way: Way, n_query: int = T) -> list[Tensor]:
    q, k, v = probes.queries_keys_values(n_query, n_query if n_query == T else probes.S)
    return [attention(q.double(), k.double(), v.double(), way)]


def rotated(way: Way, start: int = 0) -> list[Tensor]:
    return [rope(exact(9, 1, H, T, D).double(), way, start)]


def part(
    compute: Callable[[Tensor, Weights, str, Way], Tensor], at: str
) -> Callable[[Way], list[Tensor]]:
    return lambda way: [compute(exact(10, B, T, C).double(), small_weights(), at, of_small(way))]


def small_logits(way: Way) -> list[Tensor]:
    return [logits(probes.small_ids(), small_weights(), SMALL, of_small(way))]


def results(with_assets: bool = True) -> dict[str, tuple[Result, dict[str, Result]]]:
    """Return by probe what is right, and what each wrong program gives."""
    layer = "model.layers.0."
    whole = probes.whole(3, 64, 67, 129) @ probes.whole(4, 64, 129, 37)  # of integers: exact
    forward = several(small_logits, NO_FINAL_NORM | WRONG_ROTATION | WRONG_ATTENTION)
    backward = several(small_gradients, WRONG_LOSS)
    attending = several(attended, WRONG_ATTENTION)
    last = Way(from_first=True)
    found: dict[str, tuple[Result, dict[str, Result]]] = {
        "product of whole numbers": ([int(x) for x in whole.flatten()[::31]], {}),
        "matrix product": (
            product(),
            {
                "rounds what it multiplies to bfloat16": product(7),
                "rounds what it multiplies to TF32 or float16": product(10),
            },
        ),
        "matrix product, bfloat16": (
            half_product(7),
            {"sums in bfloat16": half_product(7, narrow_sums=True)},
        ),
        "matrix product, float16": (
            half_product(10),
            {"sums in float16": half_product(10, narrow_sums=True)},
        ),
        "RMSNorm": several(rmsnorm, WRONG_NORM),
        "RMSNorm, float16": (
            rmsnorm_half(),
            {"squares in float16, which overflows": rmsnorm_half(overflowing=True)},
        ),
        "RoPE": several(rotated, WRONG_ROTATION),
        "RoPE, far along": several(
            lambda way: rotated(way, FAR),
            {"holds positions in bfloat16": Way(coarse=True)} | WRONG_ROTATION,
        ),
        "attention, explicit": attending,
        "attention, fast": attending,
        "attention, last tokens": several(
            lambda way: attended(way, 5),
            {"counts the mask from the first key": last} | WRONG_ATTENTION,
        ),
        "attention with its matrices": several(
            part(gather, layer + "self_attn."), WRONG_ROTATION | WRONG_ATTENTION
        ),
        "SwiGLU": several(part(mlp, layer + "mlp."), WRONG_MLP),
        "block": several(part(block, layer), WRONG_BLOCK),
        "whole model": forward,
        "cross-entropy": several(lambda way: [small_loss(way)], WRONG_LOSS),
        "gradients": backward,
        "gradients, fast pieces": backward,
        "cache equals no cache": forward,
        "AdamW": (
            adamw(),
            {
                "has beta2 0.999 in place of 0.95": adamw(beta2=0.999),
                "decays no weights": adamw(decay=0.0),
                "adds the decay to the gradient (Adam, not AdamW)": adamw(coupled=True),
                "does not correct the moments' bias": adamw(corrected=False),
            },
        ),
        "names of the parameters": (layout(), {}),
        "safetensors, there and back": ([0, 0, 0], {}),
        "GGUF dequantisation": (gguf_numbers(), {}),
    }
    if with_assets:
        found |= {
            "tokenizer": (tokenizer_numbers(), {}),
            "real weights: logits": several(real_logits, WRONG_ROTATION | NO_FINAL_NORM),
            "real weights: greedy text": (greedy_tokens()[0], {}),
        }
    return found


# The training run, right and wrong.

WRONG_RUNS = {
    "no weight decay": {"weight_decay": 0.0},
    "beta2 0.999 in place of 0.95": {"beta2": 0.999},
    "the learning rate 1% higher": {"learning_rate": RUN.learning_rate * 1.01},
    "one step more of warm-up": {"warmup_steps": RUN.warmup_steps + 1},
    "gradients not clipped": {"clip": 1e9},
}


def measure() -> None:
    """Print, as JSON, what this process computes: the probes' summaries and the run's losses."""
    if threads := os.environ.get("SMOL_SCRATCH_THREADS"):
        torch.set_num_threads(int(threads))
    if os.environ.get("SMOL_SCRATCH_ONEDNN") == "off":
        torch.backends.mkldnn.set_flags(False)
    cpu = torch.device("cpu")
    found = {probe.name: probes.summary(probe.run(model, cpu)) for probe in PROBES}
    print(json.dumps({"probes": found, "run": probes.tiny_run(cpu)}))


def on(machine: str) -> dict[str, Any]:
    """Return what a simulated machine computes."""
    command = [sys.executable, "-m", "benchmarks.doctor_reference", "--measure"]
    env = os.environ | MACHINES[machine]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


# The spacing of the numbers, over √12: the root mean square of a rounding, relative to the number.
ONE_ROUNDING = {
    name: 2.0**-bits / math.sqrt(12)
    for name, bits in {"float32": 23.5, "bfloat16": 7.5, "float16": 10.5}.items()
}


def short(x: Any) -> Any:
    """Return numbers with ten digits: float32 has seven."""
    if isinstance(x, list):
        return [short(y) for y in x]
    return x if isinstance(x, int) else float(f"{x:.10g}")


def make() -> dict[str, Any]:
    """Compute all that is stored."""
    machines = {}
    for machine in MACHINES:
        print(f"measuring: {machine}", flush=True)
        machines[machine] = on(machine)
    entries = {}
    for name, (right, wrong) in results().items():
        exactly = isinstance(right[0], int)
        sizes = [] if exactly else [float(x.double().square().mean().sqrt()) for x in right]
        values = probes.summary(right)
        apart = {
            machine: probes.distance(found["probes"][name], values, sizes)
            for machine, found in machines.items()
        }
        # One rounding of all numbers at least: some results are right by luck, and a card may add
        # two halves of a sum that it has rounded to 16 bits.
        half = next(probe.half for probe in PROBES if probe.name == name)
        least = ONE_ROUNDING[name.rpartition(", ")[2] if half else "float32"]
        floor = 0.0 if exactly else max(least, *apart.values())
        if exactly and any(apart.values()):
            raise ValueError(f"{name}: {apart}: not equal everywhere")
        entries[name] = {
            "values": short(values),
            "sizes": short(sizes),
            "floor": float(f"{floor:.3g}"),
            "wrong": {bug: short(probes.summary(result)) for bug, result in wrong.items()},
        }
    curves = torch.tensor([found["run"] for found in machines.values()], dtype=torch.float64)
    spread = (curves - curves[0]).abs().amax(0)  # (steps,)
    # Rounding only grows: what a step allows, a later one allows too.
    floors = spread.clamp(min=2.0**-23 * curves.max().item()).cummax(0).values
    return {
        "probes": entries,
        "run": {
            "losses": curves[0].tolist(),
            "floors": [float(f"{floor:.3g}") for floor in floors.tolist()],
        },
        "machines": list(MACHINES),
    }


def gentlest(entry: dict[str, Any]) -> tuple[float, str]:
    """Return how many times the tolerance the nearest wrong program is away, and which it is."""
    known = probes.Reference(**entry)
    return min(
        (probes.distance(known.values, wrong, known.sizes) / known.allowed, name)
        for name, wrong in known.wrong.items()
    )


def wrong_runs() -> dict[str, float]:
    """Return for each wrong training run its largest distance, in multiples of the tolerance."""
    cpu = torch.device("cpu")
    found = {}
    for name, changes in WRONG_RUNS.items():
        verdict, _ = probes.examine_run(cpu, replace(RUN, **changes))
        found[name] = verdict.times or 0.0
    return found


def show(stored: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'probe':<30}{'floor':>9}{'allowed':>9}{'gentlest bug, as a multiple of it':>36}")
    for name, entry in stored["probes"].items():
        allowed = FACTOR * entry["floor"]
        times, bug = gentlest(entry) if entry["wrong"] else (math.inf, "any other whole number")
        print(f"{name:<30}{entry['floor']:>9.1e}{allowed:>9.1e}{times:>12,.0f}  {bug[:60]}")
    run = stored["run"]
    first, last, allowed = run["losses"][0], run["losses"][-1], FACTOR * run["floors"][-1]
    print(f"\n{len(run['losses'])} training steps: loss {first:.2f} to {last:.2f}, allowed at "
          f"the end {allowed:.1e}")  # fmt: skip
    for name, times in wrong_runs().items():
        print(f"  {name:<45}{times:>10,.0f} times that")
    print(f"\ngreedy text: least distance of two logits {greedy_tokens()[1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="what this process computes")
    parser.add_argument("--show", action="store_true", help="the table, without making all anew")
    chosen = parser.parse_args()
    if chosen.measure:
        measure()
    else:
        if not chosen.show:
            stored = make()
            text = json.dumps(stored, indent=1)
            text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
            assets.write_atomically(probes.REFERENCE, (text + "\n").encode())
        show(probes.reference())
