"""Figures of notebook 15, the backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas
from smol_scratch.course.figures.style import COLOURS, describe, ink, new_figure

_LINE, _BACK = COLOURS["residual"], COLOURS["wrong"]


def opening(curves: Mapping[str, np.ndarray], steps: Sequence[float], chance: float) -> Figure:
    """Draw the losses of trainings with different gradients, none of them named.

    Args:
        curves: name to losses in nats per character, (seeds, points).
        steps: of the points.
        chance: the loss of a blind guess.
    """
    figure, ax = new_figure(figsize=(7.2, 3.3))
    for lines in curves.values():
        ax.plot(steps, lines.mean(0), color=COLOURS["query"], linewidth=1.6)
    ax.axhline(chance, color=_LINE, linewidth=1)
    ax.text(steps[-1], chance - 0.04, "a blind guess", fontsize=10, va="top", ha="right")
    ax.set(xlabel="training step (each point: the mean of ten steps)",
           ylabel="loss (nats per character)",
           title="seven backward passes, six of them wrong: all learn")  # fmt: skip
    return describe(figure, """Seven training losses, each the mean of three seeds. All of them fall
        far below a blind guess, although six of the seven have a wrong gradient; most lie on top
        of each other.""")  # fmt: skip


def named(curves: Mapping[str, np.ndarray], steps: Sequence[float]) -> Figure:
    """Draw the opening's losses with their names, and the last ones against the right gradient's.

    Args:
        curves: name to losses in nats per character, (seeds, points); "right" is among them.
        steps: of the points.
    """
    figure, (top, ax) = new_figure(2, 1, figsize=(7.2, 6.2), height_ratios=[1, 1.15])
    means = {name: lines.mean(0) for name, lines in curves.items()}
    worst = max(means, key=lambda name: means[name][-1])
    rest = [line for name, line in means.items() if name not in ("right", worst)]
    for number, line in enumerate(rest):
        top.plot(steps, line, color=COLOURS["other"], linewidth=1.2,
                 label=None if number else "the other five, named below")  # fmt: skip
    top.plot(steps, means["right"], color=_LINE, linewidth=2.2, label="right gradient")
    top.plot(steps, means[worst], color=_BACK, linewidth=2.2, label=worst)
    handles, labels = top.get_legend_handles_labels()
    top.legend(handles[::-1], labels[::-1], loc="upper right", fontsize=9.5)
    top.set(xlabel="training step", ylabel="loss\n(nats per character)",
            title="the opening's seven runs: one stands out")  # fmt: skip
    right = curves["right"][:, -1]
    gaps = {name: lines[:, -1] - right for name, lines in curves.items() if name != "right"}
    for row, (name, gap) in enumerate(gaps.items()):
        colour = _BACK if name == worst else "#666666"
        ax.plot(gap, np.full(len(gap), row), "o", color=colour, markersize=7, alpha=0.55,
                markeredgewidth=0)  # fmt: skip
        ax.plot([gap.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.4)
        left = name == worst
        ax.text(gap.min() - 0.012 if left else 0.11, row, name, color=colour, fontsize=10,
                ha="right" if left else "left", va="center", weight="bold")  # fmt: skip
    ax.axvline(0, color=_LINE, linewidth=1.8)
    ax.set_yticks([])
    ax.set_ylim(len(gaps) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="difference (nats per character)",
           title="last ten steps: loss, minus the right gradient's from the same start\n"
           "(dot: one start; bar: mean)")  # fmt: skip
    ax.title.set_fontsize(10.5)
    return describe(figure, """Above, the opening's seven curves. The highest is the norm's second
        term left out; the other five lie close around the right one. Below,
        for each wrong gradient, the last losses of three starts minus those of the right gradient
        from the same starts. Only without the norm's second term are all three far to the right,
        at a quarter of a nat; the other five lie near 0.""")  # fmt: skip


def _node(ax: Any, x: float, y: float, sign: str, colour: str = "residual") -> None:
    ax.add_patch(
        Circle((x, y), 0.28, facecolor="white", edgecolor=COLOURS[colour], linewidth=1.6, zorder=4)
    )
    ax.text(x, y, sign, ha="center", va="center_baseline", fontsize=13, zorder=5)


def _both(ax: Any, x: float, y: float, forward: str, back: str) -> None:
    """Write what passes a line forwards above it, and what comes back below."""
    ax.text(x, y + 0.1, forward, ha="center", va="bottom", fontsize=10)
    ax.text(x, y - 0.12, back, ha="center", va="top", fontsize=10, color=_BACK, weight="bold")


def pencil() -> Figure:
    """Draw y = x + (2x)(x) with the numbers of the example, forwards and back."""
    figure, ax = canvas(15, 5.4)
    x0, x1, xp, xs = 2.9, 5.9, 9.3, 12.1
    ax.plot([0.3, 14.3], [4.2, 4.2], color=_LINE, linewidth=3, zorder=0)
    arrow(ax, (13.9, 4.2), (14.7, 4.2))
    arrow(ax, (xs - 0.8, 4.2), (xs - 0.24, 4.2))
    for y in (2.5, 0.8):
        ax.plot([x0, x0], [4.2, y], color=_LINE, linewidth=1.5, zorder=0)
        arrow(ax, (x0, y), (x1 - 0.75, y))
    box(ax, x1 - 0.75, 2.5 - HIGH / 2, 1.5, "gate: 2x", "residual", filled=False)
    box(ax, x1 - 0.75, 0.8 - HIGH / 2, 1.5, "up: 1x", "residual", filled=False)
    arrow(ax, (x1 + 0.7, 2.5), (xp - 0.24, 2.5))
    ax.plot([x1 + 0.75, xp, xp], [0.8, 0.8, 2.0], color=_LINE, linewidth=1.5, zorder=0)
    arrow(ax, (xp, 1.2), (xp, 2.26))
    ax.plot([xp + 0.28, xs, xs], [2.5, 2.5, 3.6], color=_LINE, linewidth=1.5, zorder=0)
    arrow(ax, (xs, 2.9), (xs, 3.96))
    _node(ax, xp, 2.5, "×")
    _node(ax, xs, 4.2, "+")
    ax.add_patch(Circle((x0, 4.2), 0.1, color=_LINE, zorder=4))
    _both(ax, 1.5, 4.2, "x = 3", "1 + 6 + 6 = 13")
    _both(ax, 7.2, 4.2, "3", "1")
    _both(ax, 13.2, 4.2, "y = 21", "1")
    _both(ax, 4.0, 2.5, "3", "2 · 3 = 6")
    _both(ax, 4.0, 0.8, "3", "1 · 6 = 6")
    _both(ax, 7.8, 2.5, "6", "3")
    _both(ax, 7.8, 0.8, "3", "6")
    _both(ax, 10.8, 2.5, "18", "1")
    for x, y, words in (
        (x0 + 0.15, 4.72, "used three times:\ngradients add"),
        (xs, 4.72, "sum: gradient copied"),
        (xp + 0.5, 1.75, "product: each side gets the\ngradient × the other's value"),
    ):
        ax.text(x, y, words, fontsize=9.5, style="italic", va="bottom" if y > 3 else "top",
                ha="center" if x == xs else "left")  # fmt: skip
    ax.set_ylim(0, 5.6)
    return describe(figure, """The example on paper. Forwards, above the lines: x is 3 and is used
        three times: beside, as gate 6, as up 3; the product is 18, the sum 21. Backwards, below the
        lines: 1 comes in, the sum copies it, the product hands 3 to the gate and 6 to up, and at x
        the three gradients 1, 6 and 6 add up to 13.""")  # fmt: skip


def right_angle() -> Figure:
    """Draw what RMSNorm's backward pass takes out of a gradient, for x = (1, 7) and dy = (5, 5)."""
    figure, ax = new_figure(figsize=(6.0, 3.7))
    x, dn = np.array([1.0, 7.0]), np.array([5.0, 5.0])
    r = 1 / np.sqrt((x**2).mean())
    n = r * x
    out, along = r * (dn - n * (dn * n).mean()), r * n * (dn * n).mean()
    ax.plot([-0.03, 0.21], [-0.21, 1.47], color=_LINE, linewidth=1.5, zorder=0)
    for start, end, colour in ((0 * x, along, "other"), (0 * x, r * dn, "residual"),
                               (0 * x, out, "wrong"), (r * dn, out, "other")):  # fmt: skip
        ax.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>", "color": COLOURS[colour], "linewidth": 2.2, "mutation_scale": 14,
            "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    corner = 0.09 * np.array([along / np.linalg.norm(along), out / np.linalg.norm(out)])
    square = np.array([corner[0], corner[0] + corner[1], corner[1]])
    ax.plot(*square.T, color="black", linewidth=1)
    for at, words, colour, sides in (
        ((0.235, 1.37), "along x, which lies far\noutside, at (1, 7)", _LINE, "left"),
        ((1.04, 1.02), "r · dn = (1, 1)", _LINE, "left"),
        ((0.89, -0.16), "dx = (0.84, −0.12)", _BACK, "left"),
        ((0.05, 0.98), "what points\nalong x:\n(0.16, 1.12)", "#666666", "right"),
        ((0.96, 0.45), "taken out:\n− (0.16, 1.12)", "#666666", "left"),
    ):
        ax.text(*at, words, color=colour, fontsize=10.5, ha=sides, va="center", weight="bold")
    ax.set(xlim=(-0.75, 1.85), ylim=(-0.3, 1.55), xlabel="channel 1", ylabel="channel 2",
           aspect="equal", title="dx is at a right angle to x")  # fmt: skip
    return describe(figure, """Two channels. The gradient r dn = (1, 1) is split into the part along
        x = (1, 7), which is (0.16, 1.12), and the rest, (0.84, −0.12), at a right angle to x.
        The part along x is taken out; the rest is dx.""")  # fmt: skip


