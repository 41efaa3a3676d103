"""Measure the training step: ``python -m benchmarks.bench_training``.

A step is forward, backward and AdamW at 4 × 256 in the 135M model, bfloat16 autocast where the
processor has bfloat16, no clipping. Ours is held against ``transformers``' own model with the same
weights and against the limit: the time of the model's own matrix products, and that of the bytes
which must pass through memory (``accounting.training_traffic``) at the speed that it has here.

Each variant lives in a process of its own, since the memory setting cannot be undone, and they take
turns: one computes, the others wait. So whatever else the machine does falls on all of them, and
the medians' ratios can be trusted further than the seconds.

``--ladder`` measures what each change brought, from the plainest form on. That all rungs compute
the same is shown by ``tests/test_fast.py``.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

# Threads wait as PyTorch's do unless told otherwise: they spin for a moment, then sleep. That they
# sleep at once (the Makefile's wish for tests) makes small operations slower; that they never do
# would take the cores from the variant whose turn it is.
if __name__ == "__main__":  # and so in the variants' processes, which inherit it
    os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ.pop("GOMP_SPINCOUNT", None)

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing import get_context

from smol_scratch import SmolLM2, SmolLM2Config
from smol_scratch.accounting import MatrixProduct, matrix_products, training_traffic
from smol_scratch.cache import LayerCache
from smol_scratch.fast import (
    FastRMSNorm,
    FastSmolLM2,
    attention_by_size,
    compile_blocks,
    keep_freed_memory,
)
from smol_scratch.model import GroupedQueryAttention, SwiGLU
from smol_scratch.training import find_hardware

B, T = 4, 256
CONFIG = SmolLM2Config()
CPU = torch.device("cpu")
STEPS = 2  # in one turn
NAME = "python -m benchmarks.bench_training"
DATA = Path(__file__).parents[1] / "data" / "records"


class Variant(NamedTuple):
    """One way to do the same step; every field after the name switches one thing on."""

    name: str
    theirs: bool = False  # transformers' model, else ours
    bf16: bool = True
    keep: bool = False
    fused: bool = False
    grouped: bool = False
    norm: bool = False
    loss: bool = False
    compiled: str = ""  # "blocks", "tuned blocks", "model" or "graphs" (of CUDA, with model)
    bf16_residual: bool = False
    bf16_weights: bool = False  # the optimizer then keeps float32 masters
    joined: bool = False  # one product for q, k, v and one for gate, up


USER = Variant("transformers", theirs=True)
HONEST = Variant("transformers, memory kept, fused AdamW", theirs=True, keep=True, fused=True)
EAGER = Variant("ours", keep=True, fused=True, grouped=True, norm=True, loss=True)
COMPILED = EAGER._replace(name="ours, blocks compiled", compiled="blocks")
LIMIT = Variant("matrix products alone", keep=True)
MEMORY = Variant("bytes at memory's speed", keep=True)

LADDER = [
    Variant("plain, float32", bf16=False),
    Variant("+ bfloat16 autocast"),
    Variant("+ freed memory kept", keep=True),
    Variant("+ fused AdamW", keep=True, fused=True),
    Variant("+ grouped attention", keep=True, fused=True, grouped=True),
    EAGER._replace(name="+ hand-written norm gradient", loss=False),
    EAGER._replace(name="+ loss a few tokens at a time"),
    EAGER._replace(name="aside: bfloat16 residual stream", bf16_residual=True),
    EAGER._replace(name="aside: weights in bfloat16", bf16_weights=True),
    EAGER._replace(name="aside: qkv joined, gate-up joined", joined=True),
    COMPILED._replace(name="+ blocks compiled"),
    COMPILED._replace(name="aside: blocks, max-autotune", compiled="tuned blocks"),
    COMPILED._replace(name="aside: whole model compiled", compiled="model"),
]
# All at once would need 50 GB. The first of each later sitting was measured in an earlier one.
SITTINGS = [LADDER[:5], LADDER[4:9], [LADDER[6], *LADDER[9:]]]


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; if not, every variant runs in float32."""
    return find_hardware(torch.device("cpu")).bf16


# What runs in a variant's process.


class JoinedAttention(GroupedQueryAttention):
    """Attention whose queries, keys and values come from one product."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (
            part.view(B, T, -1, self.head_dim).transpose(1, 2)
            for part in self.qkv_proj(x).split(self.widths, dim=-1)
        )
        y = self.attend(self.rope(q), self.rope(k), v)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class JoinedSwiGLU(SwiGLU):
    """An MLP whose gate and values come from one product."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def join(module: nn.Module, names: list[str], name: str, kind: type[nn.Module]) -> None:
    """Replace linear layers with the same input by one that has all their outputs."""
    parts = [getattr(module, part).weight for part in names]
    whole = nn.Linear(parts[0].shape[1], sum(map(len, parts)), bias=False)
    whole.weight.data = torch.cat([part.data for part in parts])
    for part in names:
        delattr(module, part)
    setattr(module, name, whole)
    module.widths = [len(part) for part in parts]
    module.__class__ = kind


