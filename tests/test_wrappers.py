"""Wherever a model comes in, a wrapped or compiled one is taken for what it is."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import smol_scratch
from smol_scratch import (
    KVCache,
    SmolLM2,
    SmolLM2Config,
    accounting,
    backward,
    demo,
    evaluation,
    export_gguf,
    export_pretrained,
    fast,
    generate,
    load_tokenizer,
    quantize,
    space,
    stream,
    stream_text,
    to_transformers,
    training,
)
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import fast_logits, next_logits
from smol_scratch.packing import attending_within
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.sampling import Sampling
from smol_scratch.wrappers import unwrapped

IDS = torch.tensor([[5, 17, 3, 8, 2, 40, 6]])  # (1, T)
X, Y = IDS[:, :-1], IDS[:, 1:]
TOKENS = [int(token) for token in torch.arange(200) % 97]
CONFIG = TrainingConfig(
    preset="tiny", steps=1, batch_size=1, sequence_length=8, precision="fp32", warmup_steps=0
)
CPU = torch.device("cpu")
ON_CPU = RunOptions(device="cpu", fast=False)


def small(vocab_size: int = 128) -> SmolLM2:
    torch.manual_seed(0)
    config = SmolLM2Config(
        block_size=32, vocab_size=vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32,
        intermediate_size=64, head_dim=16,
    )  # fmt: skip
    model = SmolLM2(config).eval()
    model.source, model.chat_template = "weights of this test", None
    return model


def eager(model: nn.Module) -> Any:
    """Compile as ``torch.compile`` does, without the seconds that a C++ compiler takes."""
    return torch.compile(model, backend="eager")


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": eager,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled DataParallel": lambda model: eager(nn.DataParallel(model)),
}


def first_step(model: nn.Module) -> object:
    state = training.TrainingState.create(CONFIG, TOKENS, options=ON_CPU, model=model)
    return [metrics[:5] for metrics in training.train(state)]


def within(model: nn.Module) -> object:
    with attending_within(model, torch.tensor([[0, 0, 0, 1, 1, 1]])):
        return model(X)[0].detach()


def read_page(model: nn.Module) -> object:
    page = demo.build(model, load_tokenizer(), "here")
    return sorted(str(block.value) for block in page.blocks.values() if hasattr(block, "value"))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def exported(model: nn.Module, folder: Path) -> object:
    return content(export_pretrained(model, folder / "mine"))


def compiled_forwards(model: nn.Module) -> object:
    fast.compile_blocks(model)
    return [block._compiled_call_impl is not None for block in unwrapped(model).model.layers]


def quick_forms(model: nn.Module) -> object:
    fast.accelerate(model)
    inside = [type(module).__name__ for module in unwrapped(model).modules()]
    fast.restore(model)
    return inside, [type(module).__name__ for module in unwrapped(model).modules()]


def inputs_kept(model: nn.Module) -> object:
    training.keep_inputs_only(model)
    return accounting.measured_activations(unwrapped(model).train(), X, Y)


def peak(model: nn.Module) -> object:
    found = accounting.measured_peak(lambda: torch.zeros(1000), model)
    own = {id(buffer) for buffer in unwrapped(model).buffers()}
    return found - sum(b.nbytes for b in model.buffers() if id(b) not in own)  # the wrapper's own


# Every public function with a parameter ``model``: called with one, it returns what compares.
ENTRIES: dict[str, Callable[[nn.Module, Path], object]] = {
    "accounting.counted_flops": lambda model, _: accounting.counted_flops(model, X, Y),
    "accounting.counted_parameters": lambda model, _: accounting.counted_parameters(model),
    "accounting.measured_activations": lambda model, _: accounting.measured_activations(
        model, X, Y
    ),
    "accounting.measured_peak": lambda model, _: peak(model),
    "backward.loss_and_gradients": lambda model, _: backward.loss_and_gradients(model, X, Y),
    "backward.model_backward": lambda model, _: backward.model_backward(
        model, X, Y, *backward.model_forward(model, X)
    ),
    "backward.model_forward": lambda model, _: backward.model_forward(model, X)[0],
    "demo.build": lambda model, _: read_page(model),
    "demo.openings": lambda model, _: demo.openings(model, load_tokenizer()),
    "demo.write": lambda model, _: [
        written.text for written in demo.write(model, load_tokenizer(), [5, 17], Sampling(4), 1)
    ][-1],
    "evaluation.mean_loss": lambda model, _: evaluation.mean_loss(model, IDS),
    "fast.accelerate": lambda model, _: quick_forms(model),
    "fast.compile_blocks": lambda model, _: compiled_forwards(model),
    "fast.restore": lambda model, _: quick_forms(model),
    "fast_decode.CompiledDecoder": lambda model, _: CompiledDecoder(model)(
        X, KVCache(small().config)
    ),
    "generation.fast_logits": lambda model, _: fast_logits(model, X, KVCache(small().config)),
    "generation.generate": lambda model, _: generate(model, X, 4, temperature=0),
    "generation.next_logits": lambda model, _: next_logits(model, X, KVCache(small().config)),
    "generation.stream": lambda model, _: [s.token for s in stream(model, X, 4, temperature=0)],
    "generation.stream_text": lambda model, _: "".join(
        stream_text(model, load_tokenizer(), X, 4, temperature=0)
    ),
    "hub.to_transformers": lambda model, _: to_transformers(model).state_dict(),
    "packing.attending_within": lambda model, _: within(model),
    "quantize.check_plain": lambda model, _: quantize.check_plain(unwrapped(model)),
    "quantize.dequantize": lambda model, _: quantize.dequantize(quantize.quantize(model, "int8")),
    "quantize.quantize": lambda model, _: quantize.quantize(model, "int8")(X)[0],
    "sharing.export_gguf": lambda model, place: export_gguf(
        model, place / "mine.gguf"
    ).read_bytes(),
    "sharing.export_pretrained": exported,
    "space.write_space": lambda model, place: content(
        space.write_space(model, load_tokenizer(), place / "space")
    ),
    "training.TrainingState.create": lambda model, _: first_step(model),
    "training.distribute": lambda model, _: unwrapped(training.distribute(model, False, CPU)),
    "training.keep_inputs_only": lambda model, _: inputs_kept(model),
    "training.make_optimizer": lambda model, _: [
        group["params"] for group in training.make_optimizer(model, CONFIG).param_groups
    ],
    "wrappers.unwrapped": lambda model, _: unwrapped(model).state_dict(),
}
# What the 49,152 tokens are for: a text is encoded, or an own tokenizer is written beside.
WITH_TEXT = {"demo.build", "demo.openings", "space.write_space"}


def public_functions() -> Iterator[tuple[str, Any]]:
    """Yield all public functions, classes and methods; of the walk's own furniture none.

    ``course`` measures the model that its notebook has just made, and that one is bare.
    """
    for module in pkgutil.walk_packages(smol_scratch.__path__):
        if module.name.startswith("_") or module.name == "course":
            continue
        home = importlib.import_module(f"smol_scratch.{module.name}")
        for name, found in vars(home).items():
            if name.startswith("_") or getattr(found, "__module__", "") != home.__name__:
                continue
            if inspect.isclass(found):
                if "__init__" in vars(found) and not hasattr(found, "__dataclass_fields__"):
                    yield f"{module.name}.{name}", found.__init__
                for method in (m for m in vars(found) if not m.startswith("_")):
                    if inspect.ismethod(function := getattr(found, method)) or inspect.isfunction(
                        function
                    ):
                        yield f"{module.name}.{name}.{method}", function
            elif inspect.isfunction(found):
                yield f"{module.name}.{name}", found


def test_no_place_where_a_model_comes_in_is_left_out():
    found = {
        name
        for name, function in public_functions()
        if "model" in inspect.signature(function).parameters
    }
    assert found == set(ENTRIES)


def plain(value: object) -> object:
    """Return a result as something that ``==`` compares, tensors to the bit."""
    if isinstance(value, nn.Module):
        return plain(value.state_dict())
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def processes() -> Iterator[None]:
    """A group of one process: as much as DistributedDataParallel needs to wrap a model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> Callable[[str], object]:
    """What an entry gives for the bare model, computed once."""

    @functools.cache
    def of(entry: str) -> object:
        return plain(ENTRIES[entry](small(size(entry)), tmp_path_factory.mktemp("bare")))

    return of


