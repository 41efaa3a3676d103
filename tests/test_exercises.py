"""The checkers of the exercises refuse what is wrong, and take what is right in any form."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smol_scratch import RMSNorm
from smol_scratch.course import exercises
from smol_scratch.course.exercises import rmsnorm as of_rmsnorm
from smol_scratch.course.exercises import sharing as of_sharing
from smol_scratch.course.exercises import swiglu as of_swiglu
from smol_scratch.course.notebook import read_record
from tests.course.wrong.block import found as lost_plus
from tests.course.wrong.gqa import all_at_once, without_maximum

NAMES = ("start", "rmsnorm", "rope", "gqa", "swiglu", "block", "assembled", "dataset", "parameters",
         "flops", "training", "generation", "sharing", "inside")  # fmt: skip
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


# Those that take a function of tensors. A number where a tensor is wanted, or the other way round,
# is told as Python tells it.
OF_TENSORS = [
    name for name in CHECKERS if name.split(".")[0] in ("gqa", "block", "assembled", "dataset")
]


@pytest.mark.parametrize("checker", OF_TENSORS)
def test_a_result_of_another_shape_gets_a_hint_and_stops_no_checker(checker, capsys):
    line = said(checker, lambda *_: torch.zeros(3), capsys)
    assert line.startswith("not yet: ")
    assert "your code stopped" not in line


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
    largest, total, y = -math.inf, 0.0, torch.zeros((), dtype=dtype)
    for k, v in zip(keys, values, strict=True):
        score = float(q @ k) / math.sqrt(len(q))
        new = max(largest, score)
        old, now = math.exp(largest - new), math.exp(score - new)
        total, y, largest = total * old + now, y * old + now * v.to(dtype), new
    return y / total


def surprise(logits, targets):
    kept = targets != -100
    return F.cross_entropy(logits.float()[kept], targets[kept])


def stop(losses, patience):
    lowest = 0
    for i, loss in enumerate(losses):
        if loss < losses[lowest]:
            lowest = i
        if i - lowest >= patience:
            break
    return i, lowest


def divided_by_pieces(model, x, y, sizes):
    total = 0.0
    for x_piece, y_piece in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = model(x_piece, y_piece)[1] / len(sizes)
        loss.backward()
        total += loss.item()
    return total


def not_divided(model, x, y, sizes):
    return divided_by_pieces(
        lambda *part: [len(sizes) * loss for loss in model(*part)], x, y, sizes
    )


def by_share(model, x, y, sizes):
    total = 0.0
    for x_piece, y_piece in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = model(x_piece, y_piece)[1] * len(x_piece) / len(x)
        loss.backward()
        total += loss.item()
    return total


def difference_of_squares():
    gate, up = torch.tensor([[1.0, 1], [-1, -1]]), torch.tensor([[1.0, -1], [1, -1]])
    return gate, up, torch.tensor([[1.0, -1]])


def without_a_loss(model, x, y, sizes):
    for x_piece, y_piece in zip(x.split(sizes), y.split(sizes), strict=True):
        (model(x_piece, y_piece)[1] * len(x_piece) / len(x)).backward()


def resumed(state, saved, optimizer=True, generator=True, step=0):
    state.model.load_state_dict(saved["weights"])
    if optimizer:
        state.optimizer.load_state_dict(saved["optimizer"])
    state.loader.load_state_dict(saved["loader"])
    if generator:
        torch.set_rng_state(saved["generator"])
    state.step = step or saved["step"]


def attend_next(q, k, v, cache, scale=None, late=False):
    old = cache.get("k", k.new_empty(0, len(k))), cache.get("v", v.new_empty(0, len(v)))
    new = torch.cat((old[0], k[None])), torch.cat((old[1], v[None]))
    cache["k"], cache["v"] = new
    keys, values = old if late and len(old[0]) else new
    return torch.softmax(keys @ q * (scale or len(q) ** -0.5), 0) @ values


def dequantised(raw, kind=torch.int8):
    blocks = raw.unflatten(-1, (-1, 34))
    step = blocks[..., :2].contiguous().view(torch.float16).float()
    return (step * blocks[..., 2:].contiguous().view(kind).float()).flatten(-2)


@pytest.mark.parametrize(
    ("checker", "answer"),
    [
        ("rmsnorm.check_neighbours", 0.2),
        ("rmsnorm.check_neighbours", torch.tensor(103 / 4).rsqrt()),
        ("rmsnorm.check_backward", in_float32),
        ("gqa.check_streamed", streamed),
        ("gqa.check_streamed", lambda *given: streamed(*given, dtype=torch.double)),
        ("assembled.check_rows", [9, 9, 1, 49_152]),
        ("assembled.check_cross_entropy", surprise),
        ("assembled.check_first_losses", [10.98, 1 / 12]),
        (
            "assembled.check_mystery",
            {np.int64(5): ["up_proj", "gate_proj"], 2: ("v_proj", "k_proj")},
        ),
        ("generation.check_tokens_per_second", 52),
        ("generation.check_tokens_per_second", Fraction(400_000, 7_650)),
        ("generation.check_tokens_per_second", np.float32(52.3)),
        ("generation.check_tokens_per_second", torch.tensor(52.29)),
        ("generation.check_mystery", {"temperature": 1.6, "top_p": 0.75, "first": "top_p"}),
        ("generation.check_one_head", attend_next),
        ("block.check_lost_plus", lambda blocks, x: np.int64(lost_plus(blocks, x))),
        ("swiglu.check_growth", 4),
        ("swiglu.check_weights", difference_of_squares),
        ("swiglu.check_split", lambda fused: (fused[1::2], fused[::2])),
        ("swiglu.check_repair", 1.6),
        ("swiglu.check_repair", 2.3),
        ("training.check_stop", lambda losses, patience: list(stop(losses, patience))),
        ("training.check_accumulate", by_share),
        ("training.check_resume", resumed),
        ("training.check_batch", 1.0),
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
        ("gqa.check_streamed", all_at_once, "keeps the keys or values"),
        ("gqa.check_streamed", without_maximum, "right for small scores"),
        ("swiglu.check_growth", 2, "the up reading doubles"),
        ("assembled.check_rows", (12, 9, 1, 49_152), "untied, all: 12 is not it"),
        ("assembled.check_rows", (9, 9, 9, 49_152), "untied, the first: 9 is not it"),
        ("assembled.check_cross_entropy", lambda z, y: -surprise(z, y), "the sign"),
        ("assembled.check_mystery", {5: ("k_proj", "v_proj")}, "which part of it is broken"),
        ("generation.check_tokens_per_second", 50 / 1.7 / 4.5, "4.5 are bits"),
        ("generation.check_tokens_per_second", 7.35, "that is float32"),
        ("generation.check_tokens_per_second", 14.7, "that is bfloat16"),
        ("generation.check_tokens_per_second", 0.0191, "seconds per token"),
        ("generation.check_one_head", lambda q, k, v, cache: v, "does your cache keep"),
        (
            "generation.check_one_head",
            lambda *given: attend_next(*given, scale=1.0),
            "the square root of D",
        ),
        (
            "generation.check_one_head",
            lambda *given: attend_next(*given, late=True),
            "append its key and value first",
        ),
        (
            "generation.check_mystery",
            {"temperature": 0.625, "top_p": 0.75, "first": "top_p"},
            "reciprocal",
        ),
        (
            "generation.check_mystery",
            {"temperature": 1.6, "top_p": 0.665, "first": "temperature"},
            "try equal scores",
        ),
        (
            "generation.check_mystery",
            {"temperature": 1.6, "top_p": 0.75, "first": "temperature"},
            "move two scores apart",
        ),
        ("training.check_accumulate", divided_by_pieces, "a mean of means is not the mean"),
        ("training.check_accumulate", not_divided, "times too long"),
        ("training.check_accumulate", without_a_loss, "return the loss of the whole"),
        (
            "training.check_resume",
            lambda state, saved: resumed(state, saved, optimizer=False),
            "begins anew",
        ),
        (
            "training.check_resume",
            lambda state, saved: resumed(state, saved, generator=False),
            "where it is",
        ),
        (
            "training.check_resume",
            lambda state, saved: resumed(state, saved, step=6),
            "the step is 6",
        ),
        ("training.check_batch", 6, "would read it"),
        ("training.check_batch", 0, "nearly"),
        ("training.check_batch", 100, "another batch fits"),
        ("sharing.check_file_size", 1.711, "one byte per number"),
        ("sharing.check_file_size", 1.818e9, "divide by 10⁹"),
        ("sharing.check_file_size", 1.6935, "that is in GiB"),
        ("sharing.check_arrived", "model.layers.2.self_attn.k_proj", "did you mean"),
        ("sharing.check_arrived", "model.layers.2.mlp.up_proj.weight", "which matrices feed"),
        ("sharing.check_arrived", "model.layers.2.self_attn.q_proj.weight", "the right block"),
        ("sharing.check_arrived", "model.layers.0.self_attn.k_proj.weight", "not this one"),
        ("sharing.check_dequantise", lambda raw: dequantised(raw, torch.uint8), "have a sign"),
        ("sharing.check_dequantise", lambda raw: dequantised(raw).half(), "nearly"),
        ("sharing.check_dequantise", lambda raw: raw.float(), "34 bytes are 32"),
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
    blank = {"temperature": 1.6, "top_p": ..., "first": ...}
    assert "fill in your answer" in said("generation.check_mystery", blank, capsys)


def test_each_patient_is_ill_as_its_chart_says_and_in_no_other_way(capsys):
    """The charts are read off the patients' outputs alone."""
    x, ones = torch.randn(2, 5, 16), torch.ones(1, 1, 16)
    later = x.clone()
    later[:, -1] += 1
    found = {}
    for letter, norm in of_rmsnorm.patients().items():
        right = RMSNorm(16, eps=1e-5)
        right.weight.data = norm.weight.data
        signs = {
            "mean over time": not torch.allclose(norm(later)[:, :-1], norm(x)[:, :-1]),
            "subtracts the mean": torch.allclose(norm(x + 5), norm(x), atol=1e-4),
            "ε outside the root": torch.allclose(norm(x), right(x), atol=1e-3)
            and not torch.allclose(norm(1e-3 * x), right(1e-3 * x), atol=1e-2),
            "weight plus one": torch.allclose(norm(ones)[0, 0], norm.weight + 1, atol=1e-4),
            "healthy": all(torch.allclose(norm(y), right(y)) for y in (x, 1e-3 * x, x + 5, ones)),
        }
        [found[letter]] = [diagnosis for diagnosis, shown in signs.items() if shown]
    assert said("rmsnorm.check_diagnoses", found, capsys).startswith("correct: ")


