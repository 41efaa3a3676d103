"""Two processes train as one does at the same global batch, and each reads the other's checkpoints.

``torchrun`` starts this file once with two processes on the CPU (gloo); ``work`` makes all the runs
in them, and the tests look at what they wrote. Two more launches are real command lines that are
interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from smol_scratch import hardware
from smol_scratch.__main__ import main
from smol_scratch.checkpoint import load_checkpoint, read_state, save_checkpoint
from smol_scratch.training import DivergedError, TrainingState, train
from tests.test_training import SMALL, TOKENS, WORDS, begin, numbers, with_changes

pytestmark = [
    pytest.mark.usefixtures("peak"),  # none measures the processor first
    pytest.mark.skipif(
        not (sys.platform == "linux" and dist.is_available() and dist.is_gloo_available()),
        reason="needs Linux and gloo",
    ),
]

ROOT = Path(__file__).parent.parent
TEXT = (TOKENS * 3)[: 7 * 32 + 1]  # seven batches of 4 × 8 a pass, in pieces of any size
HELD_OUT = TOKENS[::-1]
FIRST, THEN = 4, 5
GENTLE = {"learning_rate": 1e-3, "min_learning_rate": 1e-4, "eval_interval": 3}

# What two processes do; one does the same with batches of 4.
TWO = {
    "ddp": {"batch_size": 2},
    "ddp accumulated": {"batch_size": 1, "accumulate": 2},
    "fsdp": {"batch_size": 2, "shard": True},
    "fsdp accumulated": {"batch_size": 1, "accumulate": 2, "shard": True},
    "fsdp checkpointed": {"batch_size": 2, "shard": True, "checkpoint_activations": True},
}


def follow(state: TrainingState, steps: int) -> list[float]:
    """Make steps; return all losses, gradient norms and held-out losses."""
    rows = list(train(state, state.step + steps))
    looks = [row.held_out_loss for row in rows if row.held_out_loss is not None]
    return [row.loss for row in rows] + [row.gradient_norm for row in rows] + looks


def recipe(folder: Path, **changes: object):
    """Return a checkpoint's recipe and options with changes."""
    content = read_state(folder)
    return with_changes(content["config"], content["options"], changes)


