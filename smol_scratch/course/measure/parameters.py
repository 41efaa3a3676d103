"""Notebook 08's measurements: training steps of any size, rehearsed without memory or arithmetic.

In a rehearsal every tensor has a shape, a type and a size, and no contents (PyTorch calls it a fake
tensor). The program and its operations are those of a real step, so an account of which tensors
exist at which moment is the real one: tests/course/test_memory.py compares the two.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from smol_scratch.config import SmolLM2Config
from smol_scratch.model import SmolLM2

# A way to compute the mean loss: (model, tokens, targets) -> loss, or (logits, loss).
Loss = Callable[[SmolLM2, Tensor, Tensor], Any]

WEIGHTS, MOMENTS, GRADIENTS = "weights", "AdamW's two moments", "gradients of the weights"
COPIES = "16-bit copies of the weights"
MLP, ATTENTION, STREAM, VOCABULARY = "MLPs", "attention", "norms and residual stream", "vocabulary"
FAMILIES = (WEIGHTS, MOMENTS, GRADIENTS, COPIES, STREAM, ATTENTION, MLP, VOCABULARY)


class Diary(NamedTuple):
    """The bytes of all tensors after each operation of a training step, by family.

    Attributes:
        bytes: family to bytes after each operation.
        ends: the number of operations after the forward pass, and after the backward pass.
        started: the number of operations before each block of the model.
    """

    bytes: dict[str, list[int]]
    ends: tuple[int, int]
    started: list[int]

    @property
    def totals(self) -> list[int]:
        """The bytes of all families together, after each operation."""
        return [sum(column) for column in zip(*self.bytes.values(), strict=True)]

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return max(self.totals)

    def at_the_peak(self) -> dict[str, int]:
        """Return what each family holds when the most is held."""
        totals = self.totals
        moment = totals.index(max(totals))
        return {family: held[moment] for family, held in self.bytes.items()}


class _Account(TorchDispatchMode):
    """Enter each tensor's memory when an operation returns it, and cross it out when it is freed.

    Several tensors may be windows on one piece of memory (a storage), which counts once.
    """

    def __init__(self, model: SmolLM2, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.alive: dict[int, tuple[str, int]] = {}
        self.now: Counter[str] = Counter()
        self.entries: list[Counter[str]] = []
        self.part = STREAM
        self.vocab_size = model.config.vocab_size
        matrices = [tuple(weight.shape) for weight in model.parameters() if weight.ndim == 2]
        self.shapes = {*matrices, *(shape[::-1] for shape in matrices)}
        tables = [*model.parameters(), *model.buffers()]
        states = [t for state in optimizer.state.values() for t in tree_iter(state)]
        for family, tensors in ((WEIGHTS, tables), (MOMENTS, states)):
            for tensor in tensors:
                self.enter(tensor, family)

    def enter(self, tensor: Tensor, family: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = family, storage.nbytes()
            self.now[family] += storage.nbytes()
            weakref.finalize(storage, self._cross_out, key)

    def _cross_out(self, key: int) -> None:
        family, held = self.alive.pop(key)
        self.now[family] -= held

    def family(self, tensor: Tensor) -> str:
        """Say where a new tensor belongs, by its shape, or by the part that is at work."""
        if tuple(tensor.shape) in self.shapes:
            return GRADIENTS if tensor.dtype == torch.float32 else COPIES
        if tensor.ndim and tensor.shape[-1] == self.vocab_size:
            return VOCABULARY
        return self.part

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        if function is torch.ops.prim.device.default:  # a question, no operation
            return results
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self.enter(result, self.family(result))
        self.entries.append(self.now.copy())
        return results


@contextmanager
def _watched(model: SmolLM2, account: _Account, started: list[int]) -> Iterator[None]:
    """Tell the account which part of the model is at work."""

    def enters(part: str) -> Callable[..., None]:
        return lambda *_: setattr(account, "part", part)

    handles = []
    for block in model.model.layers:
        handles += [block.register_forward_pre_hook(
            lambda *_: started.append(len(account.entries)))]  # fmt: skip
        for module, part in ((block.self_attn, ATTENTION), (block.mlp, MLP)):
            handles += [module.register_forward_pre_hook(enters(part)),
                        module.register_forward_hook(enters(STREAM))]  # fmt: skip
    yield
    for handle in handles:
        handle.remove()


def _no_check(*_: Any) -> None:
    """In place of the model's look at the token numbers: there are none."""


def plain_loss(model: SmolLM2, idx: Tensor, targets: Tensor) -> Any:
    """Return the logits and the loss, as the model itself computes them."""
    return model(idx, targets)


def rehearse(
    config: SmolLM2Config,
    B: int,
    T: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    loss: Loss = plain_loss,
    attend: Callable[..., Tensor] | None = None,
    fake: bool = True,
) -> Diary:
    """Go through a training step with AdamW, and keep its diary.

    Args:
        config: the model.
        B: sequences.
        T: tokens in each.
        dtype: of the matrix products.
        loss: how the loss is computed; what it returns is held to the end, as in a training loop.
        attend: another way to compute attention.
        fake: without contents; otherwise with real memory and arithmetic.
    """
    with FakeTensorMode() if fake else torch.random.fork_rng(devices=[]):
        model = SmolLM2(config)
        model._check = _no_check  # type: ignore[assignment, method-assign]
        for block in model.model.layers:
            block.self_attn.attend = attend or block.self_attn.attend
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()  # the moments exist from the second step on
        optimizer.zero_grad()
        idx, targets = torch.zeros(2, B, T, dtype=torch.long).unbind()
        account, started, ends = _Account(model, optimizer), list[int](), list[int]()
        with account, _watched(model, account, started):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                result = loss(model, idx, targets)
            ends.append(len(account.entries))
            (result[1] if isinstance(result, tuple) else result).backward()
            ends.append(len(account.entries))
    held = {family: [entry[family] for entry in account.entries] for family in FAMILIES}
    return Diary(held, (ends[0], ends[1]), started[: config.n_layer])
