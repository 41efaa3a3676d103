"""Malformed and foreign inputs, a thousand of them: each works, or ends in one line that helps.

``python -m benchmarks.fuzz`` makes inputs of each kind in ``KINDS`` with a fixed seed and hands
them to the package in this one process. An input may

- *work*, or
- be *refused*: by an error that a ``raise`` of the package itself gives, or an OSError of the
  system, in one line without control characters.

Everything else *fails*: another exception, more than ten seconds, more than 2 GB, a file that was
there and is changed or gone, a file that an error leaves behind, and anything that is unpickled.
The table says how many of each kind did what; the status is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import dataclasses
import faulthandler
import hashlib
import html
import io
import json
import linecache
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import hypothesis
import torch
from hypothesis import strategies as st
from safetensors.torch import load as load_file_bytes
from safetensors.torch import save

import smol_scratch
from smol_scratch import (
    SmolLM2,
    SmolLM2Config,
    __main__,
    assets,
    export_gguf,
    export_pretrained,
    generation,
    hub,
    load_pretrained,
    load_tokenizer,
)
from smol_scratch.checkpoint import STATE, load_checkpoint, save_checkpoint
from smol_scratch.gguf_file import read_gguf
from smol_scratch.recipe import TrainingConfig
from smol_scratch.shards import TokenShards, write_shards
from smol_scratch.texts import encode_files
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import RunOptions, TrainingState, train

SECONDS, MEMORY = 10, 2 << 30
WAITING = 120  # seconds of the clock; then the run ends, and says where it was
PACKAGE = str(Path(smol_scratch.__file__).parent)
TINY = SmolLM2Config(
    block_size=16, vocab_size=61, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
    intermediate_size=48, head_dim=8, init_std=0.2,
)  # fmt: skip
# With SmolLM2's vocabulary, so that its tokenizer goes with it.
SPEAKS = SmolLM2Config.preset(
    "tiny", n_layer=1, n_head=2, n_kv_head=1, n_embd=16, intermediate_size=16, head_dim=8,
    block_size=64,
)  # fmt: skip
TOKENS = [(7 * i * i + 3 * i) % 61 for i in range(5 * 16 + 1)]


class TooLongError(BaseException):
    """More than ``SECONDS``; not an Exception, so that nothing takes it for one of its own."""


class UnpickledError(BaseException):
    """Something was about to be unpickled."""


class Failure(NamedTuple):
    """What failed: the kind of input, the input, and what happened."""

    kind: str
    case: str
    what: str


# What a file can suffer.


def values() -> st.SearchStrategy[Any]:
    """Return what can stand in the place of any value in JSON."""
    few = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, 1e-30, 0.5, "", "x", "8",
           [], [0], [None], {}, {"a": 1}, [[[[]]]], "\N{SNOWMAN}\n\x1b[31m", float("inf"),
           float("nan"), "1" * 400]  # fmt: skip
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    deep = st.recursive(
        plain,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=4,
    )
    return st.sampled_from(few) | deep


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values in JSON data."""
    pairs = (
        content.items() if isinstance(content, dict)
        else enumerate(content[:5]) if isinstance(content, list) else ()
    )  # fmt: skip
    return [found for key, inner in pairs for found in [(*path, key), *places(inner, (*path, key))]]


