"""Figures of notebook 06, the assembled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

_LINE = COLOURS["residual"]


def same_matrix_twice(
    names: Sequence[str], matrix: Sequence[Sequence[float]], read: str, final: Sequence[float],
    came: str,
) -> Figure:  # fmt: skip
    """Draw the way of one token through a toy model: look up, blocks, norm, dot products.

    Args:
        names: the tokens of the vocabulary.
        matrix: the embedding matrix, one row for each token, (V, C).
        read: the token that goes in.
        final: its vector after the last norm, (C,).
        came: the token that really came next.
    """
    rows = np.asarray(matrix, dtype=float)  # (V, C)
    logits = rows @ np.asarray(final, dtype=float)
    chances = np.exp(logits) / np.exp(logits).sum()
    figure, ax = canvas(20.6, 5.9)
    heights = [4.1 - 1.0 * i for i in range(len(names))]
    for left, title in ((1.0, "embedding: look up a row"), (11.0, "head: same table")):
        ax.text(left + 0.7, 5.1, title, ha="center", fontsize=10, color=COLOURS["embedding"])
        for name, row, y in zip(names, rows, heights, strict=True):
            chosen = left > 5 or name == read
            cells(ax, left, y, [float(v) for v in row], "embedding" if chosen else "other")
            ax.text(left - 0.15, y + HIGH / 2, name, ha="right", va="center", fontsize=10,
                    style="italic")  # fmt: skip
    middle = heights[1]
    at = heights[list(names).index(read)] + HIGH / 2
    arrow(ax, (3.05, at), (3.75, middle + HIGH / 2))
    box(ax, 3.8, middle - 0.2, 1.5, "blocks", "residual", height=1.0, filled=False)
    box(ax, 5.8, middle - 0.2, 1.2, "norm", "norm", height=1.0)
    arrow(ax, (5.3, middle + HIGH / 2), (5.75, middle + HIGH / 2))
    arrow(ax, (7.0, middle + HIGH / 2), (7.45, middle + HIGH / 2))
    cells(ax, 7.5, middle, [float(v) for v in final], "residual")
    ax.add_patch(
        Rectangle((10.15, heights[-1] - 0.15), 3.0, heights[0] - heights[-1] + HIGH + 0.3,
                  fill=False, edgecolor=COLOURS["embedding"], linestyle="--")
    )  # fmt: skip
    arrow(ax, (9.55, middle + HIGH / 2), (10.05, middle + HIGH / 2))
    ax.text(14.2, 1.45, "dot product with each row", ha="center", fontsize=10)
    ax.text(14.6, 5.1, "logits", ha="center", fontsize=10)
    ax.text(17.6, 5.1, "probabilities", ha="center", fontsize=10)
    for name, logit, chance, y in zip(names, logits, chances, heights, strict=True):
        cells(ax, 14.1, y, [float(logit)], "other")
        arrow(ax, (15.1, y + HIGH / 2), (15.8, y + HIGH / 2))
        ax.add_patch(
            Rectangle((15.9, y + 0.05), 3.0 * chance, 0.5,
                      facecolor=COLOURS["right" if name == came else "other"])
        )  # fmt: skip
        ax.text(16.0 + 3.0 * chance, y + HIGH / 2, f"{chance:.2f}", va="center", fontsize=10)
    arrow(ax, (13.2, middle + HIGH / 2), (14.05, middle + HIGH / 2))
    surprise = -np.log(chances[list(names).index(came)])
    at = heights[list(names).index(came)] + HIGH / 2
    ax.text(17.9, at, f"“{came}” came:\n{surprise:.2f} nats", fontsize=10, va="center",
            color=COLOURS["right"])  # fmt: skip
    low = heights[-1] - 0.15
    ax.plot([2.0, 2.0, 11.2, 11.2], [low, 0.85, 0.85, low], ":", color=COLOURS["embedding"],
            linewidth=1.4)  # fmt: skip
    ax.text(6.6, 0.2, "one table, used twice: what the head learns, the lookup reads",
            ha="center", fontsize=10, color=COLOURS["embedding"])  # fmt: skip
    return describe(figure, """A toy model of three tokens: the token “or” picks its row of the
        embedding; blocks and a norm make a vector of it; its dot product with each row of the same
        table gives the logits, and a softmax the probabilities. “be” came, with a probability of
        about a quarter.""")  # fmt: skip


def starts(rows: Mapping[str, Mapping[str, Any]], knows_nothing: float, log: float) -> Figure:
    """Draw the losses with which fresh models begin, a dot for each seed.

    Args:
        rows: kind of model to its ``losses``, and what the ``formula`` expects.
        knows_nothing: ln V.
        log: the first loss of the original project's log.
    """
    figure, ax = new_figure(figsize=(7.4, 3.9))
    right = 11.85
    for place, (name, row) in enumerate(rows.items()):
        losses, formula = row["losses"], row["formula"]
        if min(losses) > right:  # off the paper
            ax.annotate("", (right - 0.02, place), (right - 0.25, place),
                        arrowprops={"arrowstyle": "-|>", "color": COLOURS["wrong"]})  # fmt: skip
            text = f"around {np.mean(losses):.1f}; the formula would say {formula:.1f}"
            ax.text(right - 0.28, place, text, ha="right", va="center", fontsize=10)
            continue
        colour = COLOURS["wrong" if "norm" in name else "right"]
        above: dict[int, int] = {}
        for loss in losses:  # dots that would cover each other are stacked
            column = round(loss / 0.02)
            above[column] = above.get(column, -1) + 1
            ax.plot(0.02 * column, place - 0.12 * above[column], "o", color=colour, markersize=4.5)
        mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
        ax.plot([mean - error, mean + error], [place + 0.2] * 2, color=colour, linewidth=4)
        ax.plot([formula] * 2, [place + 0.06, place + 0.34], color="black", linewidth=2)
    ax.plot([], [], "|", color="black", markersize=12, markeredgewidth=2, label="formula")
    ax.plot([], [], color=COLOURS["other"], linewidth=4, label="mean ± SE")
    ax.plot([], [], "o", color=COLOURS["other"], markersize=4.5, label="one model")
    ax.legend(fontsize=10, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    ax.axvline(knows_nothing, color=_LINE, linestyle="--", linewidth=1.2)
    ax.axvline(log, color=_LINE, linestyle=":", linewidth=1.6)
    low = len(rows) - 0.45
    ax.text(knows_nothing - 0.01, low, f"ln V = {knows_nothing:.2f}", fontsize=10, ha="right")
    ax.text(log + 0.012, low, f"{log:.2f}: first line of the original log", fontsize=10)
    ax.set_yticks(range(len(rows)), [f"std {name}" for name in rows])
    ax.set(xlabel="first loss (nats per token)", xlim=(10.5, right), ylim=(low + 0.1, -0.65))
    return describe(figure, """First losses of twenty fresh models of each of six kinds, as dots.
        With weights of standard deviation 0.02, with and without a head of its own and even without
        the final norm, they lie around 10.9 and 11; with 1/24 around 11.3, but without the norm far
        off the paper. The original project's first loss lies among those of 0.02.""")  # fmt: skip


