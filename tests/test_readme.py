"""The README's numbers, commands and samples are those of the repository."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from smol_scratch import SmolLM2Config, accounting, corpus, notebook
from tests.checks import CHECKS
from tests.planted_bugs import BUGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONFIG = SmolLM2Config.preset("135M")


@pytest.mark.parametrize("row", accounting.parameters(CONFIG).items(), ids=lambda row: row[0])
def test_the_parameter_table(row):
    part, count = row
    share = count / accounting.total_parameters(CONFIG)
    assert f"| {part} | {count:,} | {share:.2%} |" in README


def test_numbers_come_from_functions():
    assert f"| all | {accounting.total_parameters(CONFIG):,} | |" in README
    assert f"{accounting.total_parameters(CONFIG):,}-parameter model" in README
    assert f"costs {sum(accounting.palm_flops(CONFIG, 256).values()):,} FLOPs" in README
    assert f"takes {accounting.kv_cache_bytes(CONFIG, 1, torch.bfloat16):,} bytes" in README
    assert f"{corpus.TEXT_CHARACTERS:,} characters" in README
    assert f"{len(BUGS)} bugs against {len(CHECKS)} checks" in README
    lines = len((ROOT / "smol_scratch" / "model.py").read_text().splitlines())
    assert f"{round(lines, -1)} lines" in README


def test_every_notebook_is_listed():
    assert re.findall(r"\(notebooks/(.*?\.ipynb)\)", README) == [
        path.name for path in notebook.notebooks()
    ]


def test_every_command_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for file in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        used = set(re.findall(r"`make (\w+)`|^make (\w+)", file, re.M))
        assert {a or b for a, b in used} <= targets
    assert '-c constraints.txt -e ".[notebooks,test]"' in README
    assert '-c constraints.txt -e ".[notebooks,test]"' in (ROOT / "Makefile").read_text()


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    assert f"pip install git+{address}" in README
    assert address in (ROOT / "CITATION.cff").read_text()
    if "OWNER" in address:
        assert "placeholder address until the owner sets `Repository`" in README