def size(entry: str) -> int:
    return 49_152 if entry in WITH_TEXT else 128


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_model_is_taken_as_itself(entry, wrap, wanted, processes, tmp_path):
    assert plain(ENTRIES[entry](WRAPS[wrap](small(size(entry))), tmp_path)) == wanted(entry)


def sharded_by_fsdp2(model: SmolLM2) -> nn.Module:
    return training.distribute(model, True, CPU)


def sharded_by_fsdp1(model: SmolLM2) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


@pytest.mark.parametrize("shard", [sharded_by_fsdp1, sharded_by_fsdp2])
def test_a_model_in_pieces_is_refused_with_the_way_to_gather_it(shard, tmp_path):
    """Its weights are whole in no process, and gathering them here would wait for the others."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = shard(small())
        for entry in (lambda: generate(model, X, 4), lambda: exported(model, tmp_path)):
            with pytest.raises(
                ValueError, match=r"weights are spread.*get_model_state_dict"
            ) as info:
                entry()
            assert "\n" not in str(info.value)
    finally:
        dist.destroy_process_group()
    assert not list(tmp_path.iterdir())


def test_a_model_in_pieces_of_one_process_is_whole(processes):
    """FSDP's first form keeps the weights together where there is nobody to share them with."""
    model = sharded_by_fsdp1(small())
    assert torch.equal(
        generate(model, X, 4, temperature=0)[0], generate(small(), X, 4, temperature=0)[0]
    )


def test_the_way_to_gather_a_model_works(processes):
    """On two processes the same call gathers what both hold; the sharded runs' tests do that."""
    model = sharded_by_fsdp2(small())
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    again = SmolLM2(model.config)
    again.load_state_dict(whole)
    assert plain(again) == plain(small())


@pytest.mark.parametrize("wrong", [None, "x", nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))])
def test_what_is_no_model_is_named(wrong):
    with pytest.raises(TypeError, match=f"^model={type(wrong).__name__}: must be a SmolLM2, plain"):
        unwrapped(wrong)