def make_step(
    variant: Variant,
    config: SmolLM2Config | None = None,
    shape: tuple[int, int] | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype | None = None,
) -> Callable[[], float]:
    """Return one training step of a variant, on a batch that never changes; it gives the loss.

    Args:
        variant: how.
        config: the model; CONFIG unless told.
        shape: sequences, and tokens in each; B and T unless told.
        device: where.
        dtype: of the products; None is the best that this processor has.
    """
    config, shape = config or CONFIG, shape or (B, T)
    if dtype is None:
        dtype = torch.bfloat16 if has_bf16() else torch.float32
    torch.manual_seed(0)
    ours = SmolLM2(config)
    idx = torch.randint(config.vocab_size, (shape[0], shape[1] + 1)).to(device)
    loss_of: Callable[[], Tensor]
    model: nn.Module
    if variant.theirs:
        from smol_scratch.hub import to_transformers

        model = to_transformers(ours)
        model.config.use_cache = False  # in its favour: by default it fills a cache as it trains
        # It shifts by itself, and leaves the last position out.
        loss_of = lambda: model(idx[:, :-1], labels=idx[:, :-1]).loss  # noqa: E731
    else:
        model = ours
        loss_of = lambda: model(idx[:, :-1], idx[:, 1:])[1]  # noqa: E731
        for module in model.modules():
            if variant.grouped and hasattr(module, "attend"):
                module.attend = attention_by_size
            elif variant.norm and hasattr(module, "eps"):
                module.__class__ = FastRMSNorm
            elif variant.loss and isinstance(module, SmolLM2):
                module.__class__ = FastSmolLM2
        if variant.bf16_residual and dtype == torch.bfloat16:
            model.model.embed_tokens.register_forward_hook(lambda *args: args[-1].bfloat16())
        if variant.joined:
            for block in model.model.layers:
                names = ["q_proj", "k_proj", "v_proj"]
                join(block.self_attn, names, "qkv_proj", JoinedAttention)
                join(block.mlp, ["gate_proj", "up_proj"], "gate_up_proj", JoinedSwiGLU)
    del ours
    model.to(device)
    if variant.compiled == "blocks":
        compile_blocks(model)
    elif variant.compiled == "tuned blocks":
        for block in model.model.layers:
            block.compile(mode="max-autotune-no-cudagraphs")
    elif variant.compiled:
        model.compile(mode="reduce-overhead" if variant.compiled == "graphs" else None)
    model.train()
    weights = list(model.parameters())
    masters = weights
    narrow = variant.bf16_weights and dtype == torch.bfloat16
    if narrow:
        masters = [nn.Parameter(weight.detach().clone()) for weight in weights]
        for weight in weights:
            weight.data = weight.data.bfloat16()
    optimizer = torch.optim.AdamW(masters, lr=3e-4, **({"fused": True} if variant.fused else {}))
    autocast = variant.bf16 and dtype != torch.float32 and not narrow
    narrow_type = dtype if autocast else torch.bfloat16

    def step() -> float:
        if variant.compiled == "graphs":  # what the last step returned may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, narrow_type, enabled=autocast):
            loss = loss_of()
        loss.backward()
        if narrow:
            for weight, master in zip(weights, masters, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        if narrow:
            with torch.no_grad():
                for weight, master in zip(weights, masters, strict=True):
                    weight.copy_(master)
        return loss.item()

    return step


def make_products() -> Callable[[], float]:
    """Return what measures the seconds of one step's matrix products, and nothing else.

    Each product is done with the layouts that it has in the step, some times over, its operands
    warm; the median counts as often as the product occurs. Attention's are timed head by head:
    with the heads of a group in one product, all together take half a percent less.
    """
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    heads = B * CONFIG.n_head
    operands = [
        (product, *factors(product, dtype, heads)) for product in matrix_products(CONFIG, B, T)
    ]

    def measure() -> float:
        total = 0.0
        for product, a, b in operands:
            calls = []
            for _ in range(6):
                begin = time.perf_counter()
                torch.matmul(a, b)
                calls.append(time.perf_counter() - begin)
            times = product.times if a.ndim == 2 else product.times / len(a)
            total += statistics.median(calls[1:]) * times
        return total

    return measure


def factors(product: MatrixProduct, dtype: torch.dtype, n_heads: int) -> tuple[Tensor, Tensor]:
    """Return two random factors of a product, laid out in memory as in the step.

    All ``n_heads`` heads of a batch are one batched product. A gradient for the right factor has
    the left one transposed, one for the left factor the right one. A linear layer's right factor is
    its weight, stored as (outputs, inputs): so there it is forward that has it transposed, and the
    weight's gradient is computed as (outputs, tokens) @ (tokens, inputs).
    """
    heads = (n_heads,) if product.name in ("scores", "weighted values") else ()
    _, name, direction, m, k, n, _ = product

    def plain(rows: int, columns: int) -> Tensor:
        return torch.randn(*heads, rows, columns).to(dtype)

    def transposed(rows: int, columns: int) -> Tensor:
        return plain(columns, rows).mT

    if direction == "backward, weight":
        return transposed(n, k), plain(k, m)
    if direction in ("backward, keys", "backward, values"):
        return transposed(m, k), plain(k, n)
    if direction == "backward, weights" or (direction == "forward" and name != "weighted values"):
        return plain(m, k), transposed(k, n)
    return plain(m, k), plain(k, n)


def make_traffic() -> Callable[[], float]:
    """Return what measures the seconds in which the bytes of one step pass through memory.

    The memory's speed is that of a sum of two long vectors, which reads two and writes a third.
    """
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    moved = sum(training_traffic(CONFIG, B, T, dtype).values())
    one, other, into = (torch.ones(64 << 20) for _ in range(3))  # 256 MiB each

    def measure() -> float:
        calls = []
        for _ in range(6):
            begin = time.perf_counter()
            torch.add(one, other, out=into)
            calls.append(time.perf_counter() - begin)
        return statistics.median(calls[1:]) * moved / (3 * one.nbytes)

    return measure


def live(variant: Variant, wire: Connection) -> None:
    """Take turns: receive a number of steps, answer with the seconds of each; 0 ends."""
    if variant.keep and not keep_freed_memory():
        raise SystemExit(f"{variant.name}: freed memory cannot be kept on this system")
    if variant in (LIMIT, MEMORY):
        measured = make_products() if variant == LIMIT else make_traffic()
        while wire.recv():
            wire.send([measured()])
        wire.send(0)
        return
    with tempfile.TemporaryDirectory() as empty:  # a cold compiler, not yesterday's cache
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        step = make_step(variant)
        while steps := wire.recv():
            seconds = []
            for _ in range(steps):
                begin = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - begin)
            wire.send(seconds)
    own = resource.getrusage(resource.RUSAGE_SELF)
    wire.send(own.ru_maxrss * (1 if sys.platform == "darwin" else 1024))  # bytes there, else KiB


