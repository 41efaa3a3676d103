"""Checkers for notebook 01, RMSNorm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import RMSNorm


@exercise
def check_neighbours(answer: float) -> str:
    """Expect what is left of three outputs when the fourth of four equal inputs grows tenfold."""
    norm = RMSNorm(4)
    before, after = norm(torch.ones(4)), norm(torch.tensor([10.0, 1.0, 1.0, 1.0]))
    left = (after[1] / before[1]).item()  # 0.197
    if math.isclose(answer, 1, abs_tol=0.02):
        raise Hint("all four channels share one root mean square, and it has grown")
    if math.isclose(answer, 0.1, abs_tol=0.01):
        raise Hint("the root mean square does not grow tenfold: only one number of four does")
    if math.isclose(answer, 1 / left, rel_tol=0.02):
        raise Hint("so much grows the root mean square; the outputs are divided by it")
    if abs(answer - left) > 0.005:
        raise Hint(f"{answer} is not it. What is the root mean square of (10, 1, 1, 1)?")
    return "one loud channel turns all the others down, to a fifth here"


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
        found, r = found.double(), torch.rsqrt(x.detach().pow(2).mean(-1, True) + 1e-5)
        if torch.allclose(found, weight * grad * r):
            raise Hint(
                "this is the first half. The root mean square depends on every channel too, so "
                "each channel's gradient has a part that comes back through it"
            )
        n = x.detach() * r
        if torch.allclose(found, r * (weight * grad - n * (weight * grad * n).sum(-1, True))):
            raise Hint("a sum where the mean belongs: the root is of the *mean* of the squares")
        if torch.allclose(found, r * (weight * grad + n * (weight * grad * n).mean(-1, True))):
            raise Hint("right but for one sign: a larger x gives a larger root, a smaller output")
        if torch.allclose(found, r * (weight * grad - n * (grad * n).mean(-1, True))):
            raise Hint("the weight is missing in the second half: what comes back is w · g, not g")
        if not torch.allclose(found, expected, atol=rounding):
            off = (found - expected).abs().max().item()
            raise Hint(f"off by up to {off:.2g} from autograd; is the mean taken over channels?")
    return "the same gradient as autograd's, from one line of algebra"


DIAGNOSES = (
    "healthy",
    "mean over time",
    "subtracts the mean",
    "ε outside the root",
    "weight plus one",
)


class _Patient(nn.Module):
    def __init__(self, diagnosis: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.weight = nn.Parameter(torch.randn(16, generator=generator), requires_grad=False)
        self._diagnosis = diagnosis

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1 if self._diagnosis == 4 else self.weight
        if self._diagnosis == 2:
            x = x - x.mean(-1, keepdim=True)
        mean_square = x.pow(2).mean(-2 if self._diagnosis == 1 else -1, keepdim=True)
        if self._diagnosis == 3:
            return weight * x / (mean_square.sqrt() + 1e-5)
        return weight * x / (mean_square + 1e-5).sqrt()


_CHARTS = {"A": 3, "B": 1, "C": 4, "D": 0, "E": 2}
_TESTS = {
    "healthy": "compare it with RMSNorm on random vectors, on tiny ones and on zeros",
    "mean over time": "change a later token and watch the earlier ones",
    "subtracts the mean": "add 5 to every channel of its input",
    "ε outside the root": "feed it a vector of size 0.001",
    "weight plus one": "compare its output for a vector of ones with its weight",
}


def patients() -> dict[str, nn.Module]:
    """Return five norms for vectors (B, T, 16), named by letters: four have a bug, one has none."""
    return {letter: _Patient(diagnosis) for letter, diagnosis in _CHARTS.items()}


@exercise
def check_diagnoses(answer: Mapping[str, str]) -> str:
    """Expect a dictionary: each letter of ``patients()`` to one of ``DIAGNOSES``."""
    if not isinstance(answer, Mapping) or set(answer) != set(_CHARTS):
        raise Hint(f"a dictionary with the keys {', '.join(_CHARTS)} is wanted")
    for letter, said in answer.items():
        if said not in DIAGNOSES:
            raise Hint(f"{letter}: {said!r} is not one of {', '.join(DIAGNOSES)}")
    wrong = [
        letter for letter, diagnosis in _CHARTS.items() if answer[letter] != DIAGNOSES[diagnosis]
    ]
    if wrong:
        said = answer[wrong[0]]
        raise Hint(f"{len(wrong)} of 5 are wrong. Is {wrong[0]} really {said!r}? {_TESTS[said]}")
    return "four bugs that raise no error, each caught by one question"
