"""Figures of notebook 09, where the FLOPs go and how fast they could go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures import drawing
from smol_scratch.course.figures.style import COLOURS, describe, new_figure


def one_entry() -> Figure:
    """Draw how one entry of a product of matrices comes about: a row times a column."""
    figure, ax = drawing.canvas(15.4, 4.9, inches=7.5)
    a, b = [[1, 2, 3], [4, 5, 6]], [[1, 0, 2, 1], [0, 1, 1, 0], [2, 1, 0, 1]]
    product = [[sum(x * y for x, y in zip(row, column, strict=True))
                for column in zip(*b, strict=True)] for row in a]  # fmt: skip
    high = drawing.HIGH

    def matrix(left: float, bottom: float, rows: list[list[int]], colour: str) -> None:
        for i, row in enumerate(rows):
            drawing.cells(ax, left, bottom - high * i, row, colour)

    matrix(0.4, 1.55, a, "query")
    matrix(4.6, 3.7, b, "key")
    matrix(4.6, 1.9 - 0.35, product, "attention")
    for left, bottom, width, height in (
        (0.4, 1.55, 3, high), (4.6, 3.7 - 2 * high, 1, 3 * high), (4.6, 1.55, 1, high)
    ):  # fmt: skip
        ax.add_patch(Rectangle((left, bottom), width, height, fill=False, linewidth=3,
                               edgecolor=COLOURS["wrong"], zorder=4))  # fmt: skip
    ax.text(9.2, 3.1, "7 = 0 + 1 · 1 + 2 · 0 + 3 · 2", fontsize=11)
    ax.text(9.2, 2.4, "3 multiplications, 3 additions", fontsize=10)
    ax.text(9.2, 1.7, "2 · 4 entries of 6 FLOPs: 48", fontsize=10)
    ax.text(1.9, 2.27, "2 × 3", ha="center", fontsize=9)
    ax.text(6.6, 4.42, "3 × 4", ha="center", fontsize=9)
    ax.text(6.6, 0.5, "2 × 4", ha="center", fontsize=9)
    return describe(
        figure,
        "A 2 by 3 matrix to the left, a 3 by 4 matrix above, their 2 by 4 product in the corner. "
        "One row and one column are framed, and the entry that they make: 7 = 0 + 1 · 1 + "
        "2 · 0 + 3 · 2, three multiplications and three additions. Eight such entries take "
        "48 FLOPs.",
    )


def shares(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw which part of a forward pass is spent where, one bar for each length.

    Args:
        rows: label to part to its share; the bar of "… masked" is hatched.
    """
    figure, ax = new_figure(figsize=(7.4, 0.75 * len(rows) + 1.6))
    looks = {"MLPs": "mlp", "attention's matrices": "attention", "scores and values": "value",
             "scores and values, masked": "value", "head": "embedding"}  # fmt: skip
    for i, parts in enumerate(rows.values()):
        left = 0.0
        for name, share in parts.items():
            hatch = "///" if name.endswith("masked") else ""
            ax.barh(i, share, left=left, color=COLOURS[looks[name]] if not hatch else "white",
                    hatch=hatch, edgecolor="white" if not hatch else COLOURS[looks[name]],
                    height=0.66, label=name if i == 0 else "")  # fmt: skip
            if share > 0.045:
                ax.text(left + share / 2, i, f"{100 * share:.0f} %", ha="center", va="center",
                        fontsize=10,
                        color="black" if hatch else "white",
                        bbox={"fc": "white", "ec": "none", "pad": 0.6} if hatch else None,
                        )  # fmt: skip
            left += share
        small = [f"{100 * share:.0f} %" for share in parts.values() if share <= 0.045]
        ax.text(1, i - 0.36, " + ".join(small), ha="right", va="bottom", fontsize=10)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlabel="share of the FLOPs", xlim=(0, 1), ylim=(len(rows) - 0.6, -0.62))
    ax.set_title("Short texts: MLPs and head. Long texts: attention")
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    said = "; ".join(
        f"{label}: " + ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
        for label, parts in rows.items()
    )
    return describe(figure, f"Bars of where the FLOPs of a forward pass go. {said}.")


