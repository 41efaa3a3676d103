"""Checkers for notebook 10, training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.notebook import read_record
from smol_scratch.model import SmolLM2
from smol_scratch.recipe import TrainingConfig
from smol_scratch.training import RunOptions, TrainingState, train


@exercise
def check_first_loss(answer: float) -> str:
    """Expect the loss before any training of the full width with weights of standard deviation 1.

    One layer stands for thirty: the last norm hides how many there were.
    """
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, in nats per token")
    config = SmolLM2Config(n_layer=1, init_std=1.0, block_size=128)
    torch.manual_seed(0)
    model = SmolLM2(config)
    idx = torch.randint(config.vocab_size, (1, 129))
    with torch.no_grad():
        measured = model(idx[:, :-1], idx[:, 1:])[1].item()
    variance = config.n_embd * config.init_std**2
    if abs(answer - math.log(config.vocab_size)) < 0.3:
        raise Hint("so much costs knowing nothing. This model is wrong with conviction: how large "
                   "are its logits?")  # fmt: skip
    if abs(answer - math.log(config.vocab_size) - variance / 2) < 3:
        raise Hint(
            "σ²/2 holds as long as many tokens share the sum under the logarithm. With σ = 24 one "
            "of them is the sum: how large is the largest of 49,152 normal numbers?"
        )
    if abs(answer - math.sqrt(variance)) < 2:
        raise Hint("so large is a common logit; the softmax goes by the largest of 49,152")
    if not 0.75 * measured < answer < 1.35 * measured:
        raise Hint("not within a third of what is measured")
    return f"measured {measured:.0f}: the largest logit, which belongs to the wrong token"


@exercise
def check_accumulate(
    answer: Callable[[torch.nn.Module, Tensor, Tensor, list[int]], float],
) -> str:
    """Expect a function (model, x, y, sizes) that leaves the whole batch's gradient behind."""
    model, idx = _small_model(), torch.randint(40, (6, 9), generator=_seeded(1))
    x, y = idx[:, :-1], idx[:, 1:]
    loss = model(x, y)[1]
    loss.backward()
    expected = _gradient(model)
    for sizes in ([6], [3, 3], [2, 2, 2], [1, 5], [3, 1, 2]):
        model.zero_grad()
        found = answer(model, x, y, sizes)
        if any(w.grad is None for w in model.parameters()):
            raise Hint(f"pieces of {sizes}: some weights have no gradient; call backward()")
        gradient = _gradient(model)
        case = f"pieces of {sizes} sequences"
        if not torch.allclose(gradient, expected, atol=1e-6):
            ratio = (gradient @ expected / expected.square().sum()).item()
            if abs(ratio - len(sizes)) < 0.05 and len(sizes) > 1:
                raise Hint(
                    f"{case}: the gradient is {ratio:.1f} times too long; the loss of the whole "
                    "is a mean, and backward() adds up"
                )
            if len(set(sizes)) > 1:
                raise Hint(
                    f"{case}: close, but a mean of means is not the mean. How much of the whole "
                    "is each piece?"
                )
            raise Hint(f"{case}: the gradient is another one than that of the whole batch")
        if found is None:
            raise Hint(f"{case}: the gradient is right; return the loss of the whole batch as well")
        if abs(float(found) - loss.item()) > 1e-5:
            raise Hint(f"{case}: the gradient is right, the loss {float(found):.4f} is not")
    return "pieces weigh as much as they hold, and the update cannot tell"


