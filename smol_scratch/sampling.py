"""How a text is drawn: the settings of ``generation``, which can be read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smol_scratch.fields import check, number


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn unless told otherwise: by the command line and by the demo page alike.

    Attributes:
        tokens: at most so many new ones.
        temperature: 0 takes the most probable token each time.
        top_k: choose among so many of the most probable tokens.
        top_p: choose among the most probable tokens that together have this probability.
        min_p: leave out tokens less probable than this share of the most probable one.
        repetition_penalty: above 1, tokens that were there before become less probable.

    Raises:
        ValueError: for a value that cannot be used, naming it and its rule.
    """

    tokens: int = number(200, least=1)
    temperature: float = number(0.8, least=0)
    top_k: int | None = number(None, least=1)
    top_p: float | None = number(0.95, above=0, most=1)
    min_p: float | None = number(None, least=0, most=1)
    repetition_penalty: float = number(1.0, above=0)

    def __post_init__(self) -> None:
        check(self)

    def filters(self) -> dict[str, Any]:
        """Return all but the number of tokens, as ``generate`` and ``stream`` take them."""
        return {name: value for name, value in vars(self).items() if name != "tokens"}
