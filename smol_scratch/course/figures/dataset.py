"""Figures of notebook 07, the text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.style import COLOURS, new_figure


def contents(
    lengths: Mapping[str, int], cut: tuple[str, float], speakers: Sequence[tuple[str, int]]
) -> Figure:
    """Draw how long each play is, and who speaks most often.

    Args:
        lengths: title to characters, in the order of the file.
        cut: the play of which the file has only a part, and which share of it.
        speakers: name and number of speeches, most first.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.6))
    rows = np.arange(len(lengths))
    thousands = np.array(list(lengths.values())) / 1000
    left.barh(rows, thousands, color=COLOURS["embedding"], height=0.7)
    row = list(lengths).index(cut[0])
    left.barh(row, thousands[row] / cut[1] - thousands[row], left=thousands[row], height=0.7,
              fill=False, edgecolor=COLOURS["wrong"], linestyle="--", linewidth=1.3)  # fmt: skip
    left.text(thousands[row] / cut[1] + 3, row, "missing", va="center", fontsize=9,
              color=COLOURS["wrong"])  # fmt: skip
    left.set_yticks(rows, list(lengths), fontsize=9)
    left.set(xlabel="characters (thousands)")
    names = [name for name, _ in speakers]
    right.barh(range(len(names)), [count for _, count in speakers], color=COLOURS["other"],
               height=0.7)  # fmt: skip
    right.set_yticks(range(len(names)), names, fontsize=8.5)
    right.set(xlabel="speeches")
    for ax in (left, right):
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
    return figure


def cuts(rows: Mapping[str, Sequence[str]]) -> Figure:
    """Draw one line of text cut into tokens in several ways, each token a box.

    Args:
        rows: label to the tokens; joined, they are the same text in every row.
    """
    figure, ax = new_figure(figsize=(7.5, 0.62 * len(rows) + 0.2))
    length = len("".join(next(iter(rows.values()))))
    for row, (label, tokens) in enumerate(rows.items()):
        ax.text(-0.6, -row, label, ha="right", va="center", fontsize=9.5)
        ax.text(length + 0.6, -row, str(len(tokens)), va="center", fontsize=10)
        at = 0
        for number, token in enumerate(tokens):
            shade = 0.55 if number % 2 else 0.25
            ax.add_patch(
                Rectangle((at + 0.06, -row - 0.36), len(token) - 0.12, 0.72, linewidth=0,
                          facecolor=COLOURS["embedding"], alpha=shade)
            )  # fmt: skip
            for offset, character in enumerate(token):
                shown = {"\n": "↵", " ": "␣"}.get(character, character)
                ax.text(at + offset + 0.5, -row, shown, ha="center", va="center", fontsize=9.5,
                        family="DejaVu Sans Mono")  # fmt: skip
            at += len(token)
    ax.text(length + 0.6, 0.62, "tokens", fontsize=9, va="center", ha="left")
    ax.set(xlim=(-9.5, length + 5), ylim=(-len(rows) + 0.5, 0.85))
    ax.axis("off")
    return figure


