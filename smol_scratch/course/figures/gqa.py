"""Figures of notebook 03, grouped-query attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from smol_scratch.course.figures.style import COLOURS, new_figure

# White for nothing, the colour of attention for all.
_SHADES = LinearSegmentedColormap.from_list("attention", ["white", COLOURS["attention"]])


def _readable(tokens: Sequence[str]) -> list[str]:
    """Return tokens as labels: without the leading blank, with a sign for the line end."""
    return [token.strip(" ").replace("\n", "↵") or "blank" for token in tokens]


def _bare(ax: Axes) -> None:
    """Take grid and frame off the axes of a map."""
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


def evidence(tokens: Sequence[str], whole: float, replaced: Sequence[float], answer: str) -> Figure:
    """Draw how sure a model is of the next token when one earlier token is replaced.

    Args:
        tokens: the tokens before the next one.
        whole: probability of the next token with all of them in place.
        replaced: probability of it with each of them replaced.
        answer: the next token.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    x = np.arange(len(tokens))
    below = np.asarray(replaced) < whole
    ax.axhline(whole, color=COLOURS["residual"], linewidth=1.4, linestyle="--")
    for side, colour, mark in ((below, "wrong", "v"), (~below, "right", "^")):
        ax.vlines(x[side], whole, np.asarray(replaced)[side], color=COLOURS[colour], linewidth=2.5)
        ax.plot(x[side], np.asarray(replaced)[side], mark, color=COLOURS[colour], markersize=9)
    ax.set(yscale="log", xlabel="the token that is replaced",
           ylabel=f"probability of “{answer.strip()}”")  # fmt: skip
    ax.set_xticks(x, _readable(tokens))
    ax.set_xlim(-0.6, len(x) - 0.4)
    ax.text(6.5, whole * 0.85, "nothing replaced", ha="center", va="top", fontsize=9,
            color=COLOURS["residual"])  # fmt: skip
    return figure


def dot_products(
    sizes: Sequence[int], spread: Sequence[float], largest: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw what the head dimension does to scores and to the softmax of them.

    Args:
        sizes: head dimensions.
        spread: standard deviation of the dot products at each size.
        largest: label to mean largest weight at each size; the unscaled ones first.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.2))
    left.plot(sizes, np.sqrt(sizes), color=COLOURS["residual"], linewidth=1.4, label="√D")
    left.plot(sizes, spread, "o", color=COLOURS["query"], label="measured")
    left.set(xscale="log", yscale="log", xlabel="head dimension D",
             ylabel="standard deviation of q · k")  # fmt: skip
    left.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    left.minorticks_off()
    left.legend(fontsize=9)
    for (label, values), (colour, style, mark) in zip(
        largest.items(), (("wrong", "--", "X"), ("right", "-", "o")), strict=True
    ):
        right.plot(sizes, values, style, marker=mark, color=COLOURS[colour], label=label)
    right.set(xscale="log", xlabel="head dimension D", ylabel="largest of 32 weights (mean)",
              ylim=(0, 1.02))  # fmt: skip
    right.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    right.minorticks_off()
    right.legend(fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.45))
    return figure


def masks(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw which key each query may see.

    Args:
        panels: title to booleans, (queries, keys); the queries are the last of the positions.
    """
    heights = [len(allowed) for allowed in panels.values()]
    figure, axes = new_figure(
        1, len(panels), figsize=(7.2, 3.3), width_ratios=[a.shape[1] for a in panels.values()]
    )
    for ax, (title, allowed), height in zip(axes, panels.items(), heights, strict=True):
        queries, keys = allowed.shape
        _bare(ax)
        ax.imshow(np.asarray(allowed, dtype=float) * 0.8, cmap=_SHADES, vmin=0, vmax=1)
        for row in range(queries):
            for column in range(keys):
                seen = allowed[row, column]
                ax.text(column, row, "yes" if seen else "–", ha="center", va="center",
                        fontsize=9, color="white" if seen else COLOURS["residual"])  # fmt: skip
        ax.set_xticks(np.arange(keys + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(height + 1) - 0.5, minor=True)
        ax.grid(True, which="minor", color=COLOURS["other"], linewidth=0.8)
        ax.tick_params(which="minor", length=0)
        ax.set_xticks(range(keys))
        ax.set_yticks(range(height), range(keys - queries, keys))
        ax.set(title=title, xlabel="position of the key", ylabel="position of the query")
    return figure


def _box(ax: Axes, x: float, y: float, width: float, label: str, colour: str, size: float) -> None:
    """Draw one head as a box with its middle at (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.21),
            width,
            0.42,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=COLOURS[colour],
            edgecolor="white",
        )
    )
    dark = colour == "key"
    ax.text(x, y, label, ha="center", va="center", fontsize=size,
            color="black" if dark else "white", linespacing=1.1)  # fmt: skip


