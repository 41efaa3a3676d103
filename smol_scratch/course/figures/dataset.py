"""Figures of notebook 07, the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

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
    ax.set_title("Not the complete works: nine plays, with gaps, the last one cut off")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return describe(
        figure,
        "Bars of the length of each play in the file: " + ", ".join(lengths) + ". Of the last one, "
        f"{cut[0]}, {cut[1]:.0%} is there and the rest is drawn as missing.",
    )


def scale(
    tables: Mapping[str, tuple[float, float]],
    alone: tuple[str, float],
    networks: Mapping[str, tuple[int, float, float, str]],
    guess: float,
) -> Figure:
    """Draw losses on one scale, on text that was counted and on text that was not.

    Args:
        tables: label to nats per token on the last tenth, counted too and not counted.
        alone: label and nats per token of one more table on text that it counted.
        networks: label to the side (0: on the text trained on, 1: on the last tenth), nats per
            token, their standard error, and a remark or "".
        guess: nats per token of guessing.
    """
    figure, ax = new_figure(figsize=(7.4, 5.2))
    colours = COLOURS["wrong"], COLOURS["right"]
    ax.axhline(guess, color=COLOURS["other"], linestyle=":", linewidth=1.4)
    ax.text(0.5, guess - 0.15, "guessing: all tokens equally likely", ha="center", va="top",
            fontsize=9.5)  # fmt: skip
    # By side: label to its value. Labels of close marks make room for each other.
    labels: tuple[dict[str, float], dict[str, float]] = ({}, {})
    apart = 0.05 * (np.arange(len(tables)) % 2)  # where marks lie close, both can be seen
    for shift, (label, pair) in zip(apart, tables.items(), strict=True):
        ax.plot((0, 1 - shift), pair, color=COLOURS["other"], linewidth=1.0, zorder=1)
        for side in (0, 1):
            ax.plot(side * (1 - shift), pair[side], "s", color=colours[side], markersize=7,
                    zorder=3, markeredgecolor="white")  # fmt: skip
            labels[side][label] = pair[side]
    ax.plot(0, alone[1], "s", color=colours[0], markersize=7, markerfacecolor="none", zorder=3)
    ax.text(0.07, alone[1], f"{alone[0]} {alone[1]:.1f}", va="center", fontsize=9.5)
    for label, (side, value, error, _) in networks.items():
        x = side + (0.07 if side else -0.07)
        ax.errorbar(x, value, error, fmt="D", color=colours[side], markersize=5, capsize=4,
                    linewidth=1.2, zorder=3)  # fmt: skip
        labels[side][label] = value
    for side, x, to in ((0, -0.14, "right"), (1, 1.14, "left")):
        below = np.inf
        for label, value in sorted(labels[side].items(), key=lambda item: -item[1]):
            below = min(value, below - 0.42)
            ax.text(x, below, f"{label} {value:.1f}", ha=to, va="center", fontsize=9.5)
            if label in networks and (remark := networks[label][3]):
                below -= 0.38
                ax.text(x, below, remark, ha=to, va="center", fontsize=9)
    sides = "counted or\ntrained on", "last tenth,\nnot counted"
    ax.set_xticks((0, 1), sides, fontsize=11, weight="bold")
    ax.tick_params(axis="x", length=0)
    for tick, colour in zip(ax.get_xticklabels(), colours, strict=True):
        tick.set_color(colour)
    for mark, words in (
        ("s", "a table that counts"),
        ("D", "a neural network (± 1 standard error)"),
    ):
        ax.plot([], [], mark, color=COLOURS["residual"], markersize=7, label=words)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=2, fontsize=9.5)
    ax.set(xlim=(-1.05, 2.1), ylim=(0, 11.6), ylabel="nats per token")
    ax.grid(False)
    choices = [1, 3, 10, 30, 100, 1000, 10_000, 49_152]
    right = ax.secondary_yaxis("right")
    right.set_yticks(np.log(choices), [f"{c:,}" for c in choices])
    right.set_ylabel("perplexity (equally likely choices)")
    ax.set_title("Longer contexts help most on the text that was counted")
    return describe(
        figure,
        "One scale of losses in nats per token and perplexity. Tables on the last tenth, counted "
        "too and not counted, joined by lines: "
        + ", ".join(f"{label} {own:.1f} and {new:.1f}" for label, (own, new) in tables.items())
        + f". A hollow square among the counted: {alone[0]} {alone[1]:.1f}".replace("\n", " ")
        + ". Networks: "
        + ", ".join(
            f"{label} {value:.1f} on {('the text trained on', 'the last tenth')[side]}"
            + (f" ({remark})" if remark else "")
            for label, (side, value, _, remark) in networks.items()
        )
        + f". Guessing is {guess:.1f}.",
    )


def splits(
    dots: Mapping[str, Sequence[float]],
    marked: tuple[float, str],
    gaps: Mapping[int, tuple[float, float]],
) -> Figure:
    """Draw what a table reaches on differently chosen held-out text, and what neighbours are worth.

    Args:
        dots: way of choosing to the losses of several choices.
        marked: one loss of the first way, and what it is.
        gaps: neighbours left out on each side to (mean difference, standard error).
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.4, 3.7), width_ratios=[1.2, 1])
    looks = (("o", COLOURS["residual"]), ("^", COLOURS["embedding"]))
    for x, (losses, (mark, colour)) in enumerate(zip(dots.values(), looks, strict=True)):
        values = np.sort(np.array(losses))
        offsets = 0.11 * (np.arange(len(values)) % 3 - 1)  # neighbours in size stand apart
        left.plot(x + offsets, values, mark, color=colour, alpha=0.75, markersize=6)
        left.plot([x - 0.25, x + 0.25], [np.mean(values)] * 2, color=colour, linewidth=2.5)
        left.text(x + 0.29, np.mean(values), f"{np.mean(values):.2f}", va="center", fontsize=10)
        if not x:
            at = int(np.argmin(np.abs(values - marked[0])))
            place = x + offsets[at], values[at]
            left.plot(*place, "o", markerfacecolor="none", markeredgecolor=colour, markersize=11)
            line = {"arrowstyle": "-", "shrinkB": 6, "linewidth": 0.8}
            left.annotate(marked[1], place, (x + 0.45, values[at]), va="center", fontsize=9.5,
                          arrowprops=line)  # fmt: skip
    left.set_xticks(range(len(dots)), list(dots))
    left.set(xlim=(-0.5, len(dots) - 0.3), ylabel="nats per token")
    left.set_title("Trigrams on ten choices\nof a held-out tenth, each way")
    means, errors = (np.array(column) for column in zip(*gaps.values(), strict=True))
    right.errorbar(list(gaps), means, errors, fmt="o", color=COLOURS["residual"],
                   capsize=4, markersize=6)  # fmt: skip
    right.axhline(0, color=COLOURS["other"], linewidth=1)
    right.set_xticks(list(gaps))
    right.set(xlim=(-1, max(gaps) + 3), ylabel="loss above the control's\n(nats per token)",
              xlabel="neighbours left out, each side")  # fmt: skip
    right.set_title("What neighbours give away\n(mean ± 1 standard error)")
    for ax in (left, right):
        ax.grid(False, axis="x")
    return describe(
        figure,
        "Left: ten losses each for two ways to hold out a tenth of the text, without overlap. "
        + ", ".join(f"{way}: mean {np.mean(values):.2f}" for way, values in dots.items())
        + f". {marked[1].capitalize()} is among the highest. Right: the loss rises over that of a "
        "control when the neighbours of the held-out sequences are not counted, and the more, the "
        "more of them.",
    )


