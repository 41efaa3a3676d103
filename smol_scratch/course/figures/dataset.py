"""Figures of notebook 07, the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.style import COLOURS, describe, new_figure


def contents(lengths: Mapping[str, int], cut: tuple[str, float]) -> Figure:
    """Draw how long each play is, and what is missing of one.

    Args:
        lengths: title to characters, in the order of the file.
        cut: the play of which the file has only a part, and which share of it.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    rows = np.arange(len(lengths))
    thousands = np.array(list(lengths.values())) / 1000
    ax.barh(rows, thousands, color=COLOURS["embedding"], height=0.7)
    row = list(lengths).index(cut[0])
    ax.barh(row, thousands[row] / cut[1] - thousands[row], left=thousands[row], height=0.7,
            fill=False, edgecolor=COLOURS["wrong"], linestyle="--", linewidth=1.3)  # fmt: skip
    ax.text(thousands[row] / cut[1] + 3, row, "missing", va="center", fontsize=9.5,
            color=COLOURS["wrong"])  # fmt: skip
    ax.set_yticks(rows, list(lengths), fontsize=9.5)
    ax.set(xlabel="characters (thousands)")
    ax.set_title("Not the complete works: nine plays, the last cut off")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return describe(
        figure,
        "Bars of the length of each play in the file: " + ", ".join(lengths) + ". Of the last one, "
        f"{cut[0]}, {cut[1]:.0%} is there and the rest is drawn as missing.",
    )


def scale(
    own: Mapping[str, float], held_out: Mapping[str, float], bits: float, guess: float
) -> Figure:
    """Draw losses on one scale: nats per token, perplexity, bits per byte.

    Args:
        own: label to nats per token on the text that was counted or trained on.
        held_out: label to nats per token on other text.
        bits: bits per byte for each nat per token.
        guess: nats per token of guessing.
    """
    figure, ax = new_figure(figsize=(7.4, 5.0))
    ax.axhline(guess, color=COLOURS["other"], linestyle=":", linewidth=1.4)
    ax.text(0.5, guess - 0.12, "guessing: all tokens equally likely", ha="center", va="top",
            fontsize=9.5)  # fmt: skip
    for x, marks, colour in ((0.16, own, "wrong"), (0.72, held_out, "right")):
        below = np.inf
        for label, value in sorted(marks.items(), key=lambda item: -item[1]):
            mark = "s" if label.endswith("grams") else "D"
            ax.plot(x - 0.05, value, mark, color=COLOURS[colour], markersize=8, zorder=3,
                    markeredgecolor="white")  # fmt: skip
            below = min(value, below - 0.42)  # labels of close marks make room for each other
            ax.text(x, below, f"{label}: {value:.1f}", va="center", fontsize=9.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    for x, words, colour in ((0.16, "on the text itself", "wrong"),
                             (0.72, "on text held out", "right")):  # fmt: skip
        ax.text(x - 0.06, 8.4, words, fontsize=11, color=COLOURS[colour], weight="bold")
    ax.axvline(0.6, color=COLOURS["other"], linewidth=0.8, ymax=0.8)
    for x, mark, words in ((0.13, "s", "a table that counts"), (0.69, "D", "a neural network")):
        ax.plot(x - 0.02, 9.6, mark, color=COLOURS["residual"], markersize=7)
        ax.text(x + 0.03, 9.6, words, va="center", fontsize=9.5)
    ax.set(xlim=(0.05, 1.12), ylim=(0, 11.6), ylabel="nats per token")
    ax.set_xticks([])
    ax.grid(False)
    choices = [1, 3, 10, 30, 100, 1000, 10_000, 49_152]
    right = ax.secondary_yaxis("right")
    right.set_yticks(np.log(choices), [f"{c:,}" for c in choices])
    right.set_ylabel("perplexity: as if choosing among so many")
    far = ax.secondary_yaxis(-0.16, functions=(lambda n: n * bits, lambda b: b / bits))
    far.set_ylabel("bits per byte")
    ax.set_title("Left: what is remembered. Right: what can be predicted")
    return describe(
        figure,
        "One scale of losses in nats per token, perplexity and bits per byte. On the text itself: "
        + ", ".join(f"{label} {value:.1f}" for label, value in own.items())
        + ". On text held out: "
        + ", ".join(f"{label} {value:.1f}" for label, value in held_out.items())
        + f". Guessing is {guess:.1f}.",
    )


def splits(dots: Mapping[str, Sequence[float]], gaps: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw what a table reaches on differently chosen held-out text, and what neighbours are worth.

    Args:
        dots: way of choosing to the losses of several choices.
        gaps: distance to neighbours to (mean difference, standard error).
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.4, 3.5), width_ratios=[1.2, 1])
    for x, (values, colour) in enumerate(zip(dots.values(), ("right", "wrong"), strict=True)):
        offsets = 0.09 * (np.arange(len(values)) % 3 - 1)  # neighbours in size stand apart
        left.plot(x + offsets, sorted(values), "o", color=COLOURS[colour], alpha=0.75, markersize=6)
        left.plot([x - 0.25, x + 0.25], [np.mean(values)] * 2, color=COLOURS[colour], linewidth=2.5)
        left.text(x + 0.29, np.mean(values), f"{np.mean(values):.2f}", va="center", fontsize=10)
    left.set_xticks(range(len(dots)), list(dots))
    left.set(xlim=(-0.5, len(dots) - 0.3), ylabel="nats per token")
    left.set_title("Trigrams on ten choices\nof held-out text, each way")
    means, errors = (np.array(column) for column in zip(*gaps.values(), strict=True))
    right.errorbar(range(len(gaps)), means, 2 * errors, fmt="o", color=COLOURS["residual"],
                   capsize=4, markersize=7)  # fmt: skip
    right.axhline(0, color=COLOURS["other"], linewidth=1)
    right.set_xticks(range(len(gaps)), list(gaps))
    right.set(xlim=(-0.5, len(gaps) - 0.5), ylabel="extra loss (nats per token)",
              xlabel="neighbours left out on each side")  # fmt: skip
    right.set_title("What neighbours give away\n(mean ± 2 standard errors)")
    for ax in (left, right):
        ax.grid(False, axis="x")
    return describe(
        figure,
        "Left: ten losses each for two ways to hold out a tenth of the text, without overlap. "
        + ", ".join(f"{way}: mean {np.mean(values):.2f}" for way, values in dots.items())
        + ". Right: how much the loss rises "
        "when the neighbours of the held-out sequences are not counted, against a control, with "
        "bars of two standard errors.",
    )