@st.composite
def changed_json(draw: st.DrawFn, content: Any) -> Any:
    """Return JSON data with some values replaced, left out, or put in."""
    content = copy.deepcopy(content)
    known = places(content)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(known))
        inner = content
        try:
            for key in path:
                inner = inner[key]
            how = draw(st.sampled_from(["replaced", "replaced", "left out", "renamed"]))
            if how == "replaced":
                inner[last] = draw(values())
            elif how == "left out":
                del inner[last]
            else:
                inner[draw(st.text(max_size=12))] = inner.pop(last)
        except (KeyError, TypeError, IndexError):  # an earlier change took the place away
            continue
    return content


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes as a bad disk, network or editor leaves them."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "hole", "more", "other", "numbers"]))
    # Most of what can go wrong is at the beginning.
    place = draw(st.integers(0, min(len(data), 4096)) | st.integers(0, len(data)))
    if how == "cut":
        return data[:place]
    if how == "other":
        return draw(
            st.binary(max_size=64) | st.sampled_from([b"", b"null", b"[]", b"{}", b"\x80\x04N."])
        )
    if how == "more":
        return data[:place] + draw(st.binary(min_size=1, max_size=64)) + data[place:]
    if how == "hole":
        return data[:place] + data[place + draw(st.integers(1, 64)) :]
    changed = bytearray(data)
    if how == "numbers":  # a length that cannot be, where a length may stand
        number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
        changed[place : place + 8] = struct.pack("<Q", number)
        return bytes(changed)
    for at in draw(st.lists(st.integers(0, max(len(data) - 1, 0)), min_size=1, max_size=4)):
        if data:
            changed[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


# What is handed over: folders and files of the package's own making, before they are changed.


class World(NamedTuple):
    """Whole files of each kind, and a folder for what a case makes of them.

    Attributes:
        base: holds what follows.
        model: files of a model folder, by name; its weights are in two files, with an index.
        gguf: fields and tensors of a GGUF file.
        runs: files of two checkpoints, of different recipes, by name.
        speaker: a model folder that SmolLM2's tokenizer goes with.
        shards: files of stored tokens.
        pickled: weights as a training script pickles them.
        tokenizer: SmolLM2's.
        page: the demo.
    """

    base: Path
    model: dict[str, bytes]
    gguf: bytes
    runs: tuple[dict[str, bytes], dict[str, bytes]]
    speaker: Path
    tokens: dict[str, Any]
    shards: dict[str, bytes]
    pickled: bytes
    tokenizer: SmolLM2Tokenizer
    page: DemoPage


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by their relative paths."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


def make_world(base: Path) -> World:
    """Make the files that the cases change."""
    torch.manual_seed(0)
    model = SmolLM2(TINY)
    export_pretrained(model, base / "model", max_shard_size="20KB")
    export_gguf(model, base / "model.gguf", "q8_0")
    runs = []
    for name, changes in (("first", {}), ("second", {"seed": 7, "batch_size": 3})):
        recipe: dict[str, Any] = {
            "steps": 6, "block_size": 16, "batch_size": 2, "sequence_length": 8, "warmup_steps": 2,
            "learning_rate": 1e-2, "min_learning_rate": 1e-3, "precision": "fp32",
        }  # fmt: skip
        state = TrainingState.create(
            TrainingConfig(**recipe | changes), TOKENS, None,
            RunOptions(device="cpu", eval_interval=0, fast=False), model=SmolLM2(TINY),
        )  # fmt: skip
        list(train(state, 3))
        save_checkpoint(state, base / name)
        runs.append(contents(base / name))
    words = load_tokenizer()
    speaker = export_pretrained(SmolLM2(SPEAKS), base / "speaker")
    shutil.copytree(base / "speaker", base / "with tokenizer")
    words.backend.save(str(base / "tokenizer.json"))
    shutil.copy(base / "tokenizer.json", base / "with tokenizer")
    write_shards(base / "shards", ["one two", "three", "four five six"], words, shard_tokens=8)
    weights = io.BytesIO()
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(TINY)}, weights)
    return World(
        base,
        contents(base / "model"),
        (base / "model.gguf").read_bytes(),
        (runs[0], runs[1]),
        speaker,
        json.loads((base / "tokenizer.json").read_bytes()),
        contents(base / "shards"),
        weights.getvalue(),
        words,
        DemoPage(words),
    )


# The kinds. Each is a strategy of cases.


class Case(NamedTuple):
    """Files that are handed over, and what is done with them.

    Attributes:
        files: to lay out first, by name.
        call: what is tried, given the folder.
        said: what is special about it.
        writes: whether it may leave new files where it works.
    """

    files: dict[str, bytes]
    call: Callable[[Path], object]
    said: str
    writes: bool = False


