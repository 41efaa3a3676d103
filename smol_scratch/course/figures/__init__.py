"""Every plot of the walkthrough: plain data in, a matplotlib figure out, one style.

``style`` holds the look and the colours, ``overview`` the map of the model; the other files hold
the plots of one notebook each.
"""

from smol_scratch.course.figures.overview import model_map
from smol_scratch.course.figures.style import (
    COLOURS,
    new_figure,
    show_alternative_text,
    use_style,
)

__all__ = ["COLOURS", "model_map", "new_figure", "show_alternative_text", "use_style"]
