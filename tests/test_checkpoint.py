"""A run resumes bit for bit, or is refused: fresh processes, kills, damage, full disks.

What loses something (``LOSSES``) breaks a run in the ways in which notebook 10 breaks its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from smol_scratch import assets, checkpoint, hardware
from smol_scratch.checkpoint import (
    FIXED,
    GENERATORS,
    OLDER,
    OPTIMIZER,
    STATE,
    _digest,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2
from smol_scratch.run import remove_old, step_folder
from smol_scratch.training import TrainingState, make_optimizer, train
from tests.test_training import TOKENS, begin, losses

pytestmark = pytest.mark.usefixtures("peak")  # none measures the processor first

HELD_OUT = TOKENS[::-1]
FIRST, THEN = (
    7,
    8,
)  # steps before and after; a pass has 5 batches, so each part crosses into a new one

# Two schedules and none, with and without dropout, in each precision; then what else may differ.
CASES = {
    f"{precision} {dropout} {name}": {"precision": precision, "dropout": dropout, **schedule}
    for precision in ("fp32", "bf16")
    for dropout in (0.0, 0.1)
    for name, schedule in {
        "cosine": {},
        "wsd": {"schedule": "wsd", "decay_steps": 6},
        "constant": {"lr_schedule": False},
    }.items()
} | {
    "accumulated": {"accumulate": 3, "dropout": 0.1, "precision": "bf16"},
    "looked at": {"eval_interval": 2, "dropout": 0.1},
    "float16": {"precision": "fp16", "dropout": 0.1},
    "two groups": {"decay_matrices_only": True},
    "plain pieces": {"fast": False, "precision": "bf16", "dropout": 0.1},
    "schedule ends": {"steps": 10},
}


def fingerprint(state: TrainingState) -> str:
    """Return the SHA-256 over weights, moments, place in the text and generator."""
    found = hashlib.sha256(f"{state.step} {state.loader.state_dict()}".encode())
    for name, weight in state.model.named_parameters():
        parts = state.optimizer.state[weight]
        for tensor in (weight.detach(), *(parts[part] for part in sorted(parts))):
            found.update(name.encode() + tensor.numpy().tobytes())
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


def go_on(state: TrainingState, steps: int) -> list[str]:
    """Make steps; return all that must be equal bit for bit: every loss, and the state's hash."""
    rows = list(train(state, state.step + steps))
    seen = [f"{row.step} {row.loss.hex()} {row.learning_rate.hex()}" for row in rows]
    held_out = [row.held_out_loss.hex() for row in rows if row.held_out_loss is not None]
    return [*seen, *held_out, fingerprint(state)]


def resume_all(folder: Path) -> None:
    """In a fresh process: go on from every case's checkpoint and print what came out."""
    hardware.device_peak = lambda *_: 1e12
    found = {}
    for name in CASES:
        state = load_checkpoint(folder / name, TOKENS, HELD_OUT)
        found[name] = go_on(state, THEN)
    print(json.dumps(found))


def fresh_process(call: str, timeout: float = 300) -> str:
    """Run a function of this file in another process; return what it printed."""
    code = f"from pathlib import Path; from tests import test_checkpoint; test_checkpoint.{call}"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Exact resume


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return what N + M steps straight give, and N steps, a fresh process, M steps."""
    folder = tmp_path_factory.mktemp("resume")
    straight = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "device_peak", lambda *_: 1e12)
        for name, how in CASES.items():
            state = begin(held_out=HELD_OUT, **how)
            losses(state, FIRST)
            save_checkpoint(state, folder / name)
            straight[name] = go_on(state, THEN)
    return straight, json.loads(fresh_process(f"resume_all(Path({str(folder)!r}))"))


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_goes_on_bit_for_bit(both_ways, name):
    straight, resumed = both_ways
    assert resumed[name] == straight[name]


def test_the_cases_are_different_runs(both_ways):
    """Else equality would say little; only a look at held-out text changes nothing."""
    hashes = {name: run[-1] for name, run in both_ways[0].items()}
    assert hashes.pop("looked at") == hashes["fp32 0.1 cosine"]
    assert len(set(hashes.values())) == len(hashes)


def test_compiled_blocks_go_on_bit_for_bit(tmp_path, monkeypatch):
    """With the compiler's front alone, which needs no C++."""

    def compile_blocks(model: SmolLM2) -> None:
        for block in model.model.layers:
            block.compile(backend="aot_eager")

    monkeypatch.setattr("smol_scratch.fast.compile_blocks", compile_blocks)
    state = begin(held_out=HELD_OUT, compile=True, dropout=0.1, precision="bf16", eval_interval=3)
    losses(state, FIRST)
    save_checkpoint(state, tmp_path / "half")
    straight = go_on(state, THEN)
    torch.manual_seed(999)
    assert go_on(load_checkpoint(tmp_path / "half", TOKENS, HELD_OUT), THEN) == straight


