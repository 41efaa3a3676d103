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


def _passes(ax: Axes, a_pass: float, end: float) -> None:
    """Shade every second pass over the text, and number those."""
    for number in range(0, int(end / a_pass) + 1, 2):
        last = min((number + 1) * a_pass, end)
        ax.axvspan(number * a_pass, last, color=COLOURS["residual"], alpha=0.07, linewidth=0)
        if last - number * a_pass > a_pass / 2:
            ax.annotate(str(number + 1), ((number + 0.5) * a_pass, 0), (0, 3), fontsize=8,
                        xycoords=("data", "axes fraction"), textcoords="offset points",
                        ha="center", color=COLOURS["residual"])  # fmt: skip


def the_log(
    steps: Sequence[int], losses: Sequence[float], levels: Mapping[str, float], a_pass: float
) -> Figure:
    """Draw a run's logged losses against its steps, with the passes over the text in grey.

    Args:
        steps: updates made before each line of the log; the last ten follow a resume.
        losses: nats per token.
        levels: label to loss, drawn as horizontal lines.
        a_pass: steps in a pass.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    _passes(ax, a_pass, max(steps))
    ax.plot(steps, losses, "o-", color=_TRAINED, markersize=4, linewidth=1.2)
    for label, value in levels.items():
        _level(ax, max(steps), value, label)
    ax.annotate("50 steps\nafter a resume", (max(steps) - 30, max(losses[-10:]) + 0.15),
                (4_560, 4.3), fontsize=9, ha="center", va="center", color=COLOURS["residual"],
                arrowprops={"arrowstyle": "->", "color": COLOURS["residual"]})  # fmt: skip
    ax.set(xlabel="step (stripes: passes over the text, numbered)", ylabel="loss (nats per token)",
           ylim=(0, 12), xlim=(0, max(steps)))  # fmt: skip
    ax.set_title("The original project's log: in fifteen passes down to 2 nats", loc="left")
    return describe(
        figure,
        "Training loss falls from 11 nats to about 2 over 5,000 steps, steeply at first. Grey and "
        "white stripes mark fifteen passes over the same text. The last ten points, after a "
        "resume, fall from 2 to below 1.5 within 50 steps.",
    )


def adam_steps(updates: Sequence[Mapping[str, float]], start: float) -> Figure:
    """Draw AdamW's arithmetic for one weight, a column for each update.

    Args:
        updates: of each update "g", "m", "v", "m̂", "v̂", "decay", "step" and "w".
        start: the weight before the first of them.
    """

    def write(value: float) -> str:
        return f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−")

    wide, high, gap = 11.4, 0.86, 1.18
    figure, ax = canvas(32, 8 * gap + 1.4)
    before = {"m": 0.0, "v": 0.0, "w": start}
    for number, now in enumerate(updates, start=1):
        left = 6.4 + (number - 1) * (wide + 2.4)
        ax.text(left + wide / 2, 8 * gap + 0.55, f"update {number}", fontsize=10.5, weight="bold",
                ha="center")  # fmt: skip
        g, m, v, w = (write(x) for x in (now["g"], before["m"], before["v"], before["w"]))
        g = f"({g})" if now["g"] < 0 else g
        lines = (
            ("gradient  g", "wrong", ""),
            ("mean  m", "query", f"0.9 · {m} + 0.1 · {g}"),
            ("mean square  v", "key", f"0.95 · {v} + 0.05 · {g}²"),
            ("corrected  m̂", "query", f"m / (1 − 0.9{'²' if number > 1 else ''})"),
            ("corrected  v̂", "key", f"v / (1 − 0.95{'²' if number > 1 else ''})"),
            ("decay", "residual", f"−0.1 · 0.1 · {w}"),
            ("step", "wrong", "−0.1 · m̂ / √v̂"),
            ("weight  w", "residual", f"{w} + decay + step"),
        )
        for row, (name, colour, sum_) in enumerate(lines):
            y = (7 - row) * gap + 0.3
            if number == 1:
                ax.text(0, y + high / 2, name, fontsize=10, va="center")
            ax.add_patch(
                Rectangle((left, y), wide, high, facecolor=COLOURS[colour] + "26",
                          edgecolor=COLOURS[colour], linewidth=1.4)
            )  # fmt: skip
            shown = write(now[name.split()[-1]])
            ax.text(left + 0.3, y + high / 2, sum_, va="center", fontsize=9)
            ax.text(left + wide - 0.3, y + high / 2, shown, va="center", ha="right", fontsize=10,
                    weight="bold")  # fmt: skip
            if number < len(updates) and name.split()[-1] in before:
                arrow(ax, (left + wide, y + high / 2), (left + wide + 2.4, y + high / 2))
        before = {name: now[name] for name in before}
    return describe(
        figure,
        "Two columns, one per update, from the gradient down to the weight. The gradient feeds "
        "two running means, both are corrected for their start at zero, and their quotient is the "
        "step: full length in the first update, a third of it in the second, the other way. "
        "Decay and step are added to the weight. Arrows carry both means and the weight over.",
    )


def bit_layouts() -> Figure:
    """Draw how float32, bfloat16 and float16 divide their bits."""
    figure, ax = canvas(46, 9.6)
    rows = (
        ("float32", 8, 23, "up to 10³⁸, 7 digits"),
        ("bfloat16", 8, 7, "up to 10³⁸, 2 to 3 digits"),
        ("float16", 5, 10, "up to 65,504, 3 to 4 digits"),
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
        ax.text(left + 0.6, y + 0.55, words, fontsize=10, va="center")
    for left, colour, words in (
        (0, "residual", "sign"), (5, "gate", "exponent: range"),
        (15.5, "query", "fraction: precision"),
    ):  # fmt: skip
        ax.add_patch(Rectangle((left, 0.15), 0.92, 0.9, facecolor=COLOURS[colour] + "66",
                               edgecolor=COLOURS[colour], linewidth=0.8))  # fmt: skip
        ax.text(left + 1.4, 0.58, words, fontsize=10, va="center")
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
    figure, ax = new_figure(figsize=(7.5, 3.5))
    lines = {}
    for (label, values), (colour, style) in zip(curves.items(), _LOOKS, strict=False):
        (lines[label],) = ax.plot(values, linestyle=style, color=COLOURS[colour])
    ax.set(xlabel="step", ylabel="loss (nats per token)", yscale="log", xlim=(0, None))
    ticks = [0.01, 0.1, 1, 10]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    high_first = sorted(lines, key=lambda label: -curves[label][len(curves[label]) // 2])
    ax.legend([lines[label] for label in high_first], high_first, fontsize=9, loc="upper left",
              bbox_to_anchor=(1.0, 1.0))  # fmt: skip
    ax.set_title("Trained on one batch again and again, only one bug shows", loc="left")
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
    ax.set(xlabel="step", ylabel=r"learning rate ($10^{-4}$)", ylim=(0, 3.45), xlim=(-60, None))
    ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0.04, 0.05))
    for step, words, side in ((100, "warm-up ends", "left"), (4_000, "decay begins", "center")):
        ax.annotate(words, (step, 3.03), (step, 3.18), fontsize=9, ha=side, va="bottom",
                    color=COLOURS["residual"], arrowprops={"arrowstyle": "-"})  # fmt: skip
    ax.set_title("Two schedules, and the original project's rates on one of them", loc="left")
    return describe(
        figure,
        "Two learning rates against the step. Both rise within 100 steps; the cosine falls from "
        "there on, the other stays on a plateau and falls at the end. The log's points lie on the "
        "cosine.",
    )


def resumes(
    losses: Mapping[str, Sequence[float]],
    exact: Sequence[float],
    before: Sequence[float],
    off: Mapping[str, float],
) -> Figure:
    """Draw the loss of each broken resume, alone and over the run that was never interrupted.

    Args:
        losses: what was lost to the training loss after the resume.
        exact: loss of the uninterrupted run, from the step of the resume on.
        before: loss of the steps before it.
        off: what was lost to the distance of the weights at the end, relative to their length.
    """
    figure, axes = new_figure(len(losses), 2, figsize=(7.2, 6.0), sharex=True, sharey=True)
    whole = [*before, *exact]
    for row, (label, values) in enumerate(losses.items()):
        alone, beside = axes[row]
        beside.plot(whole, color=COLOURS["residual"], linewidth=3.2, alpha=0.35,
                    label="never interrupted")  # fmt: skip
        for ax in (alone, beside):
            ax.plot([*before, *values], color=COLOURS["wrong"], linewidth=1.3, label="resumed")
            ax.axvline(len(before) - 0.5, color=COLOURS["residual"], linewidth=0.9, linestyle=":")
            ax.set(ylim=(4.6, 7.1), xlim=(0, len(whole) - 1), yticks=(5, 6, 7))
            ax.grid(False)
        alone.set_title(f"lost: {label}", fontsize=9.5, loc="left")
        beside.set_title(f"weights at the end: {_percent(off[label])} away", fontsize=9.5,
                         loc="left")  # fmt: skip
    axes[0, 1].legend(fontsize=9, loc="upper right")
    axes[0, 0].text(len(before), 6.95, "resume", fontsize=9, va="top")
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("loss (nats per token)", fontsize=10)
    return describe(
        figure,
        "Five rows, one per broken resume. Left, the curve alone, 15 steps before the resume and "
        "40 after it: all zigzag, and no resume stands out. Right, the same curve over a thick "
        "grey line, the run that was never interrupted: now three of the five leave it visibly.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


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
    a_pass: int,
    counting: float,
) -> Figure:
    """Draw the recorded run, its held-out loss, and the original project's log over it.

    Args:
        steps: of the recorded training losses.
        losses: nats per token.
        held_out: step to the loss on held-out text.
        theirs: (step, loss) of the original project's log.
        a_pass: steps in a pass.
        counting: held-out loss of a table of the training text's frequencies.
    """
    figure, ax = new_figure(figsize=(7.5, 4.6))
    best, end = min(held_out, key=held_out.__getitem__), max(held_out)
    _passes(ax, a_pass, end)
    _training_curve(ax, steps, losses, 50)
    ax.plot(*zip(*theirs, strict=True), "s", color=COLOURS["residual"], markersize=4.5,
            markerfacecolor="none")  # fmt: skip
    ax.plot(list(held_out), list(held_out.values()), ".", color=_HELD_OUT, markersize=4)
    for number in range(1, end // a_pass):
        looks = [v for s, v in held_out.items() if s // a_pass == number]
        ax.plot([number * a_pass, (number + 1) * a_pass], [np.mean(looks)] * 2, color=_HELD_OUT,
                linewidth=2.6)  # fmt: skip
    ax.plot(best, held_out[best], "o", color=_HELD_OUT, markersize=8, markerfacecolor="none")
    ax.axhline(counting, color=_HELD_OUT, linewidth=1.1, linestyle=":")
    for place, text, colour in (
        ((best, held_out[best] - 0.34), f"lowest: {held_out[best]:.2f}", _HELD_OUT),
        ((2_500, counting + 0.2), "new plays, knowing only how frequent each token is", _HELD_OUT),
        ((3_300, 6.12), "new plays", _HELD_OUT),
        ((2_650, 2.2), "the text that it reads", _TRAINED),
        ((800, 2.6), "squares: the original\nproject's log", COLOURS["residual"]),
    ):
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.7}
        ax.text(*place, text, color=colour, fontsize=10, ha="center", va="center", bbox=paper)
    ax.annotate("", (end + 60, held_out[end]), (end + 60, np.mean(losses[-50:])),
                arrowprops={"arrowstyle": "<->", "color": COLOURS["residual"]},
                annotation_clip=False)  # fmt: skip
    ax.text(end + 110, 4.1, "nearly\n5 nats", fontsize=10, va="center")
    ax.set(xlabel="step (stripes: passes over the text, numbered)", ylabel="loss (nats per token)",
           ylim=(0.6, 7.3), xlim=(0, end + 480))  # fmt: skip
    ax.set_title("On new text the loss is lowest in passes 5 to 8, then rises", loc="left")
    return describe(
        figure,
        "Training loss falls all the way to 1.7 nats, and the original project's log lies on it. "
        "The loss on unread plays, dots with a bar for the mean of each pass, falls to about 5.5 "
        "nats, stays there in passes 5 to 8, then rises in every pass and ends at 6.55, where a "
        "dotted line marks what the frequencies of the tokens alone would reach.",
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
        ax.set_title(f"pages {name}, {len(curves)} seeds", fontsize=10.5, loc="left")
        ax.set(xlabel="step (dotted: a pass ends)", ylim=(3.45, 4.45), xlim=(a_pass / 2, None))
    axes[0].set_ylabel("held-out loss (nats per token)")
    return describe(
        figure,
        "Two panels of three curves each, from half a pass on. With pages in order the loss on "
        "held-out text swings up and down within each pass, the three curves together; with "
        "shuffled pages it swings less and ends lower.",
    )


def copied_lengths(
    parts: Mapping[str, Mapping[str, Sequence[float]]],
    lengths: Sequence[int],
    looks: Mapping[str, str],
) -> Figure:
    """Draw which share of the written tokens stands in copied runs, against the runs' length.

    Args:
        parts: of which part of the text, to who wrote, to the share for each length.
        lengths: shortest run that counts as copied, in tokens.
        looks: who to a name of ``COLOURS``, a line style and a marker, with spaces between them.
    """
    figure, axes = new_figure(1, len(parts), figsize=(7.5, 4.0), sharey=True)
    for ax, (part, shares) in zip(axes, parts.items(), strict=True):
        for name, values in shares.items():
            colour, style, marker = looks[name].split()
            ax.plot(lengths, values, linestyle=style, color=COLOURS[colour], label=name,
                    linewidth=1.5, marker=marker, markersize=4)  # fmt: skip
        ax.set(xlabel="shortest run that counts (tokens)", ylim=(0, 1), xlim=(2, 16),
               xticks=range(2, 17, 2))  # fmt: skip
        ax.set_title(part, fontsize=10.5, loc="left")
    axes[0].set_ylabel("share of all tokens")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[-1].legend(fontsize=9, loc="upper right")
    return describe(
        figure,
        "Two panels of falling curves: the share of tokens in copied runs against the shortest "
        "run that counts. As written, the models' curves stay high up to runs of about ten "
        "tokens; without the lines that name a speaker all are near zero from eight tokens on, as "
        "Shakespeare's own other plays are.",
    )


def held_out_losses(runs: Mapping[str, Mapping[int, float]], closer: Mapping[int, float]) -> Figure:
    """Draw the held-out loss of several runs against their steps, with a dot at each lowest.

    Args:
        runs: label to (step to the held-out loss in nats per token).
        closer: the second run's last steps, looked at more often.
    """
    figure, ax = new_figure(figsize=(7.5, 3.9))
    lowest = {label: min(values, key=values.__getitem__) for label, values in runs.items()}
    ax.plot(list(closer), list(closer.values()), color=COLOURS["key"], linewidth=0.8)
    for (label, values), colour in zip(runs.items(), ("right", "key", "value"), strict=False):
        look = {"color": COLOURS[colour]}
        ax.plot(list(values), list(values.values()), linewidth=1.8, **look)
        best, end = lowest[label], max(values)
        words = f"lowest {values[best]:.2f}"
        name = f"{label}: {words}, at its end" if best == end else label
        ax.plot(best, values[best], "o", markersize=7, **look)
        if best != end:
            below = any(values[best] < run[best] for run in runs.values() if best in run)
            ax.annotate(words, (best, values[best]), (0, -16 if below else 24), fontsize=10,
                        textcoords="offset points", ha="center", va="center")  # fmt: skip
        ax.annotate(name, (end, values[end]), (8, 0), textcoords="offset points", fontsize=10,
                    va="center", annotation_clip=False)  # fmt: skip
    peak = max(list(closer)[:-10], key=closer.__getitem__)
    ax.annotate("every 10th step", (peak, closer[peak]), (-45, 40), fontsize=9.5, ha="center",
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": COLOURS["key"]})  # fmt: skip
    low, last = min(runs[n][s] for n, s in lowest.items()), max(max(v) for v in runs.values())
    ax.set(xlabel="step", ylabel="held-out loss (nats per token)", ylim=(low - 0.4, low + 4),
           xlim=(-0.02 * last, 1.28 * last), xticks=range(0, last + 1, 1_000))  # fmt: skip
    ax.set_title("From scratch both turn upwards; what had read more starts lower", loc="left")
    return describe(
        figure,
        "Held-out loss of the runs against the step. The two from scratch fall, reach their "
        "lowest point before half of the run and rise again. A thin line shows the smaller one's "
        "last 1,000 steps at every tenth: it swings by half a nat. The fine-tuned run starts far "
        "lower than both.",
    )


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
