"""What notebook 11 measures: which heads copy, what a loop needs, how surprising texts are.

Letters: B rows, T tokens, L layers, H query heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import KVCache, RotaryPositionalEmbedding, SmolLM2, causal_mask
from smol_scratch.course.measure.replaced import replaced
from smol_scratch.generation import next_logits
from smol_scratch.tokenizer import SmolLM2Tokenizer

Head = tuple[int, int]  # layer, head

# A short beginning, and phrases to repeat after it: what the model wrote, plain sentences that it
# would not have written, and words that are no sentence at all.
OPENING = "She looked out of the window and saw a young woman."
PHRASES = (
    " She smiled at her.",
    " The moon ate my cheese.",
    " We would be resolved.",
    " apple of seven under",
    " Nobody had counted the boats.",
    " green idea sleeps window",
    " The lawyer sold a wet violin.",
    " under table nine because",
)


@contextmanager
def silenced(model: SmolLM2, heads: Sequence[Head]) -> Iterator[None]:
    """Set what these heads gather to zero, before ``o_proj`` reads it, for a while."""
    hooks = []
    for layer in {layer for layer, _ in heads}:
        quiet = [head for number, head in heads if number == layer]

        def hush(
            module: torch.nn.Module, inputs: tuple[Tensor], quiet: list[int] = quiet
        ) -> Tensor:
            y = inputs[0].unflatten(-1, (model.config.n_head, -1)).clone()  # (B, T, H, D)
            y[:, :, quiet] = 0
            return y.flatten(-2)

        o_proj = model.model.layers[layer].self_attn.o_proj
        hooks.append(o_proj.register_forward_pre_hook(hush))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def copying_scores(model: SmolLM2, rows: int = 8, T: int = 40, seed: int = 0) -> Tensor:
    """Say how much each head looks at what followed a token the last time: (L, H).

    Random tokens stand twice in a row, so nothing but the first time says what comes next. The
    score is the attention, 0 to 1, that tokens of the second half give to the one behind their
    first occurrence.

    Source: Olsson et al., 2022, arXiv:2209.11895, "induction heads".
    """
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(100, 40_000, (rows, T), generator=generator)
    found: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~causal_mask(2 * T, 2 * T), -math.inf).softmax(-1)
        # From position t to t - T + 1: T of the second half's, the last one's follower included.
        found.append(weights.diagonal(1 - T, -2, -1)[..., 1:].mean((0, -1)))  # (H,)
        return weights @ v

    with replaced([block.self_attn for block in model.model.layers], "attend", attend):
        model(torch.cat((once, once), dim=1))
    return torch.stack(found)


@torch.no_grad()
def rounds(model: SmolLM2, tokenizer: SmolLM2Tokenizer, phrase: str, times: int = 9) -> list[float]:
    """Return the probability of a token of a phrase, each time that the phrase comes.

    The phrase is repeated by force; the model only says how probable it finds each token. Over a
    phrase's tokens the mean is geometric: e to the mean of the logarithms.
    """
    start, unit = tokenizer.encode(OPENING), tokenizer.encode(phrase)
    ids = torch.tensor([start + unit * times])  # (1, T)
    log_p = F.log_softmax(model(ids[:, :-1])[0], dim=-1)  # (1, T - 1, V)
    log_p = log_p.gather(-1, ids[:, 1:, None])[0, len(start) - 1 :, 0]
    return log_p.view(times, len(unit)).mean(-1).exp().tolist()


@torch.no_grad()
def greedy_rounds(
    model: SmolLM2, tokenizer: SmolLM2Tokenizer, phrase: str, times: int = 9
) -> list[int]:
    """Return the rounds in which greedy decoding would write the whole phrase by itself.

    As in `rounds`, all earlier ones are forced. Each token of the phrase must be the most probable.
    """
    start, unit = tokenizer.encode(OPENING), tokenizer.encode(phrase)
    ids = torch.tensor([start + unit * times])  # (1, T)
    best = model(ids[:, :-1])[0][0, len(start) - 1 :].argmax(-1)  # (times * U,)
    taken = (best == ids[0, len(start) :]).view(times, len(unit)).all(-1)
    return [i + 1 for i, yes in enumerate(taken.tolist()) if yes]


@torch.no_grad()
def beam_search(
    model: SmolLM2, ids: Sequence[int], count: int, beams: int
) -> tuple[list[int], float]:
    """Look for the most probable continuation, with several beginnings kept at a time.

    In each step every text that is kept grows by every token, and the ``beams`` most probable of
    all these are kept. One beam is greedy decoding. Nothing says that the best one is found.

    Args:
        model: in evaluation mode.
        ids: the prompt, (T,).
        count: tokens to add.
        beams: texts that are kept, W.

    Returns:
        The most probable text that was kept, prompt included, and the logarithm of the
        continuation's probability, in nats.
    """
    cache = KVCache(model.config, batch_size=beams, max_length=len(ids) + count)
    rows = torch.tensor([list(ids)] * beams)  # (W, T)
    total = torch.full((beams,), -math.inf)  # (W,)
    total[0] = 0  # all rows are alike at first: one of them counts
    new = rows
    for _ in range(count):
        log_p = F.log_softmax(next_logits(model, new, cache), dim=-1)  # (W, V)
        total, best = (total[:, None] + log_p).flatten().topk(beams)
        parent, new = best // log_p.shape[1], (best % log_p.shape[1])[:, None]
        rows = torch.cat((rows[parent], new), dim=1)
        for layer in cache.layers:
            layer.k[:], layer.v[:] = layer.k[parent], layer.v[parent]
    return rows[0].tolist(), float(total[0])


@torch.no_grad()
def surprise(model: SmolLM2, rows: Tensor, prompt: int) -> tuple[Tensor, Tensor]:
    """Return the surprise at each token behind the prompt, and the one that was expected there.

    Args:
        model: in evaluation mode.
        rows: prompts and their continuations, (B, T).
        prompt: tokens of each prompt.

    Returns:
        In nats, (B, T - prompt) each: -ln p of the token that came, and the entropy of the
        model's distribution, which is the mean of -ln p if the token is drawn from it.
    """
    came, expected = [], []
    for row in rows.split(8):
        log_p = F.log_softmax(model(row[:, :-1])[0][:, prompt - 1 :], dim=-1)
        came.append(-log_p.gather(-1, row[:, prompt:, None])[..., 0])
        expected.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(came), torch.cat(expected)


def repeated(rows: Tensor, prompt: int, n: int = 4) -> Tensor:
    """Return the share of new tokens that end a run of ``n`` seen earlier in the row: (B,)."""
    shares = []
    for row in rows.tolist():
        runs = [tuple(row[i - n + 1 : i + 1]) for i in range(n - 1, len(row))]
        new = range(prompt - n + 1, len(runs))
        shares.append(sum(runs[i] in runs[:i] for i in new) / len(new))
    return torch.tensor(shares)


def rope_replaced(
    model: SmolLM2, kind: type[RotaryPositionalEmbedding]
) -> AbstractContextManager[None]:
    """Let another rotary embedding turn all queries and keys, for a while."""
    config = model.config
    other = kind(config.head_dim, config.block_size, config.rope_theta)
    return replaced([block.self_attn for block in model.model.layers], "rope", other)
