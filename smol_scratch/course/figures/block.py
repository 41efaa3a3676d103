"""Figures of notebook 05, the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

_LINE = COLOURS["residual"]
# wiring: colour, marker. No dashes: where they begin would depend on the last digits.
_DESIGNS = {"pre-norm": ("right", "o"), "post-norm": ("wrong", "s"), "no residual": ("other", "^")}
_LEARNED = LinearSegmentedColormap.from_list("learned", [COLOURS["right"], "#CFE3F2"])


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
                place = "bottom" if floor < group.mean() < chance - 0.01 else "center"
                ax.text(203, float(np.median(group)), words, color=COLOURS[colour], va=place,
                        fontsize=10)  # fmt: skip
    ax.axhline(floor, color=_LINE, linewidth=1)
    ax.text(203, floor - 0.02, "only how frequent\neach character is", fontsize=10, va="top")
    ax.set(xlabel="training step", ylabel="loss (nats per character)", xticks=range(50, 201, 50),
           title="thirty blocks: two plus signs decide")  # fmt: skip
    ax.set_xlim(20, 201)  # the words stand beside the axes
    return describe(figure, """Training losses of thirty blocks. Without the plus signs half of the
        eighteen runs stay at the loss of a blind guess from first to last, and the other half end
        just above that of a model that only knows how frequent each character is; with them all
        eighteen fall below it.""")  # fmt: skip


def _plus(ax: Any, x: float, y: float) -> None:
    ax.add_patch(Circle((x, y), 0.28, facecolor="white", edgecolor=_LINE, zorder=5))
    for across, up in ((0.15, 0), (0, 0.15)):
        ax.plot([x - across, x + across], [y - up, y + up], color="black", linewidth=1.3, zorder=6)


def designs() -> Figure:
    """Draw a block in three wirings, each with the example by hand: (1, 7) goes in."""
    figure, ax = canvas(16.6, 9.9)
    for y, title in (
        (9.3, "pre-norm, as in SmolLM2: nothing but sums on the stream"),
        (3.85, "post-norm, the Transformer of 2017: two norms on the stream"),
        (1.25, "no residual: no stream"),
    ):
        ax.text(0.1, y, title, fontsize=10.5, va="bottom", weight="bold")
    y = 8.35
    ax.plot([0, 16.2], [y, y], color=_LINE, linewidth=3, zorder=0)
    arrow(ax, (15.9, y), (16.5, y))
    for left, colour, part, names, numbers in (
        (1.4, "attention", "attention", ("input_layernorm", "self_attn"),
         (["0.2", "1.4"], ["7", "1"])),
        (8.6, "mlp", "SwiGLU", ("post_attention_\nlayernorm", "mlp"), (["1", "1"], ["2", "−2"])),
    ):  # fmt: skip
        ax.plot([left, left], [y, y - 1.5], color=_LINE, linewidth=1.5)
        arrow(ax, (left, y - 1.5), (left + 0.4, y - 1.5))
        box(ax, left + 0.4, y - 1.8, 1.7, "RMSNorm", "norm")
        arrow(ax, (left + 2.1, y - 1.5), (left + 2.8, y - 1.5))
        box(ax, left + 2.8, y - 1.8, 1.7, part, colour)
        ax.plot([left + 4.5, left + 5.1], [y - 1.5, y - 1.5], color=_LINE, linewidth=1.5)
        arrow(ax, (left + 5.1, y - 1.5), (left + 5.1, y - 0.28))
        _plus(ax, left + 5.1, y)
        ax.text(left + 0.12, y - 0.75, "read", fontsize=10)
        ax.text(left + 4.98, y - 0.75, "write", fontsize=10, ha="right")
        for x, row, tone in ((left + 0.25, numbers[0], "norm"), (left + 2.65, numbers[1], colour)):
            cells(ax, x, y - 3.35, row, tone, size=9)
        for x, name in ((left + 1.25, names[0]), (left + 3.65, names[1])):
            ax.text(x, y - 1.92, name, fontsize=8, family="monospace", ha="center", va="top")
    ax.text(0.05, y - 3.05, "outputs", fontsize=9, va="center")
    for x, row in ((0.05, ["1", "7"]), (6.9, ["8", "8"]), (14.1, ["10", "6"])):
        cells(ax, x, y + 0.2, row, "residual", size=9)
    y = 3.2
    ax.plot([0, 16.2], [y, y], color=_LINE, linewidth=3, zorder=0)
    arrow(ax, (15.9, y), (16.5, y))
    for left, colour, part in ((1.2, "attention", "attention"), (8.7, "mlp", "SwiGLU")):
        ax.plot([left, left], [y, y - 0.95], color=_LINE, linewidth=1.5)
        arrow(ax, (left, y - 0.95), (left + 0.5, y - 0.95))
        box(ax, left + 0.5, y - 0.95 - HIGH / 2, 1.8, part, colour)
        ax.plot([left + 2.3, left + 2.8], [y - 0.95, y - 0.95], color=_LINE, linewidth=1.5)
        arrow(ax, (left + 2.8, y - 0.95), (left + 2.8, y - 0.28))
        _plus(ax, left + 2.8, y)
        box(ax, left + 4.6, y - HIGH / 2, 1.7, "RMSNorm", "norm")
    for x, pair in (
        (0.1, "(1, 7)"), (4.4, "(36, 12)"), (7.55, "(1.3, 0.4)"), (11.82, "(2.5, −0.4)"),
        (15.05, "(1.4, −0.2)"),
    ):  # fmt: skip
        ax.text(x, y + 0.12, pair, fontsize=8.5, va="bottom")
    y = 0.55
    for left, width, text, colour in (
        (1.5, 1.7, "RMSNorm", "norm"), (5.3, 1.8, "attention", "attention"),
        (8.7, 1.7, "RMSNorm", "norm"), (12.4, 1.8, "SwiGLU", "mlp"),
    ):  # fmt: skip
        box(ax, left, y - HIGH / 2, width, text, colour)
    for start, end, pair in (
        (0.0, 1.5, "(1, 7)"), (3.2, 5.3, "(0.2, 1.4)"), (7.1, 8.7, "(7, 1)"),
        (10.4, 12.4, "(1.4, 0.2)"), (14.2, 16.5, "(0.6, −0.4)"),
    ):  # fmt: skip
        arrow(ax, (start, y), (end, y))
        ax.text((start + end) / 2 - 0.1, y + 0.1, pair, fontsize=8.5, va="bottom", ha="center")
    return describe(figure, """Three wirings of a block, and what each makes of (1, 7). Pre-norm:
        the stream runs straight through two additions; each branch reads a normalised copy and
        writes its result back: (1, 7) becomes (8, 8), then (10, 6). Post-norm: the stream itself
        passes through two norms, and small numbers come out. No residual: everything passes
        through every part, and again small numbers come out.""")  # fmt: skip


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
        axes[1].plot(controls[name], markevery=3, label=name, **look)
        axes[0].text(0.3, 1.5 * float(values[0]), name, fontsize=10, va="bottom",
                     color=COLOURS[colour] if colour != "other" else "#666666")  # fmt: skip
    axes[0].text(29.5, 6e5, "thin black lines: by hand", fontsize=10, ha="right")
    for ax, height in ((axes[0], 2e4), (axes[1], 60)):
        ax.annotate("the gradient\ncomes from here", (29.7, 1.5), (16, height), fontsize=10,
                    arrowprops={"arrowstyle": "-|>", "color": _LINE})  # fmt: skip
    axes[1].legend(fontsize=10, loc="upper right")
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


def race(grid: Mapping[tuple[str, str, float], Sequence[float]], floor: float, chance: float,
         words: str) -> Figure:  # fmt: skip
    """Draw how trainings ended, as a grid: rows by learning rates, two panels.

    Args:
        grid: (panel, row, learning rate) to the last loss of each seed, in nats.
        floor: the loss of a model that knows how frequent each character is, and nothing else.
        chance: the loss of a blind guess.
        words: alternative text.
    """
    panels = list(dict.fromkeys(panel for panel, _, _ in grid))
    names = list(dict.fromkeys(name for _, name, _ in grid))
    rates = sorted({rate for _, _, rate in grid})
    size = 8.6, 1.6 + 0.45 * len(names)
    figure, axes = new_figure(1, len(panels), figsize=size, sharey=True)
    for ax, panel in zip(axes, panels, strict=True):
        rows = np.array([[loss for rate in rates for loss in grid[panel, name, rate]]
                         for name in names])  # fmt: skip
        seeds = rows.shape[1] // len(rates)
        ax.set(xlim=(0, rows.shape[1]), ylim=(len(names), 0))
        for row, column in np.ndindex(rows.shape):
            loss = rows[row, column]
            colour = (
                _LEARNED((loss - 2.5) / (floor - 2.5)) if loss < floor
                else COLOURS["wrong"] if loss > chance - 0.01 else "#F6CDB0"
            )  # fmt: skip
            ax.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
            dark = loss < 2.75 or loss > chance - 0.01
            ax.text(column + 0.5, row + 0.5, f"{loss:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black")  # fmt: skip
        for edge in range(seeds, rows.shape[1], seeds):
            ax.axvline(edge, color="white", linewidth=4)
        ax.set_yticks(np.arange(len(names)) + 0.5, names)
        ax.set_xticks([seeds * (i + 0.5) for i in range(len(rates))],
                      [f"{rate:g}" for rate in rates])  # fmt: skip
        ax.set(title=panel, xlabel=f"learning rate ({seeds} seeds each)")
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    handles = [
        Patch(facecolor=colour, label=label)
        for colour, label in (
            (COLOURS["right"], f"below the frequencies ({floor:.2f})"),
            ("#F6CDB0", "not below them"),
            (COLOURS["wrong"], f"a blind guess ({chance:.2f})"),
        )
        if colour != COLOURS["wrong"] or max(map(max, grid.values())) > chance - 0.01
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=10)
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.06)  # wider than the gaps between the learning rates
    return describe(figure, words)


def norm_weights(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw the weights of a block's two norms against each other, a dot for each channel.

    Args:
        panels: title to the weights of the first norm and of the second.
    """
    pairs = panels.values()
    wide, high = (
        (min(0.0, 1.1 * min(float(min(pair[i])) for pair in pairs)),
         1.1 * max(float(max(pair[i])) for pair in pairs))
        for i in (0, 1)
    )  # fmt: skip
    figure, axes = new_figure(1, len(panels), figsize=(8.6, 2.5), sharex=True, sharey=True)
    for ax, (title, (first, second)) in zip(axes, panels.items(), strict=True):
        ax.plot(first, second, ".", color=COLOURS["norm"], markersize=3.5)
        ax.set(title=title, xlabel="before attention", xlim=wide,
               ylim=(min(high[0], -0.02), high[1]), aspect="equal")  # fmt: skip
        ax.axline((0, 0), slope=1, color=_LINE, linewidth=1.1, linestyle=":")
        ax.set_xticks([0, 0.5])
    axes[-1].text(high[1] - 0.02, high[1] - 0.06, "equal", fontsize=9, va="top")
    axes[0].set_ylabel("before\nthe MLP")
    return describe(figure, """Weights of the two norms of three blocks, one dot for each channel,
        the same scale on all axes. Block 0: a cloud far from the dotted diagonal on which they
        would be equal. Block 15: most dots on a line just below the diagonal. Block 24: a cloud
        on the diagonal with a long tail to the right.""")  # fmt: skip


