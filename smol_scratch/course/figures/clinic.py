"""Figures of notebook 16, the bug clinic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from smol_scratch.course.figures.drawing import arrow, box, canvas
from smol_scratch.course.figures.style import COLOURS, describe, new_figure

_DRAWERS = {
    "data": "embedding",
    "model": "attention",
    "optimisation": "norm",
    "evaluation": "down",
}


def drawers() -> Figure:
    """Draw the four places where a fault can be, with the question that opens each."""
    figure, ax = canvas(16, 4.4)
    ax.text(8, 4.1, "Something is wrong. In which drawer is the fault?", ha="center", va="top",
            fontsize=12)  # fmt: skip
    for left, name, colour, question in (
        (0.1, "data", "embedding", "Are inputs and\ntargets what the\nmodel should\nbe given?"),
        (4.3, "model", "attention", "Are the scores\nright, for these\nweights and\nthese tokens?"),
        (8.6, "optimisation", "norm", "Does a step do\nwhat the formula\nsays, to every\nweight?"),
        (12.85, "evaluation", "down", "Does the number\nor the text say\nwhat the model\nsays?"),
    ):  # fmt: skip
        box(ax, left, 2.5, 3.05, name, colour, height=0.7, size=11)
        ax.text(left + 1.5, 2.3, question, ha="center", va="top", fontsize=10.5)
        if left > 1:
            ax.annotate("", (left - 0.05, 2.85), (left - 1.15, 2.85), arrowprops={
                "arrowstyle": "-|>,head_width=0.45,head_length=0.7", "lw": 3.5, "shrinkA": 0,
                "shrinkB": 0, "mutation_scale": 14, "color": COLOURS["residual"]})  # fmt: skip
    caption = "A symptom in one drawer may have its cause there, or in any drawer to its left."
    ax.text(8, 0.05, caption, ha="center", va="bottom", fontsize=10.5)
    return describe(figure, """Four drawers below the words 'Something is wrong. In which drawer
        is the fault?': data (are inputs and targets what the model should be given?), model (are
        the scores right, for these weights and these tokens?), optimisation (does a step do what
        the formula says, to every weight?), evaluation (does the number or the text say what the
        model says?). An arrow leads from each drawer to the next one on the right, which inherits
        its faults.""")  # fmt: skip


def who_sees_what(
    cases: Mapping[str, tuple[str, Sequence[str]]],
    cost: dict[str, int],
    ours: str,
    suspects: Sequence[str] = (),
) -> Figure:
    """Draw which instrument sees which case.

    Args:
        cases: for each, its drawer, and the instruments that see it; those of one drawer follow
            each other.
        cost: of each instrument, the cheap ones first.
        ours: the case that the reader knows, whose row is named.
        suspects: cases whose rows get a dashed frame.
    """
    drawer = [place for place, _ in cases.values()]
    seen = [tools for _, tools in cases.values()]
    names = list(cost)
    figure, ax = new_figure(figsize=(7.6, 7.0))
    for column in range(len(names) - 1):  # for the eye to follow
        ax.axvline(column + 0.5, color="#808080", alpha=0.3, lw=0.6, zorder=0)
    for row in range(0, len(drawer), 2):
        ax.axhspan(row - 0.5, row + 0.5, color="#808080", alpha=0.12, lw=0)
    totals = [sum(name in tools for tools in seen) for name in names]
    for column, total in enumerate(totals):
        if not total:
            ax.axvspan(column - 0.5, column + 0.5, color=COLOURS["wrong"], alpha=0.25, lw=0)
            ax.text(column, 21.5, "sees none of the 35", rotation=90, ha="center", va="center",
                    fontsize=10)  # fmt: skip
    for case in suspects:
        if case != ours:
            ax.add_patch(Rectangle((-0.45, list(cases).index(case) - 0.5), len(names) - 0.1, 1,
                                   fill=False, edgecolor=COLOURS["residual"], lw=1.2, ls="--",
                                   clip_on=False))  # fmt: skip
    known = list(cases).index(ours)
    ax.add_patch(Rectangle((-0.45, known - 0.5), len(names) - 0.1, 1, fill=False,
                           edgecolor=COLOURS["residual"], lw=1.5, clip_on=False))  # fmt: skip
    ax.annotate("our patient", (-0.5, known), (-0.9, known), ha="right", va="center", fontsize=10)
    for row, (place, tools) in enumerate(zip(drawer, seen, strict=True)):
        for tool in tools:
            corner = (names.index(tool) - 0.4, row - 0.4)
            ax.add_patch(Rectangle(corner, 0.8, 0.8, lw=0, color=COLOURS[_DRAWERS[place]]))
        alone = {"weight": "bold"} if len(tools) == 1 else {}
        ax.text(len(names) - 0.1, row, f"{len(tools)}", va="center", fontsize=10, **alone)
    for place, colour in _DRAWERS.items():
        rows = [row for row, its in enumerate(drawer) if its == place]
        ax.text(-0.9, sum(rows) / len(rows), place, color=COLOURS[colour], ha="right", va="center")
        if rows[0]:
            ax.axhline(rows[0] - 0.5, color="#444444", lw=1)
    prices = list(cost.values())
    for price in sorted(set(prices)):
        columns = [i for i, its in enumerate(prices) if its == price]
        if columns[0]:
            ax.axvline(columns[0] - 0.5, color="#444444", lw=1)
        middle = sum(columns) / len(columns)
        ax.text(middle, -1.0, f"cost {price}", ha="center", va="bottom", fontsize=10)
    ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(drawer) - 0.5, -0.5), yticks=[])
    ax.text(len(names) - 0.1, -1.0, "seen by", va="bottom", fontsize=10)
    for column, total in enumerate(totals):
        ax.text(column, len(drawer), f"{total}", ha="center", va="center", fontsize=10)
    ax.text(-0.9, len(drawer), "faults seen", ha="right", va="center", fontsize=10)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=10)
    ax.tick_params(length=0, pad=16)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.set_title("Which instrument (column) sees which fault (row)", pad=24)
    return describe(figure, """A table of filled squares, a row for each case, in four groups: data,
        model, optimisation, evaluation; a column for each instrument, in three groups by cost. It
        is sparse: most columns hold one to three squares. The last two, foreign and ladder, hold
        many in the model's rows, few elsewhere and none in those of optimisation. The column of
        batch is empty, shaded, and labelled: sees none of the 35. A frame marks the row of our
        patient, dashed frames those of the other suspects: causality, cache, greedy, foreign and
        ladder see our patient. Below each instrument stands
        how many cases it sees; right of each row, by how many instruments it is seen. A single
        witness is in bold: 19 rows of 35.""")  # fmt: skip


def heads_together() -> Figure:
    """Draw how the numbers of two heads reach three tokens, turned back and only reshaped."""
    figure, ax = canvas(16, 6.6)
    colours = {1: "query", 2: "key"}

    def row(left: float, bottom: float, numbers: Sequence[int]) -> None:
        for i, number in enumerate(numbers):
            box(ax, left + 1.1 * i, bottom, 1.0, str(number), colours[number // 10], height=0.8)

    caption = "in the order of the dimensions: head 1, then head 2 (last digit: the token)"
    ax.text(8, 6.2, caption, ha="center", va="center", fontsize=11)
    row(4.75, 5.0, [11, 12, 13, 21, 22, 23])
    for left, title, tokens in (
        (0.9, "transposed back, then flattened", ([11, 21], [12, 22], [13, 23])),
        (9.0, "only reshaped", ([11, 12], [13, 21], [22, 23])),
    ):
        arrow(ax, (8, 4.9), (left + 3.1, 4.0))
        ax.text(left + 3.1, 3.55, title, ha="center", va="center", fontsize=11)
        for token, numbers in enumerate(tokens, start=1):
            bottom = 2.3 - 1.05 * (token - 1)
            ax.text(
                left + 1.9, bottom + 0.4, f"token {token}", ha="right", va="center", fontsize=10
            )
            row(left + 2.1, bottom, numbers)
            if any(number % 10 != token for number in numbers):
                late = any(number % 10 > token for number in numbers)
                heads = {number // 10 for number in numbers}
                lost = [f"has lost head {head}" for head in (1, 2) if head not in heads]
                if all(number % 10 != token for number in numbers):
                    lost = ["has nothing of its own"]
                words = ",\n".join(["sees the future"] * late + lost)
                ax.text(left + 4.4, bottom + 0.4, words, va="center", fontsize=10,
                        color=COLOURS["wrong"])  # fmt: skip
    return describe(figure, """Six numbers in the order of the
        dimensions: 11, 12, 13 of the first head, then 21, 22,
        23 of the second; the last digit is the token. Transposed back, token 1 gets 11 and 21,
        token 2 gets 12 and 22, token 3 gets 13 and 23. Only reshaped, token 1 gets 11 and 12 and
        token 2 gets 13 and 21, so both see the future, and token 1 has lost
        head 2; token 3 gets 22 and 23, and has lost head 1.""")  # fmt: skip


def points(strategies: dict[str, float]) -> Figure:
    """Draw what a search costs on average, for some ways to choose the next question."""
    figure, ax = new_figure(figsize=(7.6, 2.4))
    places = range(len(strategies))
    told = [COLOURS["right"]] * (len(strategies) - 1) + [COLOURS["other"]]  # the last knows more
    ax.barh(places, list(strategies.values()), color=told, height=0.6)
    for place, value in zip(places, strategies.values(), strict=True):
        ax.text(value + 0.3, place, f"{value:.1f}", va="center")
    ax.set_yticks(places, list(strategies))
    ax.invert_yaxis()
    ax.set(xlabel="points per case, the mean over all cases", xlim=(0, 18))
    ax.grid(visible=False)
    ax.set_title("What a case costs, by how the next question is chosen", loc="left")
    return describe(figure, """Four bars that become shorter: points per case when the instruments
        are used in list order, those that see most faults first, by the most bits per
        point, and, in grey, by the most bits per point once the right drawer is told.
        """)  # fmt: skip
