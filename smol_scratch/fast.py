"""Quicker forms of pieces of the model, for training on a CPU.

``model.py`` is the model; nothing here changes what it means. Each piece stands for a plain form,
gives the same up to rounding (``tests/test_fast.py``), and is taken only where it was measured to
pay, in time or in memory: ``accelerate`` puts them in, ``restore`` takes them out. On a GPU the
plain forms stay, since PyTorch has fast kernels for them there.

What each is worth: ``python -m benchmarks.bench_training --ladder``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from smol_scratch.arguments import explained
from smol_scratch.cache import KVCache
from smol_scratch.model import GroupedQueryAttention, RMSNorm, SmolLM2, causal_mask, fast_attention
from smol_scratch.wrappers import unwrapped

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors, and say whether that took effect.

    By default glibc takes a block of more than 32 MiB (at first, of 128 KiB) from the kernel and
    gives it back when it is freed, and cuts free memory off the end of the heap. A training step
    frees and takes again the same few GB, and each time the kernel must zero every page of 4 KiB at
    its first touch: a fault a page, some hundred thousand of them a step. Kept, the pages are
    there. The process then holds its peak until it ends, and the setting cannot be undone.

    False where there is no glibc (macOS, Windows, musl), or where it refuses the threshold.

    Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (M_MMAP_THRESHOLD, 1 << 30),  # bytes; larger than any tensor here: all go on the heap
        (M_TRIM_THRESHOLD, -1),  # never give the heap's end back
        (M_TOP_PAD, 64 << 20),  # grow the heap by 64 MiB more than asked: fewer calls
    )
    taken = [mallopt(name, value) for name, value in settings]  # 1 each, where it did
    return all(taken)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute the same as ``explicit_attention``, with one product for all heads of a group.

    The H/G query heads of a group share their keys, so their queries are rows of one matrix:
    (H/G · T, D) times (D, S). No key or value is repeated; scale and mask are part of the product.
    The (T, S) weights are stored, which is what a short T can afford.

    The scores have the type of ``q``. PyTorch's softmax turns 16 bits into float32 as it reads and
    rounds only its result, so this is ``softmax(scores.float())`` without the copies.
    """
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    ahead = ~causal_mask(T, S, q.device)
    penalty = torch.zeros_like(ahead, dtype=q.dtype).masked_fill(ahead, float("-inf"))  # (T, S)
    scores = torch.baddbmm(  # (B*G, H/G*T, S)
        penalty.repeat(H // G, 1),
        q.reshape(B * G, H // G * T, D),
        k.flatten(0, 1).transpose(1, 2),
        alpha=D**-0.5,
    )
    weights = F.dropout(F.softmax(scores, dim=-1), dropout_p)  # (B*G, H/G*T, S)
    return torch.bmm(weights, v.flatten(0, 1)).view(B, H, T, D)


# The stored weights grow with the square of the length: 4 sequences of 512 hold 0.6 GB in the
# 135M model, of 1,024 already 2.3 GB, while the gain over fast_attention shrinks.
LONGEST_GROUPED = 512


def attention_by_size(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Take ``grouped_attention`` for short bfloat16 on a CPU, else ``fast_attention``.

    In float32 the two take equally long, and the latter stores less.
    """
    short = k.shape[2] <= LONGEST_GROUPED
    pays = q.device.type == "cpu" and q.dtype == torch.bfloat16 and short
    return (grouped_attention if pays else fast_attention)(q, k, v, dropout_p)


class _RMSNormFunction(torch.autograd.Function):
    r"""RMSNorm with its gradient written out.

    With r = 1 / sqrt(mean(x²) + eps) for one token, the output is y_i = w_i x_i r. Since
    dr/dx_j = -r³ x_j / C, the gradient g of y gives

        dw_i = sum over tokens of g_i x_i r
        dx_j = r w_j g_j - x_j (r³ / C) sum_i(w_i g_i x_i)

    Kept for it: x and r, one number a token. Autograd would keep every step's result.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        r = torch.rsqrt(length.square() / x.shape[-1] + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, r)
        y = weight * (wide * r).type_as(x)
        return y if dtype is None else y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, r = ctx.saved_tensors  # type: ignore[attr-defined]
        C = x.shape[-1]
        wide, g, w = x.to(r.dtype), g.to(r.dtype), weight.to(r.dtype)
        gx = g * wide  # (..., C)
        dw = (gx * r).view(-1, C).sum(0)  # (C,)
        shared = gx.mul_(w).sum(-1, keepdim=True) * r**3  # (..., 1)
        dx = (g * w).mul_(r).addcmul_(wide, shared, value=-1 / C)  # (..., C)
        return dx.type_as(x), dw.type_as(weight), None, None


class FastRMSNorm(RMSNorm):
    """An ``RMSNorm`` whose gradient is written by hand; same weight, same name, same result.

    Under autocast the result already has the products' type. Only products read it, and each of
    them would round it to that type for itself: queries, keys and values thus share one copy.
    """

    @explained
    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (..., C) -> (..., C)."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return _RMSNormFunction.apply(x, self.weight, self.eps, dtype)


class _CrossEntropyFunction(torch.autograd.Function):
    r"""Mean cross-entropy with its gradient written out, a few tokens at a time.

    With p = softmax(z), a token with logits z and target y has the loss -log p_y, so that

        dz_v = p_v - (1 where v = y, else 0)

    over the number of tokens that count. Kept for it: the logits as they are, in 16 bits. The plain
    form makes float32 tensors of their size, for the logits, the log-softmax and the gradient, of
    0.2 GB each at 1,024 tokens; here there is one for ``ROWS`` tokens at a time.
    """

    ROWS = 32  # 6 MB of float32 at V = 49,152: stays in the processor's cache
    IGNORED = -100  # as in F.cross_entropy

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, targets: Tensor) -> Tensor:
        rows, wide = _CrossEntropyFunction.ROWS, torch.promote_types(logits.dtype, torch.float32)
        counts = targets != _CrossEntropyFunction.IGNORED  # (N,)
        share = counts.to(wide) / counts.sum()  # (N,): of each token in the mean
        pairs = zip(logits.split(rows), targets.split(rows), strict=True)
        losses = [F.cross_entropy(z.to(wide), y, reduction="none") for z, y in pairs]
        ctx.save_for_backward(logits, targets, share)
        return (torch.cat(losses) * share).sum()  # a product would be rounded under autocast

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        logits, targets, share = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = torch.empty_like(logits)  # (N, V)
        parts = (
            tensor.split(_CrossEntropyFunction.ROWS)
            for tensor in (gradient, logits, targets.clamp(min=0), share * g)
        )
        for into, z, y, weight in zip(*parts, strict=True):
            p = F.softmax(z, dim=-1, dtype=share.dtype)  # (rows, V)
            p[torch.arange(len(y), device=y.device), y] -= 1
            into.copy_(p.mul_(weight[:, None]))
        return gradient, None


class FastSmolLM2(SmolLM2):
    """A ``SmolLM2`` that computes its loss from 16-bit logits without copies in float32."""

    @explained
    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Score as ``SmolLM2.forward`` does; the same arguments, results and errors."""
        self._check(idx, targets, cache)
        logits, _ = super().forward(idx, cache=cache)  # (B, T, V)
        if targets is None:
            return logits, None
        of_token, y = logits.flatten(0, 1), targets.flatten()  # (B*T, V), (B*T,)
        if of_token.dtype in (torch.bfloat16, torch.float16):
            return logits, _CrossEntropyFunction.apply(of_token, y)
        return logits, F.cross_entropy(of_token.float(), y)


def accelerate(model: SmolLM2, device: torch.device | None = None) -> list[str]:
    """Put the quicker forms into a model whose weights lie on a CPU, and say which were put in.

    Parameters, their names and what is saved stay as they are. On another device nothing is done:
    the plain forms are the fast ones there. Memory is a matter of the process, not of the model:
    see ``keep_freed_memory``.

    Args:
        model: changed in place.
        device: where its weights will lie, when they are nowhere yet.
    """
    if (device or next(model.parameters()).device).type != "cpu":
        return []
    for module in model.modules():
        if isinstance(module, GroupedQueryAttention):
            module.attend = attention_by_size
        elif type(module) is RMSNorm:
            module.__class__ = FastRMSNorm
        elif type(module) is SmolLM2:
            module.__class__ = FastSmolLM2
    return [
        f"attention: heads of a group in one product, for bfloat16 up to {LONGEST_GROUPED} tokens",
        "RMSNorm: gradient written by hand",
        "cross-entropy: gradient written by hand, for 16-bit logits",
    ]


def restore(model: SmolLM2) -> None:
    """Put the plain forms back: the opposite of ``accelerate``."""
    for module in model.modules():
        if isinstance(module, GroupedQueryAttention):
            module.attend = fast_attention
        elif type(module) is FastRMSNorm:
            module.__class__ = RMSNorm  # type: ignore[assignment]
        elif type(module) is FastSmolLM2:
            module.__class__ = SmolLM2  # type: ignore[assignment]


def require_compiler() -> None:
    """Check that ``torch.compile`` finds the C++ compiler that it needs.

    Raises:
        ValueError: when there is none, with the ways out.
    """
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["cl"] if os.name == "nt" else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise ValueError(
            f"--compile: needs a C++ compiler, and {' or '.join(names)} is not to be found; "
            "install one, or leave --compile out"
        )


def compile_blocks(model: SmolLM2) -> None:
    """Have each block compiled at its first call; the code of one serves all of them.

    Parameter names stay. The first step takes some 20 s longer, so this is for long runs.
    """
    for block in unwrapped(model).model.layers:  # type: ignore[union-attr]
        block.compile()
