"""Measurements of notebook 03: heads silenced and averaged in a real model, tiny models trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.cache import KVCache
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.races import characters
from smol_scratch.hub import llama_config
from smol_scratch.model import RotaryPositionalEmbedding, SmolLM2, causal_mask, fast_attention
from smol_scratch.tokenizer import SmolLM2Tokenizer

Attend = Callable[..., Tensor]
SMALL = SmolLM2Config(
    block_size=32, vocab_size=16, n_layer=1, n_head=9, n_kv_head=3, n_embd=72, head_dim=8
)
REPLACEMENTS = ("\n", " the", ",", " one", " dog")

LINE = "A horse! a horse! my kingdom for a"


@contextmanager
def silenced(
    model: SmolLM2, layer: int, head: int, instead: Tensor | float = 0.0
) -> Iterator[None]:
    """Set one query head's output to zero, for as long as the ``with`` block lasts.

    Args:
        model: any.
        layer: of the head.
        head: one query head of that layer.
        instead: what takes the place of its output, (D,) or one number.
    """
    D = model.config.head_dim

    def exchange(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        y = args[0].clone()  # (B, T, H · D), the heads side by side
        y[..., D * head : D * (head + 1)] = instead
        return (y,)

    hook = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(exchange)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def unheard(model: SmolLM2, layer: int, group: int, other: Tensor) -> Iterator[None]:
    """Compute one key head from another stream, for as long as the ``with`` block lasts.

    Args:
        model: any.
        layer: of the key head.
        group: one key head of that layer.
        other: what goes into the layer in a model in which an earlier head is silent, (B, T, C).
    """
    block = model.model.layers[layer]
    part = slice(model.config.head_dim * group, model.config.head_dim * (group + 1))

    def exchange(_: nn.Module, args: tuple[Tensor, ...], k: Tensor) -> Tensor:
        k = k.clone()  # (B, T, G · D), the heads side by side
        normed = block.input_layernorm(other)
        k[..., part] = F.linear(normed, block.self_attn.k_proj.weight[part])
        return k

    hook = block.self_attn.k_proj.register_forward_hook(exchange)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def averaged(
    model: SmolLM2, *, keys: bool = True, values: bool = True, stretched: bool = False
) -> Iterator[None]:
    """Let all query heads of a layer read the mean of its key heads, its value heads, or both.

    One key-value head is then left of three, as in multi-query attention, without any training. A
    mean of unlike matrices is smaller than they are; ``stretched`` gives it their size again.
    """
    kept = []
    for block in model.model.layers:
        for linear, chosen in ((block.self_attn.k_proj, keys), (block.self_attn.v_proj, values)):
            if chosen:
                weight = linear.weight.data
                kept.append((linear, weight))
                heads = weight.view(model.config.n_kv_head, -1, weight.shape[1])  # (G, D, C)
                mean = heads.mean(0)
                if stretched:
                    mean *= heads.norm(dim=(1, 2)).mean() / mean.norm()
                linear.weight.data = mean.repeat(len(heads), 1)
    try:
        yield
    finally:
        for linear, weight in kept:
            linear.weight.data = weight


@torch.no_grad()
def stream(model: SmolLM2, ids: Tensor) -> list[Tensor]:
    """Return what goes into each block, (B, T, C) each."""
    x, found = model.model.embed_tokens(ids), []
    for block in model.model.layers:
        found.append(x)
        x = block(x)
    return found


@torch.no_grad()
def logits_from(model: SmolLM2, layer: int, x: Tensor) -> Tensor:
    """Run a model from one of its blocks on: the block's input, (B, T, C), to logits (B, T, V)."""
    for block in list(model.model.layers)[layer:]:
        x = block(x)
    return F.linear(model.model.norm(x), model.model.embed_tokens.weight)


def answer_and_line(tokenizer: SmolLM2Tokenizer, line: str = LINE) -> tuple[Tensor, int]:
    """Return the tokens of a line, (1, T), and the token "horse" that comes next."""
    [answer] = tokenizer.encode(" horse")
    return torch.tensor([tokenizer.encode(line)]), answer


