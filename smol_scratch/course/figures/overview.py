"""The map of the whole model that opens every notebook."""

from __future__ import annotations

from collections.abc import Collection

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from smol_scratch.course.figures.style import COLOURS, new_figure

# name: (left, bottom, width, height, label, colour). The stream of data runs from left to right.
_PARTS = {
    "tokens": (0.0, 0.75, 1.0, 0.9, "text\n→ tokens", "other"),
    "embedding": (1.25, 0.75, 1.35, 0.9, "embedding\n49,152 × 576", "embedding"),
    "norm1": (3.22, 0.85, 1.05, 0.7, "RMSNorm", "norm"),
    "attention": (4.5, 0.4, 1.5, 1.15, "grouped-query\nattention", "attention"),
    "rope": (4.72, 0.5, 1.06, 0.36, "RoPE", "query"),
    "norm2": (6.78, 0.85, 1.05, 0.7, "RMSNorm", "norm"),
    "mlp": (8.05, 0.85, 1.05, 0.7, "SwiGLU", "mlp"),
    "norm3": (10.3, 0.85, 1.05, 0.7, "RMSNorm", "norm"),
    "head": (11.6, 0.75, 1.25, 0.9, "head =\nembedding", "embedding"),
    "logits": (13.15, 0.75, 1.0, 0.9, "logits\n→ text", "other"),
}
# What a notebook lights up.
_LIT = {
    "norm": ("norm1", "norm2", "norm3"),
    "rope": ("rope",),
    "attention": ("attention", "rope"),
    "mlp": ("mlp",),
    "block": ("norm1", "attention", "rope", "norm2", "mlp"),
    "model": tuple(_PARTS),
    "tokens": ("tokens",),
}


def model_map(lit: str, done: Collection[str] = ()) -> Figure:
    """Draw SmolLM2-135M from text to text, with today's part in colour.

    Args:
        lit: today's part: "norm", "rope", "attention", "mlp", "block", "model" or "tokens".
        done: parts built before, drawn with a coloured frame.

    Raises:
        ValueError: for a part that the map does not have.
    """
    for part in (lit, *done):
        if part not in _LIT:
            raise ValueError(f"{part!r}: must be one of {', '.join(_LIT)}")
    bright = set(_LIT[lit])
    framed = {name for part in done for name in _LIT[part]} - bright
    figure, ax = new_figure(figsize=(9.4, 1.95))
    ax.set(xlim=(-0.1, 14.25), ylim=(-0.05, 2.75), aspect="equal")
    ax.axis("off")
    line = COLOURS["residual"]
    # The residual stream, and the two places where a block adds to it.
    ax.plot([2.55, 11.6], [2.15, 2.15], color=line, linewidth=2.4, solid_capstyle="round")
    ax.plot([2.6, 2.85], [1.2, 2.15], color=line, linewidth=1.4)
    ax.text(2.95, 2.32, "residual stream, 576 wide", fontsize=9, color=line, va="bottom")
    for left, right, parts in ((3.1, 6.35, (4.27, 4.5, 6.0)), (6.65, 9.4, (7.83, 8.05, 9.1))):
        ax.annotate(
            "", (left + 0.13, 1.2), (left, 2.15), arrowprops={"arrowstyle": "-|>", "color": line}
        )
        ax.plot(parts[:2], [1.2, 1.2], color=line, linewidth=1.2)
        ax.annotate(
            "", (right, 2.08), (parts[2], 1.2), arrowprops={"arrowstyle": "-|>", "color": line}
        )
        ax.text(right, 2.15, "+", ha="center", va="center", fontsize=13, zorder=5,
                bbox={"boxstyle": "circle,pad=0.08", "fc": "white", "ec": line})  # fmt: skip
    for start, end in ((1.0, 1.25), (11.35, 11.6), (12.85, 13.15)):
        ax.annotate("", (end, 1.2), (start, 1.2), arrowprops={"arrowstyle": "-|>", "color": line})
    ax.annotate("", (10.3, 1.2), (9.95, 2.15), arrowprops={"arrowstyle": "-|>", "color": line})
    ax.plot([9.95, 11.6], [2.15, 2.15], color="white", linewidth=4)  # the stream ends here
    block = FancyBboxPatch(
        (2.95, 0.12), 6.75, 2.12, boxstyle="round,pad=0.04,rounding_size=0.15",
        fill=False, edgecolor=line, linestyle=(0, (4, 3)), linewidth=1.2,
    )  # fmt: skip
    ax.add_patch(block)
    ax.text(9.66, 0.2, "× 30", ha="right", va="bottom", fontsize=11, color=line)
    for name, (left, bottom, width, height, label, colour) in _PARTS.items():
        on = name in bright
        ax.add_patch(
            FancyBboxPatch(
                (left, bottom),
                width,
                height,
                boxstyle="round,pad=0.0,rounding_size=0.12",
                facecolor=COLOURS[colour] if on else "white",
                edgecolor=COLOURS[colour] if on or name in framed else "#BBBBBB",
                linewidth=2.0 if on or name in framed else 1.0,
            )
        )
        high = bottom + height * (0.72 if name == "attention" else 0.5)
        ax.text(left + width / 2, high, label, ha="center", va="center", fontsize=8,
                color="white" if on else "#333333")  # fmt: skip
        if name == "rope" and on:
            ax.patches[-1].set_edgecolor("white")
    return figure
