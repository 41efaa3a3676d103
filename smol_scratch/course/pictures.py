"""When are two pictures the same to a reader? Structural similarity, where it is at its worst.

A picture drawn on another processor differs by a few shades of grey where a curve's edge falls
between two pixels. A reader sees none of that, and does see one label changed in a large figure;
so what counts is the place where two pictures are least alike, not the mean over all of it.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# On six simulated machines (`make portable`) pictures that rounding alone has changed are at most
# 0.0005 apart; fifteen changes that a reader would notice (tests/course/test_pictures.py) at least
# 0.8. This is a hundred times the first, and a sixteenth of the second.
TOLERANCE = 0.05


def distance(first: str, second: str) -> float:
    """Return how far apart two pictures are at their worst place.

    Wang et al., 2004 (structural similarity), with Gaussian windows of 1.5 pixels on the three
    colours, as the paper has it.

    Args:
        first: a PNG in base64, as a notebook stores it.
        second: the other one.

    Returns:
        0 for the same pictures; 1 where one has nothing in common with the other, and up to 2
        where light and dark change places; infinity for pictures of different sizes.
    """
    from skimage.metrics import structural_similarity

    a, b = _pixels(first), _pixels(second)
    if a.shape != b.shape:
        return float("inf")
    if np.array_equal(a, b):
        return 0.0
    _, likeness = structural_similarity(
        a, b, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return float(1 - likeness.min())


def same_picture(first: str, second: str) -> bool:
    """Say whether a reader would call two PNGs in base64 the same."""
    return distance(first, second) <= TOLERANCE


def smaller(png: str) -> str:
    """Return the same picture in fewer bytes where that can be had: packed better, not changed.

    Args:
        png: a PNG in base64.
    """
    picture, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):  # nothing transparent
        picture = picture.convert("RGB")
    picture.save(file, "png", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def _pixels(png: str) -> np.ndarray:
    """Return a PNG's pixels on white, (height, width, 3), from 0 to 1."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"), dtype=float) / 255
