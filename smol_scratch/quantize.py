"""Weights in eight or four bits: small whole numbers, and for every 32 of them the size of a step.

To write one token all weights are read once, so a model in a quarter of the bytes can be quicker,
and fits where the whole one does not. Only weights are small here: what flows between the layers
keeps its 32 or 16 bits, and sums are float32.

Two forms, whose numbers are those of GGUF's files. A *group* is 32 neighbours in a row.

    int8 (Q8_0)   weight = scale · whole              whole from -127 to 127      9 bits a weight
    int4 (Q4_1)   weight = scale · whole + minimum    whole from 0 to 15          5 bits a weight

The file's int8 takes 8.5 bits: scales are float16 numbers, which here are kept as float32 (the same
number), because each group then begins with one word of 32 bits in both forms.

``QuantizedMatrix.dense`` is the definition; everything else must give the same up to rounding.

Letters: R rows and C columns of a matrix, N groups in a row, W words in a group.

Source: ggml-org/ggml, ggml-quants.c; Dettmers et al., 2022, arXiv:2208.07339, for why groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.layout import laid_out
from smol_scratch.model import SmolLM2
from smol_scratch.wrappers import unwrapped

FORMS = ("int8", "int4")
GROUP = 32  # weights that share a scale
TILE = 16  # rows side by side in memory: a vector register's worth of 32-bit words, or two
LARGEST_HALF = 65_504.0
# Rows of a large matrix that are made whole at a time: 9 MB at C = 576, where all would be 113.
AT_ONCE = 4096


class Blocks(NamedTuple):
    """A matrix in the form of a GGUF file.

    Attributes:
        data: the whole numbers, (R, N, bytes) uint8: for int8 the 32 of a group, for int4 sixteen
            bytes, of which byte i holds number i in its low half and number i + 16 in its high one.
        scale: (R, N) float16.
        minimum: (R, N) float16; None for int8.
    """

    data: Tensor
    scale: Tensor
    minimum: Tensor | None


def to_blocks(weight: Tensor, form: str) -> Blocks:
    """Round a matrix to the nearest numbers that a form can hold.

    Args:
        weight: (R, C) of any floating type; C a multiple of 32.
        form: "int8" or "int4".

    Returns:
        The blocks, equal to those of the ``gguf`` package bit for bit. A weight is wrong by half a
        step at most, and by what rounding scale and minimum to float16 adds. Where a step is too
        small for float16 (below 3e-8), it becomes zero, and so do the weights.

    Raises:
        ValueError: for another form, a matrix that is not as wide as whole groups, and numbers
            that are not finite or too large for float16.
    """
    _check_form(form)
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)}: must be a matrix whose columns are a "
            f"multiple of {GROUP}; a model as wide cannot be quantised"
        )
    groups = weight.detach().float().unflatten(1, (-1, GROUP))  # (R, N, 32)
    if not bool(groups.isfinite().all()):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} holds nan or inf")
    if form == "int8":
        minimum, scale = None, groups.abs().amax(-1) / 127  # (R, N)
    else:
        minimum = groups.amin(-1)
        scale = (groups.amax(-1) - minimum) / 15
    for values in (scale, minimum):
        if values is not None and bool((values.abs() > LARGEST_HALF).any()):
            raise ValueError(f"{form}: a weight is too large, its scale would be inf in float16")
    inverse = torch.where(scale > 0, 1 / scale, 0.0)[..., None]  # (R, N, 1)
    if minimum is None:
        steps = groups * inverse
        # Halves away from zero; ``round`` would take the even neighbour.
        data = (steps.sign() * (steps.abs() + 0.5).floor()).to(torch.int8).view(torch.uint8)
        return Blocks(data, scale.half(), None)
    steps = (groups - minimum[..., None]) * inverse + 0.5
    low, high = steps.to(torch.uint8).clamp(max=15).split(GROUP // 2, dim=-1)  # (R, N, 16)
    return Blocks(low | high << 4, scale.half(), minimum.half())


def from_blocks(blocks: Blocks) -> Tensor:
    """Return the weights that blocks stand for, float32: (..., N, bytes) -> (..., C)."""
    data, scale, minimum = blocks
    if minimum is None:
        return data.view(torch.int8).float().mul_(scale.float()[..., None]).flatten(-2)
    whole = torch.cat((data & 15, data >> 4), dim=-1).float()  # (..., N, 32)
    return whole.mul_(scale.float()[..., None]).add_(minimum.float()[..., None]).flatten(-2)


class Stored(NamedTuple):
    """What the memory holds of a matrix: the numbers of the file in another order.

    Sixteen rows lie side by side: the first four bytes of row 0's first group, those of row 1's,
    and so on. One instruction then works on several rows, each with a sum of its own.

    Attributes:
        words: four bytes of a group in one number, (R/16, N, W, 16) int32; W is 8 or 4.
        heads: how a group is to be read, (R/16, N, 16) int32: for int8 the bits of its scale as
            float32; for int4 those of scale and minimum as float16, the scale in the lower half.
        rows: R; where it is no multiple of 16, zeros fill up the last tile.
    """

    words: Tensor
    heads: Tensor
    rows: int


def _tiles(rows: Tensor) -> Tensor:
    """Put 16 rows side by side: (R, N, ...) -> (R/16, N, ..., 16)."""
    missing = -len(rows) % TILE
    if missing:
        rows = torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
    return rows.unflatten(0, (-1, TILE)).movedim(1, -1).contiguous()


def store(blocks: Blocks) -> Stored:
    """Reorder blocks into tiles."""
    data, scale, minimum = blocks
    words = data.contiguous().view(torch.int32)  # (R, N, W)
    heads = scale.float() if minimum is None else torch.stack((scale, minimum), dim=-1)
    heads = heads.view(torch.int32).reshape(scale.shape)  # (R, N)
    return Stored(_tiles(words), _tiles(heads), len(data))


def _in_file_order(words: Tensor, heads: Tensor) -> Blocks:
    """Return blocks from words, (..., N, W), and heads, (..., N), of rows one after the other."""
    data = words.contiguous().view(torch.uint8)  # (..., N, bytes)
    if words.shape[-1] * 4 == GROUP:
        return Blocks(data, heads.contiguous().view(torch.float32).half(), None)
    pairs = heads[..., None].contiguous().view(torch.float16)  # (..., N, 2)
    return Blocks(data, pairs[..., 0], pairs[..., 1])


def settled(x: Tensor) -> Tensor:
    """Have a compiled program compute a vector once, and keep it.

    Left to itself Inductor puts a short computation, such as a norm's, into the loop of the product
    that reads it, where it is done anew for every row of the matrix. It does not look through
    ``as_strided``.
    """
    return x.as_strided(x.shape, x.contiguous().stride())


def loads_integers() -> bool:
    """Tell whether compiled code loads words faster as integers than as floats of the same bits.

    Of Inductor's two ways (in PyTorch 2.13) one goes through the stack, word by word: where vectors
    are as long as AVX-512's, floats that are to be integers; elsewhere, integers. Each is several
    times as slow as the other (``python -m benchmarks.bench_quantize --layouts``).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiply_stored(matrix: Stored, x: Tensor) -> Tensor:
    """Multiply with one vector, (C,) -> (R,): the same as ``linear``, in a form that compiles well.

    The whole numbers of a word are cut out by shifts, which work on eight or sixteen words at once.
    Words and heads may come as float32 of the same bits, see ``loads_integers``.
    """
    words, heads = matrix.words.view(torch.int32), matrix.heads.view(torch.int32)
    N, W = words.shape[1:3]
    x = x.float()
    sums: Any
    if W * 4 == GROUP:
        parts = settled(x).view(N, W, 4, 1)  # byte j of word w is number 4 w + j
        sums = sum((words << 24 - 8 * j >> 24).float() * parts[:, :, j] for j in range(4))
        sums = settled(sums.sum(2))  # (R/16, N, 16)
        return (sums * heads.view(torch.float32)).sum(1).flatten()[: matrix.rows]
    parts = settled(x).view(N, 2, W, 4, 1)  # its low half is number 4 w + j, its high one 16 more
    sums = sum(
        (words >> 8 * j + 4 * high & 15).float() * parts[:, high, :, j]
        for j in range(4)
        for high in range(2)
    )
    scale, minimum = _halves(heads)  # (R/16, N, 16)
    totals = settled(parts.sum((1, 2, 3)))  # (N, 1): the minimum counts once for each number
    return ((sums * scale[:, :, None]).sum((1, 2)) + (minimum * totals).sum(1)).flatten()[
        : matrix.rows
    ]


