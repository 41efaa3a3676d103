"""Figures of notebook 03, grouped-query attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, ink, new_figure

# White for nothing, the colour of attention for all.
_SHADES = LinearSegmentedColormap.from_list("attention", ["white", COLOURS["attention"]])
# White for no change, one colour for a loss that rises and one for a loss that falls.
_LOSSES = LinearSegmentedColormap.from_list("losses", [COLOURS["right"], "white", COLOURS["wrong"]])


def _readable(tokens: Sequence[str]) -> list[str]:
    """Return tokens as labels: without the leading space, with a sign for a newline."""
    return [token.strip(" ").replace("\n", "↵") or "space" for token in tokens]


def _bare(ax: Axes) -> None:
    """Take grid and frame off the axes of a map."""
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


def evidence(
    tokens: Sequence[str], whole: float, replaced: Mapping[str, Sequence[float]], answer: str
) -> Figure:
    """Draw how sure a model is of the next token when one earlier token is replaced.

    Args:
        tokens: the tokens before the next one.
        whole: probability of the next token with all of them in place.
        replaced: replacement to the probability with each of the tokens replaced by it.
        answer: the next token.
    """
    figure, ax = new_figure(figsize=(7.2, 3.5))
    x = np.arange(len(tokens))
    table = np.array(list(replaced.values()))  # (replacements, tokens)
    for place in x:
        column = table[:, place]
        side = "gate" if (column < whole).all() else "query" if (column > whole).all() else "other"
        ax.vlines(place, column.min(), column.max(), color=COLOURS[side], linewidth=1.5)
        ax.plot([place] * len(column), column, "v" if side == "gate" else "o",
                color=COLOURS[side], markersize=6)  # fmt: skip
    ax.axhline(whole, color=COLOURS["residual"], linewidth=1.4, linestyle="--")
    ax.text(6.5, whole / 12, f"dashed: {whole:.3f}, when\nnothing is replaced", ha="center",
            va="top", fontsize=9.5)  # fmt: skip
    ax.set(yscale="log", xlabel="the token that is replaced",
           ylabel=f"probability of “{answer.strip()}”",
           title="Which tokens does the answer need?")  # fmt: skip
    ax.set_xticks(x, _readable(tokens))
    ax.set_xlim(-0.6, len(x) - 0.4)
    return describe(
        figure,
        "Probability of the next word when one token is replaced, one column for each token and a "
        "mark for each of five replacements, on a logarithmic axis. Replacing either earlier horse "
        "or the a before it lowers it every time, and replacing the last a lowers it most.",
    )


def pencil(
    query: Sequence[float],
    keys: Sequence[Sequence[float]],
    weights: Sequence[float],
    values: Sequence[Sequence[float]],
) -> Figure:
    """Draw one query that asks three tokens, with every number on the way.

    Args:
        query: (D,).
        keys: of the tokens, (S, D).
        weights: of the tokens after the softmax, (S,).
        values: of the tokens, (S, C).
    """
    q, k, w, v = (np.asarray(part, dtype=float) for part in (query, keys, weights, values))
    scores = k @ q / len(q) ** 0.5
    figure, ax = canvas(16.4, 6.3)
    cells(ax, 1.6, 5.3, q.tolist(), "query", label="query")
    for title, left in (("key", 3.6), ("score", 7.15), ("weight", 9.75), ("value", 12.6)):
        ax.text(left, 4.55, title, ha="center", va="bottom", fontsize=10)
    arrow(ax, (3.6, 5.3), (3.6, 4.95), "q · k, divided by √D")
    for row in range(len(k)):
        bottom = 3.8 - 1.0 * row
        cells(ax, 1.6, bottom, k[row].tolist(), "key", label=f"token {row}")
        arrow(ax, (5.6, bottom + HIGH / 2), (6.6, bottom + HIGH / 2))
        cells(ax, 6.65, bottom, [float(scores[row])], "other")
        arrow(ax, (7.7, bottom + HIGH / 2), (9.2, bottom + HIGH / 2),
              "softmax" if row == 0 else "", size=9)  # fmt: skip
        cells(ax, 9.25, bottom, [float(w[row])], "attention")
        ax.plot([10.3, 11.5], [bottom + HIGH / 2] * 2, color=COLOURS["attention"],
                linewidth=12 * w[row], solid_capstyle="butt")  # fmt: skip
        cells(ax, 11.6, bottom, v[row].tolist(), "value")
        ax.plot([13.7, 14.3], [bottom + HIGH / 2, bottom + HIGH / 2], color=COLOURS["residual"],
                linewidth=1.2)  # fmt: skip
    ax.plot([14.3, 14.3], [0.6, 3.8 + HIGH / 2], color=COLOURS["residual"], linewidth=1.2)
    arrow(ax, (14.3, 0.6), (13.7, 0.6))
    cells(ax, 11.6, 0.3, (w @ v).tolist(), "down", label="the weighted mean of the values")
    return describe(
        figure,
        "Attention on paper. A query is compared with the keys of three tokens; the scores become "
        "weights by a softmax; thick lines show the weights; the answer is the mean of the three "
        "values with these weights, mostly the third.",
    )


def cache_filling(kinds: Mapping[str, int], prompt: int, steps: int) -> Figure:
    """Draw the key-value cache of one layer, call by call.

    Args:
        kinds: title to key-value heads.
        prompt: tokens of the first call.
        steps: calls after it, of one token each.
    """
    figure, axes = new_figure(1, len(kinds), figsize=(8.2, 3.0), sharey=True)
    total = prompt + steps
    for ax, (title, groups) in zip(axes, kinds.items(), strict=True):
        for token in range(total):
            call = max(0, token - prompt + 1)
            for g in range(groups):
                for row, colour in ((2 * g, "key"), (2 * g + 1, "value")):
                    ax.add_patch(
                        Rectangle(
                            (token, row), 0.92, 0.85, facecolor=COLOURS[colour],
                            alpha=0.35 if call == 0 else 0.6 if call < steps else 1.0, linewidth=0,
                        )
                    )  # fmt: skip
            text = "1" if token < prompt else str(call + 1)
            ax.text(token + 0.46, -0.7, text, ha="center", va="center", fontsize=9.5)
        ax.text(-0.2, -0.7, "call", ha="right", va="center", fontsize=9.5)
        ax.set(xlim=(-1.6, total), ylim=(-1.3, 19), title=title)
        ax.title.set_fontsize(10)
        ax.axis("off")
    axes[1].text(total / 2, 12, "orange: keys\ngreen: values", ha="center", fontsize=10)
    return describe(
        figure,
        "The cache of one layer after a prompt of four tokens and three more calls of one token, "
        "for nine, three and one key-value heads. Each call adds a column; the columns of nine "
        "heads are three times as tall as those of three, and nine times those of one.",
    )


def fewer_heads(averaged: Mapping[str, float], runs: Mapping[int, Sequence[float]]) -> Figure:
    """Draw what fewer key-value heads cost: averaged without training, and trained so.

    Args:
        averaged: what of the real model was averaged, "nothing" first, to loss in nats per token.
        runs: key-value heads to the held-out loss of each seed, in nats per character.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(8.2, 3.2))
    left.barh(list(averaged), list(averaged.values()), color=COLOURS["other"], height=0.6)
    left.patches[0].set_color(COLOURS["right"])
    for row, value in enumerate(averaged.values()):
        left.text(value, row, f" {value:.1f}", va="center", fontsize=10)
    left.invert_yaxis()
    left.set(xlabel="loss (nats per token)", title="real weights, heads averaged",
             xlim=(0, 1.15 * max(averaged.values())))  # fmt: skip
    left.grid(axis="y", visible=False)
    for place, losses in enumerate(runs.values()):
        values = np.asarray(losses)
        right.plot([place] * len(values), values, "o", color=COLOURS["key"], alpha=0.6)
        right.errorbar(place + 0.15, values.mean(), yerr=values.std(ddof=1) / len(values) ** 0.5,
                       fmt="D", color=COLOURS["residual"], capsize=4)  # fmt: skip
    right.set(xlabel="key-value heads", ylabel="held-out loss\n(nats per character)",
              title="tiny models, trained so", xlim=(-0.5, len(runs) - 0.3))  # fmt: skip
    right.set_xticks(range(len(runs)), [str(groups) for groups in runs])
    return describe(
        figure,
        "Left: loss of the real model when its three key heads, its value heads or both are "
        "averaged into one; it rises by several nats. Right: held-out losses of tiny models that "
        "were trained with nine, three or one key-value heads, a dot for each seed, with means "
        "and standard errors; they lie close together.",
    )


