"""Checkers for notebook 07, the text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from smol_scratch.corpus import load_text
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.data import DataLoaderLite
from smol_scratch.tokenizer import SmolLM2Tokenizer, load_tokenizer, split_words


@exercise
def check_place(answer: tuple[int, int]) -> str:
    """Expect (position, passes) after 5,000 batches of 4 × 256 and then 200 of 8 × 256."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint("two numbers in brackets are wanted: (position, passes)")
    tokens = torch.arange(341_094)
    small, large = DataLoaderLite(tokens, 4, 256), DataLoaderLite(tokens, 8, 256)
    for _ in range(5_000):
        small.next_batch()
    large.load_state_dict(small.state_dict())
    for _ in range(200):
        large.next_batch()
    position, passes = answer
    if tuple(answer) == (small.position, small.passes):
        raise Hint("that is where the first 5,000 batches end. Now 200 of 8 × 256 follow")
    if passes != large.passes:
        raise Hint(
            f"{passes} passes is not it. How many batches make a pass, and how many of the larger "
            "ones are left of the sixteenth?"
        )
    if position in ((small.position + 200 * 2048) % 341_094, (5_000 * 1024 + 200 * 2048) % 341_094):
        raise Hint(
            f"{position} would be right if a batch could run over the end of the text. What is "
            "left at the end and is less than a batch is never read"
        )
    if position != large.position:
        raise Hint(
            f"the passes are right, the position {position} is not. It counts tokens, and each "
            "pass begins at 0"
        )
    return "into the seventeenth pass; a position outlives a change of the batch"


@exercise
def check_smoothed(answer: Callable[[Counter[str], str, float, float], float]) -> str:
    """Expect a function (after, token, shorter, d) -> the formula's probability."""
    shorter = {"crown": 0.1, "horse": 0.25, "lord": 0.3, "love": 0.15, "men": 0.2}
    seen = Counter({"lord": 4, "love": 3, "horse": 2, "crown": 1})
    for d in (0.75, 0.5):
        case = f"lord 4 times, love 3, horse 2, crown 1, and d = {d}"
        found = {token: _number(answer(Counter(seen), token, p, d)) for token, p in shorter.items()}
        freed = 4 * d / 10
        if not math.isclose(found["men"], freed * shorter["men"]):
            if math.isclose(found["men"], freed * shorter["men"] - d / 10):
                raise Hint(f"{case}: *men* was never seen here; its count must not fall below 0")
            raise Hint(
                f"{case}: *men* was never seen here. All it gets is its part of what is freed"
            )
        for token, p in shorter.items():
            expected = (max(seen[token] - d, 0) + 4 * d * p) / 10
            if not math.isclose(found[token], expected):
                raise Hint(
                    f"{case}: *{token}* gets {found[token]:.3f}, and all of them together "
                    f"{sum(found.values()):.3f}. It must be the count less d, and its part of what "
                    "is freed"
                )
    try:
        new = _number(answer(Counter(), "lord", 0.3, 0.75))
    except ZeroDivisionError:
        raise Hint("a context that was never seen has total 0: what then?") from None
    if not math.isclose(new, 0.3):
        raise Hint("a context that was never seen knows nothing: the shorter table alone answers")
    return "seen or not, the probabilities of all tokens add up to 1"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"return one number, the probability, not {value!r:.60}") from None


@exercise
def check_batch_at(
    answer: Callable[[Tensor, int, int, int, int, int], tuple[Tensor, Tensor]],
) -> str:
    """Expect a function (tokens, B, T, k, rank, world_size) -> (x, y), what a rank reads."""
    for n_tokens, B, T, world_size in ((40, 2, 3, 1), (25, 2, 3, 2), (24, 2, 3, 1), (29, 1, 3, 3)):
        tokens = torch.randint(1000, (n_tokens,), generator=torch.Generator().manual_seed(7))
        for rank in range(world_size):
            loader = DataLoaderLite(tokens, B, T, rank=rank, world_size=world_size)
            for k in range(3 * loader.batches_per_pass + 1):
                found, expected = answer(tokens, B, T, k, rank, world_size), loader.next_batch()
                case = f"{n_tokens} tokens, B = {B}, T = {T}, step {k}, rank {rank} of {world_size}"
                _check_batch(found, expected, case, k >= loader.batches_per_pass)
    return "no state at all: the number of the step says what each process reads"


def _check_batch(
    found: object, expected: tuple[Tensor, Tensor], case: str, later_pass: bool
) -> None:
    if not isinstance(found, tuple) or len(found) != 2:
        raise Hint("return two tensors: x and y")
    for name, ours, theirs in zip("xy", found, expected, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{tuple(ours.shape)}, not {tuple(theirs.shape)}"
            raise Hint(f"{case}: {name} has shape {shapes}")
    if not torch.equal(found[0], expected[0]):
        why = " How many steps make a pass? The last token is only predicted" * later_pass
        raise Hint(f"{case}: x is another part of the text.{why}")
    if not torch.equal(found[1], expected[1]):
        raise Hint(f"{case}: x is right; y must be the token after each of x")


@cache
def _tokenizer() -> SmolLM2Tokenizer:
    return load_tokenizer()


def _fewest_pieces(word: str) -> int:
    """Return into how few entries of the vocabulary a word of ASCII characters can be cut."""
    backend = _tokenizer().backend
    written = word.replace(" ", "Ġ").replace("\n", "Ċ")
    fewest = [0]
    for end in range(1, len(written) + 1):
        starts = [s for s in range(end) if backend.token_to_id(written[s:end]) is not None]
        fewest.append(min(fewest[s] + 1 for s in starts))
    return fewest[-1]


@exercise
def check_greedy(answer: str) -> str:
    """Expect a word of the text that BPE cuts into more pieces than the vocabulary allows."""
    if not isinstance(answer, str):
        raise Hint("a word is wanted, as a string, with the space before it where it has one")
    if answer not in set(split_words(load_text())):
        raise Hint(f"{answer!r} is none of the words that `split_words` cuts the text into")
    pieces, fewest = len(_tokenizer().encode(answer)), _fewest_pieces(answer)
    if pieces == fewest:
        raise Hint(f"{answer!r} becomes {pieces} token(s), and no cut into fewer exists")
    return f"{pieces} tokens where {fewest} would do: the order of the merges decides, not the sum"
