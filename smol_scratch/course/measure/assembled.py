"""Measurements of notebook 06: models with one planted fault, and the ladder that finds it.

``apart``, ``parts``, ``record`` and ``climb`` are the notebook's own code; a test compares them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.cache import KVCache
from smol_scratch.generation import chat_prompt, stop_tokens
from smol_scratch.model import (
    RMSNorm,
    RotaryPositionalEmbedding,
    SmolLM2,
    explicit_attention,
)
from smol_scratch.tokenizer import SmolLM2Tokenizer

# What two right programs may differ by, relative to a vector's length: float32 keeps seven digits,
# and thirty blocks add their rounding. The notebook draws the rounding that it measures below this
# line, and the gentlest fault fifteen times above it.
TOLERANCE = 1e-5


@torch.no_grad()
def ask(model: SmolLM2, tokenizer: SmolLM2Tokenizer, question: str, tokens: int = 12) -> str:
    """Ask in the conversation's own form, and return the beginning of the answer on one line.

    Each token comes from the model's own ``forward``, so that a fault in it is heard as well.
    """
    prompt = chat_prompt(tokenizer, question)
    new = torch.as_tensor(prompt).reshape(1, -1)  # (1, T)
    cache = KVCache(model.config, max_length=new.shape[1] + tokens)
    ids: list[int] = []
    while len(ids) < tokens:
        new = model(new, cache=cache)[0][:, -1:].argmax(dim=-1)  # (1, 1)
        if new.item() in stop_tokens(tokenizer):
            break
        ids.append(int(new))
    answer = tokenizer.decode(ids)
    return " ".join(answer.replace("\N{REPLACEMENT CHARACTER}", "").split())  # half a character


def _without_norm(model: Any) -> Callable[[], None]:
    kept = model.model["norm"]
    model.model["norm"] = nn.Identity()

    def back() -> None:
        model.model["norm"] = kept

    return back


def _loose_head(model: Any) -> Callable[[], None]:
    kept, table = model.config, model.model.embed_tokens.weight
    head = torch.randn(table.shape, generator=torch.Generator().manual_seed(4)) * kept.init_std
    model.config = replace(kept, tie_embeddings=False)
    model.lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
    model.lm_head.weight = nn.Parameter(head, requires_grad=False)

    def back() -> None:
        model.config = kept
        del model.lm_head

    return back


def _other_theta(model: Any) -> Callable[[], None]:
    kept = model.model.layers[0].self_attn.rope
    config = model.config
    rope = RotaryPositionalEmbedding(config.head_dim, config.block_size, 10_000.0)
    for block in model.model.layers:
        block.self_attn.rope = rope

    def back() -> None:
        for block in model.model.layers:
            block.self_attn.rope = kept

    return back


def _other_eps(model: Any) -> Callable[[], None]:
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    kept = norms[0].eps
    for norm in norms:
        norm.eps = kept / 10

    def back() -> None:
        for norm in norms:
            norm.eps = kept

    return back


def _norms_swapped(number: int) -> Callable[[Any], Callable[[], None]]:
    def plant(model: Any) -> Callable[[], None]:
        block = model.model.layers[number]

        def swap() -> None:
            one, two = block.input_layernorm, block.post_attention_layernorm
            block.input_layernorm, block.post_attention_layernorm = two, one

        swap()
        return swap

    return plant


def _transposed(number: int) -> Callable[[Any], Callable[[], None]]:
    def plant(model: Any) -> Callable[[], None]:
        layer = model.model.layers[number].self_attn.q_proj

        def turn() -> None:
            layer.weight.data = layer.weight.data.T.contiguous()

        turn()
        return turn

    return plant


def _walked(order: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Callable[[], None]]:
    def plant(model: Any) -> Callable[[], None]:
        kept, kind = model.model["layers"], type(model)
        other = nn.ModuleList(order(list(kept)))

        def forward(*given: Any, **named: Any) -> Any:
            model.model["layers"] = other
            try:
                return kind.forward(model, *given, **named)
            finally:
                model.model["layers"] = kept

        model.forward = forward

        def back() -> None:
            del model.forward

        return back

    return plant


def _exchanged(blocks: list[Any]) -> list[Any]:
    return [*blocks[:3], blocks[4], blocks[3], *blocks[5:]]


# With each, the model runs without an error.
FAULTS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "RMSNorm's eps 1e-6": _other_eps,
    "RoPE's theta 10,000": _other_theta,
    "block 5: q transposed": _transposed(5),
    "block 17: norms swapped": _norms_swapped(17),
    "no final norm": _without_norm,
    "head of its own": _loose_head,
    "block 4 before block 3": _walked(_exchanged),
}
# These come after the last block, and leave the stream as it was.
BEHIND = ("no final norm", "head of its own")


@contextmanager
def planted(model: SmolLM2, fault: str) -> Iterator[SmolLM2]:
    """Plant a fault in a model, for as long as the ``with`` lasts.

    Args:
        model: with real weights.
        fault: a name of ``FAULTS``.
    """
    back = FAULTS[fault](model)
    try:
        yield model
    finally:
        back()


@contextmanager
def other_order(model: SmolLM2) -> Iterator[SmolLM2]:
    """Let a model's attention add the same numbers in another order, while the ``with`` lasts."""
    inner: Any = model.model
    kept = inner.layers[0].self_attn.attend
    for block in inner.layers:
        block.self_attn.attend = explicit_attention
    try:
        yield model
    finally:
        for block in inner.layers:
            block.self_attn.attend = kept


