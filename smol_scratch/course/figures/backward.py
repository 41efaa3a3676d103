"""Figures of notebook 15, the backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

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
    ax.set(xlabel="training step", ylabel="loss (nats per character)",
           title="seven backward passes, six of them wrong: all learn")  # fmt: skip
    return describe(figure, """Seven training losses, each the mean of three seeds. All of them fall
        far below a blind guess, although six of the seven have a wrong gradient; most lie on top
        of each other.""")  # fmt: skip


def named(curves: Mapping[str, np.ndarray], steps: Sequence[float]) -> Figure:
    """Draw each wrong gradient's loss beside the right one's, under its name.

    Args:
        curves: name to losses in nats per character, (seeds, points); "right" is among them.
        steps: of the points.
    """
    figure, axes = new_figure(2, 3, figsize=(8.6, 4.4), sharex=True, sharey=True)
    wrong = [name for name in curves if name != "right"]
    for ax, name in zip(axes.flat, wrong, strict=True):
        ax.plot(steps, curves["right"].mean(0), color=_LINE, linewidth=3.5, label="right")
        ax.plot(steps, curves[name].mean(0), color=_BACK, linewidth=1.6, label="wrong")
        ax.set_title(name, fontsize=9.5)
    axes[0, 0].legend(fontsize=9.5)
    figure.supxlabel("training step", fontsize=11)
    figure.supylabel("loss (nats per character)", fontsize=11)
    return describe(figure, """The seven losses again, by name, each wrong gradient's over the right
        one's. Only without the norm's second term does the curve run clearly above; the other five
        nearly cover the right one.""")  # fmt: skip


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
    for y in (2.5, 0.8):
        ax.plot([x0, x0], [4.2, y], color=_LINE, linewidth=1.5, zorder=0)
        arrow(ax, (x0, y), (x1 - 0.75, y))
    box(ax, x1 - 0.75, 2.5 - HIGH / 2, 1.5, "· 2", "gate", filled=False)
    box(ax, x1 - 0.75, 0.8 - HIGH / 2, 1.5, "· 1", "up", filled=False)
    ax.plot([x1 + 0.75, xp - 0.28], [2.5, 2.5], color=_LINE, linewidth=1.5, zorder=0)
    ax.plot([x1 + 0.75, xp, xp], [0.8, 0.8, 2.2], color=_LINE, linewidth=1.5, zorder=0)
    ax.plot([xp + 0.28, xs, xs], [2.5, 2.5, 3.9], color=_LINE, linewidth=1.5, zorder=0)
    _node(ax, xp, 2.5, "×", "mlp")
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
        (xp + 0.5, 1.75, "product: each side gets\nthe other's value"),
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
                               (0 * x, out, "wrong"), (out, r * dn, "other")):  # fmt: skip
        ax.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>", "color": COLOURS[colour], "linewidth": 2.2, "mutation_scale": 14,
            "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    corner = 0.09 * np.array([along / np.linalg.norm(along), out / np.linalg.norm(out)])
    square = np.array([corner[0], corner[0] + corner[1], corner[1]])
    ax.plot(*square.T, color="black", linewidth=1)
    for at, words, colour, sides in (
        ((0.235, 1.41), "the line along x", _LINE, "left"),
        ((1.04, 1.02), "r · dn = (1, 1)", _LINE, "left"),
        ((0.89, -0.16), "dx = (0.84, −0.12)", _BACK, "left"),
        ((0.05, 0.98), "what points\nalong x:\n(0.16, 1.12)", "#666666", "right"),
        ((0.96, 0.4), "taken out", "#666666", "left"),
    ):
        ax.text(*at, words, color=colour, fontsize=10.5, ha=sides, va="center", weight="bold")
    ax.set(xlim=(-0.75, 1.85), ylim=(-0.3, 1.55), xlabel="channel 1", ylabel="channel 2",
           aspect="equal", title="dx stands at a right angle to x")  # fmt: skip
    return describe(figure, """Two channels. The gradient r dn = (1, 1) is split into the part along
        x = (1, 7), which is (0.16, 1.12), and the rest, (0.84, −0.12), at a right angle to x.
        The part along x is taken out; the rest is dx.""")  # fmt: skip


def used_twice() -> Figure:
    """Draw the three places of the model where one thing has several uses, and gradients add."""
    figure, ax = canvas(16, 5.2)
    for left, title in ((0.2, "the stream"), (5.7, "a key of a group"), (11.2, "the table")):
        ax.text(left, 4.85, title, fontsize=11, weight="bold")
    # The stream.
    box(ax, 0.1, 2.4 - HIGH / 2, 1.7, "stream h", "residual", filled=False)
    for y, name, colour, words in (
        (3.2, "straight on", "residual", "dout"), (1.6, "branch", "mlp", "dbranch")
    ):  # fmt: skip
        box(ax, 2.9, y - HIGH / 2, 1.9, name, colour, filled=False)
        arrow(ax, (2.9, y), (1.88, 2.4 + (y - 2.4) * 0.2), colour="wrong")
        ax.text(3.85, y - 0.42, words, fontsize=10, color=_BACK, weight="bold", ha="center",
                va="top")  # fmt: skip
    ax.text(0.2, 4.2, "dh = dout + dbranch", fontsize=10, color=_BACK, weight="bold")
    # A key of a group.
    for i, (y, words) in enumerate(((3.7, "+1"), (2.6, "+2"), (1.5, "−1"))):
        box(ax, 9.0, y - HIGH / 2, 1.2, f"q{i + 1}", "query", filled=False)
        arrow(ax, (9.0, y), (7.28, 2.6 + (y - 2.6) * 0.15), colour="wrong")
        ax.text(8.45, y + (0.02, 0.1, -0.52)[i], words, fontsize=10, color=_BACK, weight="bold",
                ha="center", va="bottom")  # fmt: skip
    box(ax, 5.9, 2.6 - HIGH / 2, 1.3, "key", "key", filled=False)
    ax.text(6.55, 1.95, "dk = 2", fontsize=10, color=_BACK, weight="bold", ha="center", va="top")
    # The table.
    box(ax, 11.3, 2.4 - HIGH / 2, 1.4, "table", "embedding")
    box(ax, 13.9, 3.2 - HIGH / 2, 1.7, "look-up", "embedding", filled=False)
    box(ax, 13.9, 1.6 - HIGH / 2, 1.7, "head", "embedding", filled=False)
    for y, words in ((3.2, "a few rows"), (1.6, "every row")):
        arrow(ax, (13.9, y), (12.75, 2.4 + (y - 2.4) * 0.2), colour="wrong")
        ax.text(14.75, y - 0.42, words, fontsize=10, color=_BACK, weight="bold", ha="center",
                va="top")  # fmt: skip
    ax.text(8.0, 0.35, "used several times on the way forward: gradients add on the way back",
            fontsize=10.5, ha="center", style="italic")  # fmt: skip
    return describe(figure, """Three places where one thing is used several times and its gradients
        add. The stream: beside the branch and in it. A key: by the three queries of its group,
        which send back 1, 2 and minus 1, together 2. The table: by the look-up, which touches a few
        rows, and by the head, which touches every row.""")  # fmt: skip


def way_back() -> Figure:
    """Draw a block's backward pass: what flows from right to left, where it splits and adds."""
    figure, ax = canvas(18.8, 6.2, inches=8.4)
    y, low, wide = 5.0, 2.2, 1.3
    ax.plot([0.5, 18.5], [y, y], color=_BACK, linewidth=3, zorder=0)
    arrow(ax, (0.9, y), (0.1, y), colour="wrong")
    for right, left, parts in (
        (17.6, 10.4, (("down", "down", "dm"), ("SiLU · up", "mlp", "dgate, dup"),
                     ("gate, up", "gate", "db"), ("norm", "norm", ""))),
        (9.8, 1.2, (("o", "attention", "dy"), ("softmax", "attention", "dq, dk, dv"),
                    ("RoPE", "query", ""), ("q, k, v", "query", "da"), ("norm", "norm", ""))),
    ):  # fmt: skip
        ax.add_patch(Circle((right, y), 0.13, color=_BACK, zorder=4))
        _node(ax, left, y, "+", "wrong")
        ax.plot([right, right], [y, low], color=_BACK, linewidth=1.5, zorder=0)
        gap = (right - left - 0.3 - wide * len(parts)) / (len(parts) - 1)
        at = right - 0.15
        for name, colour, words in parts:
            box(ax, at - wide, low - HIGH / 2, wide, name, colour, size=8.5)
            if name != "norm":
                arrow(ax, (at - wide, low), (at - wide - gap, low), colour="wrong")
                ax.text(at - wide - gap / 2, low - 0.5, words, fontsize=9.5, ha="center", va="top",
                        color=_BACK, weight="bold")  # fmt: skip
            at -= wide + gap
        ax.plot([at + gap, left, left], [low, low, y - 0.3], color=_BACK, linewidth=1.5, zorder=0)
    for x, words in ((18.3, "dout"), (10.1, "dh"), (0.4, "dx")):
        ax.text(x, y + 0.35, words, fontsize=11, ha="center", va="bottom", color=_BACK,
                weight="bold")  # fmt: skip
    for right, left, name in ((17.6, 10.4, "MLP"), (9.8, 1.2, "attention")):
        ax.text(right - 0.2, y - 0.25, "forward, a sum:\nnow copied", fontsize=9, ha="right",
                va="top", style="italic")  # fmt: skip
        ax.text(left + 0.4, y - 0.25, "forward, read twice:\nnow added", fontsize=9, ha="left",
                va="top", style="italic")  # fmt: skip
        ax.text((right + left) / 2, 3.15, name, fontsize=11, ha="center", weight="bold")
    ax.text(9.4, 0.5, "on the way each matrix and each norm gets the gradient of its own weight",
            fontsize=10, ha="center", style="italic")  # fmt: skip
    return describe(figure, """A block, read from right to left. Where the forward pass added, the
        stream's gradient dout is copied: one copy runs straight on, the other goes back through
        down, the product, gate and up and the norm. Where the forward pass read the stream twice,
        both are added, to dh. The same again through o, softmax, RoPE, q k v and the first norm
        gives dx.""")  # fmt: skip


