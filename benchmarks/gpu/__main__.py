"""All that only a graphics card can show, in less than ten minutes: ``python -m benchmarks.gpu``.

Stages, one after the other, each in a process of its own, so that an error of the card's driver, a
full memory or a compiler that hangs ends one stage and not the run. Each writes its JSON file into
the output folder as soon as it has something to say. Nothing is fetched from anywhere.

Without a card, ``--device cpu --preset tiny`` runs the same stages with less in each, in some
minutes: that is how this command is tested. ``python -m benchmarks.gpu.records`` turns the files
into records.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smol_scratch import assets
from smol_scratch.config import PRESETS

NAME = "python -m benchmarks.gpu"


class Plan(NamedTuple):
    """A stage before it begins.

    Attributes:
        name: for people and for its file.
        code: module and function.
        least: seconds without which it is not begun.
        most: seconds that it may take of `BUDGET`, and of a larger one in proportion; the last one
            takes what is left.
    """

    name: str
    code: str
    least: float
    most: float


BUDGET = 570.0  # seconds for everything, unless a run is given others

# Together the stages before the last may take what leaves it 190 of 570 seconds. With a card they
# are expected to need about half of that; what one leaves over goes to those after it.
PLANS = (
    Plan("environment", "benchmarks.gpu.environment:environment", 2, 30),
    Plan("parity", "benchmarks.gpu.parity:parity", 10, 75),
    Plan("precision", "benchmarks.gpu.environment:precision", 5, 20),
    Plan("paths", "benchmarks.gpu.paths:paths", 10, 65),
    Plan("speed", "benchmarks.gpu.speed:speed", 20, 160),
    Plan("memory", "benchmarks.gpu.memory:memory", 5, 30),
    Plan("run", "benchmarks.gpu.full_run:full_run", 15, 3600),
)
GRACE = 5.0  # seconds between "your time is up" and the end of a process


def stage_file(output: Path, name: str) -> Path:
    """Return the file of a stage; the names are in the order of the stages."""
    number = [plan.name for plan in PLANS].index(name) + 1
    return output / f"{number}_{name}.json"


# The process of one stage.


def child(options: argparse.Namespace) -> None:
    """Do one stage."""
    import torch

    from benchmarks.gpu.stage import Stage

    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    stage = Stage(
        stage_file(options.output, options.child),
        device,
        options.preset,
        options.until,
        options.scratch,
        options.steps,
    )
    [plan] = [plan for plan in PLANS if plan.name == options.child]
    try:
        module, function = plan.code.split(":")
        getattr(importlib.import_module(module), function)(stage)
    except Exception:
        stage.fail()
        raise
    stage.end()


# The first process.


def surroundings(scratch: Path, stage: str) -> dict[str, str]:
    """Return the environment of a stage's process."""
    found = dict(os.environ)
    found |= {
        # Compiled code is kept from stage to stage, and goes with the scratch folder.
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        # Libraries would try for half a minute before they say that there is no network.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if stage == "run":  # without it cuBLAS may add in another order each time
        found["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return found


def watch(command: Sequence[str], seconds: float, environment: dict[str, str], log: Path) -> str:
    """Run a stage's process, for so long at most; return how it ended, "" where by itself.

    It leads a group of processes (a compiler has some of its own), and the group is ended whole.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stderr=file, cwd=assets.ROOT, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=1)
                except (ProcessLookupError, PermissionError):
                    break
                except subprocess.TimeoutExpired:
                    continue
            process.wait()
    if code is None:
        return f"stopped after {seconds:.0f} s"
    return "" if code == 0 else f"ended with {code}"


def settle(path: Path, plan: Plan, ended: str, log: Path, seconds: float) -> dict[str, Any]:
    """Return what a stage's file says, after adding what only its parent knows."""
    from benchmarks.gpu.stage import write

    content: dict[str, Any] = {"stage": path.stem, "state": "died", "notes": [], "errors": {},
                               "result": {}, "seconds": round(seconds, 1)}  # fmt: skip
    if path.exists():
        content = json.loads(path.read_text("utf-8"))
    if ended and content["state"] != "failed":
        content["state"] = "stopped" if ended.startswith("stopped") else "died"
        content["notes"].append(f"the process {ended}")
        tail = log.read_text("utf-8", errors="replace")[-4000:]
        content["errors"]["the process said"] = tail
    write(path, content)
    return content


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the chosen stages, and return what their files say."""
    from benchmarks.gpu.stage import write

    end, stretch = time.time() + options.budget, max(1.0, options.budget / BUDGET)
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = [plan for plan in PLANS if plan.name in options.stages]
    for plan in chosen:  # what an earlier run left would be taken for this one's
        stage_file(options.output, plan.name).unlink(missing_ok=True)
    found = []
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".scratch.") as folder:
        scratch = Path(folder).resolve()
        for i, plan in enumerate(chosen):
            path = stage_file(options.output, plan.name)
            last = i == len(chosen) - 1
            kept_back = sum(later.least for later in chosen[i + 1 :])
            left = end - time.time() - GRACE
            seconds = left if last else min(plan.most * stretch, left - kept_back)
            print(f"{plan.name}: at most {seconds:.0f} of {left:.0f} s", flush=True)
            if seconds < plan.least:
                said = f"not begun: {left:.0f} s of the budget are left"
                content = {"stage": path.stem, "state": "skipped", "seconds": 0.0,
                           "notes": [said], "errors": {}, "result": {}}  # fmt: skip
                write(path, content)
                found.append(content)
                continue
            command = [sys.executable, "-m", "benchmarks.gpu", "--child", plan.name]
            command += ["--until", str(time.time() + seconds), "--scratch", str(scratch)]
            command += ["--device", options.device, "--preset", options.preset]
            command += ["--steps", str(options.steps), "--output", str(options.output.resolve())]
            log, begun = scratch / f"{plan.name}.log", time.time()
            environment = surroundings(scratch, plan.name)
            if options.data:
                environment["SMOL_SCRATCH_DATA"] = str(options.data.resolve())
            ended = watch(command, seconds + GRACE / 2, environment, log)
            found.append(settle(path, plan, ended, log, time.time() - begun))
            print(f"{plan.name}: {found[-1]['state']}, {time.time() - begun:.0f} s", flush=True)
            for name in found[-1]["errors"]:
                print(f"  {name}: see {path.name}", flush=True)
    return found


def pack(folder: Path) -> None:
    """Put what a machine without the assets needs into a folder: text, plays and tokenizer.

    The weights (94 MB) are left behind; the stages that would use them say so.
    """
    from smol_scratch import load_text, load_tokenizer

    load_text()
    folder.mkdir(parents=True)
    shutil.copyfile(assets.data_dir() / "tinyshakespeare.txt", folder / "tinyshakespeare.txt")
    plays = assets.wheel_path(assets.PLAYS)
    if plays is None:
        raise assets.MissingAssetError("the plays are not here: python -m smol_scratch assets")
    shutil.copytree(plays, folder / "assets" / assets.PLAYS)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    load_tokenizer().backend.save(str(tokenizer / "tokenizer.json"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.0f} MB; there: {NAME} --data {folder}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=NAME, description=(__doc__ or "").splitlines()[0])
    names = [plan.name for plan in PLANS]
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--preset", choices=list(PRESETS), default="135M")
    parser.add_argument("--output", type=Path, default=assets.ROOT / "build" / "gpu")
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--steps", type=int, help="of the long run, at most: 5050, or 60 on a cpu")
    parser.add_argument("--data", type=Path, help="folder that --pack has made elsewhere")
    parser.add_argument("--pack", type=Path, help="only make the folder for --data")
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.budget > 0:
        parser.error(f"--budget {options.budget}: must be above 0")
    if options.steps is None:
        options.steps = 5050 if options.device == "cuda" else 60
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: must be at least 2, one before and one after")
    if options.data and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; make it with --pack")
    if options.pack and options.pack.exists():
        parser.error(f"--pack {options.pack}: is already there; name another folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; the status is 0 when no stage failed or was cut off."""
    options = parsed(arguments)
    if options.pack:
        pack(options.pack)
        return 0
    if options.child:
        child(options)
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"--device cuda: PyTorch {torch.__version__} finds no card; to try the command "
            "without one, --device cpu --preset tiny",
            file=sys.stderr,
        )
        return 2
    begun = time.time()
    found = run_all(options)
    print(f"\n{time.time() - begun:.0f} s; the files are in {options.output}")
    for content in found:
        print(f"  {content['stage']:<16}{content['state']:<9}{content['seconds']:>6} s")
        for note in content["notes"]:
            print(f"      {note}")
    return 0 if all(content["state"] in ("ok", "partly") for content in found) else 1


if __name__ == "__main__":
    sys.exit(main())
