"""Figures of notebook 06, the assembled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from smol_scratch.course.figures.style import COLOURS, new_figure


def same_matrix_twice(
    names: Sequence[str],
    matrix: Sequence[Sequence[float]],
    read: str,
    final: Sequence[float],
    came: str,
) -> Figure:
    """Draw the way of one token through a toy model: look up, blocks, norm, dot products.

    Args:
        names: the tokens of the vocabulary.
        matrix: the embedding matrix, one row a token, (V, C).
        read: the token that goes in.
        final: its vector after the last norm, (C,).
        came: the token that really came next.
    """
    rows = np.asarray(matrix, dtype=float)  # (V, C)
    x = np.asarray(final, dtype=float)
    logits = rows @ x
    chances = np.exp(logits) / np.exp(logits).sum()
    figure, ax = new_figure(figsize=(7.5, 2.75))
    ax.set(xlim=(-0.75, 12.75), ylim=(-1.25, 3.5))
    ax.axis("off")
    line, colour = COLOURS["residual"], COLOURS["embedding"]

    def cells(left: float, bottom: float, values: np.ndarray, bright: bool) -> None:
        for j, value in enumerate(values):
            ax.add_patch(
                Rectangle((left + 0.72 * j, bottom), 0.72, 0.6, facecolor=colour,
                          alpha=0.45 if bright else 0.12, edgecolor="none")
            )  # fmt: skip
            ax.text(left + 0.72 * j + 0.36, bottom + 0.28, f"{value:g}", ha="center",
                    va="center", fontsize=9)  # fmt: skip
        ax.add_patch(
            Rectangle((left, bottom), 0.72 * len(values), 0.6, fill=False, edgecolor=colour,
                      linewidth=1.8 if bright else 0.8)
        )  # fmt: skip

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": line})

    width = 0.72 * rows.shape[1]
    for left in (0.0, 7.3):
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            bottom = 2.1 - 0.75 * i
            cells(left, bottom, row, left == 0 and name == read)
            ax.text(left - 0.12, bottom + 0.28, name, ha="right", va="center", fontsize=9,
                    style="italic")  # fmt: skip
    ax.text(width / 2, 3.0, "embedding", ha="center", fontsize=9.5, color=colour)
    ax.text(7.3 + width / 2, 3.0, "head: the same", ha="center", fontsize=9.5, color=colour)
    ax.text(width / 2, -0.05, f"look up “{read}”", ha="center", va="top", fontsize=9)
    ax.text(7.3 + width / 2, -0.05, "dot product\nwith each row", ha="center", va="top", fontsize=9)
    at = 2.1 - 0.75 * list(names).index(read) + 0.3
    arrow((width + 0.1, at), (2.25, 1.65))
    for left, wide, label, face in ((2.3, 1.15, "30\nblocks", None), (3.75, 0.95, "norm", "norm")):
        ax.add_patch(
            FancyBboxPatch((left, 1.15), wide, 1.0, boxstyle="round,pad=0,rounding_size=0.1",
                           facecolor=COLOURS[face] if face else "white",
                           edgecolor=COLOURS[face] if face else "#888888")
        )  # fmt: skip
        ax.text(left + wide / 2, 1.65, label, ha="center", va="center", fontsize=9.5,
                color="white" if face else "#333333")  # fmt: skip
    arrow((3.47, 1.65), (3.73, 1.65))
    arrow((4.72, 1.65), (5.0, 1.65))
    cells(5.05, 1.35, x, False)
    arrow((5.05 + 0.72 * len(x) + 0.05, 1.65), (6.68, 1.65))
    for left, title, values, form in (
        (9.25, "logits", logits, "{:g}"),
        (11.0, "probabilities", chances, "{:.2f}"),
    ):
        ax.text(left + 0.55, 3.0, title, ha="center", fontsize=9.5)
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            bottom = 2.1 - 0.75 * i
            hit = title == "probabilities" and name == came
            ax.add_patch(
                Rectangle((left, bottom + 0.08), 0.9 * value / values.max(), 0.44,
                          facecolor=COLOURS["right"] if hit else COLOURS["other"],
                          hatch="//" if hit else "", edgecolor="white")
            )  # fmt: skip
            ax.text(left + 0.9 * value / values.max() + 0.06, bottom + 0.28, form.format(value),
                    va="center", fontsize=9)  # fmt: skip
    arrow((7.3 + width + 0.1, 1.65), (9.2, 1.65))
    surprise = -np.log(chances[list(names).index(came)])
    ax.text(11.55, -0.05, f"“{came}” came:\nsurprise\n{surprise:.2f} nats", ha="center", va="top",
            fontsize=9, color=COLOURS["right"])  # fmt: skip
    return figure


def gradient_parts(parts: Mapping[str, np.ndarray], came: np.ndarray) -> Figure:
    """Draw how long each row of the embedding's gradient is, one panel for each of its parts.

    Args:
        parts: title to the length of the gradient of each token's row, (V,), first the lookup's,
            then the head's; rows of exactly zero are left out.
        came: whether a token was a target, (V,); their dots are drawn darker in the second panel.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.1), sharey=True)
    ticks = range(0, len(came), 20_000)
    for ax, (title, lengths) in zip(axes, parts.items(), strict=True):
        hit = lengths > 0
        ax.set(yscale="log", xlabel="number of the token", title=f"{title}: {hit.sum():,} rows")
        ax.set_xlim(-1000, len(came) + 1000)
        ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    first, second = parts.values()
    read, rest = np.flatnonzero(first), np.flatnonzero(~came)
    ax_read, ax_score = axes
    ax_read.scatter(read, first[read], s=12, color=COLOURS["query"], label="was read")
    ax_score.scatter(rest[::4], second[rest[::4]], s=0.5, color=COLOURS["embedding"], alpha=0.45)
    hits = np.flatnonzero(came)
    ax_score.scatter(hits, second[hits], s=14, marker="D", color=COLOURS["residual"])
    ax_score.text(25_000, 0.25, "tokens that came", ha="center", fontsize=9)
    ax_score.text(25_000, 3e-3, "all others (every fourth drawn)", ha="center", fontsize=9)
    axes[0].set_ylabel("length of the row's gradient")
    return figure


