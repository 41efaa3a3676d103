"""Checkpoints that each process writes and reads in parts: there whole or not at all.

``torchrun`` starts this file with two processes, and under ``-m slow`` with four; ``work`` makes
the runs in them, and the tests look at what they wrote. The model's sizes divide by neither, so
that some parts are smaller than others, and some are empty.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from smol_scratch import assets, hardware, hub, run, sharded
from smol_scratch.__main__ import main
from smol_scratch.checkpoint import Saving, is_whole, load_checkpoint, read_state, save_checkpoint
from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2
from smol_scratch.sharing import export_pretrained
from smol_scratch.training import TrainingState
from tests.test_distributed import ENVIRONMENT, ROOT, TEXT, follow, torchrun
from tests.test_training import OPTIONS, RECIPE, SMALL, WORDS

pytestmark = [
    pytest.mark.usefixtures("peak"),  # none measures the processor first
    pytest.mark.skipif(
        not (sys.platform == "linux" and dist.is_available() and dist.is_gloo_available()),
        reason="needs Linux and gloo",
    ),
]

UNEVEN = SmolLM2Config(
    block_size=16,
    vocab_size=61,
    n_layer=2,
    n_head=3,
    n_kv_head=1,
    n_embd=18,
    intermediate_size=10,
    head_dim=6,
)
FIRST, THEN, SEQUENCES = 3, 4, 4
KEPT, GONE = "kept", "gone"


def how(processes: int) -> dict:
    """Return recipe and options of this many processes, with the same sequences to an update."""
    return {
        "config": dataclasses.replace(RECIPE, batch_size=SEQUENCES // processes, dropout=0.0),
        "options": dataclasses.replace(OPTIONS, shard=processes > 1),
    }


def begin(shape: SmolLM2Config = UNEVEN) -> TrainingState:
    torch.manual_seed(0)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    settings = how(processes)
    return TrainingState.create(
        settings["config"], TEXT, None, settings["options"], model=SmolLM2(shape)
    )


def resume(folder: Path) -> TrainingState:
    processes = dist.get_world_size() if dist.is_initialized() else 1
    return load_checkpoint(folder, TEXT, None, *how(processes).values())


def work(folder: Path, other: Path | None) -> None:
    """In each process: save while training goes on, be refused by the disk, resume."""
    rank, found = dist.get_rank(), {}
    state = begin()
    follow(state, FIRST)
    with pytest.MonkeyPatch.context() as patch, Saving(state) as saving:

        def nobody(tensor: DTensor, **named: object) -> torch.Tensor:
            assert tensor.numel() == 1, "a process asked for the whole of a tensor"
            return FULL(tensor, **named)

        patch.setattr(DTensor, "full_tensor", nobody)
        # Nothing is written before two more steps are made, which change all weights in place.
        go, write = threading.Event(), sharded._Writer.write_data

        def write_later(self: object, plan: object, planner: object) -> object:
            go.wait(60)
            return write(self, plan, planner)

        patch.setattr(sharded._Writer, "write_data", write_later)
        saving.begin(folder / KEPT)
        straight = follow(state, 2)
        found["not there before it is whole"] = not saving.done() and not (folder / KEPT).exists()
        go.set()
        saving.wait()
        found["there"] = is_whole(folder / KEPT, state.config)
        resumed = resume(folder / KEPT)
    straight += follow(state, THEN)
    found["straight"] = straight
    found["resumed"] = follow(resumed, 2) + follow(resumed, THEN)
    if other:
        found["of another number"] = follow(resume(other), THEN)

    # The system refuses one process to write more than this into a file.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == dist.get_world_size() - 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    for name in (GONE, KEPT):
        try:
            save_checkpoint(state, folder / name, replace=True)
        except OSError as error:
            found[f"refused {name}"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(every))


FULL = DTensor.full_tensor


def launch(processes: int, *words: str) -> str:
    """Run a function of this file in several processes; return what they printed."""
    done = subprocess.run(
        torchrun("-m", "tests.test_sharded", *words, processes=processes),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch(2, "work", str(folder))
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def folder(request, two, tmp_path_factory) -> Path:
    """What this many processes have written."""
    if request.param == 2:
        return two
    folder = tmp_path_factory.mktemp("four")
    launch(4, "work", str(folder), str(two / KEPT))
    return folder


@pytest.fixture
def found(folder) -> list[dict]:
    return json.loads((folder / "found.json").read_text("utf-8"))


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder / KEPT, target / "c")
    return target / "c"


def one(folder: Path) -> list[float]:
    """Go on alone."""
    return follow(resume(folder), 2 + THEN)[: 2 + THEN]


def test_training_goes_on_while_the_state_of_before_is_written(found):
    for theirs in found:
        assert theirs["not there before it is whole"]
        assert theirs["there"]
        assert theirs["resumed"] == theirs["straight"]  # bit for bit


def test_another_number_of_processes_goes_on_up_to_rounding(folder, found):
    """To 5e-6 as in ``test_distributed``; two's checkpoint on four, and either on one."""
    straight = found[0]["straight"][:2]
    assert one(folder / KEPT)[:2] == pytest.approx(straight, rel=5e-6)
    if "of another number" in found[0]:
        assert found[0]["of another number"][:2] == pytest.approx(straight, rel=5e-6)


