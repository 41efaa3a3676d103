"""Drawings that recur through the walk: a vector as a row of cells, a part as a box, an arrow.

Units are those of the axes that ``canvas`` makes: one cell is 1 wide and 0.6 high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from smol_scratch.course.figures.style import COLOURS, ink, new_figure

HIGH = 0.6  # of a cell


def canvas(width: float, height: float, *, inches: float = 7.5) -> tuple[Figure, Any]:
    """Make empty axes of ``width`` × ``height`` units, with equal scales and no frame."""
    figure, ax = new_figure(figsize=(inches, inches * height / width))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def cells(
    ax: Any,
    left: float,
    bottom: float,
    values: Sequence[object],
    colour: str,
    *,
    label: str = "",
    size: float = 10,
) -> None:
    """Draw a vector as a row of cells, each with its number.

    Args:
        ax: from ``canvas``.
        left: of the first cell.
        bottom: of the row.
        values: numbers (rounded to two digits) or words.
        colour: a name of ``COLOURS``.
        label: what the vector is, written to the left of it.
        size: of the letters, in points.
    """
    for i, value in enumerate(values):
        ax.add_patch(
            Rectangle(
                (left + i, bottom), 1, HIGH, facecolor=COLOURS[colour] + "26",
                edgecolor=COLOURS[colour], linewidth=1.4,
            )
        )  # fmt: skip
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        ax.text(left + i + 0.5, bottom + HIGH / 2, text.replace("-", "−"), ha="center",
                va="center_baseline", fontsize=size)  # fmt: skip
    if label:
        ax.text(left - 0.2, bottom + HIGH / 2, label, ha="right", va="center", fontsize=size)


def box(
    ax: Any, left: float, bottom: float, width: float, text: str, colour: str,
    *, height: float = HIGH, size: float = 10, filled: bool = True,
) -> None:  # fmt: skip
    """Draw a part of the model as a rounded box with its name."""
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=COLOURS[colour] if filled else "white", edgecolor=COLOURS[colour],
            linewidth=1.6,
        )
    )  # fmt: skip
    ax.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=size,
            color=ink(colour) if filled else "black")  # fmt: skip


def arrow(
    ax: Any, start: tuple[float, float], end: tuple[float, float], text: str = "",
    *, colour: str = "residual", size: float = 10, bend: float = 0.0,
) -> None:  # fmt: skip
    """Draw an arrow, with a word beside its middle."""
    ax.annotate(
        "", end, start,
        arrowprops={
            "arrowstyle": "-|>", "color": COLOURS[colour], "linewidth": 1.5,
            "shrinkA": 2, "shrinkB": 2, "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        flat = abs(end[1] - start[1]) < abs(end[0] - start[0])
        place = (x, y + 0.12) if flat else (x + 0.15, y)
        ax.text(*place, text, ha="center" if flat else "left", va="bottom" if flat else "center",
                fontsize=size)  # fmt: skip
