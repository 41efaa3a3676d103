"""A training run from start to end: its data, log lines, CSV file, checkpoints and interruptions.

What is trained, and how, is in ``training.py``; this file consumes its generator for
``python -m smol_scratch train``, on one device or under ``torchrun`` on several.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import importlib.util
import io
import itertools
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from smol_scratch import assets
from smol_scratch.checkpoint import Saving, is_whole, load_checkpoint, read_state
from smol_scratch.corpus import load_text, unseen_plays
from smol_scratch.data import Tokens, split
from smol_scratch.hardware import choose_device, find_hardware
from smol_scratch.hub import load_config
from smol_scratch.packing import Mixture
from smol_scratch.recipe import TrainingConfig
from smol_scratch.texts import encode_files
from smol_scratch.tokenizer import SmolLM2Tokenizer, load_tokenizer, tokenizer_for
from smol_scratch.training import (
    DivergedError,
    Metrics,
    RunOptions,
    TrainingState,
    train,
)


def load_data(
    config: TrainingConfig, tokenizer: SmolLM2Tokenizer, look: bool = True
) -> tuple[Tokens | Mixture, Tokens | None]:
    """Return the tokens to train on and the held-out ones, as the recipe says.

    Args:
        config: the recipe.
        tokenizer: for the text.
        look: whether anything held out will be looked at.

    Raises:
        MissingAssetError: when the text, or the plays that are held out, cannot be found.
        ValueError: when the text is no UTF-8, or ``held_out`` leaves one of the two empty.
    """
    tokens: Tokens
    if config.shards:
        return Mixture.read(
            config.shards,
            tokenizer.fingerprint,
            held_out=config.held_out,
            weights=config.weights,
            order=config.order,
            seed=config.seed,
            mask_documents=config.mask_documents,
        )
    if config.text is None:
        tokens = tokenizer.encode(load_text())
        if not config.held_out:
            if not look:
                return tokens, None
            return tokens, tokenizer.encode("\n".join(unseen_plays().values()))
    else:
        try:
            tokens = encode_files(config.text, tokenizer)
        except (ValueError, OSError) as error:
            raise ValueError(f"--text {error}") from error
        if not config.held_out:
            return tokens, None
    return split(tokens, config.held_out)


def tokenizer_of(config: TrainingConfig, options: RunOptions) -> SmolLM2Tokenizer:
    """Return the tokenizer that a run's weights came with; SmolLM2's own where they are random.

    With it come chat templates, names of special tokens, the tokens that end an answer, and tokens
    that were added: a fine-tuned model keeps all of them.

    Raises:
        OSError, ValueError: for weights or a tokenizer that cannot be used.
    """
    place = options.ckpt or config.init
    if place is None:
        return load_tokenizer()
    return tokenizer_for(place, load_config(place).vocab_size)


class Interruption:
    """Remembers Ctrl-C and SIGTERM until the step that is under way has ended, and says so.

    A second signal interrupts at once, but not under ``torchrun``: who manages a job may signal
    its processes as well as the launcher, which sends the signal on, so that one arrives twice.
    (The launcher kills them 30 seconds later.)
    """

    def __init__(self, notice: str = "") -> None:
        """Begin to wait.

        Args:
            notice: what is said at the first signal.
        """
        self.signal: int | None = None
        self.notice = notice

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take the signals over, and give them back at the end."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and not dist.is_torchelastic_launched():
            raise KeyboardInterrupt
        if self.signal is None and self.notice:
            # Past Python's own buffer, which this may have interrupted.
            os.write(2, f"\n{self.notice}\n".encode())
        self.signal = number


class MetricsFile:
    """The CSV of a run: a row per step, and lines with # that say where it was made.

    Rows of steps that will be made again, after an older checkpoint, are taken out first.
    """

    def __init__(self, path: Path, state: TrainingState) -> None:
        """Open it for the steps from ``state.step`` on.

        What an earlier start of the same run left, which ended before its first checkpoint, is
        moved aside.

        Raises:
            ValueError: when a new run would mix its rows with those of another.
            OSError: when it cannot be written.
        """
        self.path, self.moved = path, None
        if self.is_in_the_way(path, state.step, state.options):
            if state.step == 0 and self._is_ours(path):
                self.moved = self._move_aside(path)
            else:
                path.unlink()
        kept = [",".join(Metrics._fields) + "\n"]
        if path.exists():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if self._stays(line, state.step)]
        kept.insert(0 if state.step == 0 else len(kept), f"# {describe_run(state)}\n")
        assets.write_atomically(path, "".join(kept).encode())
        self.file = path.open("a", encoding="utf-8", newline="")

    @staticmethod
    def is_in_the_way(path: Path, step: int, options: RunOptions) -> bool:
        """Say whether a file must make room for the steps from ``step`` on; no row is lost by it.

        Raises:
            ValueError: when it holds rows of another run.
            OSError: when it cannot be read.
        """
        own = step_folder(options.save, step).resolve()
        other = options.ckpt and options.ckpt.resolve() != own
        if not path.exists() or not (step == 0 or (other and not options.metrics)):
            return False
        mine = step == 0 and (options.metrics is None or restarted())
        if not (mine and MetricsFile._is_ours(path)) and MetricsFile._has_rows(path):
            raise ValueError(
                f"{path} is already there: remove it, or name another file with --metrics (or "
                "this one, to go on with it after a checkpoint)"
            )
        return True

    @staticmethod
    def _is_ours(path: Path) -> bool:
        """Say whether a file begins as those of this class do."""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith("# from step ")

    @staticmethod
    def _has_rows(path: Path) -> bool:
        """Say whether a file holds anything but our head lines."""
        lines = path.read_text("utf-8", errors="replace").splitlines()
        head = ",".join(Metrics._fields)
        return any(line and not line.startswith("# from step ") and line != head for line in lines)

    @staticmethod
    def _move_aside(path: Path) -> Path | None:
        """Rename a file of an earlier start, so that nothing is lost; without rows, remove it."""
        if not MetricsFile._has_rows(path):
            path.unlink()
            return None
        names = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
        target = next(name for name in names if not name.exists())
        path.rename(target)
        return target

    @staticmethod
    def _stays(line: str, step: int) -> bool:
        first = line.split(",")[0]
        whole = line.endswith("\n")  # the last one may be torn, where the disk was full
        return whole and not (first.isdecimal() and int(first) >= step)

    def write(self, row: Metrics) -> None:
        """Add a row; it is on its way to the disk when this returns."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
            for value in row
        )
        self.file.write(line.getvalue())
        self.file.flush()

    def write_end(self, step: int, held_out_loss: float) -> None:
        """Add what the held-out loss was after the last step; nothing else is known then."""
        self.file.write(f"{step},,{held_out_loss:.6g},,,,\n")
        self.file.flush()


