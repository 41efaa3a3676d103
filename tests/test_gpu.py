"""The GPU run: what can be known of it without a card."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from benchmarks.bench_training import make_step
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import full_run, parity, paths, records, reference, speed
from benchmarks.gpu.graphs import GraphDecoder
from benchmarks.gpu.stage import STATES, Stage, plain
from smol_scratch import KVCache, SmolLM2, SmolLM2Config
from smol_scratch.assets import MissingAssetError
from smol_scratch.course import cards
from smol_scratch.course.notebook import read_record
from smol_scratch.generation import generate, next_logits
from smol_scratch.model import RotaryPositionalEmbedding

FIELDS = {"stage", "state", "seconds", "device", "card", "torch", "preset", "notes", "errors",
          "result"}  # fmt: skip


def stage(tmp_path, seconds=60.0):
    return Stage(
        tmp_path / "1_x.json", torch.device("cpu"), "tiny", time.time() + seconds, tmp_path
    )


def read(path):
    return json.loads(path.read_text("utf-8"))


# A stage


def test_a_part_is_on_the_disk_before_the_next_begins_and_one_that_fails_stops_nothing(tmp_path):
    it = stage(tmp_path)
    it.part("first", lambda: {"x": 1})
    assert read(it.path)["result"] == {"first": {"x": 1}}
    assert read(it.path)["state"] == "stopped", "what a killed stage leaves says so"
    assert it.part("second", lambda: 1 / 0) is None
    it.part("third", lambda: 3)
    it.end()
    found = read(it.path)
    assert set(found) == FIELDS
    assert found["state"] == "partly"
    assert found["result"] == {"first": {"x": 1}, "third": 3}
    assert "ZeroDivisionError" in found["errors"]["second"]
    assert "second: failed" in found["notes"][0]


def test_a_part_for_which_no_time_is_left_is_left_out_and_named(tmp_path):
    it = stage(tmp_path, seconds=5)
    assert it.part("long", lambda: pytest.fail("was begun"), needs=60) is None
    it.end()
    assert "long: left out" in read(it.path)["notes"][0]


def test_a_stage_without_trouble_is_ok(tmp_path):
    it = stage(tmp_path)
    it.part("one", lambda: 1)
    it.end()
    assert read(it.path)["state"] == "ok"


def test_what_json_cannot_hold_is_written_in_a_form_that_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = plain({"a": float("nan"), "b": torch.tensor([0.123456789]), 3: torch.bfloat16,
                   "c": [True, None, float("inf")], "d": str(tmp_path / "x")})  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": "nan", "b": [0.123457], "3": "bfloat16", "c": [True, None, "inf"], "d": "~/x"
    }  # fmt: skip


# The first process


def test_a_process_is_ended_when_its_time_is_up_and_with_it_what_it_began(tmp_path):
    mark = tmp_path / "mark"
    inner = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); "
    code += "time.sleep(60)"
    begun = time.time()
    ended = gpu.watch([sys.executable, "-c", code], 2, {}, tmp_path / "log")
    assert ended == "stopped after 2 s"
    time.sleep(max(0.0, 6.5 - (time.time() - begun)))
    assert not mark.exists()


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 11)"])
def test_a_process_that_dies_is_written_down_with_its_last_words(code, tmp_path):
    path, log = tmp_path / "2_parity.json", tmp_path / "log"
    code = f"import sys; print('last words', file=sys.stderr, flush=True); {code}"
    ended = gpu.watch([sys.executable, "-c", code], 20, {}, log)
    assert ended.startswith("ended with")
    found = gpu.settle(path, gpu.PLANS[1], ended, log, 1.0)
    assert found["state"] == read(path)["state"] == "died"
    assert "last words" in found["errors"]["the process said"]


def test_what_a_stopped_stage_had_found_stays(tmp_path):
    it = stage(tmp_path)
    it.part("one", lambda: 1)
    (tmp_path / "log").write_text("")
    found = gpu.settle(it.path, gpu.PLANS[0], "stopped after 3 s", tmp_path / "log", 3.0)
    assert (found["state"], found["result"]) == ("stopped", {"one": 1})


def test_a_failing_stage_does_not_stop_the_next(tmp_path, monkeypatch):
    # Each is a process of its own: the first is replaced by one that fails, the second is real.
    real = gpu.watch

    def watch(command, seconds, environment, log):
        if command[command.index("--child") + 1] == "environment":
            command = [sys.executable, "-c", "raise ValueError('planted')"]
        return real(command, seconds, environment, log)

    monkeypatch.setattr(gpu, "watch", watch)
    asked = ["--device", "cpu", "--preset", "tiny", "--output", str(tmp_path), "--stages"]
    assert gpu.main([*asked, "environment", "precision"]) == 1
    first, second = read(tmp_path / "1_environment.json"), read(tmp_path / "3_precision.json")
    assert first["state"] == "died"
    assert "planted" in first["errors"]["the process said"]
    assert second["state"] == "ok"
    assert second["result"]["chosen"]["reason"]


def test_stages_for_which_the_budget_is_too_small_are_skipped_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "watch", lambda *given: pytest.fail("was begun"))
    (tmp_path / "2_parity.json").write_text("from an earlier run")
    asked = ["--device", "cpu", "--preset", "tiny", "--output", str(tmp_path), "--budget", "3"]
    assert gpu.main([*asked, "--stages", "parity", "precision"]) == 1
    found = [read(path) for path in sorted(tmp_path.glob("*.json"))]
    assert [one["stage"] for one in found] == ["2_parity", "3_precision"]
    assert {one["state"] for one in found} == {"skipped"}
    assert all("not begun" in one["notes"][0] for one in found)


@pytest.mark.parametrize(("budget", "share"), [(570, 160), (2280, 640), (300, 160)])
def test_a_larger_budget_widens_every_stage(budget, share, tmp_path, monkeypatch):
    given = []

    def watch(command, seconds, environment, log):
        log.touch()
        given.append(seconds - gpu.GRACE / 2)
        return "died"

    monkeypatch.setattr(gpu, "watch", watch)
    asked = ["--stages", "speed", "run", "--budget", str(budget), "--output", str(tmp_path)]
    gpu.run_all(gpu.parsed(asked))
    assert given[0] == share
    assert budget - 20 < given[1] < budget  # the last one takes what is left


@pytest.mark.parametrize(("device", "steps"), [("cuda", 5050), ("cpu", 60)])
def test_the_long_run_is_short_only_without_a_card(device, steps):
    assert gpu.parsed(["--device", device]).steps == steps
    assert gpu.parsed(["--device", device, "--steps", "7"]).steps == 7


def test_the_stages_before_the_last_leave_it_three_minutes_of_the_usual_budget():
    budget = gpu.parsed([]).budget
    assert budget == gpu.BUDGET
    assert budget + gpu.GRACE < 600
    assert budget - gpu.GRACE - sum(plan.most for plan in gpu.PLANS[:-1]) >= 180
    assert set(STATES) >= {"ok", "partly", "failed", "stopped", "died", "skipped"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["--budget", "0"], "--budget 0.0: must be above 0"),
     (["--steps", "1"], "--steps 1: must be at least 2"),
     (["--data", "nowhere"], "--data nowhere: no such folder"),
     (["--stages", "sped"], "invalid choice: 'sped'"),
     (["--pack", "."], "--pack .: is already there")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(asked, said, capsys):
    with pytest.raises(SystemExit) as refused:
        gpu.parsed(asked)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_way_to_try_it_is_named(capsys):
    assert gpu.main([]) == 2
    assert "--device cpu --preset tiny" in capsys.readouterr().err


# What the stages compute


def small(**changes):
    torch.manual_seed(0)
    return SmolLM2(SmolLM2Config.preset("tiny", vocab_size=97, **changes)).eval()


def test_a_token_with_fixed_memory_is_scored_as_the_plain_model_scores_it(monkeypatch):
    """What is compiled on a card, here not compiled: the same tokens, and the cache is filled."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: None)
    model = small().requires_grad_(False)
    decoder = GraphDecoder(model, 40)
    right = generate(model, [5, 6, 7], 20, temperature=0)[0]
    assert torch.equal(generate(model, [5, 6, 7], 20, temperature=0, decoder=decoder)[0], right)
    plain_cache, its = KVCache(model.config, 1, 30), KVCache(model.config, 1, 30)
    with torch.inference_mode():
        for piece in ([[5, 6, 7]], [[8]], [[9]]):
            ids = torch.tensor(piece)
            wanted, found = next_logits(model, ids, plain_cache), decoder(ids, its)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)  # another order of sums
    assert its.length == 5
    torch.testing.assert_close(its.layers[2].k[:, :, :5], plain_cache.layers[2].k[:, :, :5])
    # Another sequence takes the buffers over; the first must not go on with its keys.
    other = KVCache(model.config, 1, 30)
    with torch.inference_mode():
        decoder(torch.tensor([[1, 2]]), other)
        decoder(torch.tensor([[3]]), other)
        with pytest.raises(ValueError, match="another sequence has taken this decoder"):
            decoder(torch.tensor([[4]]), its)


