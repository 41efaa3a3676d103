"""Measurements of notebook 15: wrong gradients that train, what is kept, what gradients say."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import backward
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.measure.replaced import replaced
from smol_scratch.course.notebook import compare
from smol_scratch.model import SmolLM2, explicit_attention, fast_attention, rotate
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import TrainingState, train_step

_right = {name: getattr(backward, name) for name in vars(backward) if name.endswith("_backward")}


def _one_query(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's gradient, but keys and values hear from the first query of each group alone."""
    n = q.shape[1] // k.shape[1]
    dq, _, _ = _right["attention_backward"](dy, q, k, v)
    _, dk, dv = _right["attention_backward"](dy[:, ::n], q[:, ::n], k, v)
    return dq, dk, dv


# Bug: the function of ``backward`` that has it, and that function with the bug.
WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "rotated forward again, not back": (
        "rotate_backward", lambda dy, cos, sin: rotate(dy, cos, sin)
    ),
    "sum over the group forgotten": ("attention_backward", _one_query),
    "norm's second term left out": (
        "norm_backward",
        lambda dy, x, w, r: (r * w * dy, _right["norm_backward"](dy, x, w, r)[1]),
    ),
    "look-up's gradient lost": (
        "embedding_backward", lambda dx, idx, V: dx.new_zeros(V, dx.shape[-1])
    ),
    "not divided by the token count": (
        "cross_entropy_backward",
        lambda z, y, count: _right["cross_entropy_backward"](z, y, 1),
    ),
    "sigmoid's slope used for SiLU": (
        "gate_backward",
        lambda dp, gate, up: (
            dp * up * torch.sigmoid(gate) * (1 - torch.sigmoid(gate)),
            _right["gate_backward"](dp, gate, up)[1],
        ),
    ),
}  # fmt: skip


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Let ``backward`` have a bug of ``WRONG`` for as long as the ``with`` lasts; "right": none."""
    with replaced([backward], *WRONG[name]) if name in WRONG else nullcontext():
        yield


# Two checks that need no trust.

Plain = Callable[..., Tensor]
ByHand = Callable[..., tuple[Tensor, ...]]


def by_autograd(plain: Plain, inputs: Sequence[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """Return autograd's gradients of a function for each input, given that of its result."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(plain(*inputs), inputs, dy)


def by_differences(
    plain: Plain, inputs: Sequence[Tensor], dy: Tensor, h: float = 1e-5
) -> tuple[Tensor, ...]:
    """Measure the same gradients by moving each number of each input by ``h`` both ways."""
    slopes = [torch.zeros_like(tensor) for tensor in inputs]
    for number, into in enumerate(slopes):
        for i in range(into.numel()):
            ends = []
            for move in (h, -h):
                moved = [tensor.clone() for tensor in inputs]
                moved[number].view(-1)[i] += move
                ends.append((plain(*moved) * dy).sum())
            into.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
    return tuple(slopes)


def _row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def checked(label: str, plain: Plain, by_hand: ByHand, *inputs: Tensor) -> None:
    """Print two verdicts on gradients by hand: autograd in float32, differences in float64.

    Args:
        label: what is checked.
        plain: the forward function.
        by_hand: takes dy and the inputs, and returns their gradients.
        *inputs: in float32.
    """
    dy = torch.randn_like(plain(*inputs))
    compare(f"{label}: autograd", _row(by_hand(dy, *inputs)), _row(by_autograd(plain, inputs, dy)))
    up, *double = (tensor.double() for tensor in (dy, *inputs))
    # Moves of 1e-5 measure slopes of the order of one to about 1e-10; RoPE's tables are float32.
    ours, theirs = _row(by_hand(up, *double)), _row(by_differences(plain, double, up))
    compare(f"{label}: differences", ours, theirs, within=1e-8)