def cuts(
    rows: Mapping[str, Sequence[str]], title: str, marked: Mapping[str, Set[int]], meaning: str
) -> Figure:
    """Draw one piece of text cut into tokens in several ways, each token a box.

    Args:
        rows: label to the tokens; joined, they are the same text in every row.
        title: of the picture.
        marked: label to the tokens, by their places in the row, that have a colour.
        meaning: of the colour.
    """
    figure, ax = new_figure(figsize=(7.5, 0.42 * len(rows) + 0.8))
    length = len("".join(next(iter(rows.values()))))
    margin = 0.62 * max(map(len, rows)) + 1.2
    for row, (label, tokens) in enumerate(rows.items()):
        ax.text(-0.6, -row, label, ha="right", va="center", fontsize=9.5)
        ax.text(length + 0.6, -row, str(len(tokens)), va="center", fontsize=10)
        at = 0
        for number, token in enumerate(tokens):
            shade = 0.65 if number in marked.get(label, ()) else 0.15
            ax.add_patch(
                Rectangle((at + 0.07, -row - 0.4), len(token) - 0.14, 0.8, linewidth=0,
                          facecolor=COLOURS["embedding"], alpha=shade)
            )  # fmt: skip
            for offset, character in enumerate(token):
                shown = {"\n": "↵", " ": "␣"}.get(character, character)
                ax.text(at + offset + 0.5, -row, shown, ha="center", va="center", fontsize=9.5,
                        family="DejaVu Sans Mono")  # fmt: skip
            at += len(token)
    ax.text(length + 0.6, 0.75, "tokens", fontsize=9, va="center", ha="left")
    ax.add_patch(Rectangle((0.07, 0.6), 0.86, 0.3, linewidth=0, facecolor=COLOURS["embedding"],
                           alpha=0.65))  # fmt: skip
    ax.text(1.3, 0.75, meaning, fontsize=9, va="center", ha="left")
    ax.set(xlim=(-margin, length + 5), ylim=(-len(rows) + 0.5, 1.05))
    ax.axis("off")
    ax.set_title(title)
    said = "; ".join(
        f"{label}: {len(tokens)} tokens"
        + (
            f", marked {', '.join(repr(tokens[n]) for n in sorted(marked[label]))}"
            if marked.get(label)
            else ""
        )
        for label, tokens in rows.items()
    )
    return describe(
        figure,
        f"{title}. The same text in boxes, a box for each token; {meaning} is coloured. {said}.",
    )


