"""Checkers for notebook 04, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import SwiGLU


@exercise
def check_growth(answer: float) -> str:
    """Expect the factor by which a SwiGLU with open gates grows when its input doubles."""
    mlp = SwiGLU(SmolLM2Config(n_embd=2, intermediate_size=3))
    mlp.gate_proj.weight.data = torch.tensor([[20.0, 1.0], [30.0, 0.0], [25.0, 5.0]])
    x = torch.ones(2)  # gate values 21, 30 and 30
    with torch.no_grad():
        ratio = (mlp(2 * x) / mlp(x)).mean().item()
    if abs(answer - 2) < 1e-3:
        raise Hint("the up value doubles. What becomes of the value that multiplies it?")
    if abs(answer - ratio) > 1e-3:
        raise Hint(f"{answer} is not it. An open gate passes its own value: SiLU(20) is about 20")
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
        raise Hint("this is the product x0 · x1. Which two sums have x0² − x1² as their product?")
    if torch.allclose(y, second**2 - first**2):
        raise Hint("the sign is the wrong way round: this is x1² − x0²")
    if not torch.allclose(y, first**2 - second**2):
        token, want, got = x[0], (first**2 - second**2)[0], y[0]
        raise Hint(
            f"for x = ({token[0]:.2f}, {token[1]:.2f}) it gives {got:.2f} instead of {want:.2f}. "
            "The pair SiLU(a) · b and SiLU(−a) · b differ by a · b: which a and b multiply to it?"
        )
    return "two channels compute a polynomial of degree two, with no error beyond rounding"


@exercise
def check_beta(answer: float) -> str:
    """Expect the beta, to one decimal, whose swish is closest to GELU between -4 and 4."""
    z = torch.arange(-400, 401) / 100
    betas = [step / 10 for step in range(5, 31)]
    off = {b: (z * torch.sigmoid(b * z) - F.gelu(z)).abs().max().item() for b in betas}
    best = min(off, key=off.__getitem__)
    chosen = min(betas, key=lambda b: abs(b - answer))
    if abs(chosen - answer) > 1e-6:
        raise Hint(f"{answer} is not one of 0.5, 0.6, … 3.0")
    if chosen != best:
        side = "larger" if chosen < best else "smaller"
        raise Hint(f"at {chosen} the largest distance is {off[chosen]:.4f}; try a {side} beta")
    return "SiLU and GELU are two members of one family, told apart by a number"
