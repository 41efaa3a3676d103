"""The small trainings of notebooks 04 and 05: their parts by hand, and recorded runs again."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.record_races import SPREADS
from smol_scratch import SmolLM2, SmolLM2Config, load_text
from smol_scratch.course import races
from smol_scratch.course.notebook import read_record

CONFIG = SmolLM2Config(
    vocab_size=65, block_size=8, n_layer=3, n_head=2, n_kv_head=1, n_embd=24, head_dim=12,
    intermediate_size=64,
)  # fmt: skip
# What rounding to the record's last digit hides, and as much again for another processor: with
# plain x86 instructions no number here moved by more than a fiftieth of that.
FOUR_DIGITS, THREE_DIGITS = 1e-4, 1e-3


@pytest.fixture(scope="module")
def numbers() -> torch.Tensor:
    return races.characters()


def row_of(name: str, **wanted: object) -> dict:
    [row] = [r for r in read_record(name) if all(str(r[k]) == str(v) for k, v in wanted.items())]
    return row


def test_characters_are_numbered_in_their_order(numbers):
    letters = sorted(set(load_text()))
    assert len(letters) == 65
    assert "".join(letters[n] for n in numbers[:200]) == load_text()[:200]
    assert len(numbers) == len(load_text())


def test_each_gate_computes_its_formula():
    torch.manual_seed(1)
    x = torch.randn(2, 5, 24)
    made = {name: mlp(CONFIG) for name, mlp in races.GATES.items()}
    with torch.no_grad():
        for name in ("bilinear", "biases"):
            part = made[name]
            if name == "biases":
                for linear in (part.gate_proj, part.up_proj, part.down_proj):
                    assert torch.equal(linear.bias, torch.zeros(linear.out_features))
                    linear.bias.normal_()
            gate, up = part.gate_proj(x), part.up_proj(x)
            bent = F.silu(gate) if name == "biases" else gate
            torch.testing.assert_close(part(x), part.down_proj(bent * up))
        part = made["GELU"]
        expected = F.gelu(x @ part.up_proj.weight.T) @ part.down_proj.weight.T
        torch.testing.assert_close(part(x), expected)
    count = {name: sum(w.numel() for w in part.parameters()) for name, part in made.items()}
    assert count["SwiGLU"] == count["GELU"] == count["bilinear"] == 3 * 24 * 64
    assert count["biases"] == 3 * 24 * 64 + 64 + 64 + 24
    assert part.up_proj.bias is part.down_proj.bias is None


def test_a_grid_holds_every_pair_and_what_is_to_be_learned_of_it():
    a, b = races.grid()
    points = [-2 + 0.2 * i for i in range(21)]
    torch.testing.assert_close(a[7], torch.tensor(points, dtype=torch.double))
    torch.testing.assert_close(b[:, 7], torch.tensor(points, dtype=torch.double))
    assert torch.equal(races.TARGETS["product"](a, b), a * b)
    edge = races.TARGETS["edge"](a, b)
    assert torch.equal(edge[:, :11], torch.zeros(21, 11))  # a up to 0
    assert torch.equal(edge[:, 11:], b[:, 11:])


@pytest.mark.parametrize("target", races.TARGETS)
@pytest.mark.parametrize("kind", races.FITS)
def test_a_fit_is_the_recorded_one(kind, target):
    answer, error = races.fit(kind, target, 0)
    row = row_of("fit_race.csv", kind=kind, target=target, seed=0)
    assert abs(error - float(row["error"])) < FOUR_DIGITS
    want = races.TARGETS[target](*races.grid())
    assert answer.shape == want.shape
    away = (answer - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
    assert abs(away.item() - error) < 1e-9  # float64; some sums in another order


def test_gates_race_from_the_same_weights_but_their_own():
    made = {kind: races.gate_model(mlp, 24, 3) for kind, mlp in races.GATES.items()}
    first = {n: w for n, w in made["SwiGLU"].state_dict().items() if ".mlp." not in n}
    for kind, model in made.items():
        others = {n: w for n, w in model.state_dict().items() if ".mlp." not in n}
        assert all(torch.equal(first[name], weight) for name, weight in others.items()), kind
        for weight in model.model.layers[0].mlp.parameters():
            if weight.ndim == 2:
                assert abs(weight.std().item() * 24**0.5 - 1) < 0.1  # 0.05: three standard errors
    assert not torch.equal(
        races.gate_model(races.GATES["GELU"], 24, 4).model.embed_tokens.weight,
        made["GELU"].model.embed_tokens.weight,
    )


@pytest.mark.parametrize("kind", races.GATES)
def test_a_race_of_gates_is_the_recorded_one(kind, numbers):
    row = row_of("gate_race.csv", kind=kind, width=24, rate=0.02, seed=3)
    model = races.gate_model(races.GATES[kind], 24, 3)
    history, end = races.gate_race(model, 3, numbers, 0.02)
    assert abs(end - float(row["held_out"])) < FOUR_DIGITS
    for first in range(0, 200, 10):
        mean = statistics.mean(history[first : first + 10])
        assert abs(mean - float(row[f"to_{first + 10}"])) < THREE_DIGITS, first


class Word(str):
    """A stream that writes down what is done to it."""

    def __add__(self, other):
        return Word(f"[{self!s}+{other}]")


@pytest.mark.parametrize(
    ("wiring", "formula"),
    [
        ("pre-norm", "[[x+attn(n1(x))]+mlp(n2([x+attn(n1(x))]))]"),
        ("post-norm", "n2([n1([x+attn(x)])+mlp(n1([x+attn(x)]))])"),
        ("no residual", "mlp(n2(attn(n1(x))))"),
    ],
)
def test_a_wiring_is_its_formula(wiring, formula):
    def part(name):
        return lambda x: Word(f"{name}({x})")

    block = SimpleNamespace(
        self_attn=part("attn"), mlp=part("mlp"),
        input_layernorm=part("n1"), post_attention_layernorm=part("n2"),
    )  # fmt: skip
    assert races.WIRINGS[wiring](block, Word("x")) == formula


@pytest.mark.parametrize(
    ("wiring", "formula"),
    [("post-norm", "n2([n1(x)+mlp(n1(x))])"), ("no residual", "mlp(n2(x))")],
)
def test_a_wiring_without_attention_is_its_formula(wiring, formula):
    def part(name):
        return lambda x: Word(f"{name}({x})")

    block = SimpleNamespace(
        mlp=part("mlp"), input_layernorm=part("n1"), post_attention_layernorm=part("n2")
    )
    assert races.WITHOUT_ATTENTION[wiring](block, Word("x")) == formula


def test_the_models_own_wiring_gives_the_models_own_loss(numbers):
    torch.manual_seed(0)
    model = SmolLM2(CONFIG).eval()
    piece = numbers[:18].view(2, 9)
    own = model(piece[:, :-1], piece[:, 1:])[1]
    again = races.wired_loss(model, races.pre_norm, piece[:, :-1], piece[:, 1:])
    torch.testing.assert_close(again, own)


@pytest.mark.parametrize("wiring", races.WIRINGS)
def test_the_first_steps_of_a_wiring_are_the_recorded_ones(wiring, numbers):
    """With small weights: large ones amplify rounding where nothing norms the stream."""
    row = row_of("wiring_race.csv", wiring=wiring, spread=0.02, rate=0.001, seed=1)
    history = races.wiring_race(wiring, SPREADS["0.02"], 1e-3, 1, numbers, 20)
    assert abs(statistics.mean(history) - float(row["to_20"])) < THREE_DIGITS


def test_the_first_steps_with_parts_taken_out_are_the_recorded_ones(numbers):
    """With neither gate nor attention, where large weights amplify no rounding."""
    row = row_of("causes_race.csv", wiring="post-norm", attention="without", gate="without",
                 rate=0.001, seed=1)  # fmt: skip
    history = races.wiring_race(
        "post-norm", SPREADS["0.18"], 1e-3, 1, numbers, 20, attention=False, gate=False
    )
    assert abs(statistics.mean(history) - float(row["to_20"])) < THREE_DIGITS


def test_frequencies_are_scored_on_the_last_batches_of_a_race(numbers):
    generator = torch.Generator().manual_seed(5)
    for _ in range(7):
        starts = torch.randint(len(numbers) - 32, (8, 1), generator=generator)
    counts = {int(n): int((numbers == n).sum()) for n in numbers.unique()}
    told = [
        -math.log(counts[int(number)] / len(numbers))
        for start in starts.flatten().tolist()
        for number in numbers[start + 1 : start + 33]
    ]
    found = races.frequency_loss(5, numbers, steps=7, last=1)
    assert abs(found - statistics.mean(told)) < 1e-5  # a sum of 256 in float32
