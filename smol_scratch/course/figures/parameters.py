"""Figures of notebook 08, where parameters and bytes go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import nn

from smol_scratch.course.figures import drawing
from smol_scratch.course.figures.drawing import HIGH
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

Box = tuple[float, float, float, float]  # left, top, width, height

# The name of a matrix to its colour, a shade of its family's: attention's blue, the MLP's red.
_COLOUR_OF = {
    "embedding": COLOURS["embedding"],
    "q": COLOURS["attention"],
    "k": "#7C9EC7",
    "v": "#7C9EC7",
    "o": COLOURS["attention"],
    "gate": COLOURS["mlp"],
    "up": "#C4715A",
    "down": COLOURS["mlp"],
    "norms": COLOURS["norm"],
    "final norm": COLOURS["norm"],
}
# What a training step holds, in the order in which it is stacked: colour and hatching.
_LOOK = {
    "weights": (COLOURS["residual"], ""),
    "AdamW's two moments": ("#8A8A8A", ".."),
    "gradients of the weights": ("#C9C9C9", "\\\\"),
    "16-bit copies of the weights": ("#F0E442", ""),
    "norms and residual stream": (COLOURS["norm"], ""),
    "attention": (COLOURS["attention"], ""),
    "MLPs": (COLOURS["mlp"], ""),
    "vocabulary": (COLOURS["embedding"], "xx"),
}


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
            Rectangle(box[:2], box[2], box[3], facecolor=_COLOUR_OF[path[-1]],
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
    share = {
        "embedding": tree["embedding"] / total(tree),
        "MLPs": sum(_named(tree["blocks"], "MLP")) / total(tree),
        "attention": sum(_named(tree["blocks"], "attention")) / total(tree),
    }
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
    said = ", ".join(f"{name} {part:.0%}" for name, part in share.items())
    whole.set_title(f"Area is parameters, a framed tile a layer: {said}")
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
                 rotation=90 if narrow else 0, fontsize=9, color="white")  # fmt: skip
    one.set_title("One layer, enlarged")
    return describe(
        figure,
        """
        Tree map of the 135M model: embedding 21 %, MLPs 59 %, attention 20 %. One brown
        rectangle is the embedding. The rest is a grid of thirty equal layers, each three
        quarters MLP in red, one quarter attention in blue. Below, one layer enlarged: gate,
        up and down 884,736 each; q and o 331,776 each; k and v 110,592 each.
        """,
    )


def _named(tree: Any, name: str) -> Iterator[float]:
    """Yield the size of every part of this name in nested dictionaries."""
    for key, part in tree.items() if isinstance(tree, Mapping) else ():
        if key == name:
            yield total(part)
        else:
            yield from _named(part, name)


def model_tree(model: nn.Module) -> dict[str, Any]:
    """Return a model's parameters as nested dictionaries, five layers to a column of the map."""
    size = {name: weight.numel() for name, weight in model.named_parameters()}

    def layer(i: int) -> dict[str, Any]:
        at = f"model.layers.{i}."
        norms = ("input_layernorm", "post_attention_layernorm")
        return {
            "MLP": {x: size[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up", "down")},
            "attention": {x: size[f"{at}self_attn.{x}_proj.weight"] for x in "qkvo"},
            "norms": sum(size[f"{at}{norm}.weight"] for norm in norms),
        }

    return {
        "embedding": size["model.embed_tokens.weight"],
        "blocks": {c: {f"layer {i}": layer(i) for i in range(5 * c, 5 * c + 5)} for c in range(6)},
        "final norm": size["model.norm.weight"],
    }


# One block of the pencil example: what is made for a token, how many numbers, whether it is kept.
_BLOCK = (
    ("residual stream", "residual", ((8, True),), "the norm's derivative reads it"),
    ("RMSNorm", "norm", ((1, True), (8, True), (8, True)),
     "its scale; the vector before and after its weight"),
    ("q, k, v", "attention", ((8, False), (4, False), (4, True)),
     "v only: RoPE's derivative needs only the angles"),
    ("RoPE of q and k", "attention", ((8, True), (4, True)), "attention's derivative reads them"),
    ("attention", "attention", ((8, True), (2, True), (8, True)),
     "output; its softmax sums; output again"),
    ("o_proj", "attention", ((8, False),), "it is only added"),
    ("+ the stream", "residual", ((8, True),), "the next norm reads the sum"),
    ("RMSNorm", "norm", ((1, True), (8, True), (8, True)), "as above"),
    ("gate, up", "mlp", ((12, True), (12, True)), "SiLU's derivative reads gate; up is a factor"),
    ("SiLU(gate)", "mlp", ((12, True),), "the other factor"),
    ("SiLU(gate) · up", "mlp", ((12, True),), "down_proj's input"),
    ("down_proj", "mlp", ((8, False),), "it is only added"),
)  # fmt: skip
_CELL = 0.33  # the width of a number


def kept_in_a_block() -> Figure:
    """Draw what one block makes for a token: kept for the backward pass, or let go at once."""
    figure, ax = drawing.canvas(26, 0.95 * len(_BLOCK) + 2.6, inches=7.8)
    top = 0.95 * len(_BLOCK) + 0.15
    for row, (name, colour, vectors, why) in enumerate(_BLOCK):
        bottom = top - 0.95 * row
        drawing.box(ax, 0, bottom, 4.6, name, colour, size=9)
        if row + 1 < len(_BLOCK):
            ax.annotate("", (2.3, bottom - 0.95 + HIGH), (2.3, bottom),
                        arrowprops={"arrowstyle": "-", "color": COLOURS["residual"]})  # fmt: skip
        left = 5.2
        for length, kept in vectors:
            for i in range(length):
                ax.add_patch(
                    Rectangle((left + _CELL * i, bottom), _CELL, HIGH,
                              facecolor=COLOURS[colour] if kept else "white",
                              edgecolor="white" if kept else COLOURS[colour],
                              linestyle="-" if kept else ":", linewidth=0.8)
                )  # fmt: skip
            left += _CELL * length + 0.35
        stays = sum(length for length, kept in vectors if kept)
        ax.text(14.6, bottom + HIGH / 2, str(stays), va="center", ha="right", fontsize=10,
                weight="bold")  # fmt: skip
        ax.text(15.0, bottom + HIGH / 2, why, va="center", fontsize=9)
    ax.plot([13.2, 14.7], [top - 0.95 * row - 0.12] * 2, color="black", linewidth=0.9)
    ax.text(14.6, top - 0.95 * row - 0.2, str(kept_numbers()), va="top", ha="right", fontsize=10,
            weight="bold")  # fmt: skip
    ax.text(15.0, top - 0.95 * row - 0.2, "numbers per token", va="top", fontsize=9)
    ax.text(0, top + 1.5, f"A block keeps {kept_numbers()} numbers per token and "
            f"lets {kept_numbers(False)} go", fontsize=11,
            va="bottom")  # fmt: skip
    ax.text(5.2, top + HIGH + 0.1, "filled: kept;  dotted: let go", fontsize=9, va="bottom")
    ax.text(14.6, top + HIGH + 0.1, "kept", fontsize=9, va="bottom", ha="right", weight="bold")
    ax.text(15.0, top + HIGH + 0.1, "which, and for what", fontsize=9, va="bottom")
    return describe(
        figure,
        """
        Twelve operations of a block, one below the other, each with the numbers that it
        makes for one token of the paper model. Kept: the stream, the norm's scale and its
        vector before and after the weight, v, the rotated q and k, attention's output twice
        and its softmax sums, the new stream, the second norm's, gate, up, SiLU of gate,
        their product: 132 numbers. Let go: q and k before the rotation, and the outputs of
        o_proj and down_proj.
        """,
    )


def kept_numbers(kept: bool = True) -> int:
    """Return how many of the numbers in ``kept_in_a_block`` are kept, or let go."""
    return sum(n for _, _, vectors, _ in _BLOCK for n, stays in vectors if stays is kept)


def bytes_per_parameter(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw how many bytes each parameter takes in different uses, as stacked bars.

    Args:
        rows: use to part ("weight", "copy", "gradient", "moment", "moments") to bytes.
    """
    figure, ax = new_figure(figsize=(7.2, 0.45 * len(rows) + 0.9))
    moments = ("#8A8A8A", "white")
    looks = {"weight": (COLOURS["residual"], "white"), "gradient": ("#C9C9C9", "black"),
             "copy": (_LOOK["16-bit copies of the weights"][0], "black"), "moment": moments,
             "moments": moments}  # fmt: skip
    for i, parts in enumerate(rows.values()):
        left = 0.0
        for part, width in parts.items():
            colour, letters = looks[part]
            ax.barh(i, width, left=left, color=colour, edgecolor="white", height=0.68)
            ax.text(left + width / 2, i, part if width >= 2 else "", ha="center", va="center",
                    color=letters, fontsize=9)  # fmt: skip
            left += width
        ax.text(left + 0.2, i, f"{left:g}", va="center", fontsize=10)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set(xlabel="bytes per parameter", xlim=(0, 17))
    ax.set_title("A step with AdamW takes eight times the bytes of use in 16 bits")
    ax.grid(False)
    return describe(
        figure,
        """
        Bars of bytes per parameter: use in 16 bits 2, use in float32 4, training with SGD
        8, with momentum 12, with AdamW 16, of which 4 are the weight, 4 the gradient, 8 the
        two moments. With AdamW just before the backward pass 14: weight 4, 16-bit copy 2,
        moments 8.
        """,
    )


def diary(
    held: Mapping[str, Sequence[int]], ends: tuple[int, int], card: float, where: str
) -> Figure:
    """Draw the memory of a training step from operation to operation, and a card's limit.

    The steps of the vocabulary's part at the loss are numbered.

    Args:
        held: family to bytes after each operation.
        ends: the number of operations after the forward pass, and after the backward pass.
        card: its memory in bytes.
        where: the place at which it is full.
    """
    figure, ax = new_figure(figsize=(7.4, 4.2))
    names = [name for name in _LOOK if name in held]
    parts = np.array([held[name] for name in names]) / 1e9
    # The few operations of the loss are drawn wide: at one scale they would be a hairline.
    wide = np.ones(parts.shape[1])
    loss = slice(ends[0] - 10, ends[0] + 9)
    wide[loss] = 80
    x = np.cumsum(wide)
    bands = ax.stackplot(x, parts, colors=[_LOOK[n][0] for n in names], step="mid")
    for band, name in zip(bands, names, strict=True):
        band.set(hatch=_LOOK[name][1], edgecolor="white", linewidth=0, label=name)
    whole = parts.sum(0)
    high = 1.2 * whole.max()
    ax.axhline(card / 1e9, color=COLOURS["wrong"], linestyle="--", linewidth=1.6)
    ax.text(x[-1], card / 1e9 + 0.3, f"the card: {card / 1e9:g} GB", color=COLOURS["wrong"],
            ha="right", va="bottom", fontsize=9.5)  # fmt: skip
    start, end = x[loss.start], x[loss.stop]
    for edge in (start, end):
        ax.axvline(edge, color="black", linewidth=0.8, linestyle=":")
    places = ((start / 2, "forward:\n30 blocks"), ((start + end) / 2, "loss"),
              ((end + x[-1]) / 2, "backward:\n30 blocks"))  # fmt: skip
    for middle, name in places:
        ax.text(middle, 0.985 * high, name, ha="center", va="top", fontsize=10)
    ax.text(end + 60, whole.max(), f"{whole.max():.1f} GB", va="center", fontsize=10)
    vocabulary = parts[names.index("vocabulary")]
    changes = [i for i in range(loss.start, loss.stop) if vocabulary[i] != vocabulary[i - 1]]
    rises = [i for i in changes if vocabulary[i] > vocabulary[i - 1]]
    for number, i in enumerate(rises, start=1):
        last = next((j for j in changes if j > i), loss.stop) - 1
        ax.text((x[i] + x[last]) / 2, whole[i] + 0.25, str(number), ha="center", va="bottom",
                fontsize=9, weight="bold")  # fmt: skip
    held_on = int(0.72 * len(whole))
    ax.annotate("16-bit logits,\nstill held by the loop", (x[held_on], whole[held_on] - 0.8),
                (x[held_on], 21), fontsize=9.5, ha="center", va="center",
                arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8})  # fmt: skip
    crash = x[int((whole > card / 1e9).argmax())]
    ax.plot([crash], [card / 1e9], "X", color=COLOURS["wrong"], markersize=11,
            markeredgecolor="white", zorder=5)  # fmt: skip
    ax.annotate(where, (crash, card / 1e9), (-12, 14), textcoords="offset points", ha="right",
                fontsize=9.5, color=COLOURS["wrong"])  # fmt: skip
    ax.set(xlim=(0, x[-1]), ylim=(0, high), xlabel="operations, in order (the loss drawn wide)",
           ylabel="tensors alive (GB)", xticks=[])  # fmt: skip
    ax.set_title("64 sequences: the card is full before the loss is reached")
    ax.grid(False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3, fontsize=8.5)
    return describe(
        figure,
        """
        Memory of a step with 64 sequences, stacked by part. It rises through the thirty
        blocks of the forward pass, passes the card's 16 GB near its end, climbs in five
        numbered steps to almost 29 GB at the loss, where the vocabulary's tensors appear,
        and falls during the backward pass. A band of 16-bit logits stays to the end.
        """,
    )


def peaks(rows: Mapping[str, Mapping[str, float]], card: float, title: str) -> Figure:
    """Draw what is held when the most is held, as stacked bars, and a card's limit.

    Args:
        rows: label to family to bytes.
        card: its memory in bytes.
        title: of the picture.
    """
    figure, ax = new_figure(figsize=(7.4, 0.62 * len(rows) + 1.75))
    for i, held in enumerate(rows.values()):
        left = 0.0
        for name, (colour, hatch) in _LOOK.items():
            if width := held.get(name, 0) / 1e9:
                ax.barh(i, width, left=left, color=colour, hatch=hatch, edgecolor="white",
                        linewidth=0.4, height=0.66)  # fmt: skip
                if width > 1.4:
                    ax.text(left + width / 2, i, f"{width:.1f}", ha="center", va="center",
                            fontsize=9, color="white", zorder=4,
                            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1})  # fmt: skip
                left += width
        ax.text(left + 0.2, i, f"{left:.1f} GB", va="center", fontsize=9.5, zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    longest = max(sum(held.values()) for held in rows.values()) / 1e9
    ax.axvline(card / 1e9, color=COLOURS["wrong"], linestyle="--", linewidth=1.6)
    ax.text(card / 1e9 + 0.2, -0.62, f"the card: {card / 1e9:g} GB", color=COLOURS["wrong"],
            fontsize=9.5, va="center")  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="memory at the peak (GB)", xlim=(0, 1.13 * longest),
           ylim=(len(rows) - 0.5, -0.95))  # fmt: skip
    ax.set_title(title)
    ax.grid(False)
    shown = [n for n in _LOOK if any(held.get(n, 0) > 1e7 for held in rows.values())]
    handles = [Patch(facecolor=_LOOK[n][0], hatch=_LOOK[n][1], edgecolor="white") for n in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=3, fontsize=8.5)
    said = "; ".join(
        f"{label}: {sum(held.values()) / 1e9:.1f} GB, the largest part "
        f"{max(held, key=held.__getitem__)}"
        for label, held in rows.items()
    )
    return describe(figure, f"{title}. Bars by part. {said}. The card ends at {card / 1e9:g} GB.")


def against_length(
    tokens: Sequence[int], fused: Sequence[float], written: Sequence[float], card: float
) -> Figure:
    """Draw a step's peak against the length of its one sequence, for two ways of attention.

    Args:
        tokens: lengths.
        fused: the peaks in bytes with fused attention.
        written: the peaks in bytes with attention written out.
        card: its memory in bytes.
    """
    figure, ax = new_figure(figsize=(7.2, 3.7))
    high = 42.0
    fine = np.linspace(tokens[0], tokens[-1], 200)
    for memory, degree, colour, mark in ((written, 2, "wrong", "s"), (fused, 1, "right", "o")):
        curve = np.polyval(np.polyfit(tokens, np.array(memory) / 1e9, degree), fine)
        ax.plot(fine, curve, color=COLOURS[colour])
        ax.plot(tokens, np.array(memory) / 1e9, mark, color=COLOURS[colour], markersize=6)
    ax.axhline(card / 1e9, color=COLOURS["residual"], linestyle="--", linewidth=1.4)
    ax.text(tokens[-1], card / 1e9 + 0.6, f"the card: {card / 1e9:g} GB", ha="right", fontsize=9.5,
            color=COLOURS["residual"])  # fmt: skip
    ax.text(6300, 9.3, "fused: a straight line", color=COLOURS["right"], ha="left", fontsize=10)
    ax.text(4350, 34, f"written out: a parabola,\n{written[-1] / 1e9:.0f} GB at "
            f"{tokens[-1]:,} tokens,\nfar above this picture", color=COLOURS["wrong"],
            fontsize=10)  # fmt: skip
    ax.set(xlabel="tokens in the one sequence", ylabel="memory at the peak (GB)", ylim=(0, high),
           xlim=(0, 1.02 * tokens[-1]))  # fmt: skip
    ax.set_xticks([0, 1024, 2048, 4096, 6144, 8192], ["0", "1,024", "2,048", "4,096", "6,144",
                                                      "8,192"])  # fmt: skip
    ax.set_title("Written out, attention's T × T matrices grow with the square of the length")
    return describe(
        figure,
        """
        Memory at the peak against the length of one sequence, from 512 to 8,192 tokens.
        With fused attention a straight line that ends just below the card's 16 GB. With
        attention written out a parabola that passes 16 GB between 2,048 and 3,072 tokens and
        leaves the picture at 42 GB; a note says that it comes to 126 GB.
        """,
    )


def growth(shares: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> Figure:
    """Draw which share of its parameters each model keeps where, as stacked bars.

    Args:
        shares: model to part to share.
        sizes: model to all of its parameters.
    """
    figure, ax = new_figure(figsize=(7.3, 3.3))
    for i, (model, parts) in enumerate(shares.items()):
        left = 0.0
        for part in ("embedding", "attention", "MLP"):
            ax.barh(i, parts[part], left=left, color=COLOURS[part.lower()], edgecolor="white",
                    height=0.78)  # fmt: skip
            words = f"{parts[part]:.1%}\n{parts[part] * sizes[model] / 1e6:,.0f} M"
            ax.text(left + parts[part] / 2, i, f"{part}\n{words}" if i == 0 else words,
                    ha="center", va="center", color="white",
                    fontsize=9.5 if parts[part] > 0.1 else 7.5)  # fmt: skip
            left += parts[part]
    ax.set_yticks(range(len(shares)), list(shares))
    ax.invert_yaxis()
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set(xlabel="share of all parameters", xlim=(0, 1))
    ax.set_title("The larger the model, the smaller the share of its vocabulary")
    ax.grid(False)
    return describe(
        figure,
        """
        Three bars, one for each size, divided into embedding, attention and MLP. The
        embedding's share falls from 21 % in the 135M to 13 % in the 360M and 6 % in the
        1.7B, while its size grows from 28 to 101 million.
        """,
    )


def tokens_for_parameters(
    points: Mapping[str, tuple[float, float, str]], per_parameter: float, mine: str
) -> Figure:
    """Draw how many tokens models were trained on, and a rule of tokens for each parameter.

    Args:
        points: model to parameters, tokens, and where its name goes: "right", "above" or
            "below".
        per_parameter: tokens per parameter by the rule.
        mine: the point that is marked; the ratio to the rule is written at all of its size.
    """
    figure, ax = new_figure(figsize=(7.2, 4.3))
    line = np.array([3e7, 4e12])
    ax.plot(line, per_parameter * line, "--", color=COLOURS["residual"], linewidth=1.4)
    ax.text(4e9, per_parameter * 3e9, f"{per_parameter:g} tokens per parameter", fontsize=9.5,
            va="top", color=COLOURS["residual"])  # fmt: skip
    for name, (size, seen, place) in points.items():
        colour, mark = ("wrong", "X") if name == mine else ("right", "o")
        each = seen / size
        text = f"{each:,.0f}" if each > 100 else f"{each:.2g}"
        ax.plot(size, seen, mark, color=COLOURS[colour], markersize=9)
        shift = 0 if 1e9 < size < 1e10 else -30  # away from a neighbour, and from the line
        ax.annotate(f"{name}\n{text} per parameter", (size, seen),
                    {"right": (9, 0), "above": (shift, 13), "below": (-6, -8)}[place],
                    textcoords="offset points", fontsize=9,
                    va={"right": "center", "above": "bottom", "below": "top"}[place],
                    ha="left" if place != "above" or size < 1e9 else "center",
                    color=COLOURS[colour])  # fmt: skip
        if size == points[mine][0]:
            rule = per_parameter * size
            ax.annotate("", (size, seen), (size, rule),
                        arrowprops={"arrowstyle": "-|>", "color": COLOURS[colour],
                                    "linestyle": ":", "shrinkB": 5})  # fmt: skip
            over = seen > rule
            ratio = f"{seen / rule:.0f} × the rule" if over else f"1/{rule / seen:.0f} of the rule"
            ax.text(size * 1.15, (seen * rule) ** 0.5, ratio, fontsize=9,
                    va="center", color=COLOURS[colour])  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens seen in training",
           xlim=(4e7, 3e12), ylim=(1e6, 4e14))  # fmt: skip
    ax.set_title("SmolLM2 and Llama 3 are trained far beyond Chinchilla's rule")
    return describe(
        figure,
        """
        Tokens seen in training against parameters, both logarithmic, with a line at 20
        tokens per parameter. The original project lies far below the line, GPT-3 below,
        Chinchilla on it, the SmolLM2 models and Llama 3 8B far above.
        """,
    )
