"""Figures of notebook 11, generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.drawing import HIGH, arrow, box, canvas, cells
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

SHADES = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")


def next_token(
    names: Sequence[str],
    probabilities: Sequence[float],
    others: int,
    title: str = "",
    ranked: Sequence[float] = (),
) -> Figure:
    """Draw the most probable next tokens, and what is left for all others.

    Args:
        names: the tokens' texts, the most probable first.
        probabilities: of these tokens.
        others: how many tokens are not shown.
        title: the sentence that is to be continued.
        ranked: the probabilities of all tokens, falling, for a panel beside the bars.
    """
    columns = 2 if len(ranked) else 1
    size = (7.5, 4.2) if len(ranked) else (7.2, 4.6)
    figure, axes = new_figure(1, columns, figsize=size)
    ax = axes[0] if len(ranked) else axes
    rest = 1 - sum(probabilities)
    rows = [*names, f"all {others:,} others"]
    values = [*probabilities, rest]
    y = np.arange(len(rows))[::-1]
    y[-1] -= 1  # a gap before the others
    colours = [COLOURS["right"]] * len(names) + [COLOURS["other"]]
    ax.barh(y, values, height=0.75, color=colours)
    for place, value in zip(y, values, strict=True):
        ax.text(value + 0.006, place, f"{value:.3f}", va="center", fontsize=9)
    ax.set_yticks(y, rows, fontsize=9.5)
    ax.set(xlabel="probability of coming next", xlim=(0, 1.25 * max(values)))
    ax.grid(False, axis="y")
    if len(ranked):
        side = axes[1]
        side.plot(np.arange(1, len(ranked) + 1), ranked, color=COLOURS["right"])
        side.set(xscale="log", yscale="log", xlabel="rank of the token", ylim=(1e-12, 1))
        side.set_xticks([1, 10, 100, 1_000, 10_000], ["1", "10", "100", "1k", "10k"])
        side.set_yticks([1, 1e-3, 1e-6, 1e-9, 1e-12])
        side.minorticks_off()
        side.set_title("probability of every token", fontsize=10)
        ax.set_title("the first ones, and the rest", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return describe(
        figure,
        f"Bars: the most probable next tokens are {', '.join(names[:4])}, each with a small share; "
        "the largest bar is that of all others together. "
        + ("A curve beside them shows how slowly probability falls with rank." if ranked else ""),
    )


def strips(rows: Mapping[str, Sequence[float]], names: Sequence[str], dart: float) -> Figure:
    """Draw distributions as strips from 0 to 1, and a random number that hits one token in each.

    Args:
        rows: name of a list to its probabilities; zero where a token has been taken out.
        names: the tokens.
        dart: the random number.
    """
    figure, ax = new_figure(figsize=(7.5, 0.62 * len(rows) + 0.9))
    hits = []
    for row, (name, values) in enumerate(rows.items()):
        left, y = 0.0, -row
        ax.text(-0.02, y, name, ha="right", va="center", fontsize=10)
        for token, value, shade in zip(names, values, SHADES, strict=True):
            if value == 0:
                continue
            hit = left <= dart < left + value
            hits += [token] * hit
            ax.add_patch(
                Rectangle(
                    (left, y - 0.36), value, 0.72, facecolor=shade + ("66" if hit else "22"),
                    edgecolor="black" if hit else "white", linewidth=1.8 if hit else 1.0,
                    zorder=3 if hit else 2,
                )
            )  # fmt: skip
            if value > 0.055:
                label = f"{token}\n{value:.2f}" if value > 0.1 else token
                middle = left + value / 2
                if abs(middle - dart) < 0.04:  # beside the dart, not under it
                    middle = dart + 0.045
                ax.text(middle, y, label, ha="center", va="center", fontsize=9, zorder=5)
            left += value
    ax.vlines(dart, -len(rows) + 0.5, 0.45, color=COLOURS["wrong"], linewidth=2,
              linestyle="--", zorder=4)  # fmt: skip
    ax.text(dart, 0.48, f"the dart: {dart:g}", color=COLOURS["wrong"], ha="center", va="bottom")
    ax.set(xlim=(0, 1), ylim=(-len(rows) + 0.5, 0.9), xlabel="probabilities, laid end to end")
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    return describe(
        figure,
        "Strips from 0 to 1, divided among the tokens that are left. The same dart hits "
        + ", ".join(f"{hit} ({name})" for hit, name in zip(hits, rows, strict=True)) + ".",
    )  # fmt: skip


def filtered(panels: Mapping[str, Sequence[float]], before: Sequence[float]) -> Figure:
    """Draw what each filter makes of one distribution, and how much of it is in the picture.

    Args:
        panels: name of the filter to the probabilities of the same tokens afterwards.
        before: the model's own probabilities, the most probable first.
    """
    figure, axes = new_figure(2, 3, figsize=(7.5, 4.3), sharex=True, sharey=True)
    places = np.arange(1, len(before) + 1)
    for ax, (title, after) in zip(axes.flat, panels.items(), strict=True):
        ax.bar(places, after, width=0.8, color=COLOURS["right"], label="after the filter")
        ax.step(places, before, where="mid", color=COLOURS["residual"], linewidth=1.2,
                label="the model's own")  # fmt: skip
        gone = [place for place, value in zip(places, after, strict=True) if value == 0]
        if gone:
            ax.plot(gone, [-0.012] * len(gone), "x", color=COLOURS["wrong"], markersize=4,
                    label="taken out", linestyle="none")  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.text(0.97, 0.9, f"shown: {sum(after):.0%}", transform=ax.transAxes, ha="right",
                fontsize=10)  # fmt: skip
    for ax in axes[:, 0]:
        ax.set_ylabel("probability", fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("rank of the token", fontsize=10)
    axes[0, 0].set_ylim(bottom=-0.025)
    handles, labels = axes.flat[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return describe(
        figure,
        "Six panels of bars over the rank of the token, beside the model's own list as a line. "
        "Low temperature raises the first bars, high temperature flattens all of them until "
        "almost nothing of the probability is left in the picture; the filters cut the list off "
        "at different ranks.",
    )


def candidates(tokens: Sequence[str], kept: Mapping[str, Sequence[int]], fixed: int) -> Figure:
    """Draw how many tokens each filter keeps, at each place of a text.

    Args:
        tokens: the text, a token each.
        kept: filter to the number of tokens that it left when this token was next.
        fixed: what a top-k would leave everywhere.
    """
    figure, ax = new_figure(figsize=(7.2, 0.235 * len(tokens) + 1.0))
    places = -np.arange(len(tokens), dtype=float)
    looks = [("right", 0.19, "o"), ("key", -0.19, "s")]
    for (name, counts), (colour, shift, marker) in zip(kept.items(), looks, strict=True):
        ax.hlines(places + shift, 0.8, counts, color=COLOURS[colour], linewidth=2.4)
        ax.plot(counts, places + shift, marker, color=COLOURS[colour], markersize=5, label=name)
    ax.axvline(fixed, color=COLOURS["residual"], linewidth=1.4, linestyle="--",
               label=f"top-k {fixed}")  # fmt: skip
    ax.set_xscale("log")
    ticks = [1, 10, 100, 1000, 10_000]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(places, tokens, fontsize=9.5)
    ax.set(xlabel="candidates left, when this token was next", xlim=(0.8, 12_000),
           ylim=(-len(tokens) + 0.3, 0.7))  # fmt: skip
    ax.grid(False, axis="y")
    ax.set_title("The same filter leaves one candidate, or thousands", loc="left")
    ax.legend(fontsize=9, loc="lower right", frameon=True, edgecolor="white", framealpha=1)
    return describe(
        figure,
        "A sentence from top to bottom, a token per row, with the number of candidates that top-p "
        "and min-p leave. For 'of' and 'is', and for 'Rome', it is few; after 'The' and 'My' "
        f"top-p leaves hundreds to thousands. A fixed top-k of {fixed} is one line through all.",
    )


def rounds(lines: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how probable a phrase becomes each time that it is repeated.

    Args:
        lines: phrase to its probability per token (geometric mean) in each round.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    looks = [("wrong", "o", "-"), ("query", "s", "--"), ("value", "^", ":"), ("down", "D", "-.")]
    for (phrase, values), (colour, marker, line) in zip(lines.items(), looks, strict=False):
        ax.plot(range(1, len(values) + 1), values, line, marker=marker, color=COLOURS[colour],
                markersize=6, label=phrase, clip_on=False)  # fmt: skip
    ax.set(xlabel="how often the phrase has come, this time included", ylim=(0, 1),
           ylabel="probability of each token\n(geometric mean)")  # fmt: skip
    ax.legend(fontsize=9, loc="lower right")
    ax.set_title("Each repetition makes the next one more probable", loc="left")
    return describe(
        figure,
        "Four rising curves, one per phrase, over the number of repetitions. They start between "
        "zero (the nonsense) and a quarter, and all end above three quarters.",
    )


def copying_heads(
    curves: Mapping[str, Sequence[Sequence[float]]], losses: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw what silencing heads does to repetition, and to ordinary text.

    Args:
        curves: what is silenced to rows (one for each set of heads or phrase) of the probability
            in each round.
        losses: what is silenced to the losses on ordinary text, one for each set of heads.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.5), width_ratios=[1.5, 1])
    looks = [("residual", "o", "-"), ("wrong", "s", "-"), ("value", "^", "--"), ("query", "D", ":")]
    for (name, rows), (colour, marker, line) in zip(curves.items(), looks, strict=True):
        values = np.asarray(rows)
        x, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
        left.plot(x, mean, line, marker=marker, color=COLOURS[colour], label=name, markersize=5,
                  clip_on=False)  # fmt: skip
        if len(values) > 1:  # the sets differ by far more than their mean's standard error
            left.plot(x, values.T, line, color=COLOURS[colour], linewidth=0.8, alpha=0.5)
    left.set(xlabel="how often the phrase has come", ylim=(0, 1),
             ylabel="probability of each token")  # fmt: skip
    left.set_title("repetition: means over eight phrases", fontsize=10, loc="left")
    left.set_xticks(range(1, 10, 2))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, [f"silenced: {labels[0]}", *labels[1:]], loc="outside upper center",
                  ncols=len(labels), fontsize=9, columnspacing=1.2, handlelength=1.8)  # fmt: skip
    for row, (name, found) in enumerate(losses.items()):
        colour, marker, _ = looks[row]
        right.plot(found, [-row] * len(found), marker, color=COLOURS[colour], markersize=7,
                   alpha=0.7)  # fmt: skip
        right.text(0.02, -row + 0.24, name, fontsize=9, color=COLOURS[colour],
                   transform=right.get_yaxis_transform())  # fmt: skip
    right.set(xlabel="loss (nats per token)", ylim=(-len(losses) + 0.6, 0.7))
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    right.set_title("ordinary text: Shakespeare", fontsize=10, loc="left")
    return describe(
        figure,
        "Left: probability of a repeated phrase by round. The whole model climbs high. Most other "
        "sets of silenced heads (a thin line each) cost some of that, and a few raise it. With the "
        "copying heads silenced the curve stays low. "
        "Right: loss on Shakespeare; the copying heads cost less there than most other sets.",
    )


def surprise_clouds(ways: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw the surprise of passages against what the model expected.

    Args:
        ways: how a passage went on to its expected and its real surprise, per passage, in nats.
    """
    figure, ax = new_figure(figsize=(6.0, 5.8))
    looks = [("value", "o"), ("right", "s"), ("key", "^"), ("wrong", "D")]
    top = 0.0
    for (name, (expected, came)), (colour, marker) in zip(ways.items(), looks, strict=False):
        ax.plot(expected, came, marker, color=COLOURS[colour], markersize=4, alpha=0.45)
        x, y = float(np.mean(expected)), float(np.mean(came))
        ax.plot(x, y, marker, color=COLOURS[colour], markersize=12, markeredgecolor="black",
                label=name)  # fmt: skip
        top = max(top, max(came), max(expected))
    ax.plot([0, top], [0, top], "--", color=COLOURS["residual"], linewidth=1.2)
    ax.text(0.2 * top, 0.225 * top, "as surprising as expected", rotation=45,
            rotation_mode="anchor", fontsize=9)  # fmt: skip
    ax.set(xlim=(0, 1.03 * top), ylim=(0, 1.03 * top), aspect="equal",
           xlabel="surprise the model expected: its entropy (nats per token)",
           ylabel="surprise that came (nats per token)")  # fmt: skip
    ax.legend(fontsize=10, loc="upper left")
    ax.set_title("Greedy text is dull; Shakespeare surprises more than expected", loc="left")
    return describe(
        figure,
        "A scatter of passages. Greedy continuations lie near the origin and below the diagonal, "
        "sampled ones on the diagonal, Shakespeare's own slightly above it.",
    )


