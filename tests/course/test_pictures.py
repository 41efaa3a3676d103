"""A picture counts as the same only if a reader would say so: planted changes, all seen."""

import base64
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from smol_scratch.course.figures import generation as figures_11
from smol_scratch.course.figures import gqa as figures_03
from smol_scratch.course.figures import parameters as figures_08
from smol_scratch.course.figures import rmsnorm as figures_01
from smol_scratch.course.figures import rope as figures_02
from smol_scratch.course.figures import training as figures_10
from smol_scratch.course.figures import use_style
from smol_scratch.course.figures.style import COLOURS, ink
from smol_scratch.course.pictures import TOLERANCE, distance, smaller


def png(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return base64.b64encode(file.getvalue()).decode()


def curves() -> Figure:
    steps = np.arange(300)
    falling = 1 + 9 * np.exp(-steps / 60)
    noise = np.random.default_rng(0).normal(0, 0.05, 300)
    return figures_01.leak({"one": falling + noise, "two": 0.8 * falling}, [1, 2, 3], 2.77, 2.3)


def training() -> Figure:
    steps = range(0, 1000, 100)
    return figures_10.held_out_losses(
        {
            "135M": {s: 6 - 5 * s / 1000 + (s / 700) ** 4 for s in steps},
            "13M": {s: 6 - 3 * s / 1000 + (s / 900) ** 4 for s in steps},
        },
        {s: 6 - 3 * s / 1000 + (s / 900) ** 4 + (s % 20) / 100 for s in range(700, 910, 10)},
    )


def maps() -> Figure:
    rng = np.random.default_rng(1)
    heads = {}
    for name in ("before", "first", "same", "after"):
        weights = np.tril(rng.random((9, 9)) ** 4)
        heads[name] = weights / weights.sum(1, keepdims=True)
    return figures_03.attention_maps([f" w{i}" for i in range(9)], heads)


def bars() -> Figure:
    parts = {"weight": 4, "gradient": 4, "moments": 8}
    rows = {f"use {n}": dict(list(parts.items())[:n]) for n in (1, 2, 3)}
    return figures_08.bytes_per_parameter(rows)


def words() -> Figure:
    return figures_11.next_token([" the", " a", " my", " your"], [0.4, 0.2, 0.1, 0.05], 49_148)


def heat() -> Figure:
    position = np.arange(48)
    distance = position[:, None] - position[None]
    return figures_02.invention(
        {"turned": np.sin(distance / 5), "added": np.cos(position / 5) - 0.0 * distance}
    )


def move(figure):
    """By twice the line's width."""
    [line] = [line for line in figure.axes[0].lines if line.get_label() == "two"]
    pixels = 2 * line.get_linewidth() * figure.dpi / 72
    ruler = curves()  # a figure that is drawn twice is laid out twice
    ruler.draw_without_rendering()
    to_data = ruler.axes[0].transData.inverted().transform
    line.set_ydata(line.get_ydata() + to_data((0, pixels))[1] - to_data((0, 0))[1])


def exchange_colours(figure):
    one, two = figure.axes[0].lines[:2]
    first, second = one.get_color(), two.get_color()
    one.set_color(second)
    two.set_color(first)


def drop_legend(figure):
    figure.axes[0].get_legend().remove()


def other_limit(figure):
    low, high = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(low, low + 1.05 * (high - low))


def other_word(figure):
    figure.axes[0].set_xlabel("training stop")


def one_bar_less(figure):
    bars = sorted(figure.axes[0].patches, key=lambda bar: bar.get_width() * bar.get_height())
    bars[len(bars) // 2].remove()


def other_order(figure):
    bars = sorted(figure.axes[0].patches, key=lambda bar: bar.get_width() * bar.get_height())
    a, b = bars[-1], bars[len(bars) // 2]
    for name in ("width", "height"):
        first, second = getattr(a, f"get_{name}")(), getattr(b, f"get_{name}")()
        getattr(a, f"set_{name}")(second)
        getattr(b, f"set_{name}")(first)


def other_number(figure):
    text = next(t for t in figure.axes[0].texts if any(c.isdigit() for c in t.get_text()))
    digit = next(c for c in text.get_text() if c.isdigit())
    text.set_text(text.get_text().replace(digit, str((int(digit) + 1) % 10), 1))


def transpose(figure):
    image = figure.axes[0].images[0]
    image.set_data(np.asarray(image.get_array()).T)


def other_head(figure):
    figure.axes[1].images[0].set_data(figure.axes[0].images[0].get_array())


def shifted_scale(figure):
    for axes in figure.axes:
        for image in axes.images:
            low, high = image.get_clim()
            image.set_clim(low, 1.15 * high)


def one_point(figure):
    line = max(figure.axes[0].lines, key=lambda line: len(line.get_ydata()))
    y = np.array(line.get_ydata(), dtype=float)
    y[len(y) // 2] += 0.06 * np.ptp(figure.axes[0].get_ylim())
    line.set_ydata(y)


PLANTED = [
    (curves, move),
    (curves, exchange_colours),
    (curves, drop_legend),
    (curves, other_limit),
    (curves, other_word),
    (training, one_point),
    (maps, transpose),
    (maps, other_head),
    (maps, shifted_scale),
    (bars, one_bar_less),
    (bars, other_order),
    (bars, other_number),
    (words, other_order),
    (heat, transpose),
    (heat, shifted_scale),
]


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "change"), PLANTED, ids=lambda f: f.__name__)
def test_a_change_that_a_reader_would_notice_is_caught(draw, change):
    use_style()
    before, figure = png(draw()), draw()
    assert png(draw()) == before
    change(figure)
    # Far above: a tolerance that just catches it would not catch its smaller sister.
    assert distance(before, png(figure)) > 10 * TOLERANCE


@pytest.mark.parametrize("draw", [curves, training, maps, bars, words, heat])
def test_what_no_eye_sees_is_let_through(draw):
    """Edges that fall elsewhere between two pixels: every number changed in its sixth digit."""
    use_style()
    before, figure = png(draw()), draw()
    for axes in figure.axes:
        for line in axes.lines:
            line.set_ydata(np.asarray(line.get_ydata(), dtype=float) * (1 + 1e-6))
        for image in axes.images:
            image.set_data(np.asarray(image.get_array()) * (1 + 1e-6))
    assert distance(before, png(figure)) < TOLERANCE / 10


def test_another_size_is_another_picture():
    use_style()
    before, figure = png(curves()), curves()
    figure.set_size_inches(7.3, 3.2)
    assert distance(before, png(figure)) == float("inf")


def test_a_picture_packed_better_has_the_same_pixels():
    picture = png(curves())
    assert len(smaller(picture)) < len(picture)
    assert distance(picture, smaller(picture)) == 0
    assert smaller(smaller(picture)) == smaller(picture)


def luminance(colour: str) -> float:
    """Return how bright a colour is, as WCAG 2.2 reckons it: 0 black, 1 white."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", COLOURS)
def test_letters_can_be_read_on_every_colour(name):
    """WCAG 2.2 asks for a contrast of 3 where letters are large; white stays where it has that."""

    def contrast(letters: str) -> float:
        dark, bright = sorted(map(luminance, (letters, COLOURS[name])))
        return (bright + 0.05) / (dark + 0.05)

    assert contrast(ink(name)) >= 3
    assert (contrast("white") >= 3) == (ink(name) == "white")
