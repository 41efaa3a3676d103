"""Figures of notebook 12, sharing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from smol_scratch.course.figures.drawing import arrow, canvas
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

# The kinds of tensor to colours, in the order of the file.
_COLOUR_OF = {
    "embedding": "embedding",
    "norms": "norm",
    "down": "down",
    "gate": "gate",
    "up": "up",
    "k": "key",
    "o": "other",
    "q": "query",
    "v": "value",
}


def file_map(
    spans: Sequence[tuple[str, int, int]],
    header: int,
    blocks: Mapping[str, int],
    line: int = 50_000_000,
) -> Figure:
    """Draw a file of weights from its first byte to its last, as lines of equal length.

    Args:
        spans: kind, first byte and last byte + 1 of each tensor, in the order of the file.
        header: bytes before the first tensor; marked, since to scale it cannot be seen.
        blocks: number of a block to its first byte; written where it begins.
        line: bytes of each line; the last one may be shorter.
    """
    kinds = list(_COLOUR_OF)
    size, columns = spans[-1][2], 1000
    rows = -(-size // line)
    ends = np.array([end for _, _, end in spans])
    middle = (np.arange(rows * columns) + 0.5) * line / columns
    place = np.searchsorted(ends, middle)
    inside = place < len(spans)
    kind_at = np.array([kinds.index(kind) for kind, _, _ in spans])[place.clip(max=len(spans) - 1)]
    figure, ax = new_figure(figsize=(7.5, 4.2))
    ax.imshow(
        np.ma.masked_where(~inside, kind_at).reshape(rows, columns),
        cmap=ListedColormap([COLOURS[colour] for colour in _COLOUR_OF.values()]),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(0, line / 1e6, rows, 0),
    )
    for row in range(1, rows):
        ax.axhline(row, color="white", linewidth=3)
    for number, first in blocks.items():
        at, along = divmod(first, line)
        ax.text(
            along / 1e6 + 0.15, at + 0.5, number, fontsize=8, weight="bold", va="center",
            color="white", bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    ax.annotate(
        f"the header: {header:,} bytes, too thin to be seen",
        (0, 0),
        (1.2, -0.75),
        fontsize=9,
        va="center",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-|>", "color": COLOURS["residual"]},
    )
    ax.set_yticks([i + 0.5 for i in range(rows)], [f"{i * line / 1e6:.0f}" for i in range(rows)])
    ax.set(xlabel="MB along the line", ylabel="the line begins at (MB)")
    ax.grid(False)
    handles = [
        Patch(color=COLOURS[colour], label=kind)
        for kind, colour in _COLOUR_OF.items()
        if kind != "norms"
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, title_fontsize=9,
                  title="black: block\nbegins\n(norms: too\nthin to be seen)")  # fmt: skip
    return describe(
        figure,
        "A file drawn as a page of lines of 50 MB. The embedding fills the first two and a "
        "quarter; then come thirty blocks of the same coloured stripes, each with its number: 0, "
        "1, 10 to 19, 2, 20 to 29, 3 to 9, because names are sorted as words.",
    )


def file_bytes(length: bytes, header: str, numbers: bytes) -> Figure:
    """Draw the bytes of a small safetensors file: length, JSON, numbers.

    Args:
        length: the first eight bytes.
        header: the JSON.
        numbers: the float32 numbers behind it.
    """
    figure, ax = canvas(26.2, 8.2)
    ax.set_xlim(-0.1, 26.1)
    parts = (
        (0.0, 6.0, "8 bytes", "the header's length", length.hex(" "), "residual"),
        (6.6, 9.6, f"{len(header)} bytes", "JSON: name → type, shape, place", "", "key"),
        (16.8, 9.2, f"{len(numbers)} bytes", "the numbers, and nothing else", "", "right"),
    )
    for left, width, size, what, inside, colour in parts:
        ax.add_patch(
            Rectangle((left, 0.3), width, 6.2, facecolor=COLOURS[colour] + "1F",
                      edgecolor=COLOURS[colour], linewidth=1.6)
        )  # fmt: skip
        ax.text(left + width / 2, 7.6, size, ha="center", fontsize=10.5, weight="bold")
        ax.text(left + width / 2, 6.85, what, ha="center", fontsize=9.5)
        if inside:
            ax.text(left + width / 2, 3.7, "\n".join(inside.split(" ", 4)[0:0] or
                    [inside[:11], inside[12:]]), ha="center", va="center", fontsize=11,
                    family="monospace")  # fmt: skip
            ax.text(left + width / 2, 1.5, f"= {int.from_bytes(length, 'little')}", ha="center",
                    fontsize=11)  # fmt: skip
    broken = header.replace("{", "{\n", 1).replace("}, ", "},\n").replace("}}", "}\n}")
    wrapped = [
        line
        for part in broken.split("\n")
        for line in textwrap.wrap(part, 30, break_on_hyphens=False, subsequent_indent="  ")
    ]
    ax.text(6.85, 3.4, "\n".join(wrapped), va="center", fontsize=8, family="monospace",
            linespacing=1.35)  # fmt: skip
    values = np.frombuffer(numbers, dtype="<f4")
    for i, value in enumerate(values):
        four = numbers[4 * i : 4 * i + 4].hex(" ")
        ax.text(17.3, 5.7 - 1.1 * i, f"{four}  =  {value:g}", fontsize=10.5, family="monospace",
                va="center")  # fmt: skip
    return describe(
        figure,
        "Three boxes in a row: eight bytes that say how long the header is, the header as JSON, "
        "and five numbers of four bytes each, such as 00 00 80 3f for 1.",
    )


def rows_moved(D: int = 8) -> Figure:
    """Draw which numbers of a head each program rotates together, and what folder B mixes up.

    Args:
        D: numbers of the head that is drawn.
    """
    figure, ax = canvas(24, 12.4)
    half = D // 2
    order = [row // 2 + half * (row % 2) for row in range(D)]  # the file's row to ours
    shades = ("query", "gate", "value", "down")
    halves = [(i, i + half) for i in range(half)]
    neighbours = [(2 * i, 2 * i + 1) for i in range(half)]
    tops = [10.1 - 1.08 * place for place in range(D)]
    columns = (
        (1.0, list(range(D)), halves, "our program", "pairs halves"),
        (9.6, order, neighbours, "llama.cpp, GGUF", "pairs neighbours"),
        (18.2, order, halves, "folder B", "GGUF's rows, paired as halves"),
    )
    for left, rows, pairs, title, words in columns:
        ax.text(left + 2.2, 11.85, title, ha="center", fontsize=11, weight="bold")
        ax.text(left + 2.2, 11.1, words, ha="center", fontsize=9.5)
        for y, row in zip(tops, rows, strict=True):
            colour = COLOURS[shades[row % half]]
            ax.add_patch(Rectangle((left, y - 0.4), 2.6, 0.8, facecolor=colour + "26",
                                   edgecolor=colour, linewidth=1.6))  # fmt: skip
            ax.text(left + 1.3, y, f"row {row}", ha="center", va="center", fontsize=9.5)
        for n, (a, b) in enumerate(pairs):
            same = rows[a] % half == rows[b] % half
            colour = COLOURS[shades[rows[a] % half]] if same else COLOURS["residual"]
            edge = left + 2.75
            out = edge + (0.5 if b == a + 1 else 0.4 + 0.42 * n)
            ax.plot([edge, out, out, edge], [tops[a], tops[a], tops[b], tops[b]], color=colour,
                    linewidth=1.8, linestyle="-" if same else (0, (3, 1.5)),
                    solid_capstyle="butt")  # fmt: skip
    for place, row in enumerate(order):
        start, end = (5.5, tops[row]), (9.4, tops[place])
        arrow(ax, start, end, colour=shades[row % half])
    ax.text(12, 1.1, "brackets: numbers that the rotation takes together; "
            "colours: those that it took together in training", ha="center",
            fontsize=9.5)  # fmt: skip
    ax.text(12, 0.3, "in B the brackets join different colours (dashed)", ha="center",
            fontsize=9.5)  # fmt: skip
    return describe(
        figure,
        f"A head of {D} rows in three columns, coloured by the pairs that the model was trained "
        "with. Our program pairs each row with the one half a head further; arrows move the "
        "partners side by side, where llama.cpp pairs neighbours. Folder B has the rows of the "
        "second column and the pairing of the first, so its brackets join rows of different "
        "colours.",
    )


def block_bytes(numbers: Sequence[float], step: float, stored: Sequence[int]) -> Figure:
    """Draw one block of q8_0: the numbers, the step, and the 34 bytes.

    Args:
        numbers: the first few of the 32 numbers.
        step: what one unit is worth.
        stored: the same few as whole numbers.
    """
    figure, ax = canvas(19, 7.2)
    n = len(numbers)
    ax.text(0.2, 6.3, "32 numbers", fontsize=10.5, va="center")
    ax.text(0.2, 4.3, f"divided by the step,\nlargest / 127 = {step:g}", fontsize=10, va="center")
    ax.text(0.2, 2.3, "rounded", fontsize=10.5, va="center")
    for i, (number, whole) in enumerate(zip(numbers, stored, strict=True)):
        for y, text, colour in (
            (6.0, f"{number:g}", "residual"),
            (4.0, f"{number / step:.4g}", "residual"),
            (2.0, f"{whole}", "right"),
        ):
            ax.add_patch(
                Rectangle((5.4 + 2.4 * i, y), 2.2, 0.7, facecolor=COLOURS[colour] + "26",
                          edgecolor=COLOURS[colour], linewidth=1.4)
            )  # fmt: skip
            ax.text(6.5 + 2.4 * i, y + 0.35, text.replace("-", "−"), ha="center", va="center",
                    fontsize=10)  # fmt: skip
        arrow(ax, (6.5 + 2.4 * i, 6.0), (6.5 + 2.4 * i, 4.75))
        arrow(ax, (6.5 + 2.4 * i, 4.0), (6.5 + 2.4 * i, 2.75))
    for y in (6.35, 4.35, 2.35):
        ax.text(5.6 + 2.4 * n, y, "… 28 more", fontsize=10, va="center")
    raw = np.array([step], "<f2").tobytes().hex(" ")
    ax.text(0.2, 0.75, "34 bytes", fontsize=10.5, va="center")
    ax.add_patch(Rectangle((2.6, 0.4), 2.6, 0.7, facecolor=COLOURS["wrong"] + "33",
                           edgecolor=COLOURS["wrong"], linewidth=1.4))  # fmt: skip
    ax.text(3.9, 0.75, raw, ha="center", va="center", fontsize=10, family="monospace")
    ax.text(3.9, 0.1, "the step, float16", ha="center", va="center", fontsize=9.5)
    for i, whole in enumerate(stored):
        ax.add_patch(Rectangle((5.4 + 2.4 * i, 0.4), 2.2, 0.7, facecolor=COLOURS["right"] + "26",
                               edgecolor=COLOURS["right"], linewidth=1.4))  # fmt: skip
        ax.text(6.5 + 2.4 * i, 0.75, f"{whole & 255:02x}", ha="center", va="center", fontsize=10,
                family="monospace")  # fmt: skip
        arrow(ax, (6.5 + 2.4 * i, 2.0), (6.5 + 2.4 * i, 1.15))
    ax.text(5.6 + 2.4 * n, 0.75, "… 28 more", fontsize=10, va="center")
    ax.text(5.4 + 1.2 * n, 0.1, "a signed byte each, −127 to 127", ha="center", va="center",
            fontsize=9.5)  # fmt: skip
    return describe(
        figure,
        "Four of a block's 32 numbers are divided by the step and rounded. Below, the bytes in "
        "the file: two for the step, then one for each whole number.",
    )


def witnesses(rows: Mapping[str, Mapping[str, bool]], faults: Mapping[str, str]) -> Figure:
    """Draw which check speaks about which broken folder.

    Args:
        rows: folder to check to whether it objects.
        faults: folder to what is wrong with it, written at the right.
    """
    checks = list(next(iter(rows.values())))
    figure, ax = new_figure(figsize=(7.5, 0.42 * len(rows) + 1.2))
    for y, (name, row) in enumerate(rows.items()):
        for x, check in enumerate(checks):
            said = row[check]
            ax.add_patch(
                Rectangle((x + 0.03, -y - 0.44), 0.94, 0.88, linewidth=0,
                          facecolor=COLOURS["wrong"] if said else "#EEEEEE")
            )  # fmt: skip
            ax.text(x + 0.5, -y, "objects" if said else "silent", ha="center", va="center",
                    fontsize=9, color="white" if said else "#555555",
                    weight="bold" if said else "normal")  # fmt: skip
        ax.text(-0.08, -y, name, ha="right", va="center", fontsize=10.5, weight="bold")
        ax.text(len(checks) + 0.1, -y, faults[name], ha="left", va="center", fontsize=9)
    ax.set(xlim=(-0.3, len(checks) + 1.4), ylim=(-len(rows) + 0.5, 0.55))
    ax.set_xticks([x + 0.5 for x in range(len(checks))], checks, fontsize=8.5)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(False)
    caught = "; ".join(
        f"{name} ({faults[name].replace(chr(10), ' ')}): "
        f"{', '.join(c.replace(chr(10), ' ') for c in checks if row[c]) or 'none'}"
        for name, row in rows.items()
    )
    return describe(figure, f"A table of folders and the checks that object to them. {caught}.")


def size_and_loss(points: Mapping[str, tuple[float, float, float]], top: float) -> Figure:
    """Draw what each way of storing costs in loss, against its bits.

    Args:
        points: label to bits per number, extra loss and its standard error.
        top: what costs more is not drawn; an arrow at the upper edge says where it would be.
    """
    figure, ax = new_figure(figsize=(7.2, 3.8))
    ax.axhline(0, color=COLOURS["residual"], linewidth=1)
    for label, (bits, extra, error) in points.items():
        one = label.startswith("one step")
        colour, mark = ("wrong", "X") if one else ("right", "o")
        name = label.replace("one step, ", "")
        if extra > top:
            ax.annotate(
                f"{name}, one step: +{extra:.1f},\nfar above the picture",
                (bits, 1.1 * top), (9, -34), textcoords="offset points", va="center",
                fontsize=9.5,
            )  # fmt: skip
            ax.annotate("", (bits, 1.1 * top), (bits, 0.86 * top),
                        arrowprops={"arrowstyle": "-|>", "color": COLOURS[colour],
                                    "linewidth": 2})  # fmt: skip
            continue
        ax.errorbar(bits, extra, error, fmt=mark, color=COLOURS[colour], markersize=9, capsize=4)
        low = label == "float16"
        ax.annotate(name, (bits, extra), (0, -16 if low else 16), textcoords="offset points",
                    ha="center", fontsize=9.5)  # fmt: skip
    ax.plot([], [], "o", color=COLOURS["right"], label="float, or a step for every 32 numbers")
    ax.plot([], [], "X", color=COLOURS["wrong"], label="one step for a whole matrix")
    ax.legend(loc="upper right", fontsize=9)
    ax.set(xscale="log", xlabel="bits per number (doubling scale)", xlim=(3.4, 46),
           ylabel="extra loss (nats per token)", ylim=(-0.12 * top, 1.1 * top))  # fmt: skip
    ax.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    ax.minorticks_off()
    return describe(
        figure,
        "Extra loss against bits per number, with standard errors. float32, float16 and q8_0 lie "
        "on zero, eight bits with one step for a whole matrix a little above, q4_0 further up. An "
        "arrow at the upper edge says that four bits with one step lie far above the picture.",
    )


def one_block(numbers: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a block of numbers, and what each way of storing them gets wrong.

    Args:
        numbers: the block.
        errors: way of storing to stored minus original, number by number.
    """
    figure, axes = new_figure(
        1 + len(errors), 1, figsize=(7.2, 5.4), sharex=True, height_ratios=[1.6] + [1] * len(errors)
    )
    x = np.arange(len(numbers))
    axes[0].vlines(x, 0, numbers, color=COLOURS["residual"], linewidth=1.4)
    axes[0].plot(x, numbers, "o", color=COLOURS["residual"], markersize=5)
    axes[0].set_ylabel("weight")
    reach = 1.9 * max(float(np.abs(error).max()) for error in errors.values())
    looks = (("right", "o"), ("wrong", "^"), ("key", "s"))
    for ax, (label, error), (colour, mark) in zip(axes[1:], errors.items(), looks, strict=True):
        ax.vlines(x, 0, error, color=COLOURS[colour], linewidth=1.4)
        ax.plot(x, error, mark, color=COLOURS[colour], markersize=4)
        ax.set(ylim=(-reach, reach), ylabel="error")
        ax.text(
            0.01,
            0.97,
            f"{label}; root mean square {np.sqrt(np.mean(np.square(error))):.4f}",
            transform=ax.transAxes,
            fontsize=9.5,
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
    for ax in axes:
        ax.axhline(0, color=COLOURS["residual"], linewidth=0.8)
        ax.grid(False, axis="x")
    axes[-1].set(xlabel="place in the block", xticks=range(0, len(numbers), 4))
    return describe(
        figure,
        "32 weights, and below them the error of each way of storing: small with eight bits and a "
        "step per block, large with one step for the matrix, in between with four bits per block.",
    )
