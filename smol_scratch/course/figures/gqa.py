"""Figures of notebook 03, grouped-query attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
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
    figure, ax = new_figure(figsize=(7.6, 4.4))
    x = np.arange(len(tokens))
    table = np.array(list(replaced.values()))  # (replacements, tokens)
    # Beside each other, so that no mark hides another.
    aside = np.linspace(-0.26, 0.26, len(table))
    for place in x:
        column = table[:, place]
        below, above = (column < whole).all(), (column > whole).all()
        side = "gate" if below else "query" if above else "other"
        for dx, value, mark in zip(aside, column, "osv^D", strict=True):
            ax.plot(place + dx, value, mark, color=COLOURS[side], markersize=5.5)
        word = "less" if below else "more" if above else "either"
        ax.text(place, 0.985, word, transform=ax.get_xaxis_transform(), ha="center", va="top",
                fontsize=9.5, color="black" if side == "other" else COLOURS[side])  # fmt: skip
        if place:
            ax.axvline(place - 0.5, color="#DDDDDD", linewidth=0.8)
    ax.axhline(whole, color=COLOURS["residual"], linewidth=1.4, linestyle="--")
    ax.text(6.5, whole / 9, f"dashed: {whole:.3f},\nnothing replaced", ha="center",
            va="top", fontsize=9.5, backgroundcolor="white")  # fmt: skip
    marks = [
        ax.plot([], [], mark, color=COLOURS["residual"], markersize=5.5, label=name)[0]
        for mark, name in zip("osv^D", _readable(list(replaced)), strict=True)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9.5,
                  title="replaced by", title_fontsize=9.5, handletextpad=0.2)  # fmt: skip
    ax.set(yscale="log", xlabel="the token that is replaced",
           ylabel=f"probability of “{answer.strip()}”",
           title=f"Does “{answer.strip()}” become less or more probable?")  # fmt: skip
    ax.set_xticks(x, _readable(tokens))
    ax.set(xlim=(-0.5, len(x) - 0.5), ylim=(table.min() / 2, 12 * whole))
    ax.grid(axis="x", visible=False)
    return describe(
        figure,
        "Probability of the next word when one token is replaced, one column for each token and a "
        "mark of its own shape for each of five replacements, on a logarithmic axis. A word over "
        "the column says whether all five make it less probable, all five more, or either. Less: "
        "both earlier horses, the ! between them, and both lower-case a.",
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
    products = k @ q  # (S,)
    scores = products / len(q) ** 0.5
    figure, ax = canvas(18.6, 6.0, inches=8.2)
    cells(ax, 1.6, 5.1, q.tolist(), "query", label="query")
    heads = (("key", 3.6), ("q · k", 7.05), ("score", 9.45), ("weight", 12.65), ("value", 15.5))
    for title, left in heads:
        ax.text(left, 4.35, title, ha="center", va="bottom", fontsize=10)
    top = 3.6
    for row in range(len(k)):
        bottom = top - 1.0 * row
        middle = bottom + HIGH / 2
        cells(ax, 1.6, bottom, k[row].tolist(), "key", label=f"token {row}")
        arrow(ax, (5.6, middle), (6.55, middle))
        cells(ax, 6.55, bottom, [float(products[row])], "other")
        arrow(ax, (7.55, middle), (8.95, middle), f"÷ {len(q) ** 0.5:g}", size=9)
        cells(ax, 8.95, bottom, [float(scores[row])], "other")
        arrow(ax, (9.95, middle), (10.6, middle))
        arrow(ax, (11.5, middle), (12.15, middle))
        cells(ax, 12.15, bottom, [f"{w[row]:.3f}"], "attention", size=9)
        ax.plot([13.2, 14.4], [middle] * 2, color=COLOURS["attention"], linewidth=12 * w[row],
                solid_capstyle="butt")  # fmt: skip
        cells(ax, 14.5, bottom, v[row].tolist(), "value")
        ax.plot([16.6, 17.2], [middle] * 2, color=COLOURS["residual"], linewidth=1.2)
    last = top - 1.0 * (len(k) - 1)
    box(ax, 10.65, last - 0.1, 0.8, "", "attention", height=top - last + HIGH + 0.2, filled=False)
    ax.text(11.05, (top + last + HIGH) / 2, "softmax", ha="center", va="center", rotation=90,
            fontsize=10)  # fmt: skip
    ax.plot([17.2, 17.2], [0.6, top + HIGH / 2], color=COLOURS["residual"], linewidth=1.2)
    arrow(ax, (17.2, 0.6), (16.6, 0.6))
    cells(ax, 14.5, 0.3, (w @ v).tolist(), "down", label="the weighted mean of the values")
    return describe(
        figure,
        "Attention on paper. The dot products of a query with the keys of three tokens, divided by "
        "2, are the scores; one softmax over all three turns them into weights, shown as lines of "
        "that thickness; the answer is the mean of the values with them, mostly of the third.",
    )


def cache_filling(kinds: Mapping[str, int], prompt: int, steps: int) -> Figure:
    """Draw the key-value cache of one layer, call by call.

    Args:
        kinds: title to key-value heads.
        prompt: tokens of the first call.
        steps: calls after it, of one token each.
    """
    figure, axes = new_figure(1, len(kinds), figsize=(8.2, 3.6), sharey=True)
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
        for g in range(groups):
            ax.text(-0.25, 2 * g + 0.92, f"head {g}", ha="right", va="center", fontsize=8.5)
        ax.plot([0, prompt - 0.1], [-0.5, -0.5], color=COLOURS["residual"], linewidth=1.4)
        ax.text(prompt / 2, -0.8, "prefill", ha="center", va="top", fontsize=9)
        for step in range(steps):
            ax.text(prompt + step + 0.46, -0.8, "+1", ha="center", va="top", fontsize=9)
        ax.text(total / 2, -2.3, "tokens", ha="center", va="top", fontsize=9.5)
        ax.set(xlim=(-2.6, total), ylim=(-3.6, 18.2))
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    for ax, height, colour, what in (
        (axes[1], 14, "key", "a key"),
        (axes[1], 12, "value", "a value"),
    ):
        ax.add_patch(Rectangle((0.6, height), 0.92, 0.85, facecolor=COLOURS[colour], linewidth=0))
        ax.text(1.9, height + 0.42, f"{what} (64 numbers)", va="center", fontsize=9)
    return describe(
        figure,
        "The cache of one layer after a prompt of four tokens, the prefill, and three more calls "
        "of one token, for nine, three and one key-value heads. A column is a token; each head "
        "adds a key and a value to it: the columns of nine heads are three times as tall as those "
        "of three, and nine times those of one.",
    )


def fewer_heads(
    averaged: Mapping[str, tuple[float, float]], chance: float, runs: Mapping[int, Sequence[float]]
) -> Figure:
    """Draw what fewer key-value heads cost: averaged without training, and trained that way.

    Args:
        averaged: what of the real model was averaged, nothing first, to the loss in nats per token
            and its standard error.
        chance: the loss of blind guessing.
        runs: key-value heads to the held-out loss of each seed, in nats per character.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(8.4, 3.5), width_ratios=[1.15, 1])
    means, errors = zip(*averaged.values(), strict=True)
    left.barh(list(averaged), means, xerr=errors, color=COLOURS["other"], height=0.6, capsize=3)
    left.patches[0].set_color(COLOURS["right"])
    for row, value in enumerate(means):
        colour = ink("other" if row else "right")
        left.text(0.2, row, f"{value:.1f}", va="center", fontsize=10, color=colour)
    left.axvline(chance, color=COLOURS["residual"], linewidth=1.2, linestyle=":")
    left.text(chance + 0.15, len(averaged) / 2 - 0.5, "blind guessing", fontsize=9, rotation=90,
              va="center", color=COLOURS["residual"])  # fmt: skip
    left.invert_yaxis()
    left.set(xlabel="loss (nats per token)", title="SmolLM2, heads averaged",
             xlim=(0, 1.15 * chance))  # fmt: skip
    left.grid(axis="y", visible=False)
    for place, losses in enumerate(runs.values()):
        values = np.asarray(losses)
        right.plot([place] * len(values), values, "o", color=COLOURS["key"], alpha=0.6)
        right.errorbar(place + 0.2, values.mean(), yerr=values.std(ddof=1) / len(values) ** 0.5,
                       fmt="D", color=COLOURS["residual"], capsize=4)  # fmt: skip
    right.set(xlabel="key-value heads (diamonds: mean ± 1 standard error)",
              ylabel="held-out loss\n(nats per character)", xlim=(-0.5, len(runs) - 0.3),
              title="tiny models, trained that way")  # fmt: skip
    right.xaxis.label.set_fontsize(9.5)
    right.set_xticks(range(len(runs)), [str(groups) for groups in runs])
    return describe(
        figure,
        "Left: loss of the real model when its three key heads, its value heads or both are "
        "averaged into one; it rises by several nats, with both most of the way to blind guessing. "
        "Right: held-out losses of tiny models that were trained with nine, three or one "
        "key-value heads, a dot for each seed, with means and standard errors, on an axis that "
        "does not begin at zero; they lie close together.",
    )


