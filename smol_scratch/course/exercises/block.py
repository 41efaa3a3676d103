"""Checkers for notebook 05, the block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from smol_scratch.cache import LayerCache
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
def check_third_reading(answer: Sequence[float]) -> str:
    """Expect the growth per block without a residual, and through 29 blocks with pre-norm."""
    if not isinstance(answer, Sequence) or len(answer) != 2:
        raise Hint("two numbers are wanted: (without a residual, with pre-norm)")
    block, whole = answer
    if abs(block - 2**0.5) < 0.01:
        raise Hint("without a residual: that is the factor of two readings; now there are three")
    if abs(block - 3) < 0.01:
        raise Hint("without a residual: it is the *squares* of independent changes that add")
    if abs(block - 3**0.5) > 0.01:
        raise Hint(f"without a residual: {block} is not it. What do three changes of 1% add up to?")
    if abs(whole - 3) < 1:
        raise Hint("pre-norm: that is the growth of two readings; write the new factor out")
    if whole > 20:
        raise Hint("pre-norm: do not forget the root; and nearly everything in the product cancels")
    if not 7 < whole < 12:
        raise Hint(
            f"pre-norm: {whole} is not it. In squares a block has S_(l+3) / S_(l+1): what is left "
            "of 29 such factors, with S_l = 1 + 0.95 l?"
        )
    return "a third reading makes √3 of √2, and the depth itself of its root"


_LOST = 7  # which of twelve blocks forgets to add


class _Lost(Block):
    """A block in which attention's result replaces the stream."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def stack() -> tuple[list[Block], Tensor]:
    """Return twelve small blocks, one of them broken, and a stream (B, T, C) to feed them."""
    blocks = [block for seed in range(4) for block in _blocks(seed)]
    for block in blocks:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            part.weight.mul_(0.5)
    blocks[_LOST].__class__ = _Lost
    return blocks, _stream(9)


@exercise
def check_lost_plus(answer: int) -> str:
    """Expect the number of the block that lost a plus sign."""
    if answer in (_LOST - 1, _LOST + 1):
        raise Hint(f"{answer} is next to it: the first block is number 0, and the input of a "
                   "block is the output of the one before")  # fmt: skip
    if answer not in range(12):
        raise Hint(f"{answer} is no number from 0 to 11")
    if answer != _LOST:
        raise Hint(f"block {answer} adds: its output still points where its input did")
    return "its output forgot its input, and no shape and no error says so"


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
