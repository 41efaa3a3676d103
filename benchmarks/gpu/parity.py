"""Does the card compute what it should? Held against what the formulas give in float64.

Two sets of references: the doctor's probes (every part of the model, small), and here the whole
model, forward and backward, in each arithmetic that a card offers. ``reference.json`` holds for
each its right results and how far the arithmetic itself strays from them on a processor: the
*floor*. ``python -m benchmarks.gpu.reference`` makes it.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.stage import Stage
from smol_scratch import SmolLM2, SmolLM2Config, assets, probes

REFERENCE = Path(__file__).with_name("reference.json")

# Name of an arithmetic: type under autocast (None: none), and what float32 products may do.
KINDS: dict[str, tuple[torch.dtype | None, str]] = {
    "fp32": (None, "highest"),
    "tf32": (None, "high"),
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
}
# A float32 result may be as far away as the doctor allows a card. In the others every number is
# rounded to 8 or 11 bits, which no order of summation changes: what is left is chance. A floor is
# the largest of at least 8 sums, each of the same width: 19 times in 20 it is wider than one, and
# that the largest of 8 others is wider than four happens once in 2,000.
ROUNDED = 4
B, T = 2, 24  # of a passage
PASSAGES = 2
SCALE = 1024.0  # of the loss, lest float16's gradients vanish; a power of two changes no digit


def allowed(arithmetic: str, floor: float) -> float:
    """Return how far from the right result a card may be."""
    return floor * (probes.FACTOR * probes.CARD_ROOM if arithmetic == "fp32" else ROUNDED)


def seeded(preset: str) -> tuple[SmolLM2Config, dict[str, Tensor]]:
    """Return a preset with weights that are the same to the last bit everywhere."""
    config = SmolLM2Config.preset(preset)
    return config, probes.weights(config)


def passage(number: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return tokens and what should have come next, (B, T) each, the same everywhere."""
    both = probes.whole(1000 + number, vocab_size, B, T + 1)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def watched(names: list[str]) -> list[str]:
    """Return the parameters whose gradients are compared: the ends' of the stack, and its norm.

    What reaches the first block has come through all others. The embedding is left out for its
    size; the probes have a small one.
    """
    layers = sorted({int(name.split(".")[2]) for name in names if ".layers." in name})
    ends = {str(layers[0]), str(layers[-1])}
    return [name for name in names if name == "model.norm.weight"
            or (".layers." in name and name.split(".")[2] in ends)]  # fmt: skip


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the context in which products are computed in a type."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def results(model: SmolLM2, ids: Tensor, targets: Tensor, arithmetic: str) -> list[Tensor]:
    """Return logits, each token's loss and the watched gradients, computed in an arithmetic."""
    dtype, products = KINDS[arithmetic]
    device = next(model.parameters()).device
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        model.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            logits, loss = model(ids.to(device), targets.to(device))
        assert loss is not None
        (loss * SCALE).backward()
    finally:
        torch.set_float32_matmul_precision(before)
    named = dict(model.named_parameters())
    scores = logits.detach().float()
    return [
        scores,
        F.cross_entropy(scores.flatten(0, 1), targets.to(device).flatten(), reduction="none"),
        *(named[name].grad.float() / SCALE for name in watched(list(named))),  # type: ignore[union-attr]
    ]


def distances(found: list[Tensor], right: dict[str, Any]) -> dict[str, float]:
    """Return how far logits, losses and gradients are from the right ones, in their size."""
    sums = probes.summary(found)
    parts = {"logits": slice(0, 1), "losses": slice(1, 2), "gradients": slice(2, None)}
    return {
        name: probes.distance(sums[part], right["values"][part], right["sizes"][part])
        for name, part in parts.items()
    }


def reference() -> dict[str, Any]:
    """Return what is stored."""
    return json.loads(REFERENCE.read_text("utf-8"))


def floors_of(known: dict[str, Any], arithmetic: str) -> dict[str, float]:
    """Return the floors of an arithmetic: the largest over the passages."""
    found = [entry["floors"][arithmetic] for entry in known["passages"].values()]
    return {name: max(one[name] for one in found) for name in found[0]}