def describe_run(state: TrainingState) -> str:
    """Say in one line what computes, with which versions, from which step and by which command."""
    command = shlex.join(["python", "-m", "smol_scratch", *sys.argv[1:]])
    return (
        f"from step {state.step}: {find_hardware(state.device).name}, {state.world_size} "
        f"process(es), {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{state.precision.dtype}, `{command}`"
    )


def run(config: TrainingConfig, options: RunOptions) -> Path:
    """Train as the recipe says; return the folder of the last checkpoint.

    Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint; once more, at once.
    Under ``torchrun --max-restarts`` a run whose process died goes on from its last checkpoint.

    Raises:
        ValueError: for a recipe, text or checkpoint that cannot be used.
        OSError: when something cannot be read or written; the last checkpoint stays.
        DivergedError: when the loss is no longer a number; likewise.
        SystemExit: after an interruption, with 128 + the signal's number, as shells count.
    """
    with process_group(options):
        folder, interrupted_by = _run(config, options)
    # Raised within, it would keep the sharded model alive till Python ends, and gloo aborts then.
    if interrupted_by is not None:
        raise SystemExit(128 + interrupted_by)
    return folder


def _run(config: TrainingConfig, options: RunOptions) -> tuple[Path, int | None]:
    first = not dist.is_initialized() or dist.get_rank() == 0
    say = _say if first else _say_nothing
    if options.tracker != "none":
        spec = importlib.util.find_spec(options.tracker)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            raise ValueError(
                f"--tracker {options.tracker}: not installed; `pip install {options.tracker}`, or "
                "leave it out (the CSV is written in any case)"
            )
    if options.save.exists():
        needed = options.ckpt is not None and options.ckpt.resolve() == options.save.resolve()
        remedy = " with --save" if needed else ", or remove it"
        raise ValueError(f"--save {options.save} is already there: name another folder{remedy}")
    if options.metrics and options.save.resolve() in options.metrics.resolve().parents:
        raise ValueError(
            f"--metrics {options.metrics}: lies in --save {options.save}, which is made at the "
            "very end; name a file outside"
        )
    earlier = step_folders(options.save)
    own = [folder.resolve() for folder in earlier.values()]
    named = options.ckpt if dist.is_torchelastic_launched() else None
    if restarted() and (last_good := last_whole(earlier, config)):
        options = dataclasses.replace(options, ckpt=last_good)
        say(f"a process had ended and torchrun began again: on from {last_good}")
    if earlier and (options.ckpt is None or options.ckpt.resolve() not in own):
        last = earlier[max(earlier)]
        raise ValueError(
            f"{last} is of an earlier run with this --save: go on with --ckpt {last}, or remove "
            "it, or name another folder with --save"
        )
    if first:  # before text and weights are read, which can take minutes
        step = read_state(options.ckpt)["step"] if options.ckpt else 0
        MetricsFile.is_in_the_way(metrics_path(options), step, options)
        remove_leftovers(options.save)
    tokenizer = tokenizer_of(config, options)
    tokens, held_out = load_data(config, tokenizer, options.eval_interval > 0)
    if options.ckpt is None:
        state = TrainingState.create(config, tokens, held_out, options)
    else:
        state = load_checkpoint(options.ckpt, tokens, held_out, config, options)
        say(f"checkpoint {options.ckpt}: {state.step} steps were made")
        for line in what_changed(options.ckpt, state):
            say(line)
        if config.steps <= state.step:
            raise ValueError(
                f"--steps {config.steps}: counts from the run's beginning, and {options.ckpt} "
                f"has made {state.step} already; ask for more"
            )
    say_start(state, tokens, held_out, say)
    return _consume(state, tokenizer, first, named)