def coloured(texts: Mapping[str, tuple[Sequence[str], Sequence[float]]]) -> Figure:
    """Draw texts with each token shaded by its surprise.

    Args:
        texts: name to the tokens and the surprise of each, in nats.
    """
    wide, line, high = 80.0, 1.0, 0.0
    placed = []
    for name, (tokens, values) in texts.items():
        high += 1.25
        placed.append((0.0, -high, name, -1.0))
        high += 1.15
        left = 0.0
        for token, value in zip(tokens, values, strict=True):
            shown = token.replace("\n", "⏎")
            if left + len(shown) > wide:
                left, high = 0.0, high + line
            placed.append((left, -high, shown, value))
            left += len(shown)
    figure, ax = canvas(wide, high + 1.6)
    ax.set(xlim=(0, wide), ylim=(-high - 1.4, 0), aspect="auto")
    figure.set_size_inches(7.5, 0.235 * (high + 1.6))
    ramp = [(2.0, "white"), (4.0, "#FBD9B5"), (7.0, "#F0A565"), (math.inf, "#D55E00")]
    for left, y, text, value in placed:
        if value < 0:
            ax.text(0, y, text, fontsize=10, weight="bold", va="center")
            continue
        shade = next(colour for limit, colour in ramp if value <= limit)
        ax.add_patch(Rectangle((left, y - 0.48), len(text), 0.96, facecolor=shade,
                               edgecolor="white", linewidth=1.2))  # fmt: skip
        ax.text(left, y, text.replace("$", r"\$"), fontsize=10.3, family="monospace", va="center")
    words = ("up to 2 nats", "2 to 4", "4 to 7", "above 7")
    for i, ((_, shade), word) in enumerate(zip(ramp, words, strict=True)):
        box_at = (18.0 * i, -high - 1.35)
        ax.add_patch(Rectangle(box_at, 2.5, 0.7, facecolor=shade, edgecolor="#999999"))
        ax.text(18.0 * i + 3, -high - 1, word, fontsize=9.5, va="center")
    return describe(
        figure,
        "Texts with every token shaded by its surprise: the greedy one white and, in its first "
        "lines, palest orange; the sampled one and Shakespeare's with dark tokens among white "
        "ones.",
    )


