"""A model without its numbers: what stands where, before weights are put in."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2

M = TypeVar("M", bound=SmolLM2)


class _NoNumbers(TorchFunctionMode):
    """Give new parameters a shape and no memory, and draw no initial values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.empty, torch.ones):  # of linear layers and embeddings; of norms
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def laid_out(kind: type[M], config: SmolLM2Config) -> M:
    """Return a model whose parameters are on PyTorch's meta device; RoPE's tables are real.

    Within ``torch.device("meta")`` alone the tables and the drawing of initial values would go
    through Python code that imports PyTorch's compiler, which takes a second or two and 80 MB.

    Args:
        kind: ``SmolLM2`` or a class that was made of it.
        config: the model's.
    """
    with _NoNumbers():
        return kind(config)
