"""Figures of notebook 13, inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.style import COLOURS, describe, new_figure

Range = tuple[Sequence[float], Sequence[float], Sequence[float]]  # least, median, greatest
Band = tuple[Sequence[float], Sequence[float]]  # means, and their standard errors


def giant(first: Range, others: Range) -> Figure:
    """Draw the largest number of the residual stream against blocks passed.

    Args:
        first: at the first tokens: least, median and greatest, each after 0, 1, … blocks.
        others: at the later tokens, likewise.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    looks = ((first, "wrong", "o", "-"), (others, "right", "s", "--"))
    for (least, median, greatest), colour, mark, style in looks:
        x = np.arange(len(median))
        ax.fill_between(x, least, greatest, color=COLOURS[colour], alpha=0.2, linewidth=0)
        ax.plot(x, median, style, color=COLOURS[colour], marker=mark, markersize=3.5)
    ax.text(15, 9_000, "first tokens", color=COLOURS["wrong"], weight="bold", va="top")
    ax.text(15, 25, "later tokens", color=COLOURS["right"], weight="bold", va="top")
    ax.text(6, 1_300, "a smaller,\nearly peak", ha="center", va="bottom", fontsize=10)
    ax.set(yscale="log", xlabel="blocks passed", ylabel="largest number (absolute)",
           title="The first token carries a giant (line: median; band: all of them)",
           ylim=(0.2, 8e4))  # fmt: skip
    ax.minorticks_off()
    return describe(
        figure,
        "Largest number in the residual stream against blocks passed, on a logarithmic axis. At "
        "the first tokens it jumps to about twenty thousand after the twelfth block and stays "
        "there until the last two. From there on the band of all later tokens lies far below. "
        "Between the third and the tenth block the first tokens have a smaller peak, and the upper "
        "edge of the later tokens' band reaches as high.",
    )


