"""Figures of notebook 05, the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

_LINE = COLOURS["residual"]
# wiring: colour, marker. No dashes: where they begin would depend on the last digits.
_DESIGNS = {"pre-norm": ("right", ""), "post-norm": ("wrong", "s"), "no residual": ("other", "^")}
_LEARNED = LinearSegmentedColormap.from_list("learned", [COLOURS["right"], "#CFE3F2", "#F2F2F2"])


def opening(
    curves: Mapping[str, np.ndarray], steps: Sequence[float], floor: float, chance: float
) -> Figure:
    """Draw the losses of many trainings, without and with the additions.

    Args:
        curves: name to losses in nats per character, (runs, points).
        steps: of the points.
        floor: the loss of a model that knows how frequent each character is, and nothing else.
        chance: the loss of a blind guess.
    """
    figure, ax = new_figure(figsize=(7.2, 3.3))
    for (name, lines), (colour, style) in zip(
        curves.items(), (("wrong", "--"), ("right", "-")), strict=True
    ):
        ax.plot(steps, lines.T, style, color=COLOURS[colour], linewidth=1, alpha=0.7)
        last = lines[:, -1]
        stuck = last > chance - 0.01
        for group, words in (
            (last[stuck], f"{stuck.sum()} runs {name}:\nnothing learned"),
            (last[~stuck], f"{(~stuck).sum()} runs {name}"),
        ):
            if len(group):
                ax.text(203, float(group.mean()), words, color=COLOURS[colour], va="center",
                        fontsize=10)  # fmt: skip
    ax.axhline(floor, color=_LINE, linewidth=1)
    ax.text(203, floor - 0.06, "only how frequent\neach character is", fontsize=10, va="top")
    ax.set(xlabel="training step", ylabel="loss (nats per character)", xticks=range(50, 201, 50),
           title="thirty blocks: two plus signs decide")  # fmt: skip
    ax.set_xlim(20, 265)
    return describe(figure, """Training losses of thirty blocks. Without the plus signs half of the
        eighteen runs stay at the loss of a blind guess from first to last, and the other half end
        just above that of a model that only knows how frequent each character is; with them all
        eighteen fall below it.""")  # fmt: skip


def _plus(ax: Any, x: float, y: float) -> None:
    ax.text(x, y, "+", ha="center", va="center_baseline", fontsize=14, zorder=5,
            bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": _LINE})  # fmt: skip


def designs() -> Figure:
    """Draw a block in three wirings: pre-norm with the example's numbers, post-norm, no residual.

    The numbers are those of the example by hand.
    """
    figure, ax = canvas(16.6, 9.4)
    for y, title in (
        (8.25, "pre-norm, as in SmolLM2: nothing but sums on the stream"),
        (3.4, "post-norm, the Transformer of 2017: two norms on the stream"),
        (0.7, "no residual: no stream"),
    ):
        ax.text(0.1, y + 0.75, title, fontsize=10.5, va="bottom", weight="bold")
    y = 8.1
    ax.plot([0, 16.2], [y, y], color=_LINE, linewidth=3, zorder=0)
    arrow(ax, (15.9, y), (16.5, y))
    for left, colour, part, names, numbers in (
        (1.4, "attention", "attention", ("input_layernorm", "self_attn"),
         (["0.2", "1.4"], ["7", "1"])),
        (8.6, "mlp", "SwiGLU", ("post_attention_layernorm", "mlp"), (["1", "1"], ["2", "−2"])),
    ):  # fmt: skip
        ax.plot([left, left], [y, y - 1.5], color=_LINE, linewidth=1.5)
        arrow(ax, (left, y - 1.5), (left + 0.4, y - 1.5))
        box(ax, left + 0.4, y - 1.8, 1.7, "RMSNorm", "norm")
        arrow(ax, (left + 2.1, y - 1.5), (left + 2.8, y - 1.5))
        box(ax, left + 2.8, y - 1.8, 1.7, part, colour)
        ax.plot([left + 4.5, left + 5.1], [y - 1.5, y - 1.5], color=_LINE, linewidth=1.5)
        arrow(ax, (left + 5.1, y - 1.5), (left + 5.1, y - 0.22))
        _plus(ax, left + 5.1, y)
        ax.text(left + 0.12, y - 0.75, "read", fontsize=10)
        ax.text(left + 4.98, y - 0.75, "write", fontsize=10, ha="right")
        for x, row, tone in ((left + 0.25, numbers[0], "norm"), (left + 2.65, numbers[1], colour)):
            cells(ax, x, y - 3.1, row, tone, size=9)
        for x, name in ((left + 1.25, names[0]), (left + 3.65, names[1])):
            ax.text(x, y - 1.95, name, fontsize=8, family="monospace", ha="center", va="top")
    for x, row in ((0.05, ["1", "7"]), (6.9, ["8", "8"]), (14.1, ["10", "6"])):
        cells(ax, x, y + 0.15, row, "residual", size=9)
    y = 3.55
    ax.plot([0, 16.2], [y, y], color=_LINE, linewidth=3, zorder=0)
    arrow(ax, (15.9, y), (16.5, y))
    for left, colour, part in ((0.6, "attention", "attention"), (7.9, "mlp", "SwiGLU")):
        ax.plot([left, left], [y, y - 0.95], color=_LINE, linewidth=1.5)
        arrow(ax, (left, y - 0.95), (left + 0.6, y - 0.95))
        box(ax, left + 0.6, y - 0.95 - HIGH / 2, 1.8, part, colour)
        ax.plot([left + 2.4, left + 3.2], [y - 0.95, y - 0.95], color=_LINE, linewidth=1.5)
        arrow(ax, (left + 3.2, y - 0.95), (left + 3.2, y - 0.22))
        _plus(ax, left + 3.2, y)
        box(ax, left + 4.2, y - HIGH / 2, 1.7, "RMSNorm", "norm")
    y = 0.55
    for left, width, text, colour in (
        (0.6, 1.7, "RMSNorm", "norm"), (3.4, 1.8, "attention", "attention"),
        (7.9, 1.7, "RMSNorm", "norm"), (10.7, 1.8, "SwiGLU", "mlp"),
    ):  # fmt: skip
        box(ax, left, y - HIGH / 2, width, text, colour)
    for start, end in ((0.0, 0.6), (2.3, 3.4), (5.2, 7.9), (9.6, 10.7), (12.5, 16.5)):
        arrow(ax, (start, y), (end, y))
    return describe(figure, """Three wirings of a block. Pre-norm: the stream runs straight through
        two additions; each branch reads a normalised copy and writes its result back; the numbers
        of the example stand below the boxes. Post-norm: the stream itself passes through two norms.
        No residual: everything passes through every part.""")  # fmt: skip


def sensitivity(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]],
    controls: Mapping[str, Sequence[float]],
) -> Figure:  # fmt: skip
    """Draw how strongly the loss depends on the stream after each block, before training.

    Args:
        measured: wiring to the sensitivity after 0, 1, … blocks, in units of the last.
        predicted: wiring to what the calculation by hand expects, the same.
        controls: wiring to the measurement with the gate taken out.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.7), sharey=True)
    for name, values in measured.items():
        colour, marker = _DESIGNS[name]
        look = {"color": COLOURS[colour], "linewidth": 2.0, "marker": marker, "markersize": 5}
        axes[0].plot(values, markevery=3, **look)
        axes[0].plot(predicted[name], color="black", linewidth=0.9)
        axes[1].plot(controls[name], markevery=3, **look)
        axes[0].text(0.3, 1.5 * float(values[0]), name, fontsize=10, va="bottom",
                     color=COLOURS[colour] if colour != "other" else "#666666")  # fmt: skip
    axes[0].annotate("thin: by hand", (9, predicted["no residual"][9]), (13, 2e4), fontsize=10,
                     arrowprops={"arrowstyle": "-", "color": _LINE})  # fmt: skip
    axes[1].annotate("the gradient\ncomes from here", (29.5, 1.3), (14, 60), fontsize=10,
                     arrowprops={"arrowstyle": "-|>", "color": _LINE})  # fmt: skip
    axes[0].set(yscale="log", ylabel="sensitivity of the loss\n(1 after the last block)",
                title="with SwiGLU")  # fmt: skip
    axes[1].set(title="with the gate taken out")
    for ax in axes:
        ax.set(xlabel="blocks passed", ylim=(0.3, 2e6))
    return describe(figure, """Sensitivity of the loss to the stream, on a logarithmic axis, from
        the first block to the last. Left: without a residual and with post-norm straight lines
        climb towards the first block, steep and less steep, near the lines predicted by hand;
        pre-norm is nearly flat. Right: with the gate taken out all three are nearly
        flat.""")  # fmt: skip