def way_back() -> Figure:
    """Draw a block's backward pass, from right to left: where the gradient splits, where it adds.

    Two rows: the MLP, which is reached first, and below it attention.
    """
    figure, ax = canvas(13.6, 8.6, inches=7.2)
    wide, right, left = 1.5, 12.4, 1.2
    for y, title, ends, parts in (
        (7.4, "first the MLP", ("dout", "dh"),
         (("down", "dm"), ("product", "dgate,\ndup"), ("gate, up", "db"), ("norm", ""))),
        (3.1, "then attention", ("dh", "dx"),
         (("o", "dy"), ("attend", "dq,\ndk"), ("RoPE", ""), ("q, k, v", "da"), ("norm", ""))),
    ):  # fmt: skip
        low = y - 1.9
        ax.plot([0.4, 13.2], [y, y], color=_BACK, linewidth=3, zorder=0)
        arrow(ax, (0.6, y), (0.0, y), colour="wrong")
        ax.add_patch(Circle((right, y), 0.13, color=_BACK, zorder=4))
        _node(ax, left, y, "+", "wrong")
        ax.plot([right, right], [y, low], color=_BACK, linewidth=1.5, zorder=0)
        gap = (right - left - wide * len(parts)) / (len(parts) + 1)
        at = right
        for name, words in parts:
            arrow(ax, (at, low), (at - gap, low), colour="wrong")
            at -= gap + wide
            box(ax, at, low - 0.45, wide, name, "residual", height=0.9, filled=False)
            if name == "attend":  # RoPE turns q and k; v goes past it
                mid, below = at - gap / 2, low - 0.85
                ax.text(mid - gap / 2 - wide / 2, below - 0.1, "dv", fontsize=10, ha="center",
                        va="top", color=_BACK, weight="bold")  # fmt: skip
                far = at - 2 * gap - wide - wide / 2
                ax.plot([at + wide / 2, at + wide / 2, far], [low - 0.45, below, below],
                        color=_BACK, linewidth=1.5, zorder=0)  # fmt: skip
                arrow(ax, (far, below), (far, low - 0.45), colour="wrong")
            ax.text(at - gap / 2, low + 0.12, words, fontsize=9.5, ha="center", va="bottom",
                    color=_BACK, weight="bold", linespacing=1.0)  # fmt: skip
        ax.plot([at, left], [low, low], color=_BACK, linewidth=1.5, zorder=0)
        arrow(ax, (left, low - 0.05), (left, y - 0.2), colour="wrong")
        for x, words in zip((13.2, 0.3), ends, strict=True):
            ax.text(x, y + 0.25, words, fontsize=11, ha="center", va="bottom", color=_BACK,
                    weight="bold")  # fmt: skip
        ax.text(right - 0.2, y - 0.2, "forward: a sum\nback: copied", fontsize=10, ha="right",
                va="top", style="italic")  # fmt: skip
        ax.text(left + 0.45, y - 0.2, "forward: read twice\nback: added", fontsize=10, ha="left",
                va="top", style="italic")  # fmt: skip
        ax.text(6.8, y + 0.2, title, fontsize=11, ha="center", va="bottom", weight="bold")
    return describe(figure, """A block's backward pass in two rows, each read from right to left.
        Where the forward pass added, the stream's gradient dout is copied: one copy runs straight
        on, the other goes back through down, the product, gate and up, and the norm. Where the
        forward pass read the stream twice, both are added, to dh. The same again, below, through
        o, attention, RoPE (for q and k; v goes past it), the matrices q, k, v and the first norm
        gives dx.""")  # fmt: skip