def cache_rows(T: int = 6) -> Figure:
    """Draw the work for one more token: all rows of the attention triangle, or the last alone.

    Args:
        T: tokens, the new one included.
    """
    figure, ax = canvas(20, 8.6)
    for left, title, cached in ((0.9, "without a cache", False), (11.1, "with a cache", True)):
        ax.text(left + T / 2, 8.1, title, ha="center", fontsize=11, weight="bold")
        for row in range(T):
            for column in range(row + 1):
                new = row == T - 1
                colour = "attention" if (new or not cached) else "other"
                ax.add_patch(
                    Rectangle(
                        (left + column, 6.6 - row), 1, 1,
                        facecolor=COLOURS[colour] + ("AA" if new else "44" if not cached else "18"),
                        edgecolor="white", linewidth=1.5,
                    )
                )  # fmt: skip
            words = "new" if row == T - 1 else f"{row + 1}"
            ax.text(left - 0.2, 7.1 - row, words, ha="right", va="center", fontsize=9)
        ax.text(left + 1.4, 7.1, "a row: one token's query;\na square: a key it looks at",
                fontsize=8.5, va="center")  # fmt: skip
        ax.text(left + T + 0.25, 4.9, f"{T} tokens\npass through\nthe model" if not cached else
                "1 token\npasses through\nthe model", fontsize=10, va="center")  # fmt: skip
        kind = "key" if cached else "other"
        for column in range(T):
            fresh = column == T - 1 or not cached
            colour = "attention" if fresh else kind
            ax.add_patch(
                Rectangle((left + column, 0.55), 1, HIGH, facecolor=COLOURS[colour] + "55",
                          edgecolor=COLOURS[colour], linewidth=1.2)
            )  # fmt: skip
            ax.text(left + column + 0.5, 0.85, "k v", ha="center", va="center", fontsize=8.5)
        note = (
            "computed again\nfor every token" if not cached else "kept, and one\nadded at the end"
        )
        ax.text(left + T + 0.25, 0.85, note, fontsize=10, va="center")
    return describe(
        figure,
        f"Two triangles of queries (rows) and keys (columns) for {T} tokens. Without a cache all "
        "rows are computed again; with one, only the last row, and keys and values of the earlier "
        "tokens come from the cache.",
    )


