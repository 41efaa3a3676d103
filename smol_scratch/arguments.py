"""A line for an argument of a wrong type, from the annotations that are there anyway."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])

# What an annotation asks for, by its name.
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a string",
    "NoneType": "None",
    "Tensor": "a tensor; torch.tensor(…) makes one",
    "dtype": "a torch.dtype, as torch.bfloat16",
}


def checked(it: F) -> F:
    """Have a function look at its arguments' types before it begins.

    Of a class that is the constructor; its public methods are ``explained``.

    Raises, when called:
        TypeError: for the first argument whose type is not the annotation's.
    """
    if isinstance(it, type):
        for name, method in list(vars(it).items()):
            if inspect.isfunction(method) and (name == "__init__" or name[0] != "_"):
                setattr(it, name, (checked if name == "__init__" else explained)(method))
        return it

    @functools.wraps(it)
    def call(*args: Any, **kwargs: Any) -> Any:
        if wrong := _wrong_type(it, args, kwargs):
            raise TypeError(wrong)
        return it(*args, **kwargs)

    return call  # type: ignore[return-value]


def explained(function: F) -> F:
    """Have a function that failed say which argument is of a wrong type.

    For what is called hundreds of times a token: as long as it works nothing is looked at, and
    ``torch.compile`` sees the function alone.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            wrong = _wrong_type(function, args, kwargs)
            if not wrong or str(error).startswith(f"{wrong.partition('=')[0]}="):
                raise  # nothing is wrong with the types, or it says so itself
            raise TypeError(wrong) from error

    # torch.compile makes at most eight graphs of one code: each function has its own, as if bare.
    call.__code__ = call.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


_signature = functools.cache(inspect.signature)
_hints = functools.cache(get_type_hints)


def _wrong_type(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """Return what is wrong with the first argument of a wrong type, or nothing."""
    try:
        given = _signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # too many or too few: Python itself says so
        return ""
    for name, value in given.items():
        kind = _hints(function).get(name, object)
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        if not any(_fits(value, one) for one in kinds):
            names = (one.__name__ for one in kinds)
            wanted = " or ".join(_WORDS.get(one, f"a {one}") for one in names)
            return f"{name}={type(value).__name__}: must be {wanted}"
    return ""


def _fits(value: Any, kind: Any) -> bool:
    """Say whether a value is of a kind; whatever counts as a number, or a path, is one."""
    kind = get_origin(kind) or kind
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is int:
        try:
            return operator.index(value) is not None
        except (TypeError, ValueError):  # the latter of a tensor with several numbers
            return False
    if kind is float:
        return hasattr(value, "__float__")
    if kind is Path:
        return isinstance(value, os.PathLike)
    if _is_module(kind):  # what somebody puts in its place is none of its class
        return _is_module(type(value))
    return isinstance(value, kind)


def _is_module(kind: type) -> bool:
    """Say whether a class is a ``torch.nn.Module``; PyTorch is not loaded to find out."""
    return any((c.__module__, c.__name__) == ("torch.nn.modules.module", "Module")
               for c in kind.__mro__)  # fmt: skip