def test_saving_disturbs_nothing(tmp_path):
    state = begin(dropout=0.1)
    expected = go_on(state, FIRST + THEN)
    state = begin(dropout=0.1)
    found = []
    for row in train(state, FIRST + THEN):
        found.append(f"{row.step} {row.loss.hex()} {row.learning_rate.hex()}")
        save_checkpoint(state, tmp_path / "c", replace=True)
    assert [*found, fingerprint(state)] == expected


def test_a_finished_run_goes_on_at_the_lowest_learning_rate(tmp_path):
    state = begin(steps=6)
    list(train(state))
    save_checkpoint(state, tmp_path / "c")
    before = read_state(tmp_path / "c")["config"]
    resumed = load_checkpoint(
        tmp_path / "c", TOKENS, config=type(before)(**{**vars(before), "steps": 12})
    )
    assert {row.learning_rate for row in train(resumed)} == {before.min_learning_rate}
    assert resumed.step == 12


def test_a_checkpoint_before_the_first_step(tmp_path):
    state = begin(dropout=0.1)
    save_checkpoint(state, tmp_path / "c")
    expected = go_on(state, 3)
    assert go_on(load_checkpoint(tmp_path / "c", TOKENS), 3) == expected


def test_the_scale_of_float16_is_kept(tmp_path):
    state = begin(precision="fp16")
    losses(state, 1)
    state.scaler.update(128.0)
    losses(state, 1)
    save_checkpoint(state, tmp_path / "c")
    resumed = load_checkpoint(tmp_path / "c", TOKENS)
    assert resumed.scaler.state_dict() == state.scaler.state_dict()
    assert resumed.scaler.get_scale() == 128


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_run_can_go_on_in_another_precision(tmp_path, before, after):
    """A scale begins where there was none, and is left where none is needed."""
    state = begin(precision=before)
    losses(state, 1)
    save_checkpoint(state, tmp_path / "c")
    config = dataclasses.replace(state.config, precision=after)
    resumed = load_checkpoint(tmp_path / "c", TOKENS, config=config)
    assert resumed.scaler.get_scale() == begin(precision=after).scaler.get_scale()
    losses(resumed, 1)
    assert resumed.step == 2


# Broken on purpose, five ways


def lose_optimizer(state: TrainingState) -> None:
    """Start the moments from nothing."""
    state.optimizer = make_optimizer(state.model, state.config)


def lose_generator(state: TrainingState) -> None:
    """Seed as at the beginning, so that dropout repeats itself."""
    torch.manual_seed(state.config.seed)


def lose_position(state: TrainingState) -> None:
    """Read the text from its beginning."""
    state.loader.load_state_dict({**state.loader.state_dict(), "position": 0, "passes": 0})


def lose_step(state: TrainingState) -> None:
    """Count from zero, so that the learning rate warms up again."""
    state.step = 0


def store_weights_in_fp16(state: TrainingState) -> None:
    """Round the weights as a file in float16 does."""
    with torch.no_grad():
        for weight in state.model.parameters():
            weight.copy_(weight.half())


