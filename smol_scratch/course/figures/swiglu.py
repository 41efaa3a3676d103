"""Figures of notebook 04, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from smol_scratch.course.figures.style import COLOURS, new_figure

# Below zero, zero, above zero; and nothing, much.
_SIGNED = LinearSegmentedColormap.from_list(
    "signed", [COLOURS["query"], "white", COLOURS["gate"]], N=256
)
_STRENGTH = LinearSegmentedColormap.from_list("strength", ["white", COLOURS["gate"]], N=256)
_LINES = {
    "ReLU": (COLOURS["other"], ":"),
    "GELU": (COLOURS["key"], "--"),
    "SiLU": (COLOURS["gate"], "-"),
}


def walk(steps: Sequence[float], panels: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one output number along a straight walk through the space of inputs.

    Args:
        steps: how far along the walk.
        panels: title to the output at each step.
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.5, 2.7))
    colours = [COLOURS["residual"], COLOURS["other"], COLOURS["mlp"]]
    for ax, (title, values), colour in zip(axes, panels.items(), colours, strict=True):
        ax.plot(steps, values, color=colour)
        ax.set(title=title, xlabel="steps along the walk")
    axes[0].set_ylabel("one output number")
    return figure


def gate_curves(
    z: Sequence[float],
    values: Mapping[str, Sequence[float]],
    slopes: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw activation functions and their slopes.

    Args:
        z: the gate's value before the bend.
        values: name ("ReLU", "GELU", "SiLU") to the value after it.
        slopes: name to the slope there.
    """
    figure, axes = new_figure(1, 2, figsize=(7.5, 3.1))
    for ax, curves in zip(axes, (values, slopes), strict=True):
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.axvline(0, color=COLOURS["residual"], linewidth=0.8)
        for name, curve in curves.items():
            colour, style = _LINES[name]
            ax.plot(z, curve, style, color=colour, label=name)
        ax.set_xlabel("value before the bend")
    axes[0].set_ylabel("value after it")
    axes[1].set_ylabel("slope")
    axes[0].legend(fontsize=9, loc="upper left")
    return figure


