"""Measurements of notebook 04: real weights behind other gates, and what the gates of each do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.corpus import load_text
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import SmolLM2Tokenizer

Combine = Callable[[Tensor, Tensor], Tensor]  # of the gate's reading and the up reading


@contextmanager
def other_gates(model: SmolLM2, combine: Combine) -> Iterator[None]:
    """Let a model combine its two readings in another way, for as long as the ``with`` lasts.

    Args:
        model: any; its weights stay as they are.
        combine: takes what ``gate_proj`` and ``up_proj`` read, (..., hidden) each, and returns what
            ``down_proj`` is given.
    """

    def forward(mlp: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = mlp.down_proj(combine(mlp.gate_proj(x), mlp.up_proj(x)))
        return out

    mlps = [block.mlp for block in model.model.layers]
    for mlp in mlps:
        mlp.forward = partial(forward, mlp)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward  # what the class defines comes back


def passages(tokenizer: SmolLM2Tokenizer, count: int = 8, length: int = 128) -> Tensor:
    """Return excerpts from all over tiny Shakespeare, (count, length + 1)."""
    ids = torch.tensor(tokenizer.encode(load_text()))
    begins = torch.linspace(0, len(ids) - length - 1, count).long().tolist()
    return torch.stack([ids[begin : begin + length + 1] for begin in begins])


@torch.no_grad()
def losses(model: SmolLM2, ids: Tensor) -> Tensor:
    """Return the loss on each passage, in nats per token: ids (B, T + 1) to (B,)."""
    logits, _ = model(ids[:, :-1])
    by_token = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return by_token.mean(1)


@torch.no_grad()
def continuation(
    model: SmolLM2, tokenizer: SmolLM2Tokenizer, prompt: str, tokens: int = 6
) -> str:
    """Continue a prompt, always with the most probable token; return what is new."""
    ids = tokenizer.encode(prompt)
    begin = len(ids)
    for _ in range(tokens):
        logits, _ = model(torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(ids[begin:])


@dataclass
class Gates:
    """What the gates of each layer do, measured over tokens.

    Attributes:
        percentiles: 1, 25, 50, 75, 99 of the gate's reading, (5, layers).
        shut: share of readings that the gate multiplies by less than 0.1 either way, (layers,).
        below_zero: share of what is written that passed a gate with a negative reading: median
            over tokens, (layers,). Weighed by the square of what each hidden channel writes.
        between: share of readings between -1 and 1, over all layers.
        sigmoid_small: share of sigmoids below 0.1, over all layers.
    """

    percentiles: Tensor
    shut: Tensor
    below_zero: Tensor
    between: float
    sigmoid_small: float


@torch.no_grad()
def read_gates(model: SmolLM2, ids: Tensor, skip: int = 2) -> Gates:
    """Run a model on passages and measure its gates.

    Args:
        model: any.
        ids: (B, T).
        skip: tokens at each start that are left out: there, a few numbers are huge.
    """
    shares = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
    percentiles, shut, below_zero, between, small = [], [], [], [], []

    def look(mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0][:, skip:].flatten(0, 1)  # (tokens, C)
        gate = mlp.gate_proj(x)  # (tokens, hidden)
        written = F.silu(gate) * mlp.up_proj(x) * mlp.down_proj.weight.norm(dim=0)
        energy = written.square()
        percentiles.append(torch.quantile(gate.flatten()[::7], shares))  # every seventh is plenty
        shut.append((F.silu(gate).abs() < 0.1).float().mean())
        below_zero.append(((energy * (gate < 0)).sum(1) / energy.sum(1)).median())
        between.append((gate.abs() < 1).float().mean().item())
        small.append((torch.sigmoid(gate) < 0.1).float().mean().item())

    hooks = [block.mlp.register_forward_hook(look) for block in model.model.layers]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    count = len(hooks)
    return Gates(
        torch.stack(percentiles, 1), torch.stack(shut), torch.stack(below_zero),
        sum(between) / count, sum(small) / count,
    )  # fmt: skip
