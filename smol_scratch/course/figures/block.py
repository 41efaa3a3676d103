"""Figures of notebook 05, the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from smol_scratch.course.figures.style import COLOURS, new_figure

_LINE = COLOURS["residual"]
# label of a curve: colour, style
_DESIGNS = {
    "pre-norm": ("right", "-"),
    "post-norm": ("wrong", "--"),
    "post-norm, half the rate": ("norm", "-."),
    "no residual": ("other", ":"),
    "no residual, no gate": ("residual", "-."),
}


def _box(
    ax: Any, middle: float, height: float, label: str, colour: str, width: float = 1.7
) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (middle - width / 2, height - 0.36), width, 0.72, zorder=3,
            boxstyle="round,pad=0.0,rounding_size=0.12",
            facecolor=COLOURS[colour], edgecolor=COLOURS[colour],
        )
    )  # fmt: skip
    ax.text(middle, height, label, ha="center", va="center", fontsize=9, color="white", zorder=4)


def _arrow(
    ax: Any, start: tuple[float, float], end: tuple[float, float], head: bool = True
) -> None:
    style = {"arrowstyle": "-|>" if head else "-", "color": _LINE, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)


def _plus(ax: Any, x: float) -> None:
    ax.text(x, 2.0, "+", ha="center", va="center", fontsize=13, zorder=5,
            bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": _LINE})  # fmt: skip


def block_designs() -> Figure:
    """Draw one block twice: pre-norm, as in SmolLM2, and post-norm, as in 2017."""
    figure, axes = new_figure(2, 1, figsize=(7.5, 3.9))
    for ax, title in zip(
        axes, ("pre-norm (SmolLM2): nothing stands on the stream but sums",
               "post-norm (the Transformer of 2017): two norms stand on the stream"), strict=True,
    ):  # fmt: skip
        ax.set(xlim=(-0.1, 13.1), ylim=(0.1, 2.6), aspect="equal")
        ax.axis("off")
        ax.set_title(title, loc="left", fontsize=10.5)
        ax.plot([0.0, 12.6], [2.0, 2.0], color=_LINE, linewidth=3, solid_capstyle="round")
        _arrow(ax, (12.5, 2.0), (13.0, 2.0))
        ax.text(0.0, 2.2, "$x$", fontsize=11, color=_LINE)
    ax = axes[0]
    for left, colour, part, names in (
        (0.7, "attention", "attention", ("input_layernorm", "self_attn")),
        (6.9, "mlp", "SwiGLU", ("post_attention_layernorm", "mlp")),
    ):
        norm_x, part_x, end = left + 1.2, left + 3.6, left + 5.1
        _arrow(ax, (left, 2.0), (left, 0.9), head=False)
        _arrow(ax, (left, 0.9), (norm_x - 0.85, 0.9))
        _box(ax, norm_x, 0.9, "RMSNorm", "norm")
        _arrow(ax, (norm_x + 0.85, 0.9), (part_x - 0.85, 0.9))
        _box(ax, part_x, 0.9, part, colour)
        _arrow(ax, (part_x + 0.85, 0.9), (end, 0.9), head=False)
        _arrow(ax, (end, 0.9), (end, 1.72))
        _plus(ax, end)
        for x, name in zip((norm_x, part_x), names, strict=True):
            ax.text(x, 0.33, name, ha="center", va="center", fontsize=8.5, family="monospace")
        ax.text(left + 0.12, 1.45, "read", fontsize=9, color=_LINE)
        ax.text(end - 0.12, 1.35, "write", fontsize=9, color=_LINE, ha="right")
    ax = axes[1]
    for left, colour, part in ((0.7, "attention", "attention"), (6.9, "mlp", "SwiGLU")):
        _arrow(ax, (left, 2.0), (left, 0.9), head=False)
        _arrow(ax, (left, 0.9), (left + 0.75, 0.9))
        _box(ax, left + 1.6, 0.9, part, colour)
        _arrow(ax, (left + 2.45, 0.9), (left + 3.2, 0.9), head=False)
        _arrow(ax, (left + 3.2, 0.9), (left + 3.2, 1.72))
        _plus(ax, left + 3.2)
        _box(ax, left + 4.65, 2.0, "RMSNorm", "norm")
    return figure


def gradients(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the size of the gradient in each block, before the first step.

    Args:
        panels: title to (design to norm of the gradient in blocks 0, 1, …).
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.5, 3.4), sharey=True)
    for ax, (title, designs) in zip(axes, panels.items(), strict=True):
        for label, norms in designs.items():
            colour, style = _DESIGNS[label]
            ax.plot(norms, style, color=COLOURS[colour], label=label)
        ax.set(yscale="log", xlabel="block", title=title)
    axes[0].set_ylabel("norm of the block's gradient")
    axes[1].legend(fontsize=9)
    return figure


def race(grid: Mapping[tuple[str, str, float], Sequence[float]], floor: float) -> Figure:
    """Draw how trainings ended: a dot for each seed, a panel for each spread of the weights.

    Args:
        grid: (spread, wiring, learning rate) to the last loss of each seed, in nats.
        floor: the loss of a model that knows how frequent each character is, and nothing else.
    """
    spreads = list(dict.fromkeys(spread for spread, _, _ in grid))
    wirings = list(dict.fromkeys(wiring for _, wiring, _ in grid))
    rates = sorted({rate for _, _, rate in grid})
    figure, axes = new_figure(1, len(spreads), figsize=(7.5, 3.4), sharey=True)
    for ax, spread in zip(axes, spreads, strict=True):
        for i, wiring in enumerate(wirings):
            colour, style = _DESIGNS[wiring]
            places = [j + 0.16 * (i - 1) for j in range(len(rates))]
            ends = [grid[spread, wiring, rate] for rate in rates]
            for place, seeds in zip(places, ends, strict=True):
                ax.plot([place] * len(seeds), seeds, "o", color=COLOURS[colour], markersize=5)
            means = [float(np.mean(seeds)) for seeds in ends]
            ax.plot(places, means, style, color=COLOURS[colour], linewidth=1.4, label=wiring)
        ax.axhline(floor, color=COLOURS["residual"], linewidth=1, linestyle=":")
        ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        ax.set(title=spread, xlabel="learning rate")
    axes[0].set_ylabel("loss of the last 20 steps")
    axes[0].text(0, floor, "only character frequencies", fontsize=9, va="bottom")
    axes[1].legend(fontsize=9, loc="best")
    return figure


def stream_sizes(rms: np.ndarray, lost: Sequence[int], marked: Mapping[str, int]) -> Figure:
    """Draw how large the residual stream is after each block of the real model.

    Args:
        rms: root mean square of each token's vector, (blocks + 1, T).
        lost: after each block, the tokens whose norm fails in float16.
        marked: label to position of the tokens that get a line of their own.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.5))
    figure.set_layout_engine("constrained", wspace=0.06)
    passed = np.arange(len(rms))
    others = np.delete(rms, list(marked.values()), axis=1)
    left.fill_between(passed, others.min(1), others.max(1), color=COLOURS["norm"], alpha=0.3,
                      linewidth=0, label="all other tokens")  # fmt: skip
    left.plot(passed, np.median(others, axis=1), color=COLOURS["residual"], linewidth=1.4,
              label="their median")  # fmt: skip
    looks = (("wrong", "--"), ("query", "-."))
    for (label, position), (colour, style) in zip(marked.items(), looks, strict=False):
        left.plot(passed, rms[:, position], style, color=COLOURS[colour], label=label)
    left.set(
        yscale="log", xlabel="blocks passed", ylabel="RMS of a token's vector", ylim=(0.08, 3e4)
    )
    left.legend(fontsize=8.5, loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.8)
    right.bar(passed, lost, color=COLOURS["wrong"])
    right.axhline(rms.shape[1], color=COLOURS["residual"], linewidth=1, linestyle="--")
    right.text(0, rms.shape[1] - 2, f"all {rms.shape[1]} tokens", fontsize=9, va="top")
    right.set(xlabel="blocks passed", ylabel="tokens lost in float16", ylim=(0, rms.shape[1] * 1.1))
    return figure