# For each function that a bug of ``WRONG`` is in: its forward function, how to call it, and inputs.
_ANGLES = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.5, 0.2, 0.1]))
_TARGETS = torch.tensor([3, 1, 7, 0, 10, 3])
_EXAMPLES: dict[str, tuple[Plain, ByHand, tuple[tuple[int, ...], ...]]] = {
    "rotate_backward": (
        lambda x: rotate(x, _ANGLES.cos(), _ANGLES.sin()),
        lambda dy, x: (backward.rotate_backward(dy, _ANGLES.cos(), _ANGLES.sin()),),
        ((1, 2, 5, 8),),
    ),
    "attention_backward": (
        fast_attention,
        lambda dy, q, k, v: backward.attention_backward(dy, q, k, v),
        ((1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)),
    ),
    "norm_backward": (
        lambda x, w: F.rms_norm(x, (8,), w, 1e-5),
        lambda dy, x, w: backward.norm_backward(dy, x, w, backward.inverse_rms(x, 1e-5)),
        ((3, 8), (8,)),
    ),
    "embedding_backward": (
        lambda table: F.embedding(_TARGETS, table),
        lambda dy, table: (backward.embedding_backward(dy, _TARGETS, 11),),
        ((11, 4),),
    ),
    "cross_entropy_backward": (
        lambda z: F.cross_entropy(z, _TARGETS),
        lambda dy, z: (dy * backward.cross_entropy_backward(z, _TARGETS, 6),),
        ((6, 11),),
    ),
    "gate_backward": (
        lambda gate, up: F.silu(gate) * up,
        lambda dp, gate, up: backward.gate_backward(dp, gate, up),
        ((3, 8), (3, 8)),
    ),
}


def verdicts(name: str) -> tuple[bool, bool]:
    """Say whether a bug of ``WRONG`` passes: by autograd, by differences; both in float64."""
    plain, by_hand, shapes = _EXAMPLES[WRONG[name][0] if name in WRONG else "gate_backward"]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]
    dy = torch.randn(plain(*inputs).shape, generator=generator, dtype=torch.double)
    with planted(name):
        ours = _row(by_hand(dy, *inputs))
    theirs, slopes = _row(by_autograd(plain, inputs, dy)), _row(by_differences(plain, inputs, dy))
    return torch.allclose(ours, theirs), torch.allclose(ours, slopes, atol=1e-8)


