"""One look for all figures: readable at half width, in greyscale, and to colour-blind eyes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's palette, one meaning per colour across the whole walk.
COLOURS = {
    "query": "#0072B2",
    "key": "#E69F00",
    "value": "#009E73",
    "gate": "#D55E00",
    "up": "#56B4E9",
    "down": "#CC79A7",
    "embedding": "#7A5C3E",
    "norm": "#8C8C00",
    "attention": "#3B6EA5",
    "mlp": "#B4543A",
    "residual": "#444444",
    "right": "#0072B2",
    "wrong": "#D55E00",
    "other": "#999999",
}


# Those on which black can be read and white cannot: a contrast of 3 is asked of large letters.
LIGHT = {"key", "up", "other"}


def ink(colour: str) -> str:
    """Return the colour of letters on a surface of ``colour``, a name of ``COLOURS``."""
    return "black" if colour in LIGHT else "white"


def use_style() -> None:
    """Set the look of every figure drawn from now on."""
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.figsize": (7.0, 3.6),
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "image.cmap": "viridis",
            # Identical pictures on every machine: no time, no identifiers drawn by chance.
            "svg.hashsalt": "smol_scratch",
        }
    )


def describe(figure: Figure, words: str) -> Figure:
    """Give a figure its alternative text, which a notebook stores beside the picture.

    Args:
        figure: any figure.
        words: what you would say of it on the telephone: the message first, then what stands
            where. No number that changes with the machine.

    Returns:
        The figure.
    """
    figure.alternative_text = " ".join(words.split())  # type: ignore[attr-defined]
    return figure


def show_alternative_text(shell: Any, print_figure: Callable[..., Any]) -> None:
    """Let a notebook store each figure's alternative text where JupyterLab and nbconvert look.

    Args:
        shell: IPython's, after ``%matplotlib inline``, which would take the place of this again.
        print_figure: IPython's, from a figure to its picture.
    """

    def picture(figure: Figure) -> Any:
        png, words = (
            print_figure(figure, "png", base64=True),
            getattr(figure, "alternative_text", ""),
        )
        return (png, {"alt": words}) if words else png

    shell.display_formatter.formatters["image/png"].for_type(Figure, picture)


def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make a figure that belongs to no window and is shown once, as a cell's last value.

    ``pyplot`` keeps every figure that it makes and shows it again at the end of the cell.

    Args:
        rows: of axes.
        columns: of axes.
        **options: ``figsize`` in inches; the rest goes to ``Figure.subplots``.

    Returns:
        The figure, and its axes: one, or an array of them.
    """
    figure = Figure(
        figsize=options.pop("figsize", None),
        dpi=mpl.rcParams["figure.dpi"],
        layout="constrained",
    )
    return figure, figure.subplots(rows, columns, **options)