def test_a_decoder_that_is_full_says_so(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: None)
    model = small().requires_grad_(False)
    with pytest.raises(ValueError, match="6 tokens do not fit a decoder of 5"):
        generate(model, [5, 6, 7], 20, temperature=0, decoder=GraphDecoder(model, 5))


def test_the_bytes_beside_the_products_are_those_that_are_counted_by_hand():
    config = SmolLM2Config(vocab_size=100, n_layer=1, n_head=2, n_kv_head=1, n_embd=8, head_dim=4,
                           intermediate_size=16, block_size=16)  # fmt: skip
    matrices = 100 * 8 + 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    N, tokens = matrices + 3 * 8, 2 * 3
    norms, swiglu, logs = 3 * 8 * tokens, 16 * tokens, 100 * tokens  # numbers
    plain_ = 7 * 4 * N + 4 * (2 * norms + norms) + 4 * (2 + 3) * swiglu + 2 * 4 * logs
    assert speed.bytes_beside_products(config, 2, 3, torch.float32) == plain_
    inputs = (5 + 1) * 8 * tokens
    half = 7 * 4 * N + 2 * 6 * matrices + 4 * 3 * norms + 2 * inputs
    half += 2 * (2 + 3) * swiglu + 2 * 4 * logs
    assert speed.bytes_beside_products(config, 2, 3, torch.bfloat16) == half


