import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from smol_scratch import KVCache, SmolLM2, SmolLM2Config, hardware
from smol_scratch.__main__ import main
from smol_scratch.accounting import (
    PRODUCT_TYPES,
    activations,
    attention_crossover,
    chinchilla_tokens,
    costs,
    counted_flops,
    counted_parameters,
    kv_cache_bytes,
    masked_flops,
    matrix_products,
    measured_activations,
    measured_peak,
    palm_against_hand,
    palm_flops,
    parameter_table,
    parameters,
    print_costs,
    ratios,
    total_parameters,
    training_cost,
    training_memory,
    training_runs,
    training_traffic,
)
from smol_scratch.hardware import CARDS, device_peak, find_card, peak_flops
from smol_scratch.hub import config_to_hf

WALKTHROUGH = SmolLM2Config()
RELEASED = [SmolLM2Config.preset(name) for name in ("135M", "360M", "1.7B", "tiny")]
# No two sizes alike, and the heads wider together than the residual stream.
SMALL = SmolLM2Config(
    block_size=32,
    vocab_size=101,
    n_layer=3,
    n_head=6,
    n_kv_head=2,
    n_embd=40,
    intermediate_size=72,
    head_dim=8,
)

# The description's table, character by character.
DESCRIPTION = """\
================================================================================
Parameter Breakdown
================================================================================
Token Embeddings                    28,311,552      21.05%
Attention Q                          9,953,280       7.40%
Attention K                          3,317,760       2.47%
Attention V                          3,317,760       2.47%
Attention O                          9,953,280       7.40%
MLP Gate                            26,542,080      19.73%
MLP Up                              26,542,080      19.73%
MLP Down                            26,542,080      19.73%
RMSNorm                                 35,136       0.03%
Output (shared)                              0       0.00%

Total Parameters                   134,515,008
Total (Millions)                        134.52M"""


def empty(config):
    """Make a model of any size without memory."""
    with torch.device("meta"):
        return SmolLM2(config)


def batch(config, B, T, device="cpu"):
    idx = torch.randint(config.vocab_size, (B, T), device=device)
    return idx, idx.clone()


# Parameters


def test_the_descriptions_table_from_both_counts():
    assert parameter_table(parameters(WALKTHROUGH)) == DESCRIPTION
    assert parameter_table(counted_parameters(empty(WALKTHROUGH))) == DESCRIPTION


@pytest.mark.parametrize("config", [*RELEASED, SMALL])
@pytest.mark.parametrize("tied", [True, False])
def test_the_formula_counts_what_the_model_has(config, tied):
    config = replace(config, tie_embeddings=tied, n_layer=3)  # all layers are alike
    model = empty(config)
    assert counted_parameters(model) == parameters(config)
    assert total_parameters(config) == sum(weight.numel() for weight in model.parameters())


def test_totals():
    # 134.5M, 361.8M and 1.71B, as the model cards say.
    totals = [total_parameters(config) for config in RELEASED]
    assert totals == [134_515_008, 361_821_120, 1_711_376_384, 5_112_672]
    assert total_parameters(WALKTHROUGH, tied=False) == 162_826_560
    assert counted_parameters(empty(RELEASED[1])) == parameters(RELEASED[1])
    assert total_parameters(replace(WALKTHROUGH, tie_embeddings=False), tied=True) == 134_515_008


def test_a_parameter_without_a_row_is_refused():
    model = empty(SMALL)
    model.lora = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"lora\.weight: belongs to no row"):
        counted_parameters(model)


def test_ratios():
    found = ratios(WALKTHROUGH)
    assert found["aspect ratio"] == 19.2 == 576 / 30
    assert found["head ratio"] == 64
    assert round(found["embedding share"], 4) == 0.2105
    untied = ratios(replace(WALKTHROUGH, tie_embeddings=False))
    assert untied["embedding share"] == 2 * 28_311_552 / 162_826_560


def test_chinchilla():
    wanted = chinchilla_tokens(134_515_008)
    assert wanted == 2_690_300_160
    assert round(5_000 * 1_024 / wanted, 4) == 0.0019


# Memory


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", PRODUCT_TYPES)
@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 7), (2, 32)])
def test_activations_are_what_autograd_keeps(tied, dtype, B, T):
    config = replace(SMALL, tie_embeddings=tied)
    kept = activations(config, B, T, dtype)
    assert sum(kept.values()) == measured_activations(SmolLM2(config), *batch(config, B, T), dtype)


