"""Checkers for notebook 12, sharing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from smol_scratch.accounting import parameters
from smol_scratch.config import SmolLM2Config
from smol_scratch.corpus import load_text
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure.sharing import OneLayer
from smol_scratch.evaluation import evenly_spaced
from smol_scratch.hub import load_pretrained, neighbours_from_halves
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import load_tokenizer


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


# As ``data/records/layers.csv`` has it; a test compares.
WORST, COSTLIEST = 29, "down_proj"
LEFT = (0.03, 0.3)  # on 2 to 16 passages


def one_layer() -> OneLayer:
    """Return what stores one layer of the real model in few bits, with four passages."""
    rows = evenly_spaced(load_tokenizer().encode(load_text()), 64, 4)
    return OneLayer(load_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf", quiet=True), rows)


@exercise
def check_worst_layer(answer: Mapping[str, object]) -> str:
    """Expect "layer", the "matrix" of it that costs most, and the share of the harm that is "left".

    Left with the 16 largest numbers of each matrix kept apart.
    """
    if not isinstance(answer, Mapping) or not {"layer", "matrix", "left"} <= answer.keys():
        raise Hint("answer with a dictionary: layer, matrix and left")
    layer, matrix, left = answer["layer"], answer["matrix"], answer["left"]
    if not isinstance(layer, int) or not 0 <= layer < 30:
        raise Hint("layer: a whole number, and layers are numbered from 0 to 29")
    if layer == 27:
        raise Hint("layer 27 has the largest outlier; is the loss that it adds the largest, too?")
    if layer != WORST:
        raise Hint(f"layer {layer} is not it: compare one.added(layer).mean() for all thirty")
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    if matrix not in names:
        raise Hint(f"the layer is right. matrix: one of {', '.join(names)}")
    if matrix == "o_proj":
        raise Hint("the layer is right. o_proj holds its largest number; what does o_proj alone "
                   "add to the loss?")  # fmt: skip
    if matrix != COSTLIEST:
        raise Hint(f"the layer is right. {matrix} alone does not cost most: try all seven")
    if hasattr(left, "item"):
        left = left.item()
    if not isinstance(left, int | float) or not 0 <= left <= 1:
        raise Hint("layer and matrix are right. left: a share between 0 and 1, the added loss with "
                   "apart=16 divided by the added loss without")  # fmt: skip
    if 1 - LEFT[1] <= left <= 1 - LEFT[0]:
        raise Hint("layer and matrix are right. That is the share that is repaired, or what is "
                   "left with random ones kept; how much is left without the largest?")  # fmt: skip
    if not LEFT[0] <= left <= LEFT[1]:
        raise Hint("layer and matrix are right. left: one.added(layer, apart=16) for all seven "
                   "matrices, its mean divided by that of one.added(layer)")  # fmt: skip
    return "16 numbers in each matrix do most of the harm, in the layer that bears least"
