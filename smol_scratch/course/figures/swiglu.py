"""Figures of notebook 04, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

# Below zero, zero, above zero.
_SIGNED = LinearSegmentedColormap.from_list(
    "signed", [COLOURS["query"], "white", COLOURS["gate"]], N=256
)
_LINES = {
    "ReLU": (COLOURS["other"], ":"),
    "GELU": (COLOURS["key"], "--"),
    "SiLU": (COLOURS["gate"], "-"),
}


def _minus(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def anatomy(
    x: Sequence[float], gate_row: Sequence[str], up_row: Sequence[str], down: Sequence[str],
    gate: float, bent: float, up: float, product: float, written: Sequence[float],
) -> Figure:  # fmt: skip
    """Draw a whole SwiGLU, and below it one hidden channel with the numbers of the example.

    Args:
        x: the token's vector, two numbers.
        gate_row: the channel's row of the gate matrix, as words.
        up_row: its row of the up matrix.
        down: its column of the down matrix.
        gate: what the gate row reads.
        bent: SiLU of it.
        up: what the up row reads.
        product: of the two.
        written: what the channel adds to the output, two numbers.
    """
    figure, ax = canvas(15, 8.6)
    _whole(ax, 6.1)
    ax.add_patch(
        Polygon(
            [(5.6, 6.05), (7.3, 6.05), (13.9, 4.55), (1.0, 4.55)], facecolor="#EEEEEE", zorder=0
        )
    )
    ax.add_patch(Rectangle((0.1, 0.1), 14.8, 4.45, facecolor="#EEEEEE", zorder=0))
    ax.text(7.1, 4.95, "one hidden channel", fontsize=11, ha="center", va="center",
            weight="bold")  # fmt: skip
    cells(ax, 0.4, 2.0, list(x), "residual")
    ax.text(1.4, 1.65, "token x", ha="center", va="top", fontsize=10)
    for bottom, row, colour, name in (
        (3.1, gate_row, "gate", "row of gate"), (0.7, up_row, "up", "row of up")
    ):  # fmt: skip
        cells(ax, 3.5, bottom, list(row), colour)
        ax.text(4.5, bottom + 0.72, name, ha="center", va="bottom", fontsize=10)
        arrow(ax, (2.5, 2.3), (3.4, bottom + HIGH / 2))
    cells(ax, 6.2, 3.1, [_minus(gate)], "gate")
    cells(ax, 6.2, 0.7, [up], "up")
    box(ax, 7.7, 3.1, 1.2, "SiLU", "gate", filled=False)
    cells(ax, 9.4, 3.1, [_minus(bent)], "gate")
    arrow(ax, (5.6, 3.4), (6.15, 3.4))
    arrow(ax, (5.6, 1.0), (6.15, 1.0))
    arrow(ax, (7.2, 3.4), (7.65, 3.4))
    arrow(ax, (8.9, 3.4), (9.35, 3.4))
    _times(ax, 9.9, 2.3)
    arrow(ax, (9.9, 3.1), (9.9, 2.62))
    arrow(ax, (7.2, 1.0), (9.68, 2.1))
    cells(ax, 10.7, 2.0, [_minus(product)], "mlp")
    arrow(ax, (10.15, 2.3), (10.65, 2.3))
    cells(ax, 12.1, 3.1, list(down), "down")
    ax.text(13.1, 3.82, "column of down", ha="center", va="bottom", fontsize=10)
    _times(ax, 13.1, 2.3)
    arrow(ax, (11.7, 2.3), (12.85, 2.3))
    arrow(ax, (13.1, 3.1), (13.1, 2.56))
    arrow(ax, (13.1, 2.05), (13.1, 1.32))
    cells(ax, 12.1, 0.7, [_minus(value) for value in written], "mlp")
    ax.text(13.1, 0.62, "added to the output", ha="center", va="top", fontsize=10)
    return describe(figure, """Anatomy of SwiGLU. Above: a token's 576 channels are widened twice
        to 1,536, by gate and by up; the gate's reading passes SiLU, the two are multiplied channel
        by channel, and down narrows them to 576. Below, one hidden channel with the numbers of
        the example: two rows read, one column writes.""")  # fmt: skip


def _times(ax: Any, x: float, y: float) -> None:
    ax.add_patch(Circle((x, y), 0.25, facecolor="white", edgecolor=COLOURS["mlp"], linewidth=1.6))
    ax.text(x, y, "×", ha="center", va="center_baseline", fontsize=12)


def _whole(ax: Any, bottom: float) -> None:
    """Draw the three matrices between vectors, as bars whose length is their width."""
    mid = bottom + 1.2
    ax.add_patch(Rectangle((0.5, mid - 0.45), 0.35, 0.9, facecolor=COLOURS["residual"]))
    ax.text(0.68, mid - 0.6, "576", ha="center", va="top", fontsize=10)
    for low, colour, name in ((bottom + 1.3, "gate", "gate"), (bottom - 0.05, "up", "up")):
        box(ax, 2.0, low + 0.2, 1.9, name, colour, filled=False)
        arrow(ax, (0.95, mid), (1.95, low + 0.5))
        arrow(ax, (3.95, low + 0.5), (5.1, low + 0.5))
        for channel in range(12):
            ax.add_patch(
                Rectangle(
                    (5.15 + 0.2 * channel, low + 0.25), 0.17, 0.5,
                    facecolor=COLOURS[colour] + ("FF" if channel == 6 else "40"),
                )
            )  # fmt: skip
    ax.text(6.35, bottom + 0.96, "1,536 each", ha="center", va="center", fontsize=10)
    box(ax, 8.2, bottom + 1.5, 1.2, "SiLU", "gate", filled=False)
    arrow(ax, (7.6, bottom + 1.8), (8.15, bottom + 1.8))
    _times(ax, 10.1, mid)
    arrow(ax, (9.4, bottom + 1.8), (9.95, mid + 0.24))
    arrow(ax, (7.6, bottom + 0.45), (9.9, mid - 0.2))
    box(ax, 11.2, mid - HIGH / 2, 1.9, "down", "down", filled=False)
    arrow(ax, (10.35, mid), (11.15, mid))
    arrow(ax, (13.1, mid), (13.95, mid))
    ax.add_patch(Rectangle((14.0, mid - 0.45), 0.35, 0.9, facecolor=COLOURS["mlp"]))
    ax.text(14.18, mid - 0.6, "576", ha="center", va="top", fontsize=10)


def bends(
    z: Sequence[float],
    values: Mapping[str, Sequence[float]],
    slopes: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw activation functions around zero, and their slopes.

    Args:
        z: the reading before the bend.
        values: name ("ReLU", "GELU", "SiLU") to the value after it.
        slopes: name to the slope there.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.3))
    for ax, curves in zip(axes, (values, slopes), strict=True):
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.axvline(0, color=COLOURS["residual"], linewidth=0.8)
        for name, curve in curves.items():
            colour, style = _LINES[name]
            ax.plot(z, curve, style, color=colour, label=name)
        ax.set(xlabel="reading z, before the bend", xlim=(-5, 2))
    axes[0].set(ylim=(-0.75, 1.2), ylabel="after the bend", title="SiLU dips below zero …")
    axes[1].set(ylim=(-0.2, 1.3), ylabel="slope", title="… and its slope is hardly ever 0")
    low = int(np.argmin(np.asarray(values["SiLU"])))
    axes[0].plot(z[low], values["SiLU"][low], "o", color=COLOURS["gate"], markersize=6)
    axes[0].annotate(
        f"lowest: {_minus(float(values['SiLU'][low]))}\nat z = {_minus(float(z[low]))}",
        (z[low], values["SiLU"][low]), (-4.7, -0.66), fontsize=10,
        arrowprops={"arrowstyle": "-", "color": COLOURS["residual"]},
    )  # fmt: skip
    for ax in axes:
        ax.legend(fontsize=10, loc="upper left")
    return describe(figure, """SiLU dips below zero and returns to it slowly, GELU dips less and
        returns sooner, ReLU is flat at zero. On the right their slopes: ReLU's jumps from 0 to 1,
        the others rise softly.""")  # fmt: skip


def _map(
    ax: Any, side: Sequence[float], surface: np.ndarray, reach: float, *, lines: bool = True
) -> None:
    """Draw a surface in equal steps of 2/9 of its reach, with lines and a pair beside zero.

    What was trained a moment ago has no lines: they would show the last digits.
    """
    positive = reach * np.array([0.02 if lines else 0.07, 2 / 9, 4 / 9, 6 / 9, 1.01])
    levels = [*-positive[::-1], *positive]
    ax.contourf(
        side, side, np.clip(surface, -reach, reach), levels=levels, cmap=_SIGNED,
        vmin=-0.7 * reach, vmax=0.7 * reach,
    )  # fmt: skip
    if lines:
        ax.contour(
            side, side, surface, levels=levels[1:-1], colors="#222222", linewidths=0.7,
            linestyles="solid",
        )  # fmt: skip
    ax.set(aspect="equal", xticks=[side[0], 0, side[-1]], yticks=[side[0], 0, side[-1]])
    ax.set_xticklabels([_minus(float(side[0]), 0), "0", f"{float(side[-1]):.0f}"], fontsize=10)
    ax.set_yticklabels([_minus(float(side[0]), 0), "0", f"{float(side[-1]):.0f}"], fontsize=10)
    for axis, first, last in ((ax.xaxis, "left", "right"), (ax.yaxis, "bottom", "top")):
        labels = axis.get_ticklabels()  # those at the corners stand apart from each other
        for label, place in zip(labels[:: max(1, len(labels) - 1)], (first, last), strict=False):
            label.set(**{"ha" if axis is ax.xaxis else "va": place})
    ax.grid(visible=False)


def responses(side: Sequence[float], panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw what units return for two readings of a token, as maps with lines of equal output.

    Args:
        side: values of either reading.
        panels: title to the outputs, (readings b, readings a).
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.8, 3.1))
    for ax, (title, surface) in zip(axes, panels.items(), strict=True):
        _map(ax, side, surface, 9)
        ax.set(title=title, xlabel="reading a")
    axes[0].set_ylabel("reading b")
    axes[0].text(-1.6, -1.6, "0", fontsize=12, ha="center", va="center")
    axes[0].text(2.3, 2.3, "+", fontsize=13, ha="center", va="center")
    for ax in axes[1:]:
        for a, b, sign in ((2, 2, "+"), (2, -2, "−"), (-2, 2, "−"), (-2, -2, "+")):
            ax.text(a, b, sign, fontsize=13, ha="center", va="center")
    return describe(figure, """Three maps over two readings a and b. A ReLU unit is a flat half and
        a ramp with straight lines; a SwiGLU channel is curved, strong where a is positive; a pair
        of channels is the saddle of the product a times b.""")  # fmt: skip


def fits(
    side: Sequence[float],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    errors: Mapping[str, Mapping[str, tuple[float, float]]],
    shown: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Draw what small networks learned to answer, beside what they were asked for.

    Args:
        side: values of a and of b.
        rows: name of a target to, in the order of the columns, a name to its answers, (b, a); the
            first is the target itself.
        errors: name of a target to a kind's mean error and its standard error, as shares.
        shown: name of a target to the error of each kind's answer in ``rows``, as a share.
    """
    columns = len(next(iter(rows.values())))
    figure, axes = new_figure(len(rows), columns, figsize=(8.4, 4.5), sharex=True, sharey=True)
    for line, (target, panels) in zip(axes, rows.items(), strict=True):
        for ax, (name, surface) in zip(line, panels.items(), strict=True):
            _map(ax, side, surface, 4 if target.startswith("a") else 2, lines=False)
            title = f"target:\n{target}"
            if name in errors[target]:
                mean, error = (100 * value for value in errors[target][name])
                digits = 0 if error >= 0.95 else 1
                spread = f"{error:.{digits}f}" if error > 5e-2 else "< 0.1"
                off = f"{mean:.{digits if error > 5e-2 else 0}f} ± {spread}"
                off = off if mean > 0.1 else "< 0.1"
                here = 100 * shown[target][name]
                seen = f"{here:.0f}" if here > 0.1 else "< 0.1"
                title = f"{name}\noff: {off} %\n(here {seen} %)"
            ax.set_title(title, fontsize=9.5)
    for ax in axes[-1]:
        ax.set_xlabel("a")
    for ax in axes[:, 0]:
        ax.set_ylabel("b")
    return describe(figure, """What networks of 28 parameters learn. For the product a times b the
        gated ones are nearest: the bilinear one is exact, SwiGLU close, GELU a little less so, and
        ReLU is made of flat pieces. For a sharp edge (b where a is positive, else 0) ReLU is
        nearest and the bilinear one misses it altogether.""")  # fmt: skip


