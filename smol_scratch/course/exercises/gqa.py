"""Checkers for notebook 03, grouped-query attention."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import (
    GroupedQueryAttention,
    RotaryPositionalEmbedding,
    causal_mask,
    explicit_attention,
)


@exercise
def check_silent_heads(answer: Collection[int]) -> str:
    """Expect the query heads whose output is zero when value head 1 of 3 holds zeros."""
    generator = torch.Generator().manual_seed(31)
    q = torch.randn(1, 9, 5, 8, generator=generator)
    k, v = (torch.randn(1, 3, 5, 8, generator=generator) for _ in "kv")
    v[:, 1] = 0
    y = explicit_attention(q, k, v)  # (1, 9, 5, 8)
    silent = {h for h in range(9) if (y[0, h] == 0).all()}
    if not isinstance(answer, list | tuple | set | range):
        raise Hint("answer with a list of the numbers of query heads, for instance [0, 8]")
    given = {int(head) for head in answer}
    if given == set(range(1, 9, 3)):
        raise Hint(
            "that is every third head, as if the key-value heads were dealt out in turn; look at "
            "the picture of the groups again"
        )
    if len(given) != len(silent):
        raise Hint(
            f"nine query heads share three value heads, so it cannot be {len(given)} of them"
        )
    if given != silent:
        raise Hint("the right number of heads, but the heads are counted from 0; which is group 1?")
    return "neighbouring query heads share a key-value head, and fall silent together"


def _passing(rows: Tensor, alive: list[weakref.ref[Tensor]]) -> Iterator[Tensor]:
    """Give one row after another, and notice when they are kept."""
    for row in rows:
        if sum(kept() is not None for kept in alive) > 3:
            raise Hint(
                "your function keeps the keys or values that it has walked past; of a million of "
                "them it would have to keep a million"
            )
        row = row.clone()
        alive.append(weakref.ref(row))
        yield row


@exercise
def check_streamed(answer: Callable[[Tensor, Iterable[Tensor], Iterable[Tensor]], Tensor]) -> str:
    """Expect a function (q, keys, values) -> y that walks once through keys and values."""
    generator = torch.Generator().manual_seed(32)
    for n_key, size in ((1, 1.0), (7, 1.0), (50, 1.0), (50, 1000.0)):
        q = size * torch.randn(16, generator=generator, dtype=torch.double)
        keys, values = (
            torch.randn(n_key, 16, generator=generator, dtype=torch.double) for _ in "kv"
        )
        expected = torch.softmax(keys @ q / 4, dim=0) @ values
        # They can be walked through once, and have no length.
        found = answer(q, _passing(keys, []), _passing(values, []))
        if not isinstance(found, Tensor) or found.shape != q.shape:
            raise Hint(f"the result must be one vector of shape {tuple(q.shape)}")
        rounding = 1e-9 if found.dtype == torch.double else 1e-3
        found = found.double()
        if torch.allclose(found, expected, atol=rounding):
            continue
        if size > 1 and not found.isfinite().all():
            raise Hint(
                "right for small scores, but e to the power of a large score does not fit into a "
                "float: keep the largest score so far, and subtract it before exp"
            )
        if torch.allclose(found, torch.softmax(keys @ q, dim=0) @ values, atol=rounding):
            raise Hint("this is attention without the division of the scores by √D")
        raise Hint(
            f"wrong for {n_key} keys. When a new largest score turns up, everything summed so far "
            "was measured against the old one: multiply it by exp(old - new)"
        )
    return "the whole softmax, with three things in memory: a maximum, a sum and a vector"


def _windowed(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Attend to oneself and the three tokens before."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    allowed = causal_mask(q.shape[2], k.shape[2])
    allowed = allowed & ~allowed.tril(-4)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1) @ v


@exercise
def check_reach(answer: int) -> str:
    """Expect how many tokens back three layers with a window of four can reach."""
    config = SmolLM2Config(
        block_size=32, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, init_std=0.3
    )
    generator = torch.Generator().manual_seed(33)
    rope = RotaryPositionalEmbedding(8, 32)
    x = torch.randn(1, 24, 16, generator=generator, requires_grad=True)
    y = x
    for _ in range(3):
        layer = GroupedQueryAttention(config, rope)
        layer.attend = _windowed
        for weight in layer.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / 4
        y = y + layer(y)
    y[0, -1].sum().backward()
    assert x.grad is not None
    reach = 23 - int(torch.nonzero(x.grad[0].abs().sum(-1))[0])
    if answer == 3:
        raise Hint("that is the reach of one layer; what the token before has gathered counts too")
    if answer in (4, 12, reach + 1):
        raise Hint("the window of four holds the token itself: how far back is its far end?")
    if answer != reach:
        raise Hint(f"{answer} is not what a gradient shows; how far does each layer add?")
    return "what one layer gathers, the next passes on: reach adds up over the layers"