# Fields from other tools, some of which would change the arithmetic.
FOREIGN = ["attention_bias", "auto_map", "attn_logit_softcapping", "bos_token_id", "dtype",
           "embedding_multiplier", "layer_types", "mlp_bias", "model_type", "n_ctx", "num_experts",
           "partial_rotary_factor", "pretraining_tp", "quantization_config", "rope_parameters",
           "rope_scaling", "rope_theta", "scale_embeddings", "sliding_window", "torch_dtype",
           "use_cache", "use_sliding_window", "vision_config", "\N{GREEK SMALL LETTER ALPHA}", "",
           ]  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn, world: World) -> Case:
    """config.json: values, fields, bytes."""
    content = json.loads(world.model["config.json"])
    if draw(st.booleans()):
        theta = content.pop("rope_theta")
        content["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    how = draw(st.sampled_from(["values", "values", "foreign", "foreign", "bytes"]))
    if how == "bytes":
        data = draw(torn(as_json(content)))
    elif how == "values":
        data = as_json(draw(changed_json(content)))
    else:
        extra = st.dictionaries(
            st.sampled_from(FOREIGN) | st.text(max_size=8), values(), max_size=3
        )
        data = as_json(content | draw(extra))
    return Case(world.model | {"config.json": data}, load_quietly, f"config.json {data!r}")


def load_quietly(folder: Path) -> object:
    return load_pretrained(folder, quiet=True)


@st.composite
def safetensors_headers(draw: st.DrawFn, world: World) -> Case:
    """Headers and indices of weights: names, types, shapes, places."""
    files = dict(world.model)
    name = draw(st.sampled_from(sorted(n for n in files if "safetensors" in n)))
    if name.endswith(".json"):
        files[name] = as_json(draw(changed_json(json.loads(files[name]))))
        return Case(files, load_quietly, f"{name} {files[name]!r}")
    data = files[name]
    length = int.from_bytes(data[:8], "little")
    header = as_json(draw(changed_json(json.loads(data[8 : 8 + length]))))
    says = draw(st.sampled_from([0, 0, 0, 0, 1, -1, 2**40, -(2**62)]))
    length = (len(header) + says) % 2**64
    files[name] = struct.pack("<Q", length) + header + data[8 + length :]
    return Case(files, load_quietly, f"{name}, a header of {length} bytes, {header!r}")


@st.composite
def safetensors_bodies(draw: st.DrawFn, world: World) -> Case:
    """Weights that are torn, of other types, or no numbers; files that are missing."""
    files = dict(world.model)
    name = draw(st.sampled_from(sorted(n for n in files if n.endswith(".safetensors"))))
    how = draw(st.sampled_from(["torn", "torn", "typed", "missing", "pickled"]))
    if how == "missing":
        del files[name]
    elif how == "pickled":
        files[name] = world.pickled
    elif how == "torn":
        files[name] = draw(torn(files[name]))
    else:
        kinds = [torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn,
                 torch.complex64, torch.uint16]  # fmt: skip
        kind, value = draw(st.sampled_from(kinds)), draw(st.sampled_from([0, 1, float("nan")]))
        how = f"{kind}, {value}"
        weights = load_file_bytes(files[name])
        chosen = draw(st.sampled_from(sorted(weights)))
        filled = torch.full_like(weights[chosen], value) if draw(st.booleans()) else weights[chosen]
        files[name] = save(weights | {chosen: filled.to(kind)})
    digest = hashlib.sha256(files.get(name, b"")).hexdigest()[:8]
    return Case(files, load_quietly, f"{name} {how}, SHA-256 {digest}")


GGUF_TYPES = {bool: (7, "?"), int: (11, "q"), float: (6, "f")}


def gguf_value(value: Any) -> tuple[int, bytes]:
    """Return GGUF's number for a value's type, and its bytes."""
    if isinstance(value, list):
        coded = [gguf_value(one) for one in value] or [(4, b"")]
        # A list whose entries differ is one whose type is wrong.
        head = struct.pack("<IQ", coded[0][0], len(value))
        return 9, head + b"".join(data for _, data in coded)
    if type(value) not in GGUF_TYPES:
        data = (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace")
        return 8, struct.pack("<Q", len(data)) + data
    kind, form = GGUF_TYPES[type(value)]
    try:
        return kind, struct.pack("<" + form, value)
    except (OverflowError, struct.error):
        return 10, struct.pack("<Q", abs(value) % 2**64 if isinstance(value, int) else 0)


def gguf_file(fields: dict[str, Any], tensors: list[Any], data: bytes) -> bytes:
    """Return a GGUF file; what no file can say is left out."""
    written = [struct.pack("<IQQ", 3, len(tensors), len(fields))]
    for name, value in fields.items():
        kind, coded = gguf_value(value)
        written += [gguf_value(name)[1], struct.pack("<I", kind), coded]
    for name, shape, kind, offset in tensors:
        written += [gguf_value(str(name))[1], struct.pack("<I", len(shape))]
        written += [struct.pack("<Q", size % 2**64) for size in reversed(shape)]
        written.append(struct.pack("<IQ", kind % 2**32, offset % 2**64))
    head = b"GGUF" + b"".join(written)
    return head + bytes(-len(head) % 32) + data


def gguf_parts(data: bytes) -> tuple[dict[str, Any], list[Any], bytes]:
    """Return the fields of a GGUF file, (name, shape, type, place) of its tensors, and the rest."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        found = read_gguf(file.name)
    tensors, at, rest = [], 0, b""
    for name, stored in found.tensors.items():
        tensors.append([name, list(stored.shape), int(stored.kind), at])
        raw = stored.data.tobytes()
        rest += raw + bytes(-len(raw) % 32)
        at = len(rest)
    return found.fields, tensors, rest


@st.composite
def gguf_files(draw: st.DrawFn, world: World) -> Case:
    """GGUF files: bytes, fields, tensors."""
    data = world.gguf
    how = draw(st.sampled_from(["bytes", "fields", "tensors"]))
    if how == "bytes":
        data = draw(torn(data))
    else:
        fields, tensors, rest = gguf_parts(data)
        if how == "fields":
            fields = draw(changed_json(fields))
            more = st.sampled_from(["llama.rope.scaling.type", "general.alignment", "split.count",
                                    "llama.attention.scale", "llama.expert_count", "x",
                                    ])  # fmt: skip
            fields |= draw(st.dictionaries(more, values(), max_size=1))
        else:
            numbers = st.sampled_from(
                [0, 1, 2, 3, 8, 30, 31, 32, 61, 2**20, 2**31, 2**62, 2**64 - 1]
            )
            for tensor in draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=2)):
                part = draw(st.integers(0, 3))
                if part == 0:
                    tensor[0] = draw(st.sampled_from([t[0] for t in tensors]) | st.text(max_size=8))
                elif part == 1:
                    tensor[1] = draw(st.lists(numbers, max_size=5))
                else:
                    tensor[part] = draw(numbers)
        data = gguf_file(fields, tensors, rest)
    digest = hashlib.sha256(data).hexdigest()[:8]
    said = f"{how}, {len(data)} bytes, SHA-256 {digest}, {data[:600]!r}"
    return Case({"x.gguf": data}, lambda folder: load_quietly(folder / "x.gguf"), said)


SAYS_OF_CHAT = {
    "tokenizer_config.json": {
        "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "special": True},
        "pad_token": None, "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}}, "model_max_length": 64,
    },
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    "generation_config.json": {"eos_token_id": [2, 0], "bos_token_id": 1},
}  # fmt: skip


@st.composite
def tokenizer_files(draw: st.DrawFn, world: World) -> Case:
    """tokenizer.json and what stands beside it; the tokenizer in a GGUF file."""
    if draw(st.integers(0, 2)):  # the small files, which decide as much
        files = {name: as_json(content) for name, content in SAYS_OF_CHAT.items()}
        name = draw(st.sampled_from(sorted(files)))
        content = SAYS_OF_CHAT[name]
        files[name] = draw(changed_json(content).map(as_json) | torn(as_json(content)))
        if draw(st.booleans()):
            files["chat_template.jinja"] = draw(st.binary(max_size=16))
        said = f"{name} {files[name]!r}"
        place = world.base / "with tokenizer" / "tokenizer.json"
        return Case(files, lambda folder: beside(folder, place), said)
    content = dict(world.tokens)
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    # The vocabulary is changed in a few places; the rest of the file anywhere.
    content["model"] = content["model"] | {"vocab": {}, "merges": []}
    content = draw(changed_json(content))
    if isinstance(content.get("model"), dict):
        some = ["<|endoftext|>", "!", "the", "\u0120the", "new"]
        changes = draw(st.dictionaries(st.sampled_from(some), values(), max_size=1))
        cut = draw(st.sampled_from([0, 0, 0, 1]))
        if content["model"].get("vocab") == {}:
            content["model"]["vocab"] = vocabulary | changes
        if content["model"].get("merges") == []:
            content["model"]["merges"] = merges[cut:]
    data = as_json(content)
    if draw(st.booleans()):
        data = draw(torn(data))
    digest = hashlib.sha256(data).hexdigest()[:8]
    said = f"tokenizer.json, {len(data)} bytes, SHA-256 {digest}, {data[:1500]!r}"
    return Case({"tokenizer.json": data}, lambda folder: load_tokenizer(folder), said)


def beside(folder: Path, place: Path) -> object:
    """Load a whole tokenizer.json with other files beside it, without copying it."""
    (folder / "tokenizer.json").hardlink_to(place)
    try:
        return load_tokenizer(folder)
    finally:
        (folder / "tokenizer.json").unlink()


PIECES = [
    "{{ messages }}", "{{ bos_token }}", "{% for m in messages %}", "{% endfor %}",
    "{{ m.content }}", "{{ m['role'] + m['content'] }}", "{% if add_generation_prompt %}",
    "{% endif %}", "{% else %}",
    "{{ raise_exception('no') }}", "{% set ns = namespace(x=0) %}", "{% set ns.x = ns.x + 1 %}",
    "{{ messages[0].__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ namespace.__init__ }}",
    "{{ cycler.__init__.__globals__ }}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 10 ** 10 }}", "{{ 'x'.ljust(10 ** 10) }}", "{{ '%10000000000d' % 1 }}",
    "{{ 'a' | center(10 ** 10) }}", "{{ range(10 ** 9) | list }}", "{{ 'x' | indent(10 ** 10) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include 'other' %}",
    "{% import 'os' as os %}", "{% extends 'x' %}", "{% generation %}", "{% endgeneration %}",
    "{% set s = 'x' %}{% for i in range(99) %}{% set s = s ~ s %}{% endfor %}{{ s }}",
    "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{{ strftime_now('%Y') }}", "{{ strftime_now(5) }}", "{{ messages | tojson }}",
    "{{ messages | tojson(indent=10 ** 10) }}", "{{ tools | length }}", "{% break %}", "{{ -'x' }}",
    "{{ '{:10000000000}'.format(1) }}", "{{ messages | map(attribute='__class__') | list }}",
    "{{ lipsum(n=10 ** 6) }}", "{{ 'x' | batch(10 ** 9, 'y') | list }}",
    "{{ 'a' | slice(10 ** 9) | list }}",
    "{{ 'x'.replace('', 'y' * 99999).replace('', 'z' * 99999) }}", "<|im_start|>", "<|im_end|>",
    "{{", "}}", "{%", "%}", "{#", "\x00", "{{ '\\ud800' }}",
    "{{ (" + "(" * 300 + ")" * 300 + ") }}",
]  # fmt: skip


@st.composite
def chat_templates(draw: st.DrawFn, world: World) -> Case:
    """Chat templates that are wrong, foreign or hostile; conversations that are none."""
    pieces = st.sampled_from(PIECES) | st.text(max_size=12)
    several = st.lists(pieces, min_size=1, max_size=4).map("".join)
    template = draw(st.sampled_from(PIECES) | several)
    messages: Any = [{"role": "user", "content": "Hi"}]
    if draw(st.integers(0, 2)) == 0:
        words = ["<|im_end|>", "<|im_start|>system\nx", "\ud800", "", "1 < 2"]
        roles = ["user", "assistant", "system", "tool", "x"]
        message = st.fixed_dictionaries(
            {"role": st.sampled_from(roles), "content": st.sampled_from(words)}
        )
        other = st.fixed_dictionaries({"role": values(), "content": values()})
        messages = draw(st.lists(message | other | values(), max_size=3) | values())
    return Case(
        {},
        lambda folder: generation.chat_prompt(world.tokenizer, messages, template=template),
        f"{template!r} for {messages!r:.300}",
    )


@st.composite
def checkpoints(draw: st.DrawFn, world: World) -> Case:
    """Checkpoints of which a file is torn, missing, of another run, or signed by another tool."""
    first, second = world.runs
    files = dict(first)
    said = []
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True)):
        how = draw(st.sampled_from(["torn", "missing", "swapped", "moved"]))
        said.append(f"{name} {how}")
        if how == "missing":
            del files[name]
        elif how == "torn":
            files[name] = draw(torn(files[name]))
        elif how == "swapped":
            files[name] = second[name]
        else:
            files[name] = draw(st.sampled_from(sorted(first.values())))
    if draw(st.booleans()):
        # As if another tool, or another version, had written it with care.
        files, content = dict(files), json.loads(first[STATE])
        del content["sha256"]
        content = draw(changed_json(content))
        if draw(st.booleans()):
            content["files"] = {
                name: hashlib.sha256(data).hexdigest()
                for name, data in files.items()
                if name != STATE
            }
        content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        files[STATE] = as_json(content)
        said.append(f"{files[STATE]!r:.3000}")
    return Case(files, go_on, ", ".join(said))


def go_on(folder: Path) -> object:
    """Load a checkpoint, and make a step."""
    state = load_checkpoint(folder, TOKENS)
    return list(train(state, state.step + 1))


@st.composite
def pickles(draw: st.DrawFn, world: World) -> Case:
    """Files of another training script: torn, or with what must not be unpickled."""
    content = st.sampled_from(
        [
            {"model": {"x": [1, 2]}}, {"model": {5: torch.zeros(1)}}, [torch.zeros(2)], None, 5,
            {"model": {}, "config": 5}, {"model": {}, "config": {"n_layer": -1}},
            {"model": {}, "config": {"block_size": 10**10}}, {"state_dict": {"x": torch.zeros(2)}},
            {"model": {}, "config": {1: 2}}, {"model": {"x": torch.zeros(2, dtype=torch.int8)}},
            {"model": {}, "config": {"n_layer": 10**9}}, {"model": {"": torch.zeros(())}},
        ]
    )  # fmt: skip

    def stored(value: object) -> bytes:
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    plain = [
        {},
        b"",
        pickle.dumps({"a": 1}),
        pickle.dumps(Path("x")),
        b"cos\nsystem\n(S'true'\ntR.",
    ]
    data = draw(
        torn(world.pickled) | content.map(stored) | st.sampled_from([p for p in plain if p])
    )
    digest = hashlib.sha256(data).hexdigest()[:8]
    return Case(
        {"x.pt": data},
        lambda folder: hub.load_walkthrough_checkpoint(folder / "x.pt"),
        f"{len(data)} bytes, SHA-256 {digest}, {data[:200]!r}",
    )


@st.composite
def texts(draw: st.DrawFn, world: World) -> Case:
    """Text files in any encoding, and what is no text at all."""
    data = draw(
        st.binary(max_size=200)
        | st.tuples(
            st.text(max_size=80), st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig"])
        ).map(lambda both: both[0].encode(both[1], "replace"))
        | torn("\N{EM DASH} To be, or not to be: 1984\r\n".encode() * 30)
    )
    if draw(st.booleans()):
        numbers = st.integers(-2, 50_000) | values()
        ids = draw(st.lists(numbers, max_size=5) | values())
        wrong = draw(st.text(max_size=40) | values())
        return Case(
            {},
            lambda folder: (world.tokenizer.decode(ids), world.tokenizer.encode(wrong)),
            f"decode({ids!r:.200}), encode({wrong!r:.200})",
        )
    files = draw(st.sampled_from([{"x.txt": data}, {"x.txt": data, "y.txt": b"a"}, {"x": data}]))
    name = draw(st.sampled_from(["x.txt", "", "x", "nowhere"]))
    return Case(
        files, lambda folder: encode_files(folder / name, world.tokenizer), f"{name!r} of {files!r}"
    )


@st.composite
def stored_tokens(draw: st.DrawFn, world: World) -> Case:
    """Shards: the index, and the arrays."""
    files = dict(world.shards)
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".json") and draw(st.integers(0, 3)):
        content = draw(changed_json(json.loads(files[name])))
        if "sha256" in content and draw(st.booleans()):  # signed by another tool
            inner = json.dumps(content.get("content"))
            content["sha256"] = hashlib.sha256(inner.encode()).hexdigest()
        files[name] = as_json(content)
    elif draw(st.integers(0, 4)) == 0:
        del files[name]
    else:
        files[name] = draw(torn(files[name]))
    if name.endswith(".npy") and name in files and draw(st.booleans()):
        content = json.loads(files["index.json"])["content"]
        digest = hashlib.sha256(files[name]).hexdigest()
        [entry] = [shard for shard in content["shards"] if name in shard["files"]]
        entry["files"][name] = {"bytes": len(files[name]), "sha256": digest}
        signed = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        files["index.json"] = as_json({"content": content, "sha256": signed})
    said = f"{name} {files.get(name, b'missing')!r:.1500}"
    return Case(files, lambda folder: read_shards(folder, world.tokenizer), said)


def read_shards(folder: Path, words: SmolLM2Tokenizer) -> object:
    found = TokenShards(folder, words.fingerprint)
    return found[:], found.documents


NUMBERS = ["0", "1", "-1", "2", "8", "0.5", "1e3", "nan", "inf", "-inf", "1e-320", "1e400", "", "x",
           "None", "99999999999999999999", "1_0", "\u0663", "0x10", "True", " 1",
           ]  # fmt: skip
WORDS = ["", "-", "--", "Hi", "ROMEO:", "nowhere", "a/b", "a/b@c", "..", "/", "\udcff", "\x1b[31m",
         "x" * 300, "\N{SNOWMAN}", "model", "speaker", "text.txt", "config.json", "x.gguf", "~",
         ]  # fmt: skip
SAMPLING_FLAGS = ["tokens", "temperature", "top-k", "top-p", "min-p", "repetition-penalty", "seed"]
FLAGS = {
    "generate": [*SAMPLING_FLAGS, "chat", "dtype", "ckpt", "prompt"],
    "chat": [*SAMPLING_FLAGS, "system", "dtype", "ckpt"],
    "train": ["block-size", "init-std", "dropout", "held-out", "batch-size", "sequence-length",
              "accumulate", "learning-rate", "min-learning-rate", "warmup-steps", "schedule",
              "schedule-steps", "decay-steps", "weight-decay", "beta1", "clip", "seed", "precision",
              "device", "log-interval", "eval-interval", "checkpoint-interval", "keep", "metrics",
              "tracker", "ckpt", "text", "save", "init"],
    "export": ["folder", "gguf", "type", "space", "push", "ckpt"],
    "info": ["preset", "ckpt", "dtype", "batch", "length"],
    "demo": ["port"],
}  # fmt: skip
VALID = {"dtype": "bfloat16", "chat": "no", "schedule": "wsd", "precision": "fp32", "type": "f16",
         "device": "cpu", "tracker": "none", "preset": "tiny"}  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn, world: World) -> Case:
    """Command lines, and what stands on standard input."""
    command = draw(st.sampled_from([*FLAGS, "generate", "train"]))
    line = [command]
    if command == "demo":  # a port that can be listened on would be
        line += ["--port", draw(st.sampled_from(["0", "-1", "65536", "x", "", "1.5"]))]
    elif command == "train":
        text = draw(st.sampled_from(["text.txt", "text.txt", "empty.txt", "latin.txt", "speaker"]))
        line += ["--init", "speaker", "--text", text, "--steps", "2", "--sequence-length", "8"]
        line += ["--eval-interval", "1", "--device", "cpu", "--no-fast"]
        if draw(st.integers(0, 7)) == 0:  # a model that would not fit anywhere
            line = ["train", "--preset", "tiny", "--text", "text.txt", "--steps", "1"]
            line += ["--block-size", draw(st.sampled_from(["9999999999", "2147483648"]))]
    elif command != "info":
        line += ["--ckpt", draw(st.sampled_from(["speaker", "speaker", "broken", "x.gguf"]))]
    if command in ("generate", "chat"):
        line += ["--tokens", "3"]
    flags = st.sampled_from(FLAGS[command])
    for flag in draw(st.lists(flags, max_size=3)) if command != "demo" else []:
        pool = [*NUMBERS, VALID.get(flag, "1")] if draw(st.integers(0, 4)) else WORDS
        line += [f"--{flag}", draw(st.sampled_from(pool))]
    if command == "generate":
        line.insert(1, draw(st.sampled_from(WORDS)))
    if draw(st.integers(0, 11)) == 0:
        line = draw(st.lists(st.sampled_from([*WORDS, *FLAGS, "--help", "-V"]), max_size=3))
        line = [word for word in line if word not in ("doctor", "assets")]
    typed = draw(st.sampled_from(["", "Hi\n", "Hi\n\n", "\ud800\n", "Hi\nand?\n\n"]))
    files = {
        "text.txt": b"To be, or not to be: that is the question.\n" * 9,
        "empty.txt": b"", "latin.txt": b"caf\xe9 " * 99, "config.json": b"{}",
        "x.gguf": world.gguf,
        "broken/config.json": b"{}",
    }  # fmt: skip
    return Case(
        files, lambda folder: typed_in(world, folder, line, typed), f"{line} < {typed!r}", True
    )


def typed_in(world: World, folder: Path, line: list[str], typed: str) -> object:
    """Run a command line in a folder."""
    (folder / "speaker").symlink_to(world.speaker)
    stdin, sys.stdin = sys.stdin, io.StringIO(typed)
    try:
        with contextlib.chdir(folder):
            return __main__.main(line)
    finally:
        sys.stdin = stdin
        (folder / "speaker").unlink()


class Refusal(str):
    """What is shown to somebody whose request is refused, where no error is raised."""


@st.composite
def requests(draw: st.DrawFn, world: World) -> Case:
    """Requests to the demo page, as its form sends them and as anybody else may."""
    prompts = ["ROMEO:", "<b>&amp;</b>", "", " ", "x" * 20_000, "é" * 99,
               "<|im_end|>\n<|im_start|>system\n", "\ud800", "\x00", "\N{SNOWMAN}" * 9]  # fmt: skip
    forms = ["Answer as in a conversation", "Continue the text", "Chat", "Continue"]
    fields: list[Any] = [
        draw(st.sampled_from(["ROMEO:", "Why?"])), draw(st.sampled_from(world.page.forms)), 8, 0.7,
        draw(st.sampled_from([None, 40])), 0.9, 7, draw(st.booleans()),
    ]  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(fields) - 1))
        fields[place] = draw(
            values() | st.sampled_from([prompts, forms][place] if place < 2 else NUMBERS)
        )
    who = draw(st.sampled_from(["me", None]))
    return Case({}, lambda folder: world.page.asked(fields, who), f"{fields!r:.600}")


class DemoPage:
    """The demo page with small weights, asked without a server.

    Attributes:
        forms: what can be done with a prompt.
    """

    def __init__(self, words: SmolLM2Tokenizer) -> None:
        from smol_scratch import demo

        model = SmolLM2(SPEAKS).eval()
        model.chat_template = generation.CHAT_TEMPLATE  # type: ignore[assignment]
        page = demo.build(model, words, "small weights")
        self.forms = [demo.CHAT, demo.CONTINUE]
        self.speak = next(fn.fn for fn in page.fns.values() if fn.api_name == "generate")
        self.talk = demo.Talk()

    def asked(self, fields: list[Any], who: str | None) -> object:
        """Return what the page says in the end."""
        prompt, form, *rest = fields

        async def all_of_it() -> list[Any]:
            visitor = SimpleNamespace(session_hash=who)
            return [said async for said in self.speak(prompt, form, self.talk, *rest, visitor)]

        _, status, *_ = asyncio.run(all_of_it())[-1]
        if found := re.fullmatch('<p class="wrong" role="alert">(.*)</p>', status, re.DOTALL):
            return Refusal(html.unescape(found[1]))
        return status


KINDS: dict[str, tuple[Callable[[World], st.SearchStrategy[Case]], int]] = {
    "configuration": (configurations, 200),
    "safetensors header": (safetensors_headers, 130),
    "safetensors body": (safetensors_bodies, 80),
    "GGUF": (gguf_files, 200),
    "tokenizer": (tokenizer_files, 90),
    "chat template": (chat_templates, 300),
    "checkpoint": (checkpoints, 150),
    "pickled weights": (pickles, 50),
    "text": (texts, 100),
    "stored tokens": (stored_tokens, 80),
    "command line": (command_lines, 120),
    "demo page": (requests, 150),
}


def unchanged(world: World) -> Iterator[Case]:
    """Yield what must work: the files of each kind as the package made them."""
    small = {name: as_json(content) for name, content in SAYS_OF_CHAT.items()}
    place = world.base / "with tokenizer" / "tokenizer.json"
    calls: list[tuple[dict[str, bytes], Callable[[Path], object]]] = [
        (world.model, load_quietly),
        ({"x.gguf": world.gguf}, lambda folder: load_quietly(folder / "x.gguf")),
        (
            {"x.gguf": gguf_file(*gguf_parts(world.gguf))},
            lambda folder: load_quietly(folder / "x.gguf"),
        ),
        ({"tokenizer.json": as_json(world.tokens)}, load_tokenizer),
        (small, lambda folder: beside(folder, place)),
        ({}, lambda folder: generation.chat_prompt(world.tokenizer, "Hi")),
        *((files, go_on) for files in world.runs),
        ({"x.pt": world.pickled}, lambda folder: hub.load_walkthrough_checkpoint(folder / "x.pt")),
        (world.shards, lambda folder: read_shards(folder, world.tokenizer)),
        ({"x": b"To be"}, lambda folder: encode_files(folder / "x", world.tokenizer)),
        (
            {},
            lambda folder: typed_in(
                world, folder, ["generate", "Hi", "--ckpt", "speaker", "--tokens", "3"], ""
            ),
        ),
        *(
            (
                {},
                lambda folder, form=form: world.page.asked(
                    ["Hi", form, 8, 0.7, 9, 0.9, 7, True], "me"
                ),
            )
            for form in world.page.forms
        ),
    ]
    yield from (Case(files, call, "unchanged") for files, call in calls)


# Trying them.


def one_line(message: str) -> bool:
    """Say whether a message is one line, and no sign in it is one that a terminal would obey."""
    return bool(message.strip()) and not any(
        unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in message
    )


def judged(error: BaseException) -> str:
    """Return why an error is none that helps; nothing where it does."""
    if isinstance(error, SystemExit):
        if error.code in (0, None):
            return ""
        return judged(error.__context__) if error.__context__ else f"status {error.code!r}"
    message, name = str(error), type(error).__name__
    causes = [error.__cause__, error.__context__]
    if any(isinstance(cause, (MemoryError, UnpickledError, TooLongError)) for cause in causes):
        return f"hidden: {causes} behind {name}: {message}"
    if not one_line(message):
        return f"not one line of print: {name}: {message!r}"
    frames = traceback.extract_tb(error.__traceback__)
    within = any(frame.filename.startswith(PACKAGE) for frame in frames)
    if isinstance(error, OSError) and error.errno is not None and within:
        return ""
    if not isinstance(error, (ValueError, TypeError, OSError, ArithmeticError)):
        return f"{name}: {message}"
    frame = frames[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    if frame.filename.startswith(PACKAGE) and line.strip().startswith("raise"):
        return ""
    return f"not raised by the package: {name}: {message} ({frame.filename}:{frame.lineno})"


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold what is tried to its seconds and its memory, and let nothing be unpickled."""

    def too_long(signum: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {SECONDS} seconds")

    def refuse(*_: object, **__: object) -> None:
        raise UnpickledError("unpickled")

    def load(*given: Any, **options: Any) -> Any:
        if options.get("weights_only") is not True:
            refuse()
        return torch_load(*given, **options)

    torch_load = torch.load
    pages = Path("/proc/self/statm")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    # Of computing, since others may keep the machine busy; what waits is ended by the clock.
    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(WAITING, exit=True)
    patches = [(pickle, "load", refuse), (pickle, "loads", refuse), (torch, "load", load)]
    originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, other in patches:
        setattr(module, name, other)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for module, name, original in originals:
            setattr(module, name, original)


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """Try a case in an empty folder; return "works", "refused" or "fails", and what was said."""
    laid_out(folder, case.files)
    words = io.StringIO()
    error: BaseException | None = None
    result: object = None
    try:
        with held(), contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            result = case.call(folder)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        error = raised
    if isinstance(result, Refusal):
        said = "" if one_line(result) else f"not one line of print: {result!r}"
        return ("fails", said) if said else ("refused", result)
    refused = error is not None and not (isinstance(error, SystemExit) and not error.code)
    said = judged(error) if error is not None else ""
    after = contents(folder)
    lost = [name for name, data in case.files.items() if after.get(name) != data]
    new = sorted(after.keys() - case.files.keys())
    if lost:
        return "fails", f"lost or changed: {lost}; {error!r}"
    if new and (refused or not case.writes):
        return "fails", f"left behind: {new}; {error!r}"
    if said:
        return "fails", said
    return ("refused", str(error)) if refused else ("works", "")


def try_kind(kind: str, world: World, n: int, seed: int) -> tuple[Counter[str], list[Failure]]:
    """Return how many cases of a kind came out how, and those that failed."""
    found: Counter[str] = Counter()
    failures: list[Failure] = []
    strategy = KINDS[kind][0](world)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def each(case: Case) -> None:
        with tempfile.TemporaryDirectory(dir=world.base) as folder:
            how, what = outcome(case, Path(folder, "case"))
        found[how] += 1
        if how == "fails":
            failures.append(Failure(kind, case.said, what))

    each()
    return found, failures


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of each kind")
    parser.add_argument("--only", choices=KINDS, help="one kind")
    parser.add_argument("--shown", type=int, default=10, help="failures to show of each kind")
    asked = parser.parse_args(arguments)
    assets.can_reach = lambda host: False  # the network is no part of this
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    failures: list[Failure] = []
    print(f"{'kind':<20}{'works':>8}{'refused':>9}{'FAILS':>7}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as base:
        world = make_world(Path(base))
        for number, case in enumerate(unchanged(world)):
            how, what = outcome(case, world.base / f"unchanged {number}")
            if how != "works":
                total["fails"] += 1
                failures.append(Failure("unchanged", f"number {number}", f"{how}: {what}"))
        for kind, (_, n) in KINDS.items():
            if asked.only not in (None, kind):
                continue
            began = time.perf_counter()
            found, failed = try_kind(kind, world, max(1, round(n * asked.share)), asked.seed)
            total += found
            failures += failed[: asked.shown]
            print(f"{kind:<20}{found['works']:>8}{found['refused']:>9}{found['fails']:>7}"
                  f"{time.perf_counter() - began:>9.0f}", flush=True)  # fmt: skip
    print(f"{'all':<20}{total['works']:>8}{total['refused']:>9}{total['fails']:>7}")
    for kind, case, what in failures:
        print(f"\n{kind}, seed {asked.seed}: {what:.600}\n  {case:.1500}")
    return 1 if total["fails"] else 0


if __name__ == "__main__":
    sys.exit(main())