LOSSES = {
    "optimizer state": lose_optimizer,
    "generator": lose_generator,
    "position": lose_position,
    "step": lose_step,
    "weights in fp16": store_weights_in_fp16,
}


@pytest.mark.parametrize("lost", [None, *LOSSES])
def test_what_is_lost_shows(tmp_path, lost):
    state = begin(dropout=0.1)
    losses(state, FIRST)
    save_checkpoint(state, tmp_path / "c")
    expected = losses(state, THEN)
    resumed = load_checkpoint(tmp_path / "c", TOKENS)
    if lost is not None:
        LOSSES[lost](resumed)
    found = losses(resumed, THEN)
    assert (found == expected) == (lost is None)
    if lost in ("optimizer state", "step"):
        assert found[0] == expected[0]  # the loss of weights that are still the same
        assert found[1:] != expected[1:]


def test_the_generator_of_a_card_is_kept_beside_the_processors(monkeypatch):
    """No card is here: a device module that has a generator and nothing else stands for it."""
    card = torch.Generator().manual_seed(5)
    module = SimpleNamespace(get_rng_state=card.get_state, set_rng_state=card.set_state)
    monkeypatch.setattr(torch, "get_device_module", lambda device: {"cuda": module}[device.type])
    state = SimpleNamespace(rank=0, world_size=1, device=torch.device("cuda", 0))
    kept = checkpoint._generators(state)
    assert kept.keys() == {"rank0.cpu", "rank0.device"}
    drawn = torch.rand(3), torch.rand(3, generator=card)
    checkpoint._set_generators(state, kept)
    again = torch.rand(3), torch.rand(3, generator=card)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    checkpoint._set_generators(SimpleNamespace(rank=0, device=torch.device("cpu")), kept)
    assert torch.equal(torch.rand(3), drawn[0])  # a run that goes on without the card


def test_without_dropout_no_generator_is_needed(tmp_path):
    state = begin()
    losses(state, FIRST)
    save_checkpoint(state, tmp_path / "c")
    expected = losses(state, THEN)
    resumed = load_checkpoint(tmp_path / "c", TOKENS)
    lose_generator(resumed)
    assert losses(resumed, THEN) == expected


# Killed while it saves


def kill_while_saving(folder: Path, times: int) -> None:
    """Kill a child that does nothing but save, again and again; look at what is left each time.

    The child is a fork of this process, which has everything loaded. Even rounds save each step
    under its own name and keep two, odd rounds replace the same two folders in turn. The child
    says through a pipe which saves have ended.
    """
    torch.set_num_threads(1)
    hardware.device_peak = lambda *_: 1e12
    state = begin()
    losses(state, 1)
    start = time.perf_counter()
    save_checkpoint(state, folder / "warm")
    once = time.perf_counter() - start
    shutil.rmtree(folder / "warm")
    chance = random.Random(0)
    found = {"kills": 0, "in the middle": 0, "saved": 0}
    for round_ in range(times):
        place = folder / str(round_)
        place.mkdir()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                save_for_ever(state, place, replace=round_ % 2 == 1, told=writer)
            os._exit(1)
        os.close(writer)
        told = os.read(reader, 4)  # the first save is whole
        time.sleep(chance.uniform(0, 2.5 * once))
        os.kill(child, signal.SIGKILL)
        found["kills"] += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        while more := os.read(reader, 1 << 16):
            told += more
        os.close(reader)
        last = int.from_bytes(told[-4:], "little")
        found["saved"] += last
        found["in the middle"] += any(path.name.startswith(".") for path in place.iterdir())
        steps = [look(path) for path in place.iterdir() if not path.name.startswith(".")]
        # What may be gone is the older one of two that was about to be replaced.
        assert max(steps) >= last, f"round {round_}: {steps} are there, {last} was saved"
        shutil.rmtree(place)
    print(json.dumps(found))


