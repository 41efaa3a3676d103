"""The checkers of the exercises refuse what is wrong, and take what is right in any form."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smol_scratch.course import exercises

NAMES = ("start", "rmsnorm", "rope", "gqa", "swiglu", "block", "assembled", "dataset", "parameters",
         "flops", "training", "generation", "sharing")  # fmt: skip
CHECKERS = {
    f"{name}.{check}": getattr(module, check)
    for name in NAMES
    for module in [importlib.import_module(f"smol_scratch.course.exercises.{name}")]
    for check in vars(module)
    if check.startswith("check_")
}
GARBAGE = {
    "nan": math.nan,
    "far off": -12345.678,
    "a word": "forty-two",
    "nothing": [],
    "returns nothing": lambda *_: None,
    "returns its input": lambda first=None, *_: first,
}


def said(checker, answer, capsys):
    """Return what a checker prints."""
    CHECKERS[checker](answer)
    return capsys.readouterr().out


def test_every_notebook_has_its_checkers():
    assert len(CHECKERS) >= 3 * 12 + 1
    assert {name.split(".")[0] for name in CHECKERS} == set(NAMES)


@pytest.mark.parametrize("checker", CHECKERS)
def test_garbage_is_not_correct(checker, capsys):
    before = torch.get_rng_state()
    for kind, answer in GARBAGE.items():
        line = said(checker, answer, capsys)
        assert line.startswith("not yet: "), f"{kind}: {line}"
    assert torch.equal(torch.get_rng_state(), before)


def in_float32(x, weight, grad, eps):
    x, weight, grad = x.float(), weight.float(), grad.float()
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    g = grad * weight
    return r * g - x * r**3 * (g * x).mean(-1, keepdim=True)


def first_half(x, weight, grad, eps):
    return weight * grad * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def second_half(slip):
    def backward(x, weight, grad, eps):
        r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        n, wg = x * r, weight * grad
        back = (n * (grad if slip == "weight" else wg)).mean(-1, keepdim=True)
        back = back * x.shape[-1] if slip == "sum" else back
        return r * (wg + n * back if slip == "sign" else wg - n * back)

    return backward


def streamed(q, keys, values, dtype=torch.float32):
    largest, total, y = -math.inf, 0.0, torch.zeros(len(q), dtype=dtype)
    for k, v in zip(keys, values, strict=True):
        score = float(q @ k) / math.sqrt(len(q))
        new = max(largest, score)
        old, now = math.exp(largest - new), math.exp(score - new)
        total, y, largest = total * old + now, y * old + now * v.to(dtype), new
    return y / total


def all_at_once(q, keys, values):
    k, v = torch.stack(list(keys)), torch.stack(list(values))
    return torch.softmax(k @ q / math.sqrt(len(q)), dim=0) @ v


def without_maximum(q, keys, values):
    total, y = 0.0, torch.zeros_like(q)
    for k, v in zip(keys, values, strict=True):
        weight = torch.exp(q @ k / math.sqrt(len(q)))
        total, y = total + weight, y + weight * v
    return y / total


def surprise(logits, targets):
    kept = targets != -100
    return F.cross_entropy(logits.float()[kept], targets[kept])


def divided_by_pieces(model, x, y, sizes):
    total = 0.0
    for x_piece, y_piece in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = model(x_piece, y_piece)[1] / len(sizes)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize(
    ("checker", "answer"),
    [
        ("rmsnorm.check_neighbours", 0.2),
        ("rmsnorm.check_neighbours", torch.tensor(103 / 4).rsqrt()),
        ("rmsnorm.check_backward", in_float32),
        ("gqa.check_streamed", streamed),
        ("gqa.check_streamed", lambda *given: streamed(*given, dtype=torch.double)),
        ("assembled.check_rows", [9, 49_152]),
        ("assembled.check_cross_entropy", surprise),
        ("assembled.check_start", 0.14),
        ("generation.check_hot_limit", 0.33),
        ("generation.check_hot_limit", Fraction(1, 3)),
        ("generation.check_hot_limit", np.float32(1 / 3)),
        ("generation.check_hot_limit", torch.tensor([5.0, 5.0, 5.0]).softmax(0)[0]),
        ("block.check_routes", np.int64(64)),
    ],
)
def test_what_is_right_is_right_in_any_form(checker, answer, capsys):
    assert said(checker, answer, capsys).startswith("correct: ")


@pytest.mark.parametrize(
    ("checker", "answer", "hint"),
    [
        ("rmsnorm.check_neighbours", 1, "share one root mean square"),
        ("rmsnorm.check_neighbours", 0.1, "only one number of four does"),
        ("rmsnorm.check_neighbours", 5.07, "the outputs are divided by it"),
        ("rmsnorm.check_backward", first_half, "this is the first half"),
        ("rmsnorm.check_backward", second_half("sum"), "a sum where the mean belongs"),
        ("rmsnorm.check_backward", second_half("sign"), "right but for one sign"),
        ("rmsnorm.check_backward", second_half("weight"), "the weight is missing"),
        ("rmsnorm.check_diagnoses", dict.fromkeys("ABCDE", "healthy"), "4 of 5 are wrong"),
        ("rmsnorm.check_diagnoses", dict.fromkeys("ABCDE", "mean over time"), "a later token"),
        ("rmsnorm.check_diagnoses", dict.fromkeys("ABCDE", "ill"), "is not one of"),
        ("rmsnorm.check_diagnoses", {"A": "healthy"}, "with the keys A, B, C, D, E"),
        ("rope.check_slowest", 10, "the last one has i = 31"),
        ("rope.check_theta", 10_000, "pairs stay below one turn"),
        ("gqa.check_silent_heads", [1, 4, 7], "every third head"),
        ("gqa.check_streamed", all_at_once, "keeps the keys or values"),
        ("gqa.check_streamed", without_maximum, "right for small scores"),
        ("gqa.check_reach", 12, "the window of four holds the token itself"),
        ("swiglu.check_growth", 2, "the up reading doubles"),
        ("block.check_routes", 8, "a block has two"),
        ("assembled.check_rows", (12, 49_152), "untied, 12 is not it"),
        ("assembled.check_rows", (9, 9), "tied, 9 is not it"),
        ("assembled.check_cross_entropy", lambda z, y: -surprise(z, y), "the sign"),
        ("assembled.check_start", 0.02, "nats above ln V, not 1"),
        ("generation.check_hot_limit", 0.2, "the limit without top-k"),
        ("generation.check_min_p", lambda z, p: z.masked_fill_(z < 0, 0), "changes its input"),
        ("training.check_first_loss", math.log(49_152), "so much costs knowing nothing"),
        ("training.check_accumulate", divided_by_pieces, "a mean of means is not the mean"),
        ("sharing.check_file_size", 1.711, "one byte a number"),
    ],
)
def test_a_plausible_mistake_gets_its_hint(checker, answer, hint, capsys):
    line = said(checker, answer, capsys)
    assert line.startswith("not yet: ")
    assert hint in line


def test_what_is_missing_is_not_done(capsys):
    def stub(*_):
        raise NotImplementedError

    for answer in (..., None, stub):
        assert said("gqa.check_streamed", answer, capsys).startswith("not done yet")


def test_an_error_of_the_readers_is_named(capsys):
    exercises.exercise(lambda answer: answer())(lambda: 1 / 0)
    assert "your code stopped with ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("The capital of France is", "leave no choice"),
        ("We hold these truths to be self- ", "space at the end"),
        ("cat dog " * 20 + "cat", "41 words"),
        ("", "in quotation marks"),
        (0.95, "in quotation marks"),
    ],
)
def test_a_text_that_leaves_a_choice_is_not_the_answer(answer, hint, capsys):
    assert hint in said("start.check_certain", answer, capsys)
