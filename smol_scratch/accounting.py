"""Where parameters, bytes and FLOPs go: counted from the configuration, and measured.

Letters: B batch, T tokens in a sequence, S tokens attended to, C width of the residual stream,
H query heads, D head dimension, L layers, V vocabulary, N parameters. MB are 10⁶ bytes; FLOPs are
operations, a multiplication and an addition counted as two; FLOP/s are operations a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from smol_scratch.config import SmolLM2Config
from smol_scratch.hardware import find_card, peak_flops
from smol_scratch.model import SmolLM2


def parameters(config: SmolLM2Config) -> dict[str, int]:
    """Return the parameters of each kind, from the configuration alone.

    The ten rows of the walkthrough's table; the head has parameters of its own only when untied.
    """
    q_width = config.n_head * config.head_dim
    kv_width = config.n_kv_head * config.head_dim
    layers, width = config.n_layer, config.n_embd
    hidden = config.intermediate_size
    embedding = config.vocab_size * width
    return {
        "Token Embeddings": embedding,
        "Attention Q": layers * width * q_width,
        "Attention K": layers * width * kv_width,
        "Attention V": layers * width * kv_width,
        "Attention O": layers * q_width * width,
        "MLP Gate": layers * width * hidden,
        "MLP Up": layers * width * hidden,
        "MLP Down": layers * hidden * width,
        "RMSNorm": (2 * layers + 1) * width,
        "Output (shared)" if config.tie_embeddings else "Output": (
            0 if config.tie_embeddings else embedding
        ),
    }


def costs(config: SmolLM2Config, context: int) -> dict[str, tuple[int, int]]:
    """Return parameters and forward FLOPs a token for each part, in the order of the notebooks.

    A multiplication and an addition count as two FLOPs. The elementwise parts are counted as:
    RMSNorm 4 a channel (square, add, scale, weight), RoPE 3 a channel (a pair takes four products
    and two sums), SwiGLU 5 a hidden channel beside its products (a sigmoid taken as 3).

    Args:
        config: the model.
        context: tokens that each query attends to.

    Returns:
        Part to (parameters, FLOPs a token).
    """
    count = parameters(config)
    attention = sum(count[f"Attention {letter}"] for letter in "QKVO")
    mlp = sum(count[f"MLP {name}"] for name in ("Gate", "Up", "Down"))
    heads = config.n_head * config.head_dim
    rotated = heads + config.n_kv_head * config.head_dim
    return {
        "RMSNorm": (count["RMSNorm"], 4 * count["RMSNorm"]),
        "RoPE": (0, 3 * rotated * config.n_layer),
        "attention": (attention, 2 * attention + 4 * heads * context * config.n_layer),
        "SwiGLU": (mlp, 2 * mlp + 5 * config.intermediate_size * config.n_layer),
        "embedding and head": (
            config.vocab_size * config.n_embd * (1 if config.tie_embeddings else 2),
            2 * config.vocab_size * config.n_embd,
        ),
    }


def print_costs(config: SmolLM2Config, until: str, context: int = 256) -> None:
    """Print what the parts cost that were built so far, the last of them ``until``.

    Raises:
        ValueError: for a part that does not exist.
    """
    table = costs(config, context)
    if until not in table:
        raise ValueError(f"until={until!r}: must be one of {', '.join(table)}")
    print(f"{'part':<20}{'parameters':>13}{'MB in float32':>15}{'MFLOPs a token':>16}")
    total_parameters = total_flops = 0
    for part, (count, flops) in table.items():
        total_parameters, total_flops = total_parameters + count, total_flops + flops
        print(f"{part:<20}{count:>13,}{4 * count / 1e6:>15.2f}{flops / 1e6:>16.3f}")
        if part == until:
            break
    whole = sum(count for count, _ in table.values())
    print(f"{'so far':<20}{total_parameters:>13,}{4 * total_parameters / 1e6:>15.2f}"
          f"{total_flops / 1e6:>16.3f}")  # fmt: skip
    print(f"{total_parameters / whole:.2%} of the model's {whole:,} parameters")


# Parameters: counted, printed, put in proportion.

_ROW_OF = {
    "embed_tokens.weight": "Token Embeddings",
    "q_proj.weight": "Attention Q",
    "k_proj.weight": "Attention K",
    "v_proj.weight": "Attention V",
    "o_proj.weight": "Attention O",
    "gate_proj.weight": "MLP Gate",
    "up_proj.weight": "MLP Up",
    "down_proj.weight": "MLP Down",
    "norm.weight": "RMSNorm",
    "lm_head.weight": "Output",
}


def counted_parameters(model: nn.Module) -> dict[str, int]:
    """Return the same ten rows as ``parameters``, counted in a model.

    A matrix with two names counts once. ``transformers``' Llama has the same names, so its
    parameters can be counted too.

    Raises:
        ValueError: for a parameter that belongs to no row.
    """
    count = dict.fromkeys(_ROW_OF.values(), 0)
    for name, parameter in model.named_parameters():
        rows = [row for ending, row in _ROW_OF.items() if name.endswith(ending)]
        if not rows:
            raise ValueError(f"parameter {name}: belongs to no row of the table")
        count[rows[0]] += parameter.numel()
    if count["Output"] == 0:
        del count["Output"]
        count["Output (shared)"] = 0
    return count


def parameter_table(count: dict[str, int]) -> str:
    """Return the walkthrough's parameter table as text, from either count of the rows."""
    total = sum(count.values())
    rows = [f"{name:<30} {n:>15,} {n / total:>11.2%}" for name, n in count.items()]
    return "\n".join(
        [
            "=" * 80,
            "Parameter Breakdown",
            "=" * 80,
            *rows,
            "",
            f"{'Total Parameters':<30} {total:>15,}",
            f"{'Total (Millions)':<30} {total / 1e6:>15.2f}M",
        ]
    )