def _cell(ax: Axes, x: float, y: float, width: float, look: tuple[str, float], label: str) -> None:
    """Draw one token as a box with its lower left corner at (x, y)."""
    name, alpha = look
    ax.add_patch(
        Rectangle((x + 0.04, y + 0.05), width - 0.08, 0.9, facecolor=COLOURS[name],
                  alpha=alpha, linewidth=0)
    )  # fmt: skip
    lines = label.split("\n")
    for height, line in zip((0.36,) if len(lines) == 1 else (0.54, 0.18), lines, strict=True):
        ax.text(x + width / 2, y + height, line, ha="center", va="baseline", fontsize=8)


def _shown(token: str) -> str:
    return token.strip(" ").replace("\n", "↵")


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
    figure, ax = new_figure(figsize=(7.5, 5.1))
    width = (2 * T + 1) / len(tokens)  # of a place in the strip; the tables' cells have width 1
    for place, token in enumerate(tokens):
        _cell(ax, place * width, 0, width, looks[place // T], str(place))
        ax.text((place + 0.5) * width, 1.05, _shown(token), ha="center", va="bottom", fontsize=8.5,
                rotation=90)  # fmt: skip
    ax.text(0, 2.4, "the text, token by token", fontsize=9.5)
    for batch in range(2):
        top = -0.95 - batch * (B + 1.15)
        for side, (name, shift) in enumerate((("x, what the model reads", 0),
                                              ("y, what it must predict", 1))):  # fmt: skip
            left = side * (T + 1)
            ax.text(left, top, f"batch {batch}: {name}", fontsize=9.5, va="center")
            for row in range(B):
                for column in range(T):
                    place = (batch * B + row) * T + column + shift
                    _cell(ax, left + column, top - 1.35 - row, 1, looks[place // T],
                          f"{place}\n{_shown(tokens[place])}")  # fmt: skip
    ax.set(xlim=(-0.1, 2 * T + 1.1), ylim=(-0.95 - 2 * (B + 1.15) + 0.7, 2.8))
    ax.axis("off")
    ax.set_title("The targets are the text, moved by one")
    return describe(
        figure,
        f"A strip of {len(tokens)} tokens, and the first two batches of {B} rows of {T} cut from "
        "it. Each row of y is the row of x moved by one token; its last token is the first of the "
        "next row, and the last of batch 0 is the first of batch 1.",
    )
