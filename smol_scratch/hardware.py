"""What computes: devices, the precision that they are good for, and how fast they could be.

Precision is chosen by what the hardware has, never by what PyTorch can emulate.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import torch


class Hardware(NamedTuple):
    """What decides the precision.

    Attributes:
        kind: cpu, cuda or mps.
        name: for people.
        capability: CUDA's compute capability, (0, 0) elsewhere.
        bf16: whether a CPU has bfloat16 products.
    """

    kind: str
    name: str
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False


def find_hardware(device: torch.device) -> Hardware:
    """Look at a device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return Hardware("cuda", name, torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        # PyTorch before 2.11 cannot be asked.
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        bf16 = any(has.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
        # oneDNN, which multiplies, can be held to fewer instructions than the processor has.
        held_to = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
        bf16 &= held_to in ("ALL", "DEFAULT") or "BF16" in held_to or "AMX" in held_to
        return Hardware("cpu", f"{has.get('cpu_name', 'CPU')}", bf16=bf16)
    return Hardware(device.type, device.type)


class Precision(NamedTuple):
    """The type of the matrix products; weights and optimizer stay in float32.

    Attributes:
        dtype: of the products; float32 means no autocast.
        scaler: whether gradients need scaling, lest they vanish in float16.
        reason: why, for people.
    """

    dtype: torch.dtype
    scaler: bool
    reason: str


def choose_precision(hardware: Hardware, wanted: str = "auto") -> Precision:
    """Choose the type of the matrix products, and say why.

    Tensor cores for bfloat16 came with capability 8.0 (Ampere). A T4 (7.5) or V100 (7.0) has them
    for float16 alone: PyTorch reports bfloat16 there as supported, and emulates it slowly.

    Args:
        hardware: from ``find_hardware``.
        wanted: auto, bf16, fp16 or fp32; anything but auto is done as asked.

    Raises:
        ValueError: for another word.
    """
    kind, name, capability, cpu_bf16 = hardware
    has_bf16 = cpu_bf16 if kind == "cpu" else kind == "cuda" and capability >= (8, 0)
    if wanted == "auto":
        if has_bf16:
            return Precision(torch.bfloat16, False, f"{name} has bfloat16 units")
        if kind == "cuda" and capability >= (7, 0):
            reason = f"{name} (capability {capability[0]}.{capability[1]}) has float16 units only"
            return Precision(torch.float16, True, reason)
        return Precision(torch.float32, False, f"{name} has no units for 16 bits that we know of")
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if wanted not in types:
        raise ValueError(f"precision={wanted!r}: must be auto, {', '.join(types)}")
    reason = "as asked"
    if wanted == "bf16" and not has_bf16:
        reason += f", though {name} can only emulate it"
    return Precision(types[wanted], wanted == "fp16", reason)


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to train on; with several processes, this process's own.

    Raises:
        ValueError: when the one asked for is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = next(kind for kind, there in available.items() if there) if wanted == "auto" else wanted
    if not available.get(kind, False):
        raise ValueError(f"device={wanted!r}: not available to this PyTorch; use auto or cpu")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind)


# Cards, and how fast they could be.


class Card(NamedTuple):
    """A graphics card as its vendor describes it.

    Attributes:
        bf16, fp16: tensor-core peak of dense products with float32 sums, TFLOP/s, or None where the
            units do not exist. Datasheets since Ampere show twice that, for matrices of which half
            the numbers are zero.
        fp32: peak of the ordinary units, TFLOP/s. Taken as the peak for training in 16 bits it
            flatters utilisation by up to thirty times.
        bandwidth: of the memory, GB/s.
        memory: GB; of the smaller one where there are two.
        watts: board power.
        device_names: what ``torch.cuda.get_device_name`` says.
        source: the vendor's document.
    """

    bf16: float | None
    fp16: float | None
    fp32: float
    bandwidth: int
    memory: int
    watts: int
    device_names: tuple[str, ...]
    source: str


CARDS = {
    "T4": Card(None, 65, 8.1, 320, 16, 70, ("Tesla T4",), "NVIDIA T4 datasheet"),
    "V100 SXM2": Card(
        None,
        125,
        15.7,
        900,
        16,
        300,
        ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
        "NVIDIA V100 datasheet",
    ),
    "V100 PCIe": Card(
        None,
        112,
        14,
        900,
        16,
        250,
        ("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"),
        "NVIDIA V100 datasheet",
    ),
    "A10": Card(125, 125, 31.2, 600, 24, 150, ("NVIDIA A10",), "NVIDIA A10 datasheet"),
    "A10G": Card(70, 70, 35, 600, 24, 300, ("NVIDIA A10G",), "NVIDIA A10G for AWS datasheet, 2022"),
    "L4": Card(121, 121, 30.3, 300, 24, 72, ("NVIDIA L4",), "NVIDIA L4 datasheet"),
    # GeForce cards sum in float32 at half the rate of their data-centre sisters.
    "RTX 3090": Card(
        71,
        71,
        35.6,
        936,
        24,
        350,
        ("NVIDIA GeForce RTX 3090",),
        "NVIDIA Ampere GA102 architecture whitepaper, appendix A",
    ),
    "RTX 4090": Card(
        165.2,
        165.2,
        82.6,
        1008,
        24,
        450,
        ("NVIDIA GeForce RTX 4090",),
        "NVIDIA Ada architecture whitepaper, appendix A",
    ),
    "A100 SXM 40GB": Card(
        312,
        312,
        19.5,
        1555,
        40,
        400,
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        "NVIDIA A100 datasheet",
    ),
    "A100 SXM 80GB": Card(
        312, 312, 19.5, 2039, 80, 400, ("NVIDIA A100-SXM4-80GB",), "NVIDIA A100 datasheet"
    ),
    "A100 PCIe 80GB": Card(
        312, 312, 19.5, 1935, 80, 300, ("NVIDIA A100 80GB PCIe",), "NVIDIA A100 datasheet"
    ),
    "H100 SXM": Card(
        989.4,
        989.4,
        66.9,
        3350,
        80,
        700,
        ("NVIDIA H100 80GB HBM3",),
        "NVIDIA H100 architecture whitepaper, table 2; H100 datasheet",
    ),
    "H100 PCIe": Card(756, 756, 51, 2000, 80, 350, ("NVIDIA H100 PCIe",), "NVIDIA H100 datasheet"),
    "H200": Card(989, 989, 67, 4800, 141, 700, ("NVIDIA H200",), "NVIDIA H200 datasheet"),
    "B200": Card(2250, 2250, 75, 7700, 180, 1000, ("NVIDIA B200",), "NVIDIA Blackwell datasheet"),
}


def find_card(name: str) -> Card:
    """Return a card by its name in ``CARDS`` or by its CUDA device name.

    Raises:
        ValueError: for any other name: a guess would make every utilisation a guess.
    """
    for known, card in CARDS.items():
        if name == known or name in card.device_names:
            return card
    raise ValueError(
        f"card {name!r}: its peak is not known; known are {', '.join(CARDS)}. Measure the speed of "
        "a large matrix product instead, or add the card with its datasheet to hardware.CARDS"
    )


_FIELD_OF = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def peak_flops(name: str, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the FLOP/s that a card's datasheet promises for dense products in a type.

    Args:
        name: of the card, as in ``CARDS`` or as CUDA names the device.
        dtype: bfloat16 or float16 for the tensor cores, float32 for the ordinary units (TF32 is
            another thing).

    Raises:
        ValueError: for an unknown card, another type, or one that the card has no units for.
    """
    if dtype not in _FIELD_OF:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(map(str, _FIELD_OF))}")
    peak = getattr(find_card(name), _FIELD_OF[dtype])
    if peak is None:
        able = [other for other, it in CARDS.items() if getattr(it, _FIELD_OF[dtype]) is not None]
        raise ValueError(
            f"card {name!r} has no units for {dtype} (PyTorch may emulate it): use torch.float16, "
            f"or a card that has: {', '.join(able)}"
        )
    return peak * 1e12


@lru_cache
def device_peak(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the FLOP/s that utilisation is measured against.

    A known card's is its datasheet's; float32 products that may be rounded to TF32 run on tensor
    cores, at half of bfloat16's speed on every card in ``CARDS`` that has them. For a processor,
    and for a card that is not in ``CARDS``, it is the speed of a large square product, measured
    once: the best of five.
    """
    if device.type == "cuda":
        with suppress(ValueError):
            name = torch.cuda.get_device_name(device)
            if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
                with suppress(ValueError):  # before Ampere there is neither bfloat16 nor TF32
                    return peak_flops(name, torch.bfloat16) / 2
            return peak_flops(name, dtype)
    size = 2048
    square = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        (square @ square)[0, 0].item()  # .item() waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
