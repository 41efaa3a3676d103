"""The doctor: quiet where all is well, and each planted fault is named by it."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import doctor_reference
from smol_scratch import assets, doctor, model, probes, to_transformers
from smol_scratch.__main__ import main
from tests.planted_bugs import BUGS, plant

CPU = torch.device("cpu")
REFERENCES = probes.references()


def on_command_line(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        cwd=assets.ROOT,
        env=os.environ | environment,
        check=False,
    )


def test_all_is_well_here_on_a_terminal_without_utf8_and_the_report_names_nobody(tmp_path):
    file = tmp_path / "report.json"
    ran = on_command_line(
        "-m", "smol_scratch", "doctor", "--json", str(file), PYTHONIOENCODING="ascii", CXX="g☃"
    )
    said = ran.stdout.decode("ascii")
    assert ran.returncode == 0, said
    assert said.rstrip().splitlines()[-2].startswith("Verdict: all is well: 27 checks, ")
    assert ran.stderr == b""
    written = file.read_text("ascii")
    report = json.loads(written)
    assert report["ok"]
    assert not report["problems"]
    assert {check["probe"] for check in report["checks"]} >= {p.name for p in probes.PROBES}
    assert len(report["losses"]["cpu"]) == probes.RUN_STEPS
    for private in (str(Path.home()), str(assets.ROOT), str(tmp_path)):
        assert private not in written + said


def test_names_and_homes_are_taken_out(monkeypatch, tmp_path):
    monkeypatch.setattr(getpass, "getuser", lambda: "ophelia")
    home = tmp_path / "ophelia"
    monkeypatch.setattr(Path, "home", lambda: home)
    assert doctor.anonymous(f"{home}/weights") == "~/weights"
    assert doctor.anonymous("D:\\data\\ophelia\\x, /mnt/ophelia") == "D:\\data\\USER\\x, /mnt/USER"
    assert doctor.anonymous("/mnt/ophelias, ophelia") == "/mnt/ophelias, ophelia"


# How sharp it is


def test_the_gentlest_bug_stands_ten_times_above_what_is_allowed_on_any_device():
    for probe in probes.PROBES:
        known = REFERENCES[probe.name]
        if not known.wrong:
            assert all(type(value) is int for value in known.values), probe.name  # must be equal
            continue
        room = 1 if probe.half or not probe.everywhere else probes.CARD_ROOM
        times, bug = doctor_reference.gentlest(known._asdict())
        assert times >= 10 * room, f"{probe.name}: {bug} is {times:.1f} times the tolerance"


# A statistic over random draws, which quick probes do not take.
UNSEEN = {"initial spread ignores the config"}


@pytest.mark.parametrize(
    "bug", [bug for bug in BUGS if bug.name not in UNSEEN], ids=lambda b: b.name
)
def test_every_planted_bug_is_seen_ten_times_above_what_is_allowed(bug):
    deviations = (
        found
        for found in probes.examine(CPU, plant(bug), with_assets=False)
        if found.result == "failed" or (found.result == "differs" and found.times > 10)
    )
    assert next(deviations, None) is not None


def test_a_run_without_weight_decay_is_ten_times_outside_the_band():
    found, _ = probes.examine_run(CPU, dataclasses.replace(probes.RUN, weight_decay=0.0))
    assert found.times > 10 * probes.CARD_ROOM
    problem = doctor.explain(found, doctor.TRAINING, set())
    assert problem.what.startswith("30 training steps, on cpu: ")
    assert "from step" in problem.what


# The reference itself


def test_the_stored_results_are_those_of_transformers():
    theirs = to_transformers(probes.small_model(model, CPU))
    ids = probes.small_ids()
    with torch.no_grad():
        found = {"whole model": theirs(ids).logits}
        x = probes.exact(10, probes.B, probes.T, probes.C)
        found["SwiGLU"] = theirs.model.layers[0].mlp(x)
    for name, result in found.items():
        assert probes.judge(probes.summary([result]), REFERENCES[name]) <= (1, ""), name


def test_the_stored_results_are_what_the_command_makes():
    for name, (right, wrong) in doctor_reference.results(with_assets=False).items():
        known = REFERENCES[name]
        stored = {"": known.values} | known.wrong
        for bug, made in ({"": right} | wrong).items():
            # Stored with ten digits.
            assert probes.distance(probes.summary(made), stored[bug], known.sizes) <= 1e-8, name
        assert set(wrong) == set(known.wrong), name


# Planted faults, named by the verdict


@pytest.fixture
def quick(monkeypatch):
    """Leave out the training run."""
    well = probes.Found("30 training steps", "cpu", "ok", 0.0), [1.0]
    monkeypatch.setattr(probes, "examine_run", lambda device: well)


def verdict(capsys, *words):
    """Run the command, which must find something; return what it says from the verdict on."""
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *words])
    assert ended.value.code == 1
    _, colon, said = capsys.readouterr().out.partition("\nVerdict: ")
    assert colon
    return said


def test_a_broken_weight_file(quick, nothing_at_hand, capsys):
    file = nothing_at_hand / "assets" / assets.GGUF
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF, torn")
    said = verdict(capsys)
    assert said.startswith("not all is well. weights and tokenizer: ")
    assert "is damaged or another version: SHA-256" in said.splitlines()[0]
    assert "Remedy: python -m smol_scratch assets" in said


def test_the_wrong_rotation(quick, nothing_at_hand, capsys, monkeypatch):
    def neighbours(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    monkeypatch.setattr(model, "rotate", neighbours)
    first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. RoPE, on cpu: ")
    assert "turns neighbouring channels (the interleaved pairing)" in means


def test_an_old_library(quick, nothing_at_hand, capsys, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.20.3" if name == "tokenizers" else real(name)
    )
    first, means, remedy, *_ = verdict(capsys).splitlines()
    assert first == "not all is well. tokenizers 0.20.3 is too old."
    assert "needs 0.21 or later" in means
    assert 'pip install -U "tokenizers>=0.21"' in remedy


def test_a_missing_library(quick, nothing_at_hand, capsys, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert verdict(capsys).startswith("not all is well. torch is not installed.")


def test_a_wrong_epsilon(quick, nothing_at_hand, capsys, monkeypatch):
    made = model.RMSNorm.__init__
    monkeypatch.setattr(model.RMSNorm, "__init__", lambda self, dim, eps=0: made(self, dim, 1e-6))
    first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. RMSNorm, on cpu: ")
    assert "adds 1e-6 to the mean of squares in place of 1e-5" in means


class RoundingProducts(TorchDispatchMode):
    """A library of matrix products that rounds its inputs to bfloat16, as some do when asked."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            args = [a.bfloat16().to(a.dtype) if a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))


