"""Checkers for notebook 06, the assembled model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.hub import to_transformers
from smol_scratch.model import SmolLM2


@exercise
def check_rows(answer: tuple[int, int, int, int]) -> str:
    """Expect how many rows of the embedding's gradient are not zero, for four losses.

    Untied, if all predictions count, if the last one does, if the first one does; and tied, if the
    first one does. The text is 12 tokens long, 9 of them different; the vocabulary has 49,152.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 4:
        raise Hint("four numbers in brackets are wanted: (untied: all, last, first; tied: first)")
    idx = torch.tensor([[5, 6, 7, 5, 8, 9, 10, 7, 11, 12, 13, 5]])  # 9 different tokens
    hints = (
        "which rows does looking up touch, and how often is a row counted that is read twice?",
        "the last place attends to the whole text before it",
        "the first prediction cannot see what comes later",
        "the table is the head too: which rows take part in the softmax of a single prediction?",
    )
    every, last, first = slice(None), slice(-1, None), slice(0, 1)
    cases = ((False, "all", every), (False, "the last", last), (False, "the first", first),
             (True, "the first", first))  # fmt: skip
    for given, (tied, which, counts), hint in zip(answer, cases, hints, strict=True):
        torch.manual_seed(7)
        model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1, tie_embeddings=tied))
        targets = torch.full_like(idx, -100)
        targets[:, counts] = idx[:, counts] + 100
        _, loss = model(idx, targets)
        assert loss is not None
        loss.backward()
        gradient = model.model.embed_tokens.weight.grad  # (V, C)
        if given != int(gradient.ne(0).any(dim=-1).sum()):
            raise Hint(f"{'tied' if tied else 'untied'}, {which}: {given} is not it; {hint}")
    return "the lookup moves the rows that a prediction could see, the head every row there is"


