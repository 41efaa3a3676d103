"""SmolLM2, whole: six modules in the order in which notebooks 01 to 06 build them.

Letters, here and everywhere: B batch, T tokens in this call, S tokens attended to (those stored in
a cache and those of this call), C width of the residual stream, H query heads, G key-value heads,
D head dimension, V vocabulary.

Parameter names are those of the released checkpoint, so its weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.arguments import checked, explained
from smol_scratch.cache import KVCache, LayerCache
from smol_scratch.config import SmolLM2Config


@checked
class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of one, then each channel by a learned weight.

    Shapes: (..., C) -> (..., C). The mean is taken over the channels of one token, never over
    tokens, and in float32 whatever the input's type: the squares of float16 overflow beyond 255.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        mean_square = x32.pow(2).mean(-1, keepdim=True)  # (..., 1)
        normed = x32 * torch.rsqrt(mean_square + self.eps)
        return self.weight * normed.type_as(x)


@explained
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (channel i, channel i + D/2) by its angle.

    Args:
        x: queries or keys, (B, heads, T, D).
        cos: cosine of the angles, (T, D/2).
        sin: sine of the angles, (T, D/2).

    Returns:
        The turned vectors, (B, heads, T, D), in the type of ``x``.

    Source: Su et al., 2021, arXiv:2104.09864; the pairing by halves is that of the released
    weights (the paper pairs neighbours).
    """
    first, second = x.chunk(2, dim=-1)  # (B, heads, T, D/2) each
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.type_as(x)  # (B, heads, T, D)


@checked
class RotaryPositionalEmbedding(nn.Module):
    """Give queries and keys their position, by turning pairs of channels.

    Pair i at position t turns by the angle t * theta ** (-2 i / D). The dot product of a query and
    a key then depends on the distance between them alone. The tables of cosines and sines hold no
    parameters, are shared by all layers, and stay in float32 whatever the model's type.

    Shapes: (B, heads, T, D) -> (B, heads, T, D). A position of ``block_size`` or later is a
    ValueError.

    Source: Su et al., 2021, arXiv:2104.09864.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, block_size: int, theta: float = 100_000.0) -> None:
        super().__init__()
        frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (D/2,)
        angles = torch.outer(torch.arange(block_size).float(), frequency)  # (block_size, D/2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, D/2)
        self.register_buffer("sin", angles.sin(), persistent=False)  # (block_size, D/2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = self.cos, self.sin
        super()._apply(fn, recurse)  # what .to(), .bfloat16() and their kin do
        if self.cos.dtype != exact[0].dtype:
            self.cos, self.sin = (table.to(self.cos.device) for table in exact)
        return self

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Turn ``x``, whose first token stands at position ``start``."""
        end = start + x.shape[-2]
        if end > len(self.cos):
            raise ValueError(f"position {end - 1}: the tables have block_size={len(self.cos)}")
        return rotate(x, self.cos[start:end], self.sin[start:end])


@explained
def causal_mask(n_query: int, n_key: int, device: torch.device | None = None) -> Tensor:
    """Say which key each query may see: those at its own position and before.

    The queries are the last ``n_query`` of ``n_key`` positions.

    Returns:
        Booleans, (n_query, n_key); True where attention is allowed.
    """
    allowed = torch.ones(n_query, n_key, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=n_key - n_query)


@explained
def explicit_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v, causally, as the formula is written.

    Args:
        q: queries, (B, H, T, D): those of the last T of S positions.
        k: keys, (B, G, S, D); query head h uses key-value head h // (H/G).
        v: values, (B, G, S, D).
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, H, T, D).

    Source: Vaswani et al., 2017, arXiv:1706.03762; grouped: Ainslie et al., 2023, arXiv:2305.13245.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, D)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, S)
    scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], q.device), float("-inf"))
    weights = F.softmax(scores.float(), dim=-1).type_as(q)  # (B, H, T, S)
    return F.dropout(weights, dropout_p) @ v  # (B, H, T, D)