def streams(curves: Mapping[str, Sequence[float]], rounding: float, tolerance: float) -> Figure:
    """Draw how far the streams of models are from the oracle's, block by block.

    Args:
        curves: broken model to relative distance after 0, 1, … blocks.
        rounding: below it stays the right one.
        tolerance: what is called rounding.
    """
    figure, ax = new_figure(figsize=(7.4, 4.0))
    looks = {"wrong": "-", "key": "--", "query": "-.", "value": ":", "down": "-"}
    lowest = rounding / 5
    ax.fill_between([-0.5, 30], lowest, rounding, color="#DDDDDD", linewidth=0)
    ends = [((lowest * rounding) ** 0.5, "rounding, measured")]
    for (name, values), (colour, style) in zip(curves.items(), looks.items(), strict=True):
        drawn = np.maximum(np.asarray(values, dtype=float), rounding)  # and zero has no place here
        wide = colour == "down"  # lies under another curve for most of the way
        ax.plot(drawn, style, color=COLOURS[colour], linewidth=4.5 if wide else 2.2,
                alpha=0.55 if wide else 1, zorder=1.9 if wide else 2)  # fmt: skip
        ends.append((float(drawn[-1]), name))
    place = 0.0
    for end, name in sorted(ends):  # names that would cover each other move up
        place = max(end, place * 2.4)
        ax.text(30.5, place, name, fontsize=10, va="center")
    for height, text in ((tolerance, "our tolerance"), (1e-3, "a generous tolerance")):
        ax.plot([-0.5, 30], [height] * 2, color=_LINE, linestyle=(0, (1, 2)), linewidth=1.4)
        ax.text(29.8, height * 1.15, text, fontsize=10, ha="right", va="bottom")
    ax.set(yscale="log", xlabel="blocks passed", ylabel="distance from the oracle's stream",
           xlim=(-0.5, 43), ylim=(lowest, 8))  # fmt: skip
    ax.set_xticks(range(0, 31, 5))
    return describe(figure, """Distance of the stream from the oracle's, by blocks passed, on a
        logarithmic axis. A band at the bottom is rounding: the right model, its attention adding in
        another order, stays in it, well below the tolerance of a hundred-thousandth. Each of the
        five broken ones leaves it in the block of its fault and is above the tolerance at the end:
        the wrong eps lowest, between the tolerance and a thousandth; the wrong theta, the exchanged
        blocks and the transposed matrix around a tenth; the swapped norms above the vector's own
        length.""")  # fmt: skip


