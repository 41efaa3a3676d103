"""A chat template writes a conversation: Jinja in its sandbox, within bounds of time and size.

A template is a small program that comes with the weights, from anybody. The sandbox keeps it from
Python's inside, as in ``transformers``; that it ends, and within memory, is seen to here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from smol_scratch import assets

if TYPE_CHECKING:
    from jinja2 import Template

# Of computing, for all that one conversation asks for. Templates in use take a hundredth.
SECONDS = 1.0
# Characters or entries of anything that a template makes. A context of 8,192 tokens has some 40,000
# characters.
MOST = 10_000_000
_ends: ContextVar[float | None] = ContextVar("ends", default=None)
_written: ContextVar[int] = ContextVar("written", default=0)


class TooMuchError(ValueError):
    """A template takes more time or room than there is for it."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    now: datetime | None = None,
    **variables: Any,
) -> str:
    """Return the text that a chat template writes.

    Args:
        template: its source.
        messages: the conversation; a field that is None counts as left out.
        now: what ``strftime_now`` tells; the clock unless told.
        **variables: what else the template sees: ``tools``, ``documents``,
            ``add_generation_prompt``, ``bos_token``, ….

    Raises:
        TooMuchError: when it goes on without end, or writes without end.
        ValueError: when the template is no template, or refuses the conversation.
        TypeError: for a value that JSON does not have.

    Source: ``apply_chat_template`` of ``transformers``.
    """
    now = now or datetime.now()
    seen = {"tools": None, "documents": None, "add_generation_prompt": False} | variables
    try:
        _written.set(0)
        with within_time():
            return _compiled(template).render(
                messages=[_message(plain(message)) for message in messages],
                strftime_now=lambda form: now.strftime(form),
                **{name: plain(value) for name, value in seen.items()},
            )
    except TypeError as error:
        if "JSON" in str(error):
            raise
        raise ValueError(assets.one_line(f"the chat template fails: {error}")) from error
    except TooMuchError as error:
        raise TooMuchError(f"the chat template goes on and on: {error}") from None
    except Exception as error:  # a template can do anything but harm
        raise ValueError(assets.one_line(f"the chat template refuses: {error}")) from error


@contextlib.contextmanager
def within_time() -> Iterator[None]:
    """Hold all templates that are rendered within to ``SECONDS`` together."""
    if _ends.get() is not None:
        yield
        return
    token = _ends.set(time.thread_time() + SECONDS)
    try:
        yield
    finally:
        _ends.reset(token)


def _step() -> None:
    """Raise where the time is up; called wherever a template could go on for long."""
    ends = _ends.get()
    if ends is not None and time.thread_time() > ends:
        raise TooMuchError(
            f"it was not done after {SECONDS:g} s of computing; name another template"
        )


def _room(size: float) -> None:
    if size > MOST:
        raise TooMuchError(f"it makes more than {MOST:,} characters; name another template")


def _size(*values: Any) -> int:
    """Return how many characters values are when written, counted to little more than ``MOST``.

    Each entry counts ten more. A list that holds another twice counts it twice: so often would it
    be written.
    """
    total, left = 0, list(values)
    while left and total <= MOST:
        value = left.pop()
        total += 10
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            left += value
        elif isinstance(value, int):
            total += value.bit_length() // 3
        elif isinstance(value, range):
            total += 10 * len(value)
    return total


# What can make much of little: by a number that it is given, or by writing one thing often.
_GROW = frozenset(
    ("batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "rjust",
     "slice", "to_bytes", "tojson", "translate", "wordwrap", "zfill")
)  # fmt: skip
# These look at their values' entries without writing them out.
_LOOK = frozenset(
    ("attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
     "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select",
     "selectattr", "slice", "sort", "sum", "unique")
)  # fmt: skip


