"""The README's numbers, commands and samples are those of the repository."""

import csv
import re
import statistics
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks import pages
from smol_scratch import SmolLM2Config, accounting, assets, corpus
from smol_scratch.course import notebook
from tests.checks import CHECKS
from tests.planted_bugs import BUGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
# The long tables stand in pages of their own.
PAGES = README + "".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
CONFIG = SmolLM2Config.preset("135M")


@pytest.mark.parametrize("row", accounting.parameters(CONFIG).items(), ids=lambda row: row[0])
def test_the_parameter_table(row):
    part, count = row
    share = count / accounting.total_parameters(CONFIG)
    assert f"| {part} | {count:,} | {share:.2%} |" in PAGES


def test_numbers_come_from_functions():
    assert f"| all | {accounting.total_parameters(CONFIG):,} |  |" in PAGES
    assert f"{accounting.total_parameters(CONFIG):,}-parameter model" in README
    assert f"costs {sum(accounting.palm_flops(CONFIG, 256).values()):,} FLOPs" in PAGES
    assert f"takes {accounting.kv_cache_bytes(CONFIG, 1, torch.bfloat16):,} bytes" in PAGES
    assert f"{corpus.TEXT_CHARACTERS:,} characters" in PAGES
    assert f"{len(BUGS)} bugs against {len(CHECKS)} checks" in README
    lines = len((ROOT / "smol_scratch" / "model.py").read_text("utf-8").splitlines())
    assert f"{round(lines, -1)} lines" in README


def record(name):
    lines = (assets.records() / name).read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("135M from scratch", "full_run"),
        ("13M from scratch", "tenth_run"),
        ("135M, fine-tuned", "finetuned_run"),
    ],
)
def test_the_table_of_long_runs_is_what_the_records_say(label, name):
    rows = record(f"{name}.csv")
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    looks = {int(r["step"]): float(r["held_out_loss"]) for r in rows if r["held_out_loss"]}
    best, end = min(looks, key=looks.get), max(looks)
    recent = statistics.mean(losses[-100:])
    assert (
        f"| {label} | {len(losses):,} | {recent:.2f} | {looks[best]:.2f} (step {best:,}) "
        f"| {looks[end]:.2f} (step {end:,}) |"
    ) in PAGES


def test_the_speed_of_training_is_what_was_measured():
    seconds = {row["variant"]: float(row["s_per_step"]) for row in record("training_speed.csv")}
    theirs, ours = seconds["transformers"], seconds["ours"]
    compiled, limit = seconds["ours, blocks compiled"], seconds["matrix products alone"]
    given = seconds["transformers, memory kept, fused AdamW"] / ours
    assert (
        f"{theirs / ours:.2f} × its speed, with compiled blocks {theirs / compiled:.2f} ×; "
        f"{given:.2f} × when it is given the same allocator setting and fused optimizer; "
        f"{limit / ours:.0%} and {limit / compiled:.0%} of what the matrix products alone"
    ) in PAGES
    peak = {row["variant"]: float(row["peak_gb"]) for row in record("training_speed.csv")}
    assert (
        f"peak memory {peak['ours']:.1f} and {peak['ours, blocks compiled']:.1f} GB against "
        f"{peak['transformers']:.1f}"
    ) in PAGES


def test_the_speed_of_few_bits_is_what_was_measured():
    assert pages.in_few_bits() in " ".join(README.split())
    rows = record("generation_speed.csv")
    ratios = [float(row["times_llama"]) for row in rows if row["variant"] == "ours, compiled int8"]
    assert f" and {min(ratios):.2f}" in pages.in_few_bits()
    # "and costs speed", of what is not compiled.
    speeds = {(row["variant"], row["kind"], row["sitting"]): float(row["tokens_per_s"])
              for row in rows}  # fmt: skip
    eager = {key: rate for key, rate in speeds.items() if key[0].startswith("ours, eager ")}
    assert len(eager) >= 4
    for (_, *where), rate in eager.items():
        assert rate <= speeds["ours, eager bfloat16", *where]


def test_every_notebook_is_listed():
    rows = re.findall(r"^\| \[(.*?)\]\((?:notebooks/)?(.*?\.ipynb)\) \| (.*?) \|$", README, re.M)
    assert [file for _, file, _ in rows] == [path.name for path in notebook.notebooks()]
    start = notebook.read(ROOT / "notebooks" / "00_start.ipynb")
    table = "\n".join(cell.source for cell in start.cells if cell.cell_type == "markdown")
    there = re.findall(r"^\| \[(.*?)\]\((.*?\.ipynb)\) \| (.*?) \|$", table, re.M)
    assert there == rows[1:], "notebook 00 and the README ask other questions"


def test_every_command_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for file in (README, (ROOT / "CONTRIBUTING.md").read_text("utf-8")):
        used = set(re.findall(r"`make (\w+)`|^make (\w+)", file, re.M))
        assert used
        assert {a or b for a, b in used} <= targets
    assert '-c constraints.txt -e ".[notebooks,test]"' in README
    assert '-c constraints.txt -e ".[notebooks,test]"' in (ROOT / "Makefile").read_text("utf-8")


def test_the_sample_is_a_notebooks_output():
    sample = re.search(r"greedy decoding:\n\n```text\n(.*?)```", README, re.S).group(1)
    printed = "".join(
        output.get("text", "")
        for cell in notebook.read(ROOT / "notebooks" / "06_model.ipynb").cells
        for output in cell.get("outputs", [])
    )
    for line in filter(None, sample.splitlines()):
        assert line in printed, line


def test_one_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project["urls"]["Repository"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    if notebook.PLACEHOLDER in address:
        assert "has no public home yet" in README
        assert notebook.PLACEHOLDER not in README + citation
    else:
        assert f"pip install git+{address}" in README
        assert f"repository-code: {address}" in citation
