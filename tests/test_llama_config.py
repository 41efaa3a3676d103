"""Others' configurations: what they mean is what counts, not how they are written."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import LlamaConfig

from smol_scratch import SmolLM2Config, assets
from smol_scratch.llama_config import config_from_gguf, config_from_hf, config_to_hf
from tests.test_hub import RELEASED

PRESET = SmolLM2Config.preset("135M")
# No value is a default, and no two are alike.
STRANGE = SmolLM2Config(
    block_size=192,
    vocab_size=101,
    n_layer=3,
    n_head=6,
    n_kv_head=2,
    n_embd=60,
    intermediate_size=72,
    head_dim=8,
    rope_theta=123_456.0,
    norm_eps=3.25e-4,
    tie_embeddings=False,
    dropout=0.25,
    init_std=0.037,
)

# config.json

HARMLESS = [
    # null, false and empty say nothing, whatever they say it of.
    *({name: nothing} for name in ("quantization_config", "rope_scaling", "auto_map", "mlp_bias",
                                   "sliding_window", "logit_scale", "layer_types", "unheard_of")
      for nothing in (None, False, {}, [], "")),
    *({name: None} for name in ("attention_dropout", "pretraining_tp", "hidden_act",
                                "architectures", "model_type", "rope_parameters", "head_dim",
                                "attention_bias")),
    {"layer_types": ["full_attention"] * 30},
    {"layer_types": ["full_attention"] * 30, "sliding_window": 512},
    {"sliding_window": 512, "use_sliding_window": False, "max_window_layers": 28},
    {"sliding_window": 8192},
    {"sliding_window": -1},
    # RoPE
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "factor": 1.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 1, "attention_factor": None}},
    {"rope_parameters": {"type": "default", "rope_theta": 1e5, "partial_rotary_factor": 1}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e5}}},
    {"rope_parameters": {"rope_type": "default"}},
    {"partial_rotary_factor": 1.0, "rotary_pct": 1.0, "rotary_dim": 64, "rotary_emb_base": 100_000},
    # what is neutral
    {"pretraining_tp": 2},  # the same sums in pieces
    {"logits_scaling": 1.0, "residual_multiplier": 1, "embedding_multiplier": 1.0},
    {"attention_multiplier": 0.125, "query_pre_attn_scalar": 64},
    {"final_logit_softcapping": 0.0, "attn_logit_softcapping": None},
    {"hidden_act": "swish", "hidden_activation": None},
    {"layer_norm_eps": 1e-5, "norm_type": "rmsnorm", "is_causal": True},
    {"architectures": ["LlamaModel"]},
    {"architectures": "LlamaForCausalLM"},
    {"quantization_config": {"load_in_4bit": False, "load_in_8bit": False, "quant_method": "bnb"}},
    {"auto_map": {"AutoTokenizer": "tokenization_mine.Mine"}},
    {"vocab_size": 49152.0, "max_position_embeddings": 8192.0},
    # what is about something else
    *({name: value} for name, value in {
        "_attn_implementation": "sdpa", "_attn_implementation_autoset": True, "_commit_hash": "ab",
        "_flash_attn_2_enabled": True, "attn_implementation": "flash_attention_2",
        "attention_probs_dropout_prob": 0.1, "resid_pdrop": 0.1, "hidden_dropout": 0.1,
        "activation_checkpointing": True, "gradient_checkpointing": True, "bad_words_ids": [[5]],
        "bos_token_id": None, "eos_token_id": [0, 2], "decoder_start_token_id": 1,
        "chunk_size_feed_forward": 0, "dtype": "bfloat16", "torch_dtype": None, "is_decoder": True,
        "id2label": {"0": "LABEL_0"}, "keys_to_ignore_at_inference": ["past_key_values"],
        "max_length": 20, "model_max_length": 8192, "num_beams": 1, "output_attentions": True,
        "output_hidden_states": True, "return_dict": True, "temperature": 1.0, "top_k": 50,
        "tokenizer_class": "GPT2Tokenizer", "torchscript": True, "unsloth_fixed": True,
        "unsloth_version": "2025.3.1", "use_bfloat16": True, "use_cache": False,
        "transformers_version": "5.0.0", "neftune_noise_alpha": 5, "license": "apache-2.0",
        "transformers.js_config": {"dtype": "q4"}, "tie_encoder_decoder": True,
        "task_specific_params": {"text-generation": {"do_sample": True}}, "my_note": "scaled up",
      }.items()),
]  # fmt: skip


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_cannot_change_the_arithmetic_is_let_through(fields):
    assert config_from_hf(RELEASED | fields) == PRESET


REFUSED = {
    "attention_bias": (True, "no biases"),
    "mlp_bias": (True, "no biases"),
    "add_qkv_bias": (True, "no biases"),
    "hidden_act": ("gelu_pytorch_tanh", "only has 'silu'"),
    "hidden_activation": ("gelu", "SiLU"),
    "model_type": ("gpt2", "only has 'llama'"),
    "architectures": (["LlamaForSequenceClassification"], "only has"),
    "is_encoder_decoder": (True, "decoder"),
    "rope_interleaved": (True, "plain RoPE"),
    "partial_rotary_factor": (0.5, "plain RoPE"),
    "rotary_pct": (0.25, "plain RoPE"),
    "rotary_dim": (32, "plain RoPE"),
    "no_rope_layers": ([1, 1, 1, 0], "plain RoPE"),
    "position_embedding_type": ("alibi", "plain RoPE"),
    "alibi": (True, "plain RoPE"),
    "sliding_window": (512, "attends to all"),
    "layer_types": (["full_attention", "sliding_attention"], "full_attention"),
    "attention_chunk_size": (512, "attends to all"),
    "use_bidirectional_attention": (True, "attends to all"),
    "use_qk_norm": (True, "attends to all"),
    "attention_multiplier": (0.0156, "attends to all"),
    "attn_logit_softcapping": (50.0, "attends to all"),
    "query_pre_attn_scalar": (256, "attends to all"),
    "logits_scaling": (8.0, "scales and caps nothing"),
    "logit_scale": (0.0625, "scales and caps nothing"),
    "final_logit_softcapping": (30.0, "scales and caps nothing"),
    "residual_multiplier": (0.22, "scales and caps nothing"),
    "embedding_multiplier": (12, "scales and caps nothing"),
    "scale_emb": (12, "scales and caps nothing"),
    "clip_qkv": (8.0, "attends to all"),
    "use_mup": (True, "scales and caps nothing"),
    "norm_type": ("layernorm", "RMSNorm"),
    "layer_norm_eps": (1e-12, "RMSNorm"),
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, "stored quantised"),
    "quantization": ({"group_size": 64, "bits": 4}, "stored quantised"),
    "compression_config": ({"format": "pack-quantized"}, "stored quantised"),
    "auto_map": ({"AutoModelForCausalLM": "modeling_mine.Mine"}, "code of its own"),
    **{
        f"rope_{name}": (value, "not built")
        for name, value in {
            "scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            "parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5},
        }.items()
    },
}
SCALED = [
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.2},
    {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
    {"rope_type": "proportional"},
    {"factor": 2.0},
]


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_it_is_refused_by_name_and_with_the_reason(name):
    value, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as error:
        config_from_hf(RELEASED | {name: value})
    assert f"{name}={value!r}" in str(error.value)


@pytest.mark.parametrize("value", SCALED, ids=str)
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_scaled_rope_is_refused_wherever_it_is_written(name, value):
    with pytest.raises(ValueError, match="not built") as error:
        config_from_hf(RELEASED | {name: value})
    assert f"{name}={value!r}" in str(error.value)


WRONG = [
    ("vocab_size", "49152"), ("vocab_size", True), ("vocab_size", 0), ("vocab_size", 1.5),
    ("hidden_size", [576]), ("num_hidden_layers", {}), ("num_attention_heads", -9),
    ("num_key_value_heads", "3"), ("head_dim", 64.5), ("max_position_embeddings", "8192"),
    ("rms_norm_eps", "1e-5"), ("rms_norm_eps", True), ("rope_theta", "100000"),
    ("attention_dropout", "0.0"), ("initializer_range", [0.02]), ("tie_word_embeddings", "true"),
    ("tie_word_embeddings", 1), ("rope_scaling", "linear"), ("rope_parameters", [1]),
    ("sliding_window", "512"), ("layer_types", "full_attention"), ("rope_theta", 10**400),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_the_wrong_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}=") as error:
        config_from_hf(RELEASED | {name: value})
    assert "must" in str(error.value) or "only has" in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("fields", [None, [], "llama", 5])
def test_what_is_no_configuration_is_named(fields):
    with pytest.raises(TypeError, match="must be the object"):
        config_from_hf(fields)


def test_two_thetas_are_a_question():
    rope = {"rope_type": "default", "rope_theta": 1e6}
    with pytest.raises(ValueError, match=r"rope_theta.*which of them"):
        config_from_hf(RELEASED | {"rope_parameters": rope})


def test_every_field_arrives_both_ways():
    assert config_from_hf(config_to_hf(STRANGE)) == STRANGE
    fields = {k: v for k, v in config_to_hf(STRANGE).items() if "scaling" not in k}
    theirs = LlamaConfig(**{k: v for k, v in fields.items() if k != "model_type"})
    assert config_from_hf(theirs.to_dict()) == STRANGE  # all that version 5 writes


LEFT_OUT = {
    "max_position_embeddings": "block_size",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "attention_dropout": "dropout",
    "initializer_range": "init_std",
}


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_field_that_is_left_out_means_what_it_means_to_transformers(name, null):
    fields = config_to_hf(dataclasses.replace(STRANGE, tie_embeddings=True))
    given = {k: v for k, v in fields.items() if k != name} | ({name: None} if null else {})
    theirs = getattr(LlamaConfig(), name)
    assert getattr(config_from_hf(given), LEFT_OUT[name]) == theirs
    assert theirs != fields[name]


def test_heads_and_theta_that_are_left_out_are_those_of_transformers():
    left_out = ("num_key_value_heads", "head_dim", "rope_theta")
    given = {k: v for k, v in config_to_hf(STRANGE).items() if k not in left_out}
    given |= {"hidden_size": 48}
    ours = config_from_hf(given)
    theirs = LlamaConfig(hidden_size=48, num_attention_heads=6)
    assert ours.n_kv_head == theirs.num_key_value_heads == 6
    assert ours.head_dim == theirs.head_dim == 8
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == 10_000


# GGUF

GGUF = {
    "general.architecture": "llama",
    "llama.context_length": 192,
    "llama.block_count": 3,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 8,
    "llama.attention.value_length": 8,
    "llama.rope.dimension_count": 8,
    "llama.embedding_length": 60,
    "llama.feed_forward_length": 72,
    "llama.rope.freq_base": 123_456.0,
    "llama.attention.layer_norm_rms_epsilon": 0.00032500000088475645,  # 3.25e-4 in float32
}


def read(**changes: object) -> SmolLM2Config:
    fields = GGUF | {name.replace("__", "."): value for name, value in changes.items()}
    return config_from_gguf({k: v for k, v in fields.items() if v is not ...}, 101, tied=False)


def test_every_gguf_field_arrives():
    config = read()
    for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim",
                 "intermediate_size", "rope_theta", "norm_eps", "tie_embeddings"):  # fmt: skip
        assert getattr(config, name) == getattr(STRANGE, name), name
    assert config_from_gguf(GGUF, 101, tied=True).tie_embeddings


def test_gguf_fields_that_are_left_out_have_the_formats_defaults():
    assert read(llama__rope__freq_base=...).rope_theta == 10_000
    assert read(llama__attention__head_count_kv=...).n_kv_head == 6  # as many as query heads
    fewer = {"llama__attention__key_length": ..., "llama__attention__value_length": ...}
    rest = read(**fewer, llama__rope__dimension_count=..., llama__embedding_length=72)
    assert rest.head_dim == 12  # width by heads


@pytest.mark.parametrize(
    "name",
    ["context_length", "block_count", "embedding_length", "feed_forward_length",
     "attention.head_count", "attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_a_gguf_field_that_is_needed_is_named(name):
    with pytest.raises(assets.CorruptAssetError, match=f"the field llama.{name} is missing"):
        read(**{f"llama.{name}": ...})


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.attention.head_count_kv": [2, 2, 2]},
        {"llama.attention.head_count": [6, 6, 6], "llama.feed_forward_length": [72] * 3},
        {"llama.rope.scaling.type": "none"},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.original_context_length": 128, "llama.rope.scaling.finetuned": False},
        {"llama.rope.scale_linear": 1.0},
        {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.attention.causal": True, "llama.attention.scale": 8**-0.5},
        {"llama.attention.sliding_window": 192, "llama.attention.clamp_kqv": 0.0},
        {"llama.use_parallel_residual": False, "llama.logit_scale": 1.0},
        {"llama.tensor_data_layout": "Meta AI original pth", "llama.vocab_size": 101},
        {"general.alignment": 64, "general.name": "x", "quantize.imatrix.file": "y"},
        {"split.count": 1},
    ],
    ids=str,
)
def test_harmless_gguf_fields_are_let_through(fields):
    assert read(**fields) == read()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("general.architecture", "gpt2", "not 'llama'"),
        ("general.architecture", ..., "architecture None"),
        ("split.count", 3, "one part of several"),
        ("llama.rope.scaling.factor", 2.0, "RoPE scaling is not built"),
        ("llama.rope.scaling.type", "unheard of", "RoPE scaling is not built"),
        ("llama.rope.scaling.attn_factor", 1.2, "RoPE scaling is not built"),
        ("llama.rope.scale_linear", 4.0, "RoPE scaling is not built"),
        ("llama.rope.dimension_count", 4, "all 8 channels"),
        ("llama.attention.value_length", 16, "all 8 channels"),
        ("llama.attention.head_count_kv", [2, 2, 6], "whole number"),
        ("llama.attention.sliding_window", 64, "attends to all"),
        ("llama.attention.causal", 2, "attends to all"),
        ("llama.attention.scale", 0.0156, "attends to all"),
        ("llama.attention.clamp_kqv", 8.0, "attends to all"),
        ("llama.attention.max_alibi_bias", 8.0, "plain RoPE"),
        ("llama.attention.layer_norm_epsilon", 1e-5, "attends to all"),
        ("llama.logit_scale", 0.5, "scales and caps nothing"),
        ("llama.residual_scale", 0.22, "scales and caps nothing"),
        ("llama.final_logit_softcapping", 30.0, "scales and caps nothing"),
        ("llama.use_parallel_residual", True, "scales and caps nothing"),
        ("llama.block_count", "three", "whole number"),
        ("llama.context_length", -1, "whole number"),
        ("llama.rope.freq_base", "1e5", "must be a number"),
        ("llama.attention.layer_norm_rms_epsilon", "1e-5", "must be a number"),
    ],
)
def test_a_gguf_field_that_would_change_the_arithmetic_is_refused(name, value, reason):
    with pytest.raises(ValueError, match=reason):
        read(**{name: value})
