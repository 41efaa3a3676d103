"""Measurements of notebook 01: a real model with other norms, and a tiny one trained on noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.config import SmolLM2Config
from smol_scratch.model import RMSNorm, SmolLM2
from smol_scratch.tokenizer import SmolLM2Tokenizer

Norm = Callable[[Tensor, Tensor], Tensor]  # of a vector (..., C) and the learned weight (C,)
KINDS = 16  # of tokens in the text of noise


class _Other(nn.Module):
    def __init__(self, norm: Norm, weight: Tensor) -> None:
        super().__init__()
        self.norm, self.weight = norm, nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight)


@contextmanager
def other_norms(
    model: SmolLM2, norm: Norm, *, blocks: bool = True, last: bool = True
) -> Iterator[None]:
    """Let a model run with another function in place of its norms, and put them back at the end.

    Args:
        model: changed in place, for as long as the ``with`` block lasts.
        norm: a function of a vector and the learned weight that stood there.
        blocks: whether the 60 norms within the blocks are exchanged.
        last: whether the last one is.
    """
    places: list[tuple[nn.Module, str]] = [(model.model, "norm")] if last else []
    if blocks:
        for block in model.model.layers:
            places += [(block, "input_layernorm"), (block, "post_attention_layernorm")]
    kept = [getattr(owner, name) for owner, name in places]
    try:
        for (owner, name), old in zip(places, kept, strict=True):
            setattr(owner, name, _Other(norm, old.weight.detach()))
        yield
    finally:
        for (owner, name), old in zip(places, kept, strict=True):
            setattr(owner, name, old)


@torch.no_grad()
def speak(model: SmolLM2, tokenizer: SmolLM2Tokenizer, prompt: str, tokens: int = 12) -> str:
    """Continue a prompt, always with the token of the highest score.

    Returns:
        The continuation; a remark in brackets where no score was a number.
    """
    ids = list(tokenizer.encode(prompt))
    start = len(ids)
    for _ in range(tokens):
        scores = model(torch.tensor([ids]))[0][0, -1]  # (V,)
        if not torch.isfinite(scores).any():
            return tokenizer.decode(ids[start:]) + " [no word: every score is nan]"
        ids.append(int(scores.argmax()))
    return tokenizer.decode(ids[start:])


@torch.no_grad()
def stream_sizes(model: SmolLM2, ids: Tensor) -> list[float]:
    """Return the RMS of a typical token's vector (the median over tokens) after 0, 1, … blocks.

    Args:
        model: any.
        ids: token numbers, (B, T).

    Returns:
        One number for the embedding and one for each block, measured in float64: the squares of a
        float32 overflow long before the numbers themselves do. nan where the stream is no number.
    """
    x = model.model.embed_tokens(ids)  # (B, T, C)
    stream = [x]
    for block in model.model.layers:
        stream.append(block(stream[-1]))
    return [x.double().pow(2).mean(-1).sqrt().median().item() for x in stream]


def passages(tokenizer: SmolLM2Tokenizer, text: str, count: int = 8, length: int = 64) -> Tensor:
    """Cut passages out of a text at even distances: tokens, (count, length + 1)."""
    starts = [round(len(text) * (i + 0.5) / count) for i in range(count)]
    cut = [list(tokenizer.encode(text[s : s + 8 * length]))[: length + 1] for s in starts]
    return torch.tensor(cut)


@torch.no_grad()
def passage_losses(model: SmolLM2, tokens: Tensor) -> Tensor:
    """Return the loss on each passage, in nats per token: (count, T + 1) -> (count,)."""
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(1)


@torch.no_grad()
def all_alike(model: SmolLM2, tokens: Tensor) -> tuple[float, float, float]:
    """Find the tokens after which every score is the same.

    Args:
        model: any.
        tokens: (B, T + 1).

    Returns:
        Their share, the loss there, and the loss elsewhere, in nats per token.
    """
    logits, _ = model(tokens[:, :-1])  # (B, T, V)
    losses = F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")  # (B, T)
    alike = logits.amax(-1) == logits.amin(-1)  # (B, T)
    share = alike.float().mean().item()
    return share, losses[alike].mean().item(), losses[~alike].mean().item()


def operate(
    model: SmolLM2,
    tokenizer: SmolLM2Tokenizer,
    tokens: Tensor,
    prompt: str,
    operations: Mapping[str, tuple[Norm, str]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Exchange a model's norms in several ways, and print what each does to its loss.

    Args:
        model: its own norms are back at the end.
        tokenizer: the model's.
        tokens: passages, (N, T + 1).
        prompt: what it continues.
        operations: name to what stands in place of a norm, and in which: "all", those in the
            "blocks", or the "last". The first is what the others are compared with.

    Returns:
        For each name the losses of the passages, (N,), and the continuation.
    """
    losses: dict[str, Tensor] = {}
    words = {}
    print(f"{'':<24}{'loss':>14}{'more than intact':>20}")
    for name, (norm, where) in operations.items():
        with other_norms(model, norm, blocks=where != "last", last=where != "blocks"):
            losses[name] = passage_losses(model, tokens)
            words[name] = speak(model, tokenizer, prompt)
        more = losses[name] - next(iter(losses.values()))
        more_words = mean_and_error(more, digits=2) if len(losses) > 1 else ""
        print(f"{name:<24}{mean_and_error(losses[name]):>14}{more_words:>20}")
    return losses, words