def test_the_limit_adds_its_two_terms_and_every_product_counts_as_often_as_it_occurs(monkeypatch):
    monkeypatch.setattr(speed, "seconds_each", lambda call, device, times, rounds: 1.0)
    monkeypatch.setattr(speed, "device_peak", lambda device, dtype: 1.0)
    config = SmolLM2Config.preset("tiny", vocab_size=97)
    found = speed.limit(config, torch.float32, torch.device("cpu"), copying=1e6)
    # A linear layer has a product forward and two backward, in each layer; attention has two times
    # three, the heads of a batch together.
    assert found["products_s"] == pytest.approx(3 * (7 * 4 + 1) + 6 * 4)
    assert found["s"] == found["products_s"] + found["bytes"] / 1e6


def test_a_variant_is_made_for_any_device_size_and_type():
    config = SmolLM2Config.preset("tiny", vocab_size=97)
    step = make_step(speed.OURS, config, (2, 16), torch.device("cpu"), torch.float32)
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[0]
    names = [variant.name for variant in speed.TRAINING]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("uninterrupted", "resumed", "control", "verdict", "first"),
    [([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], "equal to the last bit", None),
     ([1.0, 2.0], [1.0, 2.0 + 1e-7], [1.0, 2.0 - 1e-7], "close", 1),
     ([1.0, 2.0], [1.0, 2.1], [1.0, 2.1], "DIFFERS", 1),
     ([1.0, 2.0], [1.0, 2.1], [1.0, 2.1 + 1e-7], "DIFFERS", 1),
     ([1.0, 2.0], [1.0], [1.0, 2.0], "DIFFERS", 1),
     ([1.0, 2.0], [1.0, float("nan")], [1.0, 2.0], "DIFFERS", 1)],
)  # fmt: skip
def test_a_resumed_run_is_equal_close_or_another(uninterrupted, resumed, control, verdict, first):
    found = full_run.compared(uninterrupted, resumed, control)
    assert found["verdict"].startswith(verdict)
    assert found["first_that_differs"] == first


