"""Figures of notebook 06, the assembled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    box(ax, 3.8, middle - 0.2, 1.5, "30\nblocks", "residual", height=1.0, filled=False)
    box(ax, 5.8, middle - 0.2, 1.2, "norm", "norm", height=1.0)
    arrow(ax, (5.3, middle + HIGH / 2), (5.75, middle + HIGH / 2))
    arrow(ax, (7.0, middle + HIGH / 2), (7.45, middle + HIGH / 2))
    cells(ax, 7.5, middle, [float(v) for v in final], "residual")
    ax.add_patch(
        Rectangle((10.15, heights[-1] - 0.15), 3.0, heights[0] - heights[-1] + HIGH + 0.3,
                  fill=False, edgecolor=COLOURS["embedding"], linestyle="--")
    )  # fmt: skip
    arrow(ax, (9.55, middle + HIGH / 2), (10.05, middle + HIGH / 2))
    ax.text(11.9, 1.5, "dot product with each row", ha="center", fontsize=10)
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
    ax.text(20.4, 0.75, f"“{came}” came: surprise {surprise:.2f} nats", fontsize=10, ha="right",
            color=COLOURS["right"])  # fmt: skip
    ax.annotate("", (1.6, 1.9), (11.2, 1.3), arrowprops={
        "arrowstyle": "-|>", "color": COLOURS["embedding"], "linestyle": ":", "linewidth": 1.4,
        "connectionstyle": "arc3,rad=-0.15"})  # fmt: skip
    ax.text(6.2, 0.1, "one table, used twice: what the head learns, the lookup reads",
            ha="center", fontsize=10, color=COLOURS["embedding"])  # fmt: skip
    return describe(figure, """A toy model of three tokens: the token “or” picks its row of the
        embedding; blocks and a norm make a vector of it; its dot product with each row of the same
        table gives the logits, and a softmax the probabilities. “be” came, with a probability of
        about a quarter.""")  # fmt: skip


def starts(runs: Mapping[str, Sequence[float]], formula: Mapping[str, float],
           knows_nothing: float, log: float) -> Figure:  # fmt: skip
    """Draw the losses with which fresh models begin, a dot for each seed.

    Args:
        runs: how the weights were drawn to the losses.
        formula: the same to what the formula expects.
        knows_nothing: ln V.
        log: the first loss of the original project's log.
    """
    figure, ax = new_figure(figsize=(7.2, 2.9))
    for row, (name, losses) in enumerate(runs.items()):
        spread = np.linspace(-0.22, 0.22, len(losses))
        ax.plot(sorted(losses), row + spread, "o", color=COLOURS["right"], markersize=5)
        ax.plot([formula[name]] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
        ax.text(formula[name], row - 0.42, f"formula {formula[name]:.2f}", ha="center",
                va="bottom", fontsize=10, zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    ax.axvline(knows_nothing, color=_LINE, linestyle="--", linewidth=1.2)
    ax.text(knows_nothing - 0.01, 1.0, f"ln V = {knows_nothing:.2f}\nknows nothing", fontsize=10,
            ha="right", va="center")  # fmt: skip
    ax.axvline(log, color=COLOURS["wrong"], linestyle=":", linewidth=1.6)
    ax.text(log - 0.012, 1.0, f"{log:.2f}, the\noriginal log", fontsize=10, va="center", ha="right",
            color="#8F3F00")  # fmt: skip
    ax.set_yticks(range(len(runs)), list(runs))
    ax.set(xlabel="first loss (nats per token)", xlim=(10.5, 11.7), ylim=(len(runs) - 0.5, -0.75))
    return describe(figure, """First losses of twenty fresh models for each of two standard
        deviations, as dots on an axis. Each cloud is centred on its formula, to the right of the
        logarithm of the vocabulary; the original project's first loss falls into the cloud of
        0.02.""")  # fmt: skip


def ladder(curves: Mapping[str, Sequence[float]], rounding: float) -> Figure:
    """Draw how far the streams of broken models are from the right one, block by block.

    Args:
        curves: fault to relative difference after 0, 1, … blocks; zeros are left out.
        rounding: below it, rounding alone explains a difference.
    """
    figure, ax = new_figure(figsize=(7.4, 3.6))
    looks = (("wrong", "-", 1), ("key", "--", 0.6), ("query", "-.", 1.6), ("value", ":", 1))
    for (name, values), (colour, style, nudge) in zip(curves.items(), looks, strict=True):
        drawn = np.asarray(values, dtype=float)
        drawn[drawn < 1e-8] = np.nan
        ax.plot(drawn, style, color=COLOURS[colour], linewidth=2.2)
        ax.text(30.4, drawn[-1] * nudge, name, fontsize=10, va="center")
    ax.axhspan(1e-8, rounding, color="#DDDDDD")
    ax.text(0.2, rounding / 12, "rounding: two right programs differ by less", fontsize=10)
    ax.set(yscale="log", xlabel="blocks passed", ylabel="distance from the right stream",
           xlim=(-0.5, 45), ylim=(1e-7, 8))  # fmt: skip
    ax.set_xticks(range(0, 31, 5))
    return describe(figure, """Distance of the stream from the right one, by blocks passed, on a
        logarithmic axis. The wrong eps starts in block 0 and stays at a low level above rounding;
        the wrong theta starts in block 0 and climbs; the block-5 fault jumps there and stays; the
        block-17 fault jumps there to a hundred percent and more.""")  # fmt: skip


def drift(seen: np.ndarray, moved: np.ndarray, gradient: np.ndarray) -> Figure:
    """Draw the gradient of each row of a tied table, and how far the optimizer moved it.

    Args:
        seen: whether a token is in the text, (V,).
        moved: how far the row has moved after ten steps, (V,).
        gradient: length of the row's gradient at the first step, (V,).
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 2.9))
    for ax, values, title, unit in (
        (axes[0], gradient, "Gradients: hundreds of times apart", "length of a row's gradient"),
        (axes[1], moved, "After ten steps: about equally far", "distance moved in ten steps"),
    ):
        even = ax is axes[1]
        low = 0 if even else max(float(values.min()), 1e-7)
        edges = (np.linspace if even else np.geomspace)(low, values.max(), 60)
        for mask, colour, label in ((seen, "right", "in the text"), (~seen, "other", "not in it")):
            height, _ = np.histogram(values[mask], edges)
            ax.fill_between(edges[1:], height / height.max(), step="pre", color=COLOURS[colour],
                            alpha=0.6, linewidth=0, label=label)  # fmt: skip
        ax.set(xscale="linear" if even else "log", title=title, xlabel=unit, yticks=[])
        ax.set_ylim(0, None)
    axes[0].set_ylabel("rows, each kind\nscaled to its peak")
    axes[0].legend(fontsize=10)
    return describe(figure, """Two histograms over the rows of a tied table. Left: gradients of
        tokens that are in the text are hundreds of times longer than those of others. Right: after
        ten steps of AdamW both kinds of rows have moved about equally far.""")  # fmt: skip


def losses(curves: Mapping[str, Sequence[float]], floor: float, floor_label: str) -> Figure:
    """Draw training losses against a floor that no honest model can pass.

    Args:
        curves: label to loss in nats at each step, the right one first.
        floor: loss in nats.
        floor_label: what the floor is.
    """
    figure, ax = new_figure(figsize=(7.2, 2.8))
    for (label, values), colour, style in zip(
        curves.items(), ("right", "wrong"), ("-", "--"), strict=True
    ):
        ax.plot(values, style, color=COLOURS[colour])
        ax.text(len(values) + 1, values[-1], label, va="center", fontsize=10)
    ax.plot([0, len(values)], [floor, floor], ":", color=_LINE, linewidth=1.2)
    ax.text(30, floor - 0.08, floor_label, fontsize=10, va="top")
    ax.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(-0.1, None),
           xlim=(0, 1.2 * len(values)), xticks=range(0, len(values) + 1, 20))  # fmt: skip
    return describe(figure, """Two training losses on noise: with targets shifted the loss stays at
        the floor of ln 16; not shifted it falls to zero within some twenty steps.""")  # fmt: skip