shapes = st.builds(
    lambda kv, group, half, **rest: replace(
        SMALL, n_kv_head=kv, n_head=kv * group, head_dim=2 * half, **rest
    ),
    kv=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(2, 5),  # for heads of 2, PyTorch leaves its fused kernel
    n_layer=st.integers(1, 3),
    n_embd=st.integers(1, 30),
    intermediate_size=st.integers(1, 30),
    vocab_size=st.integers(2, 60),
    tie_embeddings=st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(2, 9), st.sampled_from(PRODUCT_TYPES))
def test_activations_and_flops_for_any_shape(config, B, T, dtype):
    model, tokens = SmolLM2(config), batch(config, B, T)
    kept = activations(config, B, T, dtype)
    assert sum(kept.values()) == measured_activations(model, *tokens, dtype)
    assert counted_flops(model, *tokens) == hand_count(config, B, T)


def test_no_other_type_of_products():
    with pytest.raises(ValueError, match=r"torch\.float64: must be one of torch\.float32"):
        activations(SMALL, 1, 1, torch.float64)


def training_step(config, B, T, dtype, fused=True):
    model = SmolLM2(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    idx, targets = batch(config, B, T)

    def step():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            _, loss = model(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return step, model, optimizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "T"), [(4, 64), (1, 1)])  # peaks at one moment and at the other
def test_the_peak_of_a_training_step(tied, dtype, B, T):
    config = replace(SmolLM2Config.preset("tiny"), vocab_size=8192, tie_embeddings=tied)
    predicted = training_memory(config, B, T, dtype)["peak"]
    # What the formula leaves out: step counters, norms, the loss, vectors of one width.
    assert measured_peak(*training_step(config, B, T, dtype)) == pytest.approx(predicted, rel=2e-3)


def test_the_rows_of_the_training_memory():
    rows = training_memory(WALKTHROUGH, 4, 256, torch.bfloat16)
    assert rows["weights"] == rows["gradients"] == 538_060_032
    assert rows["AdamW's two moments"] == 1_076_120_064
    parts = sum(size for name, size in rows.items() if name not in ("peak", "gradients"))
    assert rows["peak"] == parts == 3_562_626_820


def test_the_traffic_of_a_training_step():
    """By hand for one configuration; and never more than the tensors that are really there."""
    config, (B, T) = SMALL, (2, 8)
    moved = training_traffic(config, B, T, torch.bfloat16)
    # A block: q, o 40 x 48, k, v 40 x 16, three of 40 x 72; the tied table 101 x 40.
    matrices = 3 * (2 * 1920 + 2 * 640 + 3 * 2880) + 4040
    weights = matrices + 7 * 40
    assert weights == total_parameters(config)
    # A token: seven norms' 40 in 4 and 2 bytes; three blocks' 48 + 48 + 16 + 16 and 3 x 72 in 2.
    token = 7 * 40 * 6 + 3 * 128 * 2 + 3 * 216 * 2
    assert moved == {
        "weights, read forward": 4 * matrices,
        "weights' copies, written": 2 * matrices,
        "weights, read backward": 2 * matrices,
        "activations, written and read": 2 * 16 * token,
        "logits and their gradient": 6 * 2 * 101 * 16,
        "gradients, written": 4 * weights,
        "AdamW: four numbers read a weight": 16 * weights,
        "AdamW: three numbers written": 12 * weights,
    }
    assert 16 * token < sum(activations(config, B, T, torch.bfloat16).values())
    wide = training_traffic(config, B, T)
    assert wide["weights' copies, written"] == 0
    assert wide["weights, read backward"] == 4 * matrices
    untied = training_traffic(replace(config, tie_embeddings=False), B, T, torch.bfloat16)
    assert untied["weights, read forward"] == moved["weights, read forward"]
    with pytest.raises(ValueError, match=r"torch\.float64: must be one of torch\.float32"):
        training_traffic(config, B, T, torch.float64)


def test_more_is_held_by_a_model_that_leaks():
    step, model, optimizer = training_step(SMALL, 2, 8, torch.float32)
    leak = []
    more = measured_peak(lambda: (leak.append(torch.zeros(1000)), step()), model, optimizer)
    assert more == measured_peak(step, model, optimizer) + 4000


def test_the_cache():
    assert kv_cache_bytes(WALKTHROUGH) == 46_080
    assert kv_cache_bytes(WALKTHROUGH, dtype=torch.bfloat16) == 23_040
    for dtype in (torch.float32, torch.float16):
        cache = KVCache(SMALL, batch_size=1, max_length=20, dtype=dtype)
        assert kv_cache_bytes(SMALL, 20, dtype) == cache.nbytes


# FLOPs