def mean_and_error(values: Tensor, digits: int = 1) -> str:
    """Write a mean over passages with its standard error; one digit where it is large."""
    if not torch.isfinite(values).all():
        return "nan"
    digits = 1 if values.mean() > 2 else digits
    return f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"


@torch.no_grad()
def streams(model: SmolLM2, tokens: Tensor, after: Sequence[int]) -> dict[int, Tensor]:
    """Return the residual stream after some of the blocks: number of blocks to (B, T, C)."""
    x, found = model.model.embed_tokens(tokens), {}
    for number, block in enumerate(model.model.layers, start=1):
        x = block(x)
        if number in after:
            found[number] = x
    return found


@torch.no_grad()
def turns(model: SmolLM2, tokens: Tensor, middle: float = 1.0) -> Tensor:
    """Return by how much the weight of each norm turns its vector: median over tokens, in degrees.

    Args:
        model: any.
        tokens: (B, T).
        middle: share of each norm's weights that stay as they are; what is smaller or larger than
            those in the middle is limited to their range.

    Returns:
        One angle for each norm in the order in which they run, the last norm's at the end.
    """
    found: list[Tensor] = []
    ends = torch.tensor([0.5 - middle / 2, 0.5 + middle / 2])

    def look(norm: RMSNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, weight = inputs[0], norm.weight.clamp(*torch.quantile(norm.weight, ends))
        cosine = F.cosine_similarity(x, weight * x, dim=-1)  # (B, T)
        found.append(torch.rad2deg(cosine.clamp(-1, 1).acos()).median())

    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    hooks = [norm.register_forward_hook(look) for norm in norms]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)


def norm_weights(model: SmolLM2) -> dict[str, Tensor]:
    """Return the weights of the norms in the blocks, (layers, C) before each of the two parts."""
    layers = model.model.layers
    return {
        "before attention": torch.stack([b.input_layernorm.weight.detach() for b in layers]),
        "before the MLP": torch.stack([b.post_attention_layernorm.weight.detach() for b in layers]),
    }


def train_on_noise(
    norm: type[nn.Module], steps: int = 300, *, attention: bool = True
) -> tuple[SmolLM2, list[float]]:
    """Train a tiny model on tokens that nobody can predict: 16 kinds, drawn at random.

    Args:
        norm: the class of all its norms, made with a width.
        steps: of AdamW, each on 64 sequences of 8 tokens.
        attention: whether attention may write to the stream.

    Returns:
        The trained model, and its loss at each step.
    """
    torch.manual_seed(7)
    config = SmolLM2Config(
        vocab_size=KINDS, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
        head_dim=16, intermediate_size=128, init_std=0.125,
    )  # fmt: skip
    model = SmolLM2(config)
    for block in model.model.layers:
        block.input_layernorm, block.post_attention_layernorm = norm(64), norm(64)
        if not attention:
            nn.init.zeros_(block.self_attn.o_proj.weight).requires_grad_(False)
    model.model.norm = norm(64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(8)
    history = []
    for _ in range(steps):
        tokens = torch.randint(KINDS, (64, 9), generator=generator)  # (B, T + 1)
        _, loss = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return model, history


@torch.no_grad()
def loss_by_position(model: SmolLM2, sequences: int = 2048) -> list[float]:
    """Return the loss on fresh noise at each of the eight positions, in nats per token."""
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randint(KINDS, (sequences, 9), generator=generator)
    logits, _ = model(tokens[:, :-1])  # (B, T, V)
    losses = F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")  # (B, T)
    return losses.mean(0).tolist()