def work(folder: Path) -> None:
    """In each of two processes: make all runs; the first process writes down what it saw."""
    hardware.device_peak = lambda *_: 1e12
    dist.init_process_group("gloo")
    found: dict[str, object] = {}
    for name, how in TWO.items():
        state = begin(TEXT, HELD_OUT, **GENTLE, **how)
        start = follow(state, FIRST)
        save_checkpoint(state, folder / f"{name}, first half")
        found[name] = [start, follow(state, THEN)]
        save_checkpoint(state, folder / name)

        go_on = recipe(folder / "one, first half", **how)
        state = load_checkpoint(folder / "one, first half", TEXT, HELD_OUT, *go_on)
        found[f"one, then {name}"] = follow(state, THEN)

    for shard in (False, True):
        name = f"dropout {shard}"
        state = begin(TEXT, dropout=0.2, batch_size=2, shard=shard)
        follow(state, FIRST)
        save_checkpoint(state, folder / name)
        straight = follow(state, THEN)
        resumed = load_checkpoint(folder / name, TEXT)
        found[name] = [straight, follow(resumed, THEN)]

    for shard in (False, True):
        for precision in ("bf16", "fp16"):
            state = begin(TEXT, **GENTLE, batch_size=2, shard=shard, precision=precision)
            found[f"{precision} {shard}"] = follow(state, FIRST)

    state = begin(TEXT, batch_size=2)
    found["drawn"] = draws = [torch.zeros(3), torch.zeros(3)]
    dist.all_gather(draws, torch.rand(3))  # each process drops other weights
    found["drawn"] = [drawn.tolist() for drawn in draws]
    if dist.get_rank() == 1:
        state.forward.register_forward_hook(lambda _, __, out: (out[0], out[1] * math.nan))
    try:
        follow(state, 1)
    except DivergedError as error:
        stopped: list[object] = [None, None]
        dist.all_gather_object(stopped, [str(error), state.step, state.loader.position])
        found["diverged"] = stopped
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    """Return the command that starts so many processes."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return [sys.executable, *start, *arguments]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One process's run, first half and whole, and all that two made."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "device_peak", lambda *_: 1e12)
        # As two processes would, but by one: what differs from batches of 4 is rounding alone.
        for name, how in {
            "one": {"batch_size": 4},
            "noise": {"batch_size": 2, "accumulate": 2},
        }.items():
            state = begin(TEXT, HELD_OUT, **GENTLE, **how)
            start = follow(state, FIRST)
            save_checkpoint(state, folder / f"{name}, first half")
            (folder / f"{name}.json").write_text(json.dumps([start, follow(state, THEN)]))
            save_checkpoint(state, folder / name)
    done = subprocess.run(
        torchrun("-m", "tests.test_distributed", str(folder)),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder) -> dict:
    return json.loads((folder / "found.json").read_text("utf-8"))


def read(folder: Path, name: str) -> list:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def apart(folder: Path, one: str, other: str) -> float:
    """Return the largest difference between two checkpoints' weights, and between their moments."""
    alone = {"batch_size": 4, "accumulate": 1, "shard": False}
    states = [
        load_checkpoint(place, TEXT, None, *recipe(place, **alone))
        for place in (folder / one, folder / other)
    ]
    parts = [
        [t for w in s.model.parameters() for t in (w, *s.optimizer.state[w].values())]
        for s in states
    ]
    return max(float((a - b).detach().abs().max()) for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize("name", TWO)
def test_two_processes_are_one_at_the_same_global_batch(folder, found, name):
    """Losses and norms to float32's rounding, 6e-8 times a few dozen; weights to the noise floor.

    The floor is how far one process gets from itself when it sums the batch in two pieces. AdamW
    divides by the gradient's size, so rounding grows there by what the floor shows.
    """
    one = read(folder, "one")
    assert found[name][0] == pytest.approx(one[0], rel=5e-6)
    assert found[name][1] == pytest.approx(one[1], rel=5e-6)
    floor = apart(folder, "one", "noise")
    assert 0 < floor < 1e-5
    assert apart(folder, "one", name) <= 10 * floor
    # The noise is far below what one batch in another order would do.
    assert read_state(folder / name)["loader"] == read_state(folder / "one")["loader"]


@pytest.mark.parametrize("name", TWO)
def test_a_checkpoint_written_by_two_resumes_on_one(folder, name):
    first = folder / f"{name}, first half"
    go_on = recipe(first, batch_size=4, accumulate=1, shard=False)
    state = load_checkpoint(first, TEXT, HELD_OUT, *go_on)
    assert follow(state, THEN) == pytest.approx(read(folder, "one")[1], rel=5e-6)


@pytest.mark.parametrize("name", TWO)
def test_a_checkpoint_written_by_one_resumes_on_two(folder, found, name):
    assert found[f"one, then {name}"] == pytest.approx(read(folder, "one")[1], rel=5e-6)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_processes_are_one_in_16_bits_too(found, shard, precision):
    """To ten times what one process is from itself when it sums the batch in two pieces."""
    one, noise = (
        follow(begin(TEXT, **GENTLE, precision=precision, **how), FIRST)
        for how in ({"batch_size": 4}, {"batch_size": 2, "accumulate": 2})
    )
    floor = max(abs(a - b) for a, b in zip(one, noise, strict=True))
    assert 0 < floor < 0.02
    assert found[f"{precision} {shard}"] == pytest.approx(one, abs=10 * floor, rel=0)


def test_another_number_of_processes_does_not_change_the_batch_in_silence(folder):
    first = folder / "ddp, first half"
    reason = "had 2 process.* this one has 1: with --batch-size 2 .* be of 4 sequences"
    with pytest.raises(ValueError, match=reason):
        load_checkpoint(first, TEXT, HELD_OUT)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_two_resume_bit_for_bit_with_the_dropout_of_each(found, shard):
    straight, resumed = found[f"dropout {shard}"]
    assert resumed == straight


def test_each_process_drops_other_weights(found):
    one, other = found["drawn"]
    assert one != other


def test_a_loss_that_is_no_number_in_one_process_stops_both(found):
    assert [state[1:] for state in found["diverged"]] == [[0, 0], [0, 0]]
    assert all("nan" in state[0] for state in found["diverged"])


def test_checkpoints_of_two_are_those_of_one(folder):
    def files(place: Path) -> set[Path]:
        return {path.relative_to(place) for path in place.rglob("*")}

    tensors = {Path(name) for name in ("model.safetensors", "training/optimizer.safetensors")}
    parts = {
        Path("sharded", f"shard-0000{n}-model-0000{k}-of-00002.safetensors")
        for n in (1, 2)
        for k in (1, 2)
    } | {Path("sharded")}
    assert len(files(folder / "one")) > 6
    for name, how in TWO.items():
        own = files(folder / "one") - tensors | parts if "shard" in how else files(folder / "one")
        assert files(folder / name) == own


# Interruptions


def workers(process: subprocess.Popen) -> list[int]:
    """Return the numbers of the processes that ``torchrun`` started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
    lines = {int(n): Path(f"/proc/{n}/cmdline").read_bytes() for n in children}
    return [number for number, line in lines.items() if b"smol_scratch" in line]


@pytest.mark.slow
def test_an_interruption_of_one_or_of_all_stops_both_with_a_checkpoint(
    tmp_path, monkeypatch, tokenizer
):
    """SIGTERM to one of the two; and Ctrl-C, which a terminal sends to all, torchrun too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smol_scratch.run.load_tokenizer", lambda *_: tokenizer)
    Path("text.txt").write_text(WORDS, "utf-8")
    words = [*SMALL, "--text", "text.txt", "--steps", "2000"]
    launches = {"one": [], "all": ["--shard"]}
    processes = {
        save: subprocess.Popen(
            torchrun("-m", "smol_scratch", *words, "--save", save, *more),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for save, more in launches.items()
    }
    started: list[int] = []
    try:
        for save, process in processes.items():
            table = Path(f"{save}.csv")
            patience = time.monotonic() + 120
            while not table.exists() or table.read_text("utf-8").count("\n") < 6:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < patience
                time.sleep(0.02)
            both = workers(process)
            started += both
            assert len(both) == 2
            if save == "one":
                os.kill(both[1], signal.SIGTERM)
            else:
                os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=60)
            assert process.returncode != 0
            assert "Signal 6" not in said  # no abort at the end
            assert not any(Path(f"/proc/{number}").exists() for number in both)
            [(name, words)] = re.findall(r"interrupted; saved (\S+)\. To go on:\n  (.*)", said)
            launch = "torchrun --nproc-per-node 2 -m smol_scratch train"
            assert words == f"{launch} --ckpt {name} --save {save}"
            step = read_state(Path(name))["step"]
            assert [int(row["step"]) for row in numbers(table)] == list(range(step))
            # One process goes on with the same global batch.
            alone = [*words.removeprefix(launch).split(), "--batch-size", "4", "--no-shard"]
            assert main(["train", *alone, "--steps", str(step + 2)]) == 0
            steps = [int(row["step"]) for row in numbers(table)]
            assert steps == list(range(step + 3))
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for number in started:  # torchrun gives each a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def restartable(folder: Path, save: str) -> subprocess.Popen:
    """Start a sharded run of two processes that ``torchrun`` begins again when one dies."""
    words = [*SMALL, "--text", "text.txt", "--steps", "16", "--checkpoint-interval", "3"]
    words += ["--shard", "--accumulate", "2", "--checkpoint-activations", "--save", save]
    [python, *rest] = torchrun("-m", "smol_scratch", *words)
    rest[2:2] = ["--max-restarts", "1"]
    (folder / "text.txt").write_text(WORDS, "utf-8")
    return subprocess.Popen(
        [python, *rest],
        cwd=folder,
        # Else the new processes may find the addresses of the old ones (PyTorch issue 135712).
        env={
            **ENVIRONMENT,
            "PYTHONPATH": str(ROOT),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """The same run where nothing happened."""
    folder = tmp_path_factory.mktemp("calm")
    process = restartable(folder, "run")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "the last one torn"])
def test_a_killed_worker_comes_back_and_the_run_goes_on_bit_for_bit(tmp_path, calm, torn):
    """Under ``--max-restarts``; what was made after the last good checkpoint is made again."""
    process = restartable(tmp_path, "run")
    try:
        patience = time.monotonic() + 240
        while not (tmp_path / "run_step_6").is_dir():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < patience
            time.sleep(0.01)
        both = workers(process)
        if torn:
            os.kill(process.pid, signal.SIGSTOP)  # so that nobody begins again before it is torn
        os.kill(both[1], signal.SIGKILL)
        if torn:
            while alive(both[0]):  # it notices that the other one is gone
                assert time.monotonic() < patience
                time.sleep(0.01)
            last = max(int(path.name.split("_")[-1]) for path in tmp_path.glob("run_step_*"))
            part = next((tmp_path / f"run_step_{last}" / "sharded").iterdir())
            os.truncate(part, 1000)
            os.kill(process.pid, signal.SIGCONT)
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 0, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGKILL)
    [again] = re.findall(r"torchrun began again: on from run_step_(\d+)", said)
    if torn:
        assert int(again) == last - 3
    same = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm")
    tables = [
        [[row[name] for name in same] for row in numbers(folder / "run.csv")]
        for folder in (calm, tmp_path)
    ]
    assert tables[0] == tables[1]
    parts = list((calm / "run" / "sharded").iterdir())
    assert len(parts) == 4
    for part in parts:
        # Not the bytes: safetensors puts a file's own remarks in any order.
        one, other = (
            load_file(place / "run" / "sharded" / part.name) for place in (calm, tmp_path)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def alive(number: int) -> bool:
    """Say whether a process is there and not merely unburied."""
    try:
        return Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    gc.collect()  # models in cycles hold gloo's threads, which abort when Python ends before them
