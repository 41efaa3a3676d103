"""An argument of a wrong type is named in one line, with its type and what it must be."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import smol_scratch
from smol_scratch import (
    Block,
    DataLoaderLite,
    GroupedQueryAttention,
    KVCache,
    RMSNorm,
    RotaryPositionalEmbedding,
    SmolLM2,
    SmolLM2Config,
    SwiGLU,
    TokenShards,
    export_gguf,
    export_pretrained,
    fast,
    load_tokenizer,
    rotate,
)
from smol_scratch.arguments import checked, explained
from smol_scratch.shards import write_shards

C = SmolLM2Config(
    block_size=16, vocab_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=8,
    intermediate_size=12, head_dim=4,
)  # fmt: skip
ROPE = RotaryPositionalEmbedding(4, 16)
X, IDS = torch.ones(1, 3, 8), torch.tensor([[1, 2, 3]])
QKV = torch.ones(1, 2, 3, 4)
ANGLES = torch.ones(3, 2)
MODEL = SmolLM2(C)


def stored(place: Path) -> Path:
    """Return shards of a tokenizer whose tokens are code points."""

    class Letters:
        vocab_size, fingerprint, eos_id = 128, "letters", 0

        def encode(self, text: str) -> list[int]:
            return [ord(character) for character in text]

    write_shards(place / "shards", ["one", "two"], Letters())
    return place / "shards"


class Other:
    """What is nothing that anybody would ask for."""


OTHER = Other()
NO_NUMBER = ("3", None, [3], 2.5, OTHER)
NO_TENSOR = ("x", 5, [1.0], np.ones(3), OTHER)  # None where it stands for something is left out
NO_CONFIG = ("x", {}, 5, None, OTHER)
NO_PATH = (5, ["x"], OTHER)
NO_MODEL = ("x", None, 5, nn.Linear(2, 2), OTHER)
NO_TOKENIZER = ("x", 5, OTHER)
NO_REAL = ("x", None, [1.0], OTHER)
NO_PROMPT = ("To be", None, OTHER)
NO_STOP = ("x", 2.5, [OTHER], OTHER)
FLAG = ("no", 1, None)
OPTIONS = {
    "temperature": (1.0, NO_REAL),
    "top_k": (3, ("3", [3], 2.5, OTHER)),
    "top_p": (0.5, ("x", [1.0], OTHER)),
    "min_p": (0.5, ("x", [1.0], OTHER)),
    "repetition_penalty": (1.2, NO_REAL),
    "generator": (None, ("x", 5, OTHER)),
    "decoder": (None, ("x", 5, OTHER)),
    "vocab_size": (64, ("3", [3], 2.5, OTHER)),
}
GENERATE = {
    "model": (MODEL, NO_MODEL),
    "idx": (IDS, NO_PROMPT),
    "max_new_tokens": (2, NO_NUMBER),
    "stop": (None, NO_STOP),
}
ATTENTION = {
    "q": (QKV, (None, *NO_TENSOR)),
    "k": (QKV, (None, *NO_TENSOR)),
    "v": (QKV, (None, *NO_TENSOR)),
    "dropout_p": (0.0, NO_REAL),
}

Table = dict[str, tuple[Any, tuple[Any, ...]]]
# Every public name, and every public method of one: how to come by it, and for each parameter a
# value that is right and some of wrong types.
CALLS: dict[str, tuple[Callable[[Path], Any], Table]] = {
    "Block": (lambda _: Block, {"config": (C, NO_CONFIG), "rope": (ROPE, ("x", 5, None, OTHER))}),
    "Block.forward": (
        lambda _: Block(C, ROPE).forward,
        {"x": (X, (None, *NO_TENSOR)), "cache": (None, ("x", 5, [1]))},
    ),
    "DataLoaderLite": (
        lambda _: DataLoaderLite,
        {
            "tokens": (list(range(30)), (5, None, "To be or not to be", {1: 2}, {1, 2}, OTHER)),
            "B": (2, NO_NUMBER),
            "T": (2, NO_NUMBER),
            "rank": (0, NO_NUMBER),
            "world_size": (1, NO_NUMBER),
        },
    ),
    "DataLoaderLite.load_state_dict": (
        lambda _: DataLoaderLite(list(range(30)), 2, 2).load_state_dict,
        {"state": ({"position": 0, "passes": 0, "tokens": 30}, ("x", 5, None, [1], {}, OTHER))},
    ),
    "DataLoaderLite.next_batch": (lambda _: DataLoaderLite(list(range(30)), 2, 2).next_batch, {}),
    "DataLoaderLite.state_dict": (lambda _: DataLoaderLite(list(range(30)), 2, 2).state_dict, {}),
    "GroupedQueryAttention": (
        lambda _: GroupedQueryAttention,
        {"config": (C, NO_CONFIG), "rope": (ROPE, ("x", 5, None, OTHER))},
    ),
    "GroupedQueryAttention.forward": (
        lambda _: GroupedQueryAttention(C, ROPE).forward,
        {"x": (X, (None, *NO_TENSOR)), "cache": (None, ("x", 5, [1]))},
    ),
    "KVCache": (
        lambda _: KVCache,
        {
            "config": (C, NO_CONFIG),
            "batch_size": (1, NO_NUMBER),
            "max_length": (4, ("4", [4], 2.5, OTHER)),
            "dtype": (torch.float32, ("bf16", 16, None, float, OTHER)),
            "device": ("cpu", (2.5, None, OTHER)),
        },
    ),
    "KVCache.truncate": (lambda _: KVCache(C).truncate, {"length": (0, NO_NUMBER)}),
    "RMSNorm": (lambda _: RMSNorm, {"dim": (8, NO_NUMBER), "eps": (1e-5, NO_REAL)}),
    "RMSNorm.forward": (lambda _: RMSNorm(8).forward, {"x": (X, (None, *NO_TENSOR))}),
    "RotaryPositionalEmbedding": (
        lambda _: RotaryPositionalEmbedding,
        {"head_dim": (4, NO_NUMBER), "block_size": (8, NO_NUMBER), "theta": (1e4, NO_REAL)},
    ),
    "RotaryPositionalEmbedding.forward": (
        lambda _: ROPE.forward,
        {"x": (QKV, (None, *NO_TENSOR)), "start": (0, NO_NUMBER)},
    ),
    "SmolLM2": (lambda _: SmolLM2, {"config": (C, NO_CONFIG)}),
    "SmolLM2.forward": (
        lambda _: MODEL.forward,
        {
            "idx": (IDS, (None, *NO_TENSOR)),
            "targets": (IDS, NO_TENSOR),
            "cache": (None, ("x", 5, [1], OTHER)),
        },
    ),
    "SmolLM2Config": (
        lambda _: SmolLM2Config,
        {
            **dict.fromkeys(
                (
                    "block_size",
                    "vocab_size",
                    "n_layer",
                    "n_head",
                    "n_kv_head",
                    "n_embd",
                    "intermediate_size",
                    "head_dim",
                ),
                (4, NO_NUMBER),
            ),
            **dict.fromkeys(("rope_theta",), (1e4, NO_REAL)),
            **dict.fromkeys(("norm_eps", "dropout", "init_std"), (0.5, NO_REAL)),
            "tie_embeddings": (True, FLAG),
        },
    ),
    "SmolLM2Config.preset": (
        lambda _: SmolLM2Config.preset,
        {"name": ("tiny", (5, None, ["tiny"], OTHER))},
    ),
    "SwiGLU": (lambda _: SwiGLU, {"config": (C, NO_CONFIG)}),
    "SwiGLU.forward": (lambda _: SwiGLU(C).forward, {"x": (X, (None, *NO_TENSOR))}),
    "TokenShards": (
        lambda _: TokenShards,
        {"folder": (stored, (None, *NO_PATH)), "fingerprint": ("letters", (5, None, OTHER))},
    ),
    "TokenShards.part": (
        lambda place: TokenShards(stored(place), "letters").part,
        {"start": (0, NO_NUMBER), "stop": (2, NO_NUMBER)},
    ),
    "TokenShards.verify": (lambda place: TokenShards(stored(place), "letters").verify, {}),
    "causal_mask": (
        lambda _: smol_scratch.causal_mask,
        {
            "n_query": (2, NO_NUMBER),
            "n_key": (2, NO_NUMBER),
            "device": (None, (2.5, OTHER)),
        },
    ),
    "explicit_attention": (lambda _: smol_scratch.explicit_attention, ATTENTION),
    "export_gguf": (
        lambda _: export_gguf,
        {
            "model": (MODEL, NO_MODEL),
            "path": ("mine.gguf", (None, *NO_PATH)),
            "dtype": ("f32", (5, None, torch.float16, OTHER)),
            "tokenizer": (None, NO_TOKENIZER),
        },
    ),
    "export_pretrained": (
        lambda _: export_pretrained,
        {
            "model": (MODEL, NO_MODEL),
            "folder": ("mine", (None, *NO_PATH)),
            "tokenizer": (None, NO_TOKENIZER),
            "dtype": (torch.float32, ("bf16", 16, None, OTHER)),
            "figures": (None, ("x", 5, [1], OTHER)),
            "max_shard_size": ("5GB", (None, [1], OTHER)),  # a number is bytes
            "overwrite": (False, FLAG),
        },
    ),
    "fast_attention": (lambda _: smol_scratch.fast_attention, ATTENTION),
    "generate": (lambda _: smol_scratch.generate, GENERATE | OPTIONS),
    "load_gpt2_tokenizer": (lambda _: smol_scratch.load_gpt2_tokenizer, {}),
    "load_pretrained": (lambda _: smol_scratch.load_pretrained, {"source": (None, NO_PATH)}),
    "load_text": (lambda _: smol_scratch.load_text, {}),
    "load_tokenizer": (lambda _: load_tokenizer, {"source": (None, NO_PATH)}),
    "rotate": (
        lambda _: rotate,
        {
            "x": (QKV, (None, *NO_TENSOR)),
            "cos": (ANGLES, ("x", None, [1.0], OTHER)),
            "sin": (ANGLES, ("x", None, [1.0], OTHER)),
        },
    ),
    "stream": (lambda _: smol_scratch.stream, GENERATE | OPTIONS),
    "stream_text": (
        lambda _: smol_scratch.stream_text,
        GENERATE | {"tokenizer": (load_tokenizer(), (None, *NO_TOKENIZER))} | OPTIONS,
    ),
    "to_transformers": (lambda _: smol_scratch.to_transformers, {"model": (MODEL, NO_MODEL)}),
}
# What a parameter is called in an error, where that says more.
NAMES = {"SmolLM2Config.preset": "preset "}
# Parameters that have no wrong type, and why.
FREE = {
    "load_pretrained": {"quiet"},  # any truth value: it only decides on a line of output
    "SmolLM2Config.preset": {"changes"},  # are SmolLM2Config's own fields
    "stream": {"filters"},  # are named above, one by one
    "stream_text": {"options"},
}


def public() -> Iterator[tuple[str, inspect.Signature]]:
    """Yield every public name, and every public method that is ours, with its signature."""
    for name in smol_scratch.__all__:
        found = getattr(smol_scratch, name)
        yield name, inspect.signature(found)
        for method in vars(found) if inspect.isclass(found) else ():
            function = getattr(found, method)
            if not method.startswith("_") and inspect.isroutine(function):
                parameters = inspect.signature(function).parameters.values()
                own = [parameter for parameter in parameters if parameter.name != "self"]
                yield f"{name}.{method}", inspect.Signature(own)


def test_every_public_name_and_every_parameter_has_its_line():
    wanted = {name: set(signature.parameters) for name, signature in public()}
    found = {name: set(table) | FREE.get(name, set()) for name, (_, table) in CALLS.items()}
    for name in ("stream", "stream_text"):
        found[name] -= set(OPTIONS) - wanted[name]  # part of **filters and **options
    assert found == wanted


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, each) for name, (_, table) in CALLS.items() for each in table]
)
def test_an_argument_of_a_wrong_type_is_named(name, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    get, table = CALLS[name]
    function = get(tmp_path)
    right = {each: value for each, (value, _) in table.items()}
    if right.get("folder") is stored:
        right["folder"] = stored(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for wrong in table[parameter][1]:
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**(right | {parameter: wrong}))
        said = str(caught.value)
        kind, value = re.escape(type(wrong).__name__), re.escape(f"{wrong!r:.60}")
        assert re.match(rf"{NAMES.get(name, parameter)}=?.*({kind}|{value})", said), (wrong, said)
        assert re.search("must (be|lie)|is no state", said), said
        assert "\n" not in said
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_what_counts_as_a_number_or_a_path_is_one(tmp_path):
    """NumPy's numbers and PyTorch's, a path of another kind, a module in place of another."""
    assert RMSNorm(np.int64(8), eps=np.float32(1e-5)).weight.shape == (8,)
    assert KVCache(C, max_length=torch.tensor(4)).layers[0].k.shape[2] == 4

    class Entry:
        def __fspath__(self) -> str:
            return str(stored(tmp_path))

    assert len(TokenShards(Entry(), "letters")) == 8
    assert isinstance(Block(C, nn.Identity()).self_attn.rope, nn.Identity)


def test_a_wrong_number_of_arguments_is_pythons_own_error():
    for call, said in ((rotate, "missing 3"), (RMSNorm, "missing 1"), (SmolLM2, "missing 1")):
        with pytest.raises(TypeError, match=said):
            call()
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        RMSNorm(size=8)


def test_an_error_of_another_cause_stays_what_it_is():
    with pytest.raises(RuntimeError, match="size of tensor a"):
        rotate(QKV, torch.ones(5, 2), torch.ones(5, 2))
    broken = RMSNorm(8)
    del broken.eps
    with pytest.raises(AttributeError, match="no attribute 'eps'"):
        broken(X)


def test_decorated_functions_look_like_themselves():
    assert inspect.signature(rotate) == inspect.signature(rotate.__wrapped__)
    assert list(inspect.signature(RMSNorm).parameters) == ["dim", "eps"]
    assert (rotate.__name__, rotate.__module__) == ("rotate", "smol_scratch.model")
    assert pickle.loads(pickle.dumps(rotate)) is rotate


def test_checked_looks_before_and_explained_after():
    def double(number: int) -> int:
        return number * 2

    assert explained(double)("x") == "xx", "what works is not looked at"
    with pytest.raises(TypeError, match=r"^number=str: must be a whole number$"):
        checked(double)("x")
    with pytest.raises(TypeError, match=r"^number=dict: must be a whole number$"):
        explained(double)({})

    def chosen(name: str) -> None:
        raise ValueError(f"name={name!r}: must be one of these two")

    with pytest.raises(ValueError, match=r"^name=5: must be one of these two$"):
        explained(chosen)(5)  # it says so itself, and says more


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_compiler_sees_one_graph(accelerated):
    """Checks that the compiler could not read would break it, which ``fullgraph`` refuses."""
    torch._dynamo.reset()  # what other tests have compiled counts too
    model = SmolLM2(C).eval()
    if accelerated:
        fast.accelerate(model)
    counter = CompileCounter()
    found = torch.compile(model, backend=counter, fullgraph=True)(IDS)[0]
    assert torch.equal(found, model(IDS)[0])
    assert counter.frame_count == 1


def test_graphs_of_one_function_leave_another_all_of_its_own():
    """The compiler makes at most ``recompile_limit`` graphs of one code, then none."""
    torch._dynamo.reset()
    for kind in (RMSNorm, SwiGLU):
        for more in range(torch._dynamo.config.recompile_limit):
            config = dataclasses.replace(C, n_embd=C.n_embd + 2 * more)
            module = RMSNorm(config.n_embd) if kind is RMSNorm else SwiGLU(config)
            counter = CompileCounter()
            torch.compile(module, backend=counter, fullgraph=True)(torch.ones(1, config.n_embd))
            assert counter.frame_count == 1, (kind, more)


def test_a_model_is_exported_as_one_graph():
    model = SmolLM2(C).eval()
    program = torch.export.export(model, (IDS,))
    assert torch.equal(program.module()(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("accelerated", [False, True])
def test_an_accelerated_model_names_wrong_types_too(accelerated):
    model = SmolLM2(C)
    if accelerated:
        fast.accelerate(model)
    for wrong in ("x", [1], None):
        with pytest.raises(TypeError, match=f"^idx={type(wrong).__name__}: must be a tensor"):
            model(wrong)
        with pytest.raises(TypeError, match=f"^x={type(wrong).__name__}: must be a tensor"):
            model.model.norm(wrong)