@exercise
def check_resume(answer: Callable[[TrainingState, dict[str, Any]], None]) -> str:
    """Expect a function (state, saved) that makes a new state go on as the saved one would."""
    before = _small_state()
    list(train(before, 5))
    saved = {
        "weights": copy.deepcopy(before.model.state_dict()),
        "optimizer": copy.deepcopy(before.optimizer.state_dict()),
        "loader": before.loader.state_dict(),
        "generator": torch.get_rng_state(),
        "step": before.step,
    }
    straight = list(train(before, 10))

    after = _small_state()
    torch.manual_seed(99)
    answer(after, saved)
    for what, found, expected in (
        ("step", after.step, saved["step"]),
        ("place in the text", after.loader.state_dict(), saved["loader"]),
    ):
        if found != expected:
            raise Hint(f"the {what} is {found} instead of {expected}")
    for name, weight in after.model.state_dict().items():
        if not torch.equal(weight, saved["weights"][name]):
            raise Hint(f"the weights are other ones, {name} for instance")
    moments = after.optimizer.state_dict()["state"]
    if not moments:
        raise Hint("the optimizer begins anew: its two means are zero")
    for number, parts in saved["optimizer"]["state"].items():
        if not all(torch.equal(moments[number][part], parts[part]) for part in parts):
            raise Hint("the optimizer's means are other ones")
    if not torch.equal(torch.get_rng_state(), saved["generator"]):
        raise Hint(
            "the random number generator is elsewhere: dropout will drop other weights. A seed is "
            "where a generator began, its state is where it is"
        )
    again = list(train(after, 10))
    if [row.loss for row in again] != [row.loss for row in straight]:
        raise Hint("all is restored, and still the losses differ: does the state use what you set?")
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    if not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise Hint("the losses are equal and the weights at the end are not")
    return "five steps more, and every bit is where it would have been"


def fifteenth_pass() -> Tensor:
    """Return the recorded run's losses at the 333 batches of its fifteenth pass, in order."""
    rows = [row for row in read_record("full_run.csv") if row["loss"] is not None]
    losses = {row["step"]: row["loss"] for row in rows}
    return torch.tensor([losses[14 * 333 + batch] for batch in range(333)], dtype=torch.float64)


def last_lines() -> tuple[Tensor, Tensor]:
    """Return the ten steps that the original project logged after its resume, and their losses."""
    rows = [row for row in read_record("description_log.csv") if row["step"] > 5_000]
    losses = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    return torch.tensor([row["step"] for row in rows]), losses


@exercise
def check_batch(answer: int) -> str:
    """Expect the batch of a pass that the original project's step 5,001 read."""
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != int(answer):
        raise Hint("answer with one whole number, a batch from 0 to 332")
    mine, (steps, theirs) = fifteenth_pass(), last_lines()
    later = steps - steps[0]
    if not 0 <= answer < len(mine) - int(later[-1]):
        raise Hint("all ten batches must fit into the pass: 0 to 288")
    fits = [
        torch.corrcoef(torch.stack((mine[b + later], theirs)))[0, 1].item()
        for b in range(len(mine) - int(later[-1]))
    ]
    right = max(range(len(fits)), key=fits.__getitem__)
    if answer == right:
        return "the resumed run had begun the text again at its first token"
    if answer == 6:
        raise Hint(f"a loader that went on would read it; but the correlation is {fits[6]:.2f}")
    if answer == 0:
        raise Hint("nearly: the first of the ten lines is of step 5,001, not 5,000")
    raise Hint(f"their correlation is {fits[int(answer)]:.2f}; another batch fits much better")


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _small_model(dropout: float = 0.0) -> SmolLM2:
    config = SmolLM2Config(
        block_size=16, vocab_size=40, n_layer=2, n_head=2, n_kv_head=1, n_embd=16,
        intermediate_size=24, head_dim=8, init_std=0.2, dropout=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    return SmolLM2(config)


def _small_state() -> TrainingState:
    """Return a state with dropout and a text of seven batches, so that ten steps cross its end."""
    config = TrainingConfig(
        steps=20, batch_size=2, sequence_length=8, block_size=16, warmup_steps=3, dropout=0.2,
        learning_rate=1e-2, min_learning_rate=1e-3, precision="fp32",
    )  # fmt: skip
    tokens = torch.randint(40, (7 * 16 + 1,), generator=_seeded(2))
    options = RunOptions(device="cpu", eval_interval=0, fast=False)
    return TrainingState.create(config, tokens, None, options, model=_small_model(dropout=0.2))


def _gradient(model: torch.nn.Module) -> Tensor:
    gradients = [w.grad.flatten() for w in model.parameters() if w.grad is not None]
    return torch.cat(gradients).clone()