@torch.no_grad()
def streams(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return the stream before the first block and after each, as the model runs.

    Args:
        model: ours or ``transformers``'.
        ids: tokens, (B, T).
    """
    inner: Any = model.model
    found: list[Tensor] = []

    def keep(_part: Any, _given: Any, output: Tensor) -> None:
        found.append(output)

    hooks = [part.register_forward_hook(keep) for part in (inner.embed_tokens, *inner.layers)]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far two sets of vectors are apart, relative to their length, median token."""
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return distance.median().item()


def bound(value: float) -> float:
    """Round up to twice a power of ten: machines' rounding differs, but not so far."""
    return 2.0 * 10.0 ** math.ceil(math.log10(value / 2))


def parts(model: Any) -> dict[str, Any]:
    """Return the parts of a model in order, ours or ``transformers``', by name."""
    inner = model.model
    found = {"embedding": inner.embed_tokens}
    for i, block in enumerate(inner.layers):
        found[f"block {i}"] = block
    found["final norm"] = inner.norm
    table = inner.embed_tokens.weight  # the head, unless there is another
    found["head"] = getattr(model, "lm_head", lambda x: F.linear(x, table))
    return found


@torch.no_grad()
def record(oracle: Any, ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what goes into each part of the oracle, and what comes out: ids (B, T)."""
    seen: dict[str, Any] = {}
    hooks = []
    for name, part in parts(oracle).items():

        def keep(_: Any, given: Any, output: Tensor, name: str = name) -> None:
            seen[name] = given[0], output

        hooks.append(part.register_forward_hook(keep))
    logits = oracle(ids).logits
    for hook in hooks:
        hook.remove()
    return seen | {"whole model": (ids, logits)}


@torch.no_grad()
def climb(model: Any, seen: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return how far each part is from the oracle's, on the oracle's own input."""
    ours = parts(model) | {"whole model": lambda ids: model(ids)[0]}
    return {n: apart(ours[n](into), out) for n, (into, out) in seen.items()}


@torch.no_grad()
def within(
    model: Any, oracle: Any, seen: Mapping[str, tuple[Tensor, Tensor]], number: int
) -> dict[str, float]:
    """Do the same inside one block: its two norms, attention and MLP, each on the oracle's input.

    Args:
        model: ours.
        oracle: ``transformers``'.
        seen: what ``record`` returned.
        number: of the block.
    """
    ours, theirs = model.model.layers[number], oracle.model.layers[number]
    x, _ = seen[f"block {number}"]
    angles = oracle.model.rotary_emb(x, torch.arange(x.shape[1])[None])
    first = theirs.input_layernorm(x)
    gathered = theirs.self_attn(first, position_embeddings=angles, attention_mask=None)[0]
    h = x + gathered
    second = theirs.post_attention_layernorm(h)
    return {
        "input_layernorm": apart(ours.input_layernorm(x), first),
        "self_attn": apart(ours.self_attn(first), gathered),
        "post_attention_layernorm": apart(ours.post_attention_layernorm(h), second),
        "mlp": apart(ours.mlp(second), theirs.mlp(second)),
    }


@torch.no_grad()
def losses(model: SmolLM2, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each passage by itself: ids and targets (B, T), result (B,)."""
    logits = model(ids)[0].transpose(1, 2)  # (B, V, T)
    return F.cross_entropy(logits, targets, reduction="none").mean(dim=1)


def mean(values: Tensor) -> str:
    """Write a mean over passages and its standard error: values (B,)."""
    error = values.std().item() / len(values) ** 0.5
    return f"{round(values.mean().item(), 2) + 0.0:6.2f} ± {error:.2f}"  # no minus before 0.00


@torch.no_grad()
def nearest(table: Tensor, tokenizer: SmolLM2Tokenizer, word: str, count: int = 5) -> list[str]:
    """Return the tokens whose rows point most nearly where a word's row does.

    Args:
        table: the embedding, (V, C).
        tokenizer: to which its rows belong.
        word: a single token.
        count: how many, the word itself left out.
    """
    (token,) = tokenizer.encode(word)
    likeness = F.normalize(table, dim=1) @ F.normalize(table[token], dim=0)  # (V,)
    likeness[token] = -1
    return [tokenizer.decode([near]) for near in likeness.topk(count).indices.tolist()]


def starts(record: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Print what fresh models begin with, beside the formula, and return it for the drawing.

    Args:
        record: the rows of ``starts.csv``.

    Returns:
        For each kind of model, by name, ``losses`` of its seeds and the ``formula``'s.
    """
    kinds = {"as it is": "tied", "head of its own": "untied", "no final norm": "without_norm"}
    found: dict[str, dict[str, Any]] = {}
    print(f"{'std':<5}{'model':<16}{'mean sq.':>9}{'formula':>9}{'loss of twenty':>17}{'SD':>7}"
          f"{'SD of ln Σ':>13}{'SD of z_came':>14}")  # fmt: skip
    for std, value in ((0.02, 0.02), ("1/24", 1 / 24)):
        rows = [row for row in record if row["std"] == std]
        for kind, column in kinds.items():
            square = statistics.mean(row["stream"] for row in rows) if "norm" in column else 1.0
            formula = math.log(49_152) + 576 * value**2 * square / 2
            losses = [row[column] for row in rows]
            sums = [row[f"{column}_log_sum"] for row in rows]
            came = [total - loss for total, loss in zip(sums, losses, strict=True)]
            mean, spread = statistics.mean(losses), statistics.stdev(losses)
            print(f"{std:<5}{kind:<16}{square:>9.2f}{formula:>9.2f}{mean:>10.2f} ± "
                  f"{spread / math.sqrt(len(rows)):.2f}{spread:>7.2f}"
                  f"{statistics.stdev(sums):>13.2f}{statistics.stdev(came):>14.2f}")  # fmt: skip
            found[f"{std}, {kind}"] = {"losses": losses, "formula": formula, "square": square}
    return found