@exercise
def check_first_losses(answer: tuple[float, float]) -> str:
    """Expect the first loss of a fresh GPT-2 small, and the std of a SmolLM2 that begins at 12.80.

    GPT-2 small has 50,257 tokens and 768 channels, and here a standard deviation of 0.02.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint("two numbers in brackets are wanted: (first loss, standard deviation)")
    loss, std = (float(value) for value in answer)
    variance, knows_nothing = 768 * 0.02**2, math.log(50_257)

    def near(value: float, to: float, within: float = 0.006) -> bool:
        return abs(value - to) < within

    if near(loss, knows_nothing):
        raise Hint(f"the loss: {loss:g} is ln V alone; what do the random logits cost?")
    if near(loss, knows_nothing + variance):
        raise Hint(f"the loss: {loss:g} has the whole variance of the logits on top; take half")
    if near(loss, knows_nothing + variance**0.5) or near(loss, knows_nothing + variance**0.5 / 2):
        raise Hint(f"the loss: {loss:g} has σ on top; the formula has its square, σ²")
    if near(loss, math.log(49_152) + 576 * 0.02**2 / 2):
        raise Hint(f"the loss: {loss:g} is SmolLM2's; here V is 50,257, and 768 numbers are added")
    if not near(loss, knows_nothing + variance / 2):
        raise Hint("the loss: it is ln V + σ²/2, with σ² = 768 times the variance of one weight")
    more = 12.80 - math.log(49_152)
    exact = (2 * more / 576) ** 0.5
    if near(std, (2 * more) ** 0.5, 0.03):
        raise Hint(f"the standard deviation: {std:g} is that of the logits; a logit sums 576 terms")
    if near(std, (more / 576) ** 0.5, 0.001):
        raise Hint(f"the standard deviation: {std:g} forgets that only half the variance is paid")
    if near(std, 2 * more / 576, 0.0005):
        raise Hint(f"the standard deviation: {std:g} is the variance of a weight; take the root")
    if not near(std, exact, 0.002):
        raise Hint("the standard deviation: 12.80 lies how far above ln 49,152? That is σ²/2")
    return "the second model was drawn with twice the released standard deviation, 2/24"


@exercise
def check_cross_entropy(answer: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Expect a function (logits (N, V), targets (N,)) -> mean surprise; -100 does not count."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(6, 11, generator=generator, dtype=torch.double)
    targets = torch.randint(11, (6,), generator=generator)
    expected = F.cross_entropy(logits, targets)
    found = answer(logits.clone(), targets.clone())
    if not isinstance(found, Tensor) or found.shape != ():
        raise Hint("return one number, as a tensor without axes: the mean over the tokens")
    found = found.double()
    if torch.isclose(found, -expected):
        raise Hint("the sign: the surprise is minus the logarithm of the probability")
    if torch.isclose(found, expected * 6):
        raise Hint("this is the sum over the tokens; the loss is their mean")
    if not torch.isclose(found, expected):
        raise Hint(f"off by {(found - expected).abs():.2g} on six random tokens")
    large = answer(1000 * logits, targets.clone())
    if not torch.isclose(large.double(), F.cross_entropy(1000 * logits, targets)):
        raise Hint(
            "right for small logits, wrong for logits in the thousands: their exponential is "
            "infinite. What may be subtracted from all logits without changing the softmax?"
        )
    targets[1], targets[4] = -100, -100
    try:
        masked = answer(logits.clone(), targets.clone())
    except (IndexError, RuntimeError) as error:
        raise Hint("a target of -100 is no token: leave such places out first") from error
    if not torch.isclose(masked.double(), F.cross_entropy(logits, targets)):
        raise Hint("with two targets of -100, the mean must be over the other four")
    return "the same as PyTorch's, for large logits and with targets that do not count"


_FAULTS = {2: ("k_proj", "v_proj"), 5: ("gate_proj", "up_proj")}  # block to exchanged matrices
_OF = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
       "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}  # fmt: skip


def mystery() -> tuple[SmolLM2, Any, Tensor]:
    """Return a model of eight small blocks with two faults, a right one as oracle, and tokens."""
    config = SmolLM2Config(
        vocab_size=97, block_size=32, n_layer=8, n_head=4, n_kv_head=2, n_embd=64, head_dim=16,
        intermediate_size=96, init_std=0.125,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = SmolLM2(config).requires_grad_(False)
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.3)
        ids = torch.randint(config.vocab_size, (1, 24))
    oracle = to_transformers(model).requires_grad_(False)
    inner: Any = model.model
    for number, (one, other) in _FAULTS.items():
        part = getattr(inner.layers[number], _OF[one])
        first, second = getattr(part, one), getattr(part, other)
        setattr(part, one, second)
        setattr(part, other, first)
    return model, oracle, ids


@exercise
def check_mystery(answer: Mapping[int, tuple[str, str]]) -> str:
    """Expect the mystery's two faulty blocks, each with the two matrices that were exchanged."""
    if not isinstance(answer, Mapping) or not answer:
        raise Hint('a dictionary is wanted, {block: ("one_proj", "other_proj")}')
    for block in answer:
        if block not in _FAULTS and {block - 1, block + 1} & set(_FAULTS):
            raise Hint(f"block {block} holds; did you count from 0, and from the embedding's rung?")
        if block not in _FAULTS:
            raise Hint(f"block {block} holds: it gives the oracle's output on the oracle's input")
    for block, matrices in answer.items():
        right = _FAULTS[block]
        if not isinstance(matrices, tuple | list | set) or len(matrices) != 2:
            raise Hint(f"block {block} is right; which two of its matrices were exchanged?")
        if unknown := [name for name in matrices if name not in _OF]:
            raise Hint(f"block {block} is right; {unknown[0]!r} is no matrix of it")
        if {_OF[name] for name in matrices} != {_OF[right[0]]}:
            raise Hint(f"block {block} is right; see with `within` which part of it is broken")
        if set(matrices) != set(right):
            raise Hint(
                f"block {block}: the right part; compare each matrix of it with the oracle's"
            )
    if len(answer) != len(_FAULTS):
        raise Hint(f"block {next(iter(answer))} is one of two; does another rung break?")
    return "found, in a model that nobody could have judged by what it says"
