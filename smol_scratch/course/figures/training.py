"""Figures of notebook 10, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from smol_scratch.course.figures.style import COLOURS, new_figure

# Training text and held-out text, as in notebook 07.
_TRAINED, _HELD_OUT = COLOURS["wrong"], COLOURS["right"]
_LOOKS = (("right", "-"), ("wrong", "--"), ("value", "-."), ("key", ":"), ("down", (0, (5, 1))))


def _level(ax: Axes, x: float, y: float, label: str) -> None:
    """Draw a horizontal line, with its label above it and left of ``x``."""
    ax.axhline(y, color=COLOURS["residual"], linewidth=1.1, linestyle=":")
    ax.text(x, y, label, ha="right", va="bottom", fontsize=9, color=COLOURS["residual"])


def description_log(
    steps: Sequence[int], losses: Sequence[float], levels: Mapping[str, float]
) -> Figure:
    """Draw a run's logged losses against its steps.

    Args:
        steps: updates made before each line of the log.
        losses: nats a token.
        levels: label to loss, drawn as horizontal lines.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    ax.plot(steps, losses, "o-", color=_TRAINED, markersize=4, linewidth=1.2)
    for label, value in levels.items():
        _level(ax, max(steps), value, label)
    ax.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0, 12))
    return figure


def one_batch(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the loss on a batch that is trained on again and again, one curve for each case.

    Args:
        curves: case to the loss before each update.
    """
    figure, ax = new_figure(figsize=(7.2, 3.5))
    for (label, values), (colour, style) in zip(curves.items(), _LOOKS, strict=False):
        ax.plot(values, linestyle=style, color=COLOURS[colour], label=label)
    ax.set(xlabel="step", ylabel="loss (nats a token)", yscale="log", xlim=(0, None))
    ticks = [0.01, 0.1, 1, 10]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def schedules(rates: Mapping[str, Sequence[float]], logged: Sequence[tuple[int, float]]) -> Figure:
    """Draw learning rates against the step, and those that a log states as points.

    Args:
        rates: schedule to the learning rate at steps 0, 1, 2, …
        logged: (step, learning rate).
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    for (label, values), (colour, style) in zip(rates.items(), _LOOKS, strict=False):
        ax.plot(np.asarray(values) * 1e4, linestyle=style, color=COLOURS[colour], label=label)
    steps, values = zip(*logged, strict=True)
    ax.plot(steps, np.asarray(values) * 1e4, "o", color=COLOURS["residual"], markersize=4,
            markerfacecolor="none", label="the description's log")  # fmt: skip
    ax.set(xlabel="step", ylabel=r"learning rate ($10^{-4}$)", ylim=(0, 3.3), xlim=(-60, None))
    ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0.04, 0.05))
    return figure


def drift(
    distances: Mapping[str, Sequence[float]], losses: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw how far resumed runs are from the one that was never interrupted.

    Args:
        distances: case to the distance of its weights, relative to their size, before each update.
        losses: case to its training loss at each update.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.7), width_ratios=[1.15, 1])
    looks = [
        ("wrong", "-"),
        ("query", "--"),
        ("value", "-."),
        ("down", ":"),
        ("key", (0, (5, 1))),
    ]
    for (label, values), (colour, style) in zip(distances.items(), looks, strict=True):
        shown = np.where(np.asarray(values) > 0, values, np.nan)
        left.plot(shown, linestyle=style, color=COLOURS[colour], label=label)
    left.set(yscale="log", xlabel="updates after the resume", ylabel="distance from the exact run")
    for label, values in losses.items():
        place = list(distances).index(label) if label in distances else None
        colour, style = looks[place] if place is not None else ("residual", "-")
        right.plot(values, linestyle=style, color=COLOURS[colour],
                   linewidth=2.4 if place is None else 1.3,
                   label=label if place is None else None)  # fmt: skip
    right.set(xlabel="updates after the resume", ylabel="training loss (nats a token)")
    figure.legend(fontsize=9, loc="outside upper center", ncols=3)
    return figure