def sink(
    curves: Mapping[str, Sequence[float]], switch: int, hidden: Sequence[int], even: float
) -> Figure:
    """Draw the share of attention on the first token, block by block.

    Args:
        curves: label to share, one for each block: the untouched model, the giant hidden from the
            attention, and the giant never written.
        switch: number of the block whose MLP writes the giant.
        hidden: the blocks in which it is hidden.
        even: the share if each token got the same.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    looks = (("wrong", "-", "o"), ("norm", "-", "^"), ("right", "--", "s"))
    for (label, values), (colour, style, mark) in zip(curves.items(), looks, strict=True):
        x = np.arange(len(values))
        ax.plot(x, values, style, marker=mark, markersize=4, color=COLOURS[colour], label=label)
    ax.axhline(even, color=COLOURS["residual"], linewidth=1)
    ax.text(6, even + 0.02, "an even share", ha="center", va="bottom", fontsize=10)
    ax.text(6, 0.42, "up to here,\nall three agree", ha="center", va="center", fontsize=10)
    ax.axvline(switch + 0.5, color=COLOURS["residual"], linewidth=1)
    ax.text(switch + 0.3, 0.97, "the giant is\nwritten here", ha="right", va="top", fontsize=10)
    ax.axvspan(hidden[0] - 0.4, hidden[-1] + 0.4, ymin=0.915, color=COLOURS["norm"], alpha=0.3,
               linewidth=0)  # fmt: skip
    ax.text((hidden[0] + hidden[-1]) / 2, 0.952, "hidden in these blocks only", ha="center",
            va="center", fontsize=10)  # fmt: skip
    ax.set(xlabel="block (counted from 0)", ylabel="attention on\nthe first token", ylim=(0, 1.0),
           xlim=(-0.7, 29.7), xticks=range(0, 30, 5),
           title="Without the giant, the heads let go of the first token")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3, fontsize=10)
    return describe(
        figure,
        "Share of attention that lies on the first token, for each block. Up to the block that "
        "writes the giant three curves are the same. After it, the untouched model gives the first "
        "token half or more in most blocks. With the giant hidden from the attention the share is "
        "lower in most blocks, and far lower where the giant is never written. A strip marks "
        "the blocks in which it is hidden; after them that share is no longer lower. A line marks "
        "an even share.",
    )


def given_back(cells: Mapping[tuple[bool, bool], tuple[float, float, float]]) -> Figure:
    """Draw what it costs to give the first token its keys, its values, both or neither.

    Args:
        cells: (keys given back?, values given back?) to the rise of the loss, its standard error
            and the share of attention on the first token.
    """
    figure, ax = new_figure(figsize=(6.2, 3.2))
    highest = max(mean for mean, _, _ in cells.values())
    for (keys, values), (mean, error, share) in cells.items():
        strength = 0.06 + 0.5 * max(mean, 0) / highest
        ax.add_patch(Rectangle((values - 0.47, keys - 0.46), 0.94, 0.92, linewidth=0,
                               facecolor=to_rgba(COLOURS["wrong"], strength)))  # fmt: skip
        ax.text(values, keys + 0.1, f"{round(mean, 2) + 0.0:+.2f} ± {error:.2f} nats", ha="center",
                va="center", weight="bold", fontsize=12)  # fmt: skip
        ax.text(
            values, keys - 0.14, f"attention {share:.2f}", ha="center", va="center", fontsize=10.5
        )
    ax.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), xlabel="the first token's values",
           ylabel="the first token's keys", title="How much the loss rises")  # fmt: skip
    ax.text(1, 1.3, "(the untouched model)", ha="center", va="center", fontsize=10)
    ax.text(0, 0.3, "(giant never written)", ha="center", va="center", fontsize=10)
    ax.set_xticks((0, 1), ("without the giant", "given back"))
    ax.set_yticks((0, 1), ("without\nthe giant", "given\nback"))
    ax.yaxis.labelpad = 12
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.grid(visible=False)
    return describe(
        figure,
        "A table of two by two: the first token's keys without the giant or given back, and its "
        "values likewise. With both given back nothing is lost; with the values alone about half "
        "of the damage is left; with the keys alone the damage is more than twice as large as with "
        "nothing given back.",
    )


def lens(words: Sequence[Sequence[str]], rows: Sequence[int], columns: Sequence[str]) -> Figure:
    """Draw the logit lens in words: what each stream would say if the model ended there.

    Args:
        words: a row for each depth, a word for each token.
        rows: blocks passed.
        columns: the tokens that the model reads.
    """
    figure, ax = new_figure(figsize=(6.4, 0.3 * len(rows) + 1.0))
    last = words[-1]
    for i, row in enumerate(words):
        for j, word in enumerate(row):
            final = word == last[j]
            ax.text(j, i, word, ha="center", va="center", fontsize=10.5, family="monospace",
                    weight="bold" if final else "normal",
                    color="white" if final else "black",
                    bbox={"boxstyle": "round,pad=0.25", "linewidth": 0,
                          "fc": COLOURS["right"] if final else "#EEEEEE"})  # fmt: skip
    ax.set_yticks(range(len(rows)), [str(row) for row in rows])
    ax.set_xticks(range(len(columns)), columns)
    ax.xaxis.set_ticks_position("top")
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(len(rows) - 0.4, -0.6), ylabel="blocks passed",
           )  # fmt: skip
    ax.set_title("What it would say if it ended there (blue: as at the end; ␣: a space)", pad=10)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.grid(visible=False)
    return describe(
        figure,
        "A table of words: a column for each token that the model reads, a row for each depth. "
        "Each cell is the token that the model would put first if it ended there. Cells that agree "
        "with the final answer are blue. Behind “The capital of France is” only the last row does: "
        "Paris.",
    )


def patched(curves: Mapping[str, Band]) -> Figure:
    """Draw how much of another prompt's answer an exchanged vector brings, block by block.

    Args:
        curves: label to means and standard errors, after 0, 1, … blocks.
    """
    figure, ax = new_figure(figsize=(7.2, 3.0))
    looks = (("key", "-", "o"), ("right", "--", "s"))
    for (label, (means, errors)), (colour, style, mark) in zip(curves.items(), looks, strict=True):
        x, mean, error = np.arange(len(means)), np.array(means), np.array(errors)
        ax.fill_between(x, mean - 2 * error, mean + 2 * error, color=COLOURS[colour], alpha=0.25)
        ax.plot(x, mean, style, marker=mark, markersize=4, color=COLOURS[colour], label=label)
    ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
    ax.set(xlabel="blocks passed when the vector is exchanged", ylabel="whose capital?",
           yticks=(0, 0.5, 1), yticklabels=("own", "half", "other"),
           title="The difference moves in one step, in block 23")  # fmt: skip
    ax.legend(loc="center left", fontsize=10, title="exchanged vector")
    return describe(
        figure,
        "How far the answer changes when a vector is exchanged for that of another prompt, against "
        "the depth of the exchange. At the country's own token the exchange works for the first "
        "two thirds of the blocks and then, within one block, not at all. At the last token it is "
        "the other way round.",
    )


def readable(ranks: Sequence[float], step: int) -> Figure:
    """Draw when the right city can be read at the last token.

    Args:
        ranks: of the city among all tokens, 1 for the first, after 0, 1, … blocks.
        step: blocks passed when what the answer needs has arrived.
    """
    figure, ax = new_figure(figsize=(7.2, 2.8))
    ax.plot(range(len(ranks)), ranks, marker="o", markersize=4, color=COLOURS["embedding"])
    ax.axvline(step - 0.5, color=COLOURS["residual"], linewidth=1)
    ax.text(step - 0.8, 3, "block 23", ha="right", va="center", fontsize=10)
    ax.set(yscale="log", ylabel="rank of the city", xlabel="blocks passed", ylim=(1e5, 0.6),
           yticks=(1, 100, 10_000), yticklabels=("1", "100", "10,000"),
           title="Block 23 lifts the city's rank, but not to the top")  # fmt: skip
    ax.minorticks_off()
    return describe(
        figure,
        "The rank of the right city among all tokens if the model ended there, against blocks "
        "passed, on a logarithmic axis: around ten thousand at first, about tenfold better after "
        "block 23, and the first only at the very end.",
    )


def branches(rises: Mapping[str, Band], highest: float) -> Figure:
    """Draw what each of the sixty branches is worth.

    Args:
        rises: "attention" and "MLP" to mean rise of the loss and standard error, by block.
        highest: where the axis ends; higher bars are cut and labelled.
    """
    figure, axes = new_figure(2, 1, figsize=(7.2, 4.6), sharex=True)
    for ax, (label, (means, errors)) in zip(axes, rises.items(), strict=True):
        colour = COLOURS["attention" if label == "attention" else "mlp"]
        x = np.arange(len(means))
        ax.bar(x, np.minimum(means, highest), color=colour, width=0.75)
        low = [mean < highest for mean in means]
        ax.errorbar(x[low], np.array(means)[low], 2 * np.array(errors)[low], fmt="none",
                    ecolor="black", elinewidth=1)  # fmt: skip
        cut = {place for place, mean in enumerate(means) if mean >= highest}
        for place in cut:
            aside = 0.4 * ((place - 1 in cut) - (place + 1 in cut))  # neighbours make room
            ax.text(place + aside, 1.02 * highest, f"{means[place]:.1f}\n±{2 * errors[place]:.1f}",
                    ha="center", va="bottom", fontsize=9)  # fmt: skip
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.set(ylim=(-0.12, highest), ylabel=f"{label}\n(nats per token)", xlim=(-1, 30))
    figure.suptitle(
        "Silence one branch: how much does the loss rise?\n"
        "(thin lines: ± 2 standard errors; bars cut off at the top are labelled)",
        fontsize=mpl.rcParams["axes.titlesize"],
    )
    axes[1].set(xlabel="block", xticks=range(0, 30, 5))
    return describe(
        figure,
        "Two rows of bars, one for attention and one for the MLP, with a bar for each block: how "
        "much the loss rises when that branch writes nothing. Six bars are cut off at the top and "
        "labelled: the attention of blocks 0 and 1, and the MLPs of blocks 0, 2, 11 and 29.",
    )


def repeated(curves: Mapping[str, Sequence[float]], half: int, chance: float) -> Figure:
    """Draw the loss at each position of a random sequence that is given twice.

    Args:
        curves: label to loss in nats at each position.
        half: where the repetition begins.
        chance: loss of a guess among all tokens.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    looks = (("right", "-"), ("wrong", "--"), ("other", "-."))
    for (label, values), (colour, style) in zip(curves.items(), looks, strict=False):
        ax.plot(np.arange(1, len(values) + 1), values, style, color=COLOURS[colour], label=label)
    ax.axvline(half, color=COLOURS["residual"], linestyle=":", linewidth=1.2)
    ax.text(half + 0.6, 18.2, "the same tokens again", fontsize=10, va="top")
    ax.axhline(chance, color=COLOURS["residual"], linewidth=1)
    ax.text(1, chance - 0.3, "a guess among all tokens", va="top", fontsize=10)
    ax.set(xlabel="position", ylabel="loss (nats per token)", ylim=(0, 19),
           yticks=range(0, 16, 5),
           title="Without six heads, most of the copying is gone")  # fmt: skip
    ax.legend(loc="lower left", fontsize=10)
    return describe(
        figure,
        "Loss at each position of a random sequence given twice. In the first half every model is "
        "worse than a guess. In the second half the loss of the whole model falls below three nats "
        "within five positions; without the six heads it stays near a guess, and the control "
        "follows the whole model.",
    )
