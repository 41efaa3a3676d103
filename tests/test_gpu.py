"""The GPU run: what can be known of it without a card."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.stage import STATES, Stage, plain

FIELDS = {"stage", "state", "seconds", "device", "card", "torch", "preset", "notes", "errors",
          "result"}  # fmt: skip


def stage(tmp_path, seconds=60.0):
    return Stage(
        tmp_path / "1_x.json", torch.device("cpu"), "tiny", time.time() + seconds, tmp_path
    )


def read(path):
    return json.loads(path.read_text("utf-8"))


# A stage


def test_a_part_is_on_the_disk_before_the_next_begins_and_one_that_fails_stops_nothing(tmp_path):
    it = stage(tmp_path)
    it.part("first", lambda: {"x": 1})
    assert read(it.path)["result"] == {"first": {"x": 1}}
    assert read(it.path)["state"] == "stopped", "what a killed stage leaves says so"
    assert it.part("second", lambda: 1 / 0) is None
    it.part("third", lambda: 3)
    it.end()
    found = read(it.path)
    assert set(found) == FIELDS
    assert found["state"] == "partly"
    assert found["result"] == {"first": {"x": 1}, "third": 3}
    assert "ZeroDivisionError" in found["errors"]["second"]
    assert "second: failed" in found["notes"][0]


def test_a_part_for_which_no_time_is_left_is_left_out_and_named(tmp_path):
    it = stage(tmp_path, seconds=5)
    assert it.part("long", lambda: pytest.fail("was begun"), needs=60) is None
    it.end()
    assert "long: left out" in read(it.path)["notes"][0]


def test_a_stage_without_trouble_is_ok(tmp_path):
    it = stage(tmp_path)
    it.part("one", lambda: 1)
    it.end()
    assert read(it.path)["state"] == "ok"


def test_what_json_cannot_hold_is_written_in_a_form_that_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = plain({"a": float("nan"), "b": torch.tensor([0.123456789]), 3: torch.bfloat16,
                   "c": [True, None, float("inf")], "d": "/home/somebody/x"})  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": "nan", "b": [0.123457], "3": "bfloat16", "c": [True, None, "inf"], "d": "~/x"
    }  # fmt: skip


# The first process


def test_a_process_is_ended_when_its_time_is_up_and_with_it_what_it_began(tmp_path):
    mark = tmp_path / "mark"
    inner = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); "
    code += "time.sleep(60)"
    begun = time.time()
    ended = gpu.watch([sys.executable, "-c", code], 2, {}, tmp_path / "log")
    assert ended == "stopped after 2 s"
    time.sleep(max(0.0, 6.5 - (time.time() - begun)))
    assert not mark.exists()


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 11)"])
def test_a_process_that_dies_is_written_down_with_its_last_words(code, tmp_path):
    path, log = tmp_path / "2_parity.json", tmp_path / "log"
    code = f"import sys; print('last words', file=sys.stderr, flush=True); {code}"
    ended = gpu.watch([sys.executable, "-c", code], 20, {}, log)
    assert ended.startswith("ended with")
    found = gpu.settle(path, gpu.PLANS[1], ended, log, 1.0)
    assert found["state"] == read(path)["state"] == "died"
    assert "last words" in found["errors"]["the process said"]


def test_what_a_stopped_stage_had_found_stays(tmp_path):
    it = stage(tmp_path)
    it.part("one", lambda: 1)
    (tmp_path / "log").write_text("")
    found = gpu.settle(it.path, gpu.PLANS[0], "stopped after 3 s", tmp_path / "log", 3.0)
    assert (found["state"], found["result"]) == ("stopped", {"one": 1})


def test_a_failing_stage_does_not_stop_the_next(tmp_path, monkeypatch):
    # Each is a process of its own: the first is replaced by one that fails, the second is real.
    real = gpu.watch

    def watch(command, seconds, environment, log):
        if command[command.index("--child") + 1] == "environment":
            command = [sys.executable, "-c", "raise ValueError('planted')"]
        return real(command, seconds, environment, log)

    monkeypatch.setattr(gpu, "watch", watch)
    asked = ["--device", "cpu", "--preset", "tiny", "--output", str(tmp_path), "--stages"]
    assert gpu.main([*asked, "environment", "precision"]) == 1
    first, second = read(tmp_path / "1_environment.json"), read(tmp_path / "3_precision.json")
    assert first["state"] == "died"
    assert "planted" in first["errors"]["the process said"]
    assert second["state"] == "ok"
    assert second["result"]["chosen"]["reason"]


def test_stages_for_which_the_budget_is_too_small_are_skipped_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "watch", lambda *given: pytest.fail("was begun"))
    (tmp_path / "2_parity.json").write_text("from an earlier run")
    asked = ["--device", "cpu", "--preset", "tiny", "--output", str(tmp_path), "--budget", "3"]
    assert gpu.main([*asked, "--stages", "parity", "precision"]) == 1
    found = [read(path) for path in sorted(tmp_path.glob("*.json"))]
    assert [one["stage"] for one in found] == ["2_parity", "3_precision"]
    assert {one["state"] for one in found} == {"skipped"}
    assert all("not begun" in one["notes"][0] for one in found)


def test_the_stages_before_the_last_leave_it_three_minutes_of_the_usual_budget():
    budget = gpu.parsed([]).budget
    assert budget + gpu.GRACE < 600
    assert budget - gpu.GRACE - sum(plan.most for plan in gpu.PLANS[:-1]) >= 180
    assert set(STATES) >= {"ok", "partly", "failed", "stopped", "died", "skipped"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["--budget", "0"], "--budget 0.0: must be above 0"),
     (["--steps", "1"], "--steps 1: must be at least 2"),
     (["--data", "nowhere"], "--data nowhere: no such folder"),
     (["--stages", "sped"], "invalid choice: 'sped'"),
     (["--pack", "."], "--pack .: is already there")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(asked, said, capsys):
    with pytest.raises(SystemExit) as refused:
        gpu.parsed(asked)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_way_to_try_it_is_named(capsys):
    assert gpu.main([]) == 2
    assert "--device cpu --preset tiny" in capsys.readouterr().err
