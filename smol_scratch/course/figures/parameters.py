"""Figures of notebook 08, where parameters and bytes go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.style import COLOURS, new_figure

Box = tuple[float, float, float, float]  # left, top, width, height

# The name of a matrix to its colour, light or dark: dark ones take white letters.
_COLOUR_OF = {
    "embedding": "embedding",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "attention",
    "gate": "gate",
    "up": "up",
    "down": "down",
    "norms": "norm",
    "final norm": "norm",
}
_LIGHT = {"k", "up", "down"}


def total(tree: Any) -> float:
    """Return the sum of the numbers in nested dictionaries."""
    return sum(map(total, tree.values())) if isinstance(tree, Mapping) else tree


def layout(tree: Mapping[str, Any], box: Box) -> dict[tuple[str, ...], Box]:
    """Divide a rectangle among the leaves of nested dictionaries, each its share of the area.

    A rectangle is cut across its longer side; the pieces that hold dictionaries are cut again.

    Args:
        tree: name to a number, or to a dictionary of the same kind.
        box: left, top, width and height of the whole.

    Returns:
        The names on the way to each leaf, to the leaf's rectangle.

    Source: Shneiderman, 1992, Tree visualization with tree-maps.
    """
    return dict(_divide(tree, box, ()))


def _divide(tree: Any, box: Box, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Box]]:
    if not isinstance(tree, Mapping):
        yield path, box
        return
    left, top, width, height = box
    whole, wide = total(tree), width >= height
    for name, part in tree.items():
        share = total(part) / whole
        piece = (left, top, width * share, height) if wide else (left, top, width, height * share)
        yield from _divide(part, piece, (*path, name))
        left, top = (left + width * share, top) if wide else (left, top + height * share)


def _tiles(ax: Axes, boxes: Mapping[tuple[str, ...], Box], width: float, height: float) -> None:
    """Draw rectangles, each in the colour of its matrix."""
    for path, box in boxes.items():
        small = box[2] < 0.01 or box[3] < 0.01  # an edge would cover it
        ax.add_patch(
            Rectangle(box[:2], box[2], box[3], facecolor=COLOURS[_COLOUR_OF[path[-1]]],
                      edgecolor="none" if small else "white", linewidth=0.5)
        )  # fmt: skip
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")


def nested_map(tree: Mapping[str, Any]) -> Figure:
    """Draw a model as a map on which area is parameters, and one of its layers enlarged below.

    Args:
        tree: "embedding", "blocks" and "final norm"; the blocks hold columns of layers, a layer
            "MLP", "attention" and "norms".
    """
    figure, (whole, one) = new_figure(2, 1, figsize=(7.5, 5.6), height_ratios=[3.5, 1.5])
    boxes = layout(tree, (0, 0, 7.5, 3.5))
    _tiles(whole, boxes, 7.5, 3.5)
    left, top, width, height = boxes[("embedding",)]
    whole.text(left + width / 2, top + height / 2, f"embedding\n= head\n\n{tree['embedding']:,}",
               ha="center", va="center", color="white", fontsize=10)  # fmt: skip
    frames: dict[str, list[Box]] = {}
    for path, box in boxes.items():
        if path[0] == "blocks":
            frames.setdefault(path[2], []).append(box)
    for pieces in frames.values():
        left, top = min(b[0] for b in pieces), min(b[1] for b in pieces)
        right, bottom = (max(b[i] + b[i + 2] for b in pieces) for i in (0, 1))
        whole.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white",
                      linewidth=1.6)
        )  # fmt: skip
    whole.set_title("the whole model: area is parameters; one tile is one layer", fontsize=10)
    first = next(iter(next(iter(tree["blocks"].values())).values()))
    boxes = layout(first, (0, 0, 7.5, 1.5))
    _tiles(one, boxes, 7.5, 1.5)
    for path, (left, top, width, height) in boxes.items():
        name = path[-1]
        if width < 0.05:
            continue
        count = f"{first[path[0]][name]:,}"
        narrow = width < 0.5
        one.text(left + width / 2, top + height / 2,
                 f"{name}: {count}" if narrow else f"{name}\n{count}", ha="center", va="center",
                 rotation=90 if narrow else 0, fontsize=9,
                 color="black" if name in _LIGHT else "white")  # fmt: skip
    one.set_title("one layer, enlarged", fontsize=10)
    return figure


def bars(count: Mapping[str, int]) -> Figure:
    """Draw the rows of the parameter table as bars.

    Args:
        count: row to parameters.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    rows = list(count)[::-1]
    whole = sum(count.values())
    for i, row in enumerate(rows):
        name = row.split()[-1].lower()
        colour = {"embeddings": "embedding", "(shared)": "embedding", "rmsnorm": "norms"}
        ax.barh(i, count[row] / 1e6, color=COLOURS[_COLOUR_OF[colour.get(name, name)]], height=0.7)
        ax.text(count[row] / 1e6 + 0.3, i, f"{count[row] / whole:.2%}", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), rows, fontsize=9.5)
    ax.set(xlabel="parameters (millions)", xlim=(0, 1.13 * max(count.values()) / 1e6))
    ax.grid(False, axis="y")
    return figure


