"""Instruments of notebook 13: watch the residual stream, silence a part, exchange a vector.

Each intervention is a context manager that puts a hook into the model and takes it out again.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.course.measure.replaced import replaced
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import SmolLM2Tokenizer

Change = Callable[[Tensor], Tensor]
Intervention = AbstractContextManager[None]


def _blocks(model: SmolLM2) -> Any:
    return model.model.layers


Register = Callable[[], torch.utils.hooks.RemovableHandle]


@contextmanager
def _hooked(registers: Sequence[Register]) -> Iterator[None]:
    """Put hooks in when the context is entered, not before, and take them out when it ends."""
    handles = []
    try:
        for register in registers:
            handles.append(register())
        yield
    finally:
        for handle in handles:
            handle.remove()


def changed_output(module: nn.Module, change: Change) -> Intervention:
    """Let ``change`` replace what a module returns, as long as the context lasts.

    Args:
        module: that returns one tensor.
        change: from that tensor to the one that goes on in its place.
    """
    return _hooked([partial(module.register_forward_hook, lambda _, __, output: change(output))])


def silenced_channels(model: SmolLM2, layer: int, channels: Sequence[int]) -> Intervention:
    """Set hidden channels of a block's MLP to zero, at every token.

    Args:
        model: from ``load_pretrained``.
        layer: number of the block.
        channels: numbers of its MLP's hidden channels.
    """

    def zero(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        hidden = inputs[0].clone()  # (B, T, hidden)
        hidden[..., list(channels)] = 0
        return (hidden,)

    down = _blocks(model)[layer].mlp.down_proj
    return _hooked([partial(down.register_forward_pre_hook, zero)])


def silenced_heads(model: SmolLM2, heads: Sequence[tuple[int, int]]) -> Intervention:
    """Set what query heads have gathered to zero, before ``o_proj``.

    Args:
        model: from ``load_pretrained``.
        heads: (block, query head) of each.
    """
    D = model.config.head_dim
    handles = []
    for layer in {layer for layer, _ in heads}:
        mine = [head for number, head in heads if number == layer]

        def zero(_: nn.Module, inputs: tuple[Tensor], mine: list[int] = mine) -> tuple[Tensor]:
            gathered = inputs[0].clone()  # (B, T, H * D)
            for head in mine:
                gathered[..., D * head : D * (head + 1)] = 0
            return (gathered,)

        o_proj = _blocks(model)[layer].self_attn.o_proj
        handles.append(partial(o_proj.register_forward_pre_hook, zero))
    return _hooked(handles)


def silenced_branch(model: SmolLM2, layer: int, branch: str) -> Intervention:
    """Let one of the sixty branches write nothing.

    Args:
        model: from ``load_pretrained``.
        layer: number of the block.
        branch: "self_attn" or "mlp".
    """
    return changed_output(getattr(_blocks(model)[layer], branch), torch.zeros_like)


@torch.no_grad()
def streams(model: SmolLM2, ids: Tensor, until: int | None = None) -> Tensor:
    """Return the residual stream after 0, 1, … blocks, (blocks + 1, B, T, C).

    Args:
        model: from ``load_pretrained``.
        ids: token numbers, (B, T).
        until: after how many blocks to stop; None for all of them.
    """
    parts: Any = model.model
    found = [parts.embed_tokens(ids)]
    for block in parts.layers[:until]:
        found.append(block(found[-1]))
    return torch.stack(found)


@torch.no_grad()
def attention_maps(model: SmolLM2, ids: Tensor) -> Tensor:
    """Return the weights of every head, (layers, B, H, T, T).

    Args:
        model: from ``load_pretrained``.
        ids: token numbers, (B, T).
    """
    maps: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        y, weights = _weighted(q, k, v, future)
        maps.append(weights)
        return y

    with _attending(model, range(model.config.n_layer), attend):
        model(ids)
    return torch.stack(maps)


@torch.no_grad()
def losses(model: SmolLM2, rows: Tensor, skip: int = 0) -> list[float]:
    """Return the mean loss of each sequence, in nats per token.

    Args:
        model: any.
        rows: (sequences, T + 1), as from ``evenly_spaced``.
        skip: leave out the first predictions of each sequence.
    """
    logits, _ = model(rows[:, :-1])  # (sequences, T, V)
    each = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    return each[:, skip:].mean(1).tolist()


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def spread(values: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Return the least, the median and the greatest of each row.

    Args:
        values: (rows, N).
    """
    return values.amin(1).tolist(), values.median(1).values.tolist(), values.amax(1).tolist()


