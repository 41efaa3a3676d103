"""Figures of notebook 10, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from smol_scratch.course.figures.drawing import arrow, canvas
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

# Training text and held-out text, as in notebook 07.
_TRAINED, _HELD_OUT = COLOURS["wrong"], COLOURS["right"]
_LOOKS = (("right", "-"), ("wrong", "--"), ("value", "-."), ("key", ":"), ("down", (0, (5, 1))))


def _level(ax: Axes, x: float, y: float, label: str) -> None:
    """Draw a horizontal line, with its label above it and left of ``x``."""
    ax.axhline(y, color=COLOURS["residual"], linewidth=1.1, linestyle=":")
    ax.text(x, y, label, ha="right", va="bottom", fontsize=9, color=COLOURS["residual"])


def the_log(
    steps: Sequence[int], losses: Sequence[float], levels: Mapping[str, float], a_pass: float
) -> Figure:
    """Draw a run's logged losses against its steps, with the passes over the text in grey.

    Args:
        steps: updates made before each line of the log.
        losses: nats per token.
        levels: label to loss, drawn as horizontal lines.
        a_pass: steps in a pass.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    for number in range(0, int(max(steps) / a_pass) + 1, 2):
        ax.axvspan(number * a_pass, (number + 1) * a_pass, color=COLOURS["residual"], alpha=0.07,
                   linewidth=0)  # fmt: skip
    ax.plot(steps, losses, "o-", color=_TRAINED, markersize=4, linewidth=1.2)
    for label, value in levels.items():
        _level(ax, max(steps), value, label)
    ax.set(xlabel="step (grey and white: passes over the text)", ylabel="loss (nats per token)",
           ylim=(0, 12), xlim=(0, max(steps)))  # fmt: skip
    ax.set_title("The original project's log: down to 2 nats", loc="left")
    return describe(
        figure,
        "Training loss falls from 11 nats to about 2 over 5,000 steps, steeply at first. Grey and "
        "white stripes mark fifteen passes over the same text.",
    )


def adam_steps(updates: Sequence[Mapping[str, float]]) -> Figure:
    """Draw AdamW's arithmetic for one weight: gradient, two means, step.

    Args:
        updates: of each update "g", "m", "v", "m̂", "v̂", "step" and "w".
    """
    figure, ax = canvas(25, 3.1 * len(updates) + 0.6)
    for number, values in enumerate(updates):
        y = 3.1 * (len(updates) - 1 - number) + 0.5
        ax.text(0.1, y + 2.45, f"update {number + 1}", fontsize=10.5, weight="bold")
        places = {
            "g": (1.2, y + 0.9, "gate"), "m": (6.0, y + 1.6, "query"), "v": (6.0, y + 0.2, "key"),
            "m̂": (11.0, y + 1.6, "query"), "v̂": (11.0, y + 0.2, "key"),
            "step": (16.2, y + 0.9, "wrong"), "w": (21.3, y + 0.9, "residual"),
        }  # fmt: skip
        for name, (left, bottom, colour) in places.items():
            ax.add_patch(
                Rectangle((left, bottom), 3.6, 0.85, facecolor=COLOURS[colour] + "26",
                          edgecolor=COLOURS[colour], linewidth=1.4)
            )  # fmt: skip
            digits = 4 if name == "w" else 3
            text = f"{name} = {values[name]:.{digits}g}".replace("-", "−")
            ax.text(left + 1.8, bottom + 0.42, text, ha="center", va="center", fontsize=9)
        for start, end in (("g", "m"), ("g", "v"), ("m", "m̂"), ("v", "v̂"), ("m̂", "step"),
                           ("v̂", "step"), ("step", "w")):  # fmt: skip
            (x1, y1, _), (x2, y2, _) = places[start], places[end]
            arrow(ax, (x1 + 3.6, y1 + 0.42), (x2, y2 + 0.42))
    return describe(
        figure,
        "Two rows of boxes, one per update. The gradient feeds two running means, both are "
        "corrected for their start at zero, and their quotient is the step: full length in the "
        "first update, a third of it in the second, back again.",
    )