def small_model(seed: int) -> SmolLM2:
    """Return a fresh language model of characters: two blocks, 48 wide, groups of two queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmolLM2(
            SmolLM2Config(
                vocab_size=65, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=48,
                head_dim=12, intermediate_size=128, init_std=48**-0.5,
            )
        ).requires_grad_(False)  # fmt: skip


def _pieces(letters: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of 8 × 32 characters and those that come next, (B, T) each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(letters) - 33, (8, 1), generator=generator)
        batch = letters[starts + torch.arange(33)]  # (B, T + 1)
        yield batch[:, :-1], batch[:, 1:]


def trained(
    name: str, seed: int, letters: Tensor, *, rule: str = "AdamW", rate: float = 0.01,
    decay: float = 0.1, clip: float = 1.0, steps: int = 60,
) -> tuple[list[float], SmolLM2]:  # fmt: skip
    """Train a small model by hand, with a bug in its backward pass or without.

    Args:
        name: of ``WRONG``, or "right".
        seed: of weights and batches.
        letters: the text, as numbers.
        rule: "AdamW", or "SGD": straight down the gradient.
        rate: the learning rate.
        decay: weight decay of AdamW.
        clip: largest length of the gradient.
        steps: how many.

    Returns:
        The loss of each step, and the model.
    """
    model, batches = small_model(seed), _pieces(letters, seed)
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in model.named_parameters()}
    history = []
    with planted(name):
        for step in range(1, steps + 1):
            loss, grads = backward.loss_and_gradients(model, *next(batches))
            backward.clip_gradients(grads, clip)
            for n, weight in model.named_parameters():
                if rule == "SGD":
                    weight.sub_(grads[n], alpha=rate)
                    continue
                backward.adamw(
                    weight, grads[n], *moments[n], step,
                    rate=rate, decay=decay, beta1=0.9, beta2=0.95,
                )  # fmt: skip
            history.append(loss.item())
    return history, model


@dataclass
class Undivided:
    """What a gradient that is not divided by the token count does, clip undone, on three seeds.

    Attributes:
        apart: with AdamW, the largest distance of a loss from that of the right gradient.
        control: the highest last loss with plain gradient descent and the right gradient.
        peak: the highest loss of a run with plain gradient descent and the undivided gradient, in
            the run where that is lowest.
    """

    apart: float
    control: float
    peak: float


def undivided(letters: Tensor, rate: float = 0.1) -> Undivided:
    """Undo the clip, and train with a gradient that is not divided by the tokens, on three seeds.

    AdamW makes all 60 steps of the record, plain gradient descent 10.

    Args:
        letters: the text, as numbers.
        rate: of plain gradient descent, for the right gradient and for the wrong one.
    """
    bug, found = "not divided by the token count", Undivided(0.0, 0.0, math.inf)
    for seed in range(3):
        right, wrong = (trained(n, seed, letters, clip=1e9)[0] for n in ("right", bug))
        found.apart = max(found.apart, *(abs(a - b) for a, b in zip(right, wrong, strict=True)))
        right, wrong = (
            trained(n, seed, letters, rule="SGD", rate=rate, clip=1e9, steps=10)[0]
            for n in ("right", bug)
        )
        found.control, found.peak = max(found.control, right[-1]), min(found.peak, max(wrong))
    return found


@dataclass
class Rows:
    """What became of each row of the table, (65,) each.

    Attributes:
        counts: how often its character occurred in the text read.
        distance: how far the row is from its start.
        steadiness: length of the sum of its gradients over the sum of their lengths; 1 where all
            of them point the same way.
    """

    counts: Tensor
    distance: Tensor
    steadiness: Tensor


def rows_moved(rule: str, seed: int, letters: Tensor, steps: int = 60) -> Rows:
    """Train a small model; say how often each character occurred, and what its row did.

    Args:
        rule: "AdamW", without weight decay, or "SGD".
        seed: of weights and batches.
        letters: the text, as numbers.
        steps: how many.
    """
    batches, counts = _pieces(letters, seed), torch.zeros(65, dtype=torch.long)
    for _ in range(steps):
        counts += next(batches)[0].flatten().bincount(minlength=65)
    table = "model.embed_tokens.weight"
    total, lengths = torch.zeros(65, 48), torch.zeros(65)

    def look(grads: dict[str, Tensor], largest: float) -> None:  # and clip nothing
        nonlocal total, lengths
        total, lengths = total + grads[table], lengths + grads[table].norm(dim=1)

    rate = 0.003 if rule == "AdamW" else 0.3
    with replaced([backward], "clip_gradients", look):
        _, model = trained("right", seed, letters, rule=rule, rate=rate, decay=0.0, steps=steps)
    first, last = (m.get_parameter(table) for m in (small_model(seed), model))
    return Rows(counts, (last - first).norm(dim=1), total.norm(dim=1) / lengths)


# What is kept between the two passes.


def _kinds(found: Mapping[int, tuple[int, Tensor]], tokens: int) -> dict[str, float]:
    """Sort tensors that are kept by their numbers per token; add the numbers up."""
    rest = "keys, values and the rest"
    sums = dict.fromkeys(("logits", "MLP, 1,536 wide", "stream and attention, 576 wide", rest), 0.0)
    names = dict(zip((49_152, 1536, 576), sums, strict=False))
    for size, _ in found.values():
        each = size / 4 / tokens
        sums[names.get(round(each), rest)] += each
    return sums


def kept_by_autograd(model: SmolLM2, idx: Tensor, targets: Tensor) -> dict[str, float]:
    """Count what autograd keeps of one forward pass, weights and RoPE's tables aside.

    Each piece of memory counts once, however many operations refer to it.

    Args:
        model: of SmolLM2-135M's size.
        idx: (B, T).
        targets: (B, T).

    Returns:
        Kind to numbers per token.
    """
    own = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in own}
    found: dict[int, tuple[int, Tensor]] = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes(), tensor  # held, so no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        model(idx, targets)
    return _kinds(found, idx.numel())


@torch.no_grad()
def kept_by_hand(model: SmolLM2, idx: Tensor) -> dict[str, float]:
    """Count what ``model_forward`` keeps: kind to numbers per token."""
    x, kept = backward.model_forward(model, idx)
    tensors = [x, *(tensor for block in kept for tensor in block)]
    storages = {t.untyped_storage().data_ptr(): (t.untyped_storage().nbytes(), t) for t in tensors}
    return _kinds(storages, idx.numel())


def distances(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for each tensor the length of the difference, in units of its own length."""
    return {name: float((ours[name] - grad).norm() / grad.norm()) for name, grad in theirs.items()}