def test_a_disk_that_refuses_one_process_is_told_to_all_and_leaves_the_old_checkpoint(
    folder, found
):
    for theirs in found:
        for name in (GONE, KEPT):
            assert theirs[f"refused {name}"] == f"[Errno 27] File too large: '{folder / name}'"
    assert {path.name for path in folder.iterdir()} == {KEPT, "found.json"}
    assert read_state(folder / KEPT)["step"] == FIRST


def test_no_file_holds_more_than_a_share(folder, found):
    parts = sorted((folder / KEPT / "sharded").iterdir())
    assert len(parts) == 2 * len(found)
    model, sizes = SmolLM2(UNEVEN), [path.stat().st_size for path in parts]
    weights, header = 4 * sum(w.numel() for w in model.parameters()), 8000
    for part, size in zip(parts, sizes, strict=True):
        moments = "00002-of-00002" in part.name
        # The largest part of a dimension of n in p has n / p rounded up: here at most half more.
        assert size - header < 1.5 * (1 + moments) * weights / len(found)


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
        return
    if kind == "torn":
        del data[len(data) // 2 :]
    else:
        data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["torn", "flipped", "missing"])
def test_torn_at_any_file_it_is_named_and_the_one_before_is_taken(folder, tmp_path, kind):
    names = [path.relative_to(folder / KEPT) for path in (folder / KEPT).rglob("*.*")]
    config = read_state(folder / KEPT)["config"]
    for number, name in enumerate(names):
        good, bad = (tmp_path / f"{number}_step_{step}" for step in (3, 6))
        shutil.copytree(folder / KEPT, good)
        shutil.copytree(folder / KEPT, bad)
        damage(bad / name, kind)
        with pytest.raises((assets.CorruptAssetError, assets.MissingAssetError)) as caught:
            resume(bad)
        assert str(name.name) in str(caught.value)
        assert run.last_whole(run.step_folders(tmp_path / f"{number}"), config) == good
    assert len(names) > 6


def test_a_model_with_missing_parts_is_no_model(folder, tmp_path):
    """Who speaks with it reads no checksums; parts that are not there must show all the same."""
    for number, part in enumerate(sorted((folder / KEPT / "sharded").glob("*00001-of*"))):
        (tmp_path / str(number)).mkdir()
        bad = copy(folder, tmp_path / str(number))
        (bad / "sharded" / part.name).unlink()
        with pytest.raises(assets.CorruptAssetError, match=r"parts of .* missing|shape|is missing"):
            hub.load_pretrained(bad, quiet=True)