def silenced_heads(
    ratio: np.ndarray,
    marked: Mapping[str, tuple[int, int]],
    costs: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    """Draw what it costs to silence a head: 270 heads on few passages, four heads on new ones.

    Args:
        ratio: mean rise of the loss over its standard error, (layers, heads).
        marked: a name to the layer and head that it is written beside.
        costs: which passages, to a name of ``marked``, to the rise of the loss on each passage.
    """
    figure, (ax, below) = new_figure(2, 1, figsize=(7.6, 5.6), height_ratios=[1.25, 1])
    _bare(ax)
    image = ax.imshow(ratio.T, cmap=_LOSSES, vmin=-5, vmax=5, aspect="auto")
    for name, (layer, head) in marked.items():
        ax.add_patch(Rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, lw=1.6, clip_on=False))
        right = layer < 24
        ax.text(layer + (0.8 if right else -0.8), head, name, fontsize=9, va="center",
                ha="left" if right else "right")  # fmt: skip
    ax.set_title("16 passages: which of the 270 heads does the repeated word need?", fontsize=10.5)
    ax.set(xlabel="layer", ylabel="query head", yticks=range(0, ratio.shape[1], 2),
           xticks=range(0, len(ratio), 5))  # fmt: skip
    bar = figure.colorbar(image, ax=ax, aspect=14, pad=0.02)
    bar.set_label("rise of the loss in\nstandard errors")
    bar.outline.set_visible(False)
    looks = (("o", "white", 0.12), ("D", COLOURS["wrong"], -0.12))
    for (label, rises), (mark, face, up) in zip(costs.items(), looks, strict=True):
        values = [np.asarray(rise) for rise in rises.values()]
        below.errorbar(
            [v.mean() for v in values], np.arange(len(values)) + up,
            xerr=[v.std(ddof=1) / len(v) ** 0.5 for v in values], fmt=mark, color=COLOURS["wrong"],
            markerfacecolor=face, capsize=3, label=label, linewidth=1.6,
        )  # fmt: skip
    below.axvline(0, color=COLOURS["residual"], linewidth=1.2)
    below.set_yticks(range(len(marked)), list(marked))
    below.set(ylim=(-0.5, len(marked) - 0.5),
              xlabel="rise of the loss on the repeated word (nats, ± standard error)")  # fmt: skip
    below.set_title("the same four heads, and passages that no choice has seen", fontsize=10.5)
    below.grid(axis="y", visible=False)
    below.legend(fontsize=9, loc="center right")
    return describe(
        figure,
        "Above, a map of 270 heads, a column for each layer, a row for each of nine query heads: "
        "what silencing a head costs on a word that was read before, in standard errors. One cell "
        "is darker than all others, layer 16, head 0, marked before. Below, the cost in nats "
        "of four heads, on these sixteen passages and on new ones. Before stays far from zero on "
        "both, after and first stay above it, itself falls to zero on the new ones.",
    )


