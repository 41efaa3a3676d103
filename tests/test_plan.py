"""What a run will take: against the other counts of the same, and against runs that were made."""

from __future__ import annotations

import csv
from dataclasses import replace
from statistics import median

import pytest
import torch

from smol_scratch import SmolLM2, SmolLM2Config, accounting, assets, hardware, plan
from smol_scratch.__main__ import main
from smol_scratch.accounting import measured_peak
from smol_scratch.course.measure import parameters
from smol_scratch.training import keep_inputs_only
from tests.course.test_explore import with_checkpoints
from tests.test_accounting import training_step

SHAPES = {name: SmolLM2Config.preset(name) for name in ("135M", "360M", "1.7B", "tiny")}
UNTIED = SmolLM2Config.preset("tiny", tie_embeddings=False)


def recorded(name):
    lines = (assets.ROOT / "data" / "records" / name).read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES.values(), UNTIED])
def test_one_card_without_checkpoints_is_the_training_steps_peak(shape, dtype):
    for B, T in ((1, 1), (1, 64), (8, 256)):
        held = plan.memory_per_card(shape, B, T, dtype)
        assert held["peak"] == accounting.training_memory(shape, B, T, dtype)["peak"]
        assert held["peak"] == sum(held.values()) - held["peak"]


@pytest.mark.slow
@pytest.mark.parametrize(("B", "T"), [(4, 256), (1, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_are_those_of_a_rehearsed_step(dtype, B, T):
    """Of a vocabulary that is large beside a block, as all released ones are."""
    held = plan.memory_per_card(SHAPES["135M"], B, T, dtype, checkpointing=True)["peak"]
    right = parameters.rehearse(SHAPES["135M"], B, T, dtype, loss=with_checkpoints).peak
    # Token numbers, targets and single numbers, where the end of the step is its fullest moment.
    assert 0 <= right - held < 16 * B * T + 2_000
    assert held < plan.memory_per_card(SHAPES["135M"], B, T, dtype)["peak"]


def test_the_parts_of_a_block_are_the_models():
    for shape in (SHAPES["tiny"], UNTIED):
        [block, *_] = SmolLM2(shape).model.layers
        assert plan.block_parameters(shape) == sum(p.numel() for p in block.parameters())
        norms = 2 * shape.n_embd
        assert plan.block_matrices(shape) == plan.block_parameters(shape) - norms


def test_many_cards_hold_a_part_each_and_what_is_fetched():
    shape, B, T = SHAPES["1.7B"], 1, 2048
    N = accounting.total_parameters(shape)
    one = plan.memory_per_card(shape, B, T, shard=True)
    assert one == plan.memory_per_card(shape, B, T)
    held = plan.memory_per_card(shape, B, T, cards=256, shard=True)
    assert held["AdamW's two moments, an n-th"] * 256 == pytest.approx(8 * N, rel=1e-6)
    assert held["weights, an n-th"] * 256 == pytest.approx(4 * N, rel=1e-6)
    table = shape.vocab_size * shape.n_embd + shape.n_embd
    assert held["weights fetched whole"] == 4 * (2 * plan.block_parameters(shape) + table)
    # However many cards, what is computed with must be there.
    most = plan.memory_per_card(shape, B, T, cards=10**6, shard=True)
    assert most["peak"] > held["activations"] + held["weights fetched whole"]
    peaks = [plan.memory_per_card(shape, B, T, cards=n, shard=True)["peak"] for n in (2, 8, 64)]
    assert peaks == sorted(peaks, reverse=True)


def test_flops_are_palms_and_a_block_forward_once_more():
    shape, T = SHAPES["135M"], 256
    palm = sum(accounting.palm_flops(shape, T).values())
    assert plan.step_flops(shape, T) == palm
    products = accounting.matrix_products(shape, 1, T, training=False)
    again = sum(product.flops for product in products if product.part != "head")
    assert plan.step_flops(shape, T, checkpointing=True) - palm == again


def test_time_and_energy_are_accountings():
    shape = SHAPES["1.7B"]
    found = plan.plan(shape, 2e12, "H100 SXM", 256, shard=True, price=2.5, disk=4)
    cost = accounting.training_cost(shape, int(2e12), 2048, "H100 SXM", 0.4)
    assert found.flops == pytest.approx(cost.flops)
    assert found.hours * 256 / 24 == pytest.approx(cost.card_days)
    assert found.kwh == pytest.approx(cost.kwh)
    assert found.money == pytest.approx(cost.card_days * 24 * 2.5)
    assert found.tokens_per_second == pytest.approx(2e12 / (found.hours * 3600))
    assert found.steps == pytest.approx(2e12 / (256 * 4 * 2048))
    assert found.checkpoint_bytes == 12 * accounting.total_parameters(shape)
    assert found.checkpoint_seconds == pytest.approx(found.checkpoint_bytes / 4e9)
    assert plan.plan(shape, 2e12, "H100 SXM", 256).money is None


def test_the_largest_batch_fits_and_one_more_does_not():
    shape = SHAPES["135M"]
    found = plan.plan(shape, 1e9, "T4", length=256, dtype=torch.float16)
    peaks = [
        plan.memory_per_card(shape, found.largest_batch + n, 256, torch.float16)["peak"]
        for n in (0, 1)
    ]
    assert peaks[0] <= found.room == 16e9 < peaks[1]
    assert plan.plan(SHAPES["1.7B"], 1e9, "T4", dtype=torch.float16).largest_batch == 0


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_what_goes_over_the_wire(n):
    """A ring of n: of what is summed each card sends 2 (n - 1)/n, of what is gathered half."""
    shape, B, T = SHAPES["135M"], 4, 256
    N, C = accounting.total_parameters(shape), shape.n_embd
    table = accounting.parameters(shape)["Token Embeddings"] + C
    sent = plan.on_the_wire(shape, B, T, cards=n)
    part = (n - 1) / n
    assert sent["copies of the model, gradients summed"] == pytest.approx(8 * N * part, abs=8)
    thrice, twice = 3 * (N - table), 2 * table
    right = 4 * (thrice + twice) * part
    assert sent["sharded weights, gradients and moments"] == pytest.approx(right, abs=8)
    right = 2 * part * 4 * shape.n_layer * B * T * C * 2
    assert sent["each matrix split"] == pytest.approx(right, abs=8)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("B", [4, 200])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_busiest_card_of_a_pipeline(n, B, tied):
    """Counted border by border: activations to the right, their gradients back to the left.

    A tied embedding is on the first card and, as the head, on the last: their gradients are summed.
    """
    shape, T = replace(SHAPES["135M"], tie_embeddings=tied), 256
    sent = [0] * n
    for left in range(n - 1):
        sent[left] += 4 * B * T * shape.n_embd  # float32
        sent[left + 1] += 4 * B * T * shape.n_embd
    if tied and n > 1:
        for end in (0, n - 1):
            sent[end] += 4 * shape.vocab_size * shape.n_embd  # a ring of two: 2 · 1/2 of it
    assert plan.on_the_wire(shape, B, T, cards=n)["blocks in sequence"] == max(sent)
    # With few tokens the ends are the busiest, with many the middle, unless there is none.
    assert (max(sent) == sent[0]) == (n < 3 or (tied and shape.vocab_size > B * T))


@pytest.mark.parametrize("name", ["full_run.csv", "tenth_run.csv", "finetuned_run.csv"])
def test_runs_that_were_made_are_met(name, monkeypatch):
    """The first hundred steps' utilisation plans the median step of all the rest within a tenth.

    Means also hold what other work on the machine took, which nothing can plan.
    """
    rows = [row for row in recorded(name) if row["utilisation"]]
    pace, share = (
        median(float(row[column]) for row in rows[:100])
        for column in ("tokens_per_second", "utilisation")
    )
    shape = SmolLM2Config.preset("13M" if name.startswith("tenth") else "135M")
    # A processor has no datasheet here: its peak is what the run measured itself against.
    peak = pace / share * plan.step_flops(shape, 256) / 256
    monkeypatch.setattr(plan, "peak_flops", lambda card, dtype: peak)
    found = plan.plan(shape, 1024 * len(rows), "T4", length=256, utilisation=share)
    rest = [1024 / float(row["tokens_per_second"]) for row in rows[100:]]
    assert found.steps == len(rows)
    assert found.hours * 3600 / found.steps == pytest.approx(median(rest), rel=0.1)


def test_what_the_page_says_of_16_gb():
    said = (assets.ROOT / "docs" / "training.md").read_text("utf-8")
    assert "4 sequences of 2,048 fit 16 GB, 9 do" in " ".join(said.split())
    fit = [
        plan.plan(SHAPES["135M"], 1e9, "T4", 1, length=2048, dtype=torch.float16, checkpointing=how)
        for how in (False, True)
    ]
    assert [one.largest_batch for one in fit] == [4, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "T"), [(4, 64), (1, 1)])
def test_the_peak_where_training_keeps_inputs_only(dtype, B, T):
    config = SmolLM2Config.preset("tiny", vocab_size=8192, n_layer=8)
    step, model, optimizer = training_step(config, B, T, dtype)
    keep_inputs_only(model)
    predicted = plan.memory_per_card(config, B, T, dtype, checkpointing=True)["peak"]
    assert measured_peak(step, model, optimizer) == pytest.approx(predicted, rel=2e-3)


def test_the_memory_of_the_measured_step_is_met():
    """As a process holds it: its libraries and what the allocator loses are in that."""
    [ours] = [row for row in recorded("training_speed.csv") if row["variant"] == "ours"]
    planned = plan.memory_per_card(SHAPES["135M"], 4, 256)["peak"]
    assert float(ours["peak_gb"]) == pytest.approx(planned / 1e9, rel=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cards": 0}, "cards=0: must be a whole number"),
        ({"batch": 1.5}, "batch=1.5: must be a whole number"),
        ({"length": 9000}, "length=9000: must be at most 8192, the model"),
        ({"utilisation": 0.0}, "utilisation=0.0: must be above 0"),
        ({"utilisation": float("nan")}, "utilisation=nan: must be above 0"),
        ({"tokens": 10}, "tokens=10: must be one step at least"),
        ({"tokens": float("nan")}, "tokens=nan: must be one step"),
        ({"disk": 0.0}, "disk=0.0: must be above 0"),
        ({"price": -1.0}, "price=-1.0: must be at least 0"),
        ({"card": "abacus"}, "card 'abacus': its peak is not known"),
    ],
)
def test_impossible_plans(change, words):
    given = {"tokens": 1e9, "card": "T4", "dtype": torch.float16} | change
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        plan.plan(SHAPES["135M"], **given)


def test_a_name_that_several_cards_bear_is_the_first_ones():
    assert plan.full_name("H100") == "H100 SXM"
    assert plan.full_name("A100") == "A100 SXM 40GB"
    assert plan.full_name("A10") == "A10"
    assert plan.full_name("H10") == "H10"
    assert {plan.full_name(name) for name in hardware.CARDS} == set(hardware.CARDS)


def run(*flags, monkeypatch):
    monkeypatch.setattr("sys.argv", ["smol_scratch", "plan", *flags])
    main()


def test_the_command_says_what_does_not_fit_and_what_would(monkeypatch, capsys):
    flags = ("--tokens", "5e6", "--card", "T4", "--batch", "64", "--length", "256")
    run(*flags, "--dtype", "float16", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "DOES NOT FIT: 28.8 GB of 16.0 GB" in said
    assert "with --checkpoint-activations: 73 sequences fit a card" in said
    assert "--shard" not in said
    assert "sent by each card" not in said
    run(
        "--preset", "1.7B", "--tokens", "2e12", "--cards", "256", "--shard", monkeypatch=monkeypatch
    )
    said = capsys.readouterr().out
    assert said.startswith("1.7B, 2e+12 tokens, 8 × 2048 on each card, on 256 × H100 SXM")
    assert "\nfits: " in said
    assert "sent by each card" in said