def rise(after: Sequence[float], before: Sequence[float]) -> str:
    """Return how much the loss rose, as mean ± standard error over the same sequences."""
    mean, error = mean_and_error([a - b for a, b in zip(after, before, strict=True)])
    return f"{round(mean, 2) + 0.0:+.2f} ± {error:.2f}"  # + 0.0: no zero with a minus


@contextmanager
def together(*contexts: Intervention) -> Iterator[None]:
    """Let several interventions last at the same time."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@torch.no_grad()
def inputs_of(model: SmolLM2, module: nn.Module, ids: Tensor) -> Tensor:
    """Return what a module reads when the model reads ``ids``.

    Args:
        model: from ``load_pretrained``.
        module: of the model, with one input.
        ids: token numbers, (B, T).
    """
    found: list[Tensor] = []
    look = partial(module.register_forward_pre_hook, lambda _, inputs: found.append(inputs[0]))
    with _hooked([look]):
        model(ids)
    return found[0]


def _weighted(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Attend, with a score of minus infinity where ``hidden`` (T, T); return weights too."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return weights @ v, weights


def _attending(
    model: SmolLM2, layers: Sequence[int], attend: Callable[..., Tensor]
) -> Intervention:
    return replaced([_blocks(model)[layer].self_attn for layer in layers], "attend", attend)


PROJECTIONS = {"keys": "k_proj", "values": "v_proj"}


def first_token_of(
    model: SmolLM2, stream: Tensor, layers: Sequence[int], parts: Sequence[str]
) -> Intervention:
    """Give the first token the keys or values that it has in a recorded stream.

    Args:
        model: from ``load_pretrained``.
        stream: from ``streams``, (blocks + 1, B, T, C).
        layers: in which blocks.
        parts: "keys", "values", both or none of them.
    """

    def put(layer: int, part: str) -> Intervention:
        block = _blocks(model)[layer]
        projection = getattr(block.self_attn, PROJECTIONS[part])
        with torch.no_grad():
            own = projection(block.input_layernorm(stream[layer, :, 0]))  # (B, G * D)

        def change(found: Tensor) -> Tensor:
            return torch.cat((own[:, None], found[:, 1:]), dim=1)  # (B, T, G * D)

        return changed_output(projection, change)

    return together(*(put(layer, part) for layer in layers for part in parts))


@torch.no_grad()
def value_lengths(model: SmolLM2, stream: Tensor, layers: Sequence[int]) -> tuple[float, float]:
    """Return the mean length of the first token's values, and of all later tokens' values.

    Args:
        model: from ``load_pretrained``.
        stream: from ``streams``, (blocks + 1, B, T, C).
        layers: in which blocks.
    """
    found = []
    for layer in layers:
        block = _blocks(model)[layer]
        values = block.self_attn.v_proj(block.input_layernorm(stream[layer]))  # (B, T, G * D)
        found.append(values.norm(dim=-1))
    lengths = torch.stack(found)  # (layers, B, T)
    return float(lengths[..., 0].mean()), float(lengths[..., 1:].mean())


CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin", "Russia": "Moscow",
    "Egypt": "Cairo", "China": "Beijing", "Spain": "Madrid", "England": "London",
    "Greece": "Athens",
}  # fmt: skip


def _answer_changed(logits: Tensor, answers: Tensor, whole: tuple[Tensor, Tensor]) -> Tensor:
    """Return how far each answer has turned to the next prompt's, 0 for not at all, 1 for wholly.

    Measured by the difference of two logits, that of the next prompt's answer and its own.
    """
    own, other = whole
    n = torch.arange(len(answers))
    after = logits[n, answers.roll(-1)] - logits[n, answers]
    return (after - own) / (other - own)


def _ends(model: SmolLM2, prompts: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return that difference of logits for each prompt, and for the next prompt in its place."""
    logits = model(prompts)[0][:, -1]  # (N, V)
    n = torch.arange(len(answers))
    own = logits[n, answers.roll(-1)] - logits[n, answers]
    moved = logits.roll(-1, dims=0)
    return own, moved[n, answers.roll(-1)] - moved[n, answers]