def hand_count(config, B, T):
    products = matrix_products(config, B, T)
    forward = sum(product.flops for product in products if product.direction == "forward")
    return forward, sum(product.flops for product in products) - forward


def test_palms_formula_gives_the_descriptions_figure():
    rounded = palm_flops(WALKTHROUGH, 256, 135_000_000)
    assert rounded == {"6 N T": 207_360_000_000, "12 L H D T²": 13_589_544_960}
    assert sum(rounded.values()) == 220_949_544_960
    assert sum(palm_flops(WALKTHROUGH, 256).values()) == 220_204_597_248


def test_three_ways_on_the_real_model():
    """At full size and on the description's batch, without memory for it."""
    model = empty(WALKTHROUGH)
    counted = counted_flops(model, *batch(WALKTHROUGH, 4, 256, "meta"))
    assert counted == hand_count(WALKTHROUGH, 4, 256)
    assert counted[1] == 2 * counted[0]
    assert sum(counted) == 4 * 220_150_628_352
    rows = palm_against_hand(WALKTHROUGH, 256)
    assert rows == {
        "PaLM's formula": 220_204_597_248,
        "norm weights are no matrices": -6 * 35_136 * 256,
        "hand count": 220_150_628_352,
    }


@pytest.mark.parametrize("config", [*RELEASED, SMALL])
@pytest.mark.parametrize("tied", [True, False])
def test_three_ways_for_every_configuration(config, tied):
    config = replace(config, tie_embeddings=tied, n_layer=3)  # all layers are alike
    counted = counted_flops(empty(config), *batch(config, 2, 16, "meta"))
    assert counted == hand_count(config, 2, 16)
    for n_parameters in (None, 135_000_000):
        rows = palm_against_hand(config, 16, n_parameters)
        assert sum(rows.values()) == 2 * rows["hand count"]  # the others add up to the last
        assert 2 * rows["hand count"] == sum(counted)


def test_a_step_with_a_cache():
    model, cache = SmolLM2(SMALL).eval(), KVCache(SMALL, batch_size=2)
    model(batch(SMALL, 2, 9)[0], cache=cache)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.utils.flop_counter.FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(batch(SMALL, 2, 1)[0], cache=cache)
    products = matrix_products(SMALL, 2, 1, 10, training=False)
    assert sum(product.flops for product in products) == counter.get_total_flops()


def test_each_product_has_two_gradients_of_its_own_shape():
    products = matrix_products(SMALL, 2, 5)
    forward = {p.name: p for p in products if p.direction == "forward"}
    assert len(products) == 3 * len(forward) == 30
    for p in products:
        assert sorted((p.m, p.k, p.n)) == sorted(forward[p.name][3:6])
        assert p.times == forward[p.name].times
    q, scores = forward["q_proj"], forward["scores"]
    assert (q.m, q.k, q.n, q.times) == (10, 40, 48, 3)
    assert (scores.m, scores.k, scores.n, scores.times) == (5, 8, 5, 3 * 2 * 6)


def test_intensity():
    square = matrix_products(replace(SMALL, n_embd=48), 1, 48)[0]
    assert (square.m, square.k, square.n) == (48, 48, 48)
    assert square.intensity(2) == 2 * 48**3 / (3 * 48**2 * 2)


def test_masked_flops_are_those_of_the_upper_triangle():
    T, config = 7, SMALL
    products = matrix_products(config, 1, T)
    square = sum(p.flops for p in products if p.name in ("scores", "weighted values"))
    ahead = torch.ones(T, T).triu(1).sum().item()
    assert masked_flops(config, T) == square * ahead / T**2


def test_the_crossover():
    assert attention_crossover(WALKTHROUGH) == 3891.2 == (134_515_008 - 35_136) / (2 * 30 * 576)
    products = matrix_products(WALKTHROUGH, 1, 3891, training=False)
    square = sum(p.flops for p in products if p.name in ("scores", "weighted values"))
    assert square / sum(p.flops for p in products) == pytest.approx(0.5, abs=1e-4)


# Hardware


@pytest.mark.parametrize("name", CARDS)
def test_every_card(name):
    card = CARDS[name]
    assert card.source.startswith("NVIDIA")
    assert card.bf16 in (None, card.fp16)
    assert peak_flops(name, torch.float16) == card.fp16 * 1e12
    assert 1.9 < card.fp16 / card.fp32 <= 33  # tensor cores are faster; thirty times at most
    for device in card.device_names:
        assert find_card(device) is card