def _consume(
    state: TrainingState, tokenizer: SmolLM2Tokenizer, first: bool, named: Path | None
) -> tuple[Path, int | None]:
    """Train; return the folder of the last checkpoint, and the signal that ended it, if any.

    The checkpoint that torchrun's command has ``named`` stays, so that it can begin again.
    """
    config, options = state.config, state.options
    say = _say if first else _say_nothing
    path = metrics_path(options)
    metrics = MetricsFile(path, state) if first else None
    size = 3 * sum(w.nbytes for w in state.model.parameters()) / 1e6
    notice = f"The step under way ends first, then a checkpoint of {size:,.0f} MB is saved; that "
    notice += "takes some seconds. Once more: stop at once, and save nothing."
    interruption = Interruption(notice if first else "")
    if metrics and metrics.moved:
        say(f"{path} was of a start that left no checkpoint: kept as {metrics.moved}")
    begun, saved = state.step, options.ckpt
    with (
        interruption.watched(),
        tracking(options if first else None) as track,
        tqdm(
            total=config.steps,
            initial=state.step,
            unit=" step",
            dynamic_ncols=True,
            disable=None if first else True,
        ) as bar,
        Saving(state) as saving,
    ):

        def finish() -> None:
            """Wait for the step checkpoint under way, if any; then older ones may go."""
            nonlocal saved
            if folder := saving.wait():
                saved = folder
                say(f"saved {saved}")
                if options.keep is not None and first:
                    number = int(folder.name.rpartition("_")[2])
                    remove_old(options.save, options.keep, number, named)

        try:
            for row in train(state):
                bar.update()
                if metrics:
                    metrics.write(row)
                track(row)
                looked = row.held_out_loss is not None
                if looked or row.step % options.log_interval == 0 or row.step == begun:
                    say(log_line(row))
                stop, failed = _any_process(
                    (interruption.signal is not None, saving.failed()), state
                )
                if failed or saving.done():
                    finish()
                if stop and state.step < config.steps:
                    finish()
                    folder = step_folder(options.save, state.step)
                    saving.begin(folder, tokenizer, replace=True)
                    saved = saving.wait()
                    say(f"interrupted; saved {saved}. To go on:\n  {to_go_on(state, folder)}")
                    return folder, interruption.signal or signal.SIGTERM
                interval = options.checkpoint_interval
                if interval and state.step % interval == 0 and state.step < config.steps:
                    finish()
                    saving.begin(step_folder(options.save, state.step), tokenizer, replace=True)
                    if not state.sharded:
                        finish()
            held_out = state.held_out_loss()
            if held_out is not None:
                say(f"step {state.step} | held-out loss {held_out:.4f} | the end")
                if metrics:
                    metrics.write_end(state.step, held_out)
            finish()
            saving.begin(options.save, tokenizer)
            saving.wait()
            say(f"saved {options.save}. To hear it:\n  {to_hear(options.save)}")
        except (DivergedError, OSError) as error:
            with contextlib.suppress(OSError):
                finish()
            at = f"the last checkpoint is {saved}" if saved else "there is no checkpoint yet"
            raise type(error)(f"{error}; {at}") from error
    return options.save, None