def compression_and_zipf(
    merges: Sequence[int],
    compression: Mapping[str, Sequence[float]],
    frequencies: Sequence[int],
    vocabulary: int,
) -> Figure:
    """Draw characters a token against the number of merges, and how often each token occurs.

    Args:
        merges: numbers of merges, the first of them 0.
        compression: label to characters a token with that many merges; shorter where they end.
        frequencies: how often each token occurs, most frequent first.
        vocabulary: entries that there are.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.5))
    looks = (("embedding", "-", "o"), ("other", "--", "s"), ("residual", "-.", "^"))
    for (label, values), (colour, style, mark) in zip(compression.items(), looks, strict=True):
        left.plot(merges[: len(values)], values, style, marker=mark, markersize=5,
                  color=COLOURS[colour], label=label)  # fmt: skip
    left.set_xscale("symlog", linthresh=30, linscale=0.5)
    ticks = [0, 100, 1000, 10_000]
    left.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    left.minorticks_off()
    left.set(xlabel="merges", ylabel="characters a token", ylim=(0.8, 3.6))
    left.legend(fontsize=9, loc="lower right")
    ranks = np.arange(1, len(frequencies) + 1)
    right.plot(ranks, frequencies, color=COLOURS["embedding"])
    line = frequencies[9] * 10 / ranks
    right.plot(ranks, line, "--", color=COLOURS["residual"], linewidth=1.2)
    right.text(60, line[59] * 1.7, "slope −1", fontsize=9, color=COLOURS["residual"])
    right.axvspan(len(frequencies), vocabulary, color=COLOURS["other"], alpha=0.3, linewidth=0)
    right.text(math.sqrt(len(frequencies) * vocabulary), 60_000, "never", fontsize=9,
               ha="center", va="center")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="rank of the token", ylabel="occurrences",
              xlim=(0.8, vocabulary), ylim=(0.7, 120_000))  # fmt: skip
    right.minorticks_off()
    return figure


def floors(
    in_sample: Sequence[float],
    held_out: Sequence[float],
    levels: Mapping[str, float],
) -> Figure:
    """Draw what counting can reach, against the number of tokens looked back at.

    Args:
        in_sample: nats a token with 0, 1, … tokens of context, on the text that was counted.
        held_out: the same on other text.
        levels: label to loss in nats a token, drawn as horizontal lines.
    """
    figure, ax = new_figure(figsize=(7.2, 3.9))
    x = np.arange(len(in_sample))
    ax.plot(x, held_out, "o-", color=COLOURS["right"], label="tables of the rest, on held-out text")
    ax.plot(x, in_sample, "s--", color=COLOURS["wrong"], label="tables of the text, on itself")
    for label, value in levels.items():
        ax.axhline(value, color=COLOURS["residual"], linewidth=1.1, linestyle=":")
        ax.text(len(x) - 0.95, value + 0.1, label, ha="right", va="bottom", fontsize=9,
                color=COLOURS["residual"])  # fmt: skip
    ax.set(xlabel="tokens looked back at", ylabel="nats a token", ylim=(0, 12),
           xlim=(-0.2, len(x) - 0.9))  # fmt: skip
    ax.set_xticks(x)
    ax.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 0.88))
    return figure


def _cell(ax: Axes, x: float, y: float, width: float, look: tuple[str, float], label: str) -> None:
    """Draw one token as a box with its lower left corner at (x, y)."""
    name, alpha = look
    ax.add_patch(
        Rectangle((x + 0.04, y + 0.05), width - 0.08, 0.9, facecolor=COLOURS[name],
                  alpha=alpha, linewidth=0)
    )  # fmt: skip
    ax.text(x + width / 2, y + 0.5, label, ha="center", va="center", fontsize=8.5,
            linespacing=1.0)  # fmt: skip


def batches(tokens: Sequence[str], B: int, T: int) -> Figure:
    """Draw which token of the text goes where in the first two batches.

    Args:
        tokens: the first 2 · B · T + 1 tokens.
        B: sequences in a batch.
        T: tokens in a sequence.
    """
    looks = [
        ("embedding", 0.75),
        ("embedding", 0.35),
        ("right", 0.6),
        ("right", 0.25),
        ("other", 0.25),
    ]
    figure, ax = new_figure(figsize=(7.5, 4.4))
    width = (2 * T + 1) / len(tokens)  # of a place in the strip; the tables' cells have width 1
    for place in range(len(tokens)):
        _cell(ax, place * width, 0, width, looks[place // T], str(place))
    ax.text(0, 1.15, "places in the text", fontsize=9.5)
    for batch in range(2):
        top = -0.95 - batch * (B + 1.15)
        for side, (name, shift) in enumerate((("x, what the model reads", 0),
                                              ("y, what it must predict", 1))):  # fmt: skip
            left = side * (T + 1)
            ax.text(left, top, f"batch {batch}: {name}", fontsize=9.5, va="center")
            for row in range(B):
                for column in range(T):
                    place = (batch * B + row) * T + column + shift
                    shown = tokens[place].strip(" ").replace("\n", "↵")
                    _cell(ax, left + column, top - 1.35 - row, 1, looks[place // T],
                          f"{place}\n{shown}")  # fmt: skip
    ax.set(xlim=(-0.1, 2 * T + 1.1), ylim=(-0.95 - 2 * (B + 1.15) + 0.7, 1.6))
    ax.axis("off")
    return figure


def overlap(lengths: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of the held-out text's n-grams that the training text has too.

    Args:
        lengths: n, the tokens in an n-gram.
        shares: label to share at each n.
    """
    figure, ax = new_figure(figsize=(7.0, 3.3))
    looks = (("right", "-", "o"), ("wrong", "--", "s"))
    for (label, values), (colour, style, mark) in zip(shares.items(), looks, strict=True):
        drawn = np.where(np.asarray(values) > 0, values, np.nan)
        ax.plot(lengths, drawn, style, marker=mark, color=COLOURS[colour], label=label)
    ax.set(yscale="log", xlabel="n, tokens in a row", ylabel="share also in the training text")
    ax.set_xticks(lengths)
    ticks = [1, 0.1, 0.01, 0.001]
    ax.set_yticks(ticks, [f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return figure
