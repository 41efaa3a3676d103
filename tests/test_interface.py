"""docs/interface.md: its first table is what the docstrings say, and its second one runs."""

import inspect
import re
import shlex
import shutil

import pytest
import torch
from torch import Tensor

import smol_scratch
from smol_scratch import SmolLM2, SmolLM2Config, assets, export_pretrained, load_tokenizer
from smol_scratch.commands import COMMANDS
from smol_scratch.generation import CHAT_TEMPLATE
from smol_scratch.terminal import read

PAGE = (assets.ROOT / "docs" / "interface.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
ROWS = [
    tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1])
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
NAMES = [row for row in ROWS if len(row) == 2][1:]
IDIOMS = [row for row in ROWS if len(row) == 3][1:]


def test_every_public_name_has_its_line_from_its_docstring():
    expected = {
        f"[`{name}`](../smol_scratch/{home}.py)": inspect.getdoc(getattr(smol_scratch, name))
        .splitlines()[0]
        .replace("``", "`")
        for name, home in smol_scratch._HOME_OF.items()
    }
    assert dict(NAMES) == expected


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small model of its own, as somebody's fine-tuned Instruct weights."""
    torch.manual_seed(0)
    model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=2, block_size=128)).eval()
    model.chat_template = CHAT_TEMPLATE
    path = tmp_path_factory.mktemp("interface")
    export_pretrained(model, path / "my_model", tokenizer=load_tokenizer())
    return path


def value_of(line: str, names: dict[str, object]) -> object:
    """Run a line; return what its last expression gives, or what it assigns."""
    *first, last = line.split("; ")
    for statement in first:
        exec(statement, names)
    try:
        return eval(compile(last, last, "eval"), names)
    except SyntaxError:
        exec(last, names)
        return names.get(last.partition(" = ")[0])


def plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def equal(one: object, other: object) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float):  # two orders of summation differ by up to 5e-06 on random weights
        return abs(one - other) <= 1e-5
    return one == other


@pytest.mark.slow
def test_each_idiom_runs_on_both_sides_and_gives_the_same_where_the_page_says_so(
    place, monkeypatch, capsys
):
    theirs, ours = {}, {}
    for side in ("theirs", "ours"):
        shutil.copytree(place / "my_model", place / side / "my_model")
    exec(BLOCKS[0], theirs)
    exec(BLOCKS[1], ours)
    assert len(IDIOMS) > 25
    for left, right, same in IDIOMS:
        left, right = left.strip("`"), right.strip("`")
        if right.startswith("python -m "):
            name, *flags = shlex.split(right)[3:]
            flags = [flag for flag in flags if flag not in ("--ckpt", "checkpoint_step_500")]
            read(COMMANDS[name], name, flags)
            continue
        monkeypatch.chdir(place / "theirs")
        one = value_of(left, theirs)
        monkeypatch.chdir(place / "ours")
        other = value_of(right, ours)
        capsys.readouterr()
        if same:
            assert one is not None, f"{left} gives nothing to compare"
            assert equal(plain(one), plain(other)), (left, right)