def roofline(
    peak: float, bandwidth: float, climbs: Mapping[str, Sequence[tuple[int, float]]], card: str
) -> Figure:
    """Draw a card's two limits, and how far products climb as their batch grows.

    Args:
        peak: of the card, FLOP/s.
        bandwidth: of its memory, bytes per second.
        climbs: product to (tokens side by side, FLOPs per byte), in order.
        card: its name.
    """
    figure, (ax, lanes) = new_figure(2, 1, figsize=(7.4, 4.8), sharex=True, height_ratios=[3, 1.8])
    x = np.geomspace(0.5, 1000, 200)
    ridge = peak / bandwidth
    for part in (ax, lanes):
        part.axvspan(0.5, ridge, color=COLOURS["query"], alpha=0.08, linewidth=0)
        part.axvspan(ridge, 1000, color=COLOURS["key"], alpha=0.10, linewidth=0)
    ax.plot(x, np.minimum(peak, x * bandwidth) / 1e12, color=COLOURS["residual"], linewidth=2.6)
    for y, (name, colour, mark) in enumerate((("gate_proj", "mlp", "o"),
                                              ("k_proj", "attention", "s"))):  # fmt: skip
        m, intensity = (np.array(column) for column in zip(*climbs[name], strict=True))
        lanes.plot(intensity, [y] * len(m), color=COLOURS[colour], marker=mark, linewidth=1.2,
                   markersize=7, markeredgecolor="white")  # fmt: skip
        for i in (*range(len(m) // 2 + 2), len(m) - 1):
            last = i == len(m) - 1
            if m[i] == 1024:
                continue
            lanes.annotate(f"{m[i]:,}" if i else "m = 1", (intensity[i], y),
                           (8, -1) if last else (0, 7), fontsize=9, textcoords="offset points",
                           ha="left" if last else "center", va="center" if last else "bottom",
                           color=COLOURS[colour])  # fmt: skip
        for i in np.flatnonzero(m == 1024):
            lanes.plot(intensity[i], y, mark, color="white", markersize=8, markeredgewidth=2,
                       markeredgecolor=COLOURS[colour], zorder=3)  # fmt: skip
            lanes.annotate("1,024: a training step", (intensity[i], y), (0, -7), fontsize=9,
                           textcoords="offset points", ha="center", va="top",
                           color=COLOURS[colour])  # fmt: skip
    lanes.set_yticks([0, 1], ["gate_proj", "k_proj"])
    lanes.set(ylim=(1.75, -0.75), xlabel="intensity (FLOPs per byte)")
    lanes.grid(False, axis="y")
    ax.text(0.6, 1.35 * peak / 1e12, "memory-bound:\nmore FLOP/s would not help", fontsize=9.5,
            va="top")  # fmt: skip
    ax.text(ridge * 1.15, 0.9, "compute-\nbound", fontsize=9.5, va="bottom")
    ax.text(ridge * 0.95, 0.72, f"ridge: {ridge:.0f}", fontsize=9.5, ha="right", va="bottom")
    ax.set(xscale="log", yscale="log", xlim=(0.5, 1000), ylabel="at most TFLOP/s",
           ylim=(0.6, 2 * peak / 1e12))  # fmt: skip
    ticks = [1, 10, 100, 1000]
    lanes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.set_yticks([1, 10, 100], ["1", "10", "100"])
    ax.set_title(f"The roofline of an {card}, and tokens side by side")
    return describe(
        figure,
        f"Roofline of an {card} on logarithmic axes: a slope where memory is the limit, a flat "
        f"roof where arithmetic is, and a ridge at {ridge:.0f} FLOPs per byte. Below it, "
        f"marks for 1 to {climbs['gate_proj'][-1][0]:,} tokens side by side: "
        "gate_proj passes the ridge, k_proj levels off before it. "
        "Hollow marks show 1,024 tokens, a training step.",
    )


def side_by_side(seconds: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Draw the time for one token of each of several sequences, side by side.

    Args:
        seconds: type to (sequences, seconds, standard error).
    """
    figure, ax = new_figure(figsize=(7.2, 4.0))
    looks = {"float32": ("query", "o"), "bfloat16": ("key", "s")}
    for name, rows in seconds.items():
        n, mean, error = (np.array(column) for column in zip(*rows, strict=True))
        colour, mark = looks[name]
        ax.errorbar(n, 1e3 * mean, 2e3 * error, color=COLOURS[colour], marker=mark,
                    markersize=6, capsize=3)  # fmt: skip
        ax.text(n[-1] * 1.1, 1e3 * mean[-1], f"{name}: {mean[-1] / mean[0]:.1f} ×",
                va="center", fontsize=10, color=COLOURS["residual"])  # fmt: skip
    one = 1e3 * seconds["float32"][0][1]
    n = np.array([1, 64])
    ax.plot(n, n * one, "--", color=COLOURS["other"], linewidth=1.4)
    ax.text(7.2, 8.6 * one, "in proportion to the work", fontsize=9.5, color=COLOURS["residual"],
            ha="right")  # fmt: skip
    ax.plot(1, one / 2, "s", color=COLOURS["key"], markerfacecolor="white", markeredgewidth=1.6)
    ax.text(1.12, one / 2, "bfloat16, if only bytes counted: half of float32", fontsize=9.5,
            va="center", color=COLOURS["residual"])  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = [1, 2, 4, 8, 16, 32, 64]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ticks = [30, 100, 300, 1000, 3000]
    ax.set_yticks(ticks, [f"{t:,}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="sequences side by side, one token each", ylabel="milliseconds",
           xlim=(0.9, 210), ylim=(20, 5000))  # fmt: skip
    ax.set_title("Many tokens at once take far less than many times the time")
    return describe(
        figure,
        "Milliseconds for one token of each of 1 to 64 sequences side by side, in float32 and "
        "bfloat16, on logarithmic axes. Both curves rise far more slowly than the dashed line "
        "of equal proportion, with bars of two standard errors. For one sequence they nearly "
        "meet; a hollow mark at half of float32 shows where the bytes would put bfloat16.",
    )


def attention_share(
    T: Sequence[int],
    shares: Mapping[str, Sequence[float]],
    crossings: Mapping[str, float],
    marked: int,
) -> Figure:
    """Draw which share of the FLOPs goes into scores and weighted values, against the length.

    Args:
        T: tokens in a sequence.
        shares: model to the share at each length, between 0 and 1.
        crossings: model to the length at which the share is a half.
        marked: a length to mark, the walkthrough's own.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    looks = [("query", "-"), ("key", "--"), ("value", ":"), ("wrong", "-.")]
    ax.axhline(0.5, color=COLOURS["residual"], linewidth=0.8)
    ax.text(T[0] * 1.06, 0.515, "half of all FLOPs", fontsize=9, va="bottom")
    ax.axvline(marked, color=COLOURS["residual"], linewidth=0.8)
    ax.text(marked / 1.07, 0.97, f"T = {marked}", ha="right", va="top", fontsize=9)
    for (name, values), (colour, style) in zip(shares.items(), looks, strict=False):
        ax.plot(T, values, style, color=COLOURS[colour], label=name)
        ax.plot(crossings[name], 0.5, "o", color=COLOURS[colour], markersize=6)
    for (_, crossing), (colour, _), y in zip(
        crossings.items(), looks, (0.56, 0.44, 0.44), strict=False
    ):
        ax.text(crossing, y, f"{crossing:,.0f}", color=COLOURS[colour], fontsize=9,
                ha="right" if y > 0.5 else "left")  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = [64, 256, 1024, 4096, 16_384, 65_536]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlabel="T, tokens in a sequence", xlim=(T[0], T[-1]), ylim=(0, 1),
           ylabel="share of scores and values")  # fmt: skip
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0.19, 1.0))
    ax.set_title("Where scores and weighted values take over")
    return describe(
        figure,
        "The share of scores and weighted values against the length, from 64 to 65,536 tokens, for "
        "three sizes. All start near zero and pass one half: "
        + ", ".join(f"{name} at {crossing:,.0f}" for name, crossing in crossings.items())
        + ".",
    )


