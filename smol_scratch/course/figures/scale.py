"""Figures of notebook 14, scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smol_scratch.course.figures.drawing import arrow, box, canvas
from smol_scratch.course.figures.style import COLOURS, describe, new_figure
from smol_scratch.course.law import Law

_MEASURED, _LAW, _PREDICTED = COLOURS["query"], COLOURS["residual"], COLOURS["key"]
Points = Sequence[tuple[float, float]]


def _shades(count: int) -> list[tuple[float, ...]]:
    """Return as many blues, from light to dark: small to large."""
    return [tuple(mpl.colormaps["Blues"](x)) for x in np.linspace(0.4, 1.0, count)]


def _ticks(ax: Axes, axis: str, values: Sequence[float], labels: Sequence[str]) -> None:
    """Put labels at these places of a logarithmic axis, and nowhere else."""
    one = getattr(ax, f"{axis}axis")
    one.set_major_locator(mpl.ticker.FixedLocator(list(values)))
    one.set_major_formatter(mpl.ticker.FixedFormatter(list(labels)))
    one.set_minor_locator(mpl.ticker.NullLocator())


def _thousands(values: Sequence[float]) -> list[str]:
    """Return "7k", "1.4M"."""
    return [f"{v / 1e6:.1f}M" if v > 950_000 else f"{v / 1e3:.0f}k" for v in values]


def opening(known: Points, size: float) -> Figure:
    """Draw what small models reached, and the place of one that nobody has trained.

    Args:
        known: parameters and loss of each run.
        size: parameters of the run to come.
    """
    figure, ax = new_figure(figsize=(7.2, 3.3))
    ax.plot(*zip(*known, strict=True), "o", color=_MEASURED)
    ax.axvline(size, color=_PREDICTED, linewidth=9, alpha=0.35)
    low, high = min(y for _, y in known), max(y for _, y in known)
    ax.text(size, 0.97, "?", fontsize=26, ha="center", va="top", weight="bold",
            transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(xscale="log", xlabel="parameters", ylabel="held-out loss\n(nats per character)",
           title="after one pass over seven plays", ylim=(low - 0.2, high + 0.06),
           xlim=(min(x for x, _ in known) / 1.4, size * 1.5))  # fmt: skip
    sizes = [*sorted({x for x, _ in known}), size]
    _ticks(ax, "x", sizes, _thousands(sizes))
    return describe(figure, """Held-out loss against parameters on a logarithmic axis. Small models
        from 7 thousand to 340 thousand parameters: the loss falls as the model grows. Far to the
        right a bar with a question mark at 1.3 million parameters.""")  # fmt: skip


def pencil(runs: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw the example's losses as piles of three terms.

    Args:
        runs: label to what is left, what the size costs, what the text's length costs.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    names = (("E: never goes away", "other"), ("A/√N: too small a model", "query"),
             ("B/√D: too little text", "key"))  # fmt: skip
    for row, terms in enumerate(runs.values()):
        left = 0.0
        for (name, colour), width in zip(names, terms, strict=True):
            ax.barh(row, width, left=left, height=0.62, color=COLOURS[colour], edgecolor="white",
                    label=name if row == 0 else None)  # fmt: skip
            ax.text(left + width / 2, row, f"{width:g}", ha="center", va="center", fontsize=10,
                    color="white" if colour == "query" else "black")  # fmt: skip
            left += width
        ax.text(left + 0.05, row, f"{left:g}", va="center", fontsize=11, weight="bold")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.invert_yaxis()
    ax.set(xlabel="loss", xlim=(0, 4.6))
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9.5)
    return describe(figure, """Four bars, each the sum of three terms. 100 parameters and 100
        tokens: 1 + 1 + 2 = 4. Four times the parameters: 1 + 0.5 + 2 = 3.5. Four times the tokens:
        1 + 1 + 1 = 3. Four times both: 1 + 0.5 + 1 = 2.5.""")  # fmt: skip


def branches(budgets: Sequence[float], cooldown: float, rate: float) -> Figure:
    """Draw the learning rate of a trunk and of the branches that cool down from it."""
    figure, ax = new_figure(figsize=(7.2, 2.5))
    last = budgets[-1]
    ax.plot([0, 0.017 * last, (1 - cooldown) * last], [0, rate, rate], color=_LAW, linewidth=3)
    for budget in budgets:
        fork = (1 - cooldown) * budget
        ax.plot([fork, budget], [rate, 0], color=_MEASURED, linewidth=2)
        ax.plot(budget, 0, "o", color=_MEASURED, clip_on=False, zorder=5)
    ax.text(0.3 * last, rate * 1.06, "the trunk: constant rate", fontsize=10, ha="center")
    ax.text(0.425 * last, rate * 0.7, "a branch", fontsize=10, color=_MEASURED)
    ax.text(0.84 * last, rate * 0.7, "the last branch", fontsize=10, color=_MEASURED)
    ax.text(0.004 * last, rate * 1.06, "warm-up", fontsize=10)
    ax.set(xlabel="characters trained on", ylabel="learning rate", ylim=(0, rate * 1.25),
           xlim=(0, last * 1.04))  # fmt: skip
    ax.set_xticks(list(budgets), _thousands(budgets))
    ax.set_yticks([0, rate])
    return describe(figure, """The learning rate against characters trained on. One trunk stays at a
        constant rate; before each of four budgets a branch leaves it and falls to zero in a
        straight line.""")  # fmt: skip


def fitted(losses: Mapping[float, Points], law: Callable[[float, float], float]) -> Figure:
    """Draw measured losses against the characters, and the law as lines.

    Args:
        losses: parameters to characters and loss of every run.
        law: from parameters and characters to loss.
    """
    figure, ax = new_figure(figsize=(7.2, 4.6))
    lengths = sorted({x for points in losses.values() for x, _ in points})
    fine = np.geomspace(lengths[0] / 1.1, lengths[-1] * 1.1, 40)
    for row, size in enumerate(sorted(losses)):
        colour = _shades(len(losses))[row]
        ax.plot(fine, [law(size, x) for x in fine], color=colour, linewidth=1.5)
        # Two shapes in turn: points of neighbouring sizes come close.
        ax.plot(*zip(*losses[size], strict=True), "os"[row % 2], color=colour, markersize=5,
                markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    above = 0.0
    for size in sorted(losses, reverse=True):
        above = max(law(size, fine[-1]), above + 0.05)  # a line's height apart
        ax.text(fine[-1] * 1.03, above, _thousands([size])[0], va="center", fontsize=10)
    ax.set(xscale="log", xlabel="characters trained on (none twice)",
           ylabel="held-out loss\n(nats per character)", xlim=(fine[0], fine[-1] * 1.22),
           title="points: runs (○ and □ only tell sizes apart) · lines: one law")  # fmt: skip
    _ticks(ax, "x", lengths, _thousands(lengths))
    return describe(figure, """Held-out loss against characters trained on, one line for each of six
        sizes, with the runs as points. Larger models lie lower and all lines fall; the points lie
        near the lines, farthest off for the smallest model.""")  # fmt: skip


def prediction(
    known: Points,
    law: Callable[[float], float],
    predicted: tuple[float, float, float, float],
    found: float,
) -> Figure:
    """Draw the runs of one length, their law, what it predicts of a larger model, and its loss.

    Args:
        known: parameters and loss of each small run.
        law: from parameters to loss.
        predicted: parameters, loss, and the bounds of the interval.
        found: the larger run's loss.
    """
    figure, ax = new_figure(figsize=(7.2, 3.5))
    size, middle, low, high = predicted
    fine = np.geomspace(min(x for x, _ in known), size * 1.1, 60)
    ax.plot(fine, [law(x) for x in fine], color=_LAW, linewidth=1.5, label="the law")
    ax.plot(*zip(*known, strict=True), "o", color=_MEASURED, label="runs that it was fitted to")
    ax.plot(size, middle, "_", color="black", markersize=26, markeredgewidth=2, zorder=3,
            label="predicted loss")  # fmt: skip
    ax.plot([size, size], [low, high], color=_PREDICTED, linewidth=9, alpha=0.6,
            solid_capstyle="butt", label="its 90 % interval")  # fmt: skip
    ax.plot(size, found, "D", color=COLOURS["wrong"], markersize=6, label="measured")
    ax.set(xscale="log", xlabel="parameters", ylabel="held-out loss\n(nats per character)",
           xlim=(fine[0] / 1.25, size * 1.5))  # fmt: skip
    sizes = [*sorted({x for x, _ in known}), size]
    _ticks(ax, "x", sizes, _thousands(sizes))
    ax.legend(fontsize=10)
    return describe(figure, """Held-out loss against parameters. Points of the small runs, a falling
        curve through them, and at 1.3 million parameters the predicted interval with the measured
        loss.""")  # fmt: skip


def farther(
    known: Points,
    law: Callable[[float], float],
    drawn: Callable[[float], tuple[float, float]],
    rulers: Mapping[str, Callable[[float], float]],
    found: tuple[float, float],
    size: float,
) -> Figure:
    """Draw where the law and straight lines lead, far beyond the runs that they were laid through.

    Args:
        known: parameters and loss of each small run.
        law: from parameters to loss.
        drawn: from parameters to the bounds of the redrawn laws.
        rulers: label to a straight line, from parameters to loss.
        found: parameters and loss of the larger run.
        size: parameters at the right edge.
    """
    figure, ax = new_figure(figsize=(7.2, 3.9))
    fine = np.geomspace(min(x for x, _ in known), size, 60)
    low, high = zip(*[drawn(x) for x in fine], strict=True)
    ax.fill_between(fine, low, high, color=_PREDICTED, alpha=0.35, linewidth=0, zorder=1)
    ax.plot(fine, [law(x) for x in fine], color=_LAW, linewidth=2)
    labels = [(law(size), "the law", _LAW)]
    for (name, ruler), colour in zip(rulers.items(), ("value", "up", "down"), strict=True):
        ax.plot(fine, [ruler(x) for x in fine], color=COLOURS[colour], linewidth=1.5)
        labels.append((ruler(size), f"ruler: {name}", COLOURS[colour]))
    ax.plot(*zip(*known, strict=True), "o", color=_MEASURED, markersize=5)
    ax.plot(*found, "D", color=COLOURS["wrong"], markersize=7, zorder=5)
    above = 3.0
    for y, words, colour in sorted(labels, reverse=True):
        above = min(y + 0.03, above - 0.085)  # a line's height apart, the upper ones a little up
        ax.text(size * 1.15, above, words, va="center", fontsize=10, color=colour)
    ax.set(xscale="log", xlabel="parameters", ylabel="held-out loss\n(nats per character)",
           xlim=(fine[0] / 1.3, size * 32),
           title="band: 90 % of the redrawn laws · diamond: the larger run")  # fmt: skip
    sizes = [min(x for x, _ in known), max(x for x, _ in known), found[0], size]
    _ticks(ax, "x", sizes, ["7k", "341k", "1.3M", "134M"])
    return describe(figure, """Held-out loss against parameters, from 7 thousand to 134 million. The
        law bends and levels off, within a band of redrawn laws that widens to the right. Three
        straight lines leave it: two of them pass close to the larger run, the third well below. At
        134 million the law and one ruler agree, the others end lower.""")  # fmt: skip


def left_over(off: Mapping[float, Sequence[tuple[float, float, float]]]) -> Figure:
    """Draw how far the runs lie from two laws, length by length.

    Args:
        off: characters to, for each run, how much too high its unfinished loss is, its loss over
            what the right law says, and its unfinished loss over what the wrong law says.
    """
    figure, axes = new_figure(1, 2, figsize=(7.6, 3.4), sharey=True)
    figure.set_layout_engine("constrained", wspace=0.06)
    lengths = sorted(off)
    looks = (("all cooled: the right law", 1, "query", "o"),
             ("three too early: the wrong law", 2, "wrong", "s"))  # fmt: skip
    for ax, (title, which, colour, marker) in zip(axes, looks, strict=True):
        ax.axhline(0, color=_LAW, linewidth=1.5, zorder=1)
        middles = []
        for d in lengths:
            distances = [100 * (row[which] - 1) for row in off[d]]
            ax.plot([d] * len(distances), distances, marker, color=COLOURS[colour], markersize=4,
                    alpha=0.4)  # fmt: skip
            middles.append(sum(distances) / len(distances))
        ax.plot(lengths, middles, f"{marker}-", color=COLOURS[colour], markersize=8, linewidth=2,
                label="mean")  # fmt: skip
        ax.set(xscale="log", xlabel="characters trained on", title=title)
        _ticks(ax, "x", lengths, _thousands(lengths))
        ax.legend(fontsize=10, loc="upper right")
    axes[0].set(ylabel="distance from the law (%)\n(above 0: worse than the law)")
    return describe(figure, """Two panels, the distance of each run from a law against the length, a
        small point each, and a line through the means. Left, the law of cooled runs: the means lie
        at zero at all four lengths. Right, the law of runs three of whose lengths were read too
        early: the mean is below zero at the shortest length, well above it at half the text, and
        below it again at the last.""")  # fmt: skip


def split(
    losses: Mapping[float, Points],
    lowest: Callable[[float], float],
    drawn: Callable[[float], tuple[float, float]],
    asks: Callable[[float], float],
    text: float,
    laws: Mapping[str, Law],
    price: float = 1e12,
) -> Figure:
    """Draw loss against the compute spent, one line per size, and against the size at one price.

    Args:
        losses: parameters to characters and mean loss.
        lowest: from FLOPs to the lowest loss that the law allows at that price.
        drawn: from FLOPs to the bounds of the same of redrawn laws.
        asks: from FLOPs to the characters that the best split asks for.
        text: how many characters there are; what asks for more is thin.
        laws: label to law, for the right panel.
        price: of the right panel, in FLOPs.
    """
    figure, (ax, valley) = new_figure(1, 2, figsize=(10.0, 4.4), width_ratios=[1.5, 1])
    everything = [6 * n * d for n, points in losses.items() for d, _ in points]
    for colour, size in zip(_shades(len(losses)), sorted(losses), strict=True):
        x, y = zip(*[(6 * size * d, loss) for d, loss in losses[size]], strict=True)
        ax.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.5)
        side = "right" if size == sorted(losses)[-2] else "center"  # its neighbour is close
        ax.text(x[0], y[0] + 0.02, _thousands([size])[0], fontsize=10, ha=side, va="bottom")
    fine = np.geomspace(min(everything), max(everything), 60)
    low, high = zip(*[drawn(x) for x in fine], strict=True)
    ax.fill_between(fine, low, high, color=_PREDICTED, alpha=0.3, linewidth=0, zorder=1,
                    label="90 % of the redrawn laws")  # fmt: skip
    band = [lowest(x) for x in fine]
    inside = sum(asks(x) <= text for x in fine)
    for part, width, words in (
        (slice(0, inside), 6, "the law's best split at each price"),
        (slice(inside - 1, None), 1.5, "the same, with more text than there is"),
    ):
        ax.plot(fine[part], band[part], color=_PREDICTED, linewidth=width, zorder=1,
                label=words, solid_capstyle="butt")  # fmt: skip
    ax.set(xscale="log", xlabel="training compute, 6 · parameters · characters (FLOPs)",
           ylabel="held-out loss\n(nats per character)")  # fmt: skip
    ax.legend(fontsize=10, loc="upper right")
    sizes = np.geomspace(4e3, 4e5, 80)
    looks = (("-", _PREDICTED, 3.0), ("--", COLOURS["query"], 1.5), (":", COLOURS["wrong"], 2.0))
    for (words, one), (style, paint, thick) in zip(laws.items(), looks, strict=True):
        valley.plot(sizes, [one.loss(n, price / 6 / n) for n in sizes], style, color=paint,
                    linewidth=thick, label=words)  # fmt: skip
        best = one.best_size(price)
        valley.plot(best, one.loss(best, price / 6 / best), "v", color=paint, markersize=9,
                    markeredgecolor="white")  # fmt: skip
    edge = price / 6 / text
    valley.axvspan(sizes[0], edge, color="0.92", zorder=0)
    valley.text(sizes[0] * 1.1, 1.36, "more text than there is", fontsize=9.5, va="bottom")
    valley.set(xscale="log", xlabel="parameters", ylim=(1.35, 1.85), xlim=(sizes[0], sizes[-1]),
               title=f"at $10^{{{math.log10(price):.0f}}}$ FLOPs · ▼ best size")  # fmt: skip
    _ticks(valley, "x", [5e3, 2e4, 1e5, 4e5], ["5k", "20k", "100k", "400k"])
    valley.legend(fontsize=9.5, loc="upper right")
    return describe(figure, """Left, held-out loss against training compute, a line for each size.
        Where two sizes share a price the smaller one, which has read more, lies lower. Along the
        lower edge runs the law's best split, within the band of redrawn laws; most of it is thin,
        because it asks for more text than there is. Right, loss against parameters at one
        price, by three laws: they agree at large sizes, where there are runs, and part where more
        text is asked for than there is; their lowest points lie there, at 47, 30 and 13 thousand
        parameters.""")  # fmt: skip


def repeats(fresh: Points, repeated: Mapping[int, Points], size: str) -> Figure:
    """Draw held-out loss against characters trained on, for less and less different text.

    Args:
        fresh: characters and loss of a run that never read anything twice.
        repeated: different characters to characters trained on and loss.
        size: of the model, for the title.
    """
    figure, ax = new_figure(figsize=(7.4, 4.0))
    ax.plot(*zip(*fresh, strict=True), "o-", color=_MEASURED, linewidth=6, markersize=11)
    labels = [(fresh[-1][1], "never twice", _MEASURED)]
    warm = [mpl.colormaps["Oranges"](x) for x in np.linspace(0.6, 0.95, len(repeated))]
    for colour, unique in zip(warm, sorted(repeated, reverse=True), strict=True):
        points = repeated[unique]
        ax.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=1.5, markersize=4)
        words = f"{points[-1][0] / unique:.0f} passes of {_thousands([unique])[0]}"
        labels.append((points[-1][1], words, colour))
    above = 0.0
    for y, words, colour in sorted(labels):
        above = max(y, above + 0.035)  # a line's height apart
        ax.text(fresh[-1][0] * 1.06, above, words, va="center", fontsize=10, color=colour)
    ax.set(xscale="log", xlabel="characters trained on, repetitions included",
           ylabel="held-out loss\n(nats per character)",
           xlim=(fresh[0][0] / 1.1, fresh[-1][0] * 2.2),
           title=f"the same text again and again, {size} parameters")  # fmt: skip
    lengths = [x for x, _ in fresh]
    _ticks(ax, "x", lengths, _thousands(lengths))
    return describe(
        figure,
        """Held-out loss against characters trained on. Where nothing is read
        twice the loss falls all the way. Four passes over a quarter of the text follow that line to
        its end; of a sixteenth the loss leaves it, and after sixteen passes is higher than after
        eight.""",
    )


def two_scales(
    small: Mapping[str, Points], large: Mapping[str, Points], means: Mapping[str, Points]
) -> Figure:
    """Draw held-out loss against passes: small models on little text, large ones on a megabyte.

    Args:
        small: label to passes and loss in nats per character.
        large: label to passes and loss in nats per token, every one that was read.
        means: the same, averaged over a few passes each.
    """
    figure, axes = new_figure(1, 2, figsize=(8.0, 3.5))
    looks = (("up", "s"), ("query", "o"))
    for ax, curves, unit in zip(axes, (small, means), ("character", "token"), strict=True):
        for (label, points), (colour, marker) in zip(curves.items(), looks, strict=True):
            if curves is means:
                ax.plot(*zip(*large[label], strict=True), color=COLOURS[colour], linewidth=1.5,
                        alpha=0.4)  # fmt: skip
            ax.plot(*zip(*points, strict=True), f"{marker}-", markersize=6, color=COLOURS[colour],
                    label=label)  # fmt: skip
        ax.set(xlabel="passes over the same text", ylabel=f"held-out loss (nats per {unit})",
               xticks=[0, 4, 8, 12, 16], xlim=(0, 16.6))  # fmt: skip
        ax.legend(fontsize=9.5, loc="upper center", title="parameters", title_fontsize=9.5)
    axes[0].set_title("57 thousand characters,\neach length cooled down")
    axes[1].set_title("a megabyte, read on the way;\nmarks: means of two passes")
    return describe(figure, """Two panels of held-out loss against passes over the same text.
        Left, on 57 thousand characters, 2, 4, 8 and 16 passes: 7 thousand parameters fall all the
        way, 89 thousand are lowest at eight. Right, on a megabyte, two jagged pale lines and their
        means: 135 million parameters are lowest between the fourth and the eighth pass and then
        rise steeply; 13 million stay level from the fourth to the tenth and rise later and
        less.""")  # fmt: skip


def rates(panels: Mapping[str, Mapping[int, Points]], luck: float) -> Figure:
    """Draw loss against the learning rate at several widths, one panel for each rule.

    Args:
        panels: rule to width to rate and mean loss.
        luck: standard deviation of a loss over seeds, drawn as a bar.
    """
    figure, axes = new_figure(1, len(panels), figsize=(8.0, 3.6), sharey=True)
    # The outer tick labels of two panels stay apart.
    figure.set_layout_engine("constrained", wspace=0.08)
    markers = "osD^"
    everything = [y for widths in panels.values() for points in widths.values() for _, y in points]
    for ax, (rule, widths) in zip(axes, panels.items(), strict=True):
        for colour, marker, (width, points) in zip(
            _shades(len(widths)), markers, widths.items(), strict=False
        ):
            ax.plot(*zip(*points, strict=True), f"{marker}-", color=colour, markersize=5,
                    label=f"width {width}")  # fmt: skip
            least = min(points, key=lambda point: point[1])
            ax.plot(*least, marker, color=colour, markersize=10, markeredgecolor=COLOURS["wrong"],
                    markeredgewidth=2)  # fmt: skip
        ax.set(xscale="log", xlabel="learning rate", title=rule)
        ticks = [x for x, _ in next(iter(widths.values()))]
        _ticks(ax, "x", ticks, [f"{x:g}" for x in ticks])
    axes[0].set(
        ylabel="held-out loss (nats per character)",
        ylim=(min(everything) - 0.05, min(max(everything), min(everything) + 1) + 0.05),
    )
    axes[0].legend(fontsize=10)
    high = max(everything) - 0.04  # where no curve runs
    axes[1].errorbar(0.0032, high, luck, color="black", capsize=4, linewidth=1.5)
    axes[1].text(0.0037, high, "± standard deviation\nof three seeds at width 64", va="center",
                 fontsize=9.5)  # fmt: skip
    return describe(
        figure,
        """Held-out loss against the learning rate at three widths, the lowest
        point of each curve ringed. Left, one rate for all weights: widths 64 and 128 are lowest at
        half the rate of width 32. Right, the width-aware rule: all three are lowest at 0.01, and
        hardly higher at 0.02. A bar shows how much three seeds differ.""",
    )


def ways() -> Figure:
    """Draw four ways to share a training step among cards, and what crosses the wire."""
    figure, ax = canvas(17, 8.2)
    panels = (
        (0.2, 4.4, "data parallel", "every card: the whole model,\nits own text"),
        (8.9, 4.4, "sharded", "every card: a part of each weight,\nits own text"),
        (0.2, 0.2, "tensor parallel", "every card: a part of each matrix,\nthe same text"),
        (8.9, 0.2, "pipeline", "every card: some of the blocks;\nthe last: the head too"),
    )
    for left, bottom, title, words in panels:
        ax.text(left, bottom + 3.35, title, fontsize=11, weight="bold")
        ax.text(left, bottom + 3.1, words, fontsize=9.5, va="top")
    for left, bottom, kept, other, words in (
        (0.2, 4.4, "N weights", "text 2", "gradients"),
        (8.9, 4.4, "N/2 weights", "text 2", "weights twice,\ngradients"),
        (0.2, 0.2, "half of each", "text 1", "activations,\n4 × per block"),
    ):
        for i in range(2):
            x = left + 4.9 * i
            box(ax, x, bottom + 0.95, 2.4, kept, "mlp", size=9.5)
            box(ax, x, bottom + 0.05, 2.4, other if i else "text 1", "embedding", filled=False,
                size=9.5)  # fmt: skip
        y = bottom + 1.25
        arrow(ax, (left + 2.45, y), (left + 4.85, y), colour="wrong")
        arrow(ax, (left + 4.85, y), (left + 2.45, y), colour="wrong")
        ax.text(left + 3.65, y + 0.15, words, fontsize=9.5, ha="center", va="bottom",
                color=COLOURS["wrong"])  # fmt: skip
    for i in range(2):
        x = 8.9 + 4.9 * i
        box(ax, x, 1.15, 2.4, f"blocks {15 * i}–{15 * i + 14}", "mlp", size=9.5)
    box(ax, 8.9, 0.25, 2.4, "text 1, 2, …", "embedding", filled=False, size=9.5)
    arrow(ax, (11.35, 1.65), (13.75, 1.65), colour="wrong")
    arrow(ax, (13.75, 1.25), (11.35, 1.25), colour="wrong")
    ax.text(12.55, 1.75, "activations", fontsize=9.5, ha="center", va="bottom",
            color=COLOURS["wrong"])  # fmt: skip
    ax.text(12.55, 1.1, "their gradients", fontsize=9.5, ha="center", va="top",
            color=COLOURS["wrong"])  # fmt: skip
    return describe(figure, """Four ways to share a training step between two cards. Data parallel:
        whole models, different texts, gradients cross. Sharded: half the weights each, different
        texts, weights cross twice and gradients once. Tensor parallel: half of each matrix, the
        same text, activations cross four times per block. Pipeline: fifteen blocks each, the first
        card with the embedding, the second with the head; activations cross once forwards and their
        gradients once backwards.""")  # fmt: skip


def wires(seconds: Mapping[str, Mapping[str, float]], compute: float) -> Figure:
    """Draw how long each way's bytes take on two kinds of wire, beside the computing.

    Args:
        seconds: way to wire to seconds per step.
        compute: seconds that a card computes per step.
    """
    figure, ax = new_figure(figsize=(7.4, 3.4))
    links = list(next(iter(seconds.values())))
    for row, taken in enumerate(seconds.values()):
        for i, (link, colour, marker) in enumerate(zip(links, ("key", "value"), "os", strict=True)):
            y = row + (i - 0.5) * 0.36
            # Points, not bars: where a bar begins on a logarithmic axis is arbitrary.
            ax.plot(taken[link], y, marker, color=COLOURS[colour], markersize=9,
                    label=link if row == 0 else None)  # fmt: skip
            ms = taken[link] * 1e3
            label = (
                f"{ms / 1e3:.1f} s" if ms > 1e3 else f"{ms:.0f} ms" if ms > 10 else f"{ms:.1f} ms"
            )
            close = taken[link] < compute < 2.5 * taken[link]  # its label would lie on the line
            x, side = (taken[link] / 1.15, "right") if close else (taken[link] * 1.15, "left")
            ax.text(x, y, label, ha=side, va="center", fontsize=10, zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    ax.axvline(compute, color=_LAW, linewidth=2)
    ax.text(compute * 1.1, 0.35, f"computing:\n{compute * 1e3:.0f} ms", fontsize=10, va="center")
    ax.set_yticks(range(len(seconds)), list(seconds))
    ax.set(xscale="log", xlabel="seconds in a step, if nothing overlaps", xlim=(1e-3, 10),
           ylim=(len(seconds) - 0.5, -0.5))  # fmt: skip
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return describe(figure, """Points on a logarithmic axis: the time on the wire in a step of three
        cards for data parallel, sharded, tensor parallel and pipeline, on a network and on links
        inside one machine; a line marks the time that a card computes. Only tensor parallel over
        the network takes longer than that.""")  # fmt: skip
