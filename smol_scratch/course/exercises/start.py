"""Checkers for notebook 00, the start."""

from __future__ import annotations

from functools import lru_cache

import torch

from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.hub import load_pretrained
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import load_tokenizer


@lru_cache(maxsize=1)
def _model() -> SmolLM2:
    return load_pretrained(quiet=True)


@exercise
def check_certain(answer: str) -> str:
    """Expect a text of at most 15 words after which one token has more than 99 %."""
    if not isinstance(answer, str) or not answer.strip():
        raise Hint("the answer is a text, in quotation marks")
    if (words := len(answer.split())) > 15:
        raise Hint(f"{words} words; 15 are enough, and a long list that repeats is no art")
    if answer != answer.rstrip():
        raise Hint("leave out the space at the end: the next token brings its own")
    tokenizer = load_tokenizer()
    with torch.no_grad():
        logits, _ = _model()(torch.tensor([tokenizer.encode(answer)]))  # (1, 1, V)
    probability, token = logits[0, -1].softmax(-1).max(-1)
    word = repr(tokenizer.decode([int(token)]))
    if probability < 0.99:
        raise Hint(
            f"the most probable token is {word}, with {probability:.0%}. Where does a word, once "
            "begun, leave no choice? In a list, a name, a quotation"
        )
    return f"{word} has {probability:.1%}"
