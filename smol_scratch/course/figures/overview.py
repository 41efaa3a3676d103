"""The map of the whole model that opens every notebook."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from smol_scratch.course.figures.style import COLOURS, describe, new_figure

# name: (left, bottom, width, height, label, colour). The residual stream runs from left to right.
_PARTS = {
    "tokens": (0.0, 0.75, 1.9, 0.9, "text\n→ tokens", "other"),
    "embedding": (0.0, 2.75, 1.9, 0.9, "embedding\n49,152 × 576", "embedding"),
    "norm1": (2.75, 1.35, 1.45, 0.8, "RMSNorm", "norm"),
    "attention": (4.5, 0.75, 1.75, 1.7, "grouped-\nquery\nattention", "attention"),
    "rope": (4.72, 0.87, 1.31, 0.48, "RoPE", "query"),
    "norm2": (7.05, 1.35, 1.45, 0.8, "RMSNorm", "norm"),
    "mlp": (8.8, 1.35, 1.4, 0.8, "SwiGLU", "mlp"),
    "norm3": (11.35, 2.8, 1.35, 0.8, "RMSNorm", "norm"),
    "head": (13.1, 2.75, 1.9, 0.9, "head: the\nembedding", "embedding"),
    "logits": (13.1, 0.75, 1.9, 0.9, "logits →\nnext token", "other"),
}
# What a notebook lights up.
_LIT = {
    "norm": ("norm1", "norm2", "norm3"),
    "rope": ("rope",),
    "attention": ("attention", "rope"),
    "mlp": ("mlp",),
    "block": (),  # its frame and its two sums; the parts are built before
    "model": tuple(_PARTS),
    "ends": ("embedding", "norm3", "head"),
    "tokens": ("tokens",),
}
_STREAM = 3.2  # height of the residual stream


def model_map(lit: str, done: Collection[str] = ()) -> Figure:
    """Draw SmolLM2-135M from text to text, with today's part in colour.

    Args:
        lit: today's part: "norm", "rope", "attention", "mlp", "block", "ends" (what turns blocks
            into a model), "model" or "tokens".
        done: parts built before, drawn with a coloured frame.

    Raises:
        ValueError: for a part that the map does not have.
    """
    for known in (lit, *done):
        if known not in _LIT:
            raise ValueError(f"{known!r}: must be one of {', '.join(_LIT)}")
    bright = set(_LIT[lit])
    framed = {name for part in done for name in _LIT[part]} - bright
    figure, ax = new_figure(figsize=(8.6, 2.75))
    ax.set(xlim=(-0.1, 15.1), ylim=(-0.55, 4.15), aspect="equal")
    ax.axis("off")
    _block(ax, lit=lit == "block")
    line = COLOURS["residual"]
    ax.plot([1.9, 11.0], [_STREAM] * 2, color=line, linewidth=3.2, zorder=3)
    words = "residual stream" if lit == "block" else "residual stream: 576 numbers per token"
    ax.text(4.3, _STREAM + 0.12, words, fontsize=9.5, color=line, va="bottom")
    for path in (
        [(3.48, _STREAM), (3.48, 2.15)], [(4.2, 1.75), (4.5, 1.75)],
        [(6.25, 1.75), (6.6, 1.75), (6.6, _STREAM - 0.22)],
        [(7.78, _STREAM), (7.78, 2.15)], [(8.5, 1.75), (8.8, 1.75)],
        [(10.2, 1.75), (10.45, 1.75), (10.45, _STREAM - 0.22)],
        [(0.95, 1.65), (0.95, 2.75)], [(11.0, _STREAM), (11.35, _STREAM)],
        [(12.7, _STREAM), (13.1, _STREAM)], [(14.05, 2.75), (14.05, 1.65)],
    ):  # fmt: skip
        _arrow(ax, path, line)
    _arrow(ax, [(14.05, 0.75), (14.05, -0.25), (0.95, -0.25), (0.95, 0.75)], line, dashed=True)
    ax.text(7.5, -0.25, "append the new token, and again", ha="center", va="center", fontsize=9.5,
            color=line, bbox={"fc": "white", "ec": "none", "pad": 2})  # fmt: skip
    for x in (6.6, 10.45):
        ax.text(x, _STREAM, "+", ha="center", va="center", fontsize=12, zorder=5,
                color="white" if lit == "block" else "black",
                bbox={"boxstyle": "circle,pad=0.1", "fc": line if lit == "block" else "white",
                      "ec": line})  # fmt: skip
    for part_name, part in _PARTS.items():
        lit_up, built = part_name in bright, part_name in framed
        _box(ax, *part, lit=lit_up, built=built, low=part_name == "attention")
    names = ", ".join(sorted({_PARTS[name][4].replace("\n", " ") for name in bright}))
    today = {"model": "everything", "block": "the frame of a block, and its two sums"}
    return describe(
        figure,
        "Map of the model. Text becomes tokens, each token a vector of 576 numbers in the residual "
        "stream. Thirty blocks read from the stream and add to it: RMSNorm and grouped-query "
        "attention with RoPE, then RMSNorm and SwiGLU. A last RMSNorm and the head give logits; "
        "the token chosen from them is appended to the text, and all begins again. "
        f"{'Strongly drawn' if lit == 'block' else 'In colour'}: {today.get(lit, names)}.",
    )


def _block(ax: Any, *, lit: bool) -> None:
    """Draw the frame of a block, with the edges of others behind it; a strong one when lit."""
    for shift in (0.3, 0.15, 0.0):
        strong = lit and not shift
        ax.add_patch(
            FancyBboxPatch(
                (2.4 + shift, 0.45 + shift), 8.25, 3.25, zorder=1,
                facecolor="#E8E8E8" if strong else "white", linewidth=3.0 if strong else 1.1,
                edgecolor=COLOURS["residual"] if strong else "#777777",
                boxstyle="round,pad=0.0,rounding_size=0.15",
            )
        )  # fmt: skip
    ax.text(10.5, 0.55, "× 30", ha="right", va="bottom", fontsize=12, color=COLOURS["residual"])


def _arrow(
    ax: Any, path: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False
) -> None:
    """Draw a path of straight pieces that ends in an arrow head."""
    style = "--" if dashed else "-"
    *_, before, end = path
    ax.plot(*zip(*path[:-1], before, strict=True), style, color=colour, linewidth=1.3, zorder=3)
    ax.annotate("", end, before, zorder=3, arrowprops={
        "arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "linestyle": style,
        "shrinkA": 0, "shrinkB": 0,
    })  # fmt: skip


def _box(
    ax: Any, left: float, bottom: float, width: float, height: float, label: str, colour: str,
    *, lit: bool, built: bool, low: bool,
) -> None:  # fmt: skip
    """Draw a part: filled and bold when it is today's, framed when it was built before."""
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0.0,rounding_size=0.12",
            facecolor=COLOURS[colour] + "4D" if lit else "white", zorder=4,
            edgecolor=COLOURS[colour] if lit or built else "#AAAAAA",
            linewidth=2.6 if lit else 2.0 if built else 1.0,
        )
    )  # fmt: skip
    middle = bottom + height * (0.66 if low else 0.5)  # RoPE stands in the lower half of attention
    ax.text(left + width / 2, middle, label, ha="center", va="center", fontsize=9, zorder=5,
            weight="bold" if lit else "normal")  # fmt: skip
