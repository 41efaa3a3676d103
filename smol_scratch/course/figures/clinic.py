"""Figures of notebook 16, the bug clinic."""

from __future__ import annotations

from matplotlib.figure import Figure

from smol_scratch.course.figures.drawing import arrow, box, canvas
from smol_scratch.course.figures.style import describe


def drawers() -> Figure:
    """Draw the four places where a fault can be, with the question that opens each."""
    figure, ax = canvas(16, 5.2)
    box(ax, 6.2, 4.3, 3.6, "something is wrong", "wrong", height=0.7)
    for left, name, colour, question in (
        (0.2, "data", "embedding", "Is this what\nI would predict,\nfrom what I am\ngiven?"),
        (4.2, "model", "attention", "Are the scores\nright, for these\nweights and\nthese tokens?"),
        (8.2, "optimisation", "norm", "Does a step do\nwhat the formula\nsays, to every\nweight?"),
        (12.2, "evaluation", "query", "Does the number\nor the text say\nwhat the model\nsays?"),
    ):  # fmt: skip
        box(ax, left, 2.5, 3.6, name, colour, height=0.7)
        arrow(ax, (8, 4.3), (left + 1.8, 3.25))
        ax.text(left + 1.8, 2.3, question, ha="center", va="top", fontsize=10)
    return describe(figure, """Four drawers below the words 'something is wrong': data (is this what
        I would predict, from what I am given?), model (are the scores right, for these weights and
        these tokens?), optimisation (does a step do what the formula says, to every weight?),
        evaluation (does the number or the text say what the model says?).""")  # fmt: skip
