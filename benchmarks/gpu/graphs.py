"""One token through the model as one CUDA graph, by ``torch.compile``'s own "reduce-overhead".

A graph replays what was recorded, with the same memory: so keys and values lie in buffers of the
module, whose addresses never change, and the position is a tensor. A card then does a whole token
without being asked kernel by kernel. Without a card the same code is compiled plainly.

Letters as in ``model.py``; L tokens have room.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.cache import KVCache
from smol_scratch.generation import next_logits
from smol_scratch.model import SmolLM2, rotate


class OneToken(nn.Module):
    """Score what comes after one token of one sequence, (1, 1) -> (1, V)."""

    def __init__(self, model: SmolLM2, L: int) -> None:
        super().__init__()
        self.model = model
        config, weight = model.config, model.model.embed_tokens.weight
        shape = (1, config.n_kv_head, L, config.head_dim)
        for i in range(config.n_layer):
            for letter in "kv":
                buffer = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                self.register_buffer(f"{letter}{i}", buffer)
        self.register_buffer("places", torch.arange(L, device=weight.device))

    def forward(self, idx: Tensor, position: Tensor) -> Tensor:
        """Do what ``next_logits`` does, for the token at ``position``, (1,)."""
        inner, config = self.model.model, self.model.config
        G, D = config.n_kv_head, config.head_dim
        x = inner.embed_tokens(idx)[0]  # (1, C)
        rope = inner.layers[0].self_attn.rope
        cos, sin = rope.cos[position], rope.sin[position]  # (1, D/2)
        later = self.places > position  # (L,)
        for i, block in enumerate(inner.layers):
            attention, normed = block.self_attn, block.input_layernorm(x)
            q = rotate(attention.q_proj(normed).view(1, G, -1, D), cos, sin)  # (1, G, H/G, D)
            k = rotate(attention.k_proj(normed).view(1, G, 1, D), cos, sin)
            v = attention.v_proj(normed).view(1, G, 1, D)
            keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")  # (1, G, L, D)
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            scores = (q @ keys.mT).float() * D**-0.5  # (1, G, H/G, L)
            shares = F.softmax(scores.masked_fill(later, float("-inf")), dim=-1).type_as(x)
            x = x + attention.o_proj((shares @ values).view(1, -1))  # (1, C)
            x = x + block.mlp(block.post_attention_layernorm(x))
        head = inner.embed_tokens if config.tie_embeddings else self.model.lm_head
        return F.linear(inner.norm(x), head.weight)  # (1, V)


class GraphDecoder:
    """Score the next token as ``next_logits`` does: ``generate(…, decoder=…)``, one sequence.

    A prompt goes through the plain model; then its keys and values are copied into the buffers,
    and the cache is made to look at those. One cache at a time: a new one takes the buffers over.
    """

    def __init__(self, model: SmolLM2, L: int) -> None:
        """Take a model in evaluation mode, and make room for L tokens."""
        self.model, self.room, self.owner = model, L, None
        self.token = OneToken(model, L)
        self.token.compile(mode="reduce-overhead", fullgraph=True, dynamic=False)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.token.places.device)

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Score what comes after the last token of ``idx``, (B, T) -> (B, V); fill the cache."""
        if idx.shape != (1, 1):
            return next_logits(self.model, idx, cache)
        now = cache.length
        if now >= cache.layers[0].k.shape[2] or now >= self.room:
            raise ValueError(f"{now + 1} tokens do not fit a decoder of {self.room}")
        # Graphs want ordinary tensors; those that inference mode made are copied into such.
        with torch.inference_mode(False), torch.no_grad():
            if self.owner is not cache:
                self._take_over(cache)
            self.position.fill_(now)
            scores = self.token(idx.clone(), self.position).clone()  # the graph's own is reused
        for layer in cache.layers:
            layer.length = now + 1
        return scores

    def _take_over(self, cache: KVCache) -> None:
        for i, layer in enumerate(cache.layers):
            room = min(layer.k.shape[2], self.room)
            for letter in "kv":
                buffer, old = getattr(self.token, f"{letter}{i}"), getattr(layer, letter)
                if old.data_ptr() == buffer.data_ptr():
                    raise ValueError("another sequence has taken this decoder: make one for each")
                buffer[:, :, : layer.length] = old[:, :, : layer.length]
                setattr(layer, letter, buffer[:, :, :room])
        self.owner = cache