def test_imprecise_matrix_products(quick, nothing_at_hand, capsys):
    with RoundingProducts():
        first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. matrix product, on cpu: ")
    assert "rounds what it multiplies to bfloat16" in means


def test_wrong_matrix_products(quick, nothing_at_hand, capsys, monkeypatch):
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: right(a, b) * (1 + 2**-12))
    first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. product of whole numbers, on cpu: ")
    assert "BLAS" in means


def test_a_dropped_mask(quick, nothing_at_hand, capsys, monkeypatch):
    right = torch.nn.functional.scaled_dot_product_attention

    def unmasked(*args, is_causal=False, **settings):
        return right(*args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", unmasked)
    first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. attention, fast, on cpu: ")
    assert "the mask is missing" in means


def test_another_optimizer(quick, nothing_at_hand, capsys, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.Adam)
    first, means, *_ = verdict(capsys).splitlines()
    assert first.startswith("not all is well. AdamW, on cpu: ")
    assert "adds the decay to the gradient (Adam, not AdamW)" in means


def test_a_computation_that_fails_does_not_hide_the_rest(
    quick, nothing_at_hand, capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("kernel\nnot implemented")

    monkeypatch.setattr(torch.nn.functional, "silu", fail)
    said = verdict(capsys)
    assert "SwiGLU, on cpu, ended in an error: RuntimeError: kernel not implemented" in said


def test_without_assets_the_rest_is_tried_and_the_remedy_named(quick, nothing_at_hand, capsys):
    said = verdict(capsys)
    assert said.startswith("the 24 checks that could be made are right, but assets are missing")
    assert "Remedy: python -m smol_scratch assets" in said


def test_a_card_that_differs_is_told_from_a_program_that_is_wrong():
    found = probes.Found("SwiGLU", "mps", "differs", 20.0)
    problem = doctor.explain(found, "another activation", right_on_cpu={"SwiGLU"})
    assert (
        problem.what == "SwiGLU, on mps: 20.0 times as far from the reference as rounding explains"
    )
    assert problem.means.startswith("the processor is right and mps is not")
    assert "--device cpu" in problem.remedy


def test_where_the_import_fails_the_file_itself_says_so(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '1.13.1'\n")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    ran = on_command_line("smol_scratch/doctor.py", PYTHONPATH=path)
    said = ran.stdout.decode()
    assert ran.returncode == 1, said
    assert "Verdict: not all is well. the package cannot be imported (" in said
    assert "too old" in said
    assert ran.stderr == b""


def test_what_needs_extras_is_not_needed(monkeypatch, quick, nothing_at_hand, capsys):
    for name in ("transformers", "matplotlib", "IPython", "nbformat", "gradio"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    assert verdict(capsys).startswith("the 24 checks that could be made are right")


# The report


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"three years of work", "is already there and no report"),
        (None, "is a folder; name a file"),
    ],
)
def test_a_report_replaces_nothing_but_a_report(tmp_path, content, error, monkeypatch):
    monkeypatch.setattr(doctor, "look_at_machine", lambda report: pytest.fail("too late"))
    file = tmp_path / "thesis"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=error):
        doctor.check_target(file)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", str(file)])
    assert ended.value.code == 2