# What runs in the first process.


class Row(NamedTuple):
    """What was measured of a variant."""

    variant: Variant
    seconds: float  # of a step, median
    cold: float  # of the first step: set-up, memory, compilation
    peak: int  # bytes of memory


def measure(variants: list[Variant], rounds: int) -> list[Row]:
    """Let the variants take turns, and return the median of each."""
    context = get_context("spawn")
    processes, wires, cold = [], [], []
    for variant in variants:
        wire, other = context.Pipe()
        process = context.Process(target=live, args=(variant, other), daemon=True)
        process.start()
        other.close()  # so that a process that dies is noticed
        wire.send(1)
        cold += wire.recv()
        processes.append(process)
        wires.append(wire)
        print(f"  {variant.name}: first step {cold[-1]:.1f} s", file=sys.stderr)
    found: list[list[float]] = [[] for _ in variants]
    for turn in range(rounds):
        order = list(range(len(variants)))
        for i in order if turn % 2 == 0 else reversed(order):
            wires[i].send(STEPS)
            found[i] += wires[i].recv()
    rows = []
    for variant, process, wire, first, seconds in zip(
        variants, processes, wires, cold, found, strict=True
    ):
        wire.send(0)
        rows.append(Row(variant, statistics.median(seconds), first, wire.recv()))
        process.join()
    return rows


def climb(sittings: list[list[Variant]], rounds: int) -> list[Row]:
    """Measure the ladder in sittings.

    The first of a sitting was measured in an earlier one already, and what the machine did to it
    between the two is taken out of the later sitting's seconds.
    """
    rows: dict[Variant, Row] = {}
    for variants in sittings:
        first, *others = measure(variants, rounds)
        known = rows.setdefault(first.variant, first)
        drift = known.seconds / first.seconds
        print(f"  {known.variant.name}: {drift:.3f} times this sitting's", file=sys.stderr)
        rows |= {row.variant: row._replace(seconds=row.seconds * drift) for row in others}
    return list(rows.values())


