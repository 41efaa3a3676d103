"""Figures of notebook 02, RoPE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smol_scratch.course.figures.drawing import HIGH, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure


def invention(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw ways to write down a position, one row of numbers for each position.

    Args:
        panels: title to numbers, (positions, columns). Whole ones are written out; others, between
            -1 and 1, are coloured, and stand in pairs of a cosine and a sine.
    """
    widths = [max(table.shape[1], 2) for table in panels.values()]
    figure, axes = new_figure(
        1, len(panels), figsize=(7.6, 4.4), sharey=True, gridspec_kw={"width_ratios": widths}
    )
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        ax.set(title=title, xticks=[])
        ax.grid(visible=False)
        columns = table.shape[1]
        if columns > 1:
            ax.set_xlabel("slow → fast")
        if table.dtype.kind == "i":
            # Light enough for the numbers to be read, from white at 0.
            ax.imshow(table / table.max(), cmap="Greys", vmin=0, vmax=2.5, aspect="auto")
            for (row, column), value in np.ndenumerate(table):
                ax.text(column, row, str(value), ha="center", va="center_baseline", fontsize=9.5)
            continue
        image = ax.imshow(table, cmap="cividis", vmin=-1, vmax=1, aspect="auto")
        ax.set_xticks(range(columns), ["cos", "sin"] * (columns // 2), fontsize=9)
        ax.tick_params(axis="x", length=0)
        for column in range(2, columns, 2):
            ax.axvline(column - 0.5, color="white", linewidth=4)
    axes[0].set(ylabel="position", yticks=range(0, len(table), 5))
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=18, ticks=(-1, 0, 1))
    return describe(
        figure,
        "Three tables with a row for each of sixteen positions. A single number counts from 0 to "
        "15. Of four binary digits the last changes at every row and the first once. Four pairs of "
        "a cosine and a sine change smoothly: the fastest pair comes round every four rows, the "
        "slowest makes half a turn in sixteen.",
    )


def _arrow(ax: Axes, end: np.ndarray, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "shrinkA": 0}
    ax.annotate("", tuple(end), (0, 0), arrowprops=style | {"shrinkB": 0, "mutation_scale": 13})


def _angle(ax: Axes, key: np.ndarray, query: np.ndarray) -> None:
    """Draw the angle from a key to a query, with its sign, the short way round."""
    start, end = (math.atan2(v[1], v[0]) for v in (key, query))
    between = (end - start + math.pi) % (2 * math.pi) - math.pi
    ways = start + between * np.linspace(0, 1, 40)
    arc = 0.85 * np.stack((np.cos(ways), np.sin(ways)))
    ax.plot(*arc[:, :-4], color=COLOURS["residual"], linewidth=1.4)
    tip = {"arrowstyle": "-|>", "color": COLOURS["residual"], "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", tuple(arc[:, -1]), tuple(arc[:, -6]), arrowprops=tip)
    middle = 1.5 * np.array((np.cos(ways[20]), np.sin(ways[20])))
    words = f"{math.degrees(between):+.0f}°".replace("-", "−")
    ax.text(middle[0], middle[1], words, ha="center", va="center", fontsize=10, zorder=4,
            bbox={"fc": "white", "ec": "none", "pad": 0.8})  # fmt: skip


def turning_pair(
    query: Sequence[float], key: Sequence[float], step: float, pairs: Sequence[tuple[int, int]]
) -> Figure:
    """Draw one pair of channels that turns with position, and what a dot product sees of it.

    Args:
        query: the pair's two numbers in the query.
        key: the same in the key.
        step: angle per position, in radians.
        pairs: (query position, key position), one panel each.
    """

    def turned(pair: Sequence[float], position: int) -> np.ndarray:
        c, s = math.cos(step * position), math.sin(step * position)
        return np.array([pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s])

    figure, axes = new_figure(1, 1 + len(pairs), figsize=(8.6, 2.9), sharey=True)
    reach = 1.3 * max(math.hypot(*query), math.hypot(*key))
    for ax in axes:
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2))
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.6)
        ax.axvline(0, color=COLOURS["residual"], linewidth=0.6)
    axes[0].set(xlabel="first number", ylabel="second number")
    for position in range(4):
        end = turned(query, position)
        _arrow(axes[0], end, COLOURS["query"])
        axes[0].text(*(1.3 * end), str(position), ha="center", va="center", fontsize=11)
    axes[0].set_title("the query at\npositions 0 to 3", fontsize=10)
    for ax, (at_query, at_key) in zip(axes[1:], pairs, strict=True):
        q, k = turned(query, at_query), turned(key, at_key)
        _arrow(ax, k, COLOURS["key"])
        _arrow(ax, q, COLOURS["query"])
        _angle(ax, k, q)
        for v, name in ((q, "query"), (k, "key")):
            x = math.copysign(2.7, v[0]) if 1.5 < abs(v[0]) < 2.7 else v[0]  # clear of the angle
            ax.text(x, v[1] + (0.4 if v[1] > 0 else -0.4), name, ha="center", va="center",
                    fontsize=9.5)  # fmt: skip
        ax.set_title(
            f"query at {at_query}, key at {at_key}\nscore {q @ k:.0f}".replace("-", "−"),
            fontsize=10,
        )
    return describe(
        figure,
        "One pair of numbers as an arrow that turns by a quarter turn per position. Then a query "
        "and a key: one position apart at the start of a text and again two positions later, the "
        "angle from the key to the query and the score are the same. With the key after the query, "
        "the angle has the other sign, and the score differs.",
    )


