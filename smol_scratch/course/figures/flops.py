"""Figures of notebook 09, where the FLOPs go and how fast they could go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from smol_scratch.course.figures.style import COLOURS, new_figure

# What attention computes without a weight, beside the colours of the matrices.
_COLOUR_OF = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "scores": "attention",
    "weighted values": "attention",
    "o_proj": "attention",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "lm_head": "embedding",
}
_NO_WEIGHT = ("scores", "weighted values")


def split(forward: Mapping[str, float], per_layer: Sequence[float], head: float) -> Figure:
    """Draw the FLOPs of one forward pass by product, and by place from bottom to top.

    Args:
        forward: name of the product to its FLOPs, over all layers.
        per_layer: FLOPs of each block.
        head: FLOPs of the head.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.5, 3.6), width_ratios=[1.25, 1])
    names, whole = list(forward)[::-1], sum(forward.values())
    for i, name in enumerate(names):
        flops = forward[name]
        left.barh(i, flops / 1e9, height=0.7, color=COLOURS[_COLOUR_OF[name]],
                  hatch="//" if name in _NO_WEIGHT else None, edgecolor="white")  # fmt: skip
        left.text(flops / 1e9 + 0.2, i, f"{flops / whole:.1%}", va="center", fontsize=9)
    left.set_yticks(range(len(names)), names, fontsize=9.5)
    left.set(xlabel="GFLOPs forward, 256 tokens", xlim=(0, 1.22 * max(forward.values()) / 1e9))
    left.set_title("by product (hatched: no weights)", fontsize=10)
    left.grid(False, axis="y")
    places = np.arange(len(per_layer))
    right.bar(places, np.asarray(per_layer) / 1e9, width=0.8, color=COLOURS["mlp"])
    right.bar(len(per_layer) + 1.5, head / 1e9, width=2, color=COLOURS["embedding"])
    right.set_xticks([0, 10, 20, len(per_layer) + 1.5], ["0", "10", "20", "head"])
    right.set(xlabel="block, counted by PyTorch", ylabel="GFLOPs forward")
    right.set_title("by place", fontsize=10)
    right.grid(False, axis="x")
    return figure


