"""Training: what a run consists of, and the loop, a generator that yields one row per step.

Notebook, command line and a launch on several devices all consume the same generator; what makes a
run resumable is in one object, ``TrainingState``. Letters: B sequences in a batch, T tokens in a
sequence.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from smol_scratch import accounting, fast, hardware
from smol_scratch.data import DataLoaderLite, Tokens
from smol_scratch.evaluation import evenly_spaced, mean_loss
from smol_scratch.hardware import Precision, choose_device, choose_precision, find_hardware
from smol_scratch.hub import load_pretrained
from smol_scratch.model import RotaryPositionalEmbedding, SmolLM2
from smol_scratch.packing import Mixture, PackedLoader, attending_within
from smol_scratch.recipe import RunOptions as RunOptions
from smol_scratch.recipe import TrainingConfig
from smol_scratch.wrappers import unwrapped


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number; the weights are those before this step."""


@dataclass
class TrainingState:
    """All that the next step depends on.

    Attributes:
        config: the recipe.
        options: what is asked of this sitting.
        model: its float32 weights are what is trained.
        optimizer: AdamW with its two moments.
        loader: knows the place in the text.
        precision: of the products.
        scaler: of float16's gradients; does nothing for other types.
        held_out: rows (sequences, T + 1) to look at now and then, or None.
        text_sha256: of the tokens that are trained on.
        step: updates made.
        rank, world_size: of this process among those that train together.
        forward: called in training; the model, or what several processes wrap around it.
    """

    config: TrainingConfig
    options: RunOptions
    model: SmolLM2
    optimizer: torch.optim.Optimizer
    loader: DataLoaderLite | PackedLoader
    precision: Precision
    scaler: torch.amp.GradScaler
    held_out: Tensor | None
    text_sha256: str
    step: int = 0
    rank: int = 0
    world_size: int = 1
    forward: nn.Module = field(default_factory=nn.Module)

    @classmethod
    def create(
        cls,
        config: TrainingConfig,
        tokens: Tokens | Mixture,
        held_out: Tokens | None = None,
        options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
        *,
        model: SmolLM2 | None = None,
    ) -> TrainingState:
        """Set everything up for the first step.

        In a process group (``torchrun``), this is one of its processes: each gets its share of the
        batches and a generator of its own.

        Args:
            config: the recipe.
            tokens: to train on.
            held_out: to look at, or None.
            options: what is asked of this sitting.
            model: weights to start from, in place of ``config.init`` or random ones. To be split
                over the processes, it may be on PyTorch's meta device: then each process has room
                for its part, to be filled, and never for the whole.

        Raises:
            ValueError: for a text shorter than a batch, or hardware that is not there.
        """
        device = choose_device(options.device)
        rank, world_size = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        B, T = config.batch_size, config.sequence_length
        loader = (
            tokens.loader(B, T, rank=rank, world_size=world_size)
            if isinstance(tokens, Mixture)
            else DataLoaderLite(tokens, B, T, rank=rank, world_size=world_size)
        )
        rows = None
        if held_out is not None and options.eval_interval:
            rows = evenly_spaced(held_out, config.sequence_length, options.eval_sequences)
        if config.schedule_steps is None:
            config = replace(config, schedule_steps=config.steps)

        torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        if model is None and config.init:
            model = load_pretrained(config.init)
            model.config = replace(model.config, dropout=config.dropout)
            for block in model.model.layers:  # type: ignore[union-attr]
                block.self_attn.attn_dropout.p = config.dropout
        elif model is None:
            model = SmolLM2(config.model_config())
        model = unwrapped(model)
        if config.sequence_length > (longest := model.config.block_size):
            raise ValueError(
                f"sequence_length={config.sequence_length}: these weights take at most {longest}"
            )
        if not next(model.parameters()).is_meta:
            model.to(device)
        if world_size > 1:
            torch.manual_seed(config.seed + rank)  # each process drops other weights
        if options.fast:
            fast.keep_freed_memory()
            fast.accelerate(model, device)
        if options.checkpoint_activations:
            keep_inputs_only(model)
        if options.compile:
            fast.compile_blocks(model)
        forward = distribute(model, options.shard, device) if world_size > 1 else model
        precision = choose_precision(find_hardware(device), config.precision)
        return cls(
            config=config,
            options=options,
            model=model,
            optimizer=make_optimizer(model, config),
            loader=loader,
            precision=precision,
            scaler=torch.amp.GradScaler(device.type, enabled=precision.scaler),
            held_out=rows,
            text_sha256=tokens.sha256 if isinstance(tokens, Mixture) else token_sha256(tokens),
            rank=rank,
            world_size=world_size,
            forward=forward,
        )

    @property
    def sharded(self) -> bool:
        """Whether weights and optimizer are split over several processes."""
        return self.options.shard and self.world_size > 1

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which matrix products are computed in ``precision.dtype``."""
        if self.precision.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision.dtype)

    def held_out_loss(self) -> float | None:
        """Return the loss on the held-out rows, in nats a token, or None where there are none."""
        if self.held_out is None:
            return None
        dtype = None if self.precision.dtype == torch.float32 else self.precision.dtype
        # All processes of a sharded model must compute together, so all see all rows.
        module = self.forward if self.options.shard else self.model
        return mean_loss(module, self.held_out, self.config.batch_size, dtype)


def token_sha256(tokens: Tokens) -> str:
    """Return the SHA-256 of tokens in order: it tells one training text from another."""
    found = hashlib.sha256()
    for start in range(0, len(tokens), 1 << 22):
        found.update(np.asarray(tokens[start : start + (1 << 22)]).astype("<i8").tobytes())
    return found.hexdigest()


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over all weights.

    With ``decay_matrices_only`` the norm weights are left out of the decay: to pull a scale of one
    towards zero only changes what the next matrix must undo.

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": config.weight_decay}]
    if config.decay_matrices_only:
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def keep_inputs_only(model: SmolLM2) -> None:
    """Let each block keep its input alone; its backward pass computes the rest again.

    Source: Chen et al., 2016, arXiv:1604.06174.
    """
    for block in unwrapped(model).model.layers:  # type: ignore[union-attr]
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def distribute(model: SmolLM2, shard: bool, device: torch.device) -> nn.Module:
    """Wrap a model for several processes.

    Each holds all of it and gradients are averaged (DDP), or each holds a part and blocks are
    gathered when they are needed (FSDP2). What is on the meta device gets room on ``device``.
    """
    model = unwrapped(model)
    if not shard:
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block)
    empty = next(model.parameters()).is_meta
    fully_shard(model)
    if empty:
        model.to_empty(device=device)
        config = model.config
        rope = RotaryPositionalEmbedding(config.head_dim, config.block_size, config.rope_theta)
        rope.to(device)
        for block in model.model.layers:  # type: ignore[union-attr]
            block.self_attn.rope = rope
    return model


# The loop.


class Metrics(NamedTuple):
    """What is known of one step.

    Attributes:
        step: updates made before it.
        loss: of its batch before the update, in nats a token.
        held_out_loss: of the held-out text before the update; None where it was not looked at.
        learning_rate: of the update.
        gradient_norm: of the whole gradient, before clipping.
        tokens_per_second: of the step, over all devices, evaluation not counted.
        utilisation: share of the hardware's peak.
    """

    step: int
    loss: float
    held_out_loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    utilisation: float


def train(state: TrainingState, until: int | None = None) -> Iterator[Metrics]:
    """Train up to ``until`` updates (``config.steps`` unless told), a yield for each.

    Between two yields the state is that of a whole number of steps: it can be saved, looked at,
    or left. The held-out text is looked at before every ``eval_interval``-th update.

    Raises:
        DivergedError: when loss or gradient is not finite; the weights stay those before the step.
    """
    config, every = state.config, state.options.eval_interval
    until = config.steps if until is None else until
    palm = sum(accounting.palm_flops(state.model.config, config.sequence_length).values())
    peak = hardware.device_peak(state.device, state.precision.dtype) * state.world_size
    tokens = state.loader.step * config.accumulate
    state.model.train()
    while state.step < until:
        look = every and state.step % every == 0
        held_out = state.held_out_loss() if look else None
        start = time.perf_counter()
        loss, rate, norm = train_step(state)
        speed = tokens / (time.perf_counter() - start)
        used = speed * palm / config.sequence_length / peak
        yield Metrics(state.step - 1, loss, held_out, rate, norm, speed, used)


def train_step(state: TrainingState) -> tuple[float, float, float]:
    """Make one update; return loss, learning rate and gradient norm.

    The gradients of ``accumulate`` batches are averaged: the update is that of one batch as large
    as all of them.
    """
    config, optimizer, scaler = state.config, state.optimizer, state.scaler
    rate = config.learning_rate_at(state.step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    place = state.loader.state_dict()
    total = torch.zeros((), device=state.device)
    for part in range(config.accumulate):
        # (B, T) each; the third, where asked for, says which document each token is of.
        x, y, *documents = (t.to(state.device) for t in state.loader.next_batch())
        # The mask is for the backward pass too, which may compute blocks again.
        last = part == config.accumulate - 1
        with _averaging(state, last), attending_within(state.model, *documents):
            with state.autocast():
                loss = state.forward(x, y)[1] / config.accumulate
            scaler.scale(loss).backward()
        total += loss.detach()
    if state.world_size > 1:
        dist.all_reduce(total)
        total /= state.world_size
    scaler.unscale_(optimizer)  # does nothing without float16
    whole = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    norm = float(whole.full_tensor() if isinstance(whole, DTensor) else whole)
    # The scaler itself skips an update whose gradients overflowed in float16, and halves its
    # factor; where not even a factor of one helps, float16 is too small for them.
    skipped = state.precision.scaler and scaler.get_scale() > 1
    if not math.isfinite(total) or not (math.isfinite(norm) or skipped):
        state.loader.load_state_dict(place)
        scaler.update(scaler.get_scale())  # so that it forgets this step
        raise DivergedError(
            f"step {state.step}: loss {float(total)}, gradient norm {norm}: not finite. Nothing "
            "was updated; go on from the last checkpoint with a lower --learning-rate, a longer "
            "--warmup-steps, or --precision fp32"
        )
    scaler.step(optimizer)
    scaler.update()
    state.step += 1
    return float(total), rate, norm


def _averaging(state: TrainingState, last: bool) -> AbstractContextManager[Any]:
    """Let processes exchange gradients only with the last batch of an update."""
    if state.world_size == 1:
        return nullcontext()
    if state.options.shard:
        state.forward.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()
    return nullcontext() if last else state.forward.no_sync()  # type: ignore[operator]