def rungs(ladders: Mapping[str, Mapping[str, float]], tolerance: float) -> Figure:
    """Draw which rungs break in which model, and by how much.

    Args:
        ladders: model to its rungs: name to relative distance.
        tolerance: what is called rounding.
    """
    figure, ax = new_figure(figsize=(7.6, 3.5))
    names = list(next(iter(ladders.values())))
    bounds = ((tolerance, "#EEEEEE", "holds"), (1e-3, "#F6C28B", "breaks by up to 10⁻³"),
              (0.3, "#E07B24", "up to 0.3"), (np.inf, "#8F3F00", "more"))  # fmt: skip
    for row, ladder in enumerate(ladders.values()):
        for column, far in enumerate(ladder.values()):
            colour = next(colour for bound, colour, _ in bounds if far < bound)
            left = column + (column > 0) * 0.5 + (column > 30) * 0.5 + (column == 33) * 0.5
            ax.add_patch(Rectangle((left, row - 0.4), 0.9, 0.8, facecolor=colour))
            if far >= tolerance:
                ax.text(left + 0.45, row, "×", ha="center", va="center", fontsize=9,
                        color="white" if colour == "#8F3F00" else "black")  # fmt: skip
    for _, colour, label in bounds:
        ax.add_patch(Rectangle((0, -9), 1, 1, facecolor=colour, label=label))
    figure.legend(fontsize=10, ncols=4, loc="outside upper center")
    ax.text(16.5, len(ladders) + 0.75, "block", ha="center", fontsize=11)
    ax.set_yticks(range(len(ladders)), list(ladders))
    blocks = [f"{number}" for number in range(0, len(names) - 4, 5)]
    at = [0.45, *(1.95 + int(number) for number in blocks), 32.45, 33.45, 34.95]
    ax.set_xticks(at, ["embedding", *blocks, "norm", "head", "whole model"])
    for label in ax.get_xticklabels():
        if not label.get_text().isdigit():
            label.set(rotation=90)
    ax.set(xlim=(-0.3, 35.8), ylim=(len(ladders) - 0.5, -0.5))
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return describe(figure, """A table of eight models and 34 rungs: embedding, thirty blocks, norm,
        head, whole model. The right model breaks none. The wrong eps breaks block 0, the wrong
        theta all thirty blocks, two faults one block each, two the norm or the head; and each also
        breaks the whole model. Block 4 before block 3 breaks the whole model alone. The wrong eps
        breaks its rungs by less than a thousandth.""")  # fmt: skip