def _halves(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float16 numbers in the lower and upper halves of words, as float32.

    Sign, exponent and digits are moved to where float32 has them. The exponent then counts from
    127 where float16 counts from 15, hence 2 ** 112; numbers below float16's normal ones come out
    right, too.
    """
    low = (heads << 16) & -(1 << 31) | (heads & 0x7FFF) << 13
    high = heads & -(1 << 31) | (heads >> 3) & 0x0FFFE000
    return low.view(torch.float32) * 2.0**112, high.view(torch.float32) * 2.0**112


def transposed(matrix: Stored) -> Tensor:
    """Return the whole matrix, columns first: ``dense().T``, in a form that compiles well.

    For several vectors at once: then it is made once, in the processor's cache, and used for all.

    Returns:
        (C, R) float32, R filled up to whole tiles with zeros.
    """
    words, heads = matrix.words.view(torch.int32), matrix.heads.view(torch.int32)
    tiles, N, W = words.shape[:3]
    j = (
        8 * torch.arange(4, dtype=torch.int32, device=words.device)[:, None]
    )  # (4, 1): one byte each
    if W * 4 == GROUP:
        numbers = (words[:, :, :, None] << 24 - j >> 24).float()  # (R/16, N, W, 4, 16)
        numbers = numbers * heads.view(torch.float32)[:, :, None, None]
    else:
        half = j[:2, :, None, None] // 2  # (2, 1, 1, 1): the low one, then the high one
        numbers = (words[:, :, None, :, None] >> j + half & 15).float()  # (R/16, N, 2, W, 4, 16)
        scale, minimum = (part[:, :, None, None, None] for part in _halves(heads))
        numbers = numbers * scale + minimum
    return numbers.movedim(0, -2).reshape(N * GROUP, tiles * TILE)


class QuantizedMatrix(nn.Module):
    """A matrix in few bits, which stands where a weight stands.

    ``F.linear(x, matrix)`` and ``F.embedding(idx, matrix)`` take it in place of a tensor, so the
    model's own code computes with it as it is. ``dtype`` is the type of what flows in and out,
    changed by ``model.to``; what is stored stays as it is.

    Source: "Extending PyTorch" in PyTorch's notes, ``__torch_function__`` for a type of one's own.
    """

    words: Tensor
    heads: Tensor
    flow: Tensor

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        words, heads, self.rows = store(blocks)
        self.register_buffer("words", words)
        self.register_buffer("heads", heads)
        self.register_buffer("flow", torch.empty(0), persistent=False)  # its type alone counts

    @property
    def form(self) -> str:
        """Return "int8" or "int4"."""
        return "int8" if self.words.shape[2] * 4 == GROUP else "int4"

    @property
    def shape(self) -> torch.Size:
        """(R, C), as of the matrix that it stands for."""
        return torch.Size((self.rows, self.heads.shape[1] * GROUP))

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.flow.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.words.nbytes + self.heads.nbytes

    @property
    def stored(self) -> Stored:
        """What the memory holds, as compiled code reads it fastest on this processor."""
        kind = torch.int32 if loads_integers() else torch.float32
        return Stored(self.words.view(kind), self.heads.view(kind), self.rows)

    def blocks(self, start: int = 0, end: int | None = None) -> Blocks:
        """Return rows in the form of the file: from ``start``, a multiple of 16, to ``end``."""
        end = self.rows if end is None else min(end, self.rows)
        tiles = slice(start // TILE, -(-end // TILE))

        def rows(tiled: Tensor) -> Tensor:
            return tiled[tiles].movedim(-1, 1).flatten(0, 1)[: end - start]

        return _in_file_order(rows(self.words), rows(self.heads))

    def dense(self, start: int = 0, end: int | None = None) -> Tensor:
        """Return the matrix, or some of its rows, in float32: (R, C)."""
        return from_blocks(self.blocks(start, end))

    def lookup(self, idx: Tensor) -> Tensor:
        """Return the rows with these numbers in the type of activations: (...) -> (..., C)."""
        tile, lane = idx // TILE, idx % TILE
        blocks = _in_file_order(self.words[tile, :, :, lane], self.heads[tile, :, lane])
        return from_blocks(blocks).to(self.dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Multiply each vector with the matrix, summed in float32: (..., C) -> (..., R)."""
        starts = range(0, self.rows, AT_ONCE)
        parts = [F.linear(x.float(), self.dense(start, start + AT_ONCE)) for start in starts]
        return (torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]).type_as(x)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer PyTorch's functions in place of a tensor."""
        given = list(args)
        if func is F.linear and len(given) > 1 and (given[2:] or [None])[0] is None:
            return given[1].linear(given[0])
        if func is F.embedding and len(given) > 1:
            return given[1].lookup(given[0])
        raise TypeError(
            f"{getattr(func, '__name__', func)}: a quantised matrix can be multiplied and looked "
            "up, and no more; its numbers are in .dense()"
        )