_KINDS = {
    "logits": "embedding",
    "MLP, 1,536 wide": "gate",
    "stream and attention, 576 wide": "attention",
    "the rest": "other",
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
            if width > 30:
                ax.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center",
                        color="white", fontsize=10, weight="bold")  # fmt: skip
            left += width
        ax.text(left + 4, row, f"{left:.0f}", va="center", fontsize=10)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.set(xlabel="thousands of numbers kept per token", xlim=(0, 480))
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
        left.plot(100 * size, row, "D", color=COLOURS["key"], markersize=6)
    left.set_yticks(range(len(parts)), list(parts), fontsize=10)
    left.invert_yaxis()
    left.set(xlabel="share in %", title="bar: of the squared gradient\ndiamond: of the parameters")
    left.grid(visible=False, axis="y")
    mean, error = layers.mean(0), layers.std(0, ddof=1) / len(layers) ** 0.5
    right.bar(range(layers.shape[1]), 100 * mean, color=COLOURS["query"], width=0.7)
    for i, (m, e) in enumerate(zip(mean, error, strict=True)):
        right.plot([i, i], [100 * (m - e), 100 * (m + e)], color="black", linewidth=1.2)
    right.set(xlabel="layer", ylabel="share in %",
              title="of the squared gradient,\nlayer by layer")  # fmt: skip
    right.grid(visible=False, axis="x")
    return describe(figure, """Where the squared gradient of a sentence lies. By part: down and the
        table lead, the norms' weights have a share far beyond their number. By layer: layers 0 and
        11 stand out.""")  # fmt: skip