def growth(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw which share of its parameters each model keeps where, as stacked bars.

    Args:
        shares: model to part to share.
    """
    figure, ax = new_figure(figsize=(7.3, 2.9))
    for i, parts in enumerate(shares.values()):
        left = 0.0
        for part in ("embedding", "attention", "MLP"):
            ax.barh(i, parts[part], left=left, color=COLOURS[part.lower()], edgecolor="white",
                    height=0.62)  # fmt: skip
            ax.text(left + parts[part] / 2, i, f"{part}\n{parts[part]:.1%}" if i == 0 else
                    f"{parts[part]:.1%}", ha="center", va="center", color="white",
                    fontsize=9.5 if parts[part] > 0.1 else 8.5)  # fmt: skip
            left += parts[part]
    ax.set_yticks(range(len(shares)), list(shares))
    ax.invert_yaxis()
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlabel="share of all parameters", xlim=(0, 1))
    ax.grid(False)
    return figure


def diary(panels: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the memory of a training step from operation to operation, and its peak enlarged.

    Args:
        panels: title to "weights" and "moments" in bytes, "gradients" and "rest" in bytes after
            each operation, "ends" (operations after which forward and backward are over), "at"
            (the operation with the peak), and "predicted", the peak in bytes.
    """
    figure, axes = new_figure(len(panels), 2, figsize=(7.5, 6.0), width_ratios=[1.9, 1])
    for (whole, near), (title, told) in zip(axes, panels.items(), strict=True):
        parts = [np.asarray(told[name], dtype=float) / 1e6 for name in ("gradients", "rest")]
        x = np.arange(len(parts[0]))
        parts = [np.full(len(x), told[name] / 1e6) for name in ("weights", "moments")] + parts
        high = 1.2 * told["predicted"] / 1e6
        for ax in (whole, near):
            stack = ax.stackplot(
                x,
                *parts,
                colors=[COLOURS[c] for c in ("attention", "up", "wrong", "key")],
                labels=["weights", "AdamW's two moments", "gradients, complete", "everything else"],
                step="mid",
            )
            for band, hatch in zip(stack, ("", "..", "//", ""), strict=True):
                band.set(hatch=hatch, edgecolor="white", linewidth=0)
            ax.axhline(told["predicted"] / 1e6, color=COLOURS["residual"], linestyle="--",
                       linewidth=1.4, label="predicted peak")  # fmt: skip
            for end in told["ends"]:
                ax.axvline(end - 0.5, color=COLOURS["residual"], linewidth=0.9)
            ax.set_ylim(0, high)
            ax.grid(False)
        near.tick_params(labelleft=False)
        low, top = max(told["at"] - 16, 0), min(told["at"] + 16, len(x))
        near.set(xlim=(low - 0.5, top - 0.5))
        near.set_title("around the peak", fontsize=10)
        whole.set(xlim=(-0.5, len(x) - 0.5), ylabel="tensors alive (MB)")
        whole.set_title(title, fontsize=10)
        forward, backward = told["ends"]
        whole.text(forward / 2, 0.98 * high, "forward", ha="center", va="top", fontsize=9)
        whole.text((forward + backward) / 2, 0.98 * high, "backward", ha="center", va="top",
                   fontsize=9)  # fmt: skip
        for start, end, name in ((low, forward, "forward"), (max(low, forward), min(top, backward),
                                 "backward"), (backward, top, "update")):  # fmt: skip
            if end - start > 3:
                near.text((start + end) / 2, 0.98 * high, name, ha="center", va="top", fontsize=9)
            elif end - start > 0:
                near.text(end, 0.98 * high, f"{name} ", ha="right", va="top", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("operations, in order")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def batches(
    sizes: Sequence[int], parts: Mapping[str, Sequence[float]], said: tuple[int, float, float]
) -> Figure:
    """Draw the memory at the start of the backward pass against the batch size, stacked by part.

    Args:
        sizes: sequences in the batch.
        parts: part to GB at each batch size.
        said: a batch size, and the range in GB that somebody reported for it.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    x, bottom = np.arange(len(sizes)), np.zeros(len(sizes))
    looks = (("attention", ""), ("up", ".."), ("mlp", ""), ("key", "//"))
    for (label, values), (colour, hatch) in zip(parts.items(), looks, strict=True):
        ax.bar(x, values, bottom=bottom, color=COLOURS[colour], hatch=hatch, edgecolor="white",
               linewidth=0.5, width=0.62, label=label)  # fmt: skip
        bottom += np.asarray(values)
    for i, height in enumerate(bottom):
        ax.text(i - 0.34, height, f"{height:.2f}", ha="right", va="center", fontsize=9.5)
    at = list(sizes).index(said[0])
    ax.add_patch(
        Rectangle((at - 0.31, said[1]), 0.62, said[2] - said[1], fill=False, linestyle="--",
                  edgecolor=COLOURS["residual"], linewidth=1.4)
    )  # fmt: skip
    ax.text(at, said[2] + 0.15, f"the description:\n{said[1]:g} to {said[2]:g}", fontsize=9,
            ha="center", va="bottom", color=COLOURS["residual"])  # fmt: skip
    ax.set_xticks(x, [str(size) for size in sizes])
    ax.set(xlabel="sequences of 256 tokens in the batch", ylabel="memory at the peak (GB)",
           xlim=(-0.8, len(sizes) - 0.5), ylim=(0, 1.08 * bottom.max()))  # fmt: skip
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], fontsize=9, loc="upper left")
    ax.grid(False, axis="x")
    return figure


def tokens_for_parameters(
    points: Mapping[str, tuple[float, float, str]], per_parameter: float, mine: str
) -> Figure:
    """Draw how many tokens models were trained on, and a rule of tokens for each parameter.

    Args:
        points: model to parameters, tokens, and where its name goes: "right", "above" or
            "below".
        per_parameter: tokens a parameter by the rule.
        mine: the point that is marked; the ratio to the rule is written at all of its size.
    """
    figure, ax = new_figure(figsize=(7.2, 4.3))
    line = np.array([5e7, 4e12])
    ax.plot(line, per_parameter * line, "--", color=COLOURS["residual"], linewidth=1.4)
    ax.text(4e9, per_parameter * 3e9, f"{per_parameter:g} tokens a parameter", fontsize=9.5,
            va="top", color=COLOURS["residual"])  # fmt: skip
    for name, (size, seen, place) in points.items():
        colour, mark = ("wrong", "X") if name == mine else ("right", "o")
        each = seen / size
        text = f"{each:,.0f}" if each > 100 else f"{each:.2g}"
        ax.plot(size, seen, mark, color=COLOURS[colour], markersize=9)
        ax.annotate(f"{name}\n{text} a parameter", (size, seen),
                    {"right": (9, 0), "above": (-6, 15), "below": (9, 4)}[place],
                    textcoords="offset points", fontsize=9,
                    va={"right": "center", "above": "bottom", "below": "top"}[place],
                    ha="center" if place == "above" and size > 1e9 else "left",
                    color=COLOURS[colour])  # fmt: skip
        if size == points[mine][0]:
            rule = per_parameter * size
            ax.annotate("", (size, seen), (size, rule),
                        arrowprops={"arrowstyle": "-|>", "color": COLOURS[colour],
                                    "linestyle": ":", "shrinkB": 5})  # fmt: skip
            ratio = f"{seen / rule:.0f}" if seen > rule else f"{seen / rule:.4f}"
            ax.text(size * 1.15, (seen * rule) ** 0.5, f"{ratio} × the rule", fontsize=9,
                    va="center", color=COLOURS[colour])  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens seen in training",
           xlim=(7e7, 3e12), ylim=(1e6, 4e14))  # fmt: skip
    return figure