def race(grid: Mapping[tuple[str, str, float], Sequence[float]], floor: float) -> Figure:
    """Draw how trainings ended, as a grid: wiring × learning rate, a panel for each spread.

    Args:
        grid: (spread, wiring, learning rate) to the last loss of each seed, in nats.
        floor: the loss of a model that knows how frequent each character is, and nothing else.
    """
    spreads = list(dict.fromkeys(spread for spread, _, _ in grid))
    wirings = list(dict.fromkeys(wiring for _, wiring, _ in grid))
    rates = sorted({rate for _, _, rate in grid})
    figure, axes = new_figure(1, len(spreads), figsize=(7.5, 2.9), sharey=True)
    for ax, spread in zip(axes, spreads, strict=True):
        rows = np.array([[loss for rate in rates for loss in grid[spread, wiring, rate]]
                         for wiring in wirings])  # fmt: skip
        seeds = rows.shape[1] // len(rates)
        ax.pcolormesh(rows, cmap=_LEARNED, vmin=2.5, vmax=floor, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(rows.shape):
            loss = rows[row, column]
            words = f"{loss:.1f}" if loss < floor else "×"
            ax.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=8.5,
                    color="white" if loss < 2.75 else "black")  # fmt: skip
        for edge in range(seeds, rows.shape[1], seeds):
            ax.axvline(edge, color="white", linewidth=4)
        ax.set_xticks([seeds * (i + 0.5) for i in range(len(rates))],
                      [f"{rate:g}" for rate in rates])  # fmt: skip
        ax.set_yticks(np.arange(len(wirings)) + 0.5, wirings)
        ax.set(title=spread, xlabel="learning rate (three seeds each)")
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    axes[0].invert_yaxis()
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.12)  # wider than the gaps between the learning rates
    return describe(figure, """A grid of trainings: wiring by learning rate, for two spreads of the
        initial weights, three seeds each. Dark squares learned, crosses ended no lower than
        the frequencies of characters. Pre-norm has no cross; post-norm has only crosses at the
        large spread and is the darkest at the small one; no residual has only
        crosses.""")  # fmt: skip


