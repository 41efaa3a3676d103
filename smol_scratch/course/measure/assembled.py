"""Measurements of notebook 06: models with one planted fault, and the ladder that finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.generation import chat_prompt, generate, stop_tokens
from smol_scratch.hub import to_transformers
from smol_scratch.model import RMSNorm, RotaryPositionalEmbedding, SmolLM2
from smol_scratch.tokenizer import SmolLM2Tokenizer

# Relative differences of two right programs stay below: float32 keeps seven digits, and thirty
# blocks add their rounding. The gentlest of the faults is fifteen times above.
ROUNDING = 1e-5


def ask(model: SmolLM2, tokenizer: SmolLM2Tokenizer, question: str, tokens: int = 12) -> str:
    """Ask in the conversation's own form, and return the beginning of the answer on one line."""
    prompt = chat_prompt(tokenizer, question)
    (ids,) = generate(model, prompt, tokens, temperature=0, stop=stop_tokens(tokenizer))
    answer = tokenizer.decode(ids[len(prompt) :].tolist()).removesuffix("<|im_end|>")
    return " ".join(answer.replace("\N{REPLACEMENT CHARACTER}", "").split())  # half a character


def _without_norm(model: Any) -> Callable[[], None]:
    kept = model.model["norm"]
    model.model["norm"] = nn.Identity()

    def back() -> None:
        model.model["norm"] = kept

    return back


def _loose_head(model: Any) -> Callable[[], None]:
    kept, table = model.config, model.model.embed_tokens.weight
    head = torch.randn(table.shape, generator=torch.Generator().manual_seed(4)) * kept.init_std
    model.config = replace(kept, tie_embeddings=False)
    model.lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
    model.lm_head.weight = nn.Parameter(head, requires_grad=False)

    def back() -> None:
        model.config = kept
        del model.lm_head

    return back


def _other_theta(model: Any) -> Callable[[], None]:
    kept = model.model.layers[0].self_attn.rope
    config = model.config
    rope = RotaryPositionalEmbedding(config.head_dim, config.block_size, 10_000.0)
    for block in model.model.layers:
        block.self_attn.rope = rope

    def back() -> None:
        for block in model.model.layers:
            block.self_attn.rope = kept

    return back


def _other_eps(model: Any) -> Callable[[], None]:
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    kept = norms[0].eps
    for norm in norms:
        norm.eps = kept / 10

    def back() -> None:
        for norm in norms:
            norm.eps = kept

    return back


def _norms_swapped(number: int) -> Callable[[Any], Callable[[], None]]:
    def plant(model: Any) -> Callable[[], None]:
        block = model.model.layers[number]

        def swap() -> None:
            one, two = block.input_layernorm, block.post_attention_layernorm
            block.input_layernorm, block.post_attention_layernorm = two, one

        swap()
        return swap

    return plant


def _transposed(number: int) -> Callable[[Any], Callable[[], None]]:
    def plant(model: Any) -> Callable[[], None]:
        layer = model.model.layers[number].self_attn.q_proj

        def turn() -> None:
            layer.weight.data = layer.weight.data.T.contiguous()

        turn()
        return turn

    return plant


# With each, the model runs without an error.
FAULTS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "RMSNorm's eps 1e-6": _other_eps,
    "RoPE's theta 10,000": _other_theta,
    "block 5: q transposed": _transposed(5),
    "block 17: norms swapped": _norms_swapped(17),
    "no final norm": _without_norm,
    "head of its own": _loose_head,
}


@contextmanager
def planted(model: SmolLM2, fault: str) -> Iterator[SmolLM2]:
    """Plant a fault in a model, for as long as the ``with`` lasts.

    Args:
        model: with real weights.
        fault: a name of ``FAULTS``.
    """
    back = FAULTS[fault](model)
    try:
        yield model
    finally:
        back()