@explained
def fast_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute the same as ``explicit_attention`` without ever storing the (T, S) weights.

    Source: ``torch.nn.functional.scaled_dot_product_attention``.
    """
    n_query, n_key = q.shape[2], k.shape[2]
    # PyTorch's own causal flag counts from the first key: right only with as many queries as keys.
    whole = n_query == n_key
    mask = None if whole or n_query == 1 else causal_mask(n_query, n_key, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=whole, enable_gqa=True
    )


@checked
class GroupedQueryAttention(nn.Module):
    """Let every token gather from the tokens before it, with few keys and values for many queries.

    Shapes: (B, T, C) -> (B, T, C).

    ``attend`` is the function that does the gathering; ``explicit_attention`` can take its place.

    Source: Ainslie et al., 2023, arXiv:2305.13245.
    """

    def __init__(self, config: SmolLM2Config, rope: RotaryPositionalEmbedding) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_width = config.n_head * config.head_dim
        kv_width = config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, q_width, bias=False)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.n_embd, bias=False)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.rope = rope
        self.attend = fast_attention

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        start = cache.length if cache is not None else 0
        q, k = self.rope(q, start), self.rope(k, start)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, G, S, D)
        y = self.attend(q, k, v, self.attn_dropout.p if self.training else 0.0)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


@checked
class SwiGLU(nn.Module):
    """Widen each token's vector, let a gate decide what passes, and narrow it again.

    Shapes: (..., C) -> (..., C).

    Source: Shazeer, 2020, arXiv:2002.05202.
    """

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__()
        C, hidden = config.n_embd, config.intermediate_size
        self.gate_proj = nn.Linear(C, hidden, bias=False)
        self.up_proj = nn.Linear(C, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@checked
class Block(nn.Module):
    """Add to the residual stream twice: what attention gathered, then what the MLP made of it.

    Shapes: (B, T, C) -> (B, T, C). Each half reads a normalised copy (pre-norm).

    Source: Xiong et al., 2020, arXiv:2002.04745, for where the norm stands.
    """

    def __init__(self, config: SmolLM2Config, rope: RotaryPositionalEmbedding) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = GroupedQueryAttention(config, rope)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


@checked
class SmolLM2(nn.Module):
    """The whole language model: for every token, a score for each token that could come next.

    Source: Ben Allal et al., 2025, arXiv:2502.02737.
    """

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__()
        self.config = config
        rope = RotaryPositionalEmbedding(config.head_dim, config.block_size, config.rope_theta)
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.n_embd),
                "layers": nn.ModuleList(Block(config, rope) for _ in range(config.n_layer)),
                "norm": RMSNorm(config.n_embd, config.norm_eps),
            }
        )
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Score the next token after each token of ``idx``.

        Args:
            idx: token numbers, (B, T), integers below V.
            targets: the tokens that really came next, (B, T); -100 where none counts.
            cache: what earlier calls have computed; ``idx`` then holds only the new tokens.

        Returns:
            The logits, (B, T, V), and the mean cross-entropy in nats a token over the targets that
            count (nan where none does), or None without targets.

        Raises:
            ValueError: for a shape, type, length or token number that the model cannot take.
            TypeError: for what is no tensor, or no cache.
            IndexError: for a target that is neither a token number nor -100.
        """
        self._check(idx, targets, cache)
        x = self.model.embed_tokens(idx)  # (B, T, C)
        for i, block in enumerate(self.model.layers):
            x = block(x, cache.layers[i] if cache is not None else None)
        x = self.model.norm(x)
        head = self.model.embed_tokens if self.config.tie_embeddings else self.lm_head
        logits = F.linear(x, head.weight)  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _check(self, idx: Tensor, targets: Tensor | None, cache: KVCache | None) -> None:
        V, longest = self.config.vocab_size, self.config.block_size
        start = 0 if cache is None else cache.length
        if cache is not None and len(cache.layers) != self.config.n_layer:
            n = len(cache.layers)
            raise ValueError(f"a cache of {n} layers for a model of {self.config.n_layer}: make it "
                             "with the model's own configuration")  # fmt: skip
        if idx.ndim != 2 or idx.numel() == 0 or idx.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"idx of shape {tuple(idx.shape)} and type {idx.dtype}: must be (B, T) integers"
            )
        if start + idx.shape[1] > longest:
            raise ValueError(
                f"{start + idx.shape[1]} tokens: the model takes at most block_size={longest}; "
                "pass fewer, or make it with a larger block_size"
            )
        if targets is not None and targets.shape != idx.shape:
            raise ValueError(
                f"targets of shape {tuple(targets.shape)}: must be that of idx, {tuple(idx.shape)}"
            )
        if targets is not None and targets.dtype != torch.int64:
            raise ValueError(f"targets of type {targets.dtype}: must be torch.int64")
        # On a GPU this look at the values would stall the queue, so there it is left to CUDA.
        if idx.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(idx.min()), int(idx.max())
            if low < 0 or high >= V:
                raise ValueError(
                    f"token {low if low < 0 else high}: must lie between 0 and "
                    f"{V - 1}; was the text encoded with another tokenizer?"
                )
