"""Checkers for notebook 13, inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from smol_scratch.corpus import load_text
from smol_scratch.course import inside
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.evaluation import evenly_spaced
from smol_scratch.hub import load_pretrained
from smol_scratch.tokenizer import load_tokenizer

_GIANT = 5_000  # at a first token it is three times as large or more; later tokens stay far below
_PEAK = 300  # likewise for the smaller peak, after four blocks


@lru_cache(maxsize=4)
def _stream(text: str) -> Tensor:
    """Return the stream of a text after block 11, (T, C)."""
    model, ids = load_pretrained(quiet=True), load_tokenizer().encode(text)
    with torch.no_grad():
        return inside.streams(model, torch.tensor([ids]), until=12)[12, 0]


@exercise
def check_second_giant(answer: str) -> str:
    """Expect a text in which another token than the first carries a giant."""
    if not isinstance(answer, str):
        raise Hint(f"{answer!r} is no text; answer with a string")
    ids = load_tokenizer().encode(answer)
    if not 2 <= len(ids) <= 200:
        raise Hint(f"{len(ids)} tokens; between 2 and 200 of them, please")
    largest = _stream(answer).abs().amax(-1)  # (T,)
    found = [place for place in range(1, len(ids)) if float(largest[place]) > _GIANT]
    if not found:
        place = 1 + int(largest[1:].argmax())
        token = load_tokenizer().decode([ids[place]])
        raise Hint(
            f"no second giant: the largest number of a later token is {largest[place]:,.0f}, at "
            f"{token!r} (position {place}). A first token reads nothing but itself; which other "
            "token could do the same?"
        )
    tokens = ", ".join(f"{load_tokenizer().decode([ids[place]])!r} at {place}" for place in found)
    return f"giants besides the first: {tokens}"


@exercise
def check_transplant(answer: Callable[[Tensor, Tensor, list[int], int], Tensor]) -> str:
    """Expect a function that takes some heads' channels from a donor, from a position on."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(2, 6, 576, generator=generator) for _ in range(2))
    kept = mine.clone()
    for heads, start in (([3], 2), ([8, 0], 4), ([5], 0)):
        expected = mine.clone()
        for head in heads:
            expected[:, start:, 64 * head : 64 * (head + 1)] = theirs[
                :, start:, 64 * head : 64 * (head + 1)
            ]
        found = answer(mine, theirs, heads, start)
        if not torch.equal(mine, kept):
            raise Hint("what the heads gathered was changed in place; make a clone first")
        if found is None or found.shape != mine.shape:
            raise Hint(f"the result must have the shape of what came in, {tuple(mine.shape)}")
        if torch.equal(found, expected):
            continue
        changed = (found != mine).any(0)  # (T, C)
        if changed[:start].any():
            raise Hint(f"positions before {start} changed; only those from there on may")
        if not changed[start:].any(1).all():
            raise Hint(f"with start {start}, positions {start} to the last must all change")
        channels = changed.any(0).nonzero().flatten().tolist()
        if len(channels) != 64 * len(heads):
            raise Hint(
                f"heads {heads}: {len(channels)} channels changed instead of {64 * len(heads)}; "
                "each query head has 64, and they lie together"
            )
        raise Hint(f"heads {heads}: the wrong channels changed, the first of them {channels[0]}")
    return "and with it you can ask whether these heads are enough"


@lru_cache(maxsize=1)
def _peaks() -> list[tuple[list[str], list[int]]]:
    """Return the tokens of excerpts, and where later tokens carry the smaller peak."""
    tokenizer = load_tokenizer()
    rows = evenly_spaced(tokenizer.encode(load_text()), 64, 60)[:, :-1]
    with torch.no_grad():
        largest = inside.streams(load_pretrained(quiet=True), rows, until=4)[4].abs().amax(-1)
    return [
        ([tokenizer.decode([i]) for i in row], [t for t in range(1, 64) if high[t] > _PEAK])
        for row, high in zip(rows.tolist(), largest.tolist(), strict=True)
    ]


@exercise
def check_rule(answer: Callable[[list[str]], list[int]]) -> str:
    """Expect a rule that says which later tokens carry the smaller peak."""
    if not callable(answer):
        raise Hint(f"{answer!r} is no function; write one that takes a list of tokens")
    total = hits = alarms = 0
    for tokens, peaks in _peaks():
        said = answer(list(tokens))
        if not isinstance(said, list | tuple | set) or any(not isinstance(t, int) for t in said):
            raise Hint(f"the rule must return a list of positions, not {said!r}")
        total += len(peaks)
        hits += len(set(said) & set(peaks))
        alarms += len(set(said) - set(peaks) - {0})
    score = f"on 60 excerpts it finds {hits} of {total} peaks, with {alarms} false alarms"
    if hits < 0.6 * total:
        raise Hint(f"{score}. Print the tokens that carry one: have they something in common?")
    if alarms > hits:
        raise Hint(f"{score}. Too many alarms: what tells those with a peak from the others?")
    return score


@lru_cache(maxsize=1)
def _fetching() -> tuple[int, dict[int, list[float]]]:
    """Return the block in which the language arrives, and what each head asked for carries."""
    model, asked = load_pretrained(quiet=True), inside.language_prompts(load_tokenizer())
    moved, _ = inside.patched_streams(model, *asked, place=3)
    steps = [after - before for before, after in pairwise(moved)]
    return max(range(30), key=steps.__getitem__), {}


@exercise
def check_fetching_head(answer: tuple[int, int]) -> str:
    """Expect (block, query head) of what fetches the language from the country."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint(f"{answer!r} is no pair; answer with two numbers, (block, head)")
    block, head = (int(number) for number in answer)
    if not (0 <= block < 30 and 0 <= head < 9):
        raise Hint(f"{(block, head)}: blocks go from 0 to 29, query heads from 0 to 8")
    expected, shares = _fetching()
    if block not in shares:
        asked = inside.language_prompts(load_tokenizer())
        found = inside.patched_heads(load_pretrained(quiet=True), *asked, place=3, layer=block)
        shares[block] = [mean for mean, _ in found]
    share = f"head {head} of block {block} carries {shares[block][head]:.2f} of the answer"
    if block != expected:
        raise Hint(f"{share}. After how many blocks does the last token's vector turn the answer?")
    if shares[block][head] < max(shares[block]):
        raise Hint(f"{share}: the right block, but another head carries more")
    return share