def wavelengths(lengths: Mapping[str, Sequence[float]], limits: Mapping[str, int]) -> Figure:
    """Draw the wavelength of every pair, and how far a context reaches.

    Args:
        lengths: label to the positions that each pair needs for one turn.
        limits: label to a context length in positions, in the same order.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    looks = (("other", "--", "s"), ("query", "-", "o"))
    for (label, values), (name, limit), (colour, style, mark) in zip(
        lengths.items(), limits.items(), looks, strict=True
    ):
        v = np.asarray(values)
        ax.plot(v, style, marker=mark, markersize=4, color=COLOURS[colour])
        ax.text(31.3, v[-1], f" {label}", color=COLOURS[colour], va="center", fontsize=10)
        ax.axhline(limit, color=COLOURS[colour], linewidth=1.2, linestyle=style)
        ax.text(0, limit * 1.15, name, va="bottom", fontsize=9.5)
        first = int(np.argmax(v > limit))
        ax.plot(first, v[first], "D", color=COLOURS[colour], markersize=10, zorder=3)
        # Above the upper line, below the lower one.
        side = 1 if limit == max(limits.values()) else -1
        ax.text(first - 0.8 * side, v[first] * 2.2**side, f"{len(v) - first} pairs from here on",
                color=COLOURS[colour], ha="right" if side > 0 else "left", va="center",
                fontsize=9.5)  # fmt: skip
    ax.text(10.5, 2.2e5, "from the ◆ on: no full turn\nwithin the context", fontsize=9.5,
            ha="center", va="center")  # fmt: skip
    ax.set(yscale="log", xlabel="pair $i$", ylabel="positions for one turn", xlim=(-0.6, 38),
           title="Thirty-two hands, from fast to slow")  # fmt: skip
    ax.set_xticks((0, 5, 10, 15, 20, 25, 31))
    return describe(
        figure,
        "Positions that each of the 32 pairs needs for one turn, on a logarithmic axis: two "
        "rising lines, from six positions at pair 0 to tens of thousands with theta 10,000 and "
        "hundreds of thousands with theta 100,000. A horizontal line marks each context length; "
        "from about pair 20 on, under either setting, a pair needs more than the whole context.",
    )


def two_orders(d: int) -> Figure:
    """Draw which numbers of a query form a pair, under the two conventions.

    Args:
        d: how many numbers there are.
    """
    figure, ax = canvas(13.2, 5.6, inches=7.0)
    ax.set_ylim(-0.4, 5.2)
    colours = ("query", "key", "value", "gate")
    neighbours = [(2 * i, 2 * i + 1) for i in range(d // 2)]
    halves = [(i, i + d // 2) for i in range(d // 2)]
    left = 4.6
    places = {}
    for bottom, title, pairs in (
        (3.6, "neighbours\n(the paper, Meta's code,\nthe original project)", neighbours),
        (0.6, "halves\n(transformers, our weights)", halves),
    ):
        ax.text(left - 0.3, bottom + HIGH / 2, title, ha="right", va="center", fontsize=10)
        for i, pair in enumerate(pairs):
            for place, letter in zip(pair, "ab", strict=True):
                cells(ax, left + place, bottom, [f"{letter}{i}"], colours[i % 4])
                places[bottom, letter, i] = left + place + 0.5
    for i in range(d // 2):
        for letter in "ab":
            ax.plot([places[3.6, letter, i], places[0.6, letter, i]], [3.6, 0.6 + HIGH],
                    color=COLOURS[colours[i % 4]], linewidth=1.6)  # fmt: skip
    for place in range(d):
        for y in (3.6 + HIGH + 0.08, 0.6 - 0.08):
            ax.text(left + place + 0.5, y, str(place), ha="center", va="bottom" if y > 2 else "top",
                    fontsize=8.5, color=COLOURS["residual"])  # fmt: skip
    ax.text(left + d + 0.2, 3.6 + HIGH + 0.08, "← number", ha="left", va="bottom", fontsize=8.5,
            color=COLOURS["residual"])  # fmt: skip
    ax.text(left + d / 2, 4.75, "the same four arrows (a, b)", ha="center", va="bottom",
            fontsize=10)  # fmt: skip
    ax.text(left + d / 2, 0.1, "the same numbers in a different order", ha="center", va="top",
            fontsize=10)  # fmt: skip
    return describe(
        figure,
        "Eight cells in two orders. Above, each arrow's two numbers stand side by side. Below, "
        "all first numbers come first, then all second ones. Lines join the same number in both: "
        "a permutation.",
    )


def harm(
    rows: Mapping[str, Mapping[str, tuple[float, float]]],
    words: str,
    *,
    dotted: str = "",
    passed: Mapping[str, bool] | None = None,
) -> Figure:
    """Draw the extra loss of wrong rotations, early and late in a passage.

    Args:
        rows: name of the rotation to (label of a stretch to mean and standard error), in nats.
        words: what is to be seen, for the alternative text.
        dotted: the row to compare with, whose means are drawn through all rows.
        passed: name of the rotation to whether it passes the shift test, written at the right.
    """
    figure, ax = new_figure(figsize=(7.4, 0.95 + 0.5 * len(rows)))
    looks = (("query", "o", -0.17), ("wrong", "s", 0.17))
    for row, (name, stretches) in enumerate(rows.items()):
        for (label, (mean, error)), (colour, mark, shift) in zip(
            stretches.items(), looks, strict=False
        ):
            ax.errorbar(mean, row + shift, xerr=error, fmt=mark, color=COLOURS[colour],
                        capsize=3, markersize=6, label=label if row == 0 else None)  # fmt: skip
            if name == dotted:
                ax.axvline(mean, color=COLOURS[colour], linewidth=1, linestyle=":", zorder=0)
        if passed:
            ax.text(1.06, row, "✓" if passed[name] else "✗", ha="center", va="center",
                    fontsize=13, transform=ax.get_yaxis_transform())  # fmt: skip
    if passed:
        ax.text(1.06, -0.75, "shift\ntest", ha="center", va="center", fontsize=9.5,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(0, color=COLOURS["residual"], linewidth=1)
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5),
           xlabel="extra loss (nats per token, mean ± standard error over 5 passages)")  # fmt: skip
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=9.5, loc="lower right", bbox_to_anchor=(0.95, 1), ncols=2)
    return describe(
        figure,
        "Extra loss of the real model with each wrong rotation, for tokens 1 to 256 and 257 to "
        f"768. {words}",
    )


def beyond(ends: Sequence[int], curves: Mapping[str, np.ndarray], context: int) -> Figure:
    """Draw the loss by position, within the trained context and beyond it.

    Args:
        ends: last position of each stretch.
        curves: label to the losses, (passages, stretches), in nats per token.
        context: positions that the model was trained for.
    """
    figure, ax = new_figure(figsize=(7.2, 3.9))
    centres = np.array(ends) - ends[0] / 2
    looks = (("wrong", "-", "o"), ("other", ":", "^"), ("right", "--", "s"))
    ax.axvspan(context, ends[-1], color=COLOURS["other"], alpha=0.18, linewidth=0)
    for (label, values), (colour, style, mark) in zip(curves.items(), looks, strict=False):
        ax.plot(centres, values.mean(0), style, color=COLOURS[colour], marker=mark,
                markersize=5, label=label)  # fmt: skip
    ax.text((context + ends[-1]) / 2, 0.97, "never trained", ha="center", va="top", fontsize=9.5,
            transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(xlabel=f"position (a point: {ends[0]:,} tokens of each passage)",
           ylabel="loss (nats per token)", xlim=(0, ends[-1]), ylim=(3, 4.6),
           title="Beyond the trained context")  # fmt: skip
    ax.set_xticks(range(0, ends[-1] + 1, 2048))
    ax.legend(fontsize=9.5, loc="upper left", ncols=3)
    return describe(
        figure,
        "Loss against position, the mean over passages of 12,288 tokens; beyond 8,192 is shaded. "
        "As released, the loss keeps its level for two thousand positions beyond and then "
        "rises. With theta raised it stays level. With all positions divided it is half a nat "
        "higher within the context, and meets the released rotation's only at the end.",
    )


def by_distance(curves: Mapping[str, np.ndarray]) -> Figure:
    """Draw how a score depends on distance, on a logarithmic axis.

    Beyond 100 positions, where single ones cannot be told apart, a band holds lowest and highest.

    Args:
        curves: label to the value at distance 0, 1, 2, … relative to that at 0.
    """
    figure, ax = new_figure(figsize=(7.0, 3.2))
    looks = (("other", "--", 2.2), ("attention", "-", 1.6))
    for (label, values), (colour, style, width) in zip(curves.items(), looks, strict=False):
        edges = np.unique(np.geomspace(100, len(values), 60).astype(int))
        parts = [values[low:high] for low, high in itertools.pairwise(edges)]
        x = [*range(1, 100), *np.sqrt(edges[:-1] * edges[1:])]
        mean = [*values[1:100], *(part.mean() for part in parts)]
        ax.plot(x, mean, style, color=COLOURS[colour], linewidth=width, label=label)
        ends = [(part.min(), part.max()) for part in parts]
        ax.fill_between(x[99:], *zip(*ends, strict=True), color=COLOURS[colour], alpha=0.3,
                        linewidth=0)  # fmt: skip
    ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
    ax.set(xscale="log", xlabel="distance (positions)", ylabel="score, relative to distance 0")
    ax.set(xlim=(1, 8192), ylim=(-0.25, 1.5))
    ax.legend(loc="upper right", fontsize=9.5)
    return describe(
        figure,
        "Score against distance on a logarithmic axis. For a query that equals its key it falls "
        "with ups and downs; the typical size for random queries and keys stays level.",
    )