def silenced_heads(
    panels: Mapping[str, np.ndarray], marked: Mapping[str, tuple[int, int]], highest: float
) -> Figure:
    """Draw what it costs to silence each head, one cell for each.

    Args:
        panels: title to the rise of a loss in nats per token, (layers, heads).
        marked: a name to the layer and head that it is written beside.
        highest: the colours end there.
    """
    figure, axes = new_figure(len(panels), 1, figsize=(7.6, 2.35 * len(panels)), sharex=True)
    image: Any = None
    for ax, (title, rise) in zip(axes, panels.items(), strict=True):
        _bare(ax)
        image = ax.imshow(rise.T, cmap=_LOSSES, vmin=-highest, vmax=highest, aspect="auto")
        for name, (layer, head) in marked.items():
            ax.add_patch(
                Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, lw=1.6, clip_on=False)
            )
            right = layer < 24
            ax.text(layer + (0.8 if right else -0.8), head, name, fontsize=9, va="center",
                    ha="left" if right else "right")  # fmt: skip
        ax.set_title(title, fontsize=10.5)
        ax.set(ylabel="query head", yticks=range(0, rise.shape[1], 2))
    axes[-1].set(xlabel="layer", xticks=range(0, len(rise), 5))
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=22, pad=0.02, extend="both")
    bar.set_label("rise of the loss (nats)")
    bar.outline.set_visible(False)
    return describe(
        figure,
        "Two maps with a column for each layer and a row for each of nine query heads. Above, what "
        "silencing a head costs on a word that was read before: a few dark cells stand out. Below, "
        "what it costs on the other words: nearly all cells are pale, but for the first layers.",
    )


