"""Figures of notebook 01, RMSNorm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from smol_scratch.course.figures.style import COLOURS, new_figure


def vectors(panels: Mapping[str, Sequence[float]]) -> Figure:
    """Draw small vectors side by side as bars, each with its mean and root mean square.

    Args:
        panels: title to the values of one vector, all of the same length.
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.5, 2.7), sharey=True)
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        v = np.asarray(values, dtype=float)
        ax.bar(range(len(v)), v, color=COLOURS["norm"], width=0.65)
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.axhline(v.mean(), color=COLOURS["wrong"], linewidth=1.4, linestyle="--")
        ax.set_title(f"{title}\nmean {v.mean():.2f}, RMS {np.sqrt((v**2).mean()):.2f}")
        ax.set_xticks(range(len(v)), [f"$x_{i}$" for i in range(len(v))])
    axes[0].set_ylabel("value (dashed: mean)")
    return figure


def stream_growth(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the size of the residual stream after each block.

    Args:
        curves: panel title to (label of the start to root mean square after 0, 1, … blocks).
    """
    figure, axes = new_figure(1, len(curves), figsize=(7.5, 3.3), sharey=True)
    styles = ["-", "--", "-.", ":"]
    colours = [COLOURS[name] for name in ("norm", "gate", "attention", "other")]
    for ax, (title, panel) in zip(axes, curves.items(), strict=True):
        for (label, values), style, colour in zip(panel.items(), styles, colours, strict=False):
            sizes = np.array(values, dtype=float)
            sizes[~np.isfinite(sizes) | (sizes > 1e12)] = np.nan
            ax.plot(sizes, style, color=colour, label=label)
            end = int(np.flatnonzero(np.isfinite(sizes))[-1])
            if end < len(sizes) - 1:
                ax.plot(end, sizes[end], "X", color=colour, markersize=8)
        ax.set(yscale="log", xlabel="blocks passed", title=title, xlim=(-1, 31))
    axes[0].set_ylabel("RMS of the residual stream")
    axes[0].legend(title="RMS at the start", fontsize=9, title_fontsize=9, loc="upper right")
    return figure


def precision_error(sizes: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the relative error of RMSNorm against the size of its input.

    Args:
        sizes: root mean square of the input.
        errors: label to relative error at each size; infinite where the result is useless.
    """
    figure, ax = new_figure(figsize=(7.2, 3.5))
    looks = [("wrong", "--", "o"), ("key", "-.", "s"), ("right", "-", "^"), ("value", ":", "v")]
    for (label, values), (colour, style, mark) in zip(errors.items(), looks, strict=False):
        v = np.clip(np.nan_to_num(np.asarray(values, dtype=float), nan=1, posinf=1), 1e-5, 1)
        ax.plot(sizes, v, style, marker=mark, markersize=4, color=COLOURS[colour], label=label)
    ax.set(xscale="log", yscale="log", xlabel="root mean square of the input",
           ylabel="relative error (1 = useless)", ylim=(5e-5, 2))  # fmt: skip
    ax.legend(fontsize=9, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.25))
    return figure


def losses(curves: Mapping[str, Sequence[float]], floor: float, floor_label: str) -> Figure:
    """Draw training losses against a floor that no honest model can pass.

    Args:
        curves: label to loss in nats at each step.
        floor: loss in nats.
        floor_label: what the floor is.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    for (label, values), (colour, style) in zip(
        curves.items(), (("right", "-"), ("wrong", "--")), strict=False
    ):
        ax.plot(values, style, color=COLOURS[colour], label=label)
    ax.axhline(floor, color=COLOURS["residual"], linewidth=1.2, linestyle=":", label=floor_label)
    ax.set(xlabel="training step", ylabel="loss (nats a token)", ylim=(0, None))
    ax.legend(fontsize=9, loc="lower left")
    return figure


def norm_weights(rows: Mapping[str, np.ndarray]) -> Figure:
    """Draw how the learned weights of RMSNorm are spread, layer by layer.

    Args:
        rows: title to an array of weights, (layers, C).
    """
    figure, axes = new_figure(1, len(rows), figsize=(7.5, 3.2))
    for ax, (title, weights) in zip(axes, rows.items(), strict=True):
        x = np.arange(len(weights))
        low, quarter, middle, three, high = np.percentile(weights, [1, 25, 50, 75, 99], axis=1)
        ax.fill_between(x, low, high, color=COLOURS["norm"], alpha=0.25, label="98 % of channels")
        ax.fill_between(x, quarter, three, color=COLOURS["norm"], alpha=0.6, label="half of them")
        ax.plot(x, middle, color=COLOURS["residual"], linewidth=1.5, label="median")
        ax.axhline(
            1, color=COLOURS["wrong"], linewidth=1.2, linestyle="--", label="start of training"
        )
        ax.set(xlabel="layer", title=title, ylim=(-0.15, 1.15))
    axes[0].set_ylabel("weight of the norm")
    axes[1].legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(0, 0.86))
    return figure