def save_for_ever(state: TrainingState, place: Path, *, replace: bool, told: int) -> None:
    """Save step after step; every weight and moment is the number of its step."""
    for step in itertools.count(1):
        state.step = step
        with torch.no_grad():
            for weight in state.model.parameters():
                for tensor in (weight, *state.optimizer.state[weight].values()):
                    tensor.fill_(step)
        folder = step_folder(place / "run", step % 2 if replace else step)
        save_checkpoint(state, folder, replace=replace)
        if not replace:
            remove_old(place / "run", 2, step)
        os.write(told, step.to_bytes(4, "little"))


def look(folder: Path) -> int:
    """Load a checkpoint, which must be whole, and return its step."""
    state = load_checkpoint(folder, TOKENS)
    for weight in state.model.parameters():
        for tensor in (weight, *state.optimizer.state[weight].values()):
            assert bool((tensor == state.step).all()), f"{folder}: not of step {state.step}"
    return state.step


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_100_times_while_saving_there_is_always_a_checkpoint_and_never_a_wrong_one(tmp_path):
    found = json.loads(fresh_process(f"kill_while_saving(Path({str(tmp_path)!r}), 100)"))
    assert found["kills"] == 100
    assert found["in the middle"] > 50  # most kills struck within a save
    assert found["saved"] > 100


# Damage


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A checkpoint after two steps. Nobody may change it."""
    folder = tmp_path_factory.mktemp("good") / "run_step_2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "device_peak", lambda *_: 1e12)
        state = begin(dropout=0.1)
        losses(state, 2)
        save_checkpoint(state, folder)
    return folder


FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    OPTIMIZER,
    GENERATORS,
    STATE,
)
REFUSED = (assets.CorruptAssetError, assets.MissingAssetError)


def test_what_a_checkpoint_consists_of(good):
    there = [path for path in good.rglob("*") if path.is_file()]
    assert {path.relative_to(good).as_posix() for path in there} == set(FILES)
    content = json.loads((good / STATE).read_text("utf-8"))
    assert set(content["files"]) == set(FILES) - {STATE}
    assert content["step"] == 2
    if os.name != "nt":
        assert good.stat().st_mode & 0o777 == 0o755
        assert {path.stat().st_mode & 0o777 for path in there} == {0o644}
    assert {t.dtype for t in load_file(good / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "longer", "flipped"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(good, tmp_path, file, how):
    folder = tmp_path / "c"
    shutil.copytree(good, folder)
    data = (folder / file).read_bytes()
    if how == "missing":
        (folder / file).unlink()
    elif how == "flipped":
        middle = len(data) // 2
        (folder / file).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        changed = {"empty": b"", "truncated": data[: len(data) // 2], "longer": data + b"x"}
        (folder / file).write_bytes(changed[how])
    with pytest.raises(REFUSED, match=file):
        load_checkpoint(folder, TOKENS)


def test_no_flipped_bit_of_the_training_state_passes(good, tmp_path):
    """It has no other file to hold its hash; each bit of it, in steps of some."""
    folder = tmp_path / "c"
    shutil.copytree(good, folder)
    data = (folder / STATE).read_bytes()
    expected = read_state(good)
    for bit in range(0, 8 * len(data), 29):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / STATE).write_bytes(changed)
        try:
            found = read_state(folder)
        except assets.CorruptAssetError:
            continue
        assert found == expected, f"bit {bit}: {data[bit // 8 - 20 : bit // 8 + 20]!r}"


def test_a_training_state_that_was_changed_is_named_with_what_to_do(good, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(good, folder)
    text = (folder / STATE).read_text("utf-8")
    (folder / STATE).write_text(text.replace('"step": ', '"step": 1', 1), "utf-8")
    said = f"{folder / STATE} is damaged: its content does not have the SHA-256 that it states; go"
    with pytest.raises(assets.CorruptAssetError, match=f"^{re.escape(said)} on from an earlier"):
        read_state(folder)


def change(folder: Path, **fields: object) -> None:
    """Change a training state, with hashes that fit: as another program's would be."""
    content = json.loads((folder / STATE).read_text("utf-8"))
    content |= fields
    content["files"] = {name: assets.sha256(folder / name) for name in content["files"]}
    content.pop("sha256", None)
    content["sha256"] = _digest(content)
    (folder / STATE).write_text(json.dumps(content), "utf-8")


