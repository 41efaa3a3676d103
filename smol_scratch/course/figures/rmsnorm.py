"""Figures of notebook 01, RMSNorm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.drawing import arrow, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure


def pencil(x: Sequence[float], weight: Sequence[float]) -> Figure:
    """Draw RMSNorm of one short vector as a calculation on paper.

    Args:
        x: the vector.
        weight: of the norm, one for each channel.
    """
    v, w = np.asarray(x, dtype=float), np.asarray(weight, dtype=float)
    mean_square = float((v**2).mean())
    rms = mean_square**0.5
    figure, ax = canvas(10.4, 5.2)
    left = 2.2
    rows = (
        (4.5, [f"{value:g}" for value in v], "x", "other"),
        (3.1, [f"{value:g}" for value in v**2], "x²", "other"),
        (1.6, [f"{value:.3f}" for value in v / rms], "x / RMS", "norm"),
        (0.1, [f"{value:.3f}" for value in w * v / rms], "w · x / RMS", "norm"),
    )
    for bottom, words, label, colour in rows:
        cells(ax, left, bottom, words, colour, label=label)
    middle, right = left + len(v) / 2, left + len(v)
    arrow(ax, (middle, 4.5), (middle, 3.7), "square each number")
    arrow(ax, (right, 3.4), (right + 0.9, 3.4))
    ax.text(right + 1.0, 3.4, f"mean {mean_square:g}\nroot {rms:.2f} = RMS", va="center",
            fontsize=11, color=COLOURS["norm"], weight="bold")  # fmt: skip
    arrow(ax, (right + 1.9, 2.95), (right + 1.9, 2.12), colour="norm")
    ax.text(right + 1.9, 1.9, "divide x by RMS", ha="center", va="center", fontsize=10)
    arrow(ax, (right + 0.6, 1.9), (right + 0.02, 1.9), colour="norm")
    ax.plot([right, right + 3.9, right + 3.9, right + 3.2], [4.8, 4.8, 1.9, 1.9],
            color=COLOURS["other"], linewidth=1.5)  # fmt: skip
    arrow(ax, (middle, 1.6), (middle, 0.7), "times the learned weight, w = "
          + ", ".join(f"{value:g}" for value in w))  # fmt: skip
    return describe(
        figure,
        "RMSNorm on paper. A row of numbers is squared, the mean of the squares and its root are "
        "taken, the row itself is divided by that root, and each number is multiplied by its own "
        "weight.",
    )


def clouds(panels: Mapping[str, np.ndarray], followed: int) -> Figure:
    """Draw what norms make of many vectors of two numbers.

    Args:
        panels: title to points, (N, 2).
        followed: number of the point that is drawn as an arrow in each panel.
    """
    figure, axes = new_figure(1, len(panels), figsize=(8.4, 2.8), sharex=True, sharey=True)
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        ax.axhline(0, color=COLOURS["other"], linewidth=0.8)
        ax.axvline(0, color=COLOURS["other"], linewidth=0.8)
        ax.scatter(*points.T, s=9, color=COLOURS["norm"], alpha=0.5, linewidths=0)
        ax.annotate("", points[followed], (0, 0), arrowprops={
            "arrowstyle": "-|>", "color": COLOURS["wrong"], "linewidth": 2.0,
            "shrinkA": 0, "shrinkB": 0,
        })  # fmt: skip
        ax.set(title=title, aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2),
               xticks=(-2, 0, 2), yticks=(-2, 0, 2))  # fmt: skip
        ax.title.set_fontsize(11)
        ax.set_xlabel("first number")
    axes[0].set_ylabel("second number")
    return describe(
        figure,
        "Four panels of the same points on a plane. The input is a cloud. LayerNorm leaves two "
        "points only. RMSNorm puts every point on a circle, in its old direction. The learned "
        "weight stretches the circle into an ellipse.",
    )


def stream_sizes(
    curves: Mapping[str, Sequence[float]],
    highest: float,
    title: str = "Without norms the stream overflows",
) -> Figure:
    """Draw the size of the residual stream after each block, with norms and without.

    Args:
        curves: label to root mean square after 0, 1, … blocks; not finite where it overflowed.
        highest: the largest number that a float32 holds.
        title: what the figure shows.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    looks = (("right", "-"), ("wrong", "--"), ("residual", "-."))
    below = True  # where the label of a curve that stays finite stands
    for (label, values), (colour, style) in zip(curves.items(), looks, strict=False):
        sizes = np.array(values, dtype=float)
        sizes[~np.isfinite(sizes)] = np.nan
        ax.plot(sizes, style, color=COLOURS[colour], linewidth=2)
        end = int(np.flatnonzero(np.isfinite(sizes))[-1])
        if end < len(sizes) - 1:
            ax.plot(end + 1, highest, "X", color=COLOURS[colour], markersize=9)
            ax.text(end + 0.6, 1e33, label, fontsize=10, color=COLOURS[colour], va="top")
        else:
            place, side = (sizes[end] / 30, "top") if below else (sizes[end] * 30, "bottom")
            ax.text(end, place, label, fontsize=10, color=COLOURS[colour], ha="right", va=side)
            below = False
    ax.axhline(highest, color=COLOURS["residual"], linewidth=1.2, linestyle=":")
    ax.text(len(sizes) - 1, highest * 3, "no float32 beyond this line (×: overflow)",
            ha="right", va="bottom", fontsize=9.5)  # fmt: skip
    ax.set(yscale="log", xlabel="blocks passed", ylabel="RMS, median of the tokens",
           title=title,
           xlim=(-0.5, len(sizes) - 0.5), ylim=(1e-5, 1e44),
           yticks=[10.0**e for e in range(0, 41, 10)])  # fmt: skip
    return describe(
        figure,
        "Size of the residual stream against blocks passed, on a logarithmic axis: "
        + "; ".join(
            f"{' '.join(label.split())}, "
            + (
                f"an overflow in block {int(np.isfinite(values).sum())}"
                if not np.isfinite(values).all()
                else "finite through all blocks"
            )
            for label, values in curves.items()
        )
        + ".",
    )


