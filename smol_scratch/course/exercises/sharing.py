"""Checkers for notebook 12, sharing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smol_scratch.accounting import parameters
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.hub import neighbours_from_halves
from smol_scratch.model import SmolLM2


@exercise
def check_write_file(answer: Callable[[dict[str, Tensor]], bytes]) -> str:
    """Expect a function from float32 tensors by name to the bytes of a safetensors file."""
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    generator = torch.Generator().manual_seed(12)
    tensors = {
        "one": torch.randn(3, 5, generator=generator),
        "a longer name": torch.randn(7, generator=generator),
        "third": torch.randn(2, 2, 2, generator=generator),
    }
    raw = answer({name: tensor.clone() for name, tensor in tensors.items()})
    if not isinstance(raw, bytes | bytearray):
        raise Hint(f"the result must be bytes, not {type(raw).__name__}")
    raw = bytes(raw)
    numbers = sum(4 * tensor.numel() for tensor in tensors.values())
    length = int.from_bytes(raw[:8], "little")
    if raw and length == len(raw):
        raise Hint("the first eight bytes hold the length of the header alone, not of the file")
    if 8 + length + numbers != len(raw):
        if 8 + int.from_bytes(raw[:8], "big") + numbers == len(raw):
            raise Hint("the length is written little-endian: struct's '<Q'")
        raise Hint(
            f"8 bytes of length, {length:,} of header (so say the 8) and {numbers} of numbers make "
            f"{8 + length + numbers:,}; you returned {len(raw):,}"
        )
    try:
        header = json.loads(raw[8 : 8 + length])
    except ValueError as error:
        raise Hint("what stands between byte 8 and the numbers is no JSON") from error
    for name in tensors:
        if name not in header:
            raise Hint(f"the header does not name {name!r}")
        begin = header[name].get("data_offsets", [None])[0]
        if name == "one" and begin == 8 + length:
            raise Hint("offsets count from the first byte after the header, not from the file's")
    try:
        found = load(raw)
    except SafetensorError as error:
        raise Hint(f"the library refuses it: {error}") from error
    for name, tensor in tensors.items():
        if found[name].shape != tensor.shape:
            raise Hint(f"{name!r} comes back with another shape: {tuple(found[name].shape)}")
        if not torch.equal(found[name], tensor):
            raise Hint(f"{name!r} comes back with other numbers; check offsets and order")
    return "the library reads what you wrote"


@exercise
def check_dequantise(answer: Callable[[Tensor], Tensor]) -> str:
    """Expect a function from the bytes of q8_0 blocks, (rows, 34 · blocks), to the numbers."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    generator = torch.Generator().manual_seed(12)
    numbers = torch.randn(5, 96, generator=generator)  # three blocks a row
    raw = torch.from_numpy(quantize(numbers.numpy(), GGMLQuantizationType.Q8_0))
    expected = torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType.Q8_0))
    found = answer(raw.clone())
    if not isinstance(found, Tensor):
        raise Hint("the result must be a tensor")
    if found.shape != expected.shape:
        raise Hint(
            f"from {tuple(raw.shape)} bytes come {tuple(expected.shape)} numbers, not "
            f"{tuple(found.shape)}: 34 bytes are 32 numbers"
        )
    if torch.equal(found.float(), expected):
        return "every number is the library's, to the last bit"
    if torch.allclose(found.float(), expected, rtol=2e-3, atol=0):
        raise Hint("nearly: multiply in float32, after turning the float16 step into it")
    blocks = raw.unflatten(-1, (-1, 34))
    step = blocks[..., :2].contiguous().view(torch.float16).float()
    if torch.allclose(found.float(), (blocks[..., 2:].float() * step).flatten(-2)):
        raise Hint("the 32 bytes have a sign: read them as torch.int8, by .view and not by .to")
    raise Hint(
        "other numbers. Of each 34 bytes the first two are the step, a float16; "
        "tensor.view(dtype) reads the same bytes as another type"
    )


@exercise
def check_file_size(answer: float) -> str:
    """Expect the gigabytes of the 1.7B's weights in q8_0, norms in float32."""
    count = parameters(SmolLM2Config.preset("1.7B"))
    norms = count["RMSNorm"]
    matrices = sum(count.values()) - norms
    expected = (matrices * 34 / 32 + 4 * norms) / 1e9
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, in GB")
    if abs(answer - expected) < 0.006:
        return "and so it would fit where its float32 would not"
    if abs(answer - expected * 1e9) < 1e7:
        raise Hint("in GB: divide by 10⁹")
    if abs(answer - (matrices + norms) / 1e9) < 0.006:
        raise Hint("you took one byte per number; the steps are stored too")
    if abs(answer - expected * 1e9 / 2**30) < 0.006:
        raise Hint("that is in GiB, 2³⁰ bytes; here GB are 10⁹")
    raise Hint(
        "not it. Count the numbers in matrices and in norms (accounting.parameters does); 32 in a "
        "matrix take 34 bytes, one in a norm takes 4"
    )


_MOVED = "model.layers.2.self_attn.k_proj.weight"


def _sent() -> SmolLM2:
    """Return the model as its sender has it."""
    config = SmolLM2Config.preset("tiny", n_layer=4, vocab_size=300, block_size=64)
    generator = torch.Generator().manual_seed(2026)
    model = SmolLM2(config).eval().requires_grad_(False)
    for weight in model.parameters():
        scale = 0.15 if weight.ndim == 2 else 0.3
        weight.copy_(scale * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
    return model


def arrived() -> SmolLM2:
    """Return the model as it has arrived: the rows of one matrix are in GGUF's order."""
    model = _sent()
    weight = model.get_parameter(_MOVED)
    weight.copy_(neighbours_from_halves(weight.clone(), model.config.head_dim))
    return model


def senders_logits() -> tuple[Tensor, Tensor]:
    """Return tokens, (1, T), and the logits that the sender's model gives for them, (1, T, V)."""
    idx = torch.arange(1, 25)[None] * 11 % 300
    return idx, _sent()(idx)[0]


@exercise
def check_arrived(answer: str) -> str:
    """Expect the name of the matrix whose rows were moved."""
    names = list(_sent().state_dict())
    if not isinstance(answer, str):
        raise Hint("answer with a name, as in model.state_dict()")
    if answer not in names:
        near = f"{answer}.weight"
        raise Hint(f"no such name; did you mean {near!r}?" if near in names else "no such name")
    if answer == _MOVED:
        return "one matrix of dozens, found by undoing one move at a time"
    if "q_proj" not in answer and "k_proj" not in answer:
        raise Hint("the order of rows matters where pairs are turned: which matrices feed RoPE?")
    if answer.split(".")[2] == _MOVED.split(".")[2]:
        raise Hint("the right block, but repairing this one moves the logits further away")
    raise Hint(
        "not this one: with its rows put back the logits are still not the sender's. Did you put "
        "the earlier candidates back as they were?"
    )
