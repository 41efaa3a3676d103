"""Measurements of notebook 05: slopes of a stack before training, and the stream of real blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.config import SmolLM2Config
from smol_scratch.course import races
from smol_scratch.model import Block, SmolLM2, SwiGLU

Wiring = Callable[[nn.Module, Tensor], Tensor]  # of a block and the stream (B, T, C)


class _ThirdReading(nn.Module):
    """SwiGLU with a third reading of the token, which is multiplied by the other two."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        self.mlp = mlp
        hidden, C = mlp.up_proj.weight.shape
        self.third_proj = nn.Linear(C, hidden, bias=False)
        nn.init.normal_(self.third_proj.weight, std=C**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        product = F.silu(self.mlp.gate_proj(x)) * self.mlp.up_proj(x) * self.third_proj(x)
        out: Tensor = self.mlp.down_proj(product)
        return out


@dataclass
class Slopes:
    """What a fresh stack does to a signal and its gradient, means over seeds.

    Attributes:
        sensitivity: how much the loss changes when the stream changes by a given share of its
            length, after 0, 1, … blocks, in units of the last; (blocks + 1,).
        factor: by which it grows per block on the way back, from the last block to the second.
        likeness: mean cosine between the vectors of different tokens, before the first block and
            after the last.
    """

    sensitivity: Tensor
    factor: float
    likeness: tuple[float, float]


def _likeness(vectors: Tensor) -> float:
    """Return the mean cosine between different rows of a matrix (T, C)."""
    directions = F.normalize(vectors, dim=-1)
    T = len(directions)
    return ((directions @ directions.T).sum().item() - T) / (T * (T - 1))


def slopes(
    wiring: Wiring, std: float, *, readings: int = 2, seeds: Sequence[int] = (0, 1, 2)
) -> Slopes:
    """Measure a fresh stack of thirty blocks, 192 wide, on 64 characters of Shakespeare.

    The sensitivity after a block is the length of the gradient times the length of the stream.

    Args:
        wiring: how a block is wired.
        std: standard deviation of the initial weights.
        readings: of a token that each MLP multiplies; 1 takes the gate out, 3 adds one.
        seeds: of the weights.
    """
    letters = races.characters()[:65]
    lines, alike = [], []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = SmolLM2Config(
                vocab_size=65, block_size=64, n_head=3, n_kv_head=1, n_embd=192,
                intermediate_size=512, init_std=std,
            )  # fmt: skip
            model = SmolLM2(config)
            inner: Any = model.model
            for block in inner.layers:
                if readings != 2:
                    block.mlp = {1: races.WithoutGate, 3: _ThirdReading}[readings](block.mlp)
        x = inner.embed_tokens(letters[None, :64])  # (B, T, C)
        stream = [x]
        for block in inner.layers:
            stream.append(wiring(block, stream[-1]))
        for x in stream:
            x.retain_grad()
        logits = F.linear(inner.norm(stream[-1]), inner.embed_tokens.weight)
        F.cross_entropy(logits[0], letters[1:]).backward()
        line = [cast("Tensor", x.grad).norm() * x.detach().norm() for x in stream]
        lines.append(torch.stack(line) / line[-1])
        alike.append([_likeness(stream[0][0].detach()), _likeness(stream[-1][0].detach())])
    sensitivity = torch.stack(lines).log().mean(0).exp()  # (blocks + 1,)
    factor = float(sensitivity[1] ** (1 / (len(sensitivity) - 2)))
    before, after = (sum(ends) / len(ends) for ends in zip(*alike, strict=True))
    return Slopes(sensitivity, factor, (before, after))


@torch.no_grad()
def fading(eps: float) -> list[float]:
    """Follow the stream of the narrow race's stack, without residual and with small weights.

    Args:
        eps: what each norm adds to the mean square before it takes the root.

    Returns:
        The RMS of the stream after 1, 2, … 30 blocks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SmolLM2Config(
            vocab_size=65, block_size=32, n_head=2, n_kv_head=1, n_embd=32, head_dim=16,
            intermediate_size=80, init_std=0.02, norm_eps=eps,
        )  # fmt: skip
        inner: Any = SmolLM2(config).model
    x, sizes = inner.embed_tokens(races.characters()[None, :32]), []  # (B, T, C)
    for block in inner.layers:
        x = races.no_residual(block, x)
        sizes.append(x.pow(2).mean().sqrt().item())
    return sizes


@torch.no_grad()
def passage_losses(model: SmolLM2, wiring: Wiring, ids: Tensor) -> Tensor:
    """Return the loss on each passage with the blocks wired otherwise: ids (B, T + 1) to (B,)."""
    inner: Any = model.model
    x = inner.embed_tokens(ids[:, :-1])  # (B, T, C)
    for block in inner.layers:
        x = wiring(block, x)
    logits = F.linear(inner.norm(x), inner.embed_tokens.weight)  # (B, T, V)
    by_token = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return by_token.mean(1)


@torch.no_grad()
def stream(model: SmolLM2, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the stream through a model, the first two tokens of each passage left out.

    Args:
        model: any.
        ids: (B, T).

    Returns:
        The RMS of the stream after 0, 1, … blocks, median over tokens, (blocks + 1,); and the
        length of what attention and the MLP write beside the stream's own, medians, (2, blocks).
    """

    def size(x: Tensor) -> Tensor:
        return x[:, 2:].pow(2).mean(-1).sqrt()

    inner: Any = model.model
    x = inner.embed_tokens(ids)  # (B, T, C)
    sizes, shares = [size(x).median()], []
    for block in inner.layers:
        gathered = block.self_attn(block.input_layernorm(x))
        first = (size(gathered) / size(x)).median()
        x = x + gathered
        made = block.mlp(block.post_attention_layernorm(x))
        shares.append(torch.stack([first, (size(made) / size(x)).median()]))
        x = x + made
        sizes.append(size(x).median())
    return torch.stack(sizes), torch.stack(shares, 1)


def expected(m: float, blocks: int = 30) -> dict[str, list[float]]:
    """Return the sensitivities that a calculation by hand expects, attention left out.

    A change passes a product of two signals with the factor √2, and squares of independent
    changes add.

    Args:
        m: mean square of what an MLP writes when it reads numbers of size 1.
        blocks: how many.

    Returns:
        Wiring to the sensitivity after 0, 1, … blocks, in units of the last.
    """
    through = [*range(blocks, -1, -1)]
    post = math.sqrt((1 + 2 * m) / (1 + m))
    return {
        "pre-norm": [math.sqrt((1 + (blocks + 1) * m) / (1 + (n + 1) * m))
                     for n in range(blocks + 1)],
        "post-norm": [post**n for n in through],
        "no residual": [math.sqrt(2) ** n for n in through],
    }  # fmt: skip


def written(parts: int = 200_000) -> float:
    """Return the mean square of what an MLP writes, its matrices drawn with spread 1/√C.

    Gate and up readings are normal with variance 1; ``down`` sums 8/3 · C products.
    """
    generator = torch.Generator().manual_seed(0)
    gate = torch.randn(parts, generator=generator, dtype=torch.double)
    return F.silu(gate).pow(2).mean().item() * 8 / 3


def checks(wiring: Wiring, fresh: Block, block: Block, oracle: Callable[[Block, Tensor], Tensor],
           model: SmolLM2, ids: Tensor, good: float) -> tuple[dict[str, bool], Tensor]:  # fmt: skip
    """Put a wiring through four checks.

    Args:
        wiring: of a block.
        fresh: a block whose norms have all weights 1.
        block: one with random weights in its norms too.
        oracle: gives a right block's output for a block's weights and an input (B, T, C).
        model: with real weights.
        ids: (B, T + 1), real text.
        good: the loss of the intact model there.

    Returns:
        Each check and whether it passes; the loss of the model on each passage, (B,).
    """
    generator = torch.Generator().manual_seed(7)
    x, other = torch.randn(2, 2, 12, block.mlp.gate_proj.in_features, generator=generator)
    other[:, :7] = x[:, :7]

    def near(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, atol=1e-4)  # rounding: 1e-6; the gentlest of the bugs: 0.1

    with torch.no_grad():
        passes = {
            "later tokens unseen": near(wiring(block, x)[:, :7], wiring(block, other)[:, :7]),
            "oracle, fresh norms": near(wiring(fresh, x), oracle(fresh, x)),
            "oracle, random norms": near(wiring(block, x), oracle(block, x)),
        }
    loss = passage_losses(model, wiring, ids)
    return passes | {"real text": loss.mean().item() < good + 0.01}, loss
