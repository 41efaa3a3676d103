"""One way to let something else stand in a model's parts for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(parts: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Let an attribute of several parts have another value, and put the old ones back.

    Args:
        parts: such as the attentions of all blocks.
        name: of the attribute.
        value: what stands in its place as long as the context lasts, after an error too.
    """
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, value)
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            setattr(part, name, old)