def logit_spread(
    logits: Mapping[str, np.ndarray], predicted: Mapping[str, float], limit: float = 5.0
) -> Figure:
    """Draw how the logits of fresh models are spread, against the predicted bell curves.

    Args:
        logits: label to logits.
        predicted: label to the predicted standard deviation.
        limit: the axis ends there, both ways.
    """
    figure, ax = new_figure(figsize=(7.2, 3.2))
    edges = np.linspace(-limit, limit, 101)
    middle = (edges[1:] + edges[:-1]) / 2
    for (label, values), colour, style in zip(
        logits.items(), ("right", "embedding"), ("-", "--"), strict=False
    ):
        height, _ = np.histogram(values, edges, density=True)
        ax.fill_between(middle, height, step="mid", color=COLOURS[colour], alpha=0.3)
        std = predicted[label]
        bell = np.exp(-((middle / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
        ax.plot(middle, bell, style, color=COLOURS[colour], label=f"{label}: predicted {std:.2f}")
    ax.set(xlabel="logit", ylabel="share of logits per unit", xlim=(-limit, limit))
    ax.legend(fontsize=9, title="standard deviation", title_fontsize=9)
    return figure


def noise_growth(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how far two ways of computing the same residual stream drift apart.

    Args:
        curves: label to relative difference after 0, 1, … blocks; a zero is left out.
    """
    figure, ax = new_figure(figsize=(7.2, 3.4))
    looks = (("--", "s", "residual"), ("-", "o", "right"))
    for (label, values), (style, mark, colour) in zip(curves.items(), looks, strict=False):
        v = np.asarray(values, dtype=float)
        v[v == 0] = np.nan
        ax.plot(v, style, marker=mark, markersize=4, color=COLOURS[colour], label=label)
    for eps, name in ((2**-24, "float32"), (2**-9, "bfloat16")):
        ax.axhline(eps, color=COLOURS["other"], linewidth=1.2, linestyle=":")
        ax.text(30.2, eps / 1.15, f"half a step of {name}", ha="right", va="top", fontsize=9)
    ax.set(yscale="log", xlabel="blocks passed", ylabel="relative difference",
           xlim=(-0.6, 30.6), ylim=(1e-8, 6e-2))  # fmt: skip
    ax.legend(fontsize=9, loc="center right")
    return figure


def losses(curves: Mapping[str, Sequence[float]], floor: float, floor_label: str) -> Figure:
    """Draw training losses against a floor that no honest model can pass.

    Args:
        curves: label to loss in nats at each step, the right one first.
        floor: loss in nats.
        floor_label: what the floor is.
    """
    figure, ax = new_figure(figsize=(7.2, 3.0))
    for (label, values), colour, style in zip(
        curves.items(), ("right", "wrong"), ("-", "--"), strict=False
    ):
        ax.plot(values, style, color=COLOURS[colour], label=label)
    ax.axhline(floor, color=COLOURS["residual"], linewidth=1.2, linestyle=":", label=floor_label)
    ax.set(xlabel="training step", ylabel="loss (nats a token)", ylim=(-0.1, None))
    ax.legend(fontsize=9, loc="center right")
    return figure


def extra_loss(extra: Sequence[float], stretch: int) -> Figure:
    """Draw how much a mistake costs at early and late positions of a text.

    Args:
        extra: additional loss in each stretch, in nats a token.
        stretch: tokens in a stretch.
    """
    figure, ax = new_figure(figsize=(7.2, 2.9))
    left = np.arange(len(extra)) * stretch
    ax.bar(left, extra, width=0.9 * stretch, align="edge", color=COLOURS["wrong"])
    ax.set_xticks([*left, len(extra) * stretch])
    ax.set(xlabel="position in the text", ylabel="extra loss (nats a token)")
    ax.grid(False, axis="x")
    return figure
