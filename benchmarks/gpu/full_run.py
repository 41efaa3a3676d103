"""The original project's run on the card: 5,000 steps and 50 more, with a checkpoint in the middle.

Recipe, text and order of the batches are those of ``data/records/full_run.csv``, which a processor
made: step by step the rows can be laid beside it. Where the budget is too small for all steps, the
schedule stays that of 5,000 and the run ends early: the rows that are there are still comparable.

In the middle a checkpoint is written and read, and the run goes on from what was read. That this
changes nothing is tried on the spot: the same steps by the run that was never interrupted, and
twice by one that was read. PyTorch is asked for deterministic kernels, so the losses must be equal
to the last bit; where they are not, the two that were read say whether it is the checkpoint or the
card.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from benchmarks.gpu.stage import Stage
from benchmarks.record_run import record
from smol_scratch import SmolLM2, assets, load_text, load_tokenizer
from smol_scratch.checkpoint import load_checkpoint, save_checkpoint
from smol_scratch.corpus import unseen_plays
from smol_scratch.course.notebook import read_record
from smol_scratch.data import Tokens
from smol_scratch.evaluation import mean_loss
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import Metrics, RunOptions, TrainingConfig, TrainingState, train

SCHEDULE = 5000
PROOF = 20  # steps that are made three times
TRIAL = 8  # steps by which the speed is known before the run begins


class Words:
    """What is trained on and what is held out.

    Attributes:
        tokenizer: or None, where it is not here.
        text, held_out: tokens.
        made_up: whether they are no text at all.
    """

    def __init__(self, stage: Stage) -> None:
        """Read the plays; where they are not here, make up something to learn and say so."""
        self.tokenizer = self._tokenizer(stage)
        self.made_up = True
        if self.tokenizer is not None:
            try:
                self.text: Tokens = self.tokenizer.encode(load_text())
                self.held_out: Tokens = self.tokenizer.encode("\n".join(unseen_plays().values()))
                self.made_up = False
                return
            except (assets.MissingAssetError, assets.CorruptAssetError, OSError) as error:
                stage.note(f"the plays are not here ({error})")
        stage.note("trained on made-up tokens: speed, memory and resuming count, losses do not")
        # Three tokens of four follow from the one before.
        generator = torch.Generator().manual_seed(0)
        chance = torch.randint(1000, (300_000,), generator=generator).tolist()
        tokens = [0]
        for number in chance:
            tokens.append(number % 199 if number % 4 == 0 else (tokens[-1] * 7 + 3) % 199)
        self.text, self.held_out = tokens[:-50_000], tokens[-50_000:]

    @staticmethod
    def _tokenizer(stage: Stage) -> SmolLM2Tokenizer | None:
        carried = assets.data_dir() / "tokenizer" / "tokenizer.json"
        try:
            return load_tokenizer(carried) if carried.is_file() else load_tokenizer()
        except (assets.MissingAssetError, assets.CorruptAssetError, OSError) as error:
            stage.note(f"the tokenizer is not here ({error})")
            return None


def full_run(stage: Stage) -> None:
    """Train, with a checkpoint in the middle; compare; let it speak."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, changes nothing
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _full_run(stage)
        finally:
            said = {str(one.message).split(".")[0] for one in heard
                    if "deterministic" in str(one.message)}  # fmt: skip
            stage.keep(not_deterministic=sorted(said))