def test_rows_are_laid_beside_those_of_the_processors_run():
    known = read_record("full_run.csv")[:150]
    rows = [[row["step"], str(row["loss"] + 0.5), row["held_out_loss"]] for row in known]
    found = full_run.beside(rows)
    assert list(found) == ["steps 0 to 99", "steps 100 to 149", "held_out, card and processor"]
    assert found["steps 0 to 99"]["largest_difference"] == pytest.approx(0.5)
    assert found["held_out, card and processor"][0][0] == known[0]["held_out_loss"]


def test_without_the_plays_made_up_tokens_are_trained_on_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(full_run, "load_text", lambda: raised(MissingAssetError("no text")))
    it = stage(tmp_path)
    words = full_run.Words(it)
    assert words.made_up
    assert len(words.held_out) == 50_000
    assert any("made-up tokens" in note for note in it.notes)


def raised(error):
    raise error


def test_the_run_resumes_in_the_middle_and_keeps_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(full_run, "PROOF", 2)
    monkeypatch.setattr(full_run, "TRIAL", 1)
    monkeypatch.setattr(full_run.Words, "_tokenizer", staticmethod(lambda stage: None))
    it = stage(tmp_path, seconds=3600)
    it.steps = 8
    before = torch.are_deterministic_algorithms_enabled()
    try:
        full_run.full_run(it)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = True
    it.end()
    found = read(it.path)
    assert [row[0] for row in found["result"]["rows"]] == list(range(8))
    resume = found["result"]["resume"]
    assert (resume["verdict"], resume["from_step"]) == ("equal to the last bit", 4)
    assert found["result"]["steps"] == 8
    assert "made-up tokens" in " ".join(found["notes"])


@pytest.mark.parametrize("case", paths.CASES)
def test_the_plain_kernel_gives_what_explicit_attention_gives(tmp_path, case):
    found = paths.kernels(stage(tmp_path), case, torch.float32)
    assert set(found) == {"as chosen", "taken", *paths.BACKENDS}
    assert found["math"] < 1e-5
    assert found["as chosen"] < 1e-5


def test_random_numbers_can_be_put_back(tmp_path):
    assert paths.random_numbers(stage(tmp_path))["same_again"] is True


# Parity


@pytest.mark.parametrize("arithmetic", parity.KINDS)
def test_the_reference_can_tell_wrong_programs_from_rounding(arithmetic):
    """In each arithmetic the gentlest wrong program stands at twice what is allowed, or more."""
    known = parity.reference()["models"]
    assert "tiny" in known
    for name, entry in known.items():
        assert reference.gentlest(entry, arithmetic) > 2, name


def test_this_processor_is_within_its_reference_and_a_planted_bug_is_not():
    known, model = parity.reference()["models"]["tiny"], parity.loaded("tiny", torch.device("cpu"))
    assert parity.judged(model, known, "fp32")["verdict"] == "ok"
    rope = model.model.layers[0].self_attn.rope
    wrong = RotaryPositionalEmbedding(model.config.head_dim, model.config.block_size, 10_000.0)
    rope.cos, rope.sin = wrong.cos, wrong.sin
    found = parity.judged(model, known, "fp32")
    assert found["verdict"] == "differs"
    assert "theta 10,000" in found["looks_like"]


# Records


def run_files(folder, **changes):
    """Write the files of a run on a card that nobody has."""
    common = {"state": "ok", "seconds": 1.0, "device": "cuda", "card": "Card X-1", "torch": "2.9.0",
              "preset": "135M", "notes": [], "errors": {}}  # fmt: skip
    results = {
        "environment": {"machine": {"Python": "3.12"}},
        "speed": {
            "step, limit": {"s": 0.01, "tokens_per_s": 102400.0, "dtype": "bfloat16"},
            "step, ours": {"tokens_per_s": 50000.0, "of_limit": 0.5, "first_step_s": 1.0},
            "step, ours, compiled": {"first_step_s": 9.0},
            "token, bfloat16, limit": {"tokens_per_s": 9000.0},
            "token, bfloat16, ours, CUDA graphs": {"tokens_per_s": 3000.0, "cold_s": 20.0},
        },
        "run": {"columns": ["step", "loss", "held_out_loss", "learning_rate", "gradient_norm",
                            "tokens_per_second", "utilisation"],
                "rows": [[0, "10.8", "10.9", "3e-06", "8", "5e4", "0.1"]], "steps": 1,
                "made_up": False, "final_held_out_loss": 10.7} | changes,
    }  # fmt: skip
    for name, result in results.items():
        path = gpu.stage_file(folder, name)
        path.write_text(json.dumps(common | {"stage": path.stem, "result": result}))