def total_parameters(config: SmolLM2Config, *, tied: bool | None = None) -> int:
    """Return N, with a tied or an untied head; as the configuration has it unless told."""
    if tied is not None:
        config = replace(config, tie_embeddings=tied)
    return sum(parameters(config).values())


def ratios(config: SmolLM2Config) -> dict[str, float]:
    """Return the proportions by which shapes are compared.

    Aspect ratio: width by depth, C / L. Head ratio: width by query heads, C / H. Embedding share:
    of all parameters, those that hold the vocabulary (with the head where it is untied).
    """
    count = parameters(config)
    vocabulary = count["Token Embeddings"] + count.get("Output", 0)
    return {
        "aspect ratio": config.n_embd / config.n_layer,
        "head ratio": config.n_embd / config.n_head,
        "embedding share": vocabulary / sum(count.values()),
    }


# Memory. Weights, gradients and AdamW's moments are float32 whatever the products are computed in:
# that is what autocast means.

PRODUCT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def activations(
    config: SmolLM2Config, B: int, T: int, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Return what autograd keeps of a forward pass for the backward pass, in bytes by kind.

    It follows ``model.py`` line by line, with PyTorch's fused attention on a CPU and no dropout:
    ``measured_activations`` finds the same to the byte. Parameters and RoPE's tables are kept too
    but exist anyway. Under autocast a projection reads a copy of its input in ``dtype``, each its
    own, while norms, residual stream and loss stay in float32; the matrices are copied once.

    With a single head or token, and on a GPU, attention's output comes with its heads side by side
    already, and is kept once.

    Args:
        config: the model.
        B: sequences in the batch.
        T: tokens in a sequence.
        dtype: of the matrix products: float32, or bfloat16 or float16 under autocast.

    Raises:
        ValueError: for another type.
    """
    if dtype not in PRODUCT_TYPES:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(map(str, PRODUCT_TYPES))}")
    L, C = config.n_layer, config.n_embd
    heads, kv_heads = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    tokens, size, cast = B * T, dtype.itemsize, dtype != torch.float32
    norms = 2 * L + 1
    joined = 0 if config.n_head == 1 or T == 1 else heads  # copied to stand side by side
    # q, k and v read one vector, gate and up another, the head a third.
    inputs = (5 * L + 1) * C * size if cast else norms * C * 4
    kept = {
        "token numbers and targets": 16 * tokens + 4,  # 4: the number of targets that count
        "residual stream, before each norm": norms * C * 4 * tokens,
        "one scale a norm": norms * 4 * tokens,
        "normalised vectors": norms * C * 4 * tokens,
        "inputs of projections and head": inputs * tokens,
        "queries, keys, values": L * (heads + 2 * kv_heads) * size * tokens,
        "attention's output": L * heads * size * tokens,
        "log-sum-exp of attention's scores": L * config.n_head * 4 * tokens,
        "attention's output, heads side by side": L * joined * size * tokens,
        "SwiGLU: gate, SiLU, up, product": 4 * L * config.intermediate_size * size * tokens,
        "log-probabilities": config.vocab_size * 4 * tokens,
    }
    if cast:
        count = parameters(config)
        lookup = 0 if config.tie_embeddings else count["Token Embeddings"]  # no matrix product
        matrices = sum(count.values()) - count["RMSNorm"] - lookup
        kept[f"matrices in {str(dtype).removeprefix('torch.')}"] = matrices * size
    return kept


def training_memory(
    config: SmolLM2Config, B: int, T: int, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Return what a training step with AdamW holds, in bytes, and its peak.

    Not all is there at once. When the backward pass begins, every activation is there and, beside
    the logits, two tensors of their size in float32 for gradients; the weights' gradients are not.
    When it ends, they are, and the activations are gone, but not the logits as long as the caller
    holds them. A tied matrix then has three gradients: the head's, the lookup's and their sum. The
    peak is the larger of the two moments: the first, unless the batch is very small. What the
    allocator loses, and what one operation needs inside, is not in it.

    Raises:
        ValueError: for a type that is not one of ``PRODUCT_TYPES``.
    """
    N = total_parameters(config)
    kept = sum(activations(config, B, T, dtype).values())
    logits = B * T * config.vocab_size  # numbers
    sums = 2 * config.vocab_size * config.n_embd if config.tie_embeddings else 0  # numbers
    tables = 4 * config.block_size * config.head_dim  # RoPE's
    begin = kept + (dtype.itemsize + 4 + 4) * logits
    end = 4 * N + 4 * sums + dtype.itemsize * logits
    return {
        "weights": 4 * N,
        "AdamW's two moments": 8 * N,
        "gradients": 4 * N,
        "RoPE's tables": tables,
        "activations": kept,
        "logits": dtype.itemsize * logits,
        "two gradients of the logits": 8 * logits,
        "peak": 12 * N + tables + max(begin, end),
    }


def training_traffic(
    config: SmolLM2Config, B: int, T: int, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Return the bytes that a training step with AdamW moves through memory at least, by kind.

    What is larger than a processor's cache and needed again later goes to memory and comes back;
    what the next operation reads at once may stay in the cache and is not counted. So a step takes
    at least the time of its matrix products, their factors warm, and the time of these bytes at
    the memory's speed: PyTorch runs one operation after the other, and the two add.

    The least, not what ``model.py`` happens to do: norms' results are shared by the products that
    read them, SiLU is computed again on the way back, logits stay in ``dtype``. No clipping, which
    would read each gradient once more.

    Args:
        config: the model.
        B: sequences in the batch.
        T: tokens in a sequence.
        dtype: of the matrix products: float32, or bfloat16 or float16 under autocast.

    Raises:
        ValueError: for another type.
    """
    if dtype not in PRODUCT_TYPES:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(map(str, PRODUCT_TYPES))}")
    L, C, tokens, size = config.n_layer, config.n_embd, B * T, dtype.itemsize
    count, N = parameters(config), total_parameters(config)
    lookup = 0 if config.tie_embeddings else count["Token Embeddings"]  # no matrix product
    matrices = sum(count.values()) - count["RMSNorm"] - lookup
    heads, kv_heads = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    # Before each norm in float32, and its result; queries and attention's output; keys and values;
    # gate, up and their product.
    kept = (2 * L + 1) * C * (4 + size) + L * (2 * heads + 2 * kv_heads) * size
    kept += 3 * L * config.intermediate_size * size
    copied = dtype != torch.float32
    return {
        "weights, read forward": 4 * matrices,
        "weights' copies, written": size * matrices if copied else 0,
        "weights, read backward": size * matrices,
        "activations, written and read": 2 * kept * tokens,
        # Written and read by the loss; read again for their gradient; that is written, and read by
        # two products.
        "logits and their gradient": 6 * size * config.vocab_size * tokens,
        "gradients, written": 4 * N,
        "AdamW: four numbers read a weight": 16 * N,
        "AdamW: three numbers written": 12 * N,
    }


def kv_cache_bytes(
    config: SmolLM2Config, tokens: int = 1, dtype: torch.dtype = torch.float32
) -> int:
    """Return the bytes of a key-value cache for so many tokens of one sequence."""
    return 2 * config.n_layer * config.n_kv_head * config.head_dim * tokens * dtype.itemsize


# Bits a weight of a matrix, scales and minima included, where the weights are stored for use.
STORED_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 9, "int4": 5}


def stored_bytes(config: SmolLM2Config, form: str) -> int:
    """Return the bytes of a model's weights as they lie in memory: ``QuantizedSmolLM2.nbytes``.

    In 8 and 4 bits the norms are float32, and matrices of whole tiles of 16 rows are assumed.

    Args:
        config: the model.
        form: "float32", "bfloat16", "float16", "int8" or "int4".

    Raises:
        ValueError: for another form.
    """
    if form not in STORED_BITS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(STORED_BITS)}")
    norms = parameters(config)["RMSNorm"]
    matrices = total_parameters(config) - norms
    return matrices * STORED_BITS[form] // 8 + norms * (
        4 if "int" in form else STORED_BITS[form] // 8
    )


def measured_activations(
    model: SmolLM2, idx: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> int:
    """Return the bytes that autograd really keeps of one forward pass.

    Memory that several tensors share counts once; parameters and buffers do not count.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(idx.device.type, dtype, enabled=dtype != torch.float32),
    ):
        _, _loss = model(idx, targets)  # keeps the graph, so that no memory is given out twice
    return sum(kept.values())


class _Meter(TorchDispatchMode):
    """Follow the memory of every tensor that an operation returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self.add(result)
        return results


def measured_peak(
    step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Return the most bytes of tensors that exist at one moment of a training step.

    Works on every device and does not depend on the allocator; memory inside a single operation is
    not seen.

    Args:
        step: forward, backward and update, without arguments. Call it once before, so that the
            optimizer's state exists.
        model: its parameters and buffers count from the start.
        optimizer: its state counts too.
    """
    meter = _Meter()
    states = optimizer.state.values() if optimizer is not None else ()
    for tensor in tree_iter([*model.parameters(), *model.buffers(), *states]):
        if isinstance(tensor, Tensor):
            meter.add(tensor)
    with meter:
        step()
    return meter.peak


# How many tokens.

CHINCHILLA_TOKENS = 20  # tokens a parameter: Hoffmann et al., 2022, arXiv:2203.15556


def chinchilla_tokens(n_parameters: int) -> int:
    """Return how many tokens make the best use of compute for a model of this size."""
    return CHINCHILLA_TOKENS * n_parameters


# FLOPs, three ways.


def palm_flops(config: SmolLM2Config, T: int, n_parameters: int | None = None) -> dict[str, int]:
    """Return the training FLOPs of one sequence by PaLM's formula, 6 N T + 12 L H D T².

    Every parameter multiplies and adds once forward and twice backward, and so does every channel
    of every query and value for every token attended to. Divide by T for one token.

    Args:
        config: the model.
        T: tokens in the sequence.
        n_parameters: N; the exact number unless told.

    Source: Chowdhery et al., 2022, arXiv:2204.02311, appendix B (D is called Q there).
    """
    N = total_parameters(config) if n_parameters is None else n_parameters
    return {
        "6 N T": 6 * N * T,
        "12 L H D T²": 12 * config.n_layer * config.n_head * config.head_dim * T**2,
    }


class MatrixProduct(NamedTuple):
    """A product (m, k) · (k, n) that is computed several times.

    Attributes:
        part: attention, SwiGLU or head.
        name: the projection, or what attention computes.
        direction: "forward", or "backward" with what the gradient is for.
        m, k, n: the shapes.
        times: how often, over layers, sequences and heads.
    """

    part: str
    name: str
    direction: str
    m: int
    k: int
    n: int
    times: int

    @property
    def flops(self) -> int:
        """Operations of all ``times`` products."""
        return 2 * self.m * self.k * self.n * self.times

    def intensity(self, bytes_per_number: int) -> float:
        """Return FLOPs a byte, when each matrix is moved once: the x-axis of a roofline."""
        numbers = self.m * self.k + self.k * self.n + self.m * self.n
        return 2 * self.m * self.k * self.n / (numbers * bytes_per_number)


def matrix_products(
    config: SmolLM2Config, B: int, T: int, S: int | None = None, *, training: bool = True
) -> list[MatrixProduct]:
    """Return every matrix product of a step, counted by hand.

    A product forward has two backward, one for the gradient of each factor, with the same three
    sizes in another order. There is no exception at the bottom: the first block's input comes from
    the embedding, which is trained too. The lookup itself is no product, in either direction.

    Attention is counted as the whole square of T · S, as a kernel computes it that masks
    afterwards.

    Args:
        config: the model.
        B: sequences.
        T: tokens that are computed of each.
        S: tokens that each attends to, when more are in a cache; T unless told.
        training: whether to count backward too.
    """
    S = T if S is None else S
    L, C, D = config.n_layer, config.n_embd, config.head_dim
    heads, kv_heads, hidden = config.n_head * D, config.n_kv_head * D, config.intermediate_size
    # part, name, the two factors, m, k, n, times
    forward = [
        ("attention", "q_proj", "input", "weight", B * T, C, heads, L),
        ("attention", "k_proj", "input", "weight", B * T, C, kv_heads, L),
        ("attention", "v_proj", "input", "weight", B * T, C, kv_heads, L),
        ("attention", "scores", "queries", "keys", T, D, S, L * B * config.n_head),
        ("attention", "weighted values", "weights", "values", T, S, D, L * B * config.n_head),
        ("attention", "o_proj", "input", "weight", B * T, heads, C, L),
        ("SwiGLU", "gate_proj", "input", "weight", B * T, C, hidden, L),
        ("SwiGLU", "up_proj", "input", "weight", B * T, C, hidden, L),
        ("SwiGLU", "down_proj", "input", "weight", B * T, hidden, C, L),
        ("head", "lm_head", "input", "weight", B * T, C, config.vocab_size, 1),
    ]
    products = [
        MatrixProduct(part, name, "forward", m, k, n, times)
        for part, name, _, _, m, k, n, times in forward
    ]
    for part, name, left, right, m, k, n, times in reversed(forward) if training else ():
        products += [
            MatrixProduct(part, name, f"backward, {left}", m, n, k, times),
            MatrixProduct(part, name, f"backward, {right}", k, m, n, times),
        ]
    return products


def counted_flops(model: SmolLM2, idx: Tensor, targets: Tensor) -> tuple[int, int]:
    """Return the FLOPs forward and backward that PyTorch counts while the real model runs.

    Attention runs as plain products, in PyTorch's math kernel: the counter does not know the CPU's
    fused kernel, and counts it as nothing; of the GPU's it counts the scores that are computed
    again in the backward pass.
    """
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            _, loss = model(idx, targets)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return forward.get_total_flops(), backward.get_total_flops()


def palm_against_hand(
    config: SmolLM2Config, T: int, n_parameters: int | None = None
) -> dict[str, int]:
    """Return how PaLM's formula for one sequence becomes the hand count: the rows add up.

    Equal in both: the tied matrix counts once, since only the head multiplies by it; the backward
    pass counts twice the forward; attention is the whole square, though half of it is masked.
    """
    count = parameters(config)
    N = sum(count.values())
    rows = {"PaLM's formula": sum(palm_flops(config, T, n_parameters).values())}
    if n_parameters is not None and n_parameters != N:
        rows["N was rounded"] = 6 * (N - n_parameters) * T
    rows["norm weights are no matrices"] = -6 * count["RMSNorm"] * T
    if not config.tie_embeddings:
        rows["the embedding is looked up"] = -6 * count["Token Embeddings"] * T
    rows["hand count"] = sum(product.flops for product in matrix_products(config, 1, T))
    return rows


def masked_flops(config: SmolLM2Config, T: int) -> int:
    """Return the training FLOPs of one sequence that are spent on scores which are masked.

    T (T - 1) / 2 of the T² pairs look ahead; a kernel that skips them saves this much.
    """
    return 6 * config.n_layer * config.n_head * config.head_dim * T * (T - 1)


def attention_crossover(config: SmolLM2Config) -> float:
    """Return the T at which scores and weighted values cost as much as all other products."""
    products = matrix_products(config, 1, 1, training=False)
    square = sum(p.flops for p in products if p.name in ("scores", "weighted values"))
    return (sum(p.flops for p in products) - square) / square


class TrainingCost(NamedTuple):
    """What a training run takes.

    Attributes:
        flops: by PaLM's formula.
        card_days: days on one card.
        kwh: the board's full power over that time; host, cooling and idling are not in it.
    """

    flops: float
    card_days: float
    kwh: float


def training_cost(
    config: SmolLM2Config,
    tokens: int,
    T: int,
    card: str,
    utilisation: float,
    dtype: torch.dtype = torch.bfloat16,
) -> TrainingCost:
    """Return what it takes to train on so many tokens.

    Args:
        config: the model.
        tokens: seen in training, repetitions included.
        T: tokens in a sequence.
        card: as for ``peak_flops``.
        utilisation: share of the card's peak that is reached.
        dtype: of the products.

    Raises:
        ValueError: for an unknown card or type, a utilisation outside (0, 1], no tokens.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation={utilisation}: must be above 0 and at most 1")
    if tokens < 1 or T < 1:
        raise ValueError(f"tokens={tokens}, T={T}: must be at least 1")
    flops = sum(palm_flops(config, T).values()) / T * tokens
    seconds = flops / (peak_flops(card, dtype) * utilisation)
    return TrainingCost(flops, seconds / 86_400, seconds * find_card(card).watts / 3.6e6)


def training_runs(config: SmolLM2Config) -> dict[str, tuple[int, int]]:
    """Return three training runs to compare: tokens seen, and T; first the original project's.

    Source: for SmolLM2, Ben Allal et al., 2025, arXiv:2502.02737.
    """
    return {
        "the original 5,000 steps": (5_000 * 4 * 256, 256),
        "Chinchilla's optimum": (chinchilla_tokens(total_parameters(config)), 2048),
        "SmolLM2's own training": (2_000_000_000_000, 2048),
    }
