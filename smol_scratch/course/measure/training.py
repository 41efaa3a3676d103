"""What notebook 10 measures: one batch again and again, broken resumes, pages in another order.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.checkpoint import load_checkpoint
from smol_scratch.config import SmolLM2Config
from smol_scratch.data import DataLoaderLite
from smol_scratch.evaluation import longest_copies, mean_loss
from smol_scratch.model import SmolLM2
from smol_scratch.recipe import TrainingConfig
from smol_scratch.training import RunOptions, TrainingState, train

# Two blocks and a vocabulary of 1,024 tokens: a step takes a few hundredths of a second.
SMALL = SmolLM2Config(
    block_size=256, vocab_size=1024, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
    intermediate_size=192, head_dim=16, init_std=64**-0.5,
)  # fmt: skip
B, T = 4, 256
# A short run of it.
RECIPE = TrainingConfig(
    batch_size=4, sequence_length=64, block_size=256, steps=60, warmup_steps=10,
    learning_rate=3e-3, min_learning_rate=3e-4, precision="fp32",
)  # fmt: skip
QUIET = RunOptions(device="cpu", eval_interval=0)


def begin(
    recipe: TrainingConfig, tokens: Sequence[int], held_out: Sequence[int] | None = None
) -> TrainingState:
    """Return a run of the small model before its first step."""
    torch.manual_seed(recipe.seed)
    shape = replace(SMALL, init_std=0.02, dropout=recipe.dropout)
    return TrainingState.create(recipe, tokens, held_out, QUIET, model=SmolLM2(shape))


def overfit(state: TrainingState, x: Tensor, y: Tensor, steps: int = 120) -> list[float]:
    """Train on one batch (B, T) again and again; return the loss before each update."""
    losses = []
    for _ in range(steps):
        loss = state.model(x, y)[1]
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
    return losses


def sees_the_future(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Attend without the causal mask: the bug."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def one_batch_cases(
    tokens: Sequence[int],
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Overfit one batch in five cases, two of them sound and three with a bug.

    Returns:
        Of each case its losses, and its loss on the next batch afterwards.
    """
    plain = replace(RECIPE, clip=1e9, lr_schedule=False)
    loader = DataLoaderLite(tokens, B=2, T=64)
    (x, y), (next_x, next_y) = loader.next_batch(), loader.next_batch()
    noise, next_noise = torch.randint(
        1024, (2, 2, 64), generator=torch.Generator().manual_seed(0)
    ).unbind()
    cases = {
        "sound, on the text": (begin(plain, tokens), y, next_y),
        "sound, random targets": (begin(plain, tokens), noise, next_noise),
        "bug: no causal mask": (begin(plain, tokens), y, next_y),
        "bug: target is the input": (begin(plain, tokens), x, next_x),
        "bug: optimizer holds copies": (begin(plain, tokens), y, next_y),
    }
    for block in cases["bug: no causal mask"][0].model.model.layers:
        block.self_attn.attend = sees_the_future
    frozen = cases["bug: optimizer holds copies"][0]
    copies = [w.detach().clone() for w in frozen.model.parameters()]
    frozen.optimizer = torch.optim.AdamW(copies, lr=3e-3)
    curves = {name: overfit(state, x, target) for name, (state, target, _) in cases.items()}
    with torch.no_grad():
        elsewhere = {
            name: state.model(next_x, target)[1].item()
            for name, (state, _, target) in cases.items()
        }
    return curves, elsewhere


def weights_of(state: TrainingState) -> Tensor:
    """Return all weights as one long vector."""
    return torch.nn.utils.parameters_to_vector(state.model.parameters()).detach().clone()


def fingerprint(state: TrainingState) -> str:
    """Return the SHA-256 of all weights: change one bit, and it is another."""
    return hashlib.sha256(weights_of(state).numpy().tobytes()).hexdigest()


def _lose_optimizer(state: TrainingState) -> None:
    state.optimizer.state.clear()


def _lose_generator(state: TrainingState) -> None:
    torch.manual_seed(state.config.seed)  # where it began, not where it was


def _lose_place(state: TrainingState) -> None:
    start = state.loader.state_dict() | {"position": 0, "passes": 0}
    state.loader.load_state_dict(start)


def _lose_step(state: TrainingState) -> None:
    state.step = 0


@torch.no_grad()
def _round_weights(state: TrainingState) -> None:
    for w in state.model.parameters():
        w.copy_(w.half())


LOSSES: dict[str, Callable[[TrainingState], None]] = {
    "AdamW's means": _lose_optimizer,
    "the generator": _lose_generator,
    "the place in the text": _lose_place,
    "the step": _lose_step,
    "weights' last bits (fp16)": _round_weights,
}


class Resumed(NamedTuple):
    """What came of a resume: losses, logged rates, the final weights, their fingerprint."""

    losses: list[float]
    rates: list[float]
    weights: Tensor
    sha256: str


def resume(folder: Path, tokens: Sequence[int], lost: str | None, steps: int = 40) -> Resumed:
    """Go on from a checkpoint, after something of it has been lost.

    Args:
        folder: the checkpoint.
        tokens: the training text.
        lost: a name of ``LOSSES``, or None.
        steps: how many more.
    """
    torch.manual_seed(999)  # another process: PyTorch's generator is anywhere
    state = load_checkpoint(folder, tokens)
    if lost is not None:
        LOSSES[lost](state)
    rows = list(train(state, state.step + steps))
    return Resumed(
        [row.loss for row in rows],
        [row.learning_rate for row in rows],
        weights_of(state),
        fingerprint(state),
    )


def batches(tokens: Sequence[int], order: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (B, T) and their targets without end, a whole pass after the other.

    Args:
        tokens: the text.
        order: "in order", as the original project's loader goes; or "shuffled", where each pass
            deals the same sequences out anew.
        seed: of the shuffling.
    """
    ids = torch.tensor(tokens)
    rows = (len(ids) - 1) // T // B * B  # sequences, in whole batches
    x, y = ids[: rows * T].view(rows, T), ids[1 : rows * T + 1].view(rows, T)
    generator = torch.Generator().manual_seed(seed)
    while True:
        places = torch.arange(rows)
        if order == "shuffled":
            places = torch.randperm(rows, generator=generator)
        for part in places.split(B):
            yield x[part], y[part]


def read_in_order(
    order: str, seed: int, tokens: Sequence[int], held_out: Tensor, steps: int, every: int = 10
) -> Iterator[tuple[int, float, float | None]]:
    """Train the small model at one learning rate, and yield step, loss and held-out loss.

    Args:
        order: of the sequences, as in ``batches``.
        seed: of the first weights and of the shuffling.
        tokens: the text, in the vocabulary of ``SMALL``.
        held_out: (sequences, T + 1), never trained on.
        steps: updates.
        every: how many steps lie between two validations; None is yielded in between.
    """
    torch.manual_seed(seed)
    model = SmolLM2(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), fused=True)
    for step, (x, y) in zip(range(steps), batches(tokens, order, seed), strict=False):
        seen = mean_loss(model, held_out, len(held_out)) if step % every == 0 else None
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 50, 1.0)
        loss = model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step, loss.item(), seen


def spoken(text: str) -> str:
    """Leave out the lines that name a speaker: after an empty line, and with a colon at the end."""
    return re.sub(r"(?:\A|(?<=\n\n))[^\n]+:\n", "", text)


def longest_run(sample: Sequence[int], text: Sequence[int]) -> list[int]:
    """Return the longest run of a sample that stands in a text, token for token; the first such."""
    lengths = longest_copies(sample, text)
    start = lengths.index(max(lengths))
    return list(sample[start : start + lengths[start]])