def test_a_run_becomes_records_and_records_are_read(tmp_path, monkeypatch):
    run_files(tmp_path)
    to = tmp_path / "records"
    assert records.main([str(tmp_path), "--to", str(to)]) == 0
    names = ["gpu_card_x_1.json", "gpu_card_x_1_run.csv", "gpu_card_x_1_speed.csv"]
    assert sorted(path.name for path in to.iterdir()) == names
    monkeypatch.setattr(cards.assets, "records", lambda: to)
    [card] = cards.card_records()
    assert card.name == "Card X-1"
    assert card.checked["environment"]["result"]["machine"]["Python"] == "3.12"
    assert "rows" not in card.checked["run"]["result"]
    assert [(row["what"], row["dtype"], row["variant"], row["tokens_per_s"])
            for row in card.speed] == [
        ("step", "bfloat16", "limit", 102400), ("step", "bfloat16", "ours", 50000),
        ("token", "bfloat16", "limit", 9000), ("token", "bfloat16", "ours, CUDA graphs", 3000)
    ]  # fmt: skip
    assert [(row["step"], row["loss"], row["held_out_loss"]) for row in card.run] == [
        (0, 10.8, 10.9), (1, None, 10.7)
    ]  # fmt: skip
    head = (to / names[1]).read_text().splitlines()
    assert head[0] == "# Card X-1, torch 2.9.0, 135M; python -m benchmarks.gpu"
    assert head[1] == read_head("full_run.csv")


def read_head(name):
    lines = (cards.assets.ROOT / "data" / "records" / name).read_text("utf-8").splitlines()
    return next(line for line in lines if not line.startswith("#"))


def test_without_records_there_are_no_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(cards.assets, "records", lambda: tmp_path)
    assert cards.card_records() == []


def test_what_is_no_record_is_refused_in_a_line(tmp_path, capsys):
    assert records.main([str(tmp_path)]) == 2
    assert "no files of a GPU run" in capsys.readouterr().err
    run_files(tmp_path, made_up=True)
    assert records.main([str(tmp_path), "--to", str(tmp_path / "to")]) == 2
    assert "made-up tokens" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    path = gpu.stage_file(tmp_path, "speed")
    path.write_text(path.read_text().replace("Card X-1", "Card Y"))
    assert records.main([str(tmp_path)]) == 2
    assert "files of several runs, card is 'Card X-1', 'Card Y'" in capsys.readouterr().err
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text().replace('"cuda"', '"cpu"').replace("Card Y", "Card X-1"))
    assert records.main([str(tmp_path)]) == 2
    assert "made without a card" in capsys.readouterr().err


# The whole


# Compiled code sums in another order, which is rounding: eight times what was measured, in the type
# that this machine's processor chooses. A wrong gradient is off by its own size.
ROUNDED = {"float32": 1.6e-5, "bfloat16": 0.16}


@pytest.mark.slow
def test_every_stage_runs_without_a_card(tmp_path):
    """The budget is wide, since nothing here asserts times."""
    asked = ["--device", "cpu", "--preset", "tiny", "--budget", "4800"]
    assert gpu.main([*asked, "--output", str(tmp_path)]) == 0
    found = [read(gpu.stage_file(tmp_path, plan.name)) for plan in gpu.PLANS]
    assert {one["state"] for one in found} <= {"ok", "partly"}
    assert not any(one["errors"] for one in found), [one["errors"] for one in found]
    parities, speeds, run = (found[i]["result"] for i in (1, 4, 6))
    assert parities["differing"] == []
    compiled = found[3]["result"]["compile"]
    assert compiled["gradients_apart"] < ROUNDED[compiled["dtype"]]
    assert speeds["compiler"] == speed.TRIED_WITH
    for variant in speed.TRAINING:
        assert speeds[f"step, {variant.name}"]["tokens_per_s"] > 0
    eager, graphs = (speeds[f"token, float32, ours{more}"] for more in ("", ", CUDA graphs"))
    assert graphs["tokens_as_eager"] == eager["tokens_as_eager"] > 0
    assert run["resume"]["verdict"] == "equal to the last bit"