def dot_products(
    sizes: Sequence[int], spread: Sequence[float], largest: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw what the head dimension does to scores and to the softmax of them.

    Args:
        sizes: head dimensions.
        spread: standard deviation of the dot products at each size.
        largest: label to mean largest weight at each size; the unscaled ones first.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.2))
    left.plot(sizes, np.sqrt(sizes), color=COLOURS["residual"], linewidth=1.4, label="√D")
    left.plot(sizes, spread, "o", color=COLOURS["query"], label="measured")
    left.set(xscale="log", yscale="log", xlabel="head dimension D",
             ylabel="standard deviation of q · k")  # fmt: skip
    left.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    left.minorticks_off()
    left.legend(fontsize=9)
    for (label, values), (colour, style, mark) in zip(
        largest.items(), (("wrong", "--", "X"), ("right", "-", "o")), strict=True
    ):
        right.plot(sizes, values, style, marker=mark, color=COLOURS[colour], label=label)
    right.set(xscale="log", xlabel="head dimension D", ylabel="largest of 32 weights (mean)",
              ylim=(0, 1.02))  # fmt: skip
    right.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    right.minorticks_off()
    right.legend(fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.45))
    return describe(
        figure,
        "Left: the spread of dot products grows as the root of the head dimension. Right: without "
        "the division the largest of 32 weights grows towards 1 with the dimension; with it, it "
        "stays small at every dimension.",
    )