@pytest.mark.parametrize(
    ("card", "allowed", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "highest", 19.5e12),
        ("NVIDIA A100-SXM4-80GB", "high", 156e12),  # its datasheet's TF32
        ("Tesla T4", "high", 8.1e12),  # which has no TF32
    ],
)
def test_a_cards_float32_is_tf32_where_that_is_allowed(card, allowed, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: allowed)
    assert device_peak.__wrapped__(torch.device("cuda", 0), torch.float32) == peak


def test_known_peaks_are_dense():
    peaks = {name: peak_flops(name) / 1e12 for name in CARDS if CARDS[name].bf16}
    assert peaks == {
        "A10": 125,
        "A10G": 70,
        "L4": 121,
        "RTX 3090": 71,
        "RTX 4090": 165.2,
        "A100 SXM 40GB": 312,
        "A100 SXM 80GB": 312,
        "A100 PCIe 80GB": 312,
        "H100 SXM": 989.4,
        "H100 PCIe": 756,
        "H200": 989,
        "B200": 2250,
    }
    assert peak_flops("T4", torch.float16) == 65e12
    assert peak_flops("V100 SXM2", torch.float16) == 125e12
    assert peak_flops("Tesla T4", torch.float32) == 8.1e12


@pytest.mark.parametrize("name", ["H100", "a100", "NVIDIA GeForce RTX 5090", "cpu", ""])
def test_an_unknown_card_is_refused(name):
    with pytest.raises(ValueError, match=f"card '{name}': its peak is not known; known are T4, "):
        peak_flops(name)


@pytest.mark.parametrize("name", ["T4", "Tesla T4", "V100 SXM2", "V100 PCIe"])
def test_no_bf16_before_ampere(name):
    with pytest.raises(ValueError, match=f"card '{name}' has no units for torch.bfloat16.*A100"):
        peak_flops(name, torch.bfloat16)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"torch\.int8: must be one of torch\.bfloat16"):
        peak_flops("L4", torch.int8)


def test_what_training_costs():
    runs = training_runs(WALKTHROUGH)
    assert list(runs.values()) == [(5_120_000, 256), (2_690_300_160, 2048), (2 * 10**12, 2048)]
    walkthrough, _, official = (
        training_cost(WALKTHROUGH, tokens, T, "H100 SXM", 0.4) for tokens, T in runs.values()
    )
    assert walkthrough.flops == 20_000 * 220_204_597_248
    seconds = walkthrough.flops / 0.4 / 989.4e12
    assert walkthrough.card_days == pytest.approx(seconds / 86_400)
    assert walkthrough.kwh == pytest.approx(seconds * 700 / 3_600_000)
    assert official.card_days == pytest.approx(72.05, abs=0.01)
    # At the description's 2,180 tokens a second a T4 would be at this share of its peak.
    rate = 2180 * walkthrough.flops / 5_120_000
    assert rate / peak_flops("T4", torch.float16) == pytest.approx(0.0288, abs=1e-4)


def test_the_smallest_run_that_is_possible():
    cost = training_cost(WALKTHROUGH, 1, 1, "T4", 1, torch.float16)
    assert cost.flops == sum(palm_flops(WALKTHROUGH, 1).values())
    assert cost.card_days == pytest.approx(cost.flops / 65e12 / 86_400)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"utilisation": 0}, "utilisation=0"),
        ({"utilisation": 1.01}, "utilisation=1.01"),
        ({"tokens": 0}, "tokens=0"),
        ({"T": 0}, "T=0"),
        ({"card": "T5"}, "'T5'"),
        ({"card": "T4"}, "no units for torch.bfloat16"),
    ],
)
def test_impossible_runs_are_refused(given, message):
    run = {"tokens": 100, "T": 10, "card": "L4", "utilisation": 0.5} | given
    with pytest.raises(ValueError, match=message):
        training_cost(WALKTHROUGH, **run)


# The command


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert DESCRIPTION in printed
    assert "aspect ratio 19.2, head ratio 64, embedding share 21.05%" in printed
    assert "with an untied one 162,826,560" in printed
    assert "block_size:         8192" in printed
    assert "23,040 bytes a token" in printed
    for figure in ("538.06", "1,076.12", "220,204,597,248", "220,150,628,352"):
        assert figure in printed


def test_info_of_another_preset_batch_and_type(capsys):
    options = ["--preset", "tiny", "--dtype", "float32", "--batch", "2", "--length", "64"]
    assert main(["info", *options]) == 0
    printed = capsys.readouterr().out
    config = SmolLM2Config.preset("tiny")
    assert f"{5_112_672:,}" in printed
    assert "2 × 64 tokens, products in float32" in printed
    assert f"{training_memory(config, 2, 64)['peak'] / 1e6:,.2f} MB" in printed


