"""Eight and four bits: the numbers are the file format's, and the model computes with them."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import gguf as gguf_format
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smol_scratch import (
    SmolLM2,
    SmolLM2Config,
    export_gguf,
    export_pretrained,
    generate,
    hub,
    load_pretrained,
    to_transformers,
)
from smol_scratch.__main__ import main
from smol_scratch.accounting import stored_bytes
from smol_scratch.cache import KVCache
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.gguf_file import read_gguf
from smol_scratch.quantize import (
    AT_ONCE,
    FORMS,
    Blocks,
    QuantizedMatrix,
    dequantize,
    from_blocks,
    multiply_stored,
    quantize,
    quantized,
    to_blocks,
    transposed,
)
from smol_scratch.recipe import TrainingConfig
from smol_scratch.training import TrainingState, train
from tests.checks import randomise

KINDS = {
    "int8": gguf_format.GGMLQuantizationType.Q8_0,
    "int4": gguf_format.GGMLQuantizationType.Q4_1,
}
BITS = {"int8": 8 + 32 / 32, "int4": 4 + 32 / 32}  # and one word of 32 bits for 32 weights
# 211 entries fill up no whole tile of 16 rows; 96 columns are an odd number of groups.
CONFIG = SmolLM2Config.preset("tiny", n_layer=2, vocab_size=211, block_size=128)
PROMPTS = [[5, 17, 3], [1], [9] * 20]


def make(**changes: object) -> SmolLM2:
    torch.manual_seed(0)
    model = SmolLM2(dataclasses.replace(CONFIG, **changes)).eval()
    randomise(model)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> SmolLM2:
    return make()


@pytest.fixture(
    scope="module", params=[(f, tied) for f in FORMS for tied in (True, False)], ids=str
)
def both(request) -> tuple[SmolLM2, SmolLM2]:
    """A quantised model, and a plain one with the same, dequantised weights."""
    form, tied = request.param
    made = quantize(make(tie_embeddings=tied), form)
    return made, dequantize(made)


def awkward() -> torch.Tensor:
    """Random weights of several sizes; and what makes formats stumble."""
    weight = torch.randn(48, 96) * torch.logspace(-3, 1, 48)[:, None]
    weight[0] = 0
    weight[1] = 0.37
    weight[2] = -0.37
    weight[3, ::2] = 0
    weight[4] = weight[4].abs()
    weight[5] = -weight[5].abs()
    weight[6, 40] = 300.0
    weight[7] = torch.arange(96) / 2 - 24  # halves: which way are they rounded?
    weight[8] = 1e-9  # a step that float16 does not have
    return weight


def file_bytes(blocks: Blocks) -> np.ndarray:
    """Return blocks as a GGUF file has them: scale, minimum, numbers."""
    parts = [part for part in (blocks.scale, blocks.minimum) if part is not None]
    parts = [part[..., None].view(torch.uint8) for part in parts]
    return torch.cat([*parts, blocks.data], dim=-1).flatten(-2).numpy()


# The formats


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_are_those_of_the_gguf_package(form):
    weight = awkward()
    stored = gguf_format.quantize(weight.numpy(), KINDS[form])
    blocks = to_blocks(weight, form)
    assert np.array_equal(file_bytes(blocks), stored)
    theirs = torch.from_numpy(gguf_format.dequantize(stored, KINDS[form]))
    assert torch.equal(from_blocks(blocks), theirs)
    assert torch.equal(QuantizedMatrix(blocks).dense(), theirs)


@pytest.mark.parametrize("form", FORMS)
def test_a_number_is_what_the_formula_says_one_by_one(form):
    """An implementation that shares nothing with ours: bytes of the file, Python's own numbers."""
    weight = awkward()[9:13]
    rows = file_bytes(to_blocks(weight, form)).reshape(4, 3, -1)
    dense = quantized(weight, form).dense()
    for r in range(4):
        for column in range(96):
            block, i = rows[r, column // 32].tobytes(), column % 32
            scale = float(np.frombuffer(block[:2], "<f2")[0])
            if form == "int8":
                value = scale * int.from_bytes(block[2 + i : 3 + i], "little", signed=True)
            else:
                minimum = float(np.frombuffer(block[2:4], "<f2")[0])
                nibble = block[4 + i % 16] // 16 if i >= 16 else block[4 + i] % 16
                value = scale * nibble + minimum
            # Two roundings to float32 here, none in Python's float64.
            assert abs(dense[r, column].item() - value) <= 2e-7 * (abs(value) + 15 * abs(scale))


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_wrong_by_more_than_half_a_step_and_what_float16_adds(form):
    weight = torch.cat([awkward(), torch.randn(512, 96) * 0.05])
    blocks = to_blocks(weight, form)
    groups = weight.unflatten(1, (-1, 32)).double()
    if form == "int8":
        step = groups.abs().amax(-1) / 127
        bound = step / 2 + 127 * (step - blocks.scale).abs()
    else:
        lowest = groups.amin(-1)
        step = (groups.amax(-1) - lowest) / 15
        bound = step / 2 + 15 * (step - blocks.scale).abs() + (lowest - blocks.minimum).abs()
    error = (from_blocks(blocks).unflatten(1, (-1, 32)) - groups).abs()
    # Beyond it only float32's rounding while the nearest number was sought.
    assert bool((error <= bound[..., None] + 1e-6 * groups.abs().amax(-1, keepdim=True)).all())
    # The bound is no idle one: in the plain rows some error is nearly half a step.
    reached = (error[48:] / step[48:, :, None]).max()
    assert 0.49 < reached < 0.51 + 127 * 2**-11


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 211, AT_ONCE + 5])
def test_tiles_change_nothing(form, rows):
    weight = torch.randn(rows, 64)
    blocks, matrix = to_blocks(weight, form), quantized(weight, form)
    assert matrix.shape == weight.shape
    for ours, theirs in zip(matrix.blocks(), blocks, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    numbers = torch.randint(rows, (3, 5))
    assert torch.equal(F.embedding(numbers, matrix), from_blocks(blocks)[numbers])
    x = torch.randn(2, 3, 64)
    ours, theirs = F.linear(x, matrix), F.linear(x, from_blocks(blocks))
    # Other shapes of the same product may be summed in another order: 64 terms of size 1.
    assert torch.allclose(ours, theirs, rtol=0, atol=64 * 2**-23)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.zeros(2, 48), "shape (2, 48)"),
        (torch.zeros(64), "shape (64,)"),
        (torch.full((2, 32), float("nan")), "holds nan or inf"),
        (torch.full((2, 32), float("-inf")), "holds nan or inf"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_quantised_is_named(form, weight, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        to_blocks(weight, form)
    assert "\n" not in str(raised.value)


def test_numbers_beyond_float16_are_refused():
    weight = torch.zeros(1, 32)
    weight[0, 0] = 1e7
    with pytest.raises(ValueError, match="int8: a weight is too large"):
        to_blocks(weight, "int8")
    weight[0, 0] = -70_000  # the step would be small enough, the minimum is not
    with pytest.raises(ValueError, match="int4: a weight is too large"):
        to_blocks(weight, "int4")
    back = from_blocks(to_blocks(weight, "int8"))  # its step is small enough
    assert torch.allclose(back, weight, rtol=2**-11)


# The model


def scores(model: SmolLM2, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids)[0].float()


def test_logits_are_those_of_the_dequantised_weights(both):
    made, plain = both
    ids = torch.randint(211, (2, 40))
    ours, theirs = scores(made, ids), scores(plain, ids)
    # The same products of the same numbers; only shapes, and so the order of sums, may differ.
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_the_loss_is_that_of_the_dequantised_weights(both):
    ids = torch.randint(211, (2, 41))
    ours, theirs = (m(ids[:, :-1], ids[:, 1:])[1].item() for m in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_same_text_is_written(both):
    made, plain = both
    for prompt in PROMPTS:
        ours, theirs = (generate(m, prompt, 40, temperature=0)[0].tolist() for m in both)
        assert ours == theirs
    rows = generate(made, PROMPTS, 10, temperature=0)
    assert [r.tolist() for r in rows] == [
        r.tolist() for r in generate(plain, PROMPTS, 10, temperature=0)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_only_activations_are_rounded(model, form):
    """The scores are as near to those of float32 as the dequantised model's in bfloat16."""
    made = quantize(model, form)
    before = made.model.embed_tokens.weight.blocks()
    plain, ids = dequantize(made), torch.randint(211, (4, 40))
    exact = scores(plain, ids)
    made.bfloat16()
    after = made.model.embed_tokens.weight.blocks()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True) if x is not None)
    assert made.model.embed_tokens(ids).dtype == torch.bfloat16
    ours = (scores(made, ids) - exact).norm()
    theirs = (scores(plain.bfloat16(), ids) - exact).norm()
    assert 0 < ours < theirs  # there the weights are rounded, too


@pytest.mark.parametrize("form", FORMS)
def test_the_bytes_are_those_of_the_formula(model, form):
    untied = quantize(make(tie_embeddings=False, vocab_size=208), form)
    tied = quantize(make(vocab_size=208), form)
    norms = 4 * 96 * 5
    for made in (tied, untied):
        matrices = [m for m in made.modules() if isinstance(m, QuantizedMatrix)]
        assert len(matrices) == 2 * 7 + (1 if made.config.tie_embeddings else 2)
        numbers = sum(m.shape.numel() for m in matrices)
        assert made.nbytes == numbers * BITS[form] / 8 + norms
        assert made.nbytes == stored_bytes(made.config, form)
        held = sum(t.nbytes for t in made.state_dict().values())
        assert held == made.nbytes  # nothing else is stored
    assert untied.nbytes - tied.nbytes == 208 * 96 * BITS[form] / 8


def test_the_model_given_stays_as_it_is(model):
    before = copy.deepcopy(model.state_dict())
    quantize(model, "int4")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(model) is SmolLM2


def test_what_is_known_of_weights_goes_with_them():
    model = make()
    model.source, model.chat_template, model.origin = "mine", "{{ messages }}", Path("a")
    made = quantize(model, "int8")
    assert (made.source, made.chat_template, made.origin) == (
        "mine; int8",
        "{{ messages }}",
        Path("a"),
    )


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m: m.train(), "a quantised model cannot be trained"),
        (lambda m: quantize(m, "int4"), "the model is quantised"),
        (lambda m: quantize(make(), "int3"), "quantize='int3': must be one of int8, int4"),
    ],
)
def test_refusals_are_one_line(model, act, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        act(quantize(model, "int8"))
    assert "\n" not in str(raised.value)


def test_training_and_export_refuse_it_in_one_line(model, tmp_path):
    made = quantize(model, "int8")
    tokens = np.arange(200) % 211
    recipe = TrainingConfig(steps=1, batch_size=1, sequence_length=8)
    for act in (
        lambda: next(train(TrainingState.create(recipe, tokens, model=made))),
        lambda: export_pretrained(made, tmp_path / "folder"),
        lambda: export_gguf(made, tmp_path / "file.gguf"),
        lambda: to_transformers(made),
    ):
        with pytest.raises(ValueError, match=r"the model is quantised|cannot be trained") as raised:
            act()
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_matrix_that_is_too_narrow_is_named():
    model = SmolLM2(dataclasses.replace(CONFIG, n_embd=48, n_head=3, n_kv_head=1)).eval()
    with pytest.raises(
        ValueError, match=r"model.embed_tokens.weight: a weight of shape \(211, 48\)"
    ):
        quantize(model, "int8")


def test_a_matrix_answers_products_and_lookups_alone(model):
    matrix = quantize(model, "int4").model.embed_tokens.weight
    with pytest.raises(TypeError, match="exp: a quantised matrix can be multiplied and looked up"):
        torch.exp(matrix)
    with pytest.raises(TypeError, match=r"linear: .* its numbers are in .dense\(\)"):
        F.linear(torch.zeros(96), matrix, torch.zeros(211))


# GGUF files


def test_the_released_file_is_taken_as_it_is(gguf, real_model):
    """Tensor for tensor the file's own bytes; in queries and keys, rows in our order."""
    made = hub.load_quantized(gguf, "int4", quiet=True)
    tensors = read_gguf(gguf).tensors
    kinds = {"Q4_1": "int4", "Q8_0": "int8"}
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    seen = 0
    for name, stored in tensors.items():
        if len(stored.shape) < 2:
            continue
        if name == "token_embd.weight":
            matrix = made.model.embed_tokens.weight
        else:
            _, layer, part, _ = name.split(".")
            matrix = made.get_submodule(f"model.layers.{layer}.{names[part]}.weight")
        assert matrix.form == kinds[stored.kind.name]
        ours, theirs = file_bytes(matrix.blocks()), stored.data
        if "attn_q" in name or "attn_k" in name:
            D = 64
            order = [
                h * D + 2 * i + half
                for h in range(len(ours) // D)
                for half in (0, 1)
                for i in range(D // 2)
            ]
            theirs = theirs[order]
        assert np.array_equal(ours, theirs), name
        seen += 1
    assert seen == 211
    plain = dequantize(made).state_dict()
    assert plain.keys() == real_model.state_dict().keys()
    assert all(torch.equal(plain[name], weight) for name, weight in real_model.state_dict().items())
    table, rest = 49_152 * 576, 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)
    assert made.nbytes == table * 36 // 32 + rest * 20 // 32 + 4 * 61 * 576
    assert made.chat_template == real_model.chat_template
    assert str(made.source) == (
        "SmolLM2-135M-Instruct, 4-bit (Q4_1) as in the file; not the base model"
    )


def test_a_file_that_holds_only_some_matrices_in_a_form_says_so(gguf):
    """The released file's embedding has 8 bits, all else 4: in int8 that alone stays as it is."""
    made = hub.load_quantized(gguf, "int8", quiet=True)
    assert str(made.source) == (
        "SmolLM2-135M-Instruct, 4-bit (Q4_1) dequantised to float32; not the base model; int8"
    )
    stored = read_gguf(gguf).tensors["token_embd.weight"].data
    assert np.array_equal(file_bytes(made.model.embed_tokens.weight.blocks()), stored)


def test_the_real_models_scores_are_those_of_its_dequantised_weights(gguf, real_model):
    made = hub.load_quantized(gguf, "int4", quiet=True)
    ids = torch.arange(100, 140)[None]
    ours, theirs = scores(made, ids), scores(real_model, ids)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("form", FORMS)
def test_what_no_file_holds_in_that_form_is_quantised(form, tmp_path, gguf):
    """A folder, and a GGUF file of another form."""
    model = make(vocab_size=49_152)
    folder = export_pretrained(model, tmp_path / "folder")
    eight = export_gguf(model, tmp_path / "eight.gguf", "q8_0")
    expected = quantize(load_pretrained(folder, quiet=True), form).state_dict()
    found = hub.load_quantized(folder, form, quiet=True)
    assert all(torch.equal(found.state_dict()[name], t) for name, t in expected.items())
    assert found.source == f"the folder folder; {form}"
    expected = quantize(load_pretrained(eight, quiet=True), form).state_dict()
    found = hub.load_quantized(eight, form, quiet=True)
    assert all(torch.equal(found.state_dict()[name], t) for name, t in expected.items())
    label = "as in the file" if form == "int8" else "dequantised to float32; int4"
    assert str(found.source) == f"eight.gguf, {label}"


# The compiled decoder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [16, 211])
def test_the_product_that_is_compiled_is_the_plain_one(form, rows):
    weight = torch.cat([awkward(), torch.randn(rows, 96)])
    matrix, x = quantized(weight, form), torch.randn(96)
    exact = matrix.dense().double() @ x.double()
    size = matrix.dense().double().abs() @ x.abs().double()  # of what is summed
    ours = multiply_stored(matrix.stored, x)
    assert ours.shape == exact.shape
    # For int4 whole number and minimum are summed apart, each up to 15 steps large.
    assert bool(((ours - exact).abs() <= 96 * 2**-24 * 16 * (size + 1e-30)).all())


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [16, 211])
def test_the_matrix_that_is_made_whole_for_a_prompt_is_the_dense_one(form, rows):
    matrix = quantized(torch.cat([awkward(), torch.randn(rows, 96)]), form)
    for stored in (matrix.stored, matrix.stored._replace(words=matrix.words, heads=matrix.heads)):
        whole = transposed(stored)
        assert torch.equal(whole[:, : matrix.rows], matrix.dense().T)
        assert whole.shape == (96, -(-matrix.rows // 16) * 16)
        assert not whole[:, matrix.rows :].any()


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_is_read_as_the_dequantised_model_reads_it(form):
    """Scores, and what the cache then holds; and what cannot be read is named."""
    made = quantize(make(), form)
    plain, decoder = dequantize(made), CompiledDecoder(made)
    decoder.used = True  # the first prompt goes the plain way
    ids = torch.randint(211, (1, 40))
    caches = [KVCache(made.config, max_length=50) for _ in range(2)]
    with torch.inference_mode():
        ours = decoder(ids, caches[0])
        exact = plain(ids, cache=caches[1])[0][:, -1]
    assert torch.allclose(ours, exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert mine.length == theirs.length == 40
        for a, b in ((mine.k, theirs.k), (mine.v, theirs.v)):
            assert torch.allclose(a, b, rtol=0, atol=1e-5 * b.abs().max().item())
    with pytest.raises(ValueError, match="tokens do not fit a cache of max_length=30"):
        decoder(ids, KVCache(made.config, max_length=30))
    other = KVCache(dataclasses.replace(CONFIG, n_layer=3), max_length=50)
    with pytest.raises(ValueError, match="a cache of 3 layers for a model of 2"):
        decoder(ids, other)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_decoding_gives_the_scores_of_the_dequantised_weights(form):
    made = quantize(make(), form)
    plain, decoder = dequantize(made), CompiledDecoder(made)
    ids = torch.randint(211, (1, 40))
    with torch.inference_mode():
        cache = KVCache(made.config, max_length=50)
        ours = torch.cat([decoder(token[None], cache) for token in ids[0].split(1)])
        exact = plain(ids)[0][0]
    assert torch.allclose(ours, exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    for prompt in PROMPTS:
        text = generate(plain, prompt, 40, temperature=0)[0]
        assert torch.equal(generate(made, prompt, 40, temperature=0, decoder=decoder)[0], text)


def test_the_first_prompt_does_not_wait_for_the_compiler(monkeypatch):
    made = quantize(make(), "int8")
    decoder, ways = CompiledDecoder(made), []
    read = decoder._read
    monkeypatch.setattr(decoder, "_read", lambda *given: ways.append("compiled") or read(*given))
    generate(made, PROMPTS[0], 1, temperature=0, decoder=decoder)
    assert not vars(decoder).keys() & {"_blocks", "_head", "_transposed"}
    generate(made, PROMPTS[0], 2, temperature=0, decoder=decoder)
    assert not ways
    generate(made, PROMPTS[0], 1, temperature=0, decoder=decoder)
    assert ways == ["compiled"]


# The command line


def test_generate_takes_few_bits(model, tmp_path, tokenizer, capsys):
    folder = export_pretrained(make(vocab_size=49_152), tmp_path / "m", tokenizer=tokenizer)
    asked = ["generate", "To be", "--ckpt", str(folder), "--temperature", "0", "--tokens", "5"]
    said = {}
    for form in FORMS:
        assert main([*asked, "--quantize", form]) == 0
        out, err = capsys.readouterr()
        assert f"weights: the folder m; {form}" in err
        plain = dequantize(hub.load_quantized(folder, form, quiet=True))
        [row] = generate(plain, tokenizer.encode("To be"), 5, temperature=0)
        assert out.strip() == tokenizer.decode(row).strip()
        said[form] = out
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--quantize", "int3"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "--quantize" in err
    assert len(err.splitlines()) == 1