def to_go_on(state: TrainingState, folder: Path) -> str:
    """Return the whole command that goes on from a checkpoint; it carries the rest itself."""
    options = state.options
    words = ["python", "-m"]
    if dist.is_torchelastic_launched():
        local = os.environ.get("LOCAL_WORLD_SIZE", str(state.world_size))
        words = ["torchrun", "--nproc-per-node", local, "-m"]
    words += ["smol_scratch", "train", "--ckpt", str(folder), "--save", str(options.save)]
    if options.metrics is not None:
        words += ["--metrics", str(options.metrics)]
    return shlex.join(words)


def to_hear(folder: Path) -> str:
    """Return the command that lets a checkpoint write."""
    words = ["python", "-m", "smol_scratch", "generate", "--ckpt", str(folder)]
    return shlex.join([*words, "--prompt", "ROMEO:"])


def what_changed(folder: Path, state: TrainingState) -> Iterator[str]:
    """Yield what a resumed run does otherwise from here on, in the flags' words."""
    before: TrainingConfig = read_state(folder)["config"]
    now, step = state.config, state.step
    sizes = ("batch_size", "sequence_length", "accumulate")
    if any(getattr(before, name) != getattr(now, name) for name in sizes):
        said = ", ".join(
            f"--{name.replace('_', '-')} {getattr(now, name)} (was {getattr(before, name)})"
            for name in sizes
            if getattr(before, name) != getattr(now, name)
        )
        yield f"{said}: the next batch begins where the last one ended, at token " + (
            f"{state.loader.position:,}"
        )
    rates = before.learning_rate_at(step), now.learning_rate_at(step)
    if abs(rates[0] - rates[1]) > 0.01 * max(rates):
        yield (
            f"the learning rate jumps: at step {step} it would have been {rates[0]:.3g} and is "
            f"{rates[1]:.3g}, since the schedule's flags are others"
        )


def metrics_path(options: RunOptions) -> Path:
    """Return where the rows of a run go."""
    return options.metrics or options.save.with_name(options.save.name + ".csv")


