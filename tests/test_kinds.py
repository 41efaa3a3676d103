"""Records that keep kinds of processor apart."""

from __future__ import annotations

import re

import pytest

from benchmarks import bench_generation, kinds
from smol_scratch import assets

OLDER = "AMD EPYC, 2 threads; torch 1.0"
NEWER = "AMD EPYC, 2 threads; torch 2.0, Python 3"


@pytest.fixture
def sit(tmp_path, monkeypatch):
    """Return what keeps a sitting on a machine, and returns the record."""

    def keep(kind: str, machine: str, speed: float, one: bool = False) -> list[tuple[str, ...]]:
        monkeypatch.setattr(kinds, "kind", lambda: kind)
        monkeypatch.setattr(kinds, "machine", lambda: machine)
        path = tmp_path / "record.csv"
        rows = [{"variant": "ours, eager", "speed": speed}, {"variant": "theirs", "speed": 1}]
        kinds.keep(path, rows, "a command", "llama 3", one=one)
        assert path.read_text("utf-8").startswith("# a command\n")
        return [
            (row["kind"], row["sitting"], row["versions"], row["speed"])
            for row in kinds.read(path)
            if row["variant"] == "ours, eager"
        ]

    return keep


def test_sittings_of_the_same_versions_are_kept_side_by_side(sit):
    sit("AMX", OLDER, 5)
    assert sit("AMX", OLDER, 6) == [
        ("AMX", "1", "torch 1.0; llama 3", "5"),
        ("AMX", "2", "torch 1.0; llama 3", "6"),
    ]


def test_other_versions_replace_a_kinds_rows_and_no_others(sit):
    sit("AMX", OLDER, 5)
    sit("AVX2", OLDER, 3)
    assert sit("AMX", NEWER, 7) == [
        ("AVX2", "1", "torch 1.0; llama 3", "3"),
        ("AMX", "1", "torch 2.0; Python 3; llama 3", "7"),
    ]


def test_each_command_that_made_rows_is_named_once(sit, tmp_path):
    sit("AMX", OLDER, 5)
    sit("AMX", OLDER, 6)
    rows = [{"variant": "ours, eager", "speed": 7}]
    kinds.keep(tmp_path / "record.csv", rows, "another", "llama 3", one=False)
    lines = (tmp_path / "record.csv").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# a command", "# another"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rounds", "3", "--write"], "--rounds 3 --write"),
        (["--llama", "/home/me/bin/python", "--write"], "--write"),
        (["--write", "--llama=/home/me/bin/python"], "--write"),
        (["--write", "--compiled", "/tmp/code"], "--write"),
        (["--only", "compiled bfloat16", "start"], "--only 'compiled bfloat16' start"),
        (["--ckpt", "my_run"], "--ckpt my_run"),
    ],
)
def test_a_recorded_command_names_no_place_on_one_machine(given, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", *given])
    assert kinds.command("python -m benchmarks.bench") == f"python -m benchmarks.bench {said}"


def test_no_record_names_a_place_on_one_machine():
    records = sorted((assets.ROOT / "data" / "records").iterdir())
    assert len(records) > 30
    place = re.compile(r"(?<![\w.~])(/(work|tmp|home|root|Users|opt|usr|mnt|var)/\S+|[A-Z]:\\\S+)")
    assert place.search("--llama /work/bin/python")
    assert not place.search("a/work/b and tokens/s")
    found = {path.name: place.findall(path.read_text("utf-8")) for path in records}
    assert not {name: places for name, places in found.items() if places}


def test_what_does_not_waver_is_kept_once(sit):
    sit("AMX", OLDER, 5, one=True)
    assert [row[3] for row in sit("AMX", OLDER, 6, one=True)] == ["6"]


@pytest.mark.parametrize(
    ("has", "level", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "AVX512", "AMX"),
        ({"avx512_bf16": True}, "AVX512", "AVX-512 with bfloat16"),
        ({"avx512_bf16": False}, "AVX512", "AVX-512"),
        ({}, "AVX2", "AVX2"),
    ],
)
def test_a_kind_is_what_a_processor_multiplies_with(has, level, expected, monkeypatch):
    monkeypatch.setattr(kinds.torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(kinds.torch.backends.cpu, "get_cpu_capability", lambda: level)
    assert kinds.kind() == expected


def made_up(scale: float = 1.0) -> tuple[dict, dict]:
    """Return what measuring would find where every target is just met, or a factor away from it."""
    names = bench_generation.variants(llama=True)
    found = {"memory": {"bandwidth": [1e10]}}
    for name in names:
        speed = {"int8": 1.6, "int4": 2, "Q4_1": 2}.get(name.rpartition(" ")[2], 1.0)
        ours = name.startswith("ours, compiled")
        found[name] = {
            "rate": [speed * (scale if ours and scale < 1 else 1)] * 3,
            "by_cpu": [speed / 2] * 3,
            "first": [1.0 / (scale if ours else 1)] * 3,
            "peak": [350e6 / scale] * 3,
            "cold": [1.0],
            "version": [],
        }
    starts = {name: [2.5 / scale] for name in names if name.startswith("ours")}
    return found, starts


def test_verdicts_follow_the_numbers(capsys):
    bench_generation.print_targets(*made_up())
    said = capsys.readouterr().out.splitlines()[1:]
    assert len(said) == len(bench_generation.TARGETS)
    assert all(line.startswith("✓ met") for line in said)
    bench_generation.print_targets(*made_up(0.5))
    said = capsys.readouterr().out.splitlines()[1:]
    # Against our own bfloat16 nothing changed: both are half as fast.
    assert [line for line in said if not line.startswith("✗ missed")] == [
        "✓ met    ours, compiled int8: tokens/s 1.6 × (1.6 to 1.6) ours, compiled bfloat16; "
        "1.6 × by processor time; at least 1.6 ×"
    ]


def test_a_target_without_its_variants_is_left_out(capsys):
    found, _ = made_up()
    found = {name: numbers for name, numbers in found.items() if "llama" not in name}
    bench_generation.print_targets(found, {})
    said = capsys.readouterr().out
    assert "llama" not in said
    assert "first word" not in said
    assert "peak memory" in said


def test_a_sitting_becomes_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_generation, "RECORD", tmp_path / "speed.csv")
    bench_generation.record(*made_up(), "a command")
    rows = {row["variant"]: row for row in kinds.read(tmp_path / "speed.csv")}
    assert list(rows) == bench_generation.variants(llama=True)
    eight = rows["ours, compiled int8"]
    assert eight["tokens_per_s"] == eight["times_bfloat16"] == "1.6"
    assert eight["times_llama"] == "1"
    assert eight["times_transformers"] == ""  # it has no 8 bits of this kind
    assert eight["first_word_s"] == "2.5"
    assert rows["transformers bfloat16"]["first_word_s"] == ""
    assert float(eight["of_limit"]) == pytest.approx(1.6 * 134_515_008 * 9 / 8 / 1e10, rel=1e-3)