def rows(points: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw how far each row of the table moved against how often its token occurred.

    Args:
        points: title to counts and distances, those in units of the rows' mean.
    """
    figure, axes = new_figure(1, len(points), figsize=(7.6, 3.1), sharex=True, sharey=True)
    for ax, (title, (counts, distances)) in zip(axes, points.items(), strict=True):
        seen = counts > 0
        ax.plot(counts[seen], distances[seen], "o", color=COLOURS["embedding"], alpha=0.35,
                markersize=4, markeredgewidth=0)  # fmt: skip
        ax.plot(np.full((~seen).sum(), 0.2), distances[~seen], "s", color=COLOURS["key"],
                alpha=0.5, markersize=4, markeredgewidth=0)  # fmt: skip
        ax.axhline(1, color=_LINE, linewidth=1)
        ax.set(title=title, xscale="log", yscale="log", xlabel="times seen in training")
        ax.set_xticks([0.2, 1, 10, 100, 1000, 10000])
        ax.set_xticklabels(["never", "1", "10", "100", "1,000", "10,000"], fontsize=9)
        ax.set_yticks([0.3, 0.5, 1, 2, 3])
        ax.set_yticklabels(["0.3", "0.5", "1", "2", "3"])
        ax.minorticks_off()
    axes[0].set_ylabel("distance moved\n(1: the rows' mean)")
    return describe(figure, """How far the rows of the table moved, against how often their
        character was seen. AdamW: the rarer, the farther. Plain gradient descent: the most
        frequent moved farthest; among rows seen up to thirty times
        there is no upward trend.""")  # fmt: skip


def growth(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw by how much the gradient at a norm's output grows when that output is made larger.

    Args:
        lines: name to, for outputs 1, 2, 4, … times as large, the gradient's mean length in units
            of the first, and its standard error over sentences.
    """
    figure, ax = new_figure(figsize=(7.0, 3.3))
    looks = (("mlp", "o"), ("other", "s"), ("attention", "^"))
    for (name, (means, _)), (colour, marker) in zip(lines.items(), looks, strict=True):
        scales = 2.0 ** np.arange(len(means))
        ax.plot(scales, means, marker=marker, color=COLOURS[colour])
        place = (17.5, means[-1])
        ax.text(*place, name, va="center", ha="left", fontsize=10,
                color=COLOURS[colour] if colour != "other" else "#666666")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="the norm's output, times",
           ylabel="gradient at that output, times", xlim=(0.9, 60))  # fmt: skip
    ticks = [1, 2, 4, 8, 16]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_title("with the gate's product, the gradient doubles each time")
    return describe(figure, """The length of the gradient that a branch sends back to its
        norm's output, when that output is made 1 to 16 times as large. With the gate's
        product it doubles with every doubling; without it, it hardly moves; attention's
        rises about fourfold and levels off.""")  # fmt: skip