def test_info_of_a_checkpoint(capsys, tmp_path):
    config = replace(SMALL, tie_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file(SmolLM2(config).state_dict(), tmp_path / "model.safetensors")
    assert main(["info", "--ckpt", str(tmp_path), "--length", "32"]) == 0
    printed = capsys.readouterr().out
    assert f"checkpoint {tmp_path}" in printed
    assert parameter_table(parameters(config)) in printed
    assert "Output  " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info --ckpt nowhere/model", "--ckpt nowhere/model: no such file or folder"),
        ("info --ckpt {tmp}", "holds no config.json"),
        ("info --ckpt {tmp}/text.gguf", "is no whole GGUF file"),
        ("info --preset 135M --ckpt x", "name one of the two"),
        ("info --batch 0", "--batch 0: must be at least 1"),
        ("info --length 8193", "--length 8193: must lie between 1 and 8192, the model"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(capsys, tmp_path, arguments, message):
    (tmp_path / "text.gguf").write_text("no GGUF")
    with pytest.raises(SystemExit) as stopped:
        main(arguments.format(tmp=tmp_path).split())
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info --preset 7B", "invalid choice '7B'"),
        ("info --dtype float64", "invalid choice 'float64'"),
        ("info --batch two", "'two'"),
        ("info --steps 3", "--steps"),
        ("inform", "inform"),
        ("frobnicate", "no such command; There are"),
        ("train --steps 0", "--steps 0: must be at least 1"),
        ("train --stepz 3", "did you mean --steps?"),
    ],
)
def test_a_command_line_that_cannot_be_read_says_why(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in printed.err
    assert printed.out == ""


def test_the_module_runs():
    command = [sys.executable, "-m", "smol_scratch", "info", "--length", "0"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("python -m smol_scratch: --length 0")
    assert "Traceback" not in ran.stderr


# The price list of the notebooks


@pytest.mark.parametrize("context", [1, 7, 256])
@pytest.mark.parametrize("config", [*RELEASED, SMALL])
def test_the_price_list_is_the_matrix_products_and_the_elementwise_parts(config, context):
    """A token that attends to so many others pays its share of a sequence of that length."""
    products = matrix_products(config, 1, context, training=False)
    table = costs(config, context)
    shares = {
        part: sum(product.flops for product in products if product.part == part) / context
        for part in ("attention", "SwiGLU", "head")
    }
    L, width = config.n_layer, config.head_dim * (config.n_head + config.n_kv_head)
    assert table["attention"][1] == shares["attention"]
    assert table["SwiGLU"][1] - 5 * config.intermediate_size * L == shares["SwiGLU"]
    assert table["embedding and head"][1] == shares["head"]
    assert table["RoPE"] == (0, 3 * width * L)
    assert table["RMSNorm"][1] == 4 * (2 * L + 1) * config.n_embd
    assert sum(count for count, _ in table.values()) == total_parameters(config)


@pytest.mark.parametrize("tied", [True, False])
def test_the_printed_prices_add_up_to_the_whole_model(tied, capsys):
    config = replace(SMALL, tie_embeddings=tied)
    table, whole, so_far = costs(config, 256), total_parameters(config), [0, 0]
    for part in table:
        so_far = [total + cost for total, cost in zip(so_far, table[part], strict=True)]
        print_costs(config, part)
        _, *rows, sums, share = capsys.readouterr().out.splitlines()
        assert [row.rsplit(maxsplit=3)[0] for row in rows] == [*table][: len(rows)]
        count, flops = table[part]
        last = [f"{count:,}", f"{4 * count / 1e6:.2f}", f"{flops / 1e6:.3f}"]
        assert rows[-1].rsplit(maxsplit=3) == [part, *last]
        megabytes = f"{4 * so_far[0] / 1e6:.2f}"
        assert sums.split() == ["so", "far", f"{so_far[0]:,}", megabytes, f"{so_far[1] / 1e6:.3f}"]
        assert share == f"{so_far[0] / whole:.2%} of the model's {whole:,} parameters"
    assert share.startswith("100.00%")
    with pytest.raises(ValueError, match="until='head': must be one of RMSNorm, RoPE"):
        print_costs(config, "head")


def test_a_processors_peak_counts_products_and_sums_of_its_best_of_five(monkeypatch):
    """2 · 2048³ operations; the clock is ours: the first try is slow, the third the best."""
    seconds = [9.0, 2.0, 0.5, 1.0, 2.0, 2.0]
    ticks = iter(t for took in seconds for t in (0.0, took))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: a)
    peak = device_peak.__wrapped__(torch.device("cpu"), torch.float32)
    assert peak == 2 * 2048**3 / 0.5
