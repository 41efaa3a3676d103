"""What ``torch.compile``, data parallelism and trainers put around a model, taken off again.

A wrapper holds the model under a name of its own, which then stands in the name of every tensor:
``_orig_mod.module.model.norm.weight``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch.nn as nn
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2

# torch.compile; DistributedDataParallel and averaged models; FSDP; activation checkpointing.
_NAMES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_EMBEDDING = "embed_tokens.weight"


def unwrapped(model: nn.Module) -> SmolLM2:
    """Return the model itself, however often it is wrapped.

    Raises:
        TypeError: when there is no SmolLM2 within.
        ValueError: when FSDP has left no whole weights in it: to gather them takes all processes.
    """
    inner: nn.Module | None = model if isinstance(model, nn.Module) else None
    while inner is not None:
        if isinstance(inner.__dict__.get("config"), SmolLM2Config):
            _check_whole(inner)
            return inner  # type: ignore[return-value]
        inner = next((inner._modules[name] for name in _NAMES if name in inner._modules), None)
    raise TypeError(f"model={type(model).__name__}: must be a SmolLM2, plain, compiled or wrapped")


def _check_whole(model: Any) -> None:
    table = model.model.embed_tokens.weight
    # A flat or empty table is one that FSDP has cut or freed; a quantised one is no tensor.
    whole = not isinstance(table, Tensor) or (table.ndim == 2 and table.untyped_storage().nbytes())
    if hasattr(model, "unshard") or not whole:  # a method of FSDP2's modules
        raise ValueError(
            "model: its weights are spread over several processes; give the model of a checkpoint "
            "that all of them saved (load_pretrained), or get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) loaded into SmolLM2(model.config)"
        )


def bare_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Return for each name the model's own, or itself where that is none of the model's.

    Wrappers' names go, wherever they stand, and what stands before all of them, as Lightning's
    ``model.`` does; where the inner ``model.`` is left out, it is put there.

    Args:
        names: of tensors, as stored.
        known: the model's own.

    Raises:
        ValueError: when two names are the same tensor's.
    """
    bare = {n: ".".join(part for part in n.split(".") if part not in _NAMES) for n in names}
    front = next((n[: -len(_EMBEDDING)] for n in bare.values() if n.endswith(_EMBEDDING)), "model.")
    outer = front.removesuffix("model.")
    found: dict[str, str] = {}
    for name, rest in bare.items():
        if rest == f"{outer}lm_head.weight":
            rest = "lm_head.weight"
        elif rest.startswith(front):
            rest = "model." + rest.removeprefix(front)
        found[name] = rest if rest in known else name
    if len(set(found.values())) < len(found):
        twice = next(n for n in found.values() if list(found.values()).count(n) > 1)
        raise ValueError(f"{', '.join(n for n, own in found.items() if own == twice)}: all {twice}")
    return found