def step_folder(save: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` updates goes."""
    return save.with_name(f"{save.name}_step_{step}")


def step_folders(save: Path) -> dict[int, Path]:
    """Return the step checkpoints of the run that is saved as ``save``, by their steps."""
    prefix = f"{save.name}_step_"
    found = {}
    for folder in save.parent.glob(f"{glob.escape(prefix)}*"):
        number = folder.name.removeprefix(prefix)
        if number.isdecimal() and folder.is_dir():
            found[int(number)] = folder
    return found


def restarted() -> bool:
    """Say whether ``torchrun --max-restarts`` began again after a process had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def last_whole(folders: dict[int, Path], config: TrainingConfig) -> Path | None:
    """Return the latest step checkpoint that is undamaged and of this recipe.

    Of another one are those of an earlier attempt, which went on otherwise.
    """
    whole = (folders[step] for step in sorted(folders, reverse=True))
    return next((folder for folder in whole if is_whole(folder, config)), None)


def remove_leftovers(save: Path) -> None:
    """Remove what this run left half written, or half removed, when it was killed.

    A folder that still holds the checkpoint that was to be replaced is let alone.
    """
    # As written_whole and remove_old name them; tempfile adds eight characters of its own.
    name = re.compile(rf"\.{re.escape(save.name)}(_step_\d+)?(\.removed)?\.[a-z0-9_]{{8}}")
    for path in save.parent.glob(f".{glob.escape(save.name)}*"):
        if name.fullmatch(path.name) and path.is_dir() and not (path / "old").exists():
            shutil.rmtree(path)


def remove_old(save: Path, keep: int, step: int, named: Path | None = None) -> None:
    """Remove all step checkpoints up to ``step`` but the latest ``keep``, and ``named``.

    Later ones are of an earlier attempt, which went on from an older checkpoint too.
    """
    steps = {number: folder for number, folder in step_folders(save).items() if number <= step}
    if named is not None:
        steps = {n: folder for n, folder in steps.items() if folder.resolve() != named.resolve()}
    for old in sorted(steps)[:-keep]:
        # Under its own name there is never a part of a checkpoint.
        name = steps[old].name
        gone = tempfile.mkdtemp(dir=save.parent, prefix=f".{name}.removed.")
        steps[old].rename(Path(gone) / name)
        shutil.rmtree(gone)


def _any_process(mine: tuple[bool, ...], state: TrainingState) -> list[bool]:
    """Say of each event whether any process has met it: all must go another way after one step."""
    if state.world_size == 1:
        return list(mine)
    flags = torch.tensor(mine, dtype=torch.float32, device=state.device)
    dist.all_reduce(flags)
    return (flags > 0).tolist()


@contextlib.contextmanager
def process_group(options: RunOptions) -> Iterator[None]:
    """Join the other processes where ``torchrun`` started several; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def log_line(row: Metrics) -> str:
    """Return a step's metrics as a line."""
    held_out = "" if row.held_out_loss is None else f" | held-out {row.held_out_loss:.4f}"
    return (
        f"step {row.step} | loss {row.loss:.4f}{held_out} | lr {row.learning_rate:.6f} | "
        f"norm {row.gradient_norm:.2f} | tok/s {row.tokens_per_second:,.1f} | "
        f"{row.utilisation:.0%} of peak"
    )


def say_start(
    state: TrainingState, tokens: Tokens | Mixture, held_out: Tokens | None, say: Any = print
) -> None:
    """Say what is about to be trained, on what, and how."""
    config, count = state.config, sum(w.numel() for w in state.model.parameters())
    sizes = f"{config.batch_size} × {config.sequence_length}"
    if state.world_size > 1:
        sizes += f" × {state.world_size} processes"
    summed = f", {config.accumulate} to an update" if config.accumulate > 1 else ""
    say(f"model: {config.init or config.preset}, {count:,} parameters, on {state.device}")
    say(f"products in {state.precision.dtype}: {state.precision.reason}")
    batches = f"{state.loader.batches_per_pass} batches of {sizes} a pass{summed}"
    if isinstance(tokens, Mixture):
        folders = [str(part.shards.folder) for part in tokens.parts]
        shares = [weight / sum(tokens.weights) for weight in tokens.weights]
        for folder, part, share in zip(folders, tokens.parts, shares, strict=True):
            what = f"{len(part.numbers):,} documents, {len(part):,} tokens"
            say(f"shards: {folder}, {what}, {share:.0%} of the batches")
    say(f"text: {len(tokens):,} tokens, {batches}")
    left = len(tokens) - 1 - state.loader.batches_per_pass * state.loader.step
    if left and not isinstance(tokens, Mixture):
        say(f"  of which the last {left:,} are in no batch: a pass is of whole batches")
    if config.lr_schedule and config.warmup() < config.warmup_steps:
        say(f"warm-up: {config.warmup()} steps, not {config.warmup_steps}: half of the schedule")
    if held_out is None or state.held_out is None:
        say("held out: nothing, so nobody will know what it learns by heart (see --held-out)")
    else:
        used = state.held_out[:, 1:].numel()
        every = f"{used:,} are looked at every {state.options.eval_interval} steps"
        say(f"held out: {len(held_out):,} tokens, of which {every}")
    say(f"steps {state.step} → {config.steps}")


@contextlib.contextmanager
def tracking(options: RunOptions | None) -> Iterator[Callable[[Metrics], None]]:
    """Yield what shows a row in TensorBoard or trackio, or, where neither is asked for, nothing."""
    if options is None or options.tracker == "none":
        yield lambda row: None
    elif options.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(f"{options.save}_tensorboard") as writer:

            def show(row: Metrics) -> None:
                for name, value in _numbers(row).items():
                    writer.add_scalar(name, value, row.step)

            yield show
    else:
        import trackio

        trackio.init(project="smol_scratch", name=options.save.name)
        try:
            yield lambda row: trackio.log(_numbers(row), step=row.step)
        finally:
            trackio.finish()


def _numbers(row: Metrics) -> dict[str, float]:
    return {name: v for name, v in row._asdict().items() if v is not None and name != "step"}


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)  # does not tear the bar
    sys.stdout.flush()


def _say_nothing(line: str) -> None:
    pass