def cards(speed: float, peaks: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw what share of each card's peak a measured speed would be, rightly and wrongly.

    Args:
        speed: FLOP/s.
        peaks: card to (peak of its tensor cores in 16 bits, of its ordinary units), in FLOP/s.
    """
    figure, ax = new_figure(figsize=(7.2, 4.2))
    names = list(peaks)[::-1]
    tensor, ordinary = ([speed / peaks[name][i] for name in names] for i in (0, 1))
    y = np.arange(len(names))
    ax.axvspan(0.3, 0.5, color=COLOURS["value"], alpha=0.15, linewidth=0)
    ax.text(0.39, len(names) - 0.3, "well-tuned runs,\nright peak", fontsize=8.5, ha="center",
            va="bottom", color=COLOURS["value"])  # fmt: skip
    ax.axvline(1, color=COLOURS["residual"], linewidth=1.2)
    ax.hlines(y, tensor, ordinary, color=COLOURS["other"], linewidth=1)
    ax.plot(tensor, y, "o", color=COLOURS["right"], label="of the tensor cores, 16 bits: right")
    ax.plot(ordinary, y, "D", color=COLOURS["wrong"], markerfacecolor="white", markeredgewidth=1.6,
            label="of the ordinary units, float32: wrong")  # fmt: skip
    ax.set_yticks(y, names, fontsize=9.5)
    ax.set_xscale("log")
    ticks = [0.001, 0.01, 0.1, 1]
    ax.set_xticks(ticks, ["0.1 %", "1 %", "10 %", "100 %"])
    ax.set(xlabel="share of the card's peak", xlim=(5e-4, 1.15), ylim=(-0.6, len(names) + 1.3))
    ax.set_title("Whichever of these cards it was, less than 3 % of its peak was used")
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return describe(
        figure,
        "The logged speed as a share of fifteen cards' peaks, on a logarithmic axis. Of the tensor "
        "cores' peak it is less than 3 % on each card; of the ordinary units' peak, the wrong "
        "measure, 2 to 23 %. A band at 30 to 50 % shows what well-tuned runs reach.",
    )