def readers(
    look: np.ndarray, without: np.ndarray, errors: np.ndarray, marked: Mapping[str, tuple[int, int]]
) -> Figure:
    """Draw how much the later heads look at a word, with an earlier head at work and silent.

    Args:
        look: attention weight on the word, (layers, heads), the layers from ``17`` on.
        without: the same with the earlier head silent.
        errors: standard errors of both, (2, layers, heads).
        marked: label to layer (counted from the first one drawn) and head.
    """
    figure, ax = new_figure(figsize=(5.6, 4.6))
    chosen = np.zeros_like(look, dtype=bool)
    for place in marked.values():
        chosen[place] = True
    ax.plot([0, 0.6], [0, 0.6], color=COLOURS["residual"], linewidth=1.2, linestyle="--")
    ax.text(0.3, 0.31, "no change", rotation=45, rotation_mode="anchor", fontsize=9.5,
            transform_rotates_text=True, va="bottom")  # fmt: skip
    ax.plot(look[~chosen], without[~chosen], "o", color=COLOURS["other"], markersize=5)
    ax.errorbar(look[chosen], without[chosen], xerr=errors[0][chosen], yerr=errors[1][chosen],
                fmt="D", color=COLOURS["wrong"], capsize=3, linewidth=1.4)  # fmt: skip
    for label, place in marked.items():
        ax.annotate(label, (look[place], without[place]), xytext=(-5, 5), fontsize=9.5,
                    textcoords="offset points", ha="right")  # fmt: skip
    ax.text(0.02, 0.44, "17.3: layer 17, head 3\ngrey: the other heads", fontsize=9.5)
    ax.set(xlim=(0, 0.6), ylim=(-0.02, 0.5), xlabel="weight on the word to be copied, as trained",
           ylabel="the same, with “before” silent",
           title="Without “before” three heads lose the word, one finds it less")  # fmt: skip
    return describe(
        figure,
        "One mark for each of the 117 heads of the layers 17 to 29: its weight on the word to be "
        "copied as trained, and with before silent. Most lie a little below the diagonal. Four lie "
        "far below: heads 3, 4 and 5 of layer 17, which fall to almost nothing, and head 6 of "
        "layer 18, which falls to less than half.",
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
    right.axhline(1 / 32, color=COLOURS["residual"], linewidth=1, linestyle=":")
    right.text(sizes[0], 1 / 32 + 0.012, "even share, 1/32", fontsize=9, color=COLOURS["residual"])
    for ax in (left, right):
        ax.axvline(64, color=COLOURS["residual"], linewidth=1, linestyle=(0, (4, 4)))
    left.text(58, 1.1, "SmolLM2", fontsize=9, rotation=90, ha="right", color=COLOURS["residual"])
    right.set(xscale="log", xlabel="head dimension D", ylabel="largest of 32 weights (mean)",
              ylim=(0, 1.02))  # fmt: skip
    right.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    right.minorticks_off()
    right.legend(fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.42))
    return describe(
        figure,
        "Left: the spread of dot products grows as the root of the head dimension. Right: without "
        "the division the largest of 32 weights grows towards 1 with the dimension; with it, it "
        "stays low at every dimension, at about five times an even share. Dashed lines mark 64, "
        "SmolLM2's own.",
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
        len(panels), 1, figsize=(7.5, 5.4), height_ratios=[1.5 if p == large else 1 for p in panels]
    )
    figure.set_layout_engine("constrained", h_pad=0.1)
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
    ax.text(150, weights * 1.03, f"SmolLM2's weights, {weights:.0f} MB", fontsize=9,
            color=COLOURS["residual"], va="bottom")  # fmt: skip
    ax.set(xlabel="tokens in the context (one sequence)", ylabel="keys and values (MB, bfloat16)",
           xlim=(0, lengths[-1] * 1.24), ylim=(0, None))  # fmt: skip
    ax.set_xticks([0, 2048, 4096, 6144, 8192], ["0", "2,048", "4,096", "6,144", "8,192"])
    ax.grid(axis="x", visible=False)
    return describe(
        figure,
        "Size of one conversation's cache against its tokens, three straight lines, with a dotted "
        "line at the size of SmolLM2's weights. At 8,192 tokens the line for nine key-value heads "
        "is at twice the weights, that for three heads below them, that for one far below.",
    )