def responses(side: Sequence[float], panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw what units answer to two readings of a token, as maps with lines of equal answer.

    Args:
        side: values of either reading.
        panels: title to the answers, (readings b, readings a).
    """
    figure, axes = new_figure(1, len(panels), figsize=(7.5, 3.0), sharey=True)
    reach = max(float(np.abs(surface).max()) for surface in panels.values())
    for ax, (title, surface) in zip(axes, panels.items(), strict=True):
        ax.contourf(
            side, side, surface, levels=[-9.1, -4, -2, -1, -0.2, 0.2, 1, 2, 4, 9.1],
            cmap=_SIGNED, vmin=-reach, vmax=reach,
        )  # fmt: skip
        lines = ax.contour(
            side, side, surface, levels=[-4, -2, -1, -0.2, 0.2, 1, 2, 4],
            colors="#222222", linewidths=0.8,
        )  # fmt: skip
        ax.clabel(lines, levels=[-4, -1, -0.2, 0.2, 1, 4], fontsize=8.5,
                  fmt=lambda value: f"{value:g}".replace("-", "−"))  # fmt: skip
        ax.set(title=title, xlabel="reading a", aspect="equal")
        ax.grid(visible=False)
    axes[0].set_ylabel("reading b")
    return figure


def trainings(
    steps: Sequence[float],
    curves: Mapping[str, np.ndarray],
    ends: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    """Draw training losses with their spread over seeds, and where each seed ended.

    Args:
        steps: training steps of the points of the curves.
        curves: kind of MLP to losses in nats, (seeds, points).
        ends: setting to (kind of MLP to the held-out loss of each seed).
    """
    figure, axes = new_figure(
        1, 1 + len(ends), figsize=(7.5, 3.3), width_ratios=[1.5] + [0.8] * len(ends)
    )
    looks = dict(zip(curves, [("mlp", "-", "o"), ("key", "--", "s")], strict=True))
    for kind, losses in curves.items():
        colour, style, _ = looks[kind]
        axes[0].fill_between(
            steps, losses.min(0), losses.max(0), color=COLOURS[colour], alpha=0.25, linewidth=0
        )
        axes[0].plot(steps, losses.mean(0), style, color=COLOURS[colour], label=kind)
    axes[0].set(
        xlabel="training step", ylabel="training loss (nats a character)",
        title=f"training, {list(ends)[-1]}",
    )  # fmt: skip
    axes[0].legend(fontsize=9)
    for ax, (setting, kinds) in zip(axes[1:], ends.items(), strict=True):
        pairs = np.array(list(kinds.values()))  # (2, seeds)
        ax.plot([0, 1], pairs, color=COLOURS["other"], linewidth=0.9)
        for place, kind in enumerate(kinds):
            colour, _, mark = looks[kind]
            ax.plot(
                [place] * pairs.shape[1], pairs[place], mark, color=COLOURS[colour], markersize=6
            )
        ax.set_xticks([0, 1], [kind.split(",")[0] for kind in kinds])
        ax.set(title=f"held out,\n{setting}", xlim=(-0.4, 1.4))
        middle = pairs.mean()
        ax.set_ylim(middle - 0.11, middle + 0.11)
    return figure


def gates_by_layer(
    gates: np.ndarray, shares: Mapping[str, Sequence[float]], channels: np.ndarray
) -> Figure:
    """Draw what gates do in each layer: their values, what passes, how many channels it takes.

    Args:
        gates: percentiles 1, 25, 50, 75, 99 of the gate's value, (5, layers).
        shares: label to a share between 0 and 1 for each layer.
        channels: percentiles 10, 50, 90 over tokens of the number of channels, (3, layers).
    """
    figure, axes = new_figure(1, 3, figsize=(7.5, 3.5))
    layers = np.arange(gates.shape[1])
    low, quarter, middle, three, high = gates
    axes[0].fill_between(
        layers, low, high, color=COLOURS["gate"], alpha=0.25, label="98 % of gates"
    )
    axes[0].fill_between(layers, quarter, three, color=COLOURS["gate"], alpha=0.6, label="half")
    axes[0].plot(layers, middle, color=COLOURS["residual"], linewidth=1.5, label="median")
    axes[0].set(title="gate values", ylim=(-5, 14))
    axes[0].legend(fontsize=8.5, loc="upper left")
    for (label, values), (colour, style) in zip(
        shares.items(), (("gate", "-"), ("query", "--")), strict=True
    ):
        axes[1].plot(layers, values, style, color=COLOURS[colour], label=label)
    axes[1].set(title="shares", ylim=(0, 1))
    axes[1].legend(fontsize=8.5, loc="upper left")
    axes[2].fill_between(
        layers, channels[0], channels[2], color=COLOURS["mlp"], alpha=0.25, label="80 % of tokens"
    )
    axes[2].plot(layers, channels[1], color=COLOURS["mlp"], label="median token")
    axes[2].set(title="channels for 90 %\nof the energy", ylim=(0, 640))
    axes[2].legend(fontsize=8.5, loc="upper left")
    for ax in axes:
        ax.set_xlabel("layer")
    return figure


def strips(tokens: Sequence[str], rows: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how strongly channels react to each token of a text.

    Args:
        tokens: the text in pieces.
        rows: name of a channel to its value at each token; drawn relative to the largest.
    """
    figure, ax = new_figure(figsize=(7.5, 2.6))
    strengths = np.abs(np.array([list(values) for values in rows.values()]))
    strengths /= strengths.max(axis=1, keepdims=True)
    ax.pcolormesh(strengths, cmap=_STRENGTH, vmin=0, vmax=1, edgecolors="#DDDDDD", linewidth=0.4)
    shown = [token.replace("\n", "↵").replace("$", r"\$").strip(" ") for token in tokens]
    ax.set_xticks(np.arange(len(tokens)) + 0.5, shown, rotation=90, fontsize=8.5)
    ax.set_yticks(np.arange(len(rows)) + 0.5, list(rows), fontsize=9)
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return figure


def damage(losses: Mapping[str, float], floor: float, floor_label: str) -> Figure:
    """Draw the loss of the real weights with one part replaced.

    Args:
        losses: what was done to loss in nats a token; the first is the intact model.
        floor: the loss of a model that knows nothing.
        floor_label: what that is.
    """
    figure, ax = new_figure(figsize=(7.2, 2.9))
    names = list(losses)
    bars = ax.barh(
        names, list(losses.values()),
        color=[COLOURS["right"]] + [COLOURS["wrong"]] * (len(names) - 1), height=0.6,
    )  # fmt: skip
    for bar in bars[1:]:
        bar.set(hatch="//", edgecolor="white")
    ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    ax.axvline(floor, color=COLOURS["residual"], linestyle="--", linewidth=1.4, label=floor_label)
    ax.invert_yaxis()
    ax.set(xlabel="loss (nats a token)", xlim=(0, 1.12 * max(losses.values())))
    ax.grid(visible=False, axis="y")
    ax.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure
