"""What a terminal does to a program: streams that are not UTF-8, Ctrl-C, pipes that close, slips.

Nothing here knows a command; ``commands.py`` does.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from smol_scratch.assets import one_line


@contextlib.contextmanager
def manners(name: str) -> Iterator[None]:
    """End as a terminal expects: one line for what the user got wrong, none for Ctrl-C or a pipe.

    Args:
        name: of the program, before the line.

    Raises:
        SystemExit: with 2 for a value or a file that cannot be used, 130 after Ctrl-C, 141 where
            the reader of a pipe has seen enough.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what the console or file has no sign for
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Python would try to flush once more when it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"{name}: {with_flags(in_words(error))}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, for work that must be tidied up; else it ends all."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or before is signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def in_words(error: Exception) -> str:
    """Return what an error says, without the number that a system's own errors begin with."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


# Flags that name a file, a folder or a place on the hub.
PLACES = ("ckpt", "init", "text", "shards", "input", "output", "save", "metrics", "folder", "gguf",
          "space", "push", "json")  # fmt: skip


@contextlib.contextmanager
def naming_flags(arguments: Sequence[str], names: Collection[str]) -> Iterator[None]:
    """Tell errors in the words of the command line.

    A file or folder that an error begins with gets the flag in front that named it, and what has a
    flag of the command is called by it.

    Args:
        arguments: the command line.
        names: Python's, of all that the command has a flag for.

    Raises:
        ValueError: in place of such an error, and for a file or folder with an empty name.
    """
    named = {}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag[2:] in PLACES:
            named[flag] = value if equals else following
    for flag, value in named.items():
        if not value.strip():
            raise ValueError(f"{flag}: is empty; name a file or folder, or leave it out")
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        said = in_words(error)
        for flag, value in named.items():
            for name in (value, str(Path(value)), str(Path(value).resolve())):
                if re.match(rf"{re.escape(name)}(?=[\s:/\\,;]|$)", said):
                    raise ValueError(with_flags(f"{flag} {said}", names)) from error
        if (told := with_flags(said, names)) != said:
            raise ValueError(told) from error
        raise


def with_flags(message: str, names: Collection[str] = ()) -> str:
    """Return an error in one line, with flags for Python's names: --top-p 2, not top_p=2.

    Args:
        message: the error. What it begins with is always taken for a flag.
        names: what else has a flag, wherever it stands.
    """
    line = one_line(message)
    if found := re.match(rf"{_NAME}={_VALUE}(?=[:,])", line):
        line = _flag(found) + line[found.end() :]
    if names:
        line = re.sub(rf"(?<![\w.-])(?:{'|'.join(names)})={_VALUE}", _flag, line)
    return line


_NAME, _VALUE = "[a-z][a-z0-9_]*", r"(?:'[^']*'|[^\s:,;()]+)"


def _flag(found: re.Match[str]) -> str:
    """Return ``name=value`` as a flag; what is only on or off has no value."""
    name, _, value = found.group().partition("=")
    name = name.replace("_", "-")
    if value in ("True", "False"):
        return f"--{'no-' * (value == 'False')}{name}"
    return f"--{name} {value.removeprefix(chr(39)).removesuffix(chr(39))}"


def known(command: str, commands: Collection[str]) -> None:
    """Check the name of a command.

    Raises:
        ValueError: for one that is not there, with the nearest that is.
    """
    if command.startswith("-") or command in commands:
        return
    near = difflib.get_close_matches(command, commands, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{command}: no such command; {guess}There are {', '.join(commands)}")


def read(
    command: Callable[..., None], name: str, arguments: Sequence[str], example: str = ""
) -> Callable[[], None]:
    """Let tyro read a command line; return the call that it asks for.

    Args:
        command: its signature and docstring are what is read by, and what ``--help`` says.
        name: of program and command.
        arguments: what stands behind it.
        example: what ``--help`` ends with.

    Raises:
        ValueError: for flags that cannot be read, in one line.
        SystemExit: after ``--help``.
    """
    import tyro

    @functools.wraps(command)
    def later(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *positional, **named)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call: Callable[[], None] = tyro.cli(
                later,
                prog=name,
                args=arguments,
                config=(tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
            )
        return call
    except SystemExit as ended:
        if not ended.code:
            print(f"for example:\n  {name} {example}".rstrip())
            raise
        raise ValueError(_plain(said.getvalue())) from None


def _plain(boxed: str) -> str:
    """Return the sentence in a box that tyro has drawn: no frame, title, or advice to ask again."""
    sections: list[str] = []
    for line in boxed.splitlines():
        if re.search(r"[─-]{10}", line):  # a frame or a rule, drawn with what the console has
            sections.append("")
        elif sections:  # before the first one stands the title
            sections[-1] += f" {line.strip('│| ')}"
    found, *rest = [" ".join(section.split()) for section in sections if section.strip()] or [""]
    found = re.sub(r"^(Value error: )?(Error parsing \w+: )?", "", found)
    guess = re.search(r"--[a-z][\w-]*", " ".join(rest)) if "nrecognized" in found else None
    return (found or " ".join(boxed.split())) + (
        f"; did you mean {guess.group()}?" if guess else ""
    )


def prompt(positional: str | None, flag: str | None) -> str:
    """Return what was asked: an argument, or ``--prompt``, or standard input ("-", or a pipe).

    Raises:
        ValueError: when there is none, two, or an empty one.
    """
    if positional is not None and flag is not None:
        raise ValueError("--prompt: was given twice, once without the flag; give it once")
    given = flag if positional is None else positional
    if given in (None, "-"):
        if given is None and sys.stdin.isatty():
            raise ValueError('--prompt: is missing; for example generate "Why is the sky blue?"')
        given = _decoded(_standard_input().read(), "standard input").removesuffix("\n")
    assert given is not None
    if re.search("[\udc80-\udcff]", given):  # bytes of an argument that the locale does not know
        given = _decoded(os.fsencode(given), "--prompt")
    if not given.strip():
        raise ValueError("--prompt: is empty; give some words to answer or to continue")
    return given


def ask() -> str:
    """Return the next line of standard input, "" at its end; a terminal shows that it waits.

    Raises:
        ValueError: for a line that is no UTF-8.
    """
    try:
        if sys.stdin.isatty():
            return input("> ")
    except EOFError:
        return ""
    return _decoded(_standard_input().readline(), "standard input").rstrip("\r\n")


def _standard_input() -> Any:
    """Return it in bytes: what they mean does not depend on the locale."""
    return getattr(sys.stdin, "buffer", sys.stdin)


def _decoded(given: bytes | str, what: str) -> str:
    """Return text that was given as UTF-8.

    Raises:
        ValueError: for other bytes, with the likely encoding and a way out.
    """
    if isinstance(given, str):
        return given
    if given.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{what}: is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
    try:
        return given.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what}: is no UTF-8, for it holds the byte 0x{given[error.start]:02X} where no "
            "character can have it, as in Latin-1 or Windows-1252; convert it with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