@pytest.mark.slow
def test_what_the_reader_measures_is_what_the_checkers_of_swiglu_expect():
    """The fused matrix is interleaved, up first; a stretched GELU comes near the intact model."""
    model, ids = of_swiglu._real()
    intact = of_swiglu.measure.losses(model, ids).mean().item()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fused = of_swiglu.fused_weights()
    assert of_swiglu.loss_with(fused[1::2], fused[::2]) == intact
    assert of_swiglu.loss_with(fused[::2], fused[1::2]) > intact + 0.3
    for scale in (1.6, 2.3):  # the checker's bounds: within a twentieth of a nat
        assert abs(of_swiglu.loss_with_gelu(scale) - intact) < 0.05
    assert of_swiglu.loss_with_gelu(1) > intact + 0.5
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


def test_an_error_of_the_readers_is_named(capsys):
    exercises.exercise(lambda answer: answer())(lambda: 1 / 0)
    assert "your code stopped with ZeroDivisionError" in capsys.readouterr().out


def test_the_worst_layer_is_the_recorded_one():
    """By a clear margin, and the causes are those that notebook 12's solution names."""
    rows = {(row["layer"], row["matrices"], row["way"]): row for row in read_record("layers.csv")}

    def harm(layer, matrices="all", way="5 bits"):
        row = rows[layer, matrices, way]
        return torch.tensor([row[f"passage_{i}"] for i in range(16)])

    worst, rivals = of_sharing.WORST, [i for i in range(30) if i != of_sharing.WORST]
    for rival in rivals:
        gap = harm(worst) - harm(rival)
        assert gap.mean() > 5 * gap.std() / 4, rival
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"):
        gap = harm(worst, of_sharing.COSTLIEST) - harm(worst, name)
        assert gap.mean() > 3 * gap.std() / 4, name
    left = harm(worst, way="without the 16 largest").mean() / harm(worst).mean()
    assert of_sharing.LEFT[0] < left < of_sharing.LEFT[1]
    assert harm(worst, way="without 16 at random").mean() > 0.8 * harm(worst).mean()
    for rival in (27, 28):  # the layers with larger outliers bear the same noise better
        gap = harm(worst, way="noise of 0.3") - harm(rival, way="noise of 0.3")
        assert gap.mean() > 5 * gap.std() / 4, rival