def other_model(folder: Path, **shape: int) -> None:
    """Write a checkpoint of a model of another shape."""
    changed = {**vars(SmolLM2Config()), **vars(begin().model.config), **shape}
    state = begin(model=SmolLM2(SmolLM2Config(**changed)))
    losses(state, 1)
    save_checkpoint(state, folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", OPTIMIZER])
def test_a_file_of_another_model_is_refused(good, tmp_path, file):
    other_model(tmp_path / "other", intermediate_size=64)
    shutil.copytree(good, tmp_path / "c")
    shutil.copy(tmp_path / "other" / file, tmp_path / "c" / file)
    with pytest.raises(assets.CorruptAssetError, match=f"{file} is damaged: SHA-256"):
        load_checkpoint(tmp_path / "c", TOKENS)
    change(tmp_path / "c")  # even where the hashes fit
    with pytest.raises((assets.CorruptAssetError, ValueError), match=r"instead of|another model"):
        load_checkpoint(tmp_path / "c", TOKENS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "3"),
        ("step", -1),
        ("step", None),
        ("world_size", 0),
        ("loader", [0, 0, 81]),
        ("loader", {}),
        ("files", None),
        ("text_sha256", 5),
        ("scaler", []),
        ("param_groups", {}),
        ("param_groups", []),
        ("param_groups", [{"params": ["model.norm.weight"]}]),
        ("param_groups", [5]),
        ("config", []),
        ("options", {"keep": 0}),
    ],
)
def test_a_whole_training_state_of_another_program_is_named(good, tmp_path, name, value):
    """Its SHA-256 fits: then types and fields decide."""
    shutil.copytree(good, tmp_path / "c")
    change(tmp_path / "c")
    load_checkpoint(tmp_path / "c", TOKENS)
    content = json.loads((good / STATE).read_text("utf-8")) | {name: value}
    content.pop("sha256")
    content["sha256"] = _digest(content)
    (tmp_path / "c" / STATE).write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"damaged|whole state|state of a DataLoader") as error:
        load_checkpoint(tmp_path / "c", TOKENS)
    assert "\n" not in str(error.value)


def test_settings_that_another_program_stored_do_not_enter_the_run(good, tmp_path):
    shutil.copytree(good, tmp_path / "c")
    groups = json.loads((good / STATE).read_text("utf-8"))["param_groups"]
    change(tmp_path / "c", param_groups=[group | {"maximize": True} for group in groups])
    found, expected = (load_checkpoint(f, TOKENS).optimizer for f in (tmp_path / "c", good))
    for group, right in zip(found.param_groups, expected.param_groups, strict=True):
        assert group.keys() == right.keys()
        assert group["maximize"] is right["maximize"] is False


def test_a_folder_that_is_no_checkpoint(good, tmp_path):
    with pytest.raises(assets.MissingAssetError, match="nowhere: no such checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere", TOKENS)
    model = tmp_path / "model"
    shutil.copytree(good, model)
    (model / STATE).unlink()
    reason = rf"model holds no {STATE}: not a checkpoint.*--init .*model starts a new run"
    with pytest.raises(assets.MissingAssetError, match=reason):
        load_checkpoint(model, TOKENS)
    for wrong in ("[]", "null", "7", "{}", '{"format": "of another program"}'):
        (model / STATE).write_text(wrong)
        with pytest.raises(assets.CorruptAssetError, match=STATE):
            load_checkpoint(model, TOKENS)


