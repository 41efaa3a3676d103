"""Checkers for notebook 05, the block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import Block, RotaryPositionalEmbedding

_SMALL = SmolLM2Config(
    block_size=16,
    vocab_size=8,
    n_layer=3,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    head_dim=8,
    intermediate_size=48,
)


def _blocks(seed: int, fresh: bool = False) -> list[Block]:
    """Return three blocks without gradients, their norms fresh or random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rope = RotaryPositionalEmbedding(_SMALL.head_dim, _SMALL.block_size)
        blocks = [Block(_SMALL, rope).requires_grad_(False) for _ in range(_SMALL.n_layer)]
        for block in blocks:
            for weight in block.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=weight.shape[1] ** -0.5)
                elif not fresh:
                    weight.normal_(1, 0.3)
    return blocks


def _stream(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, _SMALL.n_embd, generator=generator)  # (B, T, C)


def _off(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of the expected size."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@exercise
def check_routes(answer: int) -> str:
    """Expect the number of routes from the input of three blocks to their output."""
    branches = 2 * 3
    routes = len(list(product(("round it", "through it"), repeat=branches)))
    if answer == 2**3:
        raise Hint(
            "8 would be right for one branch in each block; a block has two, one after another"
        )
    if answer in (branches, branches + 1, 2 * branches):
        raise Hint(
            f"{answer} is too few: the choice at one branch is free of the choice at the others, "
            "so do the numbers of choices add or multiply?"
        )
    if answer != routes:
        raise Hint(f"{answer} is not it; count for one block first, by drawing the routes")
    return "each of the six branches doubles the number of routes; one of them meets no branch"


@exercise
def check_ledger(answer: Callable[[Sequence[Block], Tensor], list[Tensor]]) -> str:
    """Expect a function (blocks, x) -> [x, first write, second write, ...], each (B, T, C)."""
    for seed in (1, 2):
        blocks, x = _blocks(seed), _stream(seed)
        with torch.no_grad():
            found = answer(blocks, x.clone())
            end, expected = x, [x]
            for block in blocks:
                gathered = block.self_attn(block.input_layernorm(end))
                made = block.mlp(block.post_attention_layernorm(end + gathered))
                expected += [gathered, made]
                end = block(end)
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            size = len(found) if isinstance(found, (list, tuple)) else "no list"
            raise Hint(f"{size}: expected the input and two writes for each of 3 blocks, 7 entries")
        if any(entry.shape != x.shape for entry in found):
            raise Hint(f"every entry must have the stream's shape, {tuple(x.shape)}")
        if _off(found[0], x) > 1e-5:
            raise Hint(
                "the first entry must be x itself, before any block (was it changed in place?)"
            )
        if _off(found[1], expected[1]) > 1e-4:
            raise Hint(
                "the first write is wrong: attention, on the normalised stream, without the sum"
            )
        if _off(found[2], expected[2]) > 1e-4:
            raise Hint(
                "the second write is wrong: does the MLP read the stream *after* the first sum?"
            )
        if _off(sum(found), end) > 1e-4:
            raise Hint(
                "the entries do not add up to the output: does each block read the latest stream?"
            )
        for found_one, expected_one in zip(found, expected, strict=True):
            if _off(found_one, expected_one) > 1e-4:
                raise Hint("they add up, but some entries are not what one branch wrote")
    return "seven entries, and their sum is the output"


def _with_norms(block: Block, x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    x = x + block.self_attn(first(x))
    return x + block.mlp(second(x))


@exercise
def check_revealing(answer: Callable[[Block], object]) -> str:
    """Expect a function that sets a fresh block's norms so that no mistake with them can hide."""
    for seed in (5, 6):
        block, x = _blocks(seed, fresh=True)[0], _stream(seed)
        before = {name: weight.clone() for name, weight in block.named_parameters()}
        with torch.no_grad():
            answer(block)
            for name, weight in block.named_parameters():
                if "layernorm" not in name and not torch.equal(weight, before[name]):
                    raise Hint(f"{name} was changed; the norms' weights are enough")
                if not torch.isfinite(weight).all():
                    raise Hint(f"{name} is no longer finite")
            first, second = block.input_layernorm, block.post_attention_layernorm
            ones = _blocks(seed, fresh=True)[0].input_layernorm
            reverse_1, reverse_2 = (_blocks(seed)[0].input_layernorm for _ in range(2))
            reverse_1.weight.data, reverse_2.weight.data = (
                first.weight.flip(0),
                second.weight.flip(0),
            )
            wrong = {
                "the first norm's weight is ignored": (ones, second),
                "the second norm's weight is ignored": (first, ones),
                "the two norms are swapped": (second, first),
                "the first norm is used twice": (first, first),
                "the second norm is used twice": (second, second),
                "the first norm's weights are in another order": (reverse_1, second),
                "the second norm's weights are in another order": (first, reverse_2),
            }
            right = block(x)
            for mistake, norms in wrong.items():
                if not _off(_with_norms(block, x, *norms), right) > 1e-3:
                    raise Hint(
                        f"with your weights, a block in which {mistake} gives the same output"
                    )
    return "seven mistakes with the norms, and each of them shows"