def stream(sizes: Sequence[float], shares: np.ndarray) -> Figure:
    """Draw how the stream grows through the real model, and how much each branch adds.

    Args:
        sizes: RMS after 0, 1, … blocks.
        shares: length of the write beside the stream's, (attention and MLP, blocks).
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.2))
    left.plot(sizes, color=_LINE)
    left.set(yscale="log", xlabel="blocks passed", title="the stream grows",
             ylabel="RMS of a token's vector\n(median over tokens)")  # fmt: skip
    for row, label, colour, style in (
        (shares[0], "attention", "attention", "o-"), (shares[1], "MLP", "mlp", "s--")
    ):  # fmt: skip
        right.plot(100 * row, style, color=COLOURS[colour], markersize=4, linewidth=1.4,
                   label=label)  # fmt: skip
        for block in np.flatnonzero(row[1:] > 0.5) + 1:
            place = ((10, -3), "left") if block < 5 else ((4, 6), "right")
            right.annotate(f"block {block}", (block, 100 * row[block]), place[0], ha=place[1],
                           textcoords="offset points", fontsize=9)  # fmt: skip
    right.text(2, 111, f"block 0: MLP {float(f'{100 * shares[1][0]:.2g}'):,.0f}%", fontsize=9)
    right.axhline(100, color=_LINE, linewidth=0.9, linestyle=":")
    right.text(29.5, 102, "as long as the stream", fontsize=9, ha="right", va="bottom")
    right.set(ylim=(0, 120), xlabel="block", ylabel="write, in % of the stream",
              title="each write, as a share of the stream")  # fmt: skip
    right.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.5, 0.8))
    return describe(figure, """Left: the size of the stream grows by more than a hundredfold
        through the model, fourteenfold in the first block and then more slowly. Right: after
        it, most branches add between a tenth and a third of the length of the stream; attention
        in blocks 1 and 24 and the last MLP add half and more.""")  # fmt: skip