# For each field that a resumed run cannot change, another value, and what it cannot be without.
OTHERWISE = {
    "preset": {"preset": "360M"},
    "init": {"init": "other", "block_size": 1024},
    "block_size": {"block_size": 32},
    "init_std": {"init_std": 0.03},
    "dropout": {"dropout": 0.3},
    "seed": {"seed": 1},
    "held_out": {"held_out": 0.5},
    "weights": {"weights": (2.0,), "shards": (Path("stored"),)},
    "order": {"order": "stored", "shards": (Path("stored"),)},
    "mask_documents": {"mask_documents": True, "shards": (Path("stored"),)},
    "decay_matrices_only": {"decay_matrices_only": True},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_a_run_was_begun_with_cannot_change(good, name):
    assert set(FIXED) == set(OTHERWISE)
    before = read_state(good)["config"]
    config = type(before)(**{**vars(before), **OTHERWISE[name]})
    assert getattr(config, name) != getattr(before, name)
    said = f"{name}={getattr(config, name)!r}: the run in {good} was begun with "
    said += f"{getattr(before, name)!r}, which cannot change; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        load_checkpoint(good, TOKENS, config=config)


def test_settings_of_adamw_can_change_on_the_way(good):
    before = read_state(good)["config"]
    changes = {"weight_decay": 0.0, "beta1": 0.8, "beta2": 0.9}
    state = load_checkpoint(good, TOKENS, config=dataclasses.replace(before, **changes))
    [group] = state.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.8, 0.9))
    [group] = load_checkpoint(good, TOKENS).optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (before.weight_decay, (0.9, 0.95))


def test_another_text_is_refused(good):
    other = TOKENS.copy()
    other[-1] += 1
    with pytest.raises(ValueError, match="begun with another text"):
        load_checkpoint(good, other)
    with pytest.raises(ValueError, match="less than one batch"):
        load_checkpoint(good, TOKENS[:10])


# Disks


def only(folder: Path, *names: str) -> None:
    """Assert that nothing else is in a folder, hidden or not."""
    assert {path.name for path in folder.iterdir()} == set(names)


def test_an_existing_folder_is_not_replaced_unless_allowed(tmp_path):
    state = begin()
    losses(state, 1)
    folder = tmp_path / "deep" / "c"
    save_checkpoint(state, folder)
    losses(state, 1)
    with pytest.raises(FileExistsError, match="c is already there: name another folder"):
        save_checkpoint(state, folder)
    assert read_state(folder)["step"] == 1
    save_checkpoint(state, folder, replace=True)
    assert read_state(folder)["step"] == 2
    only(folder.parent, "c")


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    state = begin()
    losses(state, 1)
    save_checkpoint(state, tmp_path / "c")
    losses(state, 1)
    needed = 3 * 4 * sum(w.numel() for w in state.model.parameters())  # weights and two moments
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(OSError, match=r"needs \d+ MB and \d+ MB are free.*--keep") as caught:
        save_checkpoint(state, tmp_path / "c", replace=True)
    assert caught.value.errno == errno.ENOSPC
    only(tmp_path, "c")
    assert load_checkpoint(tmp_path / "c", TOKENS).step == 1
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * needed))
    save_checkpoint(state, tmp_path / "c", replace=True)
    assert load_checkpoint(tmp_path / "c", TOKENS).step == 2


@pytest.mark.parametrize("place", ["write_model_files", "save_file", "assets._flush", "_digest"])
def test_a_disk_that_fills_up_in_the_middle_leaves_the_old_checkpoint(tmp_path, monkeypatch, place):
    state = begin()
    losses(state, 1)
    save_checkpoint(state, tmp_path / "c")
    losses(state, 1)
    before = fingerprint(state)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"smol_scratch.checkpoint.{place}", full)
    for name in ("c", "d"):
        with pytest.raises(OSError, match="No space left on device"):
            save_checkpoint(state, tmp_path / name, replace=True)
    monkeypatch.undo()
    only(tmp_path, "c")
    assert load_checkpoint(tmp_path / "c", TOKENS).step == 1
    assert fingerprint(state) == before  # the run itself can go on


def write_past_the_limit(folder: Path) -> None:
    """Save where the system itself refuses more than 40 kB a file, after one save without it."""
    hardware.device_peak = lambda *_: 1e12
    state = begin()
    losses(state, 1)
    save_checkpoint(state, folder / "c")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    losses(state, 1)
    try:
        save_checkpoint(state, folder / "c", replace=True)
    except OSError as error:
        print(error)