def head_groups(panels: Mapping[str, int], n_head: int, large: str) -> Figure:
    """Draw which query head reads which key-value head.

    Args:
        panels: title to key-value heads.
        n_head: query heads.
        large: title of the panel that is drawn large.
    """
    figure, axes = new_figure(
        len(panels), 1, figsize=(7.5, 5.0), height_ratios=[1.5 if p == large else 1 for p in panels]
    )
    for ax, (title, groups) in zip(axes, panels.items(), strict=True):
        ax.axis("off")
        ax.set_title(title, fontsize=10.5)
        each = n_head // groups
        for g in range(groups):
            middle = g * each + (each - 1) / 2
            for h in range(g * each, (g + 1) * each):
                ax.plot([h, middle], [0.79, 0.21], color=COLOURS["residual"], linewidth=1.2)
            if title == large:
                _box(ax, middle - 0.67, 0, 1.3, f"key head {g}", "key", 9)
                _box(ax, middle + 0.67, 0, 1.3, f"value head {g}", "value", 9)
            else:
                _box(ax, middle - 0.22, 0, 0.42, f"k{g}", "key", 8.5)
                _box(ax, middle + 0.22, 0, 0.42, f"v{g}", "value", 8.5)
        for h in range(n_head):
            label = f"query\nhead {h}" if title == large else f"q{h}"
            _box(ax, h, 1, 0.9 if title == large else 0.8, label, "query", 8.5)
        ax.set(xlim=(-0.6, n_head - 0.4), ylim=(-0.25, 1.25))
    return figure


def cache_bytes(
    lengths: Sequence[int], megabytes: Mapping[str, Sequence[float]], weights: float
) -> Figure:
    """Draw the size of the key-value cache against the length of the context.

    Args:
        lengths: tokens.
        megabytes: label to MB at each length.
        weights: MB that the model's own weights take.
    """
    figure, ax = new_figure(figsize=(7.0, 3.5))
    looks = (("wrong", "--"), ("attention", "-"), ("value", "-."))
    for (label, values), (colour, style) in zip(megabytes.items(), looks, strict=True):
        ax.plot(lengths, values, style, color=COLOURS[colour])
        ax.annotate(f" {label}\n {values[-1]:.0f} MB", (lengths[-1], values[-1]), fontsize=9,
                    va="center", color=COLOURS[colour])  # fmt: skip
    ax.axhline(weights, color=COLOURS["residual"], linewidth=1.2, linestyle=":")
    ax.text(150, weights * 1.03, f"the model's weights, {weights:.0f} MB", fontsize=9,
            color=COLOURS["residual"], va="bottom")  # fmt: skip
    ax.set(xlabel="tokens in the context (one sequence)", ylabel="keys and values (MB, bfloat16)",
           xlim=(0, lengths[-1] * 1.24), ylim=(0, None))  # fmt: skip
    ax.set_xticks([0, 2048, 4096, 6144, 8192], ["0", "2,048", "4,096", "6,144", "8,192"])
    return figure


def attention_maps(tokens: Sequence[str], panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw the attention weights of four heads on one line of text.

    Args:
        tokens: the line.
        panels: title to weights, (queries, keys); each row sums to one.
    """
    figure, axes = new_figure(2, 2, figsize=(7.3, 8.2), sharex=True, sharey=True)
    image: Any = None
    for ax, (title, weights) in zip(axes.flat, panels.items(), strict=True):
        _bare(ax)
        image = ax.imshow(weights, cmap=_SHADES, vmin=0, vmax=1)
        future = np.triu(np.ones_like(weights), 1)
        ax.imshow(np.where(future, 0.13, np.nan), cmap="Greys", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10.5)
    labels = _readable(tokens)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(labels)), labels, fontsize=9.5)
        ax.set_ylabel("query: the token that asks")
    for ax in axes[1]:
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9.5)
        ax.set_xlabel("key: the token that it looks at")
    bar = figure.colorbar(
        image, ax=list(axes.flat), location="bottom", shrink=0.5, aspect=30, pad=0.02
    )
    bar.set_label("attention weight (grey: the future)")
    bar.outline.set_visible(False)
    return figure


def influence_maps(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw how far each output moves when each input is changed; six maps.

    Args:
        panels: title to lengths of the moves, (outputs, inputs); nan where the output is no number.
    """
    figure, axes = new_figure(2, 3, figsize=(7.5, 5.6))
    for ax, (title, moved) in zip(axes.flat, panels.items(), strict=True):
        moved = np.asarray(moved, dtype=float)
        _bare(ax)
        ax.imshow(np.nan_to_num(moved / np.nanmax(moved)) ** 0.5, cmap=_SHADES, vmin=0, vmax=1)
        for row, column in np.argwhere(np.triu(moved > 0, 1)):
            ax.text(column, row, "!", ha="center", va="center", fontsize=11, fontweight="bold",
                    color=COLOURS["wrong"])  # fmt: skip
        for row, column in np.argwhere(np.tril(moved == 0)):
            ax.text(column, row, "0", ha="center", va="center", fontsize=9,
                    color=COLOURS["wrong"])  # fmt: skip
        for row in np.flatnonzero(np.isnan(moved).all(axis=1)):
            ax.text(moved.shape[1] / 2 - 0.5, row, "not a number", ha="center", va="center",
                    fontsize=9, color=COLOURS["wrong"])  # fmt: skip
        n = len(moved)
        ax.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        ax.grid(True, which="minor", color="#DDDDDD", linewidth=0.6)
        ax.tick_params(which="minor", length=0)
        ax.set_xticks(range(n), range(n), fontsize=9)
        ax.set_yticks(range(n), range(n), fontsize=9)
        ax.set_title(title, fontsize=10)
    for ax in axes[:, 0]:
        ax.set_ylabel("output that moves")
    for ax in axes[1]:
        ax.set_xlabel("input that is changed")
    return figure