@torch.no_grad()
def patched_streams(
    model: SmolLM2,
    prompts: Tensor,
    answers: Tensor,
    place: int,
    depths: Sequence[int] | None = None,
    source: Tensor | None = None,
) -> tuple[list[float], list[float]]:
    """Exchange one token's vector for that of the next prompt, after 0, 1, … blocks.

    Args:
        model: from ``load_pretrained``.
        prompts: token numbers of prompts that differ in one token, (N, T).
        answers: the token that each is to be continued with, (N,).
        place: at which position the vector is exchanged.
        depths: after how many blocks; None for each number of them.
        source: prompts that the vectors come from, in the same order; None for ``prompts``.

    Returns:
        Means and standard errors, over the prompts, of how far the answer turns to the next
        prompt's: 0 for not at all, 1 for wholly.
    """
    parts: Any = model.model
    whole, stream = _ends(model, prompts, answers), streams(model, prompts)
    theirs = stream if source is None else streams(model, source)
    means, errors = [], []
    for depth in depths if depths is not None else range(len(stream)):
        x = stream[depth].clone()  # (N, T, C)
        x[:, place] = theirs[depth, :, place].roll(-1, dims=0)
        for block in parts.layers[depth:]:
            x = block(x)
        logits = F.linear(parts.norm(x[:, -1]), parts.embed_tokens.weight)  # (N, V)
        mean, error = mean_and_error(_answer_changed(logits, answers, whole).tolist())
        means.append(mean)
        errors.append(error)
    return means, errors


@torch.no_grad()
def patched_heads(
    model: SmolLM2, prompts: Tensor, answers: Tensor, place: int, layer: int
) -> list[tuple[float, float]]:
    """Exchange what one query head has gathered for what it gathered in the next prompt.

    A query head can be exchanged by itself behind the attention, where each has 64 channels of its
    own. Before it, keys and values belong to a group of three, and cannot.

    Args:
        model: from ``load_pretrained``.
        prompts: as for ``patched_streams``.
        answers: likewise.
        place: at which position.
        layer: number of the block.

    Returns:
        Mean and standard error for each head.
    """
    whole, D = _ends(model, prompts, answers), model.config.head_dim
    o_proj = _blocks(model)[layer].self_attn.o_proj
    gathered = inputs_of(model, o_proj, prompts)  # (N, T, H * D)
    found = []
    for head in range(model.config.n_head):

        def exchange(_: nn.Module, inputs: tuple[Tensor], head: int = head) -> tuple[Tensor]:
            x, mine = inputs[0].clone(), slice(D * head, D * (head + 1))
            x[:, place, mine] = gathered[:, place, mine].roll(-1, dims=0)
            return (x,)

        with _hooked([partial(o_proj.register_forward_pre_hook, exchange)]):
            changed = _answer_changed(model(prompts)[0][:, -1], answers, whole)
        found.append(mean_and_error(changed.tolist()))
    return found


def other_heads(
    heads: Sequence[tuple[int, int]], seed: int, n_head: int = 9
) -> list[tuple[int, int]]:
    """Return as many other heads of the same blocks, chosen at random, as a control.

    Args:
        heads: (block, query head) of each.
        seed: of the choice.
        n_head: query heads in a block.
    """
    draw, taken, others = random.Random(seed), set(heads), []
    for layer, _ in heads:
        free = [head for head in range(n_head) if (layer, head) not in taken]
        others.append((layer, draw.choice(free)))
        taken.add(others[-1])
    return others


def without_values(model: SmolLM2, layers: Sequence[int], place: int) -> Intervention:
    """Set the values of one token to zero: heads may look at it and read nothing.

    Args:
        model: from ``load_pretrained``.
        layers: in which blocks.
        place: position of the token.
    """

    def zero(values: Tensor) -> Tensor:
        values = values.clone()  # (B, T, G * D)
        values[:, place] = 0
        return values

    return together(
        *(changed_output(_blocks(model)[layer].self_attn.v_proj, zero) for layer in layers)
    )


def unheard(
    model: SmolLM2, norm: str, layers: Sequence[int], channel: int, place: int = 0
) -> Intervention:
    """Hide one channel of one token from the branches behind a norm; the norm still divides by it.

    Args:
        model: from ``load_pretrained``.
        norm: "input_layernorm" (before attention) or "post_attention_layernorm" (before the MLP).
        layers: in which blocks.
        channel: of the residual stream.
        place: position of the token.
    """

    def hide(x: Tensor) -> Tensor:
        x = x.clone()  # (B, T, C)
        x[:, place, channel] = 0
        return x

    return together(
        *(changed_output(getattr(_blocks(model)[layer], norm), hide) for layer in layers)
    )


