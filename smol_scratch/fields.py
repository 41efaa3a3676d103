"""Frozen dataclasses that check themselves, field by field.

The rule stands beside the field, ``steps: int = number(5000, least=1)``, and ``check`` holds every
field to its type and its rule.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = sys.float_info.max  # finite, and so is every int up to it: beyond, float(value) fails


def number(
    default: Any, *, least: float | None = None, above: float | None = None,
    most: float | None = None, below: float | None = None,
) -> Any:  # fmt: skip
    """Return a dataclass field with bounds; None, where the type admits it, is not held to them.

    Args:
        default: of the field.
        least: the smallest value allowed.
        above: a bound that is not allowed itself.
        most: the largest value allowed.
        below: a bound that is not allowed itself.
    """
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(
        default=default,
        metadata={name: bound for name, bound in bounds.items() if bound is not None},
    )


def check(instance: Any) -> None:
    """Hold every field of a dataclass to its type and its bounds.

    Raises:
        ValueError: for the first that does not fit, naming field, value and rule.
    """
    kinds = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value, kind = getattr(instance, field.name), kinds[field.name]
        if rule := _broken_rule(value, kind, field.metadata):
            raise ValueError(f"{field.name}={_shown(value)}: must be {rule}")


def _shown(value: Any) -> str:
    """Return a value in an error's words: whole numbers may be longer than anybody reads."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"{'-' * (value < 0)}~10^{value.bit_length() * math.log10(2):.0f}"
    return f"{value!r:.60}"


def _broken_rule(value: Any, kind: Any, bounds: Any) -> str:
    """Return what a value must be and is not; nothing where it is right."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return ""
        [kind] = [other for other in get_args(kind) if other is not type(None)]
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if kind is float:
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            return "a finite number"
    elif kind in (int, bool, str):
        words = {int: "a whole number", bool: "True or False", str: "a string"}
        if type(value) is not kind:
            return words[kind]
        if kind is int and "most" not in bounds and not -(2**63) <= value < 2**63:
            return "a whole number of at most 64 bits"
    elif kind is Path and not isinstance(value, Path):
        return "a Path"
    within = {
        "least": (lambda bound: value >= bound, "at least"),
        "above": (lambda bound: value > bound, "above"),
        "most": (lambda bound: value <= bound, "at most"),
        "below": (lambda bound: value < bound, "below"),
    }
    if all(within[name][0](bound) for name, bound in bounds.items()):
        return ""
    return " and ".join(
        f"{within[name][1]} {bound if type(bound) is int else format(bound, 'g')}"
        for name, bound in bounds.items()
    )