def _check(name: str, value: Any, arguments: Iterable[Any]) -> None:
    """Raise where a method or filter would make more of its value than there is room for."""
    arguments = list(arguments)
    if name == "replace" and len(arguments) > 1 and isinstance(value, str):
        old, new = (len(str(argument)) for argument in arguments[:2])
        _room(len(value) + (len(value) // max(old, 1) + 1) * new)
    elif name in _GROW:
        numbers = [abs(n) for n in arguments if isinstance(n, int)]
        if name in ("format", "format_map") and isinstance(value, str):
            numbers += map(int, re.findall(r"\d{1,18}", value))
        # The one may be written as often as the other has signs; both at once rarely are.
        size = _size(value)
        _room(max(size, size * (1 + max([0, *numbers, *map(_size, arguments)])) / 30))
    elif name not in _LOOK:
        _room(_size(value))


def _bounded(name: str, function: Callable[..., Any], first: int) -> Callable[..., Any]:
    """Return a filter that is examined before it runs and after; ``first`` is its value's place."""

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        _step()
        before, value, rest = given[:first], given[first], given[first + 1 :]
        if isinstance(value, Iterator) and name not in _LOOK:
            value = list(value)
        _check(name, value, [*rest, *named.values()])
        return _whole(function(*before, value, *rest, **named))

    return checked


def _whole(made: Any) -> Any:
    """Return what was made, unless it is too long."""
    if isinstance(made, str | bytes | list | tuple | dict):
        _room(len(made))
    return made


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """``{% generation %}`` marks an answer for training; for its text it does nothing."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class PublicNamespace(Namespace):
        """A namespace through which nothing hidden in Python is reached."""

        def __init__(*args: Any, **values: Any) -> None:  # any name may be among the values
            Namespace.__init__(args[0])
            for name, value in dict(*args[1:], **values).items():
                args[0][name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace has no {name}")
            super().__setitem__(name, value)

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox, in which nothing goes on or grows without bounds."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _step()
            if operator == "%" and isinstance(left, str | bytes):
                _check("format", left, [right])
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                _room(abs(left).bit_length() * max(right, 0) * 1000)
            elif operator in "+*" and isinstance(left, int) and isinstance(right, int):
                _room((left.bit_length() + right.bit_length()) * 1000)
            elif operator == "*":
                for many, often in ((left, right), (right, left)):
                    if isinstance(often, int) and hasattr(many, "__len__"):
                        _room(len(many) * often)
            elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
                _room(len(left) + len(right))
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __object: Any, *given: Any, **named: Any) -> Any:  # noqa: N805
            _step()
            method = getattr(__object, "__wrapped__", __object)  # the sandbox's own format
            owner, name = (getattr(method, part, None) for part in ("__self__", "__name__"))
            if name == "join":
                given = tuple(list(one) if isinstance(one, Iterator) else one for one in given)
            if isinstance(owner, str | bytes | int) and isinstance(name, str):
                _check(name, owner, [*given, *named.values()])
            return _whole(super().call(__context, __object, *given, **named))

        def concat(self, pieces: Iterable[str]) -> str:
            kept, total = [], 0
            for piece in pieces:
                total += len(piece)
                _room(total)
                kept.append(piece)
            return "".join(kept)

        def joined(self, *parts: Any) -> str:
            """Do what ``~`` does."""
            _step()
            _room(_size(*parts))
            return "".join(map(str, parts))

        def step(self) -> str:
            _step()
            return ""

    class Watched(NodeTransformer):
        """Puts a step before each turn of a loop and each macro; has ``~`` done above."""

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
            return self.begins_with_a_step(node)

        visit_Macro = visit_CallBlock = visit_For  # noqa: N815

        def begins_with_a_step(self, node: Any) -> nodes.Node:
            self.generic_visit(node)
            call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call))
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            joined = nodes.EnvironmentAttribute("joined")
            return nodes.Call(joined, node.nodes, [], None, None)

    def written(value: Any) -> Any:
        """Examine what is about to be written, also into a variable or by a macro."""
        size = len(value) if isinstance(value, str) else _size(value)
        _written.set(_written.get() + size)
        _room(_written.get())
        return value

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own is for web pages, and writes < as an escape.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Bounded(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
        optimized=False,  # nothing is computed before the bounds hold
        finalize=written,
    )
    environment.filters["tojson"] = to_json
    environment.filters |= {
        name: _bounded(name, function, 1 if hasattr(function, "jinja_pass_arg") else 0)
        for name, function in environment.filters.items()
    }
    del environment.globals["lipsum"]  # paragraphs of Latin without end
    environment.globals |= {
        "raise_exception": raise_exception,
        "namespace": PublicNamespace,
        "dict": lambda *args, **values: dict(*args, **values),
    }
    tree = Watched().visit(environment.parse(template))
    for node in tree.find_all(nodes.Node):
        node.lineno = node.lineno or 1
    return environment.from_string(tree.set_environment(environment))


def plain(value: Any) -> Any:
    """Return a copy in JSON's types: a template sees nothing that has methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r:.60} ({type(value).__name__}): JSON has no such value")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None, and give reasoning all the names that templates read it by."""
    message = {name: value for name, value in message.items() if value is not None}
    thoughts = [message[n] for n in ("reasoning_content", "thinking", "reasoning") if n in message]
    if thoughts:
        message = {"thinking": thoughts[0], **message, "reasoning_content": thoughts[0]}
    return message