def test_nothing_is_pickled_and_no_pickle_is_read(folder, tmp_path):
    bad = copy(folder, tmp_path)
    kinds = {path.suffix for path in bad.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert not any(b"cpickle" in p.read_bytes() for p in bad.rglob("*.safetensors"))

    class Bad:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    for place in (bad, bad / "sharded", bad / "training"):
        (place / ".metadata").write_bytes(pickle.dumps(Bad()))
    resume(bad)
    hub.load_pretrained(bad, quiet=True)
    assert not (tmp_path / "executed").exists()
    pickle.loads((bad / ".metadata").read_bytes())
    assert (tmp_path / "executed").exists()


def test_export_gives_the_bytes_that_a_plain_checkpoint_gives(folder, tmp_path):
    save_checkpoint(resume(folder / KEPT), tmp_path / "plain")
    for name, source in {"a": folder / KEPT, "b": tmp_path / "plain"}.items():
        export_pretrained(hub.load_pretrained(source, quiet=True), tmp_path / name / "model")
    files = [path.name for path in (tmp_path / "a" / "model").iterdir()]
    assert {"model.safetensors", "config.json"} <= set(files)
    for name in set(files) - {"README.md"}:  # the card counts the tokens of all processes
        a, b = ((tmp_path / place / "model" / name).read_bytes() for place in "ab")
        assert a == b


# Memory


def measure(folder: Path) -> None:
    """Print by how much each process grows when it saves and loads, and the whole's size."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text("utf-8")
        return int(re.findall(rf"{name}:\s+(\d+) kB", lines)[0]) * 1024

    def grown(task, *arguments: object) -> int:
        gc.collect()
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = status("VmRSS")
        task(*arguments)
        return status("VmHWM") - before

    state = begin(dataclasses.replace(UNEVEN, vocab_size=1_000_000))
    follow(state, 1)
    whole = 3 * 4 * sum(w.numel() for w in state.model.parameters())
    saving = grown(save_checkpoint, state, folder / "large")
    state.optimizer.state.clear()
    loading = grown(resume, folder / "large")
    print(f"[{dist.get_rank()}] {whole} {saving} {loading}", flush=True)


@pytest.mark.slow
def test_no_process_holds_the_whole_to_save_or_to_load(tmp_path):
    """Of four, each holds a copy of its quarter, and that again as the bytes of a file: a half.

    To load, it holds its quarter twice: what is read, and what it becomes.
    """
    said = re.findall(r"\[(\d)\] (\d+) (\d+) (\d+)", launch(4, "measure", str(tmp_path)))
    assert len(said) == 4
    for _, whole, saving, loading in said:
        assert int(saving) < 0.7 * int(whole)
        assert int(loading) < 0.7 * int(whole)


# The command line


def refuse(folder: Path) -> None:
    """Train as the command does; from the third checkpoint on, the last process has a full disk."""
    begin_one, count = Saving.begin, []

    def begin_or_fill(self: Saving, *arguments: object, **named: object) -> None:
        count.append(1)
        if len(count) == 3 and dist.get_rank() == dist.get_world_size() - 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        begin_one(self, *arguments, **named)

    Saving.begin = begin_or_fill
    os.chdir(folder)
    words = [*SMALL, "--text", "text.txt", "--steps", "200", "--checkpoint-interval", "3"]
    main([*words, "--shard", "--keep", "1", "--save", "run"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_run_whose_disk_fills_up_ends_with_a_line_and_its_last_good_checkpoint(
    tmp_path, processes
):
    (tmp_path / "text.txt").write_text(WORDS, "utf-8")
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    done = subprocess.run(
        [sys.executable, *start, "-m", "tests.test_sharded", "refuse", str(tmp_path)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "File too large: 'run_step_9'; the last checkpoint is run_step_6\n" in said
    assert done.returncode != 0
    assert "CheckpointException" not in said  # PyTorch's own, of many lines
    kept = [path.name for path in tmp_path.iterdir()]
    assert sorted(kept) == ["run.csv", "run_step_6", "text.txt"]
    assert is_whole(tmp_path / "run_step_6", read_state(tmp_path / "run_step_6")["config"])


if __name__ == "__main__":
    hardware.device_peak = lambda *_: 1e12
    task, places = sys.argv[1], [Path(word) for word in sys.argv[2:]]
    if task == "refuse":
        refuse(*places)
    else:
        dist.init_process_group("gloo")
        if task == "work":
            work(places[0], places[1] if places[1:] else None)
        else:
            measure(*places)
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