def _box(ax: Axes, x: float, y: float, width: float, label: str, colour: str, size: float) -> None:
    """Draw one head as a box with its middle at (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.21),
            width,
            0.42,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=COLOURS[colour],
            edgecolor="white",
        )
    )
    ax.text(x, y, label, ha="center", va="center", fontsize=size, color=ink(colour),
            linespacing=1.1)  # fmt: skip


def head_groups(panels: Mapping[str, int], n_head: int, large: str) -> Figure:
    """Draw which query head reads which key-value head.

    Args:
        panels: title to key-value heads.
        n_head: query heads.
        large: title of the panel that is drawn large.
    """
    figure, axes = new_figure(
        len(panels), 1, figsize=(7.5, 5.0), height_ratios=[1.5 if p == large else 1 for p in panels]
    )
    for ax, (title, groups) in zip(axes, panels.items(), strict=True):
        ax.axis("off")
        ax.set_title(title, fontsize=10.5)
        each = n_head // groups
        for g in range(groups):
            middle = g * each + (each - 1) / 2
            for h in range(g * each, (g + 1) * each):
                ax.plot([h, middle], [0.79, 0.21], color=COLOURS["residual"], linewidth=1.2)
            if title == large:
                _box(ax, middle - 0.67, 0, 1.3, f"key head {g}", "key", 9)
                _box(ax, middle + 0.67, 0, 1.3, f"value head {g}", "value", 9)
            else:
                _box(ax, middle - 0.22, 0, 0.42, f"k{g}", "key", 8.5)
                _box(ax, middle + 0.22, 0, 0.42, f"v{g}", "value", 8.5)
        for h in range(n_head):
            label = f"query\nhead {h}" if title == large else f"q{h}"
            _box(ax, h, 1, 0.9 if title == large else 0.8, label, "query", 8.5)
        ax.set(xlim=(-0.6, n_head - 0.4), ylim=(-0.25, 1.25))
    return describe(
        figure,
        "Nine query heads above, key and value heads below, joined by lines. Nine pairs for "
        "multi-head attention, three pairs with three neighbouring queries each for grouped-query "
        "attention, a single pair for multi-query attention.",
    )


def cache_bytes(
    lengths: Sequence[int], megabytes: Mapping[str, Sequence[float]], weights: float
) -> Figure:
    """Draw the size of the key-value cache against the length of the context.

    Args:
        lengths: tokens.
        megabytes: label to MB at each length.
        weights: MB that the model's own weights take.
    """
    figure, ax = new_figure(figsize=(7.0, 3.5))
    looks = (("wrong", "--"), ("attention", "-"), ("value", "-."))
    for (label, values), (colour, style) in zip(megabytes.items(), looks, strict=True):
        ax.plot(lengths, values, style, color=COLOURS[colour])
        ax.annotate(f" {label}\n {values[-1]:.0f} MB", (lengths[-1], values[-1]), fontsize=9,
                    va="center", color=COLOURS[colour])  # fmt: skip
    ax.axhline(weights, color=COLOURS["residual"], linewidth=1.2, linestyle=":")
    ax.text(150, weights * 1.03, f"the model's weights, {weights:.0f} MB", fontsize=9,
            color=COLOURS["residual"], va="bottom")  # fmt: skip
    ax.set(xlabel="tokens in the context (one sequence)", ylabel="keys and values (MB, bfloat16)",
           xlim=(0, lengths[-1] * 1.24), ylim=(0, None))  # fmt: skip
    ax.set_xticks([0, 2048, 4096, 6144, 8192], ["0", "2,048", "4,096", "6,144", "8,192"])
    ax.grid(axis="x", visible=False)
    return describe(
        figure,
        "Size of the cache against tokens in the context, three straight lines. With nine "
        "key-value heads it passes the size of all the model's weights before 4,096 tokens; with "
        "three heads it stays below at 8,192, with one far below.",
    )


def attention_maps(tokens: Sequence[str], panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw the attention weights of four heads on one line of text.

    Args:
        tokens: the line.
        panels: title to weights, (queries, keys); each row sums to one.
    """
    figure, axes = new_figure(2, 2, figsize=(7.3, 8.2), sharex=True, sharey=True)
    image: Any = None
    for ax, (title, weights) in zip(axes.flat, panels.items(), strict=True):
        _bare(ax)
        image = ax.imshow(weights, cmap=_SHADES, vmin=0, vmax=1)
        future = np.triu(np.ones_like(weights), 1)
        ax.imshow(np.where(future, 0.13, np.nan), cmap="Greys", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10.5)
    labels = _readable(tokens)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(labels)), labels, fontsize=9.5)
        ax.set_ylabel("query: the token that asks")
    for ax in axes[1]:
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9.5)
        ax.set_xlabel("key: the token that it looks at")
    bar = figure.colorbar(
        image, ax=list(axes.flat), location="bottom", shrink=0.5, aspect=30, pad=0.02
    )
    bar.set_label("attention weight (grey: the future)")
    bar.outline.set_visible(False)
    return describe(
        figure,
        "Attention weights of four heads on Richard's line. One looks at the token before, one "
        "always at the first token, one from a word to what followed its earlier occurrence, and "
        "one spreads its weight.",
    )
