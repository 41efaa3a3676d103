"""The border to ``transformers``, the hub and GGUF: the right weights, or an error saying why."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import gguf as gguf_format
import pytest
import torch
from safetensors.torch import load_file, save_file

from smol_scratch import (
    SmolLM2,
    SmolLM2Config,
    assets,
    hub,
    load_pretrained,
    to_transformers,
)
from smol_scratch.hub import (
    config_from_hf,
    config_to_hf,
    halves_from_neighbours,
    neighbours_from_halves,
)
from tests.checks import SMALL, randomise

TINY = dataclasses.replace(SMALL, dropout=0.0)
QUERY = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"

# The fields of HuggingFaceTB/SmolLM2-135M's config.json.
RELEASED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}


def make(config: SmolLM2Config = TINY) -> SmolLM2:
    model = SmolLM2(config).eval()
    randomise(model)
    return model


def same(one: SmolLM2, other: SmolLM2) -> bool:
    ids = torch.randint(TINY.vocab_size, (2, 13))
    return torch.equal(one(ids)[0], other(ids)[0])


# Configurations


def test_the_released_configuration_is_the_preset():
    assert config_from_hf(RELEASED) == SmolLM2Config.preset("135M")


def test_theta_is_read_where_either_version_writes_it():
    old = RELEASED | {"rope_theta": 130_000}
    new = {name: value for name, value in RELEASED.items() if name != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 130_000}
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(new).rope_theta == 130_000


@pytest.mark.parametrize("preset", ["135M", "360M", "1.7B", "tiny"])
def test_a_configuration_survives_both_ways(preset):
    config = SmolLM2Config.preset(preset, rope_theta=5e5)
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"model_type": "mistral"},
        {"rope_interleaved": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0}},
        {"sliding_window": 512},
    ],
)
def test_what_this_model_cannot_do_is_named(change):
    ((field, value),) = change.items()
    with pytest.raises(ValueError, match=field) as error:
        config_from_hf(RELEASED | change)
    assert str(value) in str(error.value)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="missing in the configuration: n_embd, vocab_size"):
        config_from_hf(
            {k: v for k, v in RELEASED.items() if k not in ("hidden_size", "vocab_size")}
        )


# Folders


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 11])
def test_a_folder_that_transformers_saved(tied, shards, tmp_path, capsys):
    model = make(dataclasses.replace(TINY, tie_embeddings=tied))
    to_transformers(model).save_pretrained(
        tmp_path / "mine", max_shard_size="5GB" if shards == 1 else "20KB"
    )
    assert (len(list(tmp_path.glob("mine/*.safetensors"))) == 1) == (shards == 1)
    capsys.readouterr()
    loaded = load_pretrained(tmp_path / "mine")
    assert capsys.readouterr().out == "weights: the folder mine\n"
    assert loaded.config == model.config
    assert same(loaded, model)
    assert not loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())


def test_what_a_configuration_leaves_out_is_what_transformers_takes():
    from transformers import LlamaConfig

    left_out = ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "head_dim")
    given = {k: v for k, v in config_to_hf(TINY).items() if k not in left_out}
    given["num_key_value_heads"] = None
    ours, theirs = config_from_hf(given), LlamaConfig(**given)
    assert ours.norm_eps == theirs.rms_norm_eps == 1e-6
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.n_kv_head == theirs.num_key_value_heads == ours.n_head
    assert ours.head_dim == theirs.head_dim


@pytest.fixture
def folder(tmp_path):
    """A model folder as the hub has it, for tests to damage."""
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(TINY)))
    save_file(make().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors in a folder's weights; None takes one out."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, f"{QUERY} is missing"),
        ({EMBEDDING: None}, f"{EMBEDDING} is missing"),
        ({EMBEDDING: None, "lm_head.weight": torch.zeros(61, 48)}, f"{EMBEDDING} is missing"),
        ({"extra.weight": torch.zeros(3)}, "extra.weight is unknown"),
        (
            {QUERY: torch.zeros(48, 47)},
            rf"{QUERY} has shape \(48, 47\) instead of \(48, 48\)",
        ),
        (
            {"lm_head.weight": torch.zeros(61, 48)},
            "tie_word_embeddings is true but lm_head.weight is another matrix",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, message, folder):
    rewrite(folder, **changes)
    with pytest.raises(assets.CorruptAssetError, match=message) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "rest"), [(4, ""), (5, ""), (6, " and 1 more"), (7, " and 2 more")]
)
def test_of_many_tensors_that_do_not_fit_five_are_named(wrong, rest, folder):
    rewrite(folder, **{f"extra{n}": torch.zeros(3) for n in range(wrong)})
    with pytest.raises(assets.CorruptAssetError) as error:
        load_pretrained(folder)
    named = "; ".join(f"extra{n} is unknown" for n in range(min(wrong, 5)))
    assert str(error.value).endswith(f": {named}{rest}")


def test_a_tied_head_stored_twice_is_read_once(folder):
    before = load_pretrained(folder, quiet=True)
    rewrite(folder, **{"lm_head.weight": before.state_dict()[EMBEDDING].clone()})
    assert same(load_pretrained(folder, quiet=True), before)


def test_half_precision_weights_become_float32(folder):
    halves = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    rewrite(folder, **halves)
    state = load_pretrained(folder, quiet=True).state_dict()
    for name, half in halves.items():
        torch.testing.assert_close(state[name], half.float(), rtol=0, atol=0)  # the type too


INDEX = "model.safetensors.index.json"
ELSEWHERE = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'


@pytest.mark.parametrize(
    ("file", "damage", "error", "message"),
    [
        ("model.safetensors", "truncate", assets.CorruptAssetError, "model.safetensors is damaged"),
        ("model.safetensors", "remove", assets.MissingAssetError, "only safetensors are read"),
        ("config.json", "truncate", assets.CorruptAssetError, "config.json is damaged: Expecting"),
        ("config.json", "remove", assets.MissingAssetError, "no config.json: not a model folder"),
        ("config.json", "3", assets.CorruptAssetError, "config.json is damaged: a JSON object"),
        ("config.json", b"\xff", assets.CorruptAssetError, "config.json is damaged: 'utf-8'"),
        (INDEX, "[]", assets.CorruptAssetError, "index.json is damaged"),
        (INDEX, '{"weight_map": []}', assets.CorruptAssetError, "index.json is damaged"),
        (INDEX, "{", assets.CorruptAssetError, "index.json is damaged"),
        (INDEX, "{}", assets.CorruptAssetError, "index.json is damaged.*weight_map"),
        (INDEX, ELSEWHERE, assets.MissingAssetError, "model-00001-of-00002.safetensors is missing"),
    ],
)
def test_a_damaged_folder_is_named(file, damage, error, message, folder):
    path = folder / file
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(error, match=message) as raised:
        load_pretrained(folder)
    assert str(folder) in str(raised.value)


def test_a_foreign_name_cannot_write_to_the_terminal(folder):
    """Newlines and signs that move its cursor are shown, not sent."""
    rewrite(folder, **{"a\n\x1b[31m": torch.zeros(1)})
    with pytest.raises(assets.CorruptAssetError, match=r"a \\x1b\[31m is unknown") as error:
        load_pretrained(folder)
    assert str(error.value).isprintable()
    index = {"weight_map": {"a": "\x07\u2028.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(assets.MissingAssetError, match=r"\\x07 \.safetensors is missing"):
        load_pretrained(folder)


def test_a_tensor_in_two_files_is_named(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(assets.CorruptAssetError, match="appears twice"):
        load_pretrained(folder)


# Other people's folders


@pytest.mark.parametrize("field", ["config.json", INDEX])
def test_a_byte_order_mark_does_no_harm(field, folder):
    if field == INDEX:
        index = {
            "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "w.safetensors")
        }
        (folder / "model.safetensors").rename(folder / "w.safetensors")
        (folder / INDEX).write_text(json.dumps(index))
    text = (folder / field).read_text("utf-8")
    (folder / field).write_text("\ufeff" + text, "utf-8")
    assert load_pretrained(folder, quiet=True).config == TINY
    (folder / field).write_text(text, "utf-16")
    assert load_pretrained(folder, quiet=True).config == TINY


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "_orig_mod._orig_mod.module.",
    "_fsdp_wrapped_module.module.",
    "model.",  # Lightning: the attribute that holds the model
    "module.model._orig_mod.",
    "base_model.model.",  # PEFT
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("front", WRAPPERS)
def test_what_wrappers_put_before_the_names_is_taken_off(front, tied, tmp_path):
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    model = make(config)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file({front + n: w for n, w in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert same(load_pretrained(tmp_path, quiet=True), model)


def test_what_wrappers_put_within_the_names_is_taken_off(folder):
    """Blocks that were compiled or checkpointed one by one; and the model without its head."""
    before = load_pretrained(folder, quiet=True)
    tensors = load_file(folder / "model.safetensors")
    inner = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
             "_checkpoint_wrapped_module._orig_mod"]  # fmt: skip
    for within in (f"layers.1.{name}." for name in inner):
        renamed = {n.replace("layers.1.", within): w for n, w in tensors.items()}
        save_file(renamed, folder / "model.safetensors")
        assert same(load_pretrained(folder, quiet=True), before)
    save_file(
        {n.removeprefix("model."): w for n, w in tensors.items()}, folder / "model.safetensors"
    )
    assert same(load_pretrained(folder, quiet=True), before)


def test_a_tensor_under_two_names_is_named(folder):
    rewrite(folder, **{f"module.{QUERY}": torch.zeros(48, 48)})
    with pytest.raises(assets.CorruptAssetError, match=f"{QUERY}, module.{QUERY}: all {QUERY}"):
        load_pretrained(folder)


def test_unknown_names_are_told_as_they_are_stored(folder):
    tensors = load_file(folder / "model.safetensors") | {"extra.weight": torch.zeros(3)}
    save_file({f"module.{n}": w for n, w in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(assets.CorruptAssetError, match=r"module\.extra\.weight is unknown"):
        load_pretrained(folder)


def test_ropes_frequencies_that_older_versions_stored_are_known(folder):
    before = load_pretrained(folder, quiet=True)
    D = TINY.head_dim
    frequencies = 1 / TINY.rope_theta ** (torch.arange(0, D, 2) / D)
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    rewrite(folder, **{name.format(0): frequencies, name.format(1): frequencies.bfloat16()})
    assert same(load_pretrained(folder, quiet=True), before)
    for wrong in (frequencies / 2, frequencies[:-1], frequencies[None]):
        rewrite(folder, **{name.format(1): wrong.clone()})
        with pytest.raises(assets.CorruptAssetError, match="inv_freq holds other frequencies"):
            load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_numbers_that_are_no_weights_are_named(dtype, folder):
    rewrite(folder, **{QUERY: torch.zeros(48, 48, dtype=dtype)})
    with pytest.raises(assets.CorruptAssetError, match=f"{QUERY} holds {dtype}.*quantised"):
        load_pretrained(folder)


def test_weights_that_are_there_twice_are_a_question(folder):
    shutil.copy(folder / "model.safetensors", folder / "older.safetensors")
    index = {
        "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "older.safetensors")
    }
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(assets.CorruptAssetError, match=r"weights twice.*remove what is old"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", ""])
def test_an_index_reaches_no_other_folder(name, folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(assets.CorruptAssetError, match="names no files"):
        load_pretrained(folder)


def test_a_shape_that_cannot_be_is_named(folder):
    for field, value in (("num_hidden_layers", 10**9), ("hidden_size", 10**12),
                         ("max_position_embeddings", 10**9),
                         ("max_position_embeddings", 2**25 + 1),  # a byte more than a GiB
                         ("head_dim", 2 * 10**18),
                         ("intermediate_size", 2**63), ("vocab_size", 2**70)):  # fmt: skip
        fields = config_to_hf(TINY) | {field: value}
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=str(folder)) as error:
            load_pretrained(folder)
        assert "\n" not in str(error.value)
        assert not str(error.value).rstrip().endswith(":"), "the reason is there"


def test_a_configuration_that_is_refused_names_its_file(folder):
    (folder / "config.json").write_text(json.dumps(config_to_hf(TINY) | {"mlp_bias": True}))
    with pytest.raises(ValueError, match=r"config\.json: mlp_bias=True"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.pt", r"load_walkthrough_checkpoint\('.*w\.pt'\), 'w'\)"),
        ("pytorch_model.bin", "pickled weights"),
        ("last.ckpt", "pickled weights"),
        ("model.safetensors", "a file of a model folder; name the folder"),
        ("config.json", "a file of a model folder; name the folder"),
        ("model.safetensors.index.json", "a file of a model folder"),
        ("notes.txt", "no whole GGUF file: it begins with b'hell'"),
    ],
)
def test_a_file_in_place_of_a_folder_is_named_with_the_way_to_go(name, message, tmp_path):
    (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(tmp_path / name)
    assert str(tmp_path) in str(error.value)


def test_the_way_to_go_works(tmp_path, monkeypatch):
    """The command in the error, word by word."""
    import shlex
    import subprocess

    path = tmp_path / "w.pt"
    config = dataclasses.asdict(TINY)
    torch.save({"model": make().state_dict(), "config": config}, path)
    with pytest.raises(ValueError, match="pickled") as error:
        load_pretrained(path)
    command = shlex.split(str(error.value).partition("model folder of it: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=tmp_path)
    folder = load_pretrained(tmp_path / "w", quiet=True)
    assert same(folder, hub.load_walkthrough_checkpoint(path))


def test_a_gguf_file_needs_no_ending(tmp_path):
    model = make()
    loaded = load_pretrained(write_gguf(tmp_path / "sha256-1234", model), quiet=True)
    assert same(loaded, model)


def test_an_adapter_alone_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(assets.MissingAssetError, match="an adapter alone: merge it"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("source", [5, "", b"folder", ["folder"], 1.5])
def test_a_source_of_the_wrong_type_is_named(source, tries):
    with pytest.raises(TypeError, match=r"source=.*must be a path or a hub name"):
        load_pretrained(source)
    assert not tries


def test_arguments_of_the_wrong_type_are_named():
    with pytest.raises(TypeError, match="model=str: must be a SmolLM2"):
        to_transformers("model")
    with pytest.raises(TypeError, match="model=LlamaForCausalLM: must be a SmolLM2"):
        to_transformers(to_transformers(make()))
    for weight, head_dim in ((torch.zeros(7, 3), 4), ("w", 4), (torch.zeros(8, 3), 3),
                             (torch.zeros(8, 3), 0), (torch.zeros(8, 3), 4.0)):  # fmt: skip
        for function in (halves_from_neighbours, neighbours_from_halves):
            with pytest.raises(ValueError, match="must"):
                function(weight, head_dim)


# GGUF


def test_row_orders_undo_each_other_and_are_the_documented_ones():
    weight = torch.randn(3 * 8, 5)
    assert torch.equal(neighbours_from_halves(halves_from_neighbours(weight, 8), 8), weight)
    assert torch.equal(halves_from_neighbours(neighbours_from_halves(weight, 8), 8), weight)
    rows = torch.arange(16.0)[:, None]  # two heads of eight
    expected = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert halves_from_neighbours(rows, 8).flatten().tolist() == expected


def write_gguf(path: Path, model: SmolLM2, **changes: object) -> Path:
    """Write a model as llama.cpp's converter would.

    Args:
        path: the file.
        model: what to write.
        **changes: "architecture", or fields and tensors to add; None leaves one out.
    """
    config = model.config
    writer = gguf_format.GGUFWriter(path, changes.pop("architecture", "llama"))
    fields = {
        "llama.context_length": config.block_size,
        "llama.block_count": config.n_layer,
        "llama.attention.head_count": config.n_head,
        "llama.attention.head_count_kv": config.n_kv_head,
        "llama.embedding_length": config.n_embd,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = neighbours_from_halves(tensor, config.head_dim)
        for ours, theirs in [
            *((ours, theirs) for theirs, ours in hub._GGUF_OUTER.items()),
            *((ours, theirs) for theirs, ours in hub._GGUF_BLOCK.items()),
            ("model.layers.", "blk."),
        ]:
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    for name, value in changes.items():
        (fields if name.startswith("llama.") else tensors)[name] = value
    for name, value in fields.items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, tensor in tensors.items():
        if tensor is not None:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_gives_the_same_model(tied, tmp_path):
    model = make(dataclasses.replace(TINY, tie_embeddings=tied, init_std=48**-0.5))
    loaded = load_pretrained(write_gguf(tmp_path / "tiny.gguf", model), quiet=True)
    assert loaded.config == model.config
    assert same(loaded, model)
    assert loaded.source == "tiny.gguf, dequantised to float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2', not 'llama'"),
        ({"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor: RoPE scaling"),
        ({"llama.block_count": None}, "the field llama.block_count is missing"),
        ({"llama.block_count": 3}, "model.layers.2.*is missing"),
        ({"token_embd.weight": None}, "token_embd.weight is missing"),
        ({"blk.1.attn_q.weight": None}, f"{QUERY} is missing"),
        ({"blk.1.attn_q.bias": torch.zeros(48)}, "unknown tensor blk.1.attn_q.bias"),
        ({"rope_freqs.weight": torch.zeros(4)}, "unknown tensor rope_freqs.weight"),
        ({"blk.1.attn_q.weight": torch.zeros(40, 48)}, rf"{QUERY} has shape \(40, 48\)"),
        ({"blk.1.attn_q.weight": torch.zeros(42, 48)}, r"attn_q\.weight: a weight of shape \(42"),
        ({"blk.1.attn_q.weight": torch.zeros(48, 48, dtype=torch.int8)}, "is stored as I8"),
        ({"llama.attention.sliding_window": 8}, "sliding_window=8: this model attends to all"),
    ],
)
def test_a_gguf_that_does_not_fit_is_named(changes, message, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", make(), **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(path)
    assert str(path) in str(error.value)


def test_ropes_divisors_of_one_do_no_harm(tmp_path):
    model = make()
    path = write_gguf(tmp_path / "a.gguf", model, **{"rope_freqs.weight": torch.ones(4)})
    assert same(load_pretrained(path, quiet=True), model)


@pytest.mark.parametrize("kept", [0, 3, 500, -1, -1000])
def test_a_truncated_gguf_is_named(kept, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", make())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(assets.CorruptAssetError, match=r"tiny\.gguf is no whole GGUF file"):
        load_pretrained(path)


# Which weights


def test_the_wheels_weights_are_the_released_shape(real_model):
    assert real_model.config == SmolLM2Config.preset("135M")
    assert len(real_model.state_dict()) == 272
    assert sum(weight.numel() for weight in real_model.parameters()) == 134_515_008


def test_the_wheels_weights_are_never_called_the_base_model(
    real_model, hub_cache, tries, monkeypatch, capsys
):
    assert "SmolLM2-135M-Instruct" in real_model.source
    assert "4-bit" in real_model.source
    assert real_model.source.endswith("not the base model")
    # Without a source and without the base model in the cache, it is they that are read.
    read = []
    model = make()
    monkeypatch.setattr(
        hub, "_read_gguf", lambda path: read.append(path) or (TINY, model.state_dict(), None)
    )
    assert load_pretrained().source == real_model.source
    assert capsys.readouterr().out == f"weights: {real_model.source}\n"
    assert read == [assets.wheel_path(assets.GGUF)]
    assert not tries


def test_the_base_model_in_the_local_cache_comes_first(folder, hub_cache, tries):
    name, revision = hub.HUB_NAME, hub.HUB_REVISION
    snapshot = hub_cache / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in folder.glob("*.*"):
        shutil.copy(file, snapshot)
    for source in (None, name, f"{name}@{revision}"):
        loaded = load_pretrained(source, quiet=True)
        assert loaded.config == TINY
        assert loaded.source.startswith(name)
        assert revision[:7] in loaded.source
    assert "base model" in load_pretrained(quiet=True).source
    assert not tries


def test_loaded_weights_do_not_change_with_the_file(folder):
    """The library's tensors are the file itself, mapped into memory."""
    model = load_pretrained(folder, quiet=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = folder / "model.safetensors"
    with file.open("r+b") as writer:  # in place, as `cp` does
        writer.seek(-10_000, os.SEEK_END)
        writer.write(b"\x00" * 10_000)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


def test_a_hub_name_needs_a_revision(hub_cache, tries):
    with pytest.raises(ValueError, match=r"name the revision too, as someone/model@REVISION"):
        load_pretrained("someone/model")
    assert not tries


@pytest.mark.parametrize("source", ["nowhere.gguf", "./some/folder", "/no/folder", "a/b/c"])
def test_a_path_that_is_not_there_is_named(source, tries):
    with pytest.raises(assets.MissingAssetError, match="no such file or folder") as error:
        load_pretrained(source)
    assert str(source) in str(error.value)
    assert not tries


def test_transformers_gets_a_copy():
    model = make()
    before = model.state_dict()[QUERY].clone()
    to_transformers(model).get_parameter(QUERY).data.zero_()
    assert torch.equal(model.state_dict()[QUERY], before)