def norm_weights(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw the weights of a block's two norms against each other, a dot for each channel.

    Args:
        panels: title to the weights of the first norm and of the second.
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.5, 2.8))
    for ax, (title, (first, second)) in zip(axes, panels.items(), strict=True):
        ax.plot(first, second, ".", color=COLOURS["norm"], markersize=4)
        (left, right), (low, high) = (
            (min(0.0, 1.1 * float(min(v))), 1.1 * float(max(v))) for v in (first, second)
        )
        ax.set(title=title, xlabel="before attention", xlim=(left, right), ylim=(low, high))
        ax.axline((0, 0), slope=1, color=_LINE, linewidth=0.9, linestyle=":")
    axes[0].set_ylabel("before the MLP")
    return describe(figure, """Weights of the two norms of three blocks, one dot for each channel:
        away from the diagonal on which they would be the same.""")  # fmt: skip


def stream(sizes: Sequence[float], shares: np.ndarray) -> Figure:
    """Draw how the stream grows through the real model, and how much each branch adds.

    Args:
        sizes: RMS after 0, 1, … blocks.
        shares: length of the write beside the stream's, (attention and MLP, blocks).
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.2))
    left.plot(sizes, color=_LINE)
    left.set(yscale="log", xlabel="blocks passed", ylabel="RMS of a token's vector",
             title="the stream grows …")  # fmt: skip
    for row, label, colour, style in (
        (shares[0], "attention", "attention", "o-"), (shares[1], "MLP", "mlp", "s--")
    ):  # fmt: skip
        right.plot(100 * row, style, color=COLOURS[colour], markersize=4, linewidth=1.4,
                   label=label)  # fmt: skip
    right.axhline(100, color=_LINE, linewidth=0.9, linestyle=":")
    right.set(yscale="log", xlabel="block", ylabel="write, in % of the stream",
              title="… and the writes, measured by it")  # fmt: skip
    right.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    right.legend(fontsize=10)
    return describe(figure, """Left: the stream's size grows by more than a hundredfold through the
        model, mostly in the first block. Right: after it, most branches add between a tenth and
        a half of the stream's length; the last MLP adds more.""")  # fmt: skip