def autograds(
    model: SmolLM2, idx: Tensor, targets: Tensor, attend: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """Return autograd's gradients by name; ``attend`` takes the place of the fast attention."""
    inner: Any = model.model
    attentions = [block.self_attn for block in inner.layers]
    model.zero_grad()
    with replaced(attentions, "attend", attend) if attend else nullcontext():
        model(idx, targets)[1].backward()
    grads = {name: cast("Tensor", weight.grad) for name, weight in model.named_parameters()}
    model.zero_grad()
    return grads


def agrees(model: SmolLM2, idx: Tensor, targets: Tensor) -> bool:
    """Say whether all gradients by hand are within four noise floors of autograd's."""
    theirs = autograds(model, idx, targets)
    floor = distances(autograds(model, idx, targets, attend=explicit_attention), theirs)
    found = distances(backward.loss_and_gradients(model, idx, targets)[1], theirs)
    return all(found[name] <= 4 * floor[name] for name in theirs)


Pieces = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def losses_along(
    model: SmolLM2,
    pieces: Pieces,
    gradient: Callable[[SmolLM2, Pieces], Mapping[str, Tensor]],
    steps: int = 3,
    small: float = 0.1,
) -> list[float]:
    """Take a few steps of plain gradient descent; return the loss before them and after each.

    Args:
        model: to start from; it stays as it is.
        pieces: of one batch, (1, T) each; the loss is the mean over all targets that count.
        gradient: from model and pieces to a gradient for each parameter.
        steps: how many.
        small: by how much each step would lower the loss if the gradient were right.
    """
    model, losses = copy.deepcopy(model), []
    idx, targets = (torch.cat(part) for part in zip(*pieces, strict=True))
    for step in range(steps + 1):
        losses.append(float(model(idx, targets)[1]))
        if step < steps:
            grads = gradient(model, pieces)
            total = sum(float(grad.norm()) ** 2 for grad in grads.values())
            for name, weight in model.named_parameters():
                weight.sub_(grads[name], alpha=small / total)
    return losses


# One whole step.


@dataclass
class Step:
    """A training step of the whole model, made by ``train_step`` and by hand.

    Attributes:
        tensors: how many were trained.
        numbers: how many parameters they hold.
        losses: of the two.
        norms: of the two gradients.
        rate: the learning rate.
        apart: length of the difference between the two moves over that of the move, largest tensor.
        agree: share of all numbers whose moves agree within a hundredth of the rate.
        before: the norm weights before the step, in one row.
        after: and after it.
    """

    tensors: int
    numbers: int
    losses: tuple[float, float]
    norms: tuple[float, float]
    rate: float
    apart: float
    agree: float
    before: Tensor
    after: Tensor


def both_steps(model: SmolLM2, tokens: list[int], length: int) -> Step:
    """Make one training step from the same weights twice, by autograd and by hand.

    Args:
        model: the weights to start from; they stay as they are.
        tokens: the text.
        length: of the one sequence in the batch.
    """
    recipe = TrainingConfig(batch_size=1, sequence_length=length, precision="fp32")
    options = RunOptions(device="cpu", eval_interval=0, fast=False)

    def start() -> TrainingState:
        copied = copy.deepcopy(model).requires_grad_(True)
        return TrainingState.create(recipe, tokens, None, options, model=copied)

    state = start()
    theirs, (loss, rate, norm) = state.model, train_step(state)
    theirs.zero_grad()
    state = start()  # the first one's optimizer is gone: 1 GB
    ours = state.model
    our_loss, _, our_norm = backward.train_step_by_hand(state, backward.Moments())
    del state
    furthest, agree, numbers = 0.0, 0, 0
    ends: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad():
        triples = zip(model.parameters(), theirs.parameters(), ours.parameters(), strict=True)
        for old, their, our in triples:
            difference = (our - their).abs()
            furthest = max(furthest, float(difference.norm() / (their - old).norm()))
            agree += int((difference <= rate / 100).sum())
            numbers += old.numel()
            if old.ndim == 1:
                ends[0].append(old)
                ends[1].append(our.detach())
    return Step(
        len(list(model.parameters())), numbers, (loss, our_loss), (norm, our_norm), rate,
        furthest, agree / numbers, torch.cat(ends[0]), torch.cat(ends[1]),
    )  # fmt: skip


# What the gradients say.

SENTENCES = (
    "The capital of France is Paris, and the river that flows through it is the Seine.",
    "She closed the door quietly, so that nobody in the house would wake up.",
    "The committee postponed its decision until the auditors had read the report.",
    "A function that calls itself needs a case in which it stops.",
)

PARTS = {
    "table": "embed_tokens", "norms": "norm", "q, k": "q_proj|k_proj", "v, o": "v_proj|o_proj",
    "gate, up": "gate_proj|up_proj", "down": "down_proj",
}  # fmt: skip


def part_of(name: str) -> str:
    """Return the name in ``PARTS`` of a parameter."""
    return next(part for part, words in PARTS.items() if re.search(words, name))


@dataclass
class Learned:
    """Where the squared gradient of each sentence lies.

    Attributes:
        parts: share of each of ``PARTS``, (sentences, parts).
        layers: share of each layer, (sentences, layers).
        expected: by how much the loss falls when only one part takes a small step, to first order:
            (sentences, parts), in nats per token.
        measured: the same, measured.
    """

    parts: Tensor
    layers: Tensor
    expected: Tensor
    measured: Tensor


def learned(model: SmolLM2, tokenizer: SmolLM2Tokenizer, small: float = 0.02) -> Learned:
    """Compute each sentence's gradient, and try a small step of one part at a time.

    Args:
        model: real weights; they are as before afterwards.
        tokenizer: its own.
        small: how far the loss should fall, to first order, if all parts stepped together.
    """
    rows: tuple[list[Tensor], ...] = ([], [], [], [])
    for sentence in SENTENCES:
        ids = torch.tensor([tokenizer.encode(sentence)])
        loss, grads = backward.loss_and_gradients(model, ids[:, :-1], ids[:, 1:])
        squares = {name: float(grad.norm()) ** 2 for name, grad in grads.items()}
        total = sum(squares.values())
        by_part, by_layer = dict.fromkeys(PARTS, 0.0), [0.0] * model.config.n_layer
        for name, square in squares.items():
            by_part[part_of(name)] += square / total
            if layer := re.search(r"layers\.(\d+)\.", name):
                by_layer[int(layer[1])] += square / total
        falls = []
        for part in PARTS:
            named = [(w, grads[n]) for n, w in model.named_parameters() if part_of(n) == part]
            with torch.no_grad():
                for weight, grad in named:
                    weight.sub_(grad, alpha=small / total)
                falls.append(float(loss - model(ids[:, :-1], ids[:, 1:])[1]))
                for weight, grad in named:
                    weight.add_(grad, alpha=small / total)
        shares = torch.tensor(list(by_part.values()))
        for into, row in zip(
            rows, (shares, torch.tensor(by_layer), small * shares, torch.tensor(falls)),
            strict=True,
        ):  # fmt: skip
            into.append(row)
    return Learned(*(torch.stack(row) for row in rows))