def loop() -> Figure:
    """Draw greedy decoding as a loop: scores, the largest, and the token is read again."""
    figure, ax = canvas(20, 4.4)
    for left, width, text, colour in (
        (0.8, 3.2, "the text so far", "embedding"),
        (5.2, 3.2, "the model", "attention"),
        (9.6, 3.2, "49,152 scores", "residual"),
        (14.0, 5.2, "the largest: greedy", "gate"),
    ):
        box(ax, left, 2.6, width, text, colour, height=1.1)
    for start, end in ((4.0, 5.2), (8.4, 9.6), (12.8, 14.0)):
        arrow(ax, (start, 3.15), (end, 3.15))
    ax.plot([16.6, 16.6, 2.4], [2.6, 0.9, 0.9], color=COLOURS["wrong"], linewidth=2)
    arrow(ax, (2.4, 0.9), (2.4, 2.6), colour="wrong")
    ax.text(9.5, 1.05, "one token, appended: the model reads what it has just written",
            ha="center", va="bottom", fontsize=10.5, color=COLOURS["wrong"])  # fmt: skip
    return describe(
        figure,
        "A loop of four boxes: the text so far, the model, 49,152 scores, the largest of them. An "
        "arrow leads from the last one back to the first: one token is appended to the text.",
    )