def race(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw how far other MLPs end behind SwiGLU, seed by seed.

    Args:
        gaps: title of a panel to a kind to its held-out loss minus SwiGLU's, one for each seed.
    """
    figure, axes = new_figure(1, len(gaps), figsize=(7.5, 3.1), sharex=True, sharey=True)
    for ax, (title, kinds) in zip(axes, gaps.items(), strict=True):
        ax.axvline(0, color=COLOURS["residual"], linewidth=1.4)
        for row, values in enumerate(kinds.values()):
            mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
            ax.plot(values, [row + 0.17] * len(values), "|", color=COLOURS["other"], markersize=9)
            ax.errorbar(
                mean, row - 0.12, xerr=2 * error, fmt="o", color=COLOURS["mlp"], capsize=4,
                markersize=7, linewidth=2,
            )  # fmt: skip
        ax.set_yticks(range(len(kinds)), list(kinds))
        ax.set(title=title, ylim=(-0.5, len(kinds) - 0.5))
        ax.invert_yaxis()
    figure.supxlabel("loss minus SwiGLU's, or as the row says (nats per character); right: worse\n"
                     "dot: mean; bar: two standard errors either way; thin marks: single seeds",
                     fontsize=10.5)  # fmt: skip
    return describe(figure, """At width 48 the MLP without a gate ends behind SwiGLU, and behind
        the plain product, by several standard errors; product and biases lie on the line. At width
        24 all lie on the line. Thin marks are single seeds, dots are means with two standard
        errors.""")  # fmt: skip


def valves(percentiles: np.ndarray, below: Sequence[float]) -> Figure:
    """Draw where gate readings lie in each layer, and how much is written below zero.

    Args:
        percentiles: 1, 25, 50, 75, 99 of the gate's reading, (5, layers).
        below: share of what is written that passed below zero.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.3))
    layers = np.arange(percentiles.shape[1])
    low, quarter, middle, three, high = percentiles
    left, right = axes
    left.fill_between(layers, low, high, color=COLOURS["gate"], alpha=0.2, linewidth=0)
    left.fill_between(layers, quarter, three, color=COLOURS["gate"], alpha=0.55, linewidth=0)
    left.plot(layers, middle, color=COLOURS["residual"], linewidth=1.5)
    for edge in (-1, 1):
        left.axhline(edge, color=COLOURS["residual"], linestyle=":", linewidth=1)
    left.text(15, 3.1, "98 % of readings", fontsize=10, ha="center", color="#8F3F00")
    left.annotate(
        "half of them", (14, three[14]), (14, 2.1), fontsize=10, ha="center",
        arrowprops={"arrowstyle": "-", "color": COLOURS["residual"]},
    )  # fmt: skip
    left.annotate(
        f"to {high[-1]:.0f}", (layers[-1] - 0.3, 5), (24.5, 4.4), fontsize=10, ha="center",
        va="center", color="#8F3F00", arrowprops={"arrowstyle": "->", "color": "#8F3F00"},
    )  # fmt: skip
    left.set(title="Most readings lie between −1 and 1", ylim=(-4, 5), ylabel="gate reading z",
             xlabel="layer")  # fmt: skip
    right.plot(layers, 100 * np.asarray(below), color=COLOURS["query"])
    right.text(9, 100 * float(np.asarray(below)[2:15].max()) + 4, "written through\nthe dip, z < 0",
               fontsize=10, color=COLOURS["query"], ha="center", va="bottom")  # fmt: skip
    right.set(title="Early layers write through the dip", ylim=(0, 80), ylabel="share in %",
              xlabel="layer")  # fmt: skip
    return describe(figure, """Left: gate readings by layer; in every layer most lie between minus
        one and one. Right: in layers 1 to 14 about half of what is written passes a gate with a
        negative reading; in layer 0 about 3 %, and in the late layers less.""")  # fmt: skip


