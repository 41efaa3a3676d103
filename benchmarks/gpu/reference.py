"""Make what the GPU run's parity is held against: ``python -m benchmarks.gpu.reference``.

The right results come from the formulas in float64 (``benchmarks/doctor_reference.py``), without a
line of ``model.py``; so do those of wrong programs. The floors are how far a processor strays from
them in each arithmetic: float32 in its own order; bfloat16 and float16 under autocast, the linear
layers' products imitated, for speed; TF32 imitated throughout, with what is multiplied rounded to
11 bits. Some minutes on two cores and 5 GB for 135M; ``--models tiny`` makes the small one alone.
"""

from __future__ import annotations

import argparse
import copy
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.doctor_reference import RIGHT, Way, Weights, logits, rounded
from benchmarks.gpu import parity
from benchmarks.gpu.parity import (
    KINDS,
    PASSAGES,
    B,
    T,
    distances,
    loaded,
    passage,
    results,
    watched,
)
from smol_scratch import SmolLM2, SmolLM2Config, assets, load_text, probes
from smol_scratch.model import GroupedQueryAttention, causal_mask

MODELS = ("tiny", "135M", "real weights")
WRONG = {
    "lets each token see the next one: the mask is off by one": {"mask": 1},
    "turns neighbouring channels, not the two halves of a head": {"neighbours": True},
    "has theta 10,000 in place of 100,000": {"theta": 10_000.0},
    "gives key-value heads to the query heads in turn, not in groups": {"in_turn": True},
    "leaves out the last norm": {"final_norm": False},
}


class Rounded(torch.autograd.Function):
    """A product of what is rounded to TF32's 11 bits, as are the two of its backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return rounded(a, 10) @ rounded(b, 10)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        g = rounded(g, 10)
        da, db = g @ rounded(b, 10).mT, rounded(a, 10).mT @ g
        return da, db.sum_to_size(b.shape)


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute ``explicit_attention`` with such products."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = Rounded.apply(q, k.mT) * q.shape[-1] ** -0.5
    ahead = ~causal_mask(q.shape[2], k.shape[2], q.device)
    return Rounded.apply(scores.masked_fill(ahead, float("-inf")).softmax(-1), v)


class Imitated(torch.overrides.TorchFunctionMode):
    """Lets each linear layer multiply as a card does: rounded factors, sums in float32.

    In 16 bits the result is rounded too. That is what a processor's own 16-bit products do, most
    of them a hundred times slower; casts, and with them the gradients', are those of autocast.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not F.linear:
            return function(*args, **(kwargs or {}))
        x, weight = args[:2]
        if self.dtype is None:
            return Rounded.apply(x.flatten(0, -2), weight.T).unflatten(0, x.shape[:-1])
        with torch.autocast("cpu", enabled=False):
            wide = [factor.to(self.dtype).float() for factor in (x, weight)]
            return (wide[0] @ wide[1].T).to(self.dtype)


def measured(model: SmolLM2, ids: Tensor, targets: Tensor, arithmetic: str) -> list[Tensor]:
    """Return what a processor computes in an arithmetic, TF32 imitated."""
    if arithmetic == "fp32":
        return results(model, ids, targets, "fp32")
    if arithmetic != "tf32":
        with Imitated(KINDS[arithmetic][0]):
            return results(model, ids, targets, arithmetic)
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GroupedQueryAttention):
            module.attend = rounded_attention
    with Imitated(None):
        return results(model, ids, targets, "fp32")


def right(
    w: Weights, config: SmolLM2Config, ids: Tensor, targets: Tensor, bugs: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the right logits, losses and gradients, and the logits of wrong programs."""
    way = Way(**{**RIGHT.__dict__, "eps": config.norm_eps, "theta": config.rope_theta,
                 "head_dim": config.head_dim})  # fmt: skip
    names = watched(list(w))
    w = {name: weight.double().requires_grad_(name in names) for name, weight in w.items()}
    scores = logits(ids, w, config, way)
    losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
    gradients = torch.autograd.grad(losses.mean(), [w[name] for name in names])
    with torch.no_grad():
        wrong = {bug: logits(ids, w, config, Way(**{**way.__dict__, **change}))
                 for bug, change in bugs.items()}  # fmt: skip
    return [scores.detach(), losses.detach(), *gradients], wrong


def size(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.double().square().mean().sqrt())


def words(config: SmolLM2Config, number: int, real: bool) -> tuple[Tensor, Tensor]:
    """Return a passage: chance for seeded weights, Shakespeare for real ones."""
    if not real:
        return passage(number, config.vocab_size)
    tokens = probes.real()[1].encode(load_text())
    start = 100_000 * (number + 1)
    both = torch.tensor(tokens[start : start + B * (T + 1)]).view(B, T + 1)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def made(name: str, model: SmolLM2, number: int) -> dict[str, Any]:
    """Return the reference of a model and a passage."""
    ids, targets = words(model.config, number, name == "real weights")
    w = {key: weight.detach() for key, weight in model.named_parameters()}
    found, wrong = right(w, model.config, ids, targets, WRONG if number == 0 else {})
    entry = {
        "ids": ids.tolist(),
        "targets": targets.tolist(),
        "values": probes.summary(found),
        "sizes": [size(x) for x in found],
        "wrong": {bug: probes.summary([x]) for bug, x in wrong.items()},
    }
    entry["floors"] = {arithmetic: distances(measured(model, ids, targets, arithmetic), entry)
                       for arithmetic in KINDS}  # fmt: skip
    return entry


def gentlest(known: dict[str, Any], arithmetic: str) -> float:
    """Return how many times what is allowed the gentlest wrong program stands away."""
    room = parity.allowed(arithmetic, parity.floors_of(known, arithmetic)["logits"])
    return min(
        probes.distance(wrong, entry["values"][:1], entry["sizes"][:1]) / room
        for entry in known["passages"].values()
        for wrong in entry["wrong"].values()
    )


def main() -> None:
    """Write the file, and print how far wrong programs stand away."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--passages", nargs="+", type=int, choices=range(PASSAGES),
                        default=range(PASSAGES), help="only these; the others stay")  # fmt: skip
    chosen = parser.parse_args()
    models = parity.reference()["models"] if parity.REFERENCE.exists() else {}
    for name in chosen.models:
        model = loaded(name, torch.device("cpu"))
        if model is None:
            raise assets.MissingAssetError(f"{name}: not here, run python -m smol_scratch assets")
        for number in chosen.passages:
            passages = models.setdefault(name, {"passages": {}})["passages"]
            passages[str(number)] = made(name, model, number)
            print(name, number, passages[str(number)]["floors"], flush=True)
            content = {
                "command": "python -m benchmarks.gpu.reference",
                "torch": torch.__version__,
                "models": {name: models[name] for name in MODELS if name in models},
            }
            text = json.dumps(content, separators=(",", ":"))
            assets.write_atomically(parity.REFERENCE, (text + "\n").encode())
    for name, known in models.items():
        for arithmetic in KINDS:
            print(f"{name:14}{arithmetic}: the gentlest wrong program stands at "
                  f"{gentlest(known, arithmetic):.1f} times what is allowed")  # fmt: skip


if __name__ == "__main__":
    main()
