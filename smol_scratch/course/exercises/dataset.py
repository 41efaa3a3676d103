"""Checkers for notebook 07, the text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from smol_scratch.corpus import load_text
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.data import DataLoaderLite
from smol_scratch.tokenizer import SmolLM2Tokenizer, load_tokenizer, split_words


@exercise
def check_place(answer: tuple[int, int]) -> str:
    """Expect (position, passes) after 5,000 batches of 4 × 256 from 341,094 tokens."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint("two numbers in brackets are wanted: (position, passes)")
    loader = DataLoaderLite(torch.arange(341_094), 4, 256)
    for _ in range(5_000):
        loader.next_batch()
    position, passes = answer
    if passes != loader.passes:
        raise Hint(f"{passes} passes is not it: how many batches make a pass, and what is left?")
    if position == 5_000 * 1024 % 341_094:
        raise Hint(
            f"{position} would be right if a batch could run over the end of the text. What is "
            "left at the end and is less than a batch is never read"
        )
    if position != loader.position:
        raise Hint(
            f"the passes are right, the position {position} is not. It counts tokens, not batches"
        )
    return "fifteen passes, and five batches into the sixteenth"


@exercise
def check_batch_at(answer: Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]) -> str:
    """Expect a function (tokens, B, T, k) -> (x, y), the k-th batch over all passes, from 0."""
    for n_tokens, B, T in ((40, 2, 3), (25, 2, 3), (24, 2, 3), (7, 1, 2)):
        tokens = torch.randint(1000, (n_tokens,), generator=torch.Generator().manual_seed(7))
        loader = DataLoaderLite(tokens, B, T)
        for k in range(3 * loader.batches_per_pass + 1):
            expected = loader.next_batch()
            found = answer(tokens, B, T, k)
            case = f"{n_tokens} tokens, B = {B}, T = {T}, batch {k}"
            if not isinstance(found, tuple) or len(found) != 2:
                raise Hint("return two tensors: x and y")
            for name, ours, theirs in zip("xy", found, expected, strict=True):
                if ours.shape != theirs.shape:
                    raise Hint(f"{case}: {name} has shape {tuple(ours.shape)}, not {(B, T)}")
            if not torch.equal(found[0], expected[0]):
                late = k >= loader.batches_per_pass
                raise Hint(
                    f"{case}: x is another part of the text"
                    + (". How many batches make a pass? The last token is only predicted" * late)
                )
            if not torch.equal(found[1], expected[1]):
                raise Hint(f"{case}: x is right; y must be the token after each of x")
    return "no state at all: the number of the step says which batch it is"


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