def bit_layouts() -> Figure:
    """Draw how float32, bfloat16 and float16 divide their bits."""
    figure, ax = canvas(38, 9.6)
    rows = (
        ("float32", 8, 23, "to 10³⁸, 7 digits"),
        ("bfloat16", 8, 7, "to 10³⁸, 2 to 3 digits"),
        ("float16", 5, 10, "to 65,504, 3 to 4 digits"),
    )
    for row, (name, exponent, fraction, words) in enumerate(rows):
        y = 6.9 - 2.6 * row
        ax.text(-0.2, y + 1.5, name, fontsize=10.5, weight="bold")
        left = 0.0
        for bits, colour in ((1, "residual"), (exponent, "gate"), (fraction, "query")):
            for _ in range(bits):
                ax.add_patch(
                    Rectangle((left, y), 0.92, 1.1, facecolor=COLOURS[colour] + "66",
                              edgecolor=COLOURS[colour], linewidth=0.8)
                )  # fmt: skip
                left += 1
        ax.text(left + 0.5 if row else 7, y + (0.55 if row else 1.8), words, fontsize=10,
                va="center")  # fmt: skip
    ax.text(20, 0.4, "sign · exponent: range · fraction: precision", fontsize=10)
    for left, colour in ((18.7, "query"), (17.5, "gate"), (16.3, "residual")):
        ax.add_patch(Rectangle((left, 0.15), 0.92, 0.9, facecolor=COLOURS[colour] + "66",
                               edgecolor=COLOURS[colour], linewidth=0.8))  # fmt: skip
    return describe(
        figure,
        "Bits as squares: float32 has 8 exponent bits and 23 for the fraction; bfloat16 keeps the "
        "8 and cuts the fraction to 7; float16 has 5 and 10, so less range and more precision.",
    )