def price_of_a_token(
    weights: Mapping[str, float],
    caches: Mapping[str, float],
    T: Sequence[int],
    flops: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw the bytes that are read for one token, and its FLOPs against the length of the text.

    Args:
        weights: part of the model to its bytes.
        caches: length of the text to the bytes of its cache.
        T: tokens of a text.
        flops: "with the cache" and "without" to the FLOPs for one more token at each length.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.4), width_ratios=[1.25, 1])
    rows = [("all weights", sum(weights.values())), *caches.items()]
    y = np.arange(len(rows))[::-1]
    start, colours = 0.0, {"SwiGLU": "mlp", "attention": "attention", "head": "embedding"}
    for name, count in weights.items():
        left.barh(y[0], count / 1e6, left=start / 1e6, height=0.7, edgecolor="white",
                  color=COLOURS[colours.get(name, "norm")])  # fmt: skip
        if count > 3e7:
            left.text((start + count / 2) / 1e6, y[0], name, ha="center", va="center", fontsize=8,
                      color="white")  # fmt: skip
        start += count
    for place, (_, count) in zip(y[1:], rows[1:], strict=True):
        left.barh(place, count / 1e6, height=0.7, color=COLOURS["key"], hatch="//",
                  edgecolor="white")  # fmt: skip
    for place, (_, count) in zip(y, rows, strict=True):
        left.text(count / 1e6 + 5, place, f"{count / 1e6:.0f}", va="center", fontsize=9)
    left.set_yticks(y, [name for name, _ in rows], fontsize=9.5)
    left.set(
        xlabel="MB read for one token, bfloat16", xlim=(0, 1.2 * max(c for _, c in rows) / 1e6)
    )
    left.set_title("read: the weights, and one of the caches", fontsize=10)
    left.grid(False, axis="y")
    looks = [("wrong", "--"), ("right", "-")]
    for (name, values), (colour, line) in zip(flops.items(), looks, strict=True):
        right.plot(T, np.asarray(values) / 1e9, line, color=COLOURS[colour])
        right.text(T[-1], values[-1] / 1e9 * 1.5, name, color=COLOURS[colour], ha="right",
                   fontsize=9.5)  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="tokens of the text",
              ylabel="GFLOPs for the next token")  # fmt: skip
    right.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1,024", "4,096"], fontsize=9)
    right.minorticks_off()
    right.set_ylim(top=60_000)
    right.set_title("computed (both axes logarithmic)", fontsize=10)
    return describe(
        figure,
        "Left: the weights, 269 MB in bfloat16, beside caches of 256, 2,048 and 8,192 tokens; the "
        "last is about seven tenths as long. Right: FLOPs of the next token rise with the text's "
        "length without the cache, and stay far lower with it.",
    )