@pytest.mark.skipif(os.name == "nt", reason="needs setrlimit")
def test_a_write_that_the_system_refuses_is_an_os_error_too(tmp_path):
    """The writer of safetensors raises an error of its own, which is no OSError."""
    said = fresh_process(f"write_past_the_limit(Path({str(tmp_path)!r}))")
    assert "c cannot be written" in said
    assert "File too large" in said
    only(tmp_path, "c")
    assert load_checkpoint(tmp_path / "c", TOKENS).step == 1


# What others read


def test_transformers_loads_the_folder_as_it_is(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = SmolLM2Config.preset("tiny", n_layer=2)
    state = begin(model=SmolLM2(config), block_size=256, precision="fp32")
    losses(state, 2)
    save_checkpoint(state, tmp_path / "c", tokenizer)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "c", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    words = "First Citizen:\nBefore we proceed any further, hear me speak. 1623"
    ids = tokenizer.encode(words)
    reader = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert reader(words)["input_ids"] == ids
    idx = torch.tensor([ids])
    state.model.eval()
    with torch.no_grad():
        ours, other = state.model(idx)[0], theirs(idx).logits
    assert ours.dtype == other.dtype == torch.float32
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)
    assert torch.equal(ours.argmax(-1), other.argmax(-1))


def test_nothing_is_pickled(good):
    for path in (path for path in good.rglob("*") if path.is_file()):
        assert path.suffix in (".json", ".safetensors")
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_a_checkpoint_of_version_2_still_loads(good, tmp_path):
    """There the options of the sitting stood among the recipe's fields."""
    old = tmp_path / "old"
    shutil.copytree(good, old)
    content = json.loads((old / STATE).read_text("utf-8"))
    del content["sha256"]
    content["format"] = OLDER
    content["config"] |= content.pop("options")
    for name in (OPTIMIZER, GENERATORS):  # they stood beside the model
        (old / name).rename(old / Path(name).name)
        content["files"][Path(name).name] = content["files"].pop(name)
    content["sha256"] = checkpoint._digest(content)
    (old / STATE).write_text(json.dumps(content), "utf-8")
    expected, found = read_state(good), read_state(old)
    assert (found["config"], found["options"]) == (expected["config"], expected["options"])
    ours, theirs = (go_on(load_checkpoint(folder, TOKENS), 2) for folder in (old, good))
    assert ours == theirs


def test_no_server_takes_a_file_of_the_run_for_weights(good):
    """vLLM and SGLang read every safetensors file in the folder itself."""
    assert [path.name for path in good.glob("*.safetensors")] == ["model.safetensors"]


def test_another_number_of_processes_asks_for_a_batch_size_or_an_accumulation(good, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(good, two)
    content = json.loads((two / STATE).read_text("utf-8"))
    del content["sha256"]
    content["world_size"] = 2
    content["sha256"] = checkpoint._digest(content)
    (two / STATE).write_text(json.dumps(content), "utf-8")
    reason = r"had 2 process\(es\), this one has 1.*be of 4 sequences.*--accumulate × 1 is 4"
    with pytest.raises(ValueError, match=reason):  # of 2 × 1 in each of two
        load_checkpoint(two, TOKENS)
    before = read_state(two)["config"]
    for changes in ({"accumulate": 2}, {"batch_size": 4}):
        assert load_checkpoint(two, TOKENS, config=dataclasses.replace(before, **changes)).step


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOTSUP])
def test_a_drive_that_cannot_flush_a_folder_or_set_modes_gets_whole_checkpoints(
    tmp_path, monkeypatch, number
):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "chmod", chmod)
    save_checkpoint(begin(), tmp_path / "c")
    assert load_checkpoint(tmp_path / "c", TOKENS).step == 0


def test_a_file_that_cannot_be_flushed_is_no_checkpoint(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(begin(), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