def damage(losses: Mapping[str, tuple[float, float]], floor: float) -> Figure:
    """Draw the loss of the real weights behind other gates.

    Args:
        losses: what was done to loss in nats per token and its standard error; the first is the
            intact model.
        floor: the loss of a model that gives every token the same probability.
    """
    figure, ax = new_figure(figsize=(7.2, 3.1))
    names = list(losses)
    means = [mean for mean, _ in losses.values()]
    ends = [mean + error for mean, error in losses.values()]
    ax.barh(names, means, height=0.6,
            color=[COLOURS["right"]] + [COLOURS["wrong"]] * (len(names) - 1))  # fmt: skip
    for row, (mean, error) in enumerate(losses.values()):
        ax.plot([mean - error, mean + error], [row, row], color="black", linewidth=1.5)
        ax.text(0.25, row, f"{mean:.1f}", va="center", fontsize=10, color="white",
                weight="bold")  # fmt: skip
    ax.axvline(floor, color=COLOURS["residual"], linestyle="--", linewidth=1.4)
    ax.text(floor + 0.2, -0.1, "a model that knows nothing", fontsize=10, va="center")
    ax.invert_yaxis()
    ax.set(xlabel="loss (nats per token), with its standard error", xlim=(0, max(ends) + 2.5),
           title="Loss on real text with each bug")  # fmt: skip
    ax.grid(visible=False, axis="y")
    return describe(figure, """Loss of the real weights: intact lowest, a GELU gate about one nat
        above it, a ReLU gate several nats, half the gate reading without a bend beyond a model
        that knows nothing, swapped further still.""")  # fmt: skip