def attention_maps(
    tokens: Sequence[str],
    panels: Mapping[str, np.ndarray],
    ringed: tuple[int, int] | None = None,
) -> Figure:
    """Draw the attention weights of four heads on one line of text.

    Args:
        tokens: the line.
        panels: title to weights, (queries, keys); each row sums to one.
        ringed: the query and the key whose cell is framed in every map.
    """
    figure, axes = new_figure(2, 2, figsize=(7.3, 8.2), sharex=True, sharey=True)
    image: Any = None
    for ax, (title, weights) in zip(axes.flat, panels.items(), strict=True):
        _bare(ax)
        image = ax.imshow(weights, cmap=_SHADES, vmin=0, vmax=1)
        future = np.triu(np.ones_like(weights), 1)
        ax.imshow(np.where(future, 0.13, np.nan), cmap="Greys", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10.5)
        if ringed:
            place = (ringed[1] - 0.5, ringed[0] - 0.5)
            ax.add_patch(
                Rectangle(
                    place, 1, 1, fill=False, lw=1.8, ec=COLOURS["wrong"], clip_on=False, zorder=4
                )
            )
    labels = _readable(tokens)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(labels)), labels, fontsize=9.5)
        ax.set_ylabel("query: the token that asks")
    for ax in axes[1]:
        ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=9.5,
                      rotation_mode="anchor")  # fmt: skip
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
        "one mostly at the token itself, in its last row less than elsewhere. A frame marks the "
        "cell of the last a and the second horse.",
    )
