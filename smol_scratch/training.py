"""Training: what a run consists of, and the loop, a generator that yields one row per step.

Notebook, command line and a launch on several devices all consume the same generator; what makes a
run resumable is in one object, ``TrainingState``. Letters: B sequences in a batch, T tokens in a
sequence.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from smol_scratch import accounting, fast
from smol_scratch.config import SmolLM2Config
from smol_scratch.data import DataLoaderLite, Tokens
from smol_scratch.evaluation import evenly_spaced, mean_loss
from smol_scratch.hub import load_pretrained
from smol_scratch.model import SmolLM2
from smol_scratch.schedule import cosine, warmup_stable_decay


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number; the weights are those before this step."""


@dataclass(frozen=True)
class TrainingConfig:
    """A run's recipe, which its checkpoints carry, and what is asked of it this time.

    The defaults repeat the description's run: AdamW with weight decay on all parameters, batches of
    4 × 256 tokens in the order of the text, cosine from 3e-4 to 3e-5 with 100 steps of warm-up.

    Attributes:
        steps: updates in all, those before a resumed checkpoint included.
        ckpt: checkpoint folder to go on from.
        save: folder of the last checkpoint; earlier ones get its name and _step_N.
        preset: shape of the model.
        init: weights to start from (a folder, a .gguf file, a hub name) in place of random ones.
        block_size: longest sequence that the model will accept.
        init_std: standard deviation of the random initial weights.
        dropout: probability of dropping an attention weight.
        text: file to train on in place of tiny Shakespeare.
        held_out: share cut off the text's end and never trained on. With 0, tiny Shakespeare is
            trained on whole, as in the description, and plays that it lacks are held out.
        batch_size: sequences in a batch, on each device.
        sequence_length: tokens in a sequence.
        accumulate: batches whose gradients are summed for one update.
        learning_rate: at its peak.
        min_learning_rate: at the schedule's end.
        warmup_steps: steps to the peak.
        lr_schedule: whether the learning rate moves; off, it stays at its peak.
        schedule: cosine (the description's) or wsd: warm-up, stable, decay (SmolLM2's own).
        schedule_steps: length of the schedule where it is not --steps; a resumed run keeps it.
        decay_steps: length of wsd's fall; a fifth of the schedule where not told.
        weight_decay: of AdamW.
        decay_matrices_only: leave norm weights out of weight decay.
        beta1: AdamW's memory of the gradient.
        beta2: AdamW's memory of its square.
        clip: largest norm of the whole gradient.
        seed: of the initial weights and of dropout.
        precision: of the matrix products; auto looks at the hardware.
        device: cpu, cuda or mps; auto takes the best.
        fast: use the accelerated pieces of fast.py where they pay.
        compile: compile each block, which costs some seconds at the start.
        shard: with several devices, split weights and optimizer over them (FSDP2).
        log_interval: steps between lines.
        eval_interval: steps between looks at the held-out text; 0 never looks.
        eval_sequences: how many sequences of it, from all over it.
        checkpoint_interval: steps between checkpoints; 0 keeps the last one only.
        keep: how many of the latest step checkpoints to keep; all where never told.
        metrics: CSV file of every step; <save>.csv where not told.
        tracker: tensorboard or trackio, if installed, beside the CSV.
    """

    steps: int = 5000
    ckpt: Path | None = None
    save: Path = Path("checkpoint")
    preset: Literal["135M", "360M", "1.7B", "13M", "tiny"] = "135M"
    init: str | None = None
    block_size: int = 1024
    init_std: float = 0.02
    dropout: float = 0.0
    text: Path | None = None
    held_out: float = 0.0
    batch_size: int = 4
    sequence_length: int = 256
    accumulate: int = 1
    learning_rate: float = 3e-4
    min_learning_rate: float = 3e-5
    warmup_steps: int = 100
    lr_schedule: bool = True
    schedule: Literal["cosine", "wsd"] = "cosine"
    schedule_steps: int | None = None
    decay_steps: int | None = None
    weight_decay: float = 0.1
    decay_matrices_only: bool = False
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    seed: int = 1337
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    fast: bool = True
    compile: bool = False
    shard: bool = False
    log_interval: int = 100
    eval_interval: int = 100
    eval_sequences: int = 48
    checkpoint_interval: int = 1000
    keep: int | None = None
    metrics: Path | None = None
    tracker: Literal["none", "tensorboard", "trackio"] = "none"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                words = ", ".join(get_args(kind))
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {words}")
        for name in ("steps", "batch_size", "sequence_length", "accumulate", "log_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("warmup_steps", "eval_interval", "checkpoint_interval"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("eval_sequences", "keep", "schedule_steps", "decay_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 0 <= self.min_learning_rate <= self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate={self.learning_rate}, min_learning_rate={self.min_learning_rate}: "
                "must be finite, not negative, and the minimum not above the peak"
            )
        if not (self.clip > 0 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"clip={self.clip}, weight_decay={self.weight_decay}: the first must be above 0, "
                "the second 0 or more"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1={self.beta1}, beta2={self.beta2}: must be in [0, 1)")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: must be at least 0 and below 1")
        if self.decay_steps is not None:
            if self.schedule != "wsd":
                raise ValueError(f"decay_steps={self.decay_steps}: only schedule='wsd' has a decay")
            total = self.schedule_steps or self.steps
            if self.warmup_steps + self.decay_steps > total:
                raise ValueError(
                    f"warmup_steps={self.warmup_steps}, decay_steps={self.decay_steps}: together "
                    f"longer than the schedule of {total} steps"
                )
        if self.init is not None:
            for name in ("preset", "block_size", "init_std"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r}: the weights of init={self.init!r} have "
                        "their own; leave it out"
                    )
        elif self.sequence_length > self.block_size:
            raise ValueError(
                f"sequence_length={self.sequence_length}: the model takes at most "
                f"block_size={self.block_size}; lower the one or raise the other"
            )

    def model_config(self) -> SmolLM2Config:
        """Return the shape of the model to be trained from scratch."""
        return SmolLM2Config.preset(
            self.preset, block_size=self.block_size, init_std=self.init_std, dropout=self.dropout
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of the update that follows ``step`` others."""
        if not self.lr_schedule:
            return self.learning_rate
        total = self.schedule_steps or self.steps
        peak, minimum, warmup = self.learning_rate, self.min_learning_rate, self.warmup_steps
        if self.schedule == "cosine":
            return cosine(step, peak=peak, minimum=minimum, warmup=warmup, total=total)
        decay = self.decay_steps or max(total // 5, 1)
        return warmup_stable_decay(
            step, peak=peak, minimum=minimum, warmup=warmup, total=total, decay=decay
        )


# Precision: chosen by what the hardware has, never by what PyTorch can emulate.


class Hardware(NamedTuple):
    """What decides the precision.

    Attributes:
        kind: cpu, cuda or mps.
        name: for people.
        capability: CUDA's compute capability, (0, 0) elsewhere.
        bf16: whether a CPU has bfloat16 products.
    """

    kind: str
    name: str
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False


def find_hardware(device: torch.device) -> Hardware:
    """Look at a device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return Hardware("cuda", name, torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        # PyTorch before 2.11 cannot be asked.
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        bf16 = any(has.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
        return Hardware("cpu", f"{has.get('cpu_name', 'CPU')}", bf16=bf16)
    return Hardware(device.type, device.type)


class Precision(NamedTuple):
    """The type of the matrix products; weights and optimizer stay in float32.

    Attributes:
        dtype: of the products; float32 means no autocast.
        scaler: whether gradients need scaling, lest they vanish in float16.
        reason: why, for people.
    """

    dtype: torch.dtype
    scaler: bool
    reason: str


def choose_precision(hardware: Hardware, wanted: str = "auto") -> Precision:
    """Choose the type of the matrix products, and say why.

    Tensor cores for bfloat16 came with capability 8.0 (Ampere). A T4 (7.5) or V100 (7.0) has them
    for float16 alone: PyTorch reports bfloat16 there as supported, and emulates it slowly.

    Args:
        hardware: from ``find_hardware``.
        wanted: auto, bf16, fp16 or fp32; anything but auto is done as asked.

    Raises:
        ValueError: for another word.
    """
    kind, name, capability, cpu_bf16 = hardware
    has_bf16 = cpu_bf16 if kind == "cpu" else kind == "cuda" and capability >= (8, 0)
    if wanted == "auto":
        if has_bf16:
            return Precision(torch.bfloat16, False, f"{name} has bfloat16 units")
        if kind == "cuda" and capability >= (7, 0):
            reason = f"{name} (capability {capability[0]}.{capability[1]}) has float16 units only"
            return Precision(torch.float16, True, reason)
        return Precision(torch.float32, False, f"{name} has no units for 16 bits that we know of")
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if wanted not in types:
        raise ValueError(f"precision={wanted!r}: must be auto, {', '.join(types)}")
    reason = "as asked"
    if wanted == "bf16" and not has_bf16:
        reason += f", though {name} can only emulate it"
    return Precision(types[wanted], wanted == "fp16", reason)


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to train on; with several processes, this process's own.

    Raises:
        ValueError: when the one asked for is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = next(kind for kind, there in available.items() if there) if wanted == "auto" else wanted
    if not available.get(kind, False):
        raise ValueError(f"device={wanted!r}: not available to this PyTorch; use auto or cpu")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind)


# The state of a run.


@dataclass
class TrainingState:
    """All that the next step depends on.

    Attributes:
        config: the recipe.
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
    model: SmolLM2
    optimizer: torch.optim.Optimizer
    loader: DataLoaderLite
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
        tokens: Tokens,
        held_out: Tokens | None = None,
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
            model: weights to start from, in place of ``config.init`` or random ones.

        Raises:
            ValueError: for a text shorter than a batch, or hardware that is not there.
        """
        device = choose_device(config.device)
        rank, world_size = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        loader = DataLoaderLite(
            tokens, config.batch_size, config.sequence_length, rank=rank, world_size=world_size
        )
        rows = None
        if held_out is not None and config.eval_interval:
            rows = evenly_spaced(held_out, config.sequence_length, config.eval_sequences)
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
        if config.sequence_length > (longest := model.config.block_size):
            raise ValueError(
                f"sequence_length={config.sequence_length}: these weights take at most {longest}"
            )
        model.to(device)
        if world_size > 1:
            torch.manual_seed(config.seed + rank)  # each process drops other weights
        if config.fast:
            fast.keep_freed_memory()
            fast.accelerate(model)
        if config.compile:
            fast.compile_blocks(model)
        forward = distribute(model, config.shard) if world_size > 1 else model
        precision = choose_precision(find_hardware(device), config.precision)
        return cls(
            config=config,
            model=model,
            optimizer=make_optimizer(model, config),
            loader=loader,
            precision=precision,
            scaler=torch.amp.GradScaler(device.type, enabled=precision.scaler),
            held_out=rows,
            text_sha256=token_sha256(tokens),
            rank=rank,
            world_size=world_size,
            forward=forward,
        )

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
        module = self.forward if self.config.shard else self.model
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


def distribute(model: SmolLM2, shard: bool) -> nn.Module:
    """Wrap a model for several processes.

    Each holds all of it and gradients are averaged (DDP), or each holds a part and blocks are
    gathered when they are needed (FSDP2).
    """
    if not shard:
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block)
    fully_shard(model)
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
    config = state.config
    until = config.steps if until is None else until
    palm = sum(accounting.palm_flops(state.model.config, config.sequence_length).values())
    peak = accounting.device_peak(state.device, state.precision.dtype) * state.world_size
    tokens = state.loader.step * config.accumulate
    state.model.train()
    while state.step < until:
        look = config.eval_interval and state.step % config.eval_interval == 0
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
    for number in range(config.accumulate):
        x, y = (part.to(state.device) for part in state.loader.next_batch())  # (B, T) each
        with _averaging(state, last=number == config.accumulate - 1):
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
    if state.config.shard:
        state.forward.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()
    return nullcontext() if last else state.forward.no_sync()  # type: ignore[operator]