def one_batch(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the loss on a batch that is trained on again and again, one curve for each case.

    Args:
        curves: case to the loss before each update.
    """
    figure, ax = new_figure(figsize=(7.2, 3.5))
    for (label, values), (colour, style) in zip(curves.items(), _LOOKS, strict=False):
        ax.plot(values, linestyle=style, color=COLOURS[colour], label=label)
    ax.set(xlabel="step", ylabel="loss (nats per token)", yscale="log", xlim=(0, None))
    ticks = [0.01, 0.1, 1, 10]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return describe(
        figure,
        "Five curves on a logarithmic axis. Four fall towards zero, two of them of models with a "
        "bug; only the optimizer that holds copies of the weights gives a flat line.",
    )


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
            markerfacecolor="none", label="the original project's log")  # fmt: skip
    ax.set(xlabel="step", ylabel=r"learning rate ($10^{-4}$)", ylim=(0, 3.3), xlim=(-60, None))
    ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0.04, 0.05))
    return describe(
        figure,
        "Two learning rates against the step. Both rise within 100 steps; the cosine falls from "
        "there on, the other stays on a plateau and falls at the end. The log's points lie on the "
        "cosine.",
    )


def resumes(
    losses: Mapping[str, Sequence[float]], exact: Sequence[float], off: Mapping[str, float]
) -> Figure:
    """Draw the loss of each broken resume over that of the run that was never interrupted.

    Args:
        losses: what was lost to the training loss after the resume.
        exact: loss of the uninterrupted run.
        off: what was lost to the distance of the weights at the end, relative to their size.
    """
    figure, axes = new_figure(2, 3, figsize=(7.5, 4.2), sharex=True, sharey=True)
    for ax, (label, values) in zip(axes.flat, losses.items(), strict=False):
        ax.plot(exact, color=COLOURS["residual"], linewidth=3, alpha=0.35, label="exact")
        ax.plot(values, color=COLOURS["wrong"], linewidth=1.4, label="resumed")
        ax.set_title(f"{label}\nweights off by {100 * off[label]:.2g} %", fontsize=9.5, loc="left")
    last = axes.flat[len(losses)]
    last.axis("off")
    last.legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("updates after the resume", fontsize=9.5)
    for ax in axes[:, 0]:
        ax.set_ylabel("loss (nats per token)", fontsize=9.5)
    return describe(
        figure,
        "Five small panels. In each a thick grey line, the uninterrupted run, and a thin one, a "
        "resume that lost something. All zigzag alike, so that it takes the grey line to see one.",
    )


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
    """Draw the recorded run, its held-out loss, and the original project's log over it.

    Args:
        steps: of the recorded training losses.
        losses: nats per token.
        held_out: step to the loss on held-out text.
        theirs: (step, loss) of the original project's log.
    """
    figure, ax = new_figure(figsize=(7.5, 4.2))
    _training_curve(ax, steps, losses, 50)
    shown = [(step, loss) for step, loss in theirs if step <= max(steps)]
    ax.plot(*zip(*shown, strict=True), "s", color=COLOURS["residual"], markersize=4.5,
            markerfacecolor="none")  # fmt: skip
    ax.plot(list(held_out), list(held_out.values()), ".-", color=_HELD_OUT)
    best, end = min(held_out, key=held_out.__getitem__), max(held_out)
    ax.plot(best, held_out[best], "o", color=_HELD_OUT, markersize=9)
    for place, text, colour in (
        ((best, held_out[best] + 0.3), f"lowest: {held_out[best]:.2f}", _HELD_OUT),
        ((3_550, 6.35), "plays that it never reads", _HELD_OUT),
        ((2_650, 2.35), "the text that it reads", _TRAINED),
        ((800, 2.7), "squares: the original\nproject's log", COLOURS["residual"]),
    ):
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        ax.text(*place, text, color=colour, fontsize=10, ha="center", bbox=paper)
    ax.annotate("", (end + 60, held_out[end]), (end + 60, np.mean(losses[-50:])),
                arrowprops={"arrowstyle": "<->", "color": COLOURS["residual"]},
                annotation_clip=False)  # fmt: skip
    ax.text(end + 110, 4.1, "nearly\n5 nats", fontsize=10, va="center")
    ax.set(xlabel="step", ylabel="loss (nats per token)", ylim=(1, 8), xlim=(0, end + 480))
    ax.set_title("On new text the best step is near 2,000; from 3,000 on it gets worse", loc="left")
    return describe(
        figure,
        "Training loss falls all the way to 1.7 nats, and the original project's log lies on it. "
        "The loss on unread plays falls to 5.38 at step 2,000 and then rises to 6.55.",
    )


def order(courses: Mapping[str, Sequence[Mapping[int, float]]], a_pass: int) -> Figure:
    """Draw the held-out loss of runs that read their pages in order, and shuffled.

    Args:
        courses: order to one curve per seed, step to held-out loss.
        a_pass: steps in a pass.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.5), sharey=True)
    looks = {"in order": "wrong", "shuffled": "right"}
    for ax, (name, curves) in zip(axes, courses.items(), strict=True):
        for curve in curves:
            ax.plot(list(curve), list(curve.values()), color=COLOURS[looks[name]], linewidth=1,
                    alpha=0.75)  # fmt: skip
        for number in range(1, 5):
            ax.axvline(number * a_pass, color=COLOURS["residual"], linewidth=0.8, linestyle=":")
        ax.set_title(f"pages {name}", fontsize=10.5, loc="left")
        ax.set(xlabel="step (dotted: a pass ends)", ylim=(3.45, 4.45), xlim=(a_pass / 2, None))
    axes[0].set_ylabel("held-out loss (nats per token)")
    return describe(
        figure,
        "Two panels of three curves each, from half a pass on. With pages in order the loss on "
        "held-out text swings up and down within each pass; with shuffled pages it swings less.",
    )


