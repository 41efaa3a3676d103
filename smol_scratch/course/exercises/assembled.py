"""Checkers for notebook 06, the assembled model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure.assembled import Ladder
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


_FAULT = (5, "mlp")  # block and part


def mystery() -> tuple[SmolLM2, Ladder]:
    """Return a model of eight small blocks with one fault, and a ladder of the right one."""
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
        ids = torch.randint(config.vocab_size, (1, 25))
    ladder = Ladder(model, ids)
    broken: Any = model.model
    mlp = broken.layers[_FAULT[0]].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    return model, ladder


@exercise
def check_mystery(answer: tuple[int, str]) -> str:
    """Expect the block and the part of it in which the mystery's fault is."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint("two things in brackets are wanted: (number of the block, name of the part)")
    block, part = answer
    if block in (_FAULT[0] - 1, _FAULT[0] + 1):
        raise Hint(f"block {block} holds; did you count from 0, and from the embedding's rung?")
    if block != _FAULT[0]:
        raise Hint(f"block {block} holds: it gives the oracle's output on the oracle's input")
    if part not in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"):
        raise Hint(f"the block is right; {part!r} is not a part of it, by the checkpoint's names")
    if part != _FAULT[1]:
        raise Hint(f"the block is right; its {part} holds: see `ladder.within(model, {block})`")
    return "found, in a model that nobody could have judged by what it says"
