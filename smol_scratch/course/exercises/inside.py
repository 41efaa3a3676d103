"""Checkers for notebook 13, inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from smol_scratch.course import inside
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.hub import load_pretrained
from smol_scratch.tokenizer import load_tokenizer

_TEXT = "First Citizen:\nBefore we proceed any further, hear me speak."


@lru_cache(maxsize=1)
def _streams() -> Tensor:
    """Return the stream of a text and of the same text behind one more token, after block 11."""
    model, ids = load_pretrained(quiet=True), load_tokenizer().encode(_TEXT)
    with torch.no_grad():
        return inside.streams(model, torch.tensor([[*ids], [1, *ids[:-1]]]))[12]  # (2, T, C)


@exercise
def check_positions(answer: Any) -> str:
    """Expect the positions that carry a giant when one more token stands in front."""
    if isinstance(answer, int):
        answer = [answer]
    found = (_streams()[1].abs().amax(-1) > 5_000).nonzero().flatten().tolist()
    given = sorted(int(place) for place in answer)
    if given == [1]:
        raise Hint(
            "the old first token has moved to position 1. Is it the token that the two channels "
            "know, or the place?"
        )
    if given == [0, 1]:
        raise Hint("one of the two can attend to a token before it, and so stays what it is")
    if given != found:
        raise Hint(f"{given} is not it; think of which tokens can attend only to themselves")
    return "the place counts, not the token: only there is nothing else to attend to"


@exercise
def check_group(answer: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Expect a function that exchanges the values of one key-value group."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(2, 4, 192, generator=generator) for _ in range(2))
    kept = mine.clone()
    for group in range(3):
        expected = mine.clone()
        expected[..., 64 * group : 64 * (group + 1)] = theirs[..., 64 * group : 64 * (group + 1)]
        found = answer(mine, theirs, group)
        if not torch.equal(mine, kept):
            raise Hint("the values that came in were changed; make a clone first")
        if found is None or found.shape != mine.shape:
            raise Hint(f"the result must have the shape of the values, {tuple(mine.shape)}")
        if torch.equal(found, theirs):
            raise Hint("all three groups were exchanged; only one of them is asked for")
        changed = (found != mine).any(0).any(0)  # (192,)
        if int(changed.sum()) != 64:
            raise Hint(
                f"{int(changed.sum())} channels changed; one group has 64, and they lie together"
            )
        if not torch.equal(found, expected):
            raise Hint(f"for group {group} the wrong channels changed; which are its 64?")
    return "and whoever exchanges them changes what three query heads read, not one"


@exercise
def check_amplified(answer: float) -> str:
    """Expect how many times larger the other numbers are after the norm, without the giant."""
    vector = _streams()[0, 0]  # (C,)
    rest = vector.clone()
    rest[507] = 0
    factor = float(vector.norm() / rest.norm())
    if abs(answer * factor - 1) < 0.1:
        raise Hint("the other way round: are the other numbers larger or smaller afterwards?")
    if abs(answer - float(vector[507])) < 0.1 * abs(float(vector[507])):
        raise Hint("that is the giant itself. What does the norm divide by, before and after?")
    if abs(answer / factor - 1) > 0.1:
        raise Hint(
            f"{answer:.3g} is not it. RMSNorm divides by the root mean square of all 576 numbers: "
            "compute it with the giant and without"
        )
    return "the norm turns the rest up by that much: a vector that no later block has ever seen"
