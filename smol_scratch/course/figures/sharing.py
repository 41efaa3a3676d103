"""Figures of notebook 12, sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from smol_scratch.course.figures.style import COLOURS, new_figure

# The kinds of tensor to colours, in the order of the legend.
_COLOUR_OF = {
    "embedding": "embedding",
    "norms": "norm",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "other",
    "gate": "gate",
    "up": "up",
    "down": "down",
}


def file_map(spans: Sequence[tuple[str, int, int]], header: int, rows: int = 12) -> Figure:
    """Draw a file of weights from its first byte to its last, as lines of equal length.

    Args:
        spans: kind, first byte and last byte + 1 of each tensor, in the order of the file.
        header: bytes before the first tensor; marked, since to scale it cannot be seen.
        rows: lines.
    """
    kinds = list(_COLOUR_OF)
    size, columns = spans[-1][2], 1000
    ends = np.array([end for _, _, end in spans])
    middle = (np.arange(rows * columns) + 0.5) * size / (rows * columns)
    kind_at = np.array([kinds.index(kind) for kind, _, _ in spans])[np.searchsorted(ends, middle)]
    figure, ax = new_figure(figsize=(7.5, 4.2))
    ax.imshow(
        kind_at.reshape(rows, columns),
        cmap=ListedColormap([COLOURS[colour] for colour in _COLOUR_OF.values()]),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(0, size / rows / 1e6, rows, 0),
    )
    for row in range(1, rows):
        ax.axhline(row, color="white", linewidth=3)
    ax.annotate(
        f"the header: {header:,} bytes, too thin to be seen; so are the norms",
        (0, 0),
        (1.2, -0.75),
        fontsize=9,
        va="center",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-|>", "color": COLOURS["residual"]},
    )
    ax.set_yticks(
        [i + 0.5 for i in range(rows)], [f"{i * size / rows / 1e6:.0f}" for i in range(rows)]
    )
    ax.set(xlabel="MB along the line", ylabel="the line begins at (MB)")
    ax.grid(False)
    handles = [
        Patch(color=COLOURS[colour], label=kind)
        for kind, colour in _COLOUR_OF.items()
        if kind != "norms"
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9)
    return figure


def one_block(numbers: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a block of numbers, and what each way of storing them gets wrong.

    Args:
        numbers: the block.
        errors: way of storing to stored minus original, number by number.
    """
    figure, axes = new_figure(
        1 + len(errors), 1, figsize=(7.2, 5.4), sharex=True, height_ratios=[1.6] + [1] * len(errors)
    )
    x = np.arange(len(numbers))
    axes[0].vlines(x, 0, numbers, color=COLOURS["residual"], linewidth=1.4)
    axes[0].plot(x, numbers, "o", color=COLOURS["residual"], markersize=5)
    axes[0].set_ylabel("weight")
    reach = 1.7 * max(float(np.abs(error).max()) for error in errors.values())
    looks = (("right", "o"), ("wrong", "^"), ("key", "s"))
    for ax, (label, error), (colour, mark) in zip(axes[1:], errors.items(), looks, strict=True):
        ax.vlines(x, 0, error, color=COLOURS[colour], linewidth=1.4)
        ax.plot(x, error, mark, color=COLOURS[colour], markersize=4)
        ax.set(ylim=(-reach, reach), ylabel="error")
        ax.text(
            0.01,
            0.97,
            label,
            transform=ax.transAxes,
            fontsize=9.5,
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
    for ax in axes:
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.grid(False, axis="x")
    axes[-1].set(xlabel="place in the block", xticks=range(0, len(numbers), 4))
    return figure


def errors_by_kind(errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the relative error of each way of storing for each kind of matrix.

    Args:
        errors: way of storing to kind to error, as a share of the weights' own size; an error of
            zero has no place on the logarithmic axis and is written at its left end.
    """
    figure, ax = new_figure(figsize=(7.3, 4.0))
    kinds = list(next(iter(errors.values())))
    looks = (("residual", "D"), ("right", "o"), ("key", "s"), ("wrong", "^"), ("other", "v"))
    low = 0.2 * min(value for by in errors.values() for value in by.values() if value)
    for (label, by_kind), (colour, mark) in zip(errors.items(), looks, strict=False):
        shown = [(100 * by_kind[kind], i) for i, kind in enumerate(kinds) if by_kind[kind]]
        ax.plot(*zip(*shown, strict=True), mark, color=COLOURS[colour], markersize=8, label=label)
        for i, kind in enumerate(kinds):
            if not by_kind[kind]:
                ax.text(112 * low, i, f"{label}: exactly 0", fontsize=9, va="center",
                        color=COLOURS[colour])  # fmt: skip
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="error, relative to the weights (%)", xlim=(100 * low, 180))
    ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    figure.legend(loc="outside upper center", fontsize=9, ncols=len(errors))
    return figure


def size_and_perplexity(points: Mapping[str, tuple[float, float, str]], top: float) -> Figure:
    """Draw perplexity against the size of the file.

    Args:
        points: label to bits a number, perplexity, and where the label goes: "left", "right",
            "above" or "below".
        top: perplexities above are marked at the upper edge and written beside the mark.
    """
    figure, ax = new_figure(figsize=(7.2, 3.9))
    floor = min(value for _, value, _ in points.values())
    for label, (bits, value, place) in points.items():
        off = value > top
        y = top if off else value
        block = not label.startswith("one scale")
        colour, mark = ("right", "o") if block else ("wrong", "X")
        ax.plot(bits, y, "^" if off else mark, color=COLOURS[colour], markersize=10, clip_on=False)
        text = f"{label}: {value:.1e}" if off else label
        dx, dy, ha, va = {
            "left": (-9, 0, "right", "center"),
            "right": (9, 0, "left", "center"),
            "above": (0, 8, "center", "bottom"),
            "below": (0, -8, "center", "top"),
        }[place]
        ax.annotate(text, (bits, y), (dx, dy), textcoords="offset points", ha=ha, va=va,
                    fontsize=9.5)  # fmt: skip
    ax.set(xscale="log", xlabel="bits a number", ylabel="perplexity", xlim=(3.4, 46),
           ylim=(floor - 2.2, top))  # fmt: skip
    ax.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    ax.minorticks_off()
    return figure


def sizes(gigabytes: Mapping[str, Mapping[str, float]], memories: Mapping[str, float]) -> Figure:
    """Draw how large models are in each format, and lines for memories that they may fit into.

    Args:
        gigabytes: format to model to GB.
        memories: label to GB.
    """
    figure, ax = new_figure(figsize=(7.3, 4.0))
    looks = (("residual", "s"), ("attention", "o"), ("up", "^"), ("key", "D"))
    models = list(next(iter(gigabytes.values())))
    height = 0.8 / len(gigabytes)
    for j, ((label, by_model), (colour, marker)) in enumerate(
        zip(gigabytes.items(), looks, strict=True)
    ):
        y = [i + (j - (len(gigabytes) - 1) / 2) * height for i in range(len(models))]
        values = [by_model[model] for model in models]
        # Points, not bars: on a logarithmic axis the length of a bar means nothing.
        ax.plot(values, y, marker, color=COLOURS[colour], markersize=7, label=label)
        for value, at in zip(values, y, strict=True):
            ax.text(
                1.12 * value,
                at,
                f"{value:.2f}",
                va="center",
                fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                zorder=3,
            )
    for label, limit in memories.items():
        ax.axvline(limit, color=COLOURS["residual"], linewidth=1.2, linestyle="--")
        ax.text(limit, -0.62, label, ha="center", va="bottom", fontsize=9)
    ax.set_yticks(range(len(models)), models)
    ax.set(xscale="log", xlabel="GB", xlim=(0.05, 26), ylim=(len(models) - 0.45, -0.6))
    ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    ax.grid(False, axis="y")
    figure.legend(loc="outside upper center", fontsize=9, ncols=len(gigabytes))
    return figure