class _Nothing(nn.Module):
    """Stands in the place of attention, and fetches nothing."""

    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        return torch.zeros_like(x)


def grouped_run(groups: int, seed: int, steps: int = 400) -> float:
    """Train a tiny character-level model with nine query heads, and return its held-out loss.

    Args:
        groups: key-value heads, 9, 3 or 1; what is saved in keys and values goes into the MLP, so
            that all three have as many parameters. With 0 the model has no attention.
        seed: of the starting weights and the batches.
        steps: of AdamW, each on 16 sequences of 64 characters.

    Returns:
        In nats per character, over 256 sequences that it never saw.
    """
    C, D, T = 144, 16, 64
    saved = 2 * C * D * (9 - groups) if groups else 0  # weights of one layer
    config = SmolLM2Config(
        vocab_size=65, block_size=T, n_layer=2, n_head=9, n_kv_head=groups or 9, n_embd=C,
        head_dim=D, intermediate_size=256 + round(saved / (3 * C)), init_std=C**-0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = SmolLM2(config)
    if not groups:
        for block in model.model.layers:
            block.self_attn = _Nothing()
    numbers = characters()
    practice, exam = numbers[:1_000_000], numbers[1_000_000:][: 256 * (T + 1)].view(256, T + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        starts = torch.randint(len(practice) - T - 1, (16, 1), generator=generator)
        batch = practice[starts + torch.arange(T + 1)]  # (B, T + 1)
        _, loss = model(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model(exam[:, :-1], exam[:, 1:])[1].item()


def line_words(tokenizer: SmolLM2Tokenizer, line: str = LINE) -> list[str]:
    """Return the tokens of a line as text."""
    return list(tokenizer.tokens(torch.tensor(tokenizer.encode(line))))


@torch.no_grad()
def evidence(
    model: SmolLM2, tokenizer: SmolLM2Tokenizer, line: str = LINE
) -> tuple[list[str], float, dict[str, list[float]]]:
    """Replace each token of a line and see how probable the model still finds "horse".

    Returns:
        The tokens; the probability with all in place; and for each replacement the probability
        with it in each of the places.
    """
    ids, answer = answer_and_line(tokenizer, line)
    whole = model(ids)[0][0, -1].softmax(-1)[answer].item()
    found = {}
    for other in REPLACEMENTS:
        batch = ids.repeat(ids.shape[1], 1)  # a row for each token that is replaced
        batch.fill_diagonal_(tokenizer.encode(other)[0])
        found[other] = model(batch)[0][:, -1].softmax(-1)[:, answer].tolist()
    return line_words(tokenizer, line), whole, found


def always(replaced: Mapping[str, Sequence[float]], whole: float) -> tuple[list[int], list[int]]:
    """Return the places that lower the answer under every replacement, and those that raise it."""
    table = np.array(list(replaced.values()))  # (replacements, places)
    return (
        np.flatnonzero((table < whole).all(0)).tolist(),
        np.flatnonzero((table > whole).all(0)).tolist(),
    )


def largest_weights(sizes: Sequence[int]) -> tuple[list[float], list[float], list[float]]:
    """Measure scores of random queries with 32 random keys at several head dimensions.

    Returns:
        The standard deviation of the dot products; the mean largest weight of a softmax over them;
        and the same with the products divided by the root of the dimension.
    """
    generator = torch.Generator().manual_seed(1)
    spread, plain, scaled = [], [], []
    for D in sizes:
        q = torch.randn(1000, 1, D, generator=generator)
        products = (q * torch.randn(1000, 32, D, generator=generator)).sum(-1)  # (1000, 32)
        spread.append(products.std().item())
        plain.append(F.softmax(products, dim=-1).amax(-1).mean().item())
        scaled.append(F.softmax(products / math.sqrt(D), dim=-1).amax(-1).mean().item())
    return spread, plain, scaled


def small_layer(
    attention: Callable[[SmolLM2Config, RotaryPositionalEmbedding], Any],
) -> tuple[Any, Tensor, Callable[[Tensor], Tensor]]:
    """Make a small attention layer, an input for it, and `transformers`' layer with its weights.

    The weights are drawn so that scores spread around 1: with small ones all attention weights
    would be nearly equal, and many bugs would hide.

    Returns:
        The layer; the input, (1, 8, 72); and the oracle, a function (1, T, 72) -> (1, T, 72).
    """
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    generator = torch.Generator().manual_seed(4)
    rope = RotaryPositionalEmbedding(SMALL.head_dim, SMALL.block_size)
    layer = attention(SMALL, rope).requires_grad_(False)
    for weight in layer.parameters():
        draw = torch.randn(weight.shape, generator=generator)
        weight.copy_(draw / math.sqrt(weight.shape[1]))
    theirs = LlamaAttention(llama_config(SMALL), layer_idx=0).requires_grad_(False)
    theirs.config._attn_implementation = "eager"  # the formula spelt out, no kernel shared
    theirs.load_state_dict(layer.state_dict())

    def oracle(x: Tensor) -> Tensor:
        T = x.shape[1]
        angles = LlamaRotaryEmbedding(llama_config(SMALL))(x, torch.arange(T)[None])
        hidden = torch.full((1, 1, T, T), float("-inf")).triu(1)
        out = theirs(hidden_states=x, position_embeddings=angles, attention_mask=hidden)
        return out[0]

    return layer, torch.randn(1, 8, 72, generator=generator), oracle


def in_pieces(layer: Any, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Run a layer of the small kind through a cache, piece by piece: (1, T, C) -> (1, T, C)."""
    cache = KVCache(SMALL, max_length=x.shape[1]).layers[0]
    return torch.cat([layer(piece, cache) for piece in x.split(list(sizes), dim=1)], dim=1)


def _with_mask(make_mask: Callable[[Tensor], Tensor]) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        k, v = (kv.repeat_interleave(q.shape[1] // kv.shape[1], dim=1) for kv in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        allowed = make_mask(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool))
        return F.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1) @ v

    return attend


def versions(explicit: Attend) -> dict[str, Attend]:
    """Return the right attention and six wrong ones, by name."""

    def interleaved(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        group = q.shape[1] // k.shape[1]
        return explicit(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1))

    def unscaled(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        return explicit(q * math.sqrt(q.shape[-1]), k, v)

    return {
        "right": fast_attention,
        "heads interleaved": interleaved,
        "no 1/√D": unscaled,
        "sees the next token": _with_mask(lambda m: m.tril(m.shape[1] - m.shape[0] + 1)),
        "cannot see itself": _with_mask(lambda m: m.tril(m.shape[1] - m.shape[0] - 1)),
        "mask from the first key": _with_mask(lambda m: m.tril()),
        "no mask": _with_mask(lambda m: m),
    }


def break_it(
    layer: Any, x: Tensor, oracle: Callable[[Tensor], Tensor], explicit: Attend
) -> dict[str, dict[str, bool]]:
    """Put each wrong attention into a layer, run five checks, and print what each catches."""
    generator = torch.Generator().manual_seed(6)
    changed = x.clone()
    changed[:, 5:] = torch.randn(1, 3, 72, generator=generator)
    q, k = torch.randn(1, 9, 8, 8, generator=generator), torch.randn(1, 3, 8, 8)
    caught = {}
    checks = ("shape", "sum", "causal", "cache", "oracle")
    print(f"{'':<25}" + "".join(f"{check:<9}" for check in checks).rstrip())
    for name, layer.attend in versions(explicit).items():
        y, past = layer(x), layer(changed)[:, :5]
        ones = layer.attend(q, k, torch.ones(1, 3, 8, 8))
        results = {
            "shape": y.shape != x.shape,
            "sum": not torch.allclose(ones, torch.ones_like(ones), atol=1e-5),
            # nan is no difference here: the check of the sum sees it
            "causal": not torch.equal(past.nan_to_num(), y[:, :5].nan_to_num()),
            "cache": not torch.allclose(in_pieces(layer, x, (5, 3)), y, atol=1e-4),
            "oracle": not torch.allclose(y, oracle(x), atol=1e-4),
        }
        caught[name] = results
        print(
            f"{name:<25}"
            + "".join(f"{'CAUGHT' if r else '-':<9}" for r in results.values()).rstrip()
        )
    layer.attend = fast_attention
    return caught


@contextmanager
def attending(model: SmolLM2, attend: Attend) -> Iterator[None]:
    """Let all layers of a model compute attention by another function."""
    kept = [block.self_attn.attend for block in model.model.layers]
    try:
        for block in model.model.layers:
            block.self_attn.attend = attend
        yield
    finally:
        for block, old in zip(model.model.layers, kept, strict=True):
            block.self_attn.attend = old


@torch.no_grad()
def attention_map(model: SmolLM2, tokenizer: SmolLM2Tokenizer, layer: int, head: int) -> np.ndarray:
    """Return one head's attention weights on ``LINE``, (T, T)."""
    x = stream(model, answer_and_line(tokenizer)[0])[layer]
    block = model.model.layers[layer]
    attention = block.self_attn
    h, D, T = block.input_layernorm(x), attention.head_dim, x.shape[1]
    q = attention.q_proj(h).view(1, T, -1, D).transpose(1, 2)  # (1, H, T, D)
    k = attention.k_proj(h).view(1, T, -1, D).transpose(1, 2)  # (1, G, T, D)
    q, k = attention.rope(q), attention.rope(k)
    scores = q[0, head] @ k[0, head // (q.shape[1] // k.shape[1])].T * D**-0.5  # (T, T)
    return F.softmax(scores.masked_fill(~causal_mask(T, T), float("-inf")), dim=-1).numpy()


def grouped_runs(record: list[dict[str, Any]]) -> dict[int, Tensor]:
    """Return what ``grouped_runs.csv`` holds: key-value heads (0: no attention) to losses."""
    return {
        groups: torch.tensor([r["held_out"] for r in record if r["key_value_heads"] == groups])
        for groups in (9, 3, 1, 0)
    }


def silenced_heads(record: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return what ``silenced_heads.csv`` holds, by layer and head.

    Returns:
        "copied", the rise of the loss of each passage's repeated word, (layers, heads, passages);
        "rest", the mean rise of the losses before it, and "horse", the probability of "horse",
        (layers, heads) each.
    """
    shape = max(r["layer"] for r in record) + 1, max(r["head"] for r in record) + 1
    names = [name for name in record[0] if name.startswith("copied_")]
    columns: dict[str, Any] = {
        name: [r[name] for r in record] for name in ("rest", "horse", *names)
    }
    tables = {name: np.array(column).reshape(shape) for name, column in columns.items()}
    copied = np.stack([tables[name] for name in names], axis=-1)
    return {"copied": copied, "rest": tables["rest"], "horse": tables["horse"]}


def repeats(tokenizer: SmolLM2Tokenizer, text: str, count: int, length: int = 24) -> Tensor:
    """Find passages that end as Richard's line does: two words, where the two have stood before.

    The second word, of four letters or more, appears once before, right after the first word; so
    the earlier pair tells what comes. No model is asked.

    Args:
        tokenizer: of the model that will read the passages.
        text: any.
        count: how many passages; the first that fits in each of as many equal stretches.
        length: tokens of a passage, the answer not counted.

    Returns:
        The passages with their answers, (count, length + 1).
    """
    ids = tokenizer.encode(text)
    words = tokenizer.tokens(torch.tensor(ids))
    found = []
    for stretch in range(count):
        start = len(ids) * stretch // count
        end = len(ids) * (stretch + 1) // count - length
        for i in range(start, end):
            last = i + length
            if re.fullmatch(r" [a-z]{4,}", words[last]) and re.fullmatch(
                r" [a-z]+", words[last - 1]
            ):
                passage, answer = ids[i:last], ids[last]
                earlier = passage.index(passage[-1])
                once = passage.count(passage[-1]) == 2 and passage.count(answer) == 1
                if once and passage[earlier + 1] == answer:
                    found.append([*passage, answer])
                    break
    return torch.tensor(found)


def fresh_repeats(tokenizer: SmolLM2Tokenizer, text: str, chosen: int = 16) -> Tensor:
    """Return passages as ``repeats`` finds them, without those by which heads were chosen.

    Args:
        tokenizer: of the model that will read the passages.
        text: any.
        chosen: how many passages the choice was made on; four times as many are looked for, and
            those that end with the same two words as one of the former are left out.
    """
    seen = {tuple(row[-2:]) for row in repeats(tokenizer, text, chosen).tolist()}
    more = repeats(tokenizer, text, 4 * chosen).tolist()
    return torch.tensor([row for row in more if tuple(row[-2:]) not in seen])


def looks_record(record: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return what ``looks.csv`` holds: the name of a column to its numbers, (layers, heads)."""
    shape = max(r["layer"] for r in record) + 1, max(r["head"] for r in record) + 1
    return {name: np.array([r[name] for r in record]).reshape(shape) for name in record[0]}


def columns(record: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a record of numbers by column: name to (rows,)."""
    return {name: torch.tensor([row[name] for row in record]) for name in record[0]}


@torch.no_grad()
def fetched(
    model: SmolLM2,
    line: tuple[Tensor, int],
    repeats: Tensor,
    streams: Sequence[Sequence[Tensor]],
    layer: int = 0,
) -> tuple[float, Tensor, Tensor]:
    """Measure how well a model says what it has read before.

    Args:
        model: any, with or without a head silenced in ``layer``.
        line: of ``answer_and_line``.
        repeats: of ``repeats``, (N, T + 1).
        streams: of ``stream``, for the line and for the repeats without their answers.
        layer: the first block that differs from the model that made the streams.

    Returns:
        The probability of "horse"; the loss of each passage's answer, (N,); and the mean loss of
        every third token before it, (N,).
    """
    horse = logits_from(model, layer, streams[0][layer])[0, -1].softmax(-1)[line[1]].item()
    x = streams[1][layer]
    for block in list(model.model.layers)[layer:]:
        x = block(x)
    places = list(range(x.shape[1] - 1, -1, -3))  # the last first
    logits = F.linear(model.model.norm(x[:, places]), model.model.embed_tokens.weight)
    losses = F.cross_entropy(logits.mT, repeats[:, 1:][:, places], reduction="none")
    return horse, losses[:, 0], losses[:, 1:].mean(1)


@torch.no_grad()
def looks(model: SmolLM2, repeats: Tensor, streams: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Measure how much weight each head gives, at the end of a passage, to the word to be copied.

    Args:
        model: any.
        repeats: of ``repeats``, (N, T + 1).
        streams: some layers, with what goes into each of them, (N, T, C).

    Returns:
        For each of these layers the attention weights of the last token, (heads, N).
    """
    places = [row.index(row[-1]) + 1 for row in repeats[:, :-1].tolist()]
    found = {}
    for layer, x in streams.items():
        block = model.model.layers[layer]
        attention, h = block.self_attn, block.input_layernorm(x)
        B, T, D = x.shape[0], x.shape[1], attention.head_dim
        q = attention.q_proj(h[:, -1:]).view(B, 1, -1, D).transpose(1, 2)  # (N, H, 1, D)
        k = attention.k_proj(h).view(B, T, -1, D).transpose(1, 2)  # (N, G, T, D)
        q, k = attention.rope(q, T - 1), attention.rope(k)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        weights = F.softmax(q @ k.mT * D**-0.5, dim=-1)[:, :, 0]  # (N, H, T)
        found[layer] = weights[torch.arange(B), :, places].T
    return found


@torch.no_grad()
def mean_output(model: SmolLM2, ids: Tensor, layer: int, head: int, first: bool = False) -> Tensor:
    """Return one head's mean output over tokens.

    Args:
        model: any.
        ids: passages, (B, T).
        layer: of the head.
        head: one query head of that layer.
        first: whether each passage's first token, which sees only itself, counts.

    Returns:
        (D,).
    """
    found: list[Tensor] = []
    D = model.config.head_dim
    linear = model.model.layers[layer].self_attn.o_proj

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0][:, 1 - first :, D * head : D * (head + 1)].mean((0, 1)))

    hook = linear.register_forward_pre_hook(note)
    try:
        model(ids)
    finally:
        hook.remove()
    return found[0]