class QuantizedSmolLM2(SmolLM2):
    """A ``SmolLM2`` whose matrices are ``QuantizedMatrix``; norms have the activations' type.

    It can be asked, not trained: whole numbers have no gradient.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ValueError: for training mode.
        """
        if mode:
            raise ValueError(
                "a quantised model cannot be trained: train the model that it was made of, and "
                "quantize it afterwards"
            )
        return super().train(mode)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights: matrices, with their scales, and norms."""
        matrices = sum(m.nbytes for m in self.modules() if isinstance(m, QuantizedMatrix))
        return matrices + sum(parameter.nbytes for parameter in self.parameters())


def assemble(config: Any, weights: Mapping[str, Tensor | QuantizedMatrix]) -> QuantizedSmolLM2:
    """Return the model around matrices and norms, by the names of ``SmolLM2.state_dict``.

    Args:
        config: the model's.
        weights: quantised matrices, and the norms as float32 tensors.
    """
    model = laid_out(QuantizedSmolLM2, config)
    for name, weight in weights.items():
        place = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(weight, Tensor):
            weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        else:
            del place.weight  # the parameter makes room for a module of that name
        place.weight = weight
    return model.eval()


def quantize(model: nn.Module, form: str) -> QuantizedSmolLM2:
    """Return the same model with its matrices in 8 or 4 bits, embedding and head included.

    A tied embedding stays one table. The model given stays as it is.

    Args:
        model: in 32 or 16 bits; what flows through the new one has its type.
        form: "int8" or "int4".

    Raises:
        ValueError: for another form, a model that is quantised already, or a matrix that cannot be.
        TypeError: when the model is none.
    """
    _check_form(form)
    plain = unwrapped(model)
    check_plain(plain)
    weights: dict[str, Tensor | QuantizedMatrix] = {}
    for name, weight in plain.state_dict().items():
        try:
            weights[name] = weight.float() if weight.ndim == 1 else quantized(weight, form)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    made = assemble(plain.config, weights)
    embedding: Any = plain.model.embed_tokens
    made.to(embedding.weight.device, embedding.weight.dtype)
    for name in ("origin", "chat_template"):
        if hasattr(plain, name):
            setattr(made, name, getattr(plain, name))
    source = getattr(plain, "source", None)
    made.source = f"{source}; {form}" if source else form  # type: ignore[assignment]
    return made


def quantized(weight: Tensor, form: str) -> QuantizedMatrix:
    """Return a matrix, (R, C), in 8 or 4 bits."""
    return QuantizedMatrix(to_blocks(weight, form))


def dequantize(model: nn.Module) -> SmolLM2:
    """Return a plain model with the very weights that a quantised one computes with, in float32."""
    held = unwrapped(model)
    weights = {}
    for name, _ in _plain_shapes(held):
        weight = held.get_submodule(name.removesuffix(".weight")).weight
        matrix = isinstance(weight, QuantizedMatrix)
        weights[name] = weight.dense() if matrix else weight.detach().float().clone()  # type: ignore[operator,union-attr]
    plain = SmolLM2(held.config).eval()
    plain.load_state_dict(weights)
    return plain


def _plain_shapes(model: SmolLM2) -> list[tuple[str, torch.Size]]:
    plain = laid_out(SmolLM2, model.config)
    return [(name, weight.shape) for name, weight in plain.state_dict().items()]


def check_plain(model: nn.Module) -> None:
    """Raise for a quantised model where one of whole weights is needed."""
    if isinstance(model, QuantizedSmolLM2):
        raise ValueError(
            "the model is quantised: take the one that it was made of, or dequantize(model)"
        )


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"quantize={form!r:.60}: must be one of {', '.join(FORMS)}")
