"""Checkers for notebook 10, training."""

from __future__ import annotations

import copy
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


def held_out(run: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a recorded run was validated, and its held-out losses there."""
    rows = [row for row in read_record(f"{run}.csv") if row["held_out_loss"] is not None]
    return [row["step"] for row in rows], [row["held_out_loss"] for row in rows]


@exercise
def check_stop(answer: Callable[[list[float], int], tuple[int, int]]) -> str:
    """Expect a function (losses, patience): which validation is the last, and which to keep."""
    cases = [
        ([5.0, 4.0, 3.0, 4.0, 5.0, 6.0, 7.0], 2),
        ([5.0, 4.0, 4.5, 3.0, 4.0, 5.0, 6.0], 2),
        ([5.0, 4.0, 3.0, 2.0], 3),
        ([5.0, 3.0, 4.0, 3.5, 3.2, 3.1], 3),
        ([3.0, 3.0, 3.0, 3.0], 2),
    ]
    long = {run: held_out(run) for run in ("full_run", "tenth_run")}
    cases += [(losses, patience) for _, losses in long.values() for patience in (1, 3, 7)]
    for losses, patience in cases:
        given, right = answer(list(losses), patience), _stop(losses, patience)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Hint("return two numbers: the validation that is the last, and the one to keep")
        found = tuple(given)
        case = f"patience {patience}, losses {losses}" if len(losses) < 10 else "a recorded run"
        if found == right:
            continue
        if found == (right[1], right[0]):
            raise Hint(f"{case}: the two are the other way round")
        if found in (_stop(losses, patience + 1), _stop(losses, patience - 1)):
            raise Hint(
                f"{case}: one too early or too late. The run ends at the validation that is the "
                f"{patience}th in a row without a new lowest"
            )
        if found == (right[0], right[0]):
            raise Hint(f"{case}: you keep the last weights; the lowest loss was earlier")
        if found == _stop(losses, patience, previous=True):
            raise Hint(f"{case}: compare with the lowest so far, not with the one before")
        if found == _stop(losses, patience, ties=True):
            raise Hint(f"{case}: a loss that is equal to the lowest is not lower")
        if found[0] == len(losses) - 1:
            raise Hint(f"{case}: the run should have ended before the list does")
        if found[1] in losses:
            raise Hint(f"{case}: return places in the list, not losses")
        raise Hint(f"{case}: {found} is not it")
    ends = [steps[_stop(losses, 3)[0]] for steps, losses in long.values()]
    return f"with a patience of 3 the long runs end at steps {ends[0]:,} and {ends[1]:,}"


def _stop(
    losses: list[float], patience: int, *, previous: bool = False, ties: bool = False
) -> tuple[int, int]:
    """Return the last validation and the lowest; the keywords are two common mistakes."""
    lowest = last = waited = 0
    for last in range(1, len(losses)):
        against = losses[last - 1] if previous else losses[lowest]
        better = losses[last] <= against if ties else losses[last] < against
        waited = 0 if better else waited + 1
        if better:
            lowest = last
        elif waited >= patience:
            break
    return last, lowest


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
        return f"correlation {fits[right]:.2f}: the resumed run had begun the text again"
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
