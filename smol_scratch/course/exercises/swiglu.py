"""Checkers for notebook 04, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure import swiglu as measure
from smol_scratch.hub import load_pretrained
from smol_scratch.model import SmolLM2, SwiGLU
from smol_scratch.tokenizer import load_tokenizer


@exercise
def check_growth(answer: float) -> str:
    """Expect the factor by which a SwiGLU with open gates grows when its input doubles."""
    mlp = SwiGLU(SmolLM2Config(n_embd=2, intermediate_size=3))
    mlp.gate_proj.weight.data = torch.tensor([[20.0, 1.0], [30.0, 0.0], [25.0, 5.0]])
    x = torch.ones(2)  # gate readings 21, 30 and 30
    with torch.no_grad():
        ratio = (mlp(2 * x) / mlp(x)).mean().item()
    if abs(answer - 1) < 1e-3:
        raise Hint("1 would be a norm. Nothing in SwiGLU divides by the size of its input")
    if abs(answer - 2) < 1e-3:
        raise Hint("the up reading doubles. What becomes of the value that multiplies it?")
    if abs(answer - 8) < 1e-3:
        raise Hint("gate and up double; `down` is applied to their product and doubles nothing")
    if abs(answer - ratio) > 1e-3:
        raise Hint(f"{answer} is not it. An open gate passes its own reading: SiLU(20) is about 20")
    return "two readings of the input are multiplied, so SwiGLU answers twice the input fourfold"


@exercise
def check_weights(answer: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> str:
    """Expect a function that returns gate (2, 2), up (2, 2) and down (1, 2) matrices."""
    found = answer()
    if not isinstance(found, tuple | list) or len(found) != 3:
        raise Hint("return three tensors: gate, up, down")
    gate, up, down = (torch.as_tensor(matrix, dtype=torch.double) for matrix in found)
    for name, matrix, shape in (("gate", gate, (2, 2)), ("up", up, (2, 2)), ("down", down, (1, 2))):
        if tuple(matrix.shape) != shape:
            raise Hint(f"{name} has shape {tuple(matrix.shape)}; it must be {shape}")
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(64, 2, generator=generator, dtype=torch.double)
    y = ((F.silu(x @ gate.T) * (x @ up.T)) @ down.T).squeeze(-1)
    first, second = x.unbind(-1)
    if torch.allclose(y, first * second):
        raise Hint(
            "this is the product x0 · x1. Which sum and which difference multiply to x0² − x1²?"
        )
    if torch.allclose(y, second**2 - first**2):
        raise Hint("the sign is the wrong way round: this is x1² − x0²")
    if torch.allclose(y, first**2 + second**2):
        raise Hint("this is x0² + x1²: a sum of squares where their difference was asked for")
    if not torch.allclose(y, first**2 - second**2):
        token, want, got = x[0], (first**2 - second**2)[0], y[0]
        raise Hint(
            f"for x = ({token[0]:.2f}, {token[1]:.2f}) it gives {got:.2f} instead of {want:.2f}. "
            "The pair SiLU(a) · b and SiLU(−a) · b differ by a · b: which a and b multiply to it?"
        )
    return "two channels compute a polynomial of degree two, with no error beyond rounding"


@lru_cache(maxsize=1)
def _real() -> tuple[SmolLM2, Tensor]:
    """Return the real model, and passages to measure on."""
    model = load_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf", quiet=True).requires_grad_(False)
    return model, measure.passages(load_tokenizer(), count=4, length=64)


def fused_weights() -> Tensor:
    """Return gate and up of the real model's first layer as one matrix, (3072, 576)."""
    mlp = _real()[0].model.layers[0].mlp
    return torch.stack([mlp.up_proj.weight, mlp.gate_proj.weight], dim=1).flatten(0, 1)


def loss_with(gate: Tensor, up: Tensor) -> float:
    """Return the real model's loss with these in its first layer, in nats per token.

    Args:
        gate: (1536, 576).
        up: the same.
    """
    model, ids = _real()
    mlp = model.model.layers[0].mlp
    kept = mlp.gate_proj.weight.data, mlp.up_proj.weight.data
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = gate.contiguous(), up.contiguous()
    try:
        return measure.losses(model, ids).mean().item()
    finally:
        mlp.gate_proj.weight.data, mlp.up_proj.weight.data = kept


def loss_with_gelu(scale: float) -> float:
    """Return the real model's loss with scale · GELU(z / scale) in place of SiLU(z)."""
    model, ids = _real()
    with measure.other_gates(model, lambda gate, up: scale * F.gelu(gate / scale) * up):
        return measure.losses(model, ids).mean().item()


@exercise
def check_split(answer: Callable[[Tensor], tuple[Tensor, Tensor]]) -> str:
    """Expect a function that takes the fused matrix apart into gate and up."""
    fused = torch.arange(12.0)[:, None].expand(12, 2)  # each row says its number
    found = answer(fused)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint("return two tensors: gate, up")
    rows = [[int(row[0]) for row in matrix] for matrix in found]
    even, odd, first, second = [*range(0, 12, 2)], [*range(1, 12, 2)], [*range(6)], [*range(6, 12)]
    if rows in ([first, second], [second, first]):
        raise Hint("one half after the other: that loss is hopeless, either way round")
    if rows == [even, odd]:
        raise Hint("interleaved is right, but gate and up are exchanged: compare the loss")
    if rows != [odd, even]:
        raise Hint(f"of twelve rows it takes {rows[0]} as gate and {rows[1]} as up; "
                   "try halves and interleaved rows, each both ways round")  # fmt: skip
    return "interleaved row by row, up first; no shape and no name would have told you"


@exercise
def check_repair(answer: float) -> str:
    """Expect a scale with which s · GELU(z / s) stands in for SiLU: between 1.6 and 2.3."""
    if not answer > 0:
        raise Hint(f"{answer} is no stretch: a scale is above 0")
    if abs(answer - 1) < 1e-6:
        raise Hint("1 is GELU as it is, with about a nat of damage. Stretch it")
    if answer < 1:
        raise Hint(f"{answer} makes the curve narrower than GELU; SiLU is the wider of the two")
    if not 1.6 <= answer <= 2.3:  # within a twentieth of a nat of the intact model
        side = "larger" if answer < 1.6 else "smaller"
        raise Hint(f"at {answer} the loss is still above the intact model's; try a {side} scale")
    return "the loss is back; the two curves themselves agree best at about 1.7"