def writes(ratios: Mapping[str, Sequence[float]], cosines: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how much each branch adds to the stream, and in which direction.

    Args:
        ratios: "attention" and "MLP" to the length of the write over that of the stream.
        cosines: the same to the cosine between write and stream.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.3))
    looks = {"attention": ("attention", "o-"), "MLP": ("mlp", "s--")}
    for ax, values in ((left, ratios), (right, cosines)):
        for label, series in values.items():
            colour, style = looks[label]
            ax.plot(series, style, color=COLOURS[colour], label=label, markersize=4, linewidth=1.4)
        ax.set_xlabel("block")
    left.set(yscale="log", ylabel="length of the write /\nlength of the stream")
    left.legend(fontsize=9)
    right.axhline(0, color=COLOURS["residual"], linewidth=1)
    right.set(ylabel="cosine of write and stream", ylim=(-0.4, 0.8))
    return figure


def skipped(rise: Sequence[float]) -> Figure:
    """Draw what the loss gains when one block is left out.

    Args:
        rise: for each block, loss without it minus loss of the whole model, in nats.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    ax.bar(range(len(rise)), rise, color=COLOURS["residual"])
    for block, value in enumerate(rise):
        if value > 0.5:
            ax.text(block, value + 0.08, f"{value:.1f}", ha="center", fontsize=9)
    ax.set(xlabel="block left out", ylabel="rise of the loss (nats a token)")
    ax.set_xticks(range(0, len(rise), 3))
    return figure


def lens(ranks: Mapping[str, Sequence[float]], vocabulary: int) -> Figure:
    """Draw the rank that the output head would give to a token after each block.

    Args:
        ranks: label to median rank after 0, 1, … blocks.
        vocabulary: the worst rank.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    looks = (("right", "o-"), ("wrong", "s--"))
    for (label, values), (colour, style) in zip(ranks.items(), looks, strict=False):
        ax.plot(values, style, color=COLOURS[colour], label=label, markersize=4, linewidth=1.4)
    ax.axhline(
        vocabulary, color=COLOURS["other"], linewidth=1, linestyle=":", label="worst possible"
    )
    ax.set(yscale="log", xlabel="blocks passed", ylabel="median rank (1 = first choice)")
    ax.invert_yaxis()
    ax.legend(fontsize=9, loc="lower right")
    return figure