def copied_lengths(
    shares: Mapping[str, Sequence[float]], lengths: Sequence[int], looks: Mapping[str, str]
) -> Figure:
    """Draw which share of the written tokens stands in copied runs, against the runs' length.

    Args:
        shares: who wrote to the share for each length.
        lengths: shortest run that counts as copied, in tokens.
        looks: who to a name of ``COLOURS`` and a line style, with a blank between them.
    """
    figure, ax = new_figure(figsize=(7.2, 3.8))
    for name, values in shares.items():
        colour, style = looks[name].split()
        ax.plot(lengths, values, style, color=COLOURS[colour], label=name)
    ax.axvspan(6, 11, color=COLOURS["residual"], alpha=0.1, linewidth=0)
    ax.text(8.5, 0.93, "length of\n“NEW SPEAKER:”", ha="center", va="top", fontsize=9)
    ax.set(xlabel="shortest run that counts as copied (tokens)", ylim=(0, 1), xlim=(2, 20),
           ylabel="share of all tokens")  # fmt: skip
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(fontsize=9, loc="upper right")
    ax.set_title("How much is copied depends on what you count", loc="left")
    return describe(
        figure,
        "Falling curves: the share of tokens in copied runs against the shortest run that counts. "
        "At four tokens it is more than half for every model, at sixteen it is zero for all; "
        "Shakespeare's own other plays lie far below throughout.",
    )


def held_out_losses(runs: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw the held-out loss of several runs against their steps, with an arrow to each lowest.

    Args:
        runs: label to (step to the held-out loss in nats per token).
    """
    figure, ax = new_figure(figsize=(7.5, 3.8))
    lowest = {label: min(values, key=values.__getitem__) for label, values in runs.items()}
    for (label, values), colour in zip(runs.items(), ("right", "key", "value"), strict=False):
        look = {"color": COLOURS[colour]}
        ax.plot(list(values), list(values.values()), linewidth=1.8, **look)
        best, end = lowest[label], max(values)
        words = f"lowest {values[best]:.2f}"
        if best == end:
            name = f"{label}: {words}, at its end"
        else:
            name = label
            below = any(values[best] < run[best] for run in runs.values() if best in run)
            ax.annotate(words, (best, values[best]), (0, -30 if below else 26), fontsize=10,
                        textcoords="offset points", ha="center", va="center",
                        arrowprops={"arrowstyle": "->", **look})  # fmt: skip
        ax.annotate(name, (end, values[end]), (6, 0), textcoords="offset points", fontsize=10,
                    va="center", annotation_clip=False)  # fmt: skip
    low, last = min(runs[n][s] for n, s in lowest.items()), max(max(v) for v in runs.values())
    ax.set(xlabel="step", ylabel="held-out loss (nats per token)", ylim=(low - 0.4, low + 4),
           xlim=(-0.02 * last, 1.28 * last))  # fmt: skip
    ax.set_title("From scratch both turn upwards; what was read before counts more", loc="left")
    return describe(
        figure,
        "Held-out loss of the runs against the step. The two from scratch fall, reach their "
        "lowest point before half of the run and rise again; the fine-tuned one starts far lower.",
    )


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
    ax.set(xlabel="batches read in this pass", ylabel="held-out loss (nats per token)",
           xlim=(0, end), ylim=(None, top + 0.03))  # fmt: skip
    ax.legend(fontsize=9, loc="upper center")
    return figure


def ladder(rungs: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw speed and memory of a training step, change by change.

    Args:
        rungs: name to (tokens per second, peak memory in GB); names that begin with "aside" did not
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
    left.set(xlabel="tokens per second")
    right.set(xlabel="peak memory (GB)")
    return describe(
        figure,
        "Bars, change by change: tokens per second rise from 157 to about twice as much, peak "
        "memory falls from 4.3 to about 3.4 GB. Hatched bars are changes that were not kept.",
    )