def prompts_of(
    tokenizer: SmolLM2Tokenizer, template: str, answers: Mapping[str, str]
) -> tuple[Tensor, Tensor]:
    """Return prompts that differ in one word, (N, T), and the right next tokens, (N,).

    Args:
        tokenizer: of the model.
        template: a text with "{}" where the word stands.
        answers: the word to what comes next, spaces included; of it the first token counts.

    Raises:
        ValueError: when the prompts are not equally long.
    """
    prompts = {word: tokenizer.encode(template.format(word)) for word in answers}
    if len(set(map(len, prompts.values()))) > 1:
        lengths = {word: len(prompt) for word, prompt in prompts.items()}
        raise ValueError(f"the prompts must have equally many tokens, not {lengths}")
    right = [tokenizer.encode(answer)[0] for answer in answers.values()]
    return torch.tensor(list(prompts.values())), torch.tensor(right)


def capital_prompts(tokenizer: SmolLM2Tokenizer) -> tuple[Tensor, Tensor]:
    """Return "The capital of … is" for each country, (N, 5), and the right next tokens, (N,)."""
    answers = {country: f" {city}" for country, city in CAPITALS.items()}
    return prompts_of(tokenizer, "The capital of {} is", answers)


LANGUAGES = {
    "France": "French", "Italy": "Italian", "Japan": "Japanese", "Germany": "German",
    "Russia": "Russian", "Egypt": "Arabic", "China": "Chinese", "Spain": "Spanish",
    "England": "English", "Greece": "Greek",
}  # fmt: skip


def language_prompts(tokenizer: SmolLM2Tokenizer) -> tuple[Tensor, Tensor]:
    """Return "People in … speak" for each country, (N, 4), and the languages' tokens, (N,)."""
    answers = {country: f" {language}" for country, language in LANGUAGES.items()}
    return prompts_of(tokenizer, "People in {} speak", answers)


OPPOSITES = {
    "hot": "cold", "big": "small", "old": "young", "good": "bad", "high": "low", "fast": "slow",
    "hard": "soft", "light": "dark", "strong": "weak", "rich": "poor",
}  # fmt: skip


def opposite_prompts(tokenizer: SmolLM2Tokenizer) -> tuple[Tensor, Tensor]:
    """Return 'The opposite of "…" is "' for each word, (N, T), and the opposites' tokens, (N,)."""
    return prompts_of(tokenizer, 'The opposite of "{}" is "', OPPOSITES)


def transplanted(
    model: SmolLM2,
    donor: Tensor,
    heads: Sequence[tuple[int, int]],
    start: int,
    transplant: Callable[[Tensor, Tensor, list[int], int], Tensor] | None = None,
) -> Intervention:
    """Give query heads what they gathered when the model read another sequence.

    Args:
        model: from ``load_pretrained``.
        donor: token numbers of that sequence, (B, T), as long as those that will be read.
        heads: (block, query head) of each.
        start: from which position on.
        transplant: from what a block's heads gathered here and there, both (B, T, H * D), the
            heads' numbers and ``start``, to what ``o_proj`` reads; None for the heads' own channels
            of there, from ``start`` on.
    """
    D = model.config.head_dim

    def copied(mine: Tensor, theirs: Tensor, numbers: list[int], start: int) -> Tensor:
        result = mine.clone()
        for head in numbers:
            result[:, start:, D * head : D * (head + 1)] = theirs[:, start:, D * head :][..., :D]
        return result

    transplant = transplant or copied
    gathered = {}
    for layer in sorted({layer for layer, _ in heads}):  # all recorded before one is changed
        o_proj = _blocks(model)[layer].self_attn.o_proj
        gathered[layer] = (o_proj, inputs_of(model, o_proj, donor))  # (B, T, H * D)
    handles = []
    for layer, (o_proj, theirs) in gathered.items():
        numbers = [head for number, head in heads if number == layer]

        def change(
            _: nn.Module,
            inputs: tuple[Tensor],
            theirs: Tensor = theirs,
            numbers: list[int] = numbers,
        ) -> tuple[Tensor]:
            return (transplant(inputs[0], theirs, numbers, start),)

        handles.append(partial(o_proj.register_forward_pre_hook, change))
    return _hooked(handles)