def cuts(rows: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Draw one line of text cut into tokens in several ways, each token a box.

    Args:
        rows: label to the tokens; joined, they are the same text in every row.
        title: of the picture.
    """
    figure, ax = new_figure(figsize=(7.5, 0.55 * len(rows) + 0.5))
    length = len("".join(next(iter(rows.values()))))
    for row, (label, tokens) in enumerate(rows.items()):
        ax.text(-0.6, -row, label, ha="right", va="center", fontsize=9.5)
        ax.text(length + 0.6, -row, str(len(tokens)), va="center", fontsize=10)
        at = 0
        for number, token in enumerate(tokens):
            shade = 0.6 if number % 2 else 0.2
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
    ax.set_title(title)
    said = "; ".join(f"{label}: {len(tokens)} tokens" for label, tokens in rows.items())
    return describe(figure, f"{title}. One line of text in boxes, a box for each token. {said}.")


def _cell(ax: Axes, x: float, y: float, width: float, look: tuple[str, float], label: str) -> None:
    """Draw one token as a box with its lower left corner at (x, y)."""
    name, alpha = look
    ax.add_patch(
        Rectangle((x + 0.04, y + 0.05), width - 0.08, 0.9, facecolor=COLOURS[name],
                  alpha=alpha, linewidth=0)
    )  # fmt: skip
    lines = label.split("\n")
    for height, line in zip((0.36,) if len(lines) == 1 else (0.54, 0.18), lines, strict=True):
        ax.text(x + width / 2, y + height, line, ha="center", va="baseline", fontsize=8.5)


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
    ax.set_title("The targets are the text, moved by one")
    return describe(
        figure,
        f"A strip of {len(tokens)} tokens, and the first two batches of {B} rows of {T} cut from "
        "it. Each row of y is the row of x moved by one token; its last token is the first of the "
        "next row, and the last of batch 0 is the first of batch 1.",
    )
