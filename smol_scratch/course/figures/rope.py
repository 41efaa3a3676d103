"""Figures of notebook 02, RoPE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from smol_scratch.course.figures.style import COLOURS, new_figure


def _arrow(ax: Axes, end: np.ndarray, colour: str, alpha: float = 1.0) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "alpha": alpha, "shrinkA": 0}
    ax.annotate("", tuple(end), (0, 0), arrowprops=style | {"shrinkB": 0, "mutation_scale": 13})


def turning_pair(
    query: Sequence[float], key: Sequence[float], step: float, pairs: Sequence[tuple[int, int]]
) -> Figure:
    """Draw one pair of channels that turns with position, and what a dot product sees of it.

    Args:
        query: the pair's two numbers in the query.
        key: the same in the key.
        step: angle a position, in radians.
        pairs: (query position, key position), one panel each.
    """

    def turned(pair: Sequence[float], position: int) -> np.ndarray:
        c, s = math.cos(step * position), math.sin(step * position)
        return np.array([pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s])

    figure, axes = new_figure(1, 1 + len(pairs), figsize=(7.5, 2.9))
    reach = 1.32 * max(math.hypot(*query), math.hypot(*key))
    for ax in axes:
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set(xlabel="first number", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.6)
        ax.axvline(0, color=COLOURS["residual"], linewidth=0.6)
    axes[0].set_ylabel("second number")
    for position in range(6):
        end = turned(query, position)
        _arrow(axes[0], end, COLOURS["query"], 1 - 0.13 * position)
        axes[0].text(*(1.17 * end), str(position), ha="center", va="center", fontsize=10)
    axes[0].set_title("a query at\npositions 0 to 5")
    for ax, (at_query, at_key) in zip(axes[1:], pairs, strict=True):
        q, k = turned(query, at_query), turned(key, at_key)
        low, high = (math.degrees(math.atan2(v[1], v[0])) for v in (k, q))
        ax.add_patch(Wedge((0, 0), 0.8, low, high, color=COLOURS["other"], alpha=0.45))
        _arrow(ax, k, COLOURS["key"])
        _arrow(ax, q, COLOURS["query"])
        for v, name in ((q, "query"), (k, "key")):
            side = "center" if abs(v[0]) < 1.2 else "left" if v[0] < 0 else "right"
            above = 0.22 if v[1] > 0 else -0.22
            ax.text(v[0], v[1] + above, name, ha=side, va="center", fontsize=10)
        ax.set_title(
            f"query at {at_query}, key at {at_key}\ndot product {q @ k:.2f}".replace("-", "−")
        )
    return figure


def wavelengths(lengths: Mapping[str, Sequence[float]], limits: Mapping[str, int]) -> Figure:
    """Draw the wavelength of every pair, and how far a context reaches.

    Args:
        lengths: label to the positions that each pair needs for one turn.
        limits: label to a context length in positions.
    """
    figure, ax = new_figure(figsize=(7.0, 3.6))
    looks = (("right", "-", "o"), ("wrong", "--", "s"))
    for (label, values), (colour, style, mark) in zip(lengths.items(), looks, strict=False):
        ax.plot(values, style, marker=mark, markersize=4, color=COLOURS[colour], label=label)
    for (label, limit), style in zip(limits.items(), ("-", ":"), strict=False):
        ax.axhline(limit, color=COLOURS["residual"], linewidth=1.2, linestyle=style)
        ax.text(0, limit * 1.12, label, va="bottom", fontsize=9.5)
    ax.set(yscale="log", xlabel="pair $i$", ylabel="positions for one turn", xlim=(-0.6, 31.6))
    ax.set_xticks((0, 5, 10, 15, 20, 25, 31))
    ax.legend(loc="lower right", fontsize=10)
    return figure


def score_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """Draw the score of one query and one key at every pair of positions.

    Args:
        maps: title to scores, (query positions, key positions); one colour scale for all.
    """
    figure, axes = new_figure(1, len(maps), figsize=(7.5, 2.9), sharey=True)
    low = min(float(scores.min()) for scores in maps.values())
    high = max(float(scores.max()) for scores in maps.values())
    for ax, (title, scores) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(scores, vmin=low, vmax=high, cmap="cividis")
        ax.set(xlabel="position of the key", title=title, xticks=(0, 20, 40), yticks=(0, 20, 40))
        ax.grid(visible=False)
    axes[0].set_ylabel("position of the query")
    figure.colorbar(image, ax=axes, label="score", shrink=0.8, aspect=16)
    return figure


def by_distance(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how a score depends on distance, on a logarithmic axis.

    Args:
        curves: label to the value at distance 0, 1, 2, … relative to that at 0.
    """
    figure, ax = new_figure(figsize=(7.0, 3.2))
    looks = (("other", "--", 2.2), ("attention", "-", 1.3))
    for (label, values), (colour, style, width) in zip(curves.items(), looks, strict=False):
        ax.plot(range(1, len(values)), values[1:], style, color=COLOURS[colour], linewidth=width,
                label=label)  # fmt: skip
    ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
    ax.set(xscale="log", xlabel="distance (positions)", ylabel="score (1 = at distance 0)")
    ax.set(xlim=(1, 8192), ylim=(-0.25, 1.5))
    ax.legend(loc="upper right", fontsize=9.5)
    return figure


def extra_loss(ends: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how much a wrong rotation adds to the loss in each stretch of a text.

    Args:
        ends: the last position of each stretch, counted from 1.
        curves: label to the mean extra loss of each stretch, in nats a token.
    """
    figure, ax = new_figure(figsize=(7.0, 3.9))
    edges = [0, *ends]
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    looks = (
        ("wrong", "-", "o"),
        ("other", "--", "s"),
        ("residual", "-.", "D"),
        ("down", ":", "^"),
        ("embedding", "--", "v"),
    )
    for (label, values), (colour, style, mark) in zip(curves.items(), looks, strict=False):
        ax.plot(centres, values, style, marker=mark, markersize=5, color=COLOURS[colour],
                label=label)  # fmt: skip
    ax.axhline(0, color=COLOURS["residual"], linewidth=1)
    ax.set(xlabel="position in the text (tokens)", ylabel="extra loss (nats a token)")
    ax.set_xticks(edges)
    ax.legend(fontsize=9.5, loc="lower center", ncols=3, bbox_to_anchor=(0.46, 1.0))
    return figure


def angle_errors(positions: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how far the rotation is off, against position.

    Args:
        positions: where it was measured.
        errors: label to the largest error of a cosine or sine over all pairs.
    """
    figure, ax = new_figure(figsize=(7.0, 3.4))
    looks = (("wrong", "--", "o"), ("other", "-.", "s"), ("right", "-", "^"))
    for (label, values), (colour, style, mark) in zip(errors.items(), looks, strict=False):
        ax.plot(positions, values, style, marker=mark, markersize=4, color=COLOURS[colour],
                label=label)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="position", ylabel="largest error of a cosine")
    ax.set(ylim=(1e-9, 5))
    ax.legend(fontsize=9.5, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.2))
    return figure
