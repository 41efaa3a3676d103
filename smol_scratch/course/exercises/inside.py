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

_TEXT = "First Citizen:"
_REPEATED = " the" * 6 + " of France is"


@lru_cache(maxsize=2)
def _stream(text: str) -> Tensor:
    """Return the stream of a text after block 11, (T, C)."""
    model, ids = load_pretrained(quiet=True), load_tokenizer().encode(text)
    with torch.no_grad():
        return inside.streams(model, torch.tensor([ids]), until=12)[12, 0]


@exercise
def check_positions(answer: Any) -> str:
    """Expect the positions that carry a giant in a text that begins with one token six times."""
    if isinstance(answer, int):
        answer = [answer]
    found = (_stream(_REPEATED).abs().amax(-1) > 5_000).nonzero().flatten().tolist()
    given = sorted(int(place) for place in answer)
    if given == [0]:
        raise Hint("that would be so if the place counted. Look at what the second token reads")
    if given == [0, 1]:
        raise Hint("and why not the third? It averages over values, and which are these?")
    if given != found:
        raise Hint(f"{given} is not it; what is a weighted average of equal values?")
    return "neither the word nor the place counts, but having read nothing except oneself"


@exercise
def check_group(answer: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Expect a function that exchanges the values of one key-value group."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(4, 192, generator=generator) for _ in range(2))
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
        changed = (found != mine).any(0)  # (192,)
        if int(changed.sum()) != 64:
            raise Hint(
                f"{int(changed.sum())} channels changed; one group has 64, and they lie together"
            )
        if not torch.equal(found, expected):
            raise Hint(f"for group {group} the wrong channels changed; which are its 64?")
    return "and whoever exchanges them changes what three query heads read, not one"


def _taken(block: int) -> Tensor:
    """Return what each hidden channel of a block's MLP adds to the giant number, (hidden,)."""
    model, ids = load_pretrained(quiet=True), load_tokenizer().encode(_TEXT)
    down: Any = model.model.layers[block].mlp.down_proj
    hidden = inside.inputs_of(model, down, torch.tensor([ids]))[0, 0]
    return (hidden * down.weight[507]).detach()


@exercise
def check_eraser(answer: tuple[int, int]) -> str:
    """Expect (block, hidden channel) of what takes away most of the giant."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint(f"{answer!r} is no pair; answer with two numbers, (block, channel)")
    block, channel = (int(number) for number in answer)
    if not (0 <= block < 30 and 0 <= channel < 1536):
        raise Hint(f"{(block, channel)}: blocks go from 0 to 29, hidden channels from 0 to 1535")
    if block == 11:
        raise Hint("block 11 writes the giant; look for what takes it away")
    shares = _taken(block)
    share, least = float(shares[channel]), int(shares.argmin())
    if block == 28 and channel != least:
        raise Hint(f"the right block, but this channel adds {share:,.0f}; another takes far more")
    if block == 29:
        raise Hint(
            "that block takes what is left. The figure counts blocks passed: the fall from 28 to "
            "29 is the work of block 28"
        )
    if (block, channel) != (28, least):
        raise Hint(f"it adds {share:,.0f}. After how many blocks does the curve begin to fall?")
    return f"it adds {share:,.0f}, more than half of the giant with the opposite sign"


@exercise
def check_amplified(answer: float) -> str:
    """Expect how many times larger the other numbers are after the norm, without the giant."""
    vector = _stream(_TEXT)[0]  # (C,)
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