_KINDS = {
    "logits": "embedding",
    "MLP, 1,536 wide": "gate",
    "stream and attention, 576 wide": "attention",
    "keys, values and the rest": "other",
}


def kept(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw how many numbers per token each way keeps between forward and backward pass.

    Args:
        bars: name to a kind of ``_KINDS`` to numbers per token.
    """
    figure, ax = new_figure(figsize=(7.5, 2.6))
    for row, kinds in enumerate(bars.values()):
        left = 0.0
        for kind, colour in _KINDS.items():
            width = kinds.get(kind, 0) / 1000
            ax.barh(row, width, left=left, height=0.62, color=COLOURS[colour],
                    label=kind if row == 0 else None, edgecolor="white")  # fmt: skip
            narrow = width < 15  # its number stands above it
            if width > 1:
                ax.text(left + width / 2, row - 0.4 * narrow, f"{width:.0f}", ha="center",
                        va="bottom" if narrow else "center", fontsize=10, weight="bold",
                        color="#666666" if narrow else ink(colour))  # fmt: skip
            left += width
        ax.text(left + 4, row, f"{left:.0f}", va="center", fontsize=10)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set(xlabel="numbers kept per token, in thousands (rounded)", xlim=(0, 480))
    ax.set_ylim(len(bars) - 0.6, -0.75)
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9.5)
    return describe(figure, """What waits in memory between the two passes, per token. Autograd
        keeps more than twice as much as the backward pass by hand: the logits, which we do not
        keep at all, and about twice as much in MLPs, stream and attention.""")  # fmt: skip


def shares(parts: Mapping[str, tuple[float, float, float]], layers: np.ndarray) -> Figure:
    """Draw where a sentence's gradient lies: by part, and by layer.

    Args:
        parts: name to share of the squared gradient, its standard error, and share of the
            parameters.
        layers: share of each layer, (sentences, layers).
    """
    figure, (left, right) = new_figure(1, 2, figsize=(8.0, 3.6), width_ratios=[1.25, 1])
    for row, (share, error, size) in enumerate(parts.values()):
        left.barh(row, 100 * share, height=0.6, color=COLOURS["query"])
        left.plot([100 * (share - error), 100 * (share + error)], [row, row], color="black")
        left.plot(100 * size, row, "D", color=COLOURS["key"], markersize=7, clip_on=False,
                  zorder=5)  # fmt: skip
    left.set_yticks(range(len(parts)), list(parts), fontsize=10)
    left.invert_yaxis()
    left.set(xlabel="share in %", title="bar: of the squared gradient\ndiamond: of the parameters")
    left.axvline(0, color=_LINE, linewidth=1)
    left.set_xlim(-2, 43)
    left.grid(visible=False, axis="y")
    mean, error = layers.mean(0), layers.std(0, ddof=1) / len(layers) ** 0.5
    right.bar(range(layers.shape[1]), 100 * mean, color=COLOURS["query"], width=0.7)
    for i, (m, e) in enumerate(zip(mean, error, strict=True)):
        right.plot([i, i], [100 * (m - e), 100 * (m + e)], color="black", linewidth=1.2)
    right.set(xlabel="layer", ylabel="share in %",
              title="of the squared gradient,\nlayer by layer")  # fmt: skip
    right.grid(visible=False, axis="x")
    figure.supxlabel("black lines: ± one standard error over the four sentences", fontsize=9.5)
    return describe(figure, """Where the squared gradient of a sentence lies. By part: down and the
        table lead, the norms' weights have a share far beyond their number. By layer: layers 0 and
        11 stand out.""")  # fmt: skip


def rows(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bins: Mapping[str, tuple[float, float]],
    means: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw how far each row of the table moved against how often its token occurred.

    Args:
        points: title to counts and distances, those in units of the rows' mean.
        bins: name to the lowest and the highest count.
        means: title to the mean distance in each bin.
    """
    figure, axes = new_figure(1, len(points), figsize=(7.6, 3.1), sharex=True, sharey=True)
    for ax, (title, (counts, distances)) in zip(axes, points.items(), strict=True):
        ax.plot(np.where(counts > 0, counts, 0.2), distances, "o", color=COLOURS["embedding"],
                alpha=0.4, markersize=4.5, markeredgewidth=0)  # fmt: skip
        for (low, high), mean in zip(bins.values(), means[title], strict=True):
            ends = (max(low, 0.14) * 0.9, min(max(high, 0.32), 3500) * 1.1)
            ax.plot(ends, [mean, mean], color="black", linewidth=2.4, solid_capstyle="butt")
        ax.axvline(0.45, color=_LINE, linewidth=1, linestyle=":")  # left of it: never
        ax.axhline(1, color=_LINE, linewidth=1)
        ax.set(
            title=title,
            xscale="log",
            yscale="log",
            xlabel="times seen in training",
            xlim=(0.12, 4000),
        )
        ax.set_xticks([0.2, 1, 10, 100, 1000])
        ax.set_xticklabels(["never", "1", "10", "100", "1,000"], fontsize=9)
        ax.set_yticks([0.3, 0.5, 1, 2, 3])
        ax.set_yticklabels(["0.3", "0.5", "1", "2", "3"])
        ax.minorticks_off()
    axes[0].set_ylabel("distance moved\n(1: the rows' mean)")
    figure.supxlabel("black bars: the table's means", fontsize=9.5)
    return describe(figure, """How far the rows of the table moved, against how often their
        character was seen. AdamW: the rarer, the farther. Plain gradient descent: the most
        frequent moved farthest; among rows seen up to thirty times
        there is no upward trend.""")  # fmt: skip
