"""Checkers for notebook 01, RMSNorm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import RMSNorm


@exercise
def check_scale(answer: float) -> str:
    """Expect the factor by which RMSNorm's output grows when its input grows tenfold."""
    x = torch.tensor([3.0, -1.0, 2.0, 4.0])
    norm = RMSNorm(4)
    ratio = (norm(10 * x) / norm(x)).mean().item()
    if abs(answer - ratio) > 1e-3:
        raise Hint(
            f"{answer} is not it. The root mean square grows tenfold as well: what is left of the "
            "factor after the division?"
        )
    return "RMSNorm forgets the length of its input and keeps the direction"


@exercise
def check_backward(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> str:
    """Expect a function (x, weight, grad_output, eps) -> grad_x."""
    generator = torch.Generator().manual_seed(7)
    for size in (4, 9):
        x = torch.randn(3, size, generator=generator, dtype=torch.double, requires_grad=True)
        weight = torch.randn(size, generator=generator, dtype=torch.double)
        grad = torch.randn(3, size, generator=generator, dtype=torch.double)
        y = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        (expected,) = torch.autograd.grad(y, x, grad)
        found = answer(x.detach(), weight, grad, 1e-5)
        if found is None or found.shape != x.shape:
            raise Hint(f"the gradient must have the shape of x, {tuple(x.shape)}")
        rounding = 1e-9 if found.dtype == torch.double else 1e-5
        found = found.double()
        if torch.allclose(
            found, weight * grad * torch.rsqrt(x.detach().pow(2).mean(-1, True) + 1e-5)
        ):
            raise Hint(
                "this is the first half. The root mean square depends on every channel too, so "
                "each channel's gradient has a part that comes back through it"
            )
        if not torch.allclose(found, expected, atol=rounding):
            off = (found - expected).abs().max().item()
            raise Hint(f"off by up to {off:.2g} from autograd; is the mean taken over channels?")
    return "the same gradient as autograd's, from one line of algebra"


@exercise
def check_overflow(answer: int) -> str:
    """Expect the largest power of two whose square float16 can hold."""
    powers = [2**k for k in range(20)]
    fits = [p for p in powers if torch.isfinite(torch.tensor(float(p)).half().pow(2))]
    if answer < 1 or math.frexp(answer)[0] != 0.5:
        raise Hint(f"{answer} is no power of two")
    if answer != max(fits):
        way = "its square is infinite" if answer > max(fits) else "a larger one fits too"
        raise Hint(f"for {answer}, {way} in float16")
    return "beyond it, the mean of squares is infinite and the output is zero"