def attention_share(
    T: Sequence[int],
    shares: Mapping[str, Sequence[float]],
    crossings: Mapping[str, float],
    marked: int,
) -> Figure:
    """Draw which share of the FLOPs goes into scores and weighted values, against the length.

    Args:
        T: tokens in a sequence.
        shares: model to the share at each length, between 0 and 1.
        crossings: model to the length at which the share is a half.
        marked: a length to mark, the walkthrough's own.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    looks = [("query", "-"), ("key", "--"), ("value", ":"), ("wrong", "-.")]
    ax.axhline(0.5, color=COLOURS["residual"], linewidth=0.8)
    ax.axvline(marked, color=COLOURS["residual"], linewidth=0.8)
    ax.text(marked / 1.07, 0.97, f"T = {marked}", ha="right", va="top", fontsize=9)
    for (name, values), (colour, style) in zip(shares.items(), looks, strict=False):
        ax.plot(T, values, style, color=COLOURS[colour], label=name)
        ax.plot(crossings[name], 0.5, "o", color=COLOURS[colour], markersize=6)
    ax.set_xscale("log", base=2)
    ticks = [64, 256, 1024, 4096, 16_384, 65_536]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlabel="T, tokens in a sequence", xlim=(T[0], T[-1]), ylim=(0, 1),
           ylabel="share of the quadratic part")  # fmt: skip
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0.19, 1.0))
    return figure


def roofline(
    peak: float, bandwidth: float, panels: Mapping[str, Mapping[str, tuple[float, float]]]
) -> Figure:
    """Draw how fast products ran, under the two limits of a machine.

    Args:
        peak: FLOP/s of a large matrix product.
        bandwidth: bytes a second that can be read from memory.
        panels: phase ("training", "decoding") to product to (FLOPs a byte, FLOP/s).
    """
    figure, ax = new_figure(figsize=(7.4, 4.0))
    x = np.geomspace(0.2, 1000, 200)
    ax.plot(x, np.minimum(peak, x * bandwidth) / 1e9, color=COLOURS["residual"],
            label="roof: memory, then arithmetic")  # fmt: skip
    ridge = peak / bandwidth
    ax.axvline(ridge, color=COLOURS["other"], linewidth=1, linestyle=":")
    markers = {"q_proj": "o", "gate_proj": "s", "lm_head": "^", "scores": "D"}
    for (phase, points), colour in zip(panels.items(), ("query", "gate"), strict=True):
        for name, (intensity, speed) in points.items():
            ax.plot(intensity, speed / 1e9, markers[name], color=COLOURS[colour], markersize=8,
                    markerfacecolor=COLOURS[colour] if phase == "training" else "white",
                    markeredgewidth=1.8, linestyle="none", label=f"{phase}: {name}")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="intensity (FLOPs a byte moved)", ylabel="GFLOP/s",
           xlim=(0.2, 1000))  # fmt: skip
    low = min(0.2 * bandwidth, *(s for p in panels.values() for _, s in p.values())) / 1e9
    ax.set_ylim(0.6 * low, 3 * peak / 1e9)
    ax.text(ridge * 1.06, 0.75 * low, "ridge", fontsize=9, color=COLOURS["residual"])
    ax.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def cards(speed: float, peaks: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw what share of each card's peak a measured speed would be, rightly and wrongly.

    Args:
        speed: FLOP/s.
        peaks: card to (peak of its tensor cores in 16 bits, of its ordinary units), in FLOP/s.
    """
    figure, ax = new_figure(figsize=(7.2, 4.2))
    names = list(peaks)[::-1]
    tensor, ordinary = ([speed / peaks[name][i] for name in names] for i in (0, 1))
    y = np.arange(len(names))
    ax.hlines(y, tensor, ordinary, color=COLOURS["other"], linewidth=1)
    ax.plot(tensor, y, "o", color=COLOURS["right"], label="of the tensor cores, 16 bits: right")
    ax.plot(ordinary, y, "D", color=COLOURS["wrong"], markerfacecolor="white", markeredgewidth=1.6,
            label="of the ordinary units, float32: wrong")  # fmt: skip
    ax.set_yticks(y, names, fontsize=9.5)
    ax.set_xscale("log")
    ticks = [0.001, 0.01, 0.1, 1]
    ax.set_xticks(ticks, ["0.1 %", "1 %", "10 %", "100 %"])
    ax.set(xlabel="share of the card's peak", xlim=(5e-4, 1))
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=2)
    return figure


def runs(flops: Mapping[str, float], marks: Mapping[str, float]) -> Figure:
    """Draw training runs by their FLOPs, with lines for what a card does in some time.

    Args:
        flops: run to FLOPs.
        marks: label to FLOPs, for instance of one card in an hour.
    """
    figure, ax = new_figure(figsize=(7.5, 2.7))
    names = list(flops)[::-1]
    for label, x in marks.items():
        ax.axvline(x, color=COLOURS["wrong"], linewidth=1.2, linestyle="--", zorder=0)
        ax.text(x, len(names) - 0.5, label, fontsize=9, ha="center", va="bottom",
                color=COLOURS["residual"])  # fmt: skip
    for i, name in enumerate(names):
        # A mark and no bar: on a logarithmic axis the length of a bar means nothing.
        ax.plot(flops[name], i, "o", color=COLOURS["query"], markersize=9)
        exponent = int(np.floor(np.log10(flops[name])))
        label = rf"${flops[name] / 10**exponent:.1f} \cdot 10^{{{exponent}}}$"
        ax.text(flops[name] * 2, i, label, va="center", fontsize=9.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    ax.set_yticks(range(len(names)), names, fontsize=9.5)
    ax.set_xscale("log")
    ax.set(xlim=(2e13, 2e23), ylim=(-0.5, len(names) - 0.5), xlabel="FLOPs")
    ax.grid(False)
    return figure
