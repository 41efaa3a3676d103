"""What a run is told: the recipe, which changes its numbers, and what is asked of one sitting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smol_scratch.config import SmolLM2Config
from smol_scratch.fields import check, number
from smol_scratch.schedule import cosine, warmup_stable_decay


@dataclass(frozen=True)
class TrainingConfig:
    """A run's recipe: all that its losses depend on, whatever computes them.

    The defaults repeat the original project's run: AdamW with weight decay on all parameters,
    batches of 4 × 256 tokens in the order of the text, cosine from 3e-4 to 3e-5 with 100 steps of
    warm-up.

    Attributes:
        steps: updates in all, those before a resumed checkpoint included.
        preset: shape of the model.
        init: weights to start from (a folder, a .gguf file, a hub name) in place of random ones.
        block_size: longest sequence that the model will accept.
        init_std: standard deviation of the random initial weights.
        dropout: probability of dropping an attention weight.
        text: file to train on in place of tiny Shakespeare.
        held_out: share cut off the text's end and never trained on. With 0, tiny Shakespeare is
            trained on whole, as in the original project, and plays that it lacks are held out. Of
            shards, a share of the documents, which their own text chooses.
        shards: folders of stored documents (see the command shards), in place of a text.
        weights: share of each folder in the batches, of any sum; by its tokens where not told.
        order: of what is in shards, new in each pass: documents shuffled, blocks (sequences where
            they stand) shuffled, or as stored.
        mask_documents: of shards, let no token attend to another document than its own.
        batch_size: sequences in a batch, on each device.
        sequence_length: tokens in a sequence.
        accumulate: batches whose gradients are summed for one update.
        learning_rate: at its peak.
        min_learning_rate: at the schedule's end.
        warmup_steps: steps to the peak; in a short run at most half of the schedule.
        lr_schedule: whether the learning rate moves; off, it stays at its peak.
        schedule: cosine (the original project's) or wsd: warm-up, stable, decay (SmolLM2's own).
        schedule_steps: length of the schedule where it is not --steps; a resumed run keeps it.
        decay_steps: length of wsd's fall; a fifth of the schedule where not told.
        weight_decay: of AdamW.
        decay_matrices_only: leave norm weights out of weight decay.
        beta1: AdamW's memory of the gradient.
        beta2: AdamW's memory of its square.
        clip: largest norm of the whole gradient.
        seed: of the initial weights and of dropout.
        precision: of the matrix products; auto looks at the hardware.

    Raises:
        ValueError: for each impossible value or combination, naming field, value and rule.
    """

    steps: int = number(5000, least=1)
    preset: Literal["135M", "360M", "1.7B", "13M", "tiny"] = "135M"
    init: str | None = None
    block_size: int = number(1024, least=1)
    init_std: float = number(0.02, above=0)
    dropout: float = number(0.0, least=0, below=1)
    text: Path | None = None
    held_out: float = number(0.0, least=0, below=1)
    shards: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    order: Literal["document", "block", "stored"] = "document"
    mask_documents: bool = False
    batch_size: int = number(4, least=1)
    sequence_length: int = number(256, least=1)
    accumulate: int = number(1, least=1)
    learning_rate: float = number(3e-4, least=0)
    min_learning_rate: float = number(3e-5, least=0)
    warmup_steps: int = number(100, least=0)
    lr_schedule: bool = True
    schedule: Literal["cosine", "wsd"] = "cosine"
    schedule_steps: int | None = number(None, least=1)
    decay_steps: int | None = number(None, least=1)
    weight_decay: float = number(0.1, least=0)
    decay_matrices_only: bool = False
    beta1: float = number(0.9, least=0, below=1)
    beta2: float = number(0.95, least=0, below=1)
    clip: float = number(1.0, above=0)
    # PyTorch takes 64 bits, and each process adds its rank.
    seed: int = number(1337, least=-(2**63), most=2**64 - 2**20)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"learning_rate={self.learning_rate}: must not be below "
                f"min_learning_rate={self.min_learning_rate}"
            )
        self._check_shards()
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

    def _check_shards(self) -> None:
        if not self.shards:
            for name in ("weights", "order", "mask_documents"):
                if (value := getattr(self, name)) != getattr(type(self), name):
                    raise ValueError(f"{name}={value!r}: is for shards only; leave it out")
            return
        if self.text is not None:
            raise ValueError(f"text={str(self.text)!r}: is trained on in place of shards; name one")
        if self.weights and len(self.weights) != len(self.shards):
            raise ValueError(
                f"weights={' '.join(map(str, self.weights))!r}: must be {len(self.shards)}, one "
                "for each folder of shards"
            )
        if wrong := [w for w in self.weights if type(w) not in (int, float) or not 0 < w < 1e300]:
            raise ValueError(f"weights={wrong[0]!r}: must be above 0")

    def model_config(self) -> SmolLM2Config:
        """Return the shape of the model to be trained from scratch."""
        return SmolLM2Config.preset(
            self.preset, block_size=self.block_size, init_std=self.init_std, dropout=self.dropout
        )

    def warmup(self) -> int:
        """Return the steps to the peak: ``warmup_steps``, and at most half of the schedule."""
        return min(self.warmup_steps, (self.schedule_steps or self.steps) // 2)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of the update that follows ``step`` others."""
        if not self.lr_schedule:
            return self.learning_rate
        total = self.schedule_steps or self.steps
        peak, minimum, warmup = self.learning_rate, self.min_learning_rate, self.warmup()
        if self.schedule == "cosine":
            return cosine(step, peak=peak, minimum=minimum, warmup=warmup, total=total)
        decay = self.decay_steps or max(total // 5, 1)
        return warmup_stable_decay(
            step, peak=peak, minimum=minimum, warmup=warmup, total=total, decay=decay
        )


@dataclass(frozen=True)
class RunOptions:
    """What is asked of one sitting of a run; none of it changes what is learned.

    A checkpoint remembers all but the paths, so that a resumed run goes on as it was begun.

    Attributes:
        ckpt: checkpoint folder to go on from.
        save: folder of the last checkpoint; earlier ones get its name and _step_N.
        device: cpu, cuda or mps; auto takes the best.
        fast: use the accelerated pieces of fast.py where they pay.
        compile: compile each block, which costs some seconds at the start.
        shard: with several devices, split weights and optimizer over them (FSDP2).
        checkpoint_activations: keep each block's input alone for the backward pass, which computes
            the rest again: less memory, and about a third more arithmetic.
        log_interval: steps between lines.
        eval_interval: steps between looks at the held-out text; 0 never looks.
        eval_sequences: how many sequences of it, from all over it.
        checkpoint_interval: steps between checkpoints; 0 keeps the last one only.
        keep: how many of the latest step checkpoints to keep; all where never told.
        metrics: CSV file of every step; <save>.csv where not told.
        tracker: tensorboard or trackio, if installed, beside the CSV.

    Raises:
        ValueError: for an impossible value, naming field, value and rule.
    """

    ckpt: Path | None = None
    save: Path = Path("checkpoint")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    fast: bool = True
    compile: bool = False
    shard: bool = False
    checkpoint_activations: bool = False
    log_interval: int = number(100, least=1)
    eval_interval: int = number(100, least=0)
    eval_sequences: int = number(48, least=1)
    checkpoint_interval: int = number(1000, least=0)
    keep: int | None = number(None, least=1)
    metrics: Path | None = None
    tracker: Literal["none", "tensorboard", "trackio"] = "none"

    def __post_init__(self) -> None:
        check(self)
