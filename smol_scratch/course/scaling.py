"""Small models of many sizes on many amounts of text: the experiments of notebook 14.

They were trained once, by ``python -m benchmarks.record_scaling``; the notebook reads the record,
fits a law to it and repeats the smallest run.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.law import Law
from smol_scratch.model import SmolLM2
from smol_scratch.schedule import warmup_stable_decay

CONTEXT, BATCH = 64, 8  # a step sees 8 passages of 64 characters
# Where The Taming of the Shrew begins: seven plays stand before it, the start of The Tempest after.
NEW_PLAYS = 966_138
TRAINED = 917_504  # characters to train on: 14,336 passages of the seven plays
BUDGETS = (TRAINED // 8, TRAINED // 4, TRAINED // 2, TRAINED)  # characters, the last one whole pass
BASE = 32  # the width at which both rules are the same
WARM_UP = 30  # steps
COOLDOWN = 0.25  # share of a budget during which the rate falls to zero
RULES = ("plain", "width-aware")


def model(width: int, seed: int, rule: str = "width-aware") -> SmolLM2:
    """Return an untrained language model of characters: two blocks, heads of 16 channels.

    Args:
        width: of the residual stream (C); a multiple of 16.
        seed: of the weights.
        rule: "plain" draws every weight with standard deviation 1/√C; "width-aware" draws the
            embedding as at width 32, and the rest so too.
    """
    torch.manual_seed(seed)
    config = SmolLM2Config(
        vocab_size=65, block_size=CONTEXT, n_layer=2, n_head=width // 16, n_kv_head=1, head_dim=16,
        n_embd=width, intermediate_size=width * 8 // 3 // 8 * 8, init_std=width**-0.5,
    )  # fmt: skip
    made = SmolLM2(config)
    if rule == "width-aware":
        with torch.no_grad():
            made.get_parameter("model.embed_tokens.weight").mul_((width / BASE) ** 0.5)
    return made


def loss(model: SmolLM2, rule: str, idx: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in nats per character; idx, targets (B, T).

    The width-aware rule divides the logits by how much wider than 32 the model is.
    """
    logits = model(idx)[0]  # (B, T, V)
    if rule == "width-aware":
        logits = logits * (BASE / model.config.n_embd)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimizer(model: SmolLM2, rule: str, rate: float) -> torch.optim.AdamW:
    """Return AdamW, with each group's highest rate under "peak".

    The plain rule gives all weights one rate; the width-aware rule divides that of the blocks'
    matrices by how much wider than 32 the model is.

    Source: Yang et al., 2022, arXiv:2203.03466, in the form for AdamW and a tied head.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if "layers" in name and p.ndim == 2]
    others = [p for name, p in named if not ("layers" in name and p.ndim == 2)]
    share = BASE / model.config.n_embd if rule == "width-aware" else 1.0
    groups = [{"params": others, "peak": rate}, {"params": matrices, "peak": rate * share}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def passages(seed: int, unique: int, characters: int) -> Tensor:
    """Return where the passages of a run begin, in its order, (characters / 64,).

    A run sees the first of its seed's order, ``unique`` characters, and when they are used up the
    same ones again in another order. So runs of one seed read the same up to the first repetition.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = _all_passages()[: TRAINED // CONTEXT]
    order = ours[torch.randperm(len(ours), generator=generator)][: unique // CONTEXT]
    passes = [order]
    while len(passes) * unique < characters:
        passes.append(order[torch.randperm(len(order), generator=generator)])
    return torch.cat(passes)[: characters // CONTEXT]


def _all_passages() -> Tensor:
    """Return where the passages of the seven plays begin, shuffled once for all runs."""
    count = NEW_PLAYS // CONTEXT
    return torch.randperm(count, generator=torch.Generator().manual_seed(14)) * CONTEXT


def exams(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return passages that no run trains on, (759, 65) each: of the same plays, and of two others.

    The first are strewn over the seven plays, between those that are trained on.
    """
    same = _all_passages()[TRAINED // CONTEXT :]
    room = len(numbers) - CONTEXT - 1 - NEW_PLAYS
    new = NEW_PLAYS + torch.arange(len(same)) * (room // len(same))
    window = torch.arange(CONTEXT + 1)
    return numbers[same[:, None] + window], numbers[new[:, None] + window]


@torch.no_grad()
def measured(model: SmolLM2, rule: str, exam: Tensor) -> float:
    """Return the mean loss in nats per character on passages (N, 65)."""
    pieces = exam.split(200)
    total = sum(loss(model, rule, x[:, :-1], x[:, 1:]).item() * len(x) for x in pieces)
    return total / len(exam)


class Result(NamedTuple):
    """What a model had reached at a budget.

    Attributes:
        budget: characters trained on, repetitions included.
        training: mean loss of the last 30 steps, in nats per character.
        held_out: loss on passages of the same plays that are not trained on, after the cooldown.
        new_plays: loss on other plays.
        uncooled: as ``held_out``, but of the trunk, whose rate never fell; None for the last
            budget, to which the trunk does not go.
    """

    budget: int
    training: float
    held_out: float
    new_plays: float
    uncooled: float | None


def train(
    width: int,
    seed: int,
    numbers: Tensor,
    *,
    rate: float,
    rule: str = "width-aware",
    unique: int = TRAINED,
    budgets: tuple[int, ...] = BUDGETS,
) -> Iterator[Result]:
    """Train one model, and yield what it reaches at each budget.

    The trunk keeps a constant rate. Before each budget ends, a copy branches off and takes its rate
    to zero over the budget's last quarter, as a run of that length alone would have done.

    Args:
        width: of the model.
        seed: of weights and order.
        numbers: from ``races.characters``.
        rate: the peak, for the embedding and the norms; for matrices see ``optimizer``.
        rule: of ``RULES``.
        unique: how many different characters are trained on, drawn from the text by passages.
        budgets: characters trained on in all, each at least twice the one before.

    Source: Hägele et al., 2024, arXiv:2405.18392, for the branches.
    """
    trunk = model(width, seed, rule)
    trunk_adam = optimizer(trunk, rule, rate)
    starts, (same, new) = passages(seed, unique, budgets[-1]), exams(numbers)

    def steps(net: SmolLM2, adam: torch.optim.AdamW, first: int, last: int, end: int) -> float:
        """Take steps first … last of a run of ``end``; return the mean loss of the last 30."""
        seen = []
        for step in range(first, last):
            for group in adam.param_groups:
                group["lr"] = warmup_stable_decay(
                    step, peak=group["peak"], minimum=0.0, warmup=WARM_UP, total=end,
                    decay=int(end * COOLDOWN),
                )  # fmt: skip
            batch = starts[step * BATCH : (step + 1) * BATCH, None] + torch.arange(CONTEXT + 1)
            piece = numbers[batch]  # (B, T + 1)
            now = loss(net, rule, piece[:, :-1], piece[:, 1:])
            adam.zero_grad()
            now.backward()
            adam.step()
            seen.append(now.item())
        return sum(seen[-30:]) / max(len(seen[-30:]), 1)

    done, longest = 0, budgets[-1] // (BATCH * CONTEXT)
    for budget in budgets:
        end = budget // (BATCH * CONTEXT)
        fork = end - int(end * COOLDOWN)
        steps(trunk, trunk_adam, done, fork, longest)
        net, adam = copy.deepcopy((trunk, trunk_adam))
        training = steps(net, adam, fork, end, end)
        uncooled = None
        if budget != budgets[-1]:
            steps(trunk, trunk_adam, fork, end, longest)
            uncooled = measured(trunk, rule, same)
        done = end
        ends = measured(net, rule, same), measured(net, rule, new)
        yield Result(budget, training, *ends, uncooled)


def per_character(width: float) -> float:
    """Return the FLOPs of training on one character, 6 N + 12 L H D T: attention's products too.

    The width need be no multiple of 16: N is the parameters' polynomial in it, exact where the
    MLP's 8/3 of the width needs no rounding (48, 96) and within 4 % from width 16 on.

    Source of the formula: Chowdhery et al., 2022, arXiv:2204.02311, appendix B.
    """
    return 6 * _parameters(width) + 12 * 2 * width * CONTEXT


def _parameters(width: float) -> float:
    return 20 * width**2 + 134 * width


def best_size(found: Law, flops: float) -> float:
    """Return the N with the lowest loss among all that spend ``flops``, attention counted."""
    widths = torch.logspace(0, 3, 6001, dtype=torch.double).tolist()
    pairs = [(_parameters(w), flops / per_character(w)) for w in widths]
    return min(pairs, key=lambda pair: found.loss(*pair))[0]


def bottom(curve: Sequence[tuple[float, float]]) -> float:
    """Return the rate at the bottom of a parabola, in log rate, near a curve's lowest point.

    Args:
        curve: rates, increasing by one factor, and losses; the lowest has a neighbour on each side.
    """
    lowest = min(range(len(curve)), key=lambda i: curve[i][1])
    (_, left), (rate, middle), (right_rate, right) = curve[lowest - 1 : lowest + 2]
    steps = (left - right) / (2 * (left - 2 * middle + right))  # from the middle one, -½ to ½
    return rate * (right_rate / rate) ** steps


def ruler(known: Sequence[tuple[float, float]], sizes: Collection[float]) -> Callable[..., float]:
    """Lay a straight line of loss against log N through some sizes, and return it.

    Args:
        known: parameters and loss of the runs; seeds of one size count as their mean.
        sizes: the parameters of those that count; through more than two goes the closest line.
    """
    reached = {n: [loss for size, loss in known if size == n] for n in sorted(sizes)}
    logs, means = [math.log(n) for n in reached], [statistics.mean(x) for x in reached.values()]
    slope, start = statistics.linear_regression(logs, means)
    return lambda n: start + slope * math.log(n)