def axes_of_norms() -> Figure:
    """Draw over which numbers RMSNorm, BatchNorm and the bug of notebook 01 take the mean."""
    figure, axes = new_figure(1, 3, figsize=(8.2, 2.9))
    kinds = (
        ("RMSNorm:\none token", "norm", lambda b, t, c: b == 0 and t == 1),
        ("The bug: one channel\nof one sequence", "wrong", lambda b, t, c: b == 0 and c == 2),
        ("BatchNorm: one channel\nof the whole batch", "other", lambda b, t, c: c == 2),
    )
    B, T, C = 2, 4, 6
    for ax, (title, colour, chosen) in zip(axes, kinds, strict=True):
        for b in reversed(range(B)):
            for t in range(T):
                for c in range(C):
                    on = chosen(b, t, c)
                    ax.add_patch(
                        Rectangle(
                            (c + 1.5 * b, -t + 1.3 * b), 1, 1, edgecolor="#888888", linewidth=0.8,
                            facecolor=COLOURS[colour] if on else "white", zorder=2 - b,
                        )
                    )  # fmt: skip
        ax.set(xlim=(-1.6, C + 2), ylim=(-T - 1, 2.6), aspect="equal", title=title)
        ax.title.set_fontsize(10.5)
        ax.axis("off")
    verdicts = (
        "each token has its own mean",
        "leaks: later tokens are in the mean",
        "leaks: other texts are in it, too",
    )
    for ax, verdict in zip(axes, verdicts, strict=True):
        ax.text(C / 2 + 0.7, -T - 0.1, verdict, ha="center", va="top", fontsize=9.5)
    figure.supxlabel("front: sequence 1, back: sequence 2", fontsize=9.5)
    axes[0].text(C / 2, -T + 0.85, "channels →", ha="center", va="top", fontsize=9.5)
    axes[0].text(-0.25, 1 - T / 2, "← tokens", rotation=90, ha="right", va="center", fontsize=9.5)
    return describe(
        figure,
        "Three copies of a batch of two sequences, drawn as sheets with a row for each token and a "
        "column for each channel. RMSNorm takes its mean over one row. The bug takes it over one "
        "column of one sheet, later tokens included. BatchNorm takes it over that column of both "
        "sheets.",
    )


