"""A list of files that load, from other tools and older versions: nothing of it may refuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smol_scratch import SmolLM2, SmolLM2Config, export_gguf, export_pretrained, load_pretrained
from smol_scratch.generation import chat_prompt, stop_tokens, stream_text
from smol_scratch.hub import load_walkthrough_checkpoint, neighbours_from_halves
from smol_scratch.tokenizer import SmolLM2Tokenizer, tokenizer_for
from tests.checks import randomise

TINY = SmolLM2Config.preset("tiny", n_layer=2)
FILES: dict[str, Callable[..., Path]] = {}


def file(name: str) -> Callable:
    return lambda write: FILES.setdefault(name, write)


def rewritten(folder: Path, **fields: object) -> Path:
    """Change fields of a folder's configuration; ... takes one out."""
    path = folder / "config.json"
    content = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({n: v for n, v in content.items() if v is not ...}))
    return folder


@file("base folder of ours")
def _(model, tokenizer, place):
    return export_pretrained(model, place, tokenizer=tokenizer)


@file("Instruct folder of ours")
def _(model, tokenizer, place):
    model.chat_template = tokenizer.chat_templates["default"]
    return export_pretrained(model, place, tokenizer=tokenizer)


@file("several files")
def _(model, tokenizer, place):
    folder = export_pretrained(model, place, tokenizer=tokenizer, max_shard_size="5MB")
    assert len([*folder.glob("*.safetensors")]) > 1
    return folder


@file("no tokenizer")
def _(model, tokenizer, place):
    return export_pretrained(model, place)


for dtype in ("f32", "f16", "q8_0"):

    @file(f"GGUF {dtype}")
    def _(model, tokenizer, place, dtype=dtype):
        return export_gguf(model, place.with_suffix(".gguf"), dtype, tokenizer=tokenizer)


@file("GGUF without a tokenizer")
def _(model, tokenizer, place):
    return export_gguf(model, place.with_suffix(".gguf"))


@file("saved by transformers 5")
def _(model, tokenizer, place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export_pretrained(model, place.with_name("first"), tokenizer=tokenizer)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(place)
    AutoTokenizer.from_pretrained(folder).save_pretrained(place)
    assert "rope_parameters" in json.loads((place / "config.json").read_text())
    return place


@file("saved by transformers 5, in bfloat16 and several files")
def _(model, tokenizer, place):
    from transformers import AutoModelForCausalLM

    folder = export_pretrained(model, place.with_name("first"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    theirs.save_pretrained(place, max_shard_size="5MB")
    return place


@file("the inner model alone, saved by transformers 5")
def _(model, tokenizer, place):
    from transformers import AutoModel

    folder = export_pretrained(model, place.with_name("first"))
    AutoModel.from_pretrained(folder).save_pretrained(place)
    return place


OLD = {  # as version 4.28 wrote it
    "_name_or_path": "some/where", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "max_sequence_length": 2048,
    "model_type": "llama", "pad_token_id": 0, "torch_dtype": "float16", "use_cache": True,
    "transformers_version": "4.28.1", "attention_bias": ..., "mlp_bias": ..., "rope_scaling": ...,
    "rope_interleaved": ..., "pretraining_tp": ..., "attention_dropout": ...,
}  # fmt: skip
UNSLOTH = {  # as versions 4.46 to 4.51 wrote it, and a trainer beside it
    "_attn_implementation_autoset": True, "head_dim": 16, "quantization_config": None,
    "rope_scaling": None, "sliding_window": None, "unsloth_fixed": True, "use_cache": False,
    "unsloth_version": "2025.3.1", "layer_types": ["full_attention"] * 2, "dtype": "bfloat16",
    "torch_dtype": ..., "auto_map": {}, "attention_dropout": None,
}  # fmt: skip
for name, fields in {"an old configuration": OLD, "a trainer's configuration": UNSLOTH}.items():

    @file(name)
    def _(model, tokenizer, place, fields=fields):
        return rewritten(export_pretrained(model, place, tokenizer=tokenizer), **fields)


@file("RoPE's frequencies and a tied head beside the weights")
def _(model, tokenizer, place):
    folder = export_pretrained(model, place, tokenizer=tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for layer in range(2):
        frequencies = 1e5 ** (-torch.arange(0, 16, 2) / 16)
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    save_file(tensors, folder / "model.safetensors")
    return folder


@file("compiled and wrapped")
def _(model, tokenizer, place):
    folder = export_pretrained(model, place, tokenizer=tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@file("a tokenizer that truncates and pads, and has a token more")
def _(model, tokenizer, place):
    from tokenizers import Tokenizer

    folder = export_pretrained(model, place, tokenizer=tokenizer)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.add_special_tokens(["[PAD]"])
    backend.save(str(folder / "tokenizer.json"))
    return folder


for front in ("", "module.", "_orig_mod.", "_orig_mod.module.", "model."):

    @file(f"the original project's .pt, names begin with {front!r}")
    def _(model, tokenizer, place, front=front):
        weights = {}
        for name, weight in model.state_dict().items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = neighbours_from_halves(weight, TINY.head_dim)
            weights[front + name] = weight.clone()
        content = {"model": weights, "config": dataclasses.asdict(TINY), "step": 5000}
        torch.save(content, place.with_suffix(".pt"))
        return place.with_suffix(".pt")


@pytest.fixture(scope="module")
def model() -> SmolLM2:
    torch.manual_seed(0)
    model = SmolLM2(TINY).eval()
    randomise(model)
    return model


ROUNDED = {"GGUF f16": 2**-8, "GGUF q8_0": 2**-4, "bfloat16": 2**-5}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_it_loads_is_the_same_model_and_speaks(name, model, tokenizer, tmp_path):
    model.chat_template = None
    place = FILES[name](model, tokenizer, tmp_path / "mine")
    if place.suffix == ".pt":
        loaded, own = load_walkthrough_checkpoint(place), tokenizer
    else:
        loaded = load_pretrained(place, quiet=True)
        own = tokenizer_for(place, loaded.config.vocab_size)
    ids = torch.tensor([tokenizer.encode("In 1984, a  1.")])
    ours, expected = loaded(ids)[0], model(ids)[0]
    # As far as the format rounds weights: its last digit, over the logits' spread.
    allowed = next((part for kind, part in ROUNDED.items() if kind in name), 0.0)
    assert (ours - expected).norm() <= (allowed or 1e-6) * expected.norm()
    assert isinstance(own, SmolLM2Tokenizer)
    assert own.encode("In 1984, a  1.") == ids[0].tolist()
    prompt = chat_prompt(own, "Who was Shakespeare?")
    assert prompt == chat_prompt(tokenizer, "Who was Shakespeare?")
    text, right = (
        stream_text(m, t, prompt, 8, temperature=0, stop=stop_tokens(t))
        for m, t in ((loaded, own), (model, tokenizer))
    )
    said = "".join(text)
    assert text.ended in ("length", "stop token")
    assert allowed or said == "".join(right)


@torch.no_grad()
def test_the_wheels_weights_load_too(real_model, tokenizer):
    """Four bits: the GGUF type Q4_1."""
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode([real_model(ids)[0][0, -1].argmax()]) == " Paris"