@torch.no_grad()
def states(model: SmolLM2, ids: Tensor) -> list[Tensor]:
    """Return the stream before the first block and after each: ids (B, T), (B, T, C) each."""
    inner: Any = model.model
    found: list[Tensor] = [inner.embed_tokens(ids)]
    for block in inner.layers:
        found.append(block(found[-1]))
    return found


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far two sets of vectors are apart, relative to their length, median token."""
    relative = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return relative.median().item()


@dataclass
class Rung:
    """One step of the ladder: what was compared, and how far apart the two are."""

    name: str
    apart: float

    @property
    def holds(self) -> bool:
        """Say whether rounding alone explains the difference."""
        return self.apart < ROUNDING


class Ladder:
    """Compare a model with ``transformers``' own, part by part, each on the oracle's input."""

    def __init__(self, model: SmolLM2, ids: Tensor) -> None:
        """Run the oracle once, with a copy of the model's weights; ids (1, T + 1)."""
        self.ids = ids
        oracle: Any = to_transformers(model).requires_grad_(False)
        self.layers = oracle.model.layers
        x = ids[:, :-1]
        outcome = oracle(x, output_hidden_states=True, labels=None)
        # The last of transformers' states is normed already: the last block's own comes from it.
        self.states: list[Tensor] = list(outcome.hidden_states[:-1])
        self.angles = oracle.model.rotary_emb(self.states[0], torch.arange(x.shape[1])[None])
        self.states.append(self._layer(len(self.layers) - 1, self.states[-1]))
        self.normed = outcome.hidden_states[-1]
        self.logits = outcome.logits
        self.loss = oracle(ids, labels=ids).loss  # which shifts them itself

    def _layer(self, number: int, x: Tensor) -> Tensor:
        out = self.layers[number](x, position_embeddings=self.angles)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def climb(self, model: SmolLM2) -> list[Rung]:
        """Return all rungs: embedding, each block by itself, final norm, head, loss."""
        inner: Any = model.model
        x = self.ids[:, :-1]
        rungs = [Rung("embedding", apart(inner.embed_tokens(x), self.states[0]))]
        for number, block in enumerate(inner.layers):
            found = block(self.states[number])
            rungs.append(Rung(f"block {number}", apart(found, self.states[number + 1])))
        rungs.append(Rung("final norm", apart(inner.norm(self.states[-1]), self.normed)))
        head = inner.embed_tokens if model.config.tie_embeddings else model.lm_head
        rungs.append(Rung("head", apart(F.linear(self.normed, head.weight), self.logits)))
        loss = model(x, self.ids[:, 1:])[1]
        assert loss is not None
        rungs.append(Rung("loss", ((loss - self.loss).abs() / self.loss).item()))
        return rungs

    @torch.no_grad()
    def within(self, model: SmolLM2, number: int) -> list[Rung]:
        """Return the rungs inside one block: its two norms, attention and MLP, each by itself."""
        inner: Any = model.model
        ours, theirs, x = inner.layers[number], self.layers[number], self.states[number]
        copy = theirs.input_layernorm(x)
        gathered = theirs.self_attn(copy, position_embeddings=self.angles, attention_mask=None)[0]
        h = x + gathered
        second = theirs.post_attention_layernorm(h)
        return [
            Rung("input_layernorm", apart(ours.input_layernorm(x), copy)),
            Rung("self_attn", apart(ours.self_attn(copy), gathered)),
            Rung("post_attention_layernorm", apart(ours.post_attention_layernorm(h), second)),
            Rung("mlp", apart(ours.mlp(second), theirs.mlp(second))),
        ]


@torch.no_grad()
def losses(model: SmolLM2, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each passage by itself: ids and targets (B, T), result (B,)."""
    logits = model(ids)[0].transpose(1, 2)  # (B, V, T)
    return F.cross_entropy(logits, targets, reduction="none").mean(dim=1)


def mean(values: Tensor) -> str:
    """Write a mean over passages and its standard error: values (B,)."""
    error = values.std().item() / len(values) ** 0.5
    return f"{round(values.mean().item(), 2) + 0.0:6.2f} ± {error:.2f}"  # no minus before 0.00


@torch.no_grad()
def nearest(table: Tensor, tokenizer: SmolLM2Tokenizer, word: str, count: int = 5) -> list[str]:
    """Return the tokens whose rows point most nearly where a word's row does.

    Args:
        table: the embedding, (V, C).
        tokenizer: to which its rows belong.
        word: a single token.
        count: how many, the word itself left out.
    """
    (token,) = tokenizer.encode(word)
    likeness = F.normalize(table, dim=1) @ F.normalize(table[token], dim=0)  # (V,)
    likeness[token] = -1
    return [tokenizer.decode([near]) for near in likeness.topk(count).indices.tolist()]