def test_a_report_is_replaced_by_the_next_one(tmp_path, monkeypatch):
    for name in ("look_at_machine", "look_at_versions"):
        monkeypatch.setattr(doctor, name, lambda report: None)
    monkeypatch.setattr(doctor, "import_package", lambda report: False)
    file = tmp_path / "new" / "report.json"
    assert doctor.examine_machine(file) == doctor.examine_machine(file) == 0
    assert json.loads(file.read_text())["kind"] == doctor.KIND


@pytest.mark.parametrize(("others", "said"), [(5, 5), (6, 6), (7, 6), (9, 6)])
def test_of_many_problems_the_first_is_told_and_six_are_listed(others, said, capsys):
    report = doctor.Report()
    report.problems = [doctor.Problem(f"problem {n} is there") for n in range(1 + others)]
    doctor.conclude(report, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Verdict: not all is well. problem 0 is there."
    assert lines[2] == f"  After that, {others} more, which may well follow from it:"
    assert lines[3 : 3 + said] == [f"    problem {n} is there" for n in range(1, 1 + said)]
    assert lines[3 + said :] == [f"    and {others - said} more"] * (others > said)


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize(
    ("home", "name"), [(doctor, "anonymous_json"), (Path, "write_text"), (Path, "replace")]
)
def test_ctrl_c_while_the_report_is_written_leaves_the_earlier_one_or_none(
    home, name, earlier, tmp_path, monkeypatch
):
    """Half of one would be taken for no report by the next start, and refused."""
    for look in ("look_at_machine", "look_at_versions"):
        monkeypatch.setattr(doctor, look, lambda report: None)
    monkeypatch.setattr(doctor, "import_package", lambda report: False)
    file = tmp_path / "report.json"
    if earlier:
        doctor.examine_machine(file)
    before = file.read_bytes() if earlier else None
    write = Path.write_text

    def interrupted(*given):
        if name == "write_text":
            write(given[0], given[1][:9], given[2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            doctor.examine_machine(file)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"] * earlier
    assert not earlier or file.read_bytes() == before
    assert doctor.examine_machine(file) == 0


def test_as_a_file_it_ends_quietly_after_ctrl_c_too(monkeypatch, capsys):
    def interrupted(target):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine_machine", interrupted)
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    assert doctor.main() == 130
    assert capsys.readouterr() == ("", "\n")


def test_versions_are_compared_as_numbers():
    assert doctor.number("2.13.0+cpu") == (2, 13, 0) > doctor.number("2.9")
    assert doctor.number("0.21.0rc1") >= doctor.number("0.21")


def test_all_that_is_stored_and_said_is_ascii():
    stored = probes.REFERENCE.read_bytes()
    stored.decode("ascii")
    for probe in probes.PROBES:
        (probe.name + probe.means).encode("ascii")
