"""The fuzzing command sees what fails, and on its inputs nothing does."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import fuzz
from smol_scratch import __main__, assets
from smol_scratch.tokenizer import read_json


def calculate_for_long(folder: Path) -> None:
    while True:
        pass


def hide_a_full_memory(folder: Path) -> None:
    try:
        bytearray(3 << 30)
    except MemoryError:
        raise assets.CorruptAssetError("something else") from None


def leave_half_a_file(folder: Path) -> None:
    (folder / "half").write_bytes(b"x")
    read_json(folder / "in")


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda folder: {}["x"], "KeyError: 'x'"),
        (lambda folder: int("x"), "not raised by the package: ValueError"),
        (lambda folder: "x" + 1, "not raised by the package: TypeError"),
        (lambda folder: bytearray(3 << 30), ".*MemoryError"),
        (hide_a_full_memory, "hidden: .*MemoryError"),
        (calculate_for_long, "TooLongError: more than"),
        (lambda folder: pickle.loads(pickle.dumps(1)), "UnpickledError"),
        (lambda folder: fuzz.torch.load(folder / "in", weights_only=False), "UnpickledError"),
        (lambda folder: (folder / "in").write_bytes(b"y"), r"lost or changed: \['in'\]"),
        (lambda folder: (folder / "in").unlink(), r"lost or changed: \['in'\]"),
        (lambda folder: (folder / "new").write_bytes(b"y"), r"left behind: \['new'\]"),
        (leave_half_a_file, r"left behind: \['half'\]"),
        (lambda folder: sys.exit(3), "status 3"),
    ],
)
def test_what_fails_is_seen(call, what, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    found, said = fuzz.outcome(fuzz.Case({"in": b"x"}, call, ""), tmp_path / "case")
    assert found == "fails"
    assert re.match(what, said), said


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda folder: None, "works"),
        (lambda folder: __main__.main(["-V"]), "works"),
        (lambda folder: read_json(folder / "in"), "refused"),
        (lambda folder: read_json(folder / "nowhere"), "refused"),
        (lambda folder: __main__.main(["nothing"]), "refused"),
    ],
)
def test_what_works_or_is_refused_in_a_line_is_no_failure(call, found, tmp_path):
    case = fuzz.Case({"in": b"{"}, call, "")
    assert fuzz.outcome(case, tmp_path / "case")[0] == found


def test_the_same_seed_makes_the_same_inputs(tmp_path, monkeypatch):
    files = {"config.json": b'{"vocab_size": 61, "rope_theta": 1.0}'}
    world = SimpleNamespace(base=tmp_path, model=files)
    made = {}
    for run, seed in enumerate((1, 1, 2)):
        made[run] = []
        monkeypatch.setattr(
            fuzz,
            "outcome",
            lambda case, folder, run=run: made[run].append(case.said) or ("works", ""),
        )
        counted, failures = fuzz.try_kind("configuration", world, 20, seed)
        assert counted["works"] == len(made[run]) > 10
        assert not failures
    assert made[0] == made[1] != made[2]


@pytest.mark.slow
def test_a_tenth_of_the_inputs_works_or_is_refused_in_a_line():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--share", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=assets.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, works, refused, fails = re.search(r"^all .*$", done.stdout, re.MULTILINE)[0].split()
    assert int(works) + int(refused) >= 100
    assert fails == "0"
