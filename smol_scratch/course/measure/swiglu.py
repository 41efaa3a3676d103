"""Measurements of notebook 04: real weights behind other gates, and what the gates of each do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.config import SmolLM2Config
from smol_scratch.corpus import load_text
from smol_scratch.model import Block, SmolLM2, SwiGLU
from smol_scratch.tokenizer import SmolLM2Tokenizer

Combine = Callable[[Tensor, Tensor], Tensor]  # of the gate's reading and the up reading


def _mlps(model: SmolLM2) -> list[SwiGLU]:
    return [block.mlp for block in cast("list[Block]", model.model.layers)]


@contextmanager
def other_gates(model: SmolLM2, combine: Combine) -> Iterator[None]:
    """Let a model combine its two readings in another way, for as long as the ``with`` lasts.

    Args:
        model: any; its weights stay as they are.
        combine: takes what ``gate_proj`` and ``up_proj`` read, (..., hidden) each, and returns what
            ``down_proj`` is given.
    """

    def forward(mlp: SwiGLU, x: Tensor) -> Tensor:
        out: Tensor = mlp.down_proj(combine(mlp.gate_proj(x), mlp.up_proj(x)))
        return out

    mlps = _mlps(model)
    for mlp in mlps:
        mlp.forward = partial(forward, mlp)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward  # what the class defines comes back


def passages(tokenizer: SmolLM2Tokenizer, count: int = 8, length: int = 64) -> Tensor:
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
def continuation(model: SmolLM2, tokenizer: SmolLM2Tokenizer, prompt: str, tokens: int = 6) -> str:
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
        below_zero: share of what is written that passed a gate with a negative reading: median
            over tokens, (layers,). Weighed by the square of what each hidden channel writes.
        between: share of readings between -1 and 1, over all layers.
        sigmoid_small: share of sigmoids below 0.1, over all layers.
    """

    percentiles: Tensor
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
    percentiles, below_zero, between, small = [], [], [], []

    def look(mlp: SwiGLU, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0][:, skip:].flatten(0, 1)  # (tokens, C)
        gate = mlp.gate_proj(x)  # (tokens, hidden)
        written = F.silu(gate) * mlp.up_proj(x) * mlp.down_proj.weight.norm(dim=0)
        energy = written.square()
        percentiles.append(torch.quantile(gate.flatten()[::7], shares))  # every seventh is plenty
        below_zero.append(((energy * (gate < 0)).sum(1) / energy.sum(1)).median())
        between.append((gate.abs() < 1).float().mean().item())
        small.append((torch.sigmoid(gate) < 0.1).float().mean().item())

    hooks = [mlp.register_forward_hook(look) for mlp in _mlps(model)]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    count = len(hooks)
    return Gates(
        torch.stack(percentiles, 1), torch.stack(below_zero),
        sum(between) / count, sum(small) / count,
    )  # fmt: skip


def checks(combine: Combine, oracle: nn.Module, model: SmolLM2, ids: Tensor, good: float) -> (
    tuple[dict[str, bool], Tensor]
):  # fmt: skip
    """Put a SwiGLU that combines its readings in another way through seven checks.

    Args:
        combine: as for ``other_gates``.
        oracle: a right MLP of SmolLM2's size, with weights under the same names.
        model: with real weights.
        ids: (B, T + 1), real text.
        good: the loss of the intact model there.

    Returns:
        Each check and whether it passes; the loss of the model on each passage, (B,).
    """

    class Variant(SwiGLU):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down_proj(combine(self.gate_proj(x), self.up_proj(x)))
            return out

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        tried = Variant(SmolLM2Config()).requires_grad_(False)
        tried.load_state_dict(oracle.state_dict())
        tiny = Variant(SmolLM2Config(n_embd=4, intermediate_size=6)).double()
        point = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
        x, order = torch.randn(2, 32, 576), torch.randperm(32)
    pencil = torch.tensor(math.log(3)), torch.tensor(4.0)  # gate and up, worked out on paper
    y = tried(x)
    with other_gates(model, combine):
        loss = losses(model, ids)
    # Rounding moves the 2 × 32 × 576 numbers by a few millionths; another bend by a thousandth.
    passes = {
        "names and shapes": y.shape == x.shape,
        "token by token": torch.allclose(tried(x[:, order]), y[:, order], atol=1e-5),
        "zero in, zero out": not bool(tried(0 * x).any()),
        "gradient": bool(torch.autograd.gradcheck(tiny, point)),
        "pencil example": abs(float(combine(*pencil)) - 3 * math.log(3)) < 1e-5,
        "oracle": torch.allclose(y, oracle(x), atol=1e-5),
        "real text": loss.mean().item() < good + 0.01,
    }
    return passes, loss
