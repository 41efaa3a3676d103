"""The ladder that notebook 06 shows is the one that its exercise is checked with, and it works."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from smol_scratch import SmolLM2, SmolLM2Config
from smol_scratch.course import notebook
from smol_scratch.course.exercises import assembled as exercises
from smol_scratch.course.measure import assembled as measure
from smol_scratch.hub import to_transformers

PATH = next(path for path in notebook.notebooks() if path.stem == "06_model")
SHOWN = ("apart", "parts", "record", "climb")


class Plain(ast.NodeTransformer):
    """Takes the types away, and the docstrings."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node):
            node.body = node.body[1:]
        return node

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        return ast.Assign([node.target], node.value)


def plain(source):
    tree = Plain().visit(ast.parse(source))
    return {
        node.name: ast.dump(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in SHOWN
    }


def test_the_notebook_shows_what_the_measurements_use():
    shown = {}
    for cell in notebook.read(PATH).cells:
        if cell.cell_type == "code":
            shown |= plain(cell.source)
    assert set(shown) == set(SHOWN)
    assert shown == plain(Path(measure.__file__).read_text("utf-8"))


@pytest.fixture(scope="module")
def small():
    """A model of six blocks whose norms differ, and what an oracle with its weights does."""
    torch.manual_seed(3)
    config = SmolLM2Config.preset("tiny", n_layer=20, vocab_size=97, n_head=6, n_kv_head=3)
    model = SmolLM2(config).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(1, 0.3)
    ids = torch.randint(97, (1, 24))
    return model, ids, to_transformers(model).requires_grad_(False)


def broken(model, seen):
    return [n for n, far in measure.climb(model, seen).items() if far > measure.TOLERANCE]


def test_the_right_model_holds_and_the_hooks_are_gone(small):
    model, ids, oracle = small
    seen = measure.record(oracle, ids)
    assert broken(model, seen) == []
    assert len(measure.climb(model, seen)) == model.config.n_layer + 4
    assert not any(part._forward_hooks for part in oracle.modules())
    assert len(measure.streams(model, ids)) == model.config.n_layer + 1
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("fault", "rungs"),
    [
        ("block 5: q transposed", ["block 5", "whole model"]),
        ("block 17: norms swapped", ["block 17", "whole model"]),
        ("no final norm", ["final norm", "whole model"]),
        ("head of its own", ["head", "whole model"]),
        ("block 4 before block 3", ["whole model"]),
        ("RoPE's theta 10,000", [*(f"block {i}" for i in range(20)), "whole model"]),
    ],
)
def test_each_fault_breaks_its_rungs_and_is_taken_back(small, fault, rungs):
    model, ids, oracle = small
    seen = measure.record(oracle, ids)
    with measure.planted(model, fault):
        assert broken(model, seen) == rungs
    assert broken(model, seen) == []


def test_the_ladder_within_a_block_names_the_part(small):
    model, ids, oracle = small
    seen = measure.record(oracle, ids)
    with measure.planted(model, "block 5: q transposed"):
        inside = measure.within(model, oracle, seen, 5)
    assert [name for name, far in inside.items() if far > measure.TOLERANCE] == ["self_attn"]


def test_the_streams_show_an_exchange_from_its_block_on(small):
    model, ids, oracle = small
    theirs = measure.streams(oracle, ids)
    with measure.planted(model, "block 4 before block 3"):
        ours = measure.streams(model, ids)
    far = [measure.apart(*pair) > measure.TOLERANCE for pair in zip(ours, theirs, strict=True)]
    assert far == [False] * 4 + [True] * 17


def test_a_bound_is_the_next_of_2e_n():
    assert measure.bound(9.2e-7) == measure.bound(1.3e-6) == pytest.approx(2e-6)
    assert measure.bound(2.1e-6) == pytest.approx(2e-5)


def test_the_mystery_is_another_model_than_its_oracle():
    model, oracle, ids = exercises.mystery()
    assert broken(model, measure.record(oracle, ids)) == ["block 2", "block 5", "whole model"]
