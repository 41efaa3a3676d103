"""Checkers for notebook 03, grouped-query attention."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from smol_scratch.cache import KVCache
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure import gqa as measure
from smol_scratch.hub import load_pretrained
from smol_scratch.model import causal_mask
from smol_scratch.tokenizer import load_tokenizer


@exercise
def check_cache_bytes(answer: float) -> str:
    """Expect the bytes that Llama 3 8B's cache takes per token."""
    config = SmolLM2Config(n_layer=32, n_head=32, n_kv_head=8, head_dim=128, n_embd=4096)
    right = KVCache(config, max_length=1, dtype=torch.bfloat16, device="meta").nbytes
    if answer == right / 2:
        raise Hint("half of it: a key and a value are stored, or a number takes two bytes")
    if answer == 4 * right:
        raise Hint("the query heads are not stored; count the key-value heads")
    if answer == 2 * right:
        raise Hint("twice too much: bfloat16 takes two bytes per number")
    if answer == right / 32:
        raise Hint("that is one layer; every layer has a cache of its own")
    if answer != right:
        raise Hint(f"{answer} is not it: layers · 2 · key-value heads · channels · 2 bytes")
    return "an eighth of a megabyte per token, and a gigabyte for 8,192 of them"


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
        keys, values = (  # a value may have another width than a key
            torch.randn(n_key, width, generator=generator, dtype=torch.double) for width in (16, 12)
        )
        expected = torch.softmax(keys @ q / 4, dim=0) @ values
        # They can be walked through once, and have no length.
        found = answer(q, _passing(keys, []), _passing(values, []))
        if not isinstance(found, Tensor) or found.shape != (12,):
            raise Hint("the result must be one vector, as wide as a value; here of shape (12,)")
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


_WINDOW, _SINKS = 6, 3


def mystery_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to a window of the last tokens and to the first ones: (1, 1, T, D) each."""
    allowed = causal_mask(q.shape[2], k.shape[2])
    near = allowed & ~allowed.tril(-_WINDOW)
    near[:, :_SINKS] |= allowed[:, :_SINKS]
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~near, float("-inf")), dim=-1) @ v


@exercise
def check_mystery(answer: Mapping[str, int]) -> str:
    """Expect the window and the number of sinks of ``mystery_attention``."""
    if not isinstance(answer, Mapping) or set(answer) != {"window", "sinks"}:
        raise Hint('a dictionary with "window" and "sinks" is wanted')
    window, sinks = int(answer["window"]), int(answer["sinks"])
    if sinks == 0:
        raise Hint("ask a late query whether it still sees the very first token")
    if window == _WINDOW + _SINKS:
        raise Hint("the sinks do not belong to the window: it moves, they stay")
    if window == _WINDOW - 1:
        raise Hint("the window holds the token itself")
    if sinks != _SINKS:
        raise Hint(f"not {sinks} sinks; take a text long enough that window and sinks part")
    if window != _WINDOW:
        raise Hint(f"not a window of {window}; count what the last of many tokens sees")
    return "how a conversation goes on for ever with a cache that does not grow"


HEADS = {"before": (16, 0), "first": (18, 8), "after": (17, 5), "itself": (11, 6)}


@cache
def _horse() -> dict[str, dict[str, float]]:
    """Return how probable "horse" is with each head at work, set to zero, and set to its mean."""
    model = load_pretrained(quiet=True).requires_grad_(False)
    line, answer = measure.answer_and_line(load_tokenizer())
    streams = measure.stream(model, line)
    found: dict[str, dict[str, float]] = {"zero": {}, "mean": {}}
    for name, (layer, head) in HEADS.items():
        mean = measure.mean_output(model, line, layer, head, first=True)
        for kind, instead in (("zero", 0.0), ("mean", mean)):
            with measure.silenced(model, layer, head, instead):
                logits = measure.logits_from(model, layer, streams[layer])[0, -1]
            found[kind][name] = logits.softmax(-1)[answer].item()
    return found


@exercise
def check_means(answer: Mapping[str, float]) -> str:
    """Expect P(horse) with each of four heads set to its mean output on the line."""
    if not isinstance(answer, Mapping) or set(answer) != set(HEADS):
        raise Hint(f"a dictionary with {', '.join(HEADS)} is wanted")
    numbers = {name: float(value) for name, value in answer.items()}
    if any(not 0 <= value <= 1 for value in numbers.values()):
        raise Hint("a probability lies between 0 and 1: take the softmax of the last logits")
    if all(abs(numbers[name] - p) < 0.0011 for name, p in _horse()["zero"].items()):
        raise Hint("this is what zeros do; put the mean of the head's output in their place")
    if max(numbers.values()) - min(numbers.values()) < 0.0011:
        raise Hint("the four are the same: is the hook at work, and removed before the next head?")
    wrong = [n for n, p in _horse()["mean"].items() if abs(numbers[n] - p) >= 0.0011]
    if wrong:
        raise Hint(
            f"{', '.join(wrong)}: not it. The mean goes over the tokens (dim=1) of this head's 64 "
            "channels alone, and each head is treated with the other three at work"
        )
    return "two of the four cost this line nothing once they may say the same everywhere"