def drift(seen: np.ndarray, moved: np.ndarray, gradient: np.ndarray, *, steps: int, rate: float,
          width: int) -> Figure:  # fmt: skip
    """Draw the gradient of each row of a tied table, and how far the optimizer moved it.

    Args:
        seen: whether a token is in the batch, (V,).
        moved: how far the row has moved after ten steps, (V,).
        gradient: length of the row's gradient at the first step, (V,).
        steps: of the optimizer.
        rate: its learning rate.
        width: numbers in a row.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.1))
    limit = steps * rate * width**0.5
    for ax, values, title, unit in (
        (
            axes[0],
            gradient,
            "Gradients: hundreds of times apart",
            "length of a gradient, first step",
        ),
        (axes[1], moved, "After ten steps: about equally far", "distance moved in ten steps"),
    ):
        even = ax is axes[1]
        low = 0 if even else max(float(values.min()), 1e-7)
        edges = (np.linspace if even else np.geomspace)(low, values.max(), 60)
        for mask, colour, label in (
            (seen, "right", "in the batch"), (~seen, "other", "not in it"),
        ):  # fmt: skip
            height, _ = np.histogram(values[mask], edges)
            ax.fill_between(edges[1:], height / height.max(), step="pre", color=COLOURS[colour],
                            alpha=0.6, linewidth=0, label=label)  # fmt: skip
            middle = float(np.median(values[mask]))
            ax.plot([middle] * 2, [0, 1.08], color=COLOURS[colour], linewidth=2)
        ax.set(xscale="linear" if even else "log", title=title, xlabel=unit, yticks=[])
        ax.set_ylim(0, None)
    axes[1].axvline(limit, color=_LINE, linestyle=":", linewidth=1.4)
    axes[1].text(0.0, 1.05, "dotted: the\nlearning rate in\neach number,\nin each step",
                 fontsize=9.5, va="top", linespacing=1.3)  # fmt: skip
    axes[0].set_ylabel("rows, each kind\nscaled to its peak")
    axes[0].legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.48, 1.0))
    return describe(figure, """Two histograms over the rows of a tied table, with the median of each
        kind of row. Left: gradients of tokens that are in the batch are hundreds of times longer
        than those of others. Right: after ten steps of AdamW both kinds of rows have moved about
        equally far, not far below the longest way that the learning rate allows.""")  # fmt: skip


def losses(
    curves: Mapping[str, Sequence[float]], floor: float, expected: float, labels: tuple[str, str]
) -> Figure:
    """Draw training losses against a floor that no honest model can pass.

    Args:
        curves: label to loss in nats at each step, the right one first.
        floor: loss in nats.
        expected: what the formula says of a fresh model.
        labels: of floor and formula.
    """
    figure, ax = new_figure(figsize=(7.2, 3.0))
    for (label, values), colour, style in zip(
        curves.items(), ("right", "wrong"), ("-", "--"), strict=True
    ):
        ax.plot(values, style, color=COLOURS[colour])
        ax.text(len(values) + 1, values[-1], label, va="center", fontsize=10)
    ax.plot([0, len(values)], [floor, floor], ":", color="black", linewidth=1.4, zorder=3)
    ax.text(30, floor - 0.08, labels[0], fontsize=10, va="top")
    ax.plot(0, expected, "d", color="black", markersize=8, clip_on=False, zorder=4)
    ax.text(2.5, expected + 0.12, labels[1], fontsize=10, va="bottom")
    ax.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(-0.1, expected + 0.6),
           xlim=(0, 1.2 * len(values)), xticks=range(0, len(values) + 1, 20))  # fmt: skip
    return describe(figure, """Two training losses on noise. With targets shifted the loss starts at
        the formula's value, falls to ln 16 within some fifteen steps and stays there. Not shifted,
        it starts half a nat lower and falls to zero within some twenty steps.""")  # fmt: skip
