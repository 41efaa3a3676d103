"""Checkers for notebook 05, the block."""

from __future__ import annotations

import operator
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


class _Lost(Block):
    """A block in which attention's result replaces the stream."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def stack(lost: int = 7) -> tuple[list[Block], Tensor]:
    """Return twelve small blocks, one of them broken, and a stream (B, T, C) to feed them."""
    blocks = [block for seed in range(4) for block in _blocks(seed)]
    for block in blocks:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            part.weight.mul_(0.5)
    blocks[lost].__class__ = _Lost
    return blocks, _stream(9)


@exercise
def check_lost_plus(answer: Callable[[Sequence[Block], Tensor], int]) -> str:
    """Expect a function (blocks, x) -> the number of the block that lost a plus sign."""
    for lost in (7, 2, 10, 0):
        blocks, x = stack(lost)
        with torch.no_grad():
            found = answer(blocks, x.clone())
        try:
            number = operator.index(found)
        except (TypeError, ValueError):
            raise Hint("the function must return one whole number, from 0 to 11") from None
        if number not in range(12):
            raise Hint(f"{number} is no number from 0 to 11")
        where = f"in a stack whose block {lost} is broken, your function says {number}; "
        if number in (lost - 1, lost + 1):
            raise Hint(f"{where}that is next to it. The first block is number 0, and the input "
                       "of a block is the output of the one before")  # fmt: skip
        if number != lost:
            raise Hint(f"{where}but that block adds, and its output still points where its "
                       "input did")  # fmt: skip
    return "found in four stacks: its output forgot its input, and no shape and no error says so"


def _with_norms(block: Block, x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    x = x + block.self_attn(first(x))
    return x + block.mlp(second(x))


def _wrong_wirings(block: Block, x: Tensor) -> dict[str, Tensor]:
    """Return what plausible mistakes give: the hint to the output."""
    attention, mlp = block.self_attn, block.mlp
    first, second = block.input_layernorm, block.post_attention_layernorm
    h = x + attention(first(x))
    post = first(x + attention(x))
    return {
        "that is post-norm: the norms belong into the branches, before attention and the MLP":
            second(post + mlp(post)),
        "the MLP reads the stream from before attention wrote: it must read h": h + mlp(second(x)),
        "the norms are swapped: `input_layernorm` comes first":
            _with_norms(block, x, second, first),
        "`input_layernorm` is used twice": _with_norms(block, x, first, first),
        "both plus signs are missing": mlp(second(attention(first(x)))),
        "the second sum is missing: what the MLP wrote must be added to h": mlp(second(h)),
        "the last sum starts from x: what attention wrote is lost": x + mlp(second(h)),
        "the first sum is missing: h is x plus what attention wrote":
            attention(first(x)) + mlp(second(attention(first(x)))),
        "the branches read the stream as it is: where are the norms?": x + attention(x)
            + mlp(x + attention(x)),
    }  # fmt: skip


@exercise
def check_block(answer: type[nn.Module]) -> str:
    """Expect a class that is made of (config, rope) and maps x (B, T, C) to y (B, T, C)."""
    if not (isinstance(answer, type) and issubclass(answer, nn.Module)):
        raise Hint("a class is wanted, and it must be an nn.Module")
    right, x = _blocks(3)[0], _stream(3)
    made = answer(_SMALL, RotaryPositionalEmbedding(_SMALL.head_dim, _SMALL.block_size))
    wanted, found = set(right.state_dict()), set(made.state_dict())
    if missing := sorted(wanted - found):
        raise Hint(f"no weight named {missing[0]}; the names are those in the drawing")
    if more := sorted(found - wanted):
        raise Hint(f"{more[0]} is one weight too many: two norms, attention and SwiGLU are all")
    made.load_state_dict(right.state_dict())
    with torch.no_grad():
        before = x.clone()
        y, expected = made(x), right(before)
        if not torch.equal(x, before):
            raise Hint("the block changed its input in place: `x = x + …`, not `x += …`")
        if not isinstance(y, Tensor) or y.shape != x.shape:
            shape = tuple(y.shape) if isinstance(y, Tensor) else "no tensor"
            raise Hint(f"the output must have the stream's shape {tuple(x.shape)}: {shape}")
        for hint, wrong in _wrong_wirings(right, x).items():
            if _off(y, wrong) < 1e-4:
                raise Hint(hint)
    if _off(y, expected) > 1e-4:
        raise Hint("the output is another. Follow the thick line in the drawing, part by part")
    return "your block equals the package's: same names, same output"


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
        for place, norm in (("first", first), ("second", second)):
            if len(norm.weight.unique()) < len(norm.weight):
                raise Hint(f"two weights of the {place} norm are equal: a block in which these "
                           "two trade places gives the same output")  # fmt: skip
    return "every mistake with the norms shows"
