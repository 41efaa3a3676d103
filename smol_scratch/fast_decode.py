"""Decoding at the speed of memory: one token through the model, compiled.

To write one token every weight is read once and used once, so memory sets the pace. PyTorch's
product of a matrix with one vector may read it at about half the machine's speed. Written as a
multiplication and a sum, and compiled by ``torch.compile``, the same product reads at nearly all
of it, and a whole block becomes one loop nest.

All blocks have the same shapes, so one compiled function of a few blocks, with the weights as
arguments, serves all of them: it compiles once, not ten times. The position is a tensor and the
cache's length a symbol, so that nothing is compiled again as the text grows.

Letters: C width of the residual stream, H query heads, G key-value heads, D head dimension,
L tokens that the cache has room for, V vocabulary. There is no batch and no time: one token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.cache import KVCache, LayerCache
from smol_scratch.generation import _check_step, next_logits
from smol_scratch.model import Block, GroupedQueryAttention, SmolLM2, fast_attention, rotate
from smol_scratch.quantize import (
    QuantizedMatrix,
    QuantizedSmolLM2,
    Stored,
    multiply_stored,
    settled,
    transposed,
)
from smol_scratch.wrappers import unwrapped

Matrix = Tensor | Stored


class _Weights(NamedTuple):
    """The matrices and norm weights of one block."""

    norm_1: Tensor
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    norm_2: Tensor
    gate: Matrix
    up: Matrix
    down: Matrix


def _weights(block: Block) -> _Weights:
    attention, mlp = block.self_attn, block.mlp
    return _Weights(
        block.input_layernorm.weight,
        _matrix(attention.q_proj),
        _matrix(attention.k_proj),
        _matrix(attention.v_proj),
        _matrix(attention.o_proj),
        block.post_attention_layernorm.weight,
        _matrix(mlp.gate_proj),
        _matrix(mlp.up_proj),
        _matrix(mlp.down_proj),
    )


def _matrix(module: nn.Module) -> Matrix:
    weight = module.weight
    return weight.stored if isinstance(weight, QuantizedMatrix) else weight  # type: ignore[return-value]


def _multiply(weight: Matrix, x: Tensor) -> Tensor:
    """Multiply a matrix, (rows, columns), with a vector, (columns,), summed in float32."""
    if isinstance(weight, Stored):
        return multiply_stored(weight, x).type_as(x)  # (rows,)
    return (weight.float() * x.float()).sum(-1).type_as(x)  # (rows,)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return settled(weight * F.rms_norm(x.float(), x.shape, eps=eps).type_as(x))  # (C,)


def _block(
    x: Tensor,
    weights: _Weights,
    k_cache: Tensor,
    v_cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    future: Tensor,
    eps: float,
) -> Tensor:
    """Do what ``Block`` does, for one token, and write its key and value into the cache.

    Args:
        x: the token's vector, (C,).
        weights: those of this block.
        k_cache: keys, (1, G, L, D).
        v_cache: values, (1, G, L, D).
        cos: of this position's angles, (D/2,).
        sin: the same.
        position: the token's, (1,).
        future: minus infinity after ``position``, else zero, (L,).
        eps: that of the norms.

    Returns:
        (C,).
    """
    G, D = k_cache.shape[1], k_cache.shape[3]
    normed = _norm(x, weights.norm_1, eps)
    q = rotate(_multiply(weights.q, normed).view(G, -1, 1, D), cos, sin)  # (G, H/G, 1, D)
    k = rotate(_multiply(weights.k, normed).view(1, G, 1, D), cos, sin)
    v = _multiply(weights.v, normed).view(1, G, 1, D)
    k_cache.index_copy_(2, position, k)
    v_cache.index_copy_(2, position, v)
    keys, values = k_cache[0, :, None], v_cache[0, :, None]  # (G, 1, L, D)
    scores = (q.float() * keys.float()).sum(-1) * D**-0.5 + future  # (G, H/G, L)
    shares = F.softmax(scores, dim=-1)[..., None]  # (G, H/G, L, 1)
    gathered = (shares * values.float()).sum(-2).type_as(x).flatten()  # (H · D,)
    x = x + _multiply(weights.o, gathered)
    normed = _norm(x, weights.norm_2, eps)
    hidden = F.silu(_multiply(weights.gate, normed)) * _multiply(weights.up, normed)
    return x + _multiply(weights.down, hidden)


def _blocks(
    x: Tensor, weights: list[_Weights], caches: list[tuple[Tensor, Tensor]], *place: Any
) -> Tensor:
    for block, (k_cache, v_cache) in zip(weights, caches, strict=True):
        x = _block(x, block, k_cache, v_cache, *place)
    return x


def _head(x: Tensor, norm: Tensor, head: Matrix, eps: float) -> Tensor:
    return _multiply(head, _norm(x, norm, eps))  # (V,)


# Blocks in one call: each call costs some 50 µs in Python. More would take longer to compile.
AT_ONCE = 3


class CompiledDecoder:
    """Score the next token as ``next_logits`` does, faster: ``generate(…, decoder=…)``.

    The second token takes the seconds of compilation (a C++ compiler must be there, as always for
    ``torch.compile`` on a CPU); make one and keep it. A prompt, and several rows at once, go
    through the plain model: there the weights are used more than once. In few bits a prompt's
    matrices are made whole by a compiled function, since plain PyTorch takes longer for that than
    for the products; but not the first prompt's, so that the first word need not wait.

    The weights are those of the model, not copies. Sums run in another order than in the plain
    model, so scores differ by rounding.
    """

    def __init__(self, model: SmolLM2) -> None:
        self.model = model = unwrapped(model)
        weights = [_weights(block) for block in model.model.layers]
        self._groups = [weights[i : i + AT_ONCE] for i in range(0, len(weights), AT_ONCE)]
        self.used = False

    # ``torch.compile`` takes seconds to import, so it is asked only when it is needed.

    @cached_property
    def _blocks(self) -> Callable[..., Tensor]:
        return torch.compile(_blocks, fullgraph=True, dynamic=False)

    @cached_property
    def _head(self) -> Callable[..., Tensor]:
        return torch.compile(_head, fullgraph=True, dynamic=False)

    @cached_property
    def _transposed(self) -> Callable[[Stored], Tensor]:
        return torch.compile(transposed, fullgraph=True, dynamic=True)

    @torch.inference_mode()
    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Score what comes after the last token of ``idx``, (B, T) -> (B, V); fill the cache."""
        model, eps, now = self.model.model, self.model.config.norm_eps, cache.length
        few_bits = isinstance(self.model, QuantizedSmolLM2)
        if self.used and few_bits and now == 0 and len(idx) == 1 and idx.numel() > 1:
            return self._read(idx, cache)
        if idx.shape != (1, 1):
            return next_logits(self.model, idx, cache)
        self.used = True
        L = cache.layers[0].k.shape[2]
        if now >= L:
            raise ValueError(f"{now + 1} tokens do not fit a cache of max_length={L}")
        position = torch.tensor([now], device=idx.device)
        future = torch.full((L,), float("-inf"), device=idx.device)
        future[: now + 1] = 0.0
        rope = model.layers[0].self_attn.rope
        cos, sin = rope.cos[now], rope.sin[now]
        x = model.embed_tokens(idx)[0, 0]  # (C,)
        run = self._blocks
        torch._dynamo.mark_dynamic(future, 0)
        layers = iter(cache.layers)
        for weights in self._groups:
            caches = [(layer.k, layer.v) for layer in islice(layers, len(weights))]
            for tensor in chain(*caches):
                torch._dynamo.mark_dynamic(tensor, 2)
            x = run(x, weights, caches, cos, sin, position, future, eps)
        for layer in cache.layers:
            layer.length = now + 1
        return self._score(x)

    def _score(self, x: Tensor) -> Tensor:
        """Score the next token by the last one's vector, (C,) -> (1, V)."""
        model, config = self.model.model, self.model.config
        head = model.embed_tokens if config.tie_embeddings else self.model.lm_head
        return self._head(x, model.norm.weight, _matrix(head), config.norm_eps)[None]

    def _read(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Do the same for a prompt, (1, T) -> (1, V), whose matrices are in few bits."""
        _check_step(self.model, idx, cache)
        model = self.model.model
        x = model.embed_tokens(idx)[0]  # (T, C)
        for block, layer in zip(model.layers, cache.layers, strict=True):
            x = x + self._attend(block.self_attn, block.input_layernorm(x), layer)
            normed, mlp = block.post_attention_layernorm(x), block.mlp
            hidden = F.silu(self._product(mlp.gate_proj, normed))
            x = x + self._product(mlp.down_proj, hidden * self._product(mlp.up_proj, normed))
        return self._score(x[-1])

    def _attend(self, attention: GroupedQueryAttention, x: Tensor, cache: LayerCache) -> Tensor:
        """Do what ``GroupedQueryAttention`` does for one text, (T, C) -> (T, C)."""
        D = cache.k.shape[3]
        q, k, v = (
            self._product(projection, x).unflatten(-1, (-1, D)).transpose(0, 1)[None]
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # (1, heads, T, D)
        cos, sin = attention.rope.cos[: len(x)], attention.rope.sin[: len(x)]
        k, v = cache.append(rotate(k, cos, sin), v)
        gathered = fast_attention(rotate(q, cos, sin), k, v)[0]  # (H, T, D)
        return self._product(attention.o_proj, gathered.transpose(0, 1).flatten(1))

    def _product(self, module: nn.Module, x: Tensor) -> Tensor:
        """Multiply each vector, (T, columns) -> (T, rows), summed in float32."""
        stored = _matrix(module)
        return (x.float() @ self._transposed(stored)).type_as(x)[:, : stored.rows]
