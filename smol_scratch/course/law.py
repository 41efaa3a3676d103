"""A law for the loss, fitted to runs of several sizes and lengths, with its uncertainty.

Source of the form: Hoffmann et al., 2022, arXiv:2203.15556, their third approach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^α + B / D^β: the loss in nats of N parameters after D tokens.

    Attributes:
        E: what is left for an endless model on endless text.
        A: how much is lost to the model's size, at N = 1.
        alpha: how fast that falls with N.
        B: how much is lost to the text's length, at D = 1.
        beta: how fast that falls with D.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """Return the loss of N parameters after D tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best_size(self, flops: float) -> float:
        """Return the N with the lowest loss among all that spend ``flops`` = 6 N D."""
        both = self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        return float(balance * (flops / 6) ** (self.beta / both))


def fit(
    N: Sequence[float], D: Sequence[float], L: Sequence[float], *, E: float | None = None
) -> Law:
    """Find the law with the smallest mean squared relative error.

    For given exponents the law is linear in E, A and B, so those three are solved for; the two
    exponents are tried on a grid, first coarsely, then finely around the best. Laws in which one of
    the three is negative do not count.

    Args:
        N: parameters of each run.
        D: tokens of each run, repetitions included.
        L: its loss in nats.
        E: held at this number, to see what the other four then make of the runs.

    Raises:
        ValueError: for fewer than five runs, fewer than three sizes or three lengths, or a number
            that is not positive, or an E that no loss allows.
    """
    sizes, lengths, losses = (torch.tensor(x, dtype=torch.double) for x in (N, D, L))
    if len(losses) < 5 or len(set(N)) < 3 or len(set(D)) < 3:
        raise ValueError(
            f"{len(losses)} runs of {len(set(N))} sizes and {len(set(D))} lengths: "
            "five numbers want at least five runs, three sizes and three lengths"
        )
    if not (sizes > 0).all() or not (lengths > 0).all() or not (losses > 0).all():
        raise ValueError("sizes, lengths and losses must all be above 0")
    if E is not None and not 0 <= E < min(L):
        raise ValueError(f"E={E}: must be at least 0 and below the lowest loss, {min(L)}")
    held = [] if E is None else [E]
    rest = 1 - (E or 0.0) / losses  # what the columns below must add up to
    # In units of their means, so that the columns below have similar lengths.
    units = sizes.log().mean().exp(), lengths.log().mean().exp()

    def best(alphas: Tensor, betas: Tensor) -> tuple[float, float, Tensor]:
        alpha, beta = torch.cartesian_prod(alphas, betas).T  # (G,)
        columns = torch.stack(
            [
                torch.ones(len(alpha), len(losses), dtype=torch.double),
                (sizes / units[0]) ** -alpha[:, None],
                (lengths / units[1]) ** -beta[:, None],
            ],
            -1,
        )  # (G, runs, 3)
        columns = columns[..., len(held) :] / losses[:, None]  # errors count relative to the loss
        square = columns.mT @ columns  # (G, 3, 3)
        found = torch.linalg.solve_ex(square, (columns * rest[:, None]).sum(1))[0]  # (G, 3)
        error = ((columns @ found[:, :, None]).squeeze(-1) - rest).pow(2).mean(1)  # (G,)
        error[~(found >= 0).all(1)] = torch.inf
        least = int(error.argmin())
        return float(alpha[least]), float(beta[least]), found[least]

    coarse = torch.arange(5, 200, 5, dtype=torch.double) / 100
    alpha, beta, _ = best(coarse, coarse)
    near = torch.arange(-10, 11, dtype=torch.double) / 200
    alpha, beta, found = best((alpha + near).clamp(min=0.005), (beta + near).clamp(min=0.005))
    left, a, b = held + found.tolist()
    A, B = a * units[0] ** alpha, b * units[1] ** beta
    return Law(left, float(A), alpha, float(B), beta)


def bootstrap(
    N: Sequence[float],
    D: Sequence[float],
    L: Sequence[float],
    run: Sequence[object],
    *,
    times: int = 300,
    seed: int = 0,
) -> list[Law]:
    """Fit again to runs drawn with replacement, to see how far the law depends on them.

    Losses that stem from one run (its branches) share its luck, so they are drawn together.

    Args:
        N: as in ``fit``.
        D: as in ``fit``.
        L: as in ``fit``.
        run: to which run each loss belongs.
        times: laws to return.
        seed: of the draws. A draw that lacks three sizes is drawn anew.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    generator = torch.Generator().manual_seed(seed)
    members = {name: [i for i, other in enumerate(run) if other == name] for name in run}
    groups, laws = list(members.values()), list[Law]()
    while len(laws) < times:
        chosen = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        rows = [i for group in chosen for i in groups[group]]
        if len({N[i] for i in rows}) >= 3:
            laws.append(fit([N[i] for i in rows], [D[i] for i in rows], [L[i] for i in rows]))
    return laws


def predict(
    N: Sequence[float],
    D: Sequence[float],
    L: Sequence[float],
    run: Sequence[object],
    *,
    size: float,
    length: float,
    times: int = 300,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Say what another run will reach: the law's loss, and the bounds of a 90 % interval.

    The interval has two sources: how far the law depends on the runs that it was fitted to, and how
    far those runs lie from it, one of whose relative distances is added to each drawn law.

    Args:
        N: as in ``fit``.
        D: as in ``fit``.
        L: as in ``fit``.
        run: as in ``bootstrap``.
        size: parameters of the run to predict.
        length: tokens of that run.
        times: as in ``bootstrap``.
        seed: of the draws.
    """
    law = fit(N, D, L)
    off = [loss / law.loss(n, d) for n, d, loss in zip(N, D, L, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    luck = torch.randint(len(off), (times,), generator=generator).tolist()
    laws = bootstrap(N, D, L, run, times=times, seed=seed)
    drawn = [other.loss(size, length) * off[i] for other, i in zip(laws, luck, strict=True)]
    return law.loss(size, length), *interval(drawn)


def interval(values: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """Return the bounds between which the middle ``share`` of the values lies."""
    tail = (1 - share) / 2
    low, high = torch.tensor(values, dtype=torch.double).quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.double)
    )
    return float(low), float(high)