def speed(T: Sequence[int], milliseconds: Mapping[str, Sequence[float]], floor: float) -> Figure:
    """Draw the measured time of one more token, and the least that memory allows.

    Args:
        T: tokens of the text.
        milliseconds: "with the cache" and "without" to the time at each length.
        floor: milliseconds in which memory delivers the weights.
    """
    figure, ax = new_figure(figsize=(6.4, 3.4))
    looks = [("wrong", "s", "--"), ("right", "o", "-")]
    for (name, values), (colour, marker, line) in zip(milliseconds.items(), looks, strict=True):
        ax.plot(T, values, line, marker=marker, color=COLOURS[colour])
        ax.text(T[-1] * 1.06, values[-1], name.replace(" the ", "\n"), color=COLOURS[colour],
                va="center", fontsize=10)  # fmt: skip
    ax.axhline(floor, color=COLOURS["residual"], linewidth=1.4, linestyle=":")
    ax.text(T[0], floor, "memory delivers the weights in this time", va="bottom", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(T, [str(t) for t in T])
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = [t for t in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:,}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="tokens of the text (both axes logarithmic)", ylabel="ms for the next token",
           xlim=(0.9 * T[0], 1.9 * T[-1]))  # fmt: skip
    return describe(
        figure,
        "Time for the next token against the length of the text. Without the cache it rises; with "
        "it, it is nearly level, and lies above the dotted line at which memory delivers the "
        "weights.",
    )


def trace(columns: Mapping[str, Sequence[object]], kept: Sequence[bool], title: str) -> Figure:
    """Draw a small calculation, a row of cells for each step, with what stays in colour.

    Args:
        columns: name of the step to its values, the same number in each.
        kept: which stay, in the order of the last row.
        title: what is calculated.
    """
    figure, ax = canvas(11.5, 0.95 * len(columns) + 1.0, inches=6.6)
    for row, (name, values) in enumerate(columns.items()):
        bottom = 0.95 * (len(columns) - 1 - row) + 0.2
        last = row == len(columns) - 1
        for i, value in enumerate(values):
            colour = "residual" if not last else "right" if kept[i] else "wrong"
            cells(ax, 5.2 + 1.2 * i, bottom, [value], colour, size=9.5)
        ax.text(4.9, bottom + HIGH / 2, name, ha="right", va="center", fontsize=10)
    ax.text(5.75, 0.95 * len(columns) + 0.6, title, ha="center", va="center", fontsize=11)
    return describe(figure, f"{title}: a table of {', '.join(columns)}, five cells each.")
