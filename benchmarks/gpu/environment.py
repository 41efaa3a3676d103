"""What computes, by name, and the precision that is chosen for it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measure import seconds_each
from benchmarks.gpu.stage import Stage, one_line
from smol_scratch import doctor
from smol_scratch.hardware import (
    choose_precision,
    find_card,
    find_hardware,
    peak_flops,
)

PACKAGES = ("torch", "triton", "numpy", "transformers", "tokenizers", "safetensors", "gguf",
            "huggingface_hub", "jinja2", "tqdm")  # fmt: skip
# No identity: neither serial number nor UUID, nor who else computes there.
ASKED = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "pstate",
         "temperature.gpu", "ecc.mode.current", "mig.mode.current")  # fmt: skip


def environment(stage: Stage) -> None:
    """Name the machine, the card and the versions."""
    stage.part("machine", doctor.machine)
    stage.part("pytorch", lambda: doctor.torch_facts(torch))
    stage.part("packages", packages)
    stage.part("compiler", compiler)
    stage.part("assets", lambda: {name: said for name, (said, _) in doctor.asset_states().items()})
    if stage.device.type == "cuda":
        stage.part("card", lambda: card(stage.device))
        stage.part("driver", driver)


def packages() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def compiler() -> dict[str, Any]:
    """Say whether ``torch.compile`` finds what it needs: Triton builds a small C extension."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    names = [name for name in ("gcc", "cc", "clang", "g++") if shutil.which(name)]
    return {"compilers": names, "Python.h": header.is_file()}


def card(device: torch.device) -> dict[str, Any]:
    """Return what CUDA says of the card; a field that this PyTorch lacks is left out."""
    properties = torch.cuda.get_device_properties(device)
    fields = ("name", "total_memory", "multi_processor_count", "L2_cache_size", "warp_size",
              "is_integrated", "shared_memory_per_multiprocessor")  # fmt: skip
    found = {name: getattr(properties, name) for name in fields if hasattr(properties, name)}
    free, total = torch.cuda.mem_get_info(device)
    return found | {
        "capability": list(torch.cuda.get_device_capability(device)),
        "free_memory": free,
        "usable_memory": total,
        "cards": torch.cuda.device_count(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "architectures": torch.cuda.get_arch_list(),
    }


def driver() -> dict[str, str]:
    """Return what ``nvidia-smi`` says; each field for itself, since an old one may not know it."""
    if not shutil.which("nvidia-smi"):
        return {"nvidia-smi": "not to be found"}
    found = {}
    for name in ASKED:
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={name}", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            found[name] = one_line(done.stdout) if done.returncode == 0 else "not said"
    return found


# The precision.

# Of the square products; a multiple of every tile, large enough to keep any card busy.
SIDE = 8192


def precision(stage: Stage) -> None:
    """Say which precision is chosen and why, and how fast each of them really is."""
    stage.part("chosen", lambda: chosen(stage.device))
    side = 256
    if stage.device.type == "cuda":  # where bfloat16 is emulated, half the side takes a second
        side = SIDE if torch.cuda.get_device_capability(stage.device) >= (8, 0) else SIDE // 2
    for name in ("fp32", "tf32", "bf16", "fp16"):
        stage.part(name, lambda name=name: product_speed(stage.device, name, side), needs=3)
    speeds = {name: stage.result[name]["flops_per_s"] for name in ("bf16", "fp16", "fp32")
              if name in stage.result}  # fmt: skip
    if "chosen" in stage.result and speeds:
        words = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        mine = speeds.get(words[str(stage.result["chosen"]["dtype"]).removeprefix("torch.")])
        # bf16 and fp16 are the same units: a twentieth between them is the card's clock.
        stage.keep(the_fastest=mine is not None and mine >= 0.95 * max(speeds.values()))


def chosen(device: torch.device) -> dict[str, Any]:
    """Return the hardware as it was found, and the choice for it."""
    hardware = find_hardware(device)
    choice = choose_precision(hardware)
    found = hardware._asdict() | choice._asdict()
    if device.type == "cuda":  # why PyTorch's own answer is not what is asked
        found["pytorch_says_bf16"] = torch.cuda.is_bf16_supported()
    return found


def product_speed(device: torch.device, name: str, side: int) -> dict[str, Any]:
    """Return the FLOP/s of a large square product, and the share of the datasheet's."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = seconds_each(lambda: a @ b, device, times=3, rounds=5)
    finally:
        torch.set_float32_matmul_precision(before)
    found: dict[str, Any] = {"flops_per_s": 2 * side**3 / seconds, "side": side}
    if device.type == "cuda":
        with contextlib.suppress(ValueError):  # a card that we do not know, or no such units
            card_name = torch.cuda.get_device_name(device)
            peak = peak_flops(card_name, torch.bfloat16) / 2 if name == "tf32" else peak_flops(
                card_name, dtype)  # fmt: skip
            found |= {"datasheet": peak, "share": found["flops_per_s"] / peak,
                      "source": find_card(card_name).source}  # fmt: skip
    return found