def show(rows: list[Row]) -> None:
    seconds = {row.variant: row.seconds for row in rows}
    reference = seconds.get(USER, rows[0].seconds)
    limit = seconds[LIMIT] + seconds[MEMORY] if {LIMIT, MEMORY} <= seconds.keys() else None
    print(f"\n{'':40} {'s/step':>7} {'tokens/s':>8} {'ratio':>6} {'of both':>8} {'peak GB':>8}")
    for row in rows:
        share = f"{limit / row.seconds:8.0%}" if limit else f"{'':8}"
        print(
            f"{row.variant.name:40} {row.seconds:7.2f} {B * T / row.seconds:8.0f} "
            f"{reference / row.seconds:6.2f} {share} {row.peak / 1e9 or float('nan'):8.2f}"
        )


def show_targets(rows: list[Row]) -> None:
    row = {row.variant: row for row in rows}

    def times(one: Variant, other: Variant) -> float:
        return row[other].seconds / row[one].seconds

    def share(one: Variant) -> float:
        return (row[LIMIT].seconds + row[MEMORY].seconds) / row[one].seconds

    targets = [
        ("ours, times transformers given the same", times(EAGER, HONEST), 1.25),
        ("ours, share of the two limits together", share(EAGER), 0.75),
        ("memory: transformers, times ours", row[USER].peak / row[EAGER].peak, 1.0),
    ]
    if COMPILED in row:
        compilation = row[COMPILED].cold - row[COMPILED].seconds
        targets += [
            ("compiled, times transformers given the same", times(COMPILED, HONEST), 1.4),
            ("compiled, times ours", times(COMPILED, EAGER), 1.0),
            ("20 s, times the cold compilation", 20 / compilation, 1.0),
            ("memory: transformers, times compiled", row[USER].peak / row[COMPILED].peak, 1.0),
        ]
    print()
    for what, found, wanted in targets:
        met = "met" if found >= wanted else "MISSED"
        print(f"{what:45} {found:5.2f}, wanted at least {wanted:4.2f}: {met}")


def machine() -> str:
    """Return processor, cores, types and versions, for the record."""
    import transformers

    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return (
        f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'yes' if has_bf16() else 'no'}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )


def write(rows: list[Row], path: Path, command: str) -> None:
    with path.open("w", newline="") as file:
        file.write(f"# {machine()}; {command}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "s_per_step", "tokens_per_s", "first_step_s", "peak_gb"])
        for row in rows:
            measured = (row.seconds, B * T / row.seconds, row.cold, row.peak / 1e9)
            writer.writerow([row.variant.name, *(f"{number:.4g}" for number in measured)])
    print(f"\nwritten: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ladder", action="store_true", help="what each change brought")
    parser.add_argument("--skip-compiled", action="store_true", help="not with --ladder")
    parser.add_argument("--write", action="store_true", help="keep the result in data/records/")
    parser.add_argument(
        "--sitting",
        action="store_true",
        help="add it to those of this kind of processor; not with --ladder",
    )
    options = parser.parse_args()
    variants = [USER, EAGER, COMPILED, HONEST, LIMIT, MEMORY]
    if options.skip_compiled:
        variants = [variant for variant in variants if not variant.compiled]
    if options.ladder and options.skip_compiled:
        parser.error("--ladder --skip-compiled: the ladder has compiled rungs; leave one out")
    print(machine())
    rows = climb(SITTINGS, options.rounds) if options.ladder else measure(variants, options.rounds)
    show(rows)
    if not options.ladder:
        show_targets(rows)
    from benchmarks import kinds  # which asks this file what machine it is

    command = kinds.command(NAME)
    if options.sitting and not options.ladder:
        given = {row.variant: row.seconds for row in rows}
        kinds.keep(
            DATA / "training_sittings.csv",
            [
                {
                    "variant": row.variant.name,
                    "s_per_step": f"{row.seconds:.4g}",
                    "times_given_the_same": f"{given[HONEST] / row.seconds:.3f}",
                    "of_products": f"{given[LIMIT] / row.seconds:.3f}",
                    "of_both": f"{(given[LIMIT] + given[MEMORY]) / row.seconds:.3f}",
                    "first_step_s": f"{row.cold:.4g}",
                    "peak_gb": f"{row.peak / 1e9:.4g}",
                }
                for row in rows
            ],
            command,
            one=False,
        )
    if options.write:
        name = "training_ladder.csv" if options.ladder else "training_speed.csv"
        write(rows, DATA / name, command)


if __name__ == "__main__":
    main()