def judged(model: SmolLM2, known: dict[str, Any], arithmetic: str) -> dict[str, Any]:
    """Compute the passages and hold them against what is stored; say how far away they are."""
    floors = floors_of(known, arithmetic)
    worst = dict.fromkeys(floors, 0.0)
    looks_like = ""
    for entry in known["passages"].values():
        ids, targets = (torch.tensor(entry[name]) for name in ("ids", "targets"))
        found = results(model, ids, targets, arithmetic)
        for name, apart in distances(found, entry).items():
            worst[name] = max(worst[name], apart)
        apart = worst["logits"]
        if apart > allowed(arithmetic, floors["logits"]):
            sums = probes.summary(found[:1])
            near = (bug for bug, wrong in entry["wrong"].items()
                    if probes.distance(sums, wrong, entry["sizes"][:1]) <= apart / 20)  # fmt: skip
            looks_like = looks_like or next(near, "")
    times = {name: worst[name] / allowed(arithmetic, floors[name]) for name in worst}
    good = all(math.isfinite(value) and value <= 1 for value in times.values())
    return {"verdict": "ok" if good else "differs", "distance": worst, "floor": floors,
            "times_allowed": times, "looks_like": looks_like}  # fmt: skip


def loaded(name: str, device: torch.device) -> SmolLM2 | None:
    """Return the model of a reference on a device, or None where its weights are not here."""
    if name == "real weights":
        if assets.wheel_path(assets.GGUF) is None:
            return None
        return copy.deepcopy(probes.real()[0]).requires_grad_(True).to(device)
    config, weights = seeded(name)
    with torch.device("meta"):
        model = SmolLM2(config)
    # RoPE's tables are no parameters: those of a model on "meta" are empty, so make them again.
    model = model.to_empty(device="cpu")
    fresh = SmolLM2(SmolLM2Config.preset(name, n_layer=1))
    model.model.layers[0].self_attn.rope.cos = fresh.model.layers[0].self_attn.rope.cos
    model.model.layers[0].self_attn.rope.sin = fresh.model.layers[0].self_attn.rope.sin
    model.load_state_dict(weights)
    return model.eval().to(device)


def parity(stage: Stage) -> None:
    """Compare the probes, the whole model in each arithmetic, and thirty training steps."""
    stage.part("probes", lambda: doctor(stage), needs=5)
    known = reference()
    for name in (stage.preset, "real weights"):
        if name not in known["models"]:
            stage.note(f"{name}: no reference; there are {', '.join(known['models'])}")
            continue
        kept = stage.part(f"{name}, loading", functools.partial(Kept, name, stage.device), needs=5)
        if kept is None:
            continue
        if kept.model is None:
            stage.note("real weights: not here, so only seeded ones were compared")
            continue
        # A processor without such units takes half a minute for 135M in 16 bits: the small model
        # shows it too.
        quick = stage.device.type == "cuda" or name != "real weights"
        for arithmetic in KINDS if quick else ("fp32",):
            stage.part(
                f"{name}, {arithmetic}",
                functools.partial(judged, kept.model, known["models"][name], arithmetic),
                needs=2,
            )
        kept.model = None
    stage.part("training", lambda: curve(stage.device), needs=5)
    wrong = [name for name, found in stage.result.items()
             if isinstance(found, dict) and found.get("verdict") == "differs"]  # fmt: skip
    for name in wrong:
        stage.note(f"{name}: DIFFERS from the reference")
    stage.keep(differing=wrong)


class Kept:
    """A model, of which the file says only whether it was there."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.model = loaded(name, device)

    def __str__(self) -> str:
        return "not here" if self.model is None else "loaded"


def doctor(stage: Stage) -> dict[str, Any]:
    """Return what the doctor's probes say of the device."""
    with_assets = assets.wheel_path(assets.GGUF) is not None
    found = list(probes.examine(stage.device, with_assets=with_assets))
    differing = [one for one in found if one.result in ("differs", "failed")]
    return {
        "verdict": "differs" if differing else "ok",
        "ok": sum(one.result == "ok" for one in found),
        "not_run": [f"{one.probe}: {one.note}" for one in found if one.result == "not run"],
        "differing": [one._asdict() for one in differing],
        "times_allowed": {one.probe: one.times for one in found if one.times is not None},
    }


def curve(device: torch.device) -> dict[str, Any]:
    """Return how thirty training steps of the tiny model compare with the stored losses."""
    found, losses = probes.examine_run(device)
    return {"verdict": "ok" if found.result == "ok" else "differs", "times_allowed": found.times,
            "note": found.note, "losses": losses}  # fmt: skip