def leak(
    curves: Mapping[str, Sequence[float]],
    by_position: Sequence[float],
    floor: float,
    silent: float,
) -> Figure:
    """Draw training losses that pass a floor, and where in a sequence they do it.

    Args:
        curves: label to loss in nats at each step; the second is the one that cheats.
        by_position: its loss at positions 1, 2, …, in nats.
        floor: in nats; no honest model can pass it.
        silent: loss of a cheating model without attention, the mean over all but the last position.
    """
    figure, (ax, bars) = new_figure(1, 2, figsize=(8.4, 3.3), sharey=True)
    looks = (("right", "-"), ("wrong", "--"))
    for (label, values), (colour, style) in zip(curves.items(), looks, strict=False):
        ax.plot(values, style, color=COLOURS[colour], label=label)
    ax.axhspan(0, floor, color=COLOURS["other"], alpha=0.15, linewidth=0)
    ax.text(0, 0.08, "impossible without\nreading the future", fontsize=9.5, va="bottom")
    ax.set(xlabel="training step", ylabel="loss (nats per token)", title="In training")
    ax.legend(fontsize=9.5, loc="lower left", bbox_to_anchor=(0, 0.2))
    places = np.arange(1, len(by_position) + 1)
    colours = [COLOURS["wrong" if loss < floor else "other"] for loss in by_position]
    bars.bar(places, by_position, color=colours, width=0.7)
    bars.text(places[-1] + 0.4, by_position[-1] + 0.05, "no future to read", ha="right",
              va="bottom", fontsize=9.5)  # fmt: skip
    bars.plot([0.6, len(places) - 0.6], [silent, silent], "--", color=COLOURS["residual"])
    bars.text(0.6, silent + 0.05, "without attention", fontsize=9.5, va="bottom")
    bars.set(xlabel="position in the sequence", xticks=places, ylim=(0, max(by_position) + 0.5),
             title="Norm over time, after training")  # fmt: skip
    bars.grid(axis="x", visible=False)
    for panel in (ax, bars):
        panel.axhline(floor, color=COLOURS["residual"], linewidth=1.2, linestyle=":")
    bars.text(0.5, floor + 0.05, "best without the future, ln 16", fontsize=9.5, va="bottom")
    return describe(
        figure,
        "Left: training losses on random tokens. The model whose norm runs over channels falls to "
        "the floor and stays there; the one whose norm runs over time goes straight through it. "
        "Right: the loss of that one at each of eight positions. It lies below the floor at the "
        "first seven, and below the dashed line of a model without attention; it lies above the "
        "floor at the last, which has no later token to read.",
    )


def norm_weights(rows: Mapping[str, np.ndarray]) -> Figure:
    """Draw how the learned weights of RMSNorm are spread, block by block.

    Args:
        rows: title to an array of weights, (layers, C).
    """
    figure, axes = new_figure(1, len(rows), figsize=(7.5, 3.3), sharey=True)
    for ax, (title, weights) in zip(axes, rows.items(), strict=True):
        x = np.arange(1, len(weights) + 1)
        low, quarter, middle, three, high = np.percentile(weights, [0, 25, 50, 75, 100], axis=1)
        ax.fill_between(x, low, high, color=COLOURS["norm"], alpha=0.25, linewidth=0)
        ax.fill_between(x, quarter, three, color=COLOURS["norm"], alpha=0.7, linewidth=0)
        ax.plot(x, middle, color=COLOURS["residual"], linewidth=1.5)
        ax.axhline(1, color=COLOURS["wrong"], linewidth=1.2, linestyle="--")
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.set(xlabel="block", title=title[0].upper() + title[1:])
    axes[0].set(ylabel="weight of the norm", ylim=(-0.45, 1.6))
    axes[0].text(1, 1.03, "usual start", ha="left", va="bottom", fontsize=9.5,
                 color=COLOURS["wrong"])  # fmt: skip
    axes[1].text(1, 1.5, "pale: all channels\ndark: the middle half\nline: the median",
                 ha="left", va="top", fontsize=9)  # fmt: skip
    return describe(
        figure,
        "Learned weights of the norms against the block, before attention and before the MLP. The "
        "median is almost zero in the very first norm and between a tenth and a half in all the "
        "others, far below 1. It rises over the first blocks and changes little afterwards. The "
        "middle half of the channels lies close together, except in the middle blocks; a few "
        "channels lie far away, and some weights before attention are negative.",
    )
