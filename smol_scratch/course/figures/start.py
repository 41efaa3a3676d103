"""Figures of notebook 00, the start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from smol_scratch.course.figures.style import COLOURS, describe, new_figure


def visible(token: str) -> str:
    """Return a token as a figure shows it: the space that it begins with can be seen."""
    return token.replace(" ", "␣")


def next_tokens(prompt: str, names: Sequence[str], probabilities: Sequence[float]) -> Figure:
    """Draw the five most probable next tokens, and what is left for all others.

    Args:
        prompt: what the model has read.
        names: the tokens' texts, the most probable first.
        probabilities: of these tokens, as many.
    """
    figure, ax = new_figure(figsize=(7.2, 2.9))
    rows = [*(visible(name) for name in names), "all others"]
    values = np.array([*probabilities, 1 - sum(probabilities)])
    y = np.arange(len(rows))[::-1].astype(float)
    y[-1] -= 0.4  # a gap before the others
    ax.barh(y, values, height=0.7, color=[COLOURS["right"]] * len(names) + [COLOURS["other"]])
    for place, value in zip(y, values, strict=True):
        ax.text(value + 0.01, place, f"{value:.0%}", va="center")
    ax.set_yticks(y, rows)
    ax.set(xlim=(0, 1), xlabel="probability of coming next", title=f"“{prompt} …”",
           xticks=(0, 0.5, 1), xticklabels=("0%", "50%", "100%"))  # fmt: skip
    ax.grid(visible=False, axis="y")
    return describe(
        figure,
        f"Bars for the five most probable tokens after “{prompt}”: {', '.join(names)}; and one bar "
        "for all other tokens together.",
    )


def sentence(prompt: str, names: Sequence[str], probabilities: Sequence[float]) -> Figure:
    """Draw an answer token by token, with the probability that each one had.

    Args:
        prompt: the question.
        names: the tokens' texts, in order.
        probabilities: of each, when it was chosen.
    """
    figure, ax = new_figure(figsize=(7.2, 2.5))
    x = np.arange(len(names))
    colours = [COLOURS["other" if name.startswith("<|") else "right"] for name in names]
    ax.bar(x, probabilities, width=0.7, color=colours)
    for place, value in zip(x, probabilities, strict=True):
        ax.text(place, value + 0.03, f"{value:.0%}", ha="center", va="bottom", fontsize=10)
    whole = names[-1].startswith("<|")
    shown = [*map(visible, names), *([] if whole else ["…"])]
    ax.set_xticks(np.arange(len(shown)), shown, fontsize=10.5)
    ax.set(ylim=(0, 1.18), yticks=(0, 0.5, 1), yticklabels=("0%", "50%", "100%"),
           ylabel="probability", title=f"Reply to “{prompt}”")  # fmt: skip
    ax.grid(visible=False, axis="x")
    return describe(
        figure,
        f"The {'' if whole else 'beginning of the '}answer to “{prompt}” as a row of bars, one "
        f"for each token: {' '.join(names)}. "
        "Each bar is as high as the probability that the model gave the token.",
    )
