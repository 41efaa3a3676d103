"""Figures of notebook 11, generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from smol_scratch.course.figures.style import COLOURS, new_figure


def next_token(names: Sequence[str], probabilities: Sequence[float], others: int) -> Figure:
    """Draw the likeliest next tokens, and what is left for all others.

    Args:
        names: the tokens' texts, the likeliest first.
        probabilities: of these tokens.
        others: how many tokens are not shown.
    """
    figure, ax = new_figure(figsize=(7.2, 4.6))
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
    ax.set(xlabel="probability of coming next", xlim=(0, 1.12 * max(values)))
    ax.grid(False, axis="y")
    return figure


def filtered(panels: Mapping[str, Sequence[float]], before: Sequence[float]) -> Figure:
    """Draw what each filter makes of one distribution.

    Args:
        panels: name of the filter to the probabilities of the same tokens afterwards.
        before: the model's own probabilities, the likeliest first.
    """
    figure, axes = new_figure(2, 3, figsize=(7.5, 4.4), sharex=True, sharey=True)
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
    for ax in axes[:, 0]:
        ax.set_ylabel("probability", fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("rank of the token", fontsize=10)
    axes[0, 0].set_ylim(bottom=-0.025)
    handles, labels = axes.flat[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return figure


def candidates(tokens: Sequence[str], kept: Mapping[str, Sequence[int]], fixed: int) -> Figure:
    """Draw how many tokens each filter keeps, at each place of a text.

    Args:
        tokens: the text, a token each.
        kept: filter to the number of tokens that it left when this token was next.
        fixed: what a top-k would leave everywhere.
    """
    figure, ax = new_figure(figsize=(7.5, 3.9))
    places = np.arange(len(tokens))
    looks = [("right", "o", "-"), ("key", "s", ":")]
    for (name, counts), (colour, marker, line) in zip(kept.items(), looks, strict=True):
        ax.plot(places, counts, line, marker=marker, color=COLOURS[colour], linewidth=1.2,
                markersize=5, label=name)  # fmt: skip
    ax.axhline(fixed, color=COLOURS["residual"], linewidth=1, linestyle="--",
               label=f"top-k {fixed}")  # fmt: skip
    ax.set_yscale("log")
    ticks = [1, 10, 100, 1000]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_xticks(places, tokens, rotation=90, fontsize=9)
    ax.set(xlabel="the token that came", ylabel="candidates left", xlim=(-0.6, len(tokens) - 0.4))
    ax.legend(fontsize=9, loc="upper right", ncols=3, bbox_to_anchor=(1.0, 1.16))
    return figure


def rounds(lines: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how likely a phrase becomes each time that it is repeated.

    Args:
        lines: phrase to its probability a token (geometric mean) in each round.
    """
    figure, ax = new_figure(figsize=(7.2, 3.6))
    looks = [("wrong", "o", "-"), ("query", "s", "--"), ("value", "^", ":"), ("down", "D", "-.")]
    for (phrase, values), (colour, marker, line) in zip(lines.items(), looks, strict=False):
        ax.plot(range(1, len(values) + 1), values, line, marker=marker, color=COLOURS[colour],
                markersize=6, label=phrase)  # fmt: skip
    ax.set(xlabel="how often the phrase has come, this time included", ylim=(0, 1),
           ylabel="probability of each token\n(geometric mean)")  # fmt: skip
    ax.legend(fontsize=9, loc="lower right")
    return figure


def surprise(rows: Mapping[str, Sequence[float]], expected: Mapping[str, float]) -> Figure:
    """Draw the surprise of each token, for several continuations of one prompt.

    Args:
        rows: continuation to the surprise of each of its tokens, in nats.
        expected: continuation to the surprise that the model expected, on average: its entropy.
    """
    figure, axes = new_figure(len(rows), 1, figsize=(7.5, 4.6), sharex=True, sharey=True)
    colours = [COLOURS["wrong"], COLOURS["right"], COLOURS["value"]]
    for ax, (name, values), colour in zip(axes, rows.items(), colours, strict=True):
        ax.bar(range(1, len(values) + 1), values, width=0.85, color=colour)
        mean = sum(values) / len(values)
        ax.axhline(mean, color=COLOURS["residual"], linewidth=1.4, linestyle="--")
        title = f"{name}: mean {mean:.1f} (dashed), the model expected {expected[name]:.1f}"
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_yticks([0, 5, 10])
        ax.grid(False, axis="x")
    axes[1].set_ylabel("surprise (nats)")
    axes[-1].set_xlabel("token of the continuation")
    return figure


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
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.5), width_ratios=[1.25, 1])
    rows = list(weights.items()) + list(caches.items())
    colours = {"SwiGLU": "mlp", "attention": "attention", "embedding, as head": "embedding"}
    y = np.arange(len(rows))[::-1]
    for place, (name, count) in zip(y, rows, strict=True):
        colour = COLOURS[colours.get(name, "norm" if name in weights else "key")]
        left.barh(place, count / 1e6, height=0.7, color=colour,
                  hatch=None if name in weights else "//", edgecolor="white")  # fmt: skip
        text = f"{count / 1e6:.1f}" if count < 1e7 else f"{count / 1e6:.0f}"
        left.text(count / 1e6 + 3, place, text, va="center", fontsize=9)
    left.set_yticks(y, [name for name, _ in rows], fontsize=9)
    left.set(xlabel="MB read for a token, bfloat16", xlim=(0, 1.18 * max(c for _, c in rows) / 1e6))
    left.set_title("weights, and the cache (hatched)", fontsize=10)
    left.grid(False, axis="y")
    looks = [("wrong", "--"), ("right", "-")]
    for (name, values), (colour, line) in zip(flops.items(), looks, strict=True):
        right.plot(T, np.asarray(values) / 1e9, line, color=COLOURS[colour], label=name)
    right.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel="GFLOPs for one more")
    right.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1,024", "4,096"], fontsize=9)
    right.minorticks_off()
    right.legend(fontsize=9, loc="upper left")
    right.set_title("arithmetic", fontsize=10)
    return figure


def speed(
    T: Sequence[int], milliseconds: Mapping[str, Sequence[float]], read: Mapping[str, float]
) -> Figure:
    """Draw the measured time of one more token, and how fast memory was read.

    Args:
        T: tokens of the text.
        milliseconds: "with the cache" and "without" to the time at each length.
        read: what was done to bytes a second.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.4), width_ratios=[1, 1.15])
    looks = [("wrong", "s", "--"), ("right", "o", "-")]
    for (name, values), (colour, marker, line) in zip(milliseconds.items(), looks, strict=True):
        left.plot(T, values, line, marker=marker, color=COLOURS[colour], label=name)
    left.set_xscale("log", base=2)
    left.set_xticks(T, [str(t) for t in T])
    left.set_yscale("log")
    low, high = left.get_ylim()
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    left.set_yticks(ticks, [f"{t:,}" for t in ticks])
    left.minorticks_off()
    left.set(xlabel="tokens of the text", ylabel="ms for one more token")
    left.legend(fontsize=9, loc="upper left")
    names = list(read)[::-1]
    for place, name in enumerate(names):
        colour = COLOURS["residual" if name == "reading alone" else "right"]
        right.barh(place, read[name] / 1e9, height=0.6, color=colour)
        right.text(read[name] / 1e9, place, f" {read[name] / 1e9:.0f}", va="center", fontsize=9)
    right.set_yticks(range(len(names)), names, fontsize=9)
    right.set(xlabel="GB/s", xlim=(0, 1.15 * max(read.values()) / 1e9))
    right.grid(False, axis="y")
    return figure
