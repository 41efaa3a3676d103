"""The gradients written by hand: autograd's, finite differences', and a whole step's.

How near is near enough? For a part, the truth is autograd's result in float64. How far autograd's
own result in float32 is from it is the noise floor, and ours may be FACTOR times as far. For a
whole model the floor is measured as in ``checks.py``: the same function with its channels in
another order.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import SmolLM2, SmolLM2Config, backward, fast_attention, rotate
from smol_scratch.fast import _CrossEntropyFunction, _RMSNormFunction, accelerate
from smol_scratch.model import RotaryPositionalEmbedding
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.training import TrainingState, train_step
from tests.checks import FACTOR, SMALL, TooFarError, close, largest, nan_max, randomise, reordered

SMALL = dataclasses.replace(SMALL, dropout=0.0)


# The parts: name to the plain form, the hand-written gradient, and the shapes of the inputs.

EPS = 1e-5
_rope = RotaryPositionalEmbedding(8, 13)
TARGETS = torch.tensor([3, -100, 7, 0, 10, -100, 3])
IDX = torch.tensor([[3, 1, 3], [0, 3, 10]])


def norm_by_hand(b, dy, x, weight):
    return b.norm_backward(dy, x, weight, b.inverse_rms(x, EPS))


PARTS = {
    "linear": (
        lambda x, w: F.linear(x, w),
        lambda b, dy, x, w: b.linear_backward(dy, x, w),
        [(2, 5, 12), (7, 12)],
    ),
    "norm": (lambda x, w: F.rms_norm(x, (12,), w, EPS), norm_by_hand, [(2, 5, 12), (12,)]),
    "rotation": (
        lambda x: rotate(x, _rope.cos, _rope.sin),
        lambda b, dy, x: (b.rotate_backward(dy, _rope.cos, _rope.sin),),
        [(2, 3, 13, 8)],
    ),
    "attention": (
        fast_attention,
        lambda b, dy, q, k, v: b.attention_backward(dy, q, k, v),
        [(2, 6, 13, 8), (2, 2, 13, 8), (2, 2, 13, 8)],
    ),
    "one head for each query": (
        fast_attention,
        lambda b, dy, q, k, v: b.attention_backward(dy, q, k, v),
        [(2, 3, 7, 6)] * 3,
    ),
    "gate": (
        lambda gate, up: F.silu(gate) * up,
        lambda b, dy, gate, up: b.gate_backward(dy, gate, up),
        [(2, 5, 9), (2, 5, 9)],
    ),
    "cross-entropy": (
        lambda z: F.cross_entropy(z, TARGETS),
        lambda b, dy, z: (dy * b.cross_entropy_backward(z, TARGETS, 5),),
        [(7, 11)],
    ),
    "head": (
        lambda x, w: F.cross_entropy(F.linear(x, w), TARGETS),
        lambda b, dy, x, w: tuple(dy * d for d in b.head_backward(x, w, TARGETS, rows=3)[1:]),
        [(7, 12), (11, 12)],
    ),
    "embedding": (
        lambda table: F.embedding(IDX, table),
        lambda b, dy, table: (b.embedding_backward(dy, IDX, len(table)),),
        [(11, 12)],
    ),
}


def example(part: str) -> tuple[list[Tensor], Tensor]:
    """Inputs (norm weights not one, since normal), and a gradient that comes from above."""
    torch.manual_seed(0)
    plain, _, shapes = PARTS[part]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return inputs, torch.randn_like(plain(*inputs))


def by_autograd(part: str, inputs: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(PARTS[part][0](*inputs), inputs, dy)


def equals_autograd(b: ModuleType, part: str) -> None:
    """In float32 within the noise of float32, in float64 within as many units of float64."""
    inputs, dy = example(part)
    exact = by_autograd(part, inputs, dy)
    short = [tensor.float() for tensor in inputs]
    for number, truth in enumerate(exact):
        theirs = by_autograd(part, short, dy.float())[number]
        floor = max(largest(theirs - truth), largest(truth) * torch.finfo(torch.float32).eps)
        ours = PARTS[part][1](b, dy.float(), *short)[number]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        close(f"{part}, {number}", largest(ours - truth), floor)
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        ours = PARTS[part][1](b, dy, *inputs)[number]
        close(f"{part}, {number}, in float64", largest(ours - truth), floor * ratio)


def equals_finite_differences(b: ModuleType, part: str) -> None:
    """Each number of each input moved a little both ways, in float64.

    The floor is what half as large a move changes in the result, and what rounding makes of it.
    """
    inputs, dy = example(part)
    plain, by_hand, _ = PARTS[part]

    def measured(number: int, h: float) -> Tensor:
        slopes = torch.zeros_like(inputs[number])
        for i in range(slopes.numel()):
            ends = []
            for move in (h, -h):
                moved = [tensor.clone() for tensor in inputs]
                moved[number].view(-1)[i] += move
                ends.append((plain(*moved) * dy).sum())
            slopes.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
        return slopes

    ours = by_hand(b, dy, *inputs)
    size = float((plain(*inputs) * dy).abs().sum())
    for number, gradient in enumerate(ours):
        coarse, fine = (measured(number, h) for h in (1e-4, 5e-5))
        floor = largest(coarse - fine) + size * torch.finfo(torch.float64).eps / 1e-4
        close(f"{part}, {number}, against differences", largest(gradient - fine), floor)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_autograds(part):
    equals_autograd(backward, part)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_finite_differences_measure(part):
    equals_finite_differences(backward, part)


def test_the_backward_pass_of_the_pencil_example():
    """x = 3, gate 2x, up x, no bend: y = x + 2x², so dy/dx = 1 + 4x = 13."""
    x, w = torch.tensor([[3.0]]), torch.tensor([[2.0]])
    gate, up, dy = x @ w.T, x.clone(), torch.ones(1, 1)
    dgate, dup = dy * up, dy * gate
    dx, dw = backward.linear_backward(dgate, x, w)
    assert (dy + dx + dup).item() == 13
    assert dw.item() == 9


# The whole model


def models(config: SmolLM2Config = SMALL, seed: int = 0):
    """A model with every weight random, tokens, and targets of which some do not count."""
    torch.manual_seed(seed)
    model = SmolLM2(config)
    randomise(model)
    idx, targets = torch.randint(config.vocab_size, (2, 2, 13))
    targets[0, :4] = -100
    return model, idx, targets


def autograds(model: SmolLM2, idx: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(idx, targets)[1]
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def whole_equals_autograd(b: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0):
    """Loss and all gradients; the floor is the same model with its channels in another order."""
    model, idx, targets = models(config, seed)
    channels, hidden = torch.randperm(config.n_embd), torch.randperm(config.intermediate_size)
    other = copy.deepcopy(model)
    for name, weight in other.named_parameters():
        weight.data = reordered(name, weight.data, channels, hidden)
    loss, theirs = autograds(model, idx, targets)
    again, permuted = autograds(other, idx, targets)
    found, ours = b.loss_and_gradients(model, idx, targets)
    unit = torch.finfo(torch.float32).eps * loss.item()
    close("loss", largest(found - loss), max(largest(again - loss), unit))
    assert list(ours) == list(theirs)
    floors, differences = [], []
    for name, truth in theirs.items():
        assert ours[name].shape == truth.shape
        moved = reordered(name, truth, channels, hidden)
        floors.append(largest(permuted[name] - moved) / largest(truth))
        differences.append(largest(ours[name] - truth) / largest(truth))
    return close("gradients", nan_max(differences), nan_max(floors))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_all_gradients_are_autograds(tied, seed):
    whole_equals_autograd(backward, dataclasses.replace(SMALL, tie_embeddings=tied), seed)


def test_all_gradients_are_what_finite_differences_measure():
    """In float64: for each tensor, all of it moved along its gradient and along a random line."""
    model, idx, targets = models()
    model.double().requires_grad_(False)
    _, grads = backward.loss_and_gradients(model, idx, targets)

    def loss() -> float:
        return float(backward.loss_and_gradients(model, idx, targets)[0])

    for name, weight in model.named_parameters():
        for line in (grads[name] / grads[name].norm(), torch.randn_like(weight)):
            line = line / line.norm()
            start, slopes = weight.clone(), []
            for h in (1e-4, 5e-5):
                ends = [float(weight.copy_(start + move * line).new_tensor(loss()))
                        for move in (h, -h)]  # fmt: skip
                slopes.append((ends[0] - ends[1]) / (2 * h))
            weight.copy_(start)
            unit = 5 * torch.finfo(torch.float64).eps / 1e-4  # the loss is about 5
            floor = abs(slopes[0] - slopes[1]) + unit
            close(name, abs(float((grads[name] * line).sum()) - slopes[1]), floor)


def test_accelerated_models_and_frozen_ones_have_the_same_gradients():
    model, idx, targets = models()
    _, plain = backward.loss_and_gradients(model, idx, targets)
    accelerate(model)
    model.requires_grad_(False)
    _, again = backward.loss_and_gradients(model, idx, targets)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_what_is_kept_is_freed_on_the_way_back():
    model, idx, targets = models()
    with torch.no_grad():
        x, kept = backward.model_forward(model, idx)
        assert len(kept) == SMALL.n_layer
        backward.model_backward(model, idx, targets, x, kept)
    assert kept == []


def test_what_cannot_be_done_by_hand_is_refused():
    model, idx, targets = models(dataclasses.replace(SMALL, dropout=0.1))
    with pytest.raises(ValueError, match=r"dropout=0\.1: not done by hand"):
        backward.loss_and_gradients(model.train(), idx, targets)
    backward.loss_and_gradients(model.eval(), idx, targets)
    with pytest.raises(ValueError, match=r"bfloat16: the backward pass by hand takes model\.float"):
        backward.loss_and_gradients(model.bfloat16(), idx, targets)
    with pytest.raises(ValueError, match="token 61: must lie between 0 and 60"):
        backward.loss_and_gradients(model.float(), idx * 0 + 61, targets)


def test_the_quicker_forms_say_the_same_as_the_readable_ones():
    """``fast.py`` writes the same two gradients in place: twice as quick, and harder to read."""
    torch.manual_seed(0)
    x, dy, weight = torch.randn(2, 5, 12), torch.randn(2, 5, 12), torch.randn(12)
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    quick = torch.autograd.grad(_RMSNormFunction.apply(*inputs, EPS, None), inputs, dy)
    ours = norm_by_hand(backward, dy, x.detach(), weight.detach())
    logits = torch.randn(7, 11, requires_grad=True)
    quick += torch.autograd.grad(_CrossEntropyFunction.apply(logits, TARGETS), [logits])
    ours += (backward.cross_entropy_backward(logits.detach(), TARGETS, 5),)
    for one, other in zip(ours, quick, strict=True):
        close("quick", largest(one - other), largest(other) * torch.finfo(torch.float32).eps)


# The step

RECIPE = TrainingConfig(
    steps=20, block_size=16, batch_size=2, sequence_length=8, learning_rate=1e-2,
    min_learning_rate=1e-3, warmup_steps=3, precision="fp32",
)  # fmt: skip
TEXT = [(7 * i * i + 3 * i) % 61 for i in range(5 * 16 + 1)]


def a_run(*, quick: bool = False, **changes: object) -> TrainingState:
    model, *_ = models()
    recipe = dataclasses.replace(RECIPE, **changes)
    options = RunOptions(device="cpu", eval_interval=0, fast=quick)
    return TrainingState.create(recipe, TEXT, None, options, model=model)


def steps_equal_train_steps(b: ModuleType, steps: int = 3, **changes: object) -> None:
    """Loss, rate, norm, and how each tensor moved: length of the difference over that of the move.

    The floor is the same run with the quicker forms of ``fast.py``. Lengths, not largest numbers:
    AdamW divides each number's gradient by its own size, so where a gradient is next to nothing its
    rounding decides which way that number goes.
    """
    theirs, again, ours = a_run(**changes), a_run(quick=True, **changes), a_run(**changes)
    ours.model.requires_grad_(False)
    before, moments = copy.deepcopy(dict(ours.model.named_parameters())), b.Moments()
    compared: list[tuple[str, float, float]] = []
    for _ in range(steps):
        expected, other = train_step(theirs), train_step(again)
        found = b.train_step_by_hand(ours, moments)
        assert found[1] == expected[1]
        # A length is a sum of up to 48 · 80 squares: some sixty units of float32's rounding.
        for i, what in ((0, "loss"), (2, "norm")):
            unit = 62 * torch.finfo(torch.float32).eps * expected[i]
            floor = max(abs(other[i] - expected[i]), unit)
            compared.append((what, abs(found[i] - expected[i]), floor))
    assert (ours.step, ours.loader.state_dict()) == (theirs.step, theirs.loader.state_dict())
    others, mine = again.model.state_dict(), ours.model.state_dict()
    differences, floors = [], []
    for name, weight in theirs.model.state_dict().items():
        length = float((weight - before[name]).norm())
        assert length > 0, name
        differences.append(float((mine[name] - weight).norm()) / length)
        floors.append(float((others[name] - weight).norm()) / length)
    assert max(floors) < 1e-2
    compared.append(("moves", nan_max(differences), nan_max(floors)))
    for one in sorted(compared, key=lambda one: one[1] / one[2], reverse=True):  # the worst speaks
        close(*one)


CHANGES = [{}, {"accumulate": 3}, {"clip": 0.1}, {"clip": 1e6}, {"decay_matrices_only": True}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_steps_by_hand_are_train_steps(changes):
    steps_equal_train_steps(backward, **changes)


def test_a_step_that_diverges_changes_nothing():
    run, moments = a_run(), backward.Moments()
    run.model.model.norm.weight.data[0] = torch.nan
    before, place = copy.deepcopy(run.model.state_dict()), run.loader.state_dict()
    with pytest.raises(ArithmeticError, match="step 0: loss nan"):
        backward.train_step_by_hand(run, moments)
    assert (run.step, run.loader.state_dict(), moments.mean) == (0, place, {})
    after = run.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "model.norm.weight")


def test_a_run_in_16_bits_is_refused():
    run = a_run()
    run.precision = SimpleNamespace(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 on 1 device"):
        backward.train_step_by_hand(run, backward.Moments())


# Planted bugs: each is caught by the check of its part, or, where it has none, by the whole's.

BUGS = {
    "linear: first token only": (
        "linear", ".T @ x.flatten(0, -2)", "[:1].T @ x.flatten(0, -2)[:1]"
    ),
    "norm: projection left out": (
        "norm", "dx = r * (dn - n * (dn * n).mean(-1, keepdim=True))", "dx = r * dn"
    ),
    "norm: mean over all tokens": ("norm", "(dn * n).mean(-1, keepdim=True)", "(dn * n).mean()"),
    "norm: its weight forgotten": ("norm", "dn = dy * weight", "dn = dy"),
    "rotation: turned on": ("rotation", "rotate(dy, cos, -sin)", "rotate(dy, cos, sin)"),
    "attention: sum over the group forgotten": (
        "attention", ".view(B, G, H // G, T, D).sum(2)", ".view(B, G, H // G, T, D)[:, :, 0]"
    ),
    "attention: groups interleaved": (
        "attention", ".view(B, G, H // G, T, D).sum(2)", ".view(B, H // G, G, T, D).sum(1)"
    ),
    "attention: softmax's sum left out": (
        "attention", "(dP - (P * dP).sum(-1, keepdim=True))", "dP"
    ),
    "attention: scale forgotten": (
        "attention", ".sum(-1, keepdim=True)) * D**-0.5", ".sum(-1, keepdim=True))"
    ),
    "attention: not causal": ("attention", "~causal_mask(T, T, q.device)", "S.isnan()"),
    "gate: slope of the sigmoid": ("gate", "s * (1 + gate * (1 - s))", "s * (1 - s)"),
    "gate: gradients exchanged": ("gate", "return dgate, dup", "return dup, dgate"),
    "cross-entropy: divided by all tokens": (
        "cross-entropy", "dtype) / count)", "dtype) / len(valid))"
    ),
    "cross-entropy: 1 / (B T) missing": ("cross-entropy", "dtype) / count)", "dtype))"),
    "cross-entropy: what does not count counts": (
        "cross-entropy", "dtype) / count)", "dtype) * 0 + 1 / count)"
    ),
    "cross-entropy: target not subtracted": ("cross-entropy", "] -= 1", "] -= 0"),
    "head: last rows only": ("head alone", "dweight += dw", "dweight = dw"),
    "embedding: a repeated token counted once": (
        "embedding",
        "dtable.index_add_(0, idx.flatten(), dx.flatten(0, -2))",
        "dtable.index_copy_(0, idx.flatten(), dx.flatten(0, -2))",
    ),
    "table: second use missing": ("whole", "grads[first] + dtable if", "grads[first] if"),
    "table: first use missing": (
        "whole", "grads[first] + dtable if first in grads else dtable", "dtable"
    ),
    "stream: beside the MLP forgotten": ("whole", "dh = dout + dh", "dh = dh"),
    "stream: beside attention forgotten": ("whole", "return dh + dx, grads", "return dx, grads"),
    "block: one reading forgotten": ("whole", "norm_backward(db + more,", "norm_backward(db,"),
    "block: values alone": ("whole", "da = da + more", "da = more"),
    "block: rotation not undone": (
        "whole", "dq, dk = rotate_backward(dq, cos, sin), rotate_backward(dk, cos, sin)", "pass"
    ),
    "clip: each tensor for itself": (
        "step", "largest / (norm + 1e-6)", "largest / (float(grad.norm()) + 1e-6)"
    ),
    "AdamW: moments not corrected": ("step", "(1 - beta2**step)", "1"),
    "AdamW: betas exchanged": (
        "step", "beta1=config.beta1, beta2=config.beta2", "beta1=config.beta2, beta2=config.beta1"
    ),
    "clip: none": ("step", "min(1.0, largest / (norm + 1e-6))", "1.0"),
    "AdamW: decay as part of the gradient": (
        "step", "mean.mul_(beta1)", "grad = grad + decay * weight; mean.mul_(beta1)"
    ),
    "AdamW: the norms shrink too": ("step", "if decays else 0.0", "if True else 0.0"),
    "step: accumulated, not averaged": ("step", "grad /= config.accumulate", "grad /= 1"),
}  # fmt: skip


def plant(old: str, new: str) -> ModuleType:
    source = Path(backward.__file__).read_text("utf-8")
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    module = ModuleType("backward_with_a_bug")
    module.__dict__["__name__"] = "smol_scratch.backward"  # where dataclasses look for it
    exec(compile(source.replace(old, new), "<planted>", "exec"), module.__dict__)
    return module


def some_steps(b: ModuleType) -> None:
    """Steps whose clip, decay and accumulation matter; at a rate at which decay is seen."""
    changes = {"accumulate": 3, "clip": 0.1, "decay_matrices_only": True, "weight_decay": 10.0}
    steps_equal_train_steps(b, **changes)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name):
    check, old, new = BUGS[name]
    module, (part, *alone) = plant(old, new), check.split()
    checks = {"whole": whole_equals_autograd, "step": some_steps}
    with pytest.raises(TooFarError) as caught:
        checks.get(part, lambda b: equals_autograd(b, part))(module)
    assert caught.value.measured.ratio > 3 * FACTOR  # far from the tolerance
    if part in PARTS:
        with pytest.raises(TooFarError):
            equals_finite_differences(module, part)
        if not alone:  # the small model has fewer tokens than the head takes at a time
            with pytest.raises(TooFarError):
                whole_equals_autograd(module)


def test_the_copy_without_a_bug_passes():
    module = plant("ROWS = 256", "ROWS = 5")
    for part in PARTS:
        equals_autograd(module, part)
    whole_equals_autograd(module)
    some_steps(module)