def small_run(
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: Mapping[int, float],
    window: int = 25,
) -> Figure:
    """Draw training and held-out loss of one run.

    Args:
        steps: of the training losses.
        losses: nats a token, on each step's own batch.
        held_out: step to the loss on held-out text.
        window: steps that are averaged for the bold line.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    _training_curve(ax, steps, losses, window)
    ax.plot(list(held_out), list(held_out.values()), "o-", color=_HELD_OUT, markersize=5,
            label="held-out text")  # fmt: skip
    ax.set(xlabel="step", ylabel="loss (nats a token)")
    ax.legend(fontsize=9)
    return figure


def _training_curve(
    ax: Axes, steps: Sequence[int], losses: Sequence[float], window: int, label: str = "training"
) -> None:
    ax.plot(steps, losses, color=_TRAINED, linewidth=0.6, alpha=0.35, label=f"{label}, each step")
    if len(losses) >= window:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        middle = np.asarray(steps[window // 2 :][: len(smooth)])
        ax.plot(middle, smooth, "--", color=_TRAINED, linewidth=1.8,
                label=f"{label}, mean of {window} steps")  # fmt: skip


def full_run(
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: Mapping[int, float],
    theirs: Sequence[tuple[int, float]],
) -> Figure:
    """Draw the recorded run, its held-out loss, and the description's log over it, cut at 8 nats.

    Args:
        steps: of the recorded training losses.
        losses: nats a token.
        held_out: step to the loss on held-out text.
        theirs: (step, loss) of the description's log.
    """
    figure, ax = new_figure(figsize=(7.5, 4.0))
    _training_curve(ax, steps, losses, min(50, max(len(losses) // 4, 1)), "our training text")
    shown = [(step, loss) for step, loss in theirs if step <= max(steps)]
    ax.plot(*zip(*shown, strict=True), "s", color=COLOURS["residual"], markersize=4.5,
            markerfacecolor="none", label="the description's log")  # fmt: skip
    ax.plot(list(held_out), list(held_out.values()), ".-", color=_HELD_OUT, label="held-out plays")
    best = min(held_out, key=held_out.__getitem__)
    ax.plot(best, held_out[best], "o", color=_HELD_OUT, markersize=8)
    ax.annotate(f"lowest: {held_out[best]:.2f}", (best, held_out[best]), (0, 14), fontsize=9,
                textcoords="offset points", color=_HELD_OUT, ha="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    bottom = max(0.0, min(losses) - 0.5)
    ax.set(xlabel="step", ylabel="loss (nats a token)", ylim=(bottom, 8))
    ax.legend(fontsize=9, loc="upper right")
    return figure


def learned_by_heart(
    copied: Mapping[str, Mapping[int, float]], levels: Mapping[str, float], at_least: int
) -> Figure:
    """Draw the share of the tokens that runs wrote which is copied from their training text.

    Args:
        copied: run to (step to the share); one without any keeps its place among the colours.
        levels: label to the share in other texts, as horizontal lines.
        at_least: shortest run of tokens that counts as copied.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    for (label, shares), (colour, style) in zip(copied.items(), _LOOKS, strict=False):
        if shares:
            ax.plot(list(shares), list(shares.values()), marker="o", linestyle=style,
                    color=COLOURS[colour], label=label)  # fmt: skip
    drawn = [(step, share) for shares in copied.values() for step, share in shares.items()]
    for label, value in levels.items():
        _level(ax, max(step for step, _ in drawn), value, label)
    top = max(*levels.values(), *(share for _, share in drawn))
    share = f"share in runs of {at_least}+\ncopied tokens"
    ax.set(xlabel="step", ylim=(0, 1.25 * top), ylabel=share)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.legend(fontsize=9, loc="outside upper center", ncols=3)
    return figure


def held_out_losses(runs: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw the held-out loss of several runs against their steps, the lowest of each enlarged.

    Args:
        runs: label to (step to the held-out loss in nats a token).
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    for (label, values), (colour, _), marker in zip(runs.items(), _LOOKS, "osv", strict=False):
        ax.plot(list(values), list(values.values()), "-", marker=marker, color=COLOURS[colour],
                markersize=3, linewidth=1.2, label=label)  # fmt: skip
        best = min(values, key=values.__getitem__)
        ax.plot(best, values[best], marker, color=COLOURS[colour], markersize=8)
        below = values[best] == min(run[best] for run in runs.values() if best in run)
        ax.annotate(f"{values[best]:.2f}", (best, values[best]), (0, -15 if below else 9),
                    fontsize=9, textcoords="offset points", color=COLOURS[colour],
                    ha="center")  # fmt: skip
    low = min(min(values.values()) for values in runs.values())
    ax.set(xlabel="step", ylabel="held-out loss (nats a token)", ylim=(low - 0.4, 8))
    ax.legend(fontsize=9)
    return figure


def swing(passes: Mapping[str, Mapping[int, float]], plays: Mapping[str, int]) -> Figure:
    """Draw the held-out loss of one run against the place in its training text, a line a pass.

    Args:
        passes: label to (batches of the pass that were read to the held-out loss).
        plays: title to the batch with which it begins.
    """
    figure, ax = new_figure(figsize=(7.8, 3.9))
    for (label, values), (colour, style), marker in zip(
        passes.items(), _LOOKS, "osv^D", strict=False
    ):
        ax.plot(list(values), list(values.values()), linestyle=style, marker=marker, markersize=3,
                linewidth=1.2, color=COLOURS[colour], label=label)  # fmt: skip
    end = max(place for values in passes.values() for place in values)
    starts = [*plays.values(), end]
    top = max(loss for values in passes.values() for loss in values.values())
    for number, (title, start) in enumerate(plays.items()):
        if number % 2:
            ax.axvspan(start, starts[number + 1], color=COLOURS["residual"], alpha=0.1, linewidth=0)
        middle = (start + starts[number + 1]) / 2
        ax.annotate(title, (middle, top + 0.03), rotation=35, fontsize=8, ha="left", va="bottom")
    ax.set(xlabel="batches read in this pass", ylabel="held-out loss (nats a token)",
           xlim=(0, end), ylim=(None, top + 0.03))  # fmt: skip
    ax.legend(fontsize=9, loc="upper center")
    return figure


def ladder(rungs: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw speed and memory of a training step, change by change.

    Args:
        rungs: name to (tokens a second, peak memory in GB); names that begin with "aside" did not
            become part of the engine.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 4.4), sharey=True, width_ratios=[2, 1])
    y = np.arange(len(rungs))
    colours = [COLOURS["other" if name.startswith("aside") else "right"] for name in rungs]
    hatches = ["//" if name.startswith("aside") else "" for name in rungs]
    for ax, place in ((left, 0), (right, 1)):
        values = [pair[place] for pair in rungs.values()]
        bars = ax.barh(y, values, color=colours, height=0.65, edgecolor="white")
        for bar, hatch, value in zip(bars, hatches, values, strict=True):
            bar.set_hatch(hatch)
            shown = f"{value:,.0f}" if place == 0 else f"{value:.1f}"
            ax.text(value + 0.02 * max(values), bar.get_y() + 0.33, shown, va="center", fontsize=9)
        ax.set_xlim(0, 1.2 * max(values))
        ax.grid(False, axis="y")
    left.set_yticks(y, list(rungs), fontsize=9)
    left.invert_yaxis()
    left.set(xlabel="tokens a second")
    right.set(xlabel="peak memory (GB)")
    return figure
