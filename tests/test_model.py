"""Properties of the model that need no second implementation, its shape, and its error messages."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import smol_scratch.model
from smol_scratch import KVCache, SmolLM2, SmolLM2Config, explicit_attention, fast
from tests import checks
from tests.checks import SMALL, Trio, close, largest, randomise

CONFIGS = st.sampled_from(
    [
        SMALL,
        dataclasses.replace(SMALL, n_kv_head=6, tie_embeddings=False),
        dataclasses.replace(SMALL, n_kv_head=1, head_dim=16, n_layer=3),
    ]
)
SEEDS = st.integers(0, 999)

# The description's, line for line.
TREE = """\
SmolLM2(
  (model): ModuleDict(
    (embed_tokens): Embedding(49152, 576)
    (layers): ModuleList(
      (0-29): 30 x Block(
        (input_layernorm): RMSNorm()
        (self_attn): GroupedQueryAttention(
          (q_proj): Linear(in_features=576, out_features=576, bias=False)
          (k_proj): Linear(in_features=576, out_features=192, bias=False)
          (v_proj): Linear(in_features=576, out_features=192, bias=False)
          (o_proj): Linear(in_features=576, out_features=576, bias=False)
          (attn_dropout): Dropout(p=0.0, inplace=False)
          (rope): RotaryPositionalEmbedding()
        )
        (post_attention_layernorm): RMSNorm()
        (mlp): SwiGLU(
          (gate_proj): Linear(in_features=576, out_features=1536, bias=False)
          (up_proj): Linear(in_features=576, out_features=1536, bias=False)
          (down_proj): Linear(in_features=1536, out_features=576, bias=False)
        )
      )
    )
    (norm): RMSNorm()
  )
)"""


def make(config: SmolLM2Config = SMALL) -> SmolLM2:
    model = SmolLM2(config).eval()
    randomise(model)
    return model


def tokens(batch: int = 2, length: int = 13) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length))


# Properties, over many shapes


@given(CONFIGS, SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_the_future_leaves_the_past_alone(config, seed, past, future):
    checks.causality(smol_scratch.model, config, seed, length=past + future, cut=past)


@given(CONFIGS, SEEDS, st.integers(2, 30), st.integers(1, 34))
def test_only_distances_count(config, seed, length, shift):
    checks.relative_shift(smol_scratch.model, config, seed, length, shift)


@given(CONFIGS, SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_any_split_through_the_cache_gives_the_same(config, seed, pieces):
    checks.cached_equals_uncached(smol_scratch.model, config, seed, tuple(pieces))


@given(CONFIGS, SEEDS, st.integers(2, 5), st.integers(1, 30))
def test_sequences_of_a_batch_do_not_meet(config, seed, batch, length):
    checks.batch_independence(smol_scratch.model, config, seed, batch, length)


@given(SEEDS)
def test_explicit_attention_equals_the_fast_one(seed):
    checks.explicit_equals_fast(smol_scratch.model, seed)


# Shape


def test_the_printed_tree_is_the_descriptions():
    with torch.device("meta"):
        assert repr(SmolLM2(SmolLM2Config())) == TREE


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("135M", 134_515_008),
        ("360M", 361_821_120),
        ("1.7B", 1_711_376_384),
        ("tiny", 5_112_672),
    ],
)
def test_presets_have_the_released_number_of_parameters(preset, parameters):
    with torch.device("meta"):
        model = SmolLM2(SmolLM2Config.preset(preset))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_both_initialisations_are_a_matter_of_configuration():
    assert SmolLM2Config().init_std == 0.02
    assert SmolLM2Config.preset("135M").init_std == 1 / 24


def test_one_rotary_table_serves_all_layers():
    model = make()
    for one in (model, copy.deepcopy(model), SmolLM2(SMALL)):
        assert len({id(block.self_attn.rope) for block in one.model.layers}) == 1
    assert not any("rope" in name for name in model.state_dict())


# Behaviour


def test_the_loss_is_cross_entropy_without_what_is_marked():
    model, ids, targets = make(), tokens(), tokens()
    targets[0, :5] = -100
    logits, loss = model(ids, targets)
    kept = targets != -100
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], targets[kept]))
    targets[0, :5] = 7
    assert model(ids, targets)[1] != loss
    assert model(ids)[1] is None


def test_a_new_model_knows_nothing():
    """With weights this small all tokens are about equally likely."""
    model = SmolLM2(SMALL)
    assert abs(model(tokens(8), tokens(8))[1].item() - math.log(SMALL.vocab_size)) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_transformers_does(dtype):
    trio = Trio(smol_scratch.model, SMALL)
    ids = trio.tokens(2, 13)
    _, exact, _ = trio.logits(ids)
    frequencies = trio.theirs.model.rotary_emb.inv_freq
    trio.theirs.to(dtype).model.rotary_emb.inv_freq = frequencies  # from_pretrained keeps them too
    ours, theirs = trio.ours.to(dtype)(ids)[0], trio.theirs(ids).logits
    assert ours.dtype == dtype
    close(f"logits in {dtype}", largest(ours.float() - exact), largest(theirs.float() - exact))
    cache = KVCache(SMALL, batch_size=2, dtype=dtype)
    assert trio.ours(ids, ids, cache=cache)[1].isfinite()


def test_the_explicit_attention_can_take_the_fast_ones_place():
    trio = Trio(smol_scratch.model, SMALL)
    ids = trio.tokens(2, 13)
    fast, _, floor = trio.logits(ids)
    called = []

    def attend(*args):
        called.append(args)
        return explicit_attention(*args)

    for block in trio.ours.model.layers:
        block.self_attn.attend = attend
    close("explicit attention", largest(trio.ours(ids)[0] - fast), floor)
    assert len(called) == SMALL.n_layer


def test_dropout_only_in_training():
    model, ids = make(), tokens()
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])


def test_a_copy_is_a_second_model():
    model, ids = make(), tokens()
    before, other = model(ids)[0], copy.deepcopy(model)
    assert torch.equal(other(ids)[0], before)
    randomise(other)
    assert torch.equal(model(ids)[0], before)


def test_weights_survive_a_file_without_pickle(tmp_path):
    model, ids = make(), tokens()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = SmolLM2(SMALL).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(other(ids)[0], model(ids)[0])


@pytest.mark.parametrize("kept", [0, 4, 9, 13])
def test_the_cache_can_forget(kept):
    """All of it, some, or nothing; then it goes on as one that never saw what was forgotten."""
    model, seen = make(), tokens(length=18)
    pieces = seen[:, :13].split((4, 5, 4), dim=1)
    cache, fresh = (KVCache(SMALL, batch_size=2, max_length=18) for _ in range(2))
    for piece in pieces:
        model(piece, cache=cache)
    cache.truncate(kept)
    while fresh.length < kept:
        piece, *pieces = pieces
        model(piece, cache=fresh)
    others = (seen[:, kept : kept + 5] + 1) % SMALL.vocab_size  # none that was forgotten, there
    assert torch.equal(model(others, cache=cache)[0], model(others, cache=fresh)[0])
    assert (cache.length, cache.nbytes) == (kept + 5, 2 * 2 * 2 * 2 * 18 * 8 * 4)


# Errors name the value and the remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field.name, 0) for field in dataclasses.fields(SmolLM2Config) if field.type == "int"),
        ("block_size", -1),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("vocab_size", "many"),
        ("n_head", 10),
        ("n_kv_head", 4),
        ("n_kv_head", 18),
        ("head_dim", 63),
        ("rope_theta", 1),
        ("rope_theta", math.inf),
        ("rope_theta", math.nan),
        ("rope_theta", "1e5"),
        ("norm_eps", 0.0),
        ("norm_eps", 1.0),
        ("norm_eps", math.nan),
        ("tie_embeddings", 1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("init_std", 0.0),
        ("init_std", math.inf),
        ("init_std", None),
    ],
)
def test_an_impossible_configuration_is_named(field, value):
    with pytest.raises(ValueError, match="must") as error:
        SmolLM2Config(**{field: value})
    assert f"{field}={value!r}" in str(error.value)


def test_a_configuration_cannot_change_and_takes_no_unknown_field():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SmolLM2Config().n_layer = 2
    with pytest.raises(ValueError, match=r"preset '7B': must be one of 135M"):
        SmolLM2Config.preset("7B")
    with pytest.raises(ValueError, match="n_layers: no such field"):
        SmolLM2Config.preset("tiny", n_layers=2)
    assert SmolLM2Config.preset("tiny", n_layer=2).n_layer == 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(13, dtype=torch.long), r"shape \(13,\).*must be \(B, T\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
        (torch.zeros(1, 13), r"torch\.float32.*must be \(B, T\) integers"),
        (torch.zeros(1, 65, dtype=torch.long), "65 tokens.*block_size=64"),
        (torch.tensor([[3, -1]]), "token -1: must lie between 0 and 60"),
        (torch.tensor([[3, 61]]), "token 61: must lie between 0 and 60"),
    ],
)
def test_forward_names_what_it_cannot_take(ids, message):
    with pytest.raises(ValueError, match=message):
        make()(ids)


def test_targets_must_fit():
    with pytest.raises(ValueError, match=r"targets of shape \(2, 12\).*\(2, 13\)"):
        make()(tokens(), tokens(length=12))


@pytest.mark.parametrize("length", [0, 65])
def test_a_cache_of_impossible_length_is_named(length):
    with pytest.raises(ValueError, match=f"max_length={length}: must lie between 1 and"):
        KVCache(SMALL, max_length=length)


def test_a_cache_for_another_number_of_layers_is_named():
    model, other = make(), dataclasses.replace(SMALL, n_layer=SMALL.n_layer + 1)
    with pytest.raises(ValueError, match=f"a cache of {other.n_layer} layers"):
        model(torch.ones(1, 4, dtype=torch.long), cache=KVCache(other))


def test_a_full_or_foreign_cache_is_named_and_left_as_it_was():
    model, cache = make(), KVCache(SMALL, batch_size=2, max_length=16)
    model(tokens(length=13), cache=cache)
    for ids, message in [
        (tokens(length=4), "17 tokens do not fit a cache of max_length=16"),
        (tokens(batch=3, length=1), r"keys \(3, .* do not fit a cache of \(2, "),
        (tokens(length=52), "65 tokens.*block_size=64"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(ids, cache=cache)
        assert cache.length == 13
    for length in (14, -1):
        with pytest.raises(ValueError, match=f"length={length}: must lie between 0 and the 13"):
            cache.truncate(length)


# Other people's habits


@pytest.mark.parametrize(
    "trip",
    [
        lambda m: m.bfloat16().float(),
        lambda m: m.half().float(),
        lambda m: m.to(torch.bfloat16).to(torch.float32),
        lambda m: m.to("cpu", torch.float16).to("cpu", torch.float32),
        lambda m: m.double().bfloat16().double().float(),
        lambda m: copy.deepcopy(m.bfloat16()).float(),
        lambda m: m.apply(lambda part: part.bfloat16()).float(),
        lambda m: m.type(torch.bfloat16).float(),
    ],
)
def test_a_trip_through_another_type_leaves_ropes_tables_as_they_were(trip, tmp_path):
    """Equal weights, equal logits: whatever the model was in between."""
    config = dataclasses.replace(SMALL, block_size=512, dropout=0.0)
    travelled = trip(make(config))
    save_file(travelled.state_dict(), tmp_path / "model.safetensors")
    fresh = SmolLM2(config).eval()
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for table in ("cos", "sin"):
        ours, exact = (getattr(m.model.layers[0].self_attn.rope, table) for m in (travelled, fresh))
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)
    ids = torch.randint(SMALL.vocab_size, (1, 400))
    assert torch.equal(travelled(ids)[0], fresh(ids)[0])


def test_ropes_tables_are_exact_in_16_bits_too():
    rope = smol_scratch.model.RotaryPositionalEmbedding(8, 8192).bfloat16()
    assert torch.equal(rope.cos, smol_scratch.model.RotaryPositionalEmbedding(8, 8192).cos)
    x = torch.randn(1, 1, 1, 8).bfloat16()
    assert rope(x, 8191).dtype == torch.bfloat16
    # Rounded once, at the end.
    assert torch.equal(rope(x, 8191), rope(x.float(), 8191).bfloat16())


def test_ropes_tables_move_with_the_model():
    with torch.device("meta"):
        model = SmolLM2(SMALL)
    rope = model.model.layers[0].self_attn.rope
    assert rope.cos.device.type == "meta"
    model.to_empty(device="cpu")
    assert (rope.cos.device.type, rope.sin.dtype) == ("cpu", torch.float32)
    moved = SmolLM2(SMALL).to("meta", torch.bfloat16)
    assert moved.model.layers[0].self_attn.rope.sin.device.type == "meta"


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_loss_without_a_target_that_counts_is_nan_as_documented(accelerated):
    model, ids = make(), tokens()
    if accelerated:
        fast.accelerate(model)
    for kind in (model, model.bfloat16()):
        assert kind(ids, torch.full_like(ids, -100))[1].isnan()
    assert "nan where none does" in SmolLM2.forward.__doc__


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"idx": [[1, 2]]}, TypeError, "idx=list: must be a tensor"),
        ({"idx": "To be"}, TypeError, "idx=str"),
        ({"idx": None}, TypeError, "idx=NoneType"),
        ({"targets": [[1, 2]]}, TypeError, "targets=list: must be a tensor"),
        ({"cache": []}, TypeError, "cache=list: must be a KVCache or None"),
        ({"targets": torch.ones(2, 13)}, ValueError, "targets of type torch.float32: must be"),
        ({"targets": tokens().int()}, ValueError, "targets of type torch.int32: must be"),
        ({"idx": tokens().to(torch.uint8)}, ValueError, "type torch.uint8: must be"),
        ({"idx": tokens().bool()}, ValueError, "type torch.bool: must be"),
        ({"targets": torch.full((2, 13), 61)}, IndexError, "Target 61 is out of bounds"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make()(**({"idx": tokens()} | arguments))