def _full_run(stage: Stage) -> None:
    words = Words(stage)
    card = stage.device.type == "cuda"
    config = TrainingConfig(preset=stage.preset, steps=stage.steps, schedule_steps=SCHEDULE,
                            **({} if card else SMALL))  # fmt: skip
    if stage.steps < SCHEDULE and not card:
        config = replace(config, schedule_steps=stage.steps)
    options = RunOptions(device=stage.device.type, compile=card,  # type: ignore[arg-type]
                         eval_interval=100, eval_sequences=48 if card else 4)  # fmt: skip
    state, seconds = begin(stage, words, config, options)
    # Beside the steps: proof, checkpoint, held-out text (a third of a step for each of its
    # batches) and what the model says at the end.
    batches = options.eval_sequences / config.batch_size
    each = seconds * (1 + batches / 3 / options.eval_interval)
    aside = 3 * PROOF * seconds + (55 if card else 12)
    fit = int((stage.left() - aside) / each)
    steps = max(2, min(stage.steps, fit))
    if steps < stage.steps:
        left, each = f"{stage.left():.0f} s are left", f"{1000 * seconds:.1f} ms"
        stage.note(f"{steps:,} of {stage.steps:,} steps: {left}, a step takes {each}")
    middle = max(1, steps // 2)
    proof = min(PROOF, steps - middle)
    stage.keep(
        asked=stage.steps, planned=steps, schedule=config.schedule_steps, made_up=words.made_up,
        seconds_per_step=seconds, compiled=state.options.compile, middle=middle,
        dtype=state.precision.dtype, recipe={"preset": config.preset, "seed": config.seed,
        "batch": [config.batch_size, config.sequence_length]},
    )  # fmt: skip

    log = Log(stage)
    begun = time.time()
    log.follow(state, middle)
    folder = stage.scratch / "checkpoint"
    wrote = time.time()
    save_checkpoint(state, folder, replace=True)
    wrote = time.time() - wrote
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    uninterrupted = [row.loss for row in train(state, middle + proof)]
    del state
    free(stage)
    read = time.time()
    again = load(folder, words, config, options, stage)
    read = time.time() - read
    control = [row.loss for row in train(again, middle + proof)]
    del again
    free(stage)
    state = load(folder, words, config, options, stage)
    resumed = log.follow(state, middle + proof)
    stage.keep(resume=compared(uninterrupted, resumed, control) | {
        "from_step": middle, "checkpoint_bytes": size, "write_s": wrote, "read_s": read
    })  # fmt: skip

    log.follow(state, steps)
    stage.wait()
    end = time.time()
    held_out = state.held_out_loss()
    stage.keep(steps=state.step, final_held_out_loss=held_out, train_s=end - begun,
               tokens_per_s=log.speed(), losses=log.summary())  # fmt: skip
    if stage.preset == "135M" and not words.made_up and card:
        stage.part("beside_the_processor", lambda: beside(log.rows))
    if words.tokenizer is not None and not words.made_up:
        stage.part("record", lambda: spoken(state, words.tokenizer), needs=25 if card else 8)


# Without a card: few tokens, so that the stage takes seconds.
SMALL: dict[str, Any] = {"batch_size": 2, "sequence_length": 32, "block_size": 256}


def begin(
    stage: Stage, words: Words, config: TrainingConfig, options: RunOptions
) -> tuple[TrainingState, float]:
    """Return the state before the first step, and the seconds of a step, measured beforehand.

    Where compilation fails (it needs a C compiler), the run goes without it.
    """
    while True:
        trial = TrainingState.create(config, words.text, words.held_out, options)
        try:
            for _ in train(trial, 3):
                pass
            stage.wait()
            begun = time.time()
            for _ in train(trial, 3 + TRIAL):
                pass
            stage.wait()
            seconds = (time.time() - begun) / TRIAL
        except Exception as error:
            if not options.compile or isinstance(error, torch.OutOfMemoryError):
                raise
            stage.note(f"not compiled: {type(error).__name__}: {str(error)[:200]}")
            options = replace(options, compile=False)
            continue
        finally:
            del trial
            free(stage)
        return TrainingState.create(config, words.text, words.held_out, options), seconds


def load(
    folder: Path, words: Words, config: TrainingConfig, options: RunOptions, stage: Stage
) -> TrainingState:
    """Return the run as its checkpoint has it."""
    compiled = options.compile and stage.result["compiled"]
    options = replace(options, compile=compiled)
    return load_checkpoint(folder, words.text, words.held_out, config, options)


def free(stage: Stage) -> None:
    """Give memory back that nobody uses any more."""
    gc.collect()
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()


class Log:
    """The rows of the run, written into the stage's file now and then."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rows: list[list[Any]] = []
        self.kept = time.time()

    def follow(self, state: TrainingState, until: int) -> list[float]:
        """Train up to ``until`` updates, while there is time; return the losses."""
        losses = []
        for row in train(state, until):
            losses.append(row.loss)
            self.rows.append([f"{value:.6g}" if isinstance(value, float) else value
                              for value in row])  # fmt: skip
            if time.time() - self.kept > 10:
                self.keep()
            if self.stage.left() < 3:
                self.stage.note(f"ended after {state.step:,} steps: the time is up")
                break
        self.keep()
        return losses

    def keep(self) -> None:
        """Write the rows down."""
        self.kept = time.time()
        last = self.rows[-1] if self.rows else None
        print(f"  {last and last[:3]}", flush=True)
        self.stage.keep(columns=list(Metrics._fields), rows=self.rows)

    def speed(self) -> float:
        """Return the tokens a second in the middle of all steps' speeds."""
        found = sorted(float(row[5]) for row in self.rows)
        return found[len(found) // 2]

    def summary(self) -> dict[str, float]:
        """Return training loss (mean of the last hundred) and held-out losses."""
        losses = [float(row[1]) for row in self.rows]
        looks = [(float(row[2]), row[0]) for row in self.rows if row[2] is not None]
        lowest, step = min(looks)
        last = losses[-100:]
        return {"first": losses[0], "last_hundred": sum(last) / len(last),
                "held_out_lowest": lowest, "held_out_lowest_step": step}  # fmt: skip


def compared(
    uninterrupted: list[float], resumed: list[float], control: list[float]
) -> dict[str, Any]:
    """Say whether the run that was read from a checkpoint is the one that went on.

    Args:
        uninterrupted: losses after the checkpoint, of the run that wrote it.
        resumed: of the run that was read.
        control: of it, read and made a second time.
    """
    apart = largest(uninterrupted, resumed)
    own = largest(resumed, control)
    steps = len(uninterrupted)
    if apart == 0 and own == 0:
        verdict = "equal to the last bit"
    elif math.isfinite(apart) and own > 0 and apart <= 10 * own:
        verdict = "close: the card itself does not repeat its losses"
    else:
        verdict = "DIFFERS: the run that was read is another"
    first = next(
        (i for i, (a, b) in enumerate(zip_longest(uninterrupted, resumed)) if a != b), None
    )
    return {"verdict": verdict, "steps": steps, "largest_difference": apart,
            "largest_between_two_readings": own, "first_that_differs": first,
            "uninterrupted": uninterrupted, "resumed": resumed}  # fmt: skip


def largest(one: list[float], other: list[float]) -> float:
    """Return the largest difference; infinite where one is shorter, or no number."""
    if len(one) != len(other) or not all(map(math.isfinite, (*one, *other))):
        return math.inf
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=math.inf)


def beside(rows: list[list[Any]]) -> dict[str, Any]:
    """Hold the losses against those of the processor's record, step by step."""
    known = {row["step"]: row for row in read_record("full_run.csv")}
    found = {}
    for begin in (0, 100, 1000, 4000):
        pairs = [(float(row[1]), known[row[0]]["loss"]) for row in rows
                 if begin <= row[0] < begin + 100 and row[0] in known]  # fmt: skip
        if pairs:
            apart = [a - b for a, b in pairs]
            found[f"steps {begin} to {begin + len(pairs) - 1}"] = {
                "card": sum(a for a, _ in pairs) / len(pairs),
                "processor": sum(b for _, b in pairs) / len(pairs),
                "largest_difference": max(map(abs, apart)),
            }
    looks = {row[0]: [float(row[2]), known[row[0]]["held_out_loss"]] for row in rows
             if row[2] is not None and row[0] in known and row[0] % 1000 == 0}  # fmt: skip
    return found | {"held_out, card and processor": looks}


def spoken(state: TrainingState, tokenizer: SmolLM2Tokenizer) -> dict[str, Any]:
    """Return what the model says and knows, as ``record_run`` does.

    Through a plain copy: a compiled block would be compiled anew for each length.
    """
    model = SmolLM2(state.model.config)
    model.load_state_dict({name: w.cpu() for name, w in state.model.state_dict().items()})
    model.eval().requires_grad_(False).to(state.device)
    if state.device.type == "cpu":
        tokens = tokenizer.encode("ROMEO:\n")
        rows = state.held_out
        assert rows is not None
        from smol_scratch.generation import generate

        text = generate(model, tokens, 8, temperature=0)[0][len(tokens) :].tolist()
        return {"step": state.step, "held_out": mean_loss(model, rows),
                "samples": [{"prompt": "ROMEO:\n", "text": tokenizer.decode(text)}]}  # fmt: skip
    return dict(record(model, state.step, tokenizer))
