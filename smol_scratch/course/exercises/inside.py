"""Checkers for notebook 13, inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
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


@dataclass
class _Copying:
    """What six heads bring where nothing can be copied, and cost where it can: shares of the gain.

    Attributes:
        brought: share of the gain that returns when the six are given what they gathered.
        missed: share of it that is lost when the six are silenced.
    """

    brought: float
    missed: float


@lru_cache(maxsize=1)
def _copying() -> _Copying:
    model = load_pretrained(quiet=True)
    torch.manual_seed(0)  # the checker's frame puts the reader's random numbers back
    half, other = torch.randint(1_000, 40_000, (2, 6, 24))
    twice, fresh = (torch.cat([begin, half], dim=1) for begin in (half, other))
    here = torch.arange(24, 48)
    score = inside.attention_maps(model, twice)[..., here, here - 23].mean((1, 3))
    six = [(i // 9, i % 9) for i in score.flatten().topk(6).indices.tolist()]

    @torch.no_grad()
    def second_half(rows: Tensor) -> float:
        logits, _ = model(rows[:, :-1])
        each = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        return float(each[:, 24:].mean())

    nothing, everything = second_half(fresh), second_half(twice)
    with inside.transplanted(model, twice[:, :-1], six, 24):
        given = second_half(fresh)
    with inside.silenced_heads(model, six):
        silent = second_half(twice)
    gain = nothing - everything
    return _Copying((nothing - given) / gain, (silent - everything) / gain)


@exercise
def check_enough(answer: float) -> str:
    """Expect the share of copying's gain that six heads bring by themselves."""
    if not isinstance(answer, int | float):
        raise Hint(f"{answer!r} is no number; the answer is a share, between 0 and 1")
    if not 0 <= answer <= 1:
        raise Hint(
            f"{answer}: a share of the gain; 0 if nothing of it returns, 1 if all of it does"
        )
    truth, other_draws = _copying(), 0.06
    if abs(answer - truth.brought) < other_draws:
        return (
            f"six heads bring {truth.brought:.2f} of the gain; silenced, they take "
            f"{truth.missed:.2f} of it away. Needed and enough are two measurements"
        )
    if 0.6 < answer < truth.missed + other_draws:
        raise Hint(
            f"{answer} is about what is lost when the six are silenced: how much they are needed. "
            "Now give them to a sequence in which nothing can be copied"
        )
    if abs(answer - (1 - truth.brought)) < other_draws:
        raise Hint(f"{answer} is the share that does not return")
    if answer < 0.05:
        raise Hint(
            "nothing returns if the donor cannot copy either, or if the second halves differ"
        )
    raise Hint(
        f"{answer} is not it. Three losses of the second half decide: nothing to copy, all to "
        "copy, and nothing to copy but with the six given"
    )


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
    if hits < 0.75 * total:
        raise Hint(f"{score}. Print the tokens that carry one: have they something in common?")
    if alarms > (hits + alarms) / 4:
        raise Hint(f"{score}. Too many alarms: what tells those with a peak from the others?")
    return score


_ASKED = {"languages": inside.language_prompts, "opposites": inside.opposite_prompts}


@lru_cache(maxsize=1)
def _fetching() -> dict[str, tuple[int, float, list[float]]]:
    """Return, for each question, the block, its step, and what each of its heads carries."""
    model, found = load_pretrained(quiet=True), {}
    for name, prompts_of in _ASKED.items():
        prompts, answers = prompts_of(load_tokenizer())
        place = prompts.shape[1] - 1
        moved, _ = inside.patched_streams(model, prompts, answers, place)
        steps = [after - before for before, after in pairwise(moved)]
        block = max(range(30), key=steps.__getitem__)
        heads = inside.patched_heads(model, prompts, answers, place, block)
        found[name] = block, steps[block], [mean for mean, _ in heads]
    return found


@exercise
def check_fetched(answer: Mapping[str, tuple[int, float]]) -> str:
    """Expect for both questions the block of the largest step and its strongest head's share."""
    if not isinstance(answer, Mapping) or not set(answer) >= set(_ASKED):
        raise Hint('the answer is a dictionary with "languages" and "opposites"')
    for name, (expected, step, heads) in _fetching().items():
        pair = answer[name]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Hint(f"{name}: {pair!r} is no pair of a block and a share")
        block, share = pair[0], float(pair[1])
        if block == expected + 1:
            raise Hint(f"{name}: {block} is the number of blocks passed *after* the largest step")
        if block != expected:
            raise Hint(
                f"{name}: not block {block!r}. Between which two depths does the answer turn most, "
                "if the last token's vector is exchanged?"
            )
        if abs(share - max(heads)) < 0.03:
            continue
        if abs(share - step) < 0.03:
            raise Hint(f"{name}: {share:.2f} is the step of the whole block; what of one head?")
        if any(abs(share - other) < 0.005 for other in heads):
            raise Hint(f"{name}: the right block, but another head carries more than {share:.2f}")
        raise Hint(f"{name}: the right block, but no head of it carries {share:.2f} of the answer")
    verdict = "one head fetches the language; the opposites have no such head"
    for name in answer.keys() - _ASKED.keys():
        verdict += f". (Nobody but you knows about {name!r}: it is not checked.)"
    return verdict
