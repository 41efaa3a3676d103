"""The program, ``python -m smol_scratch COMMAND``: what must be in place before anything loads."""

import os
import signal
import sys

NAME = "python -m smol_scratch"


def leave(number: int, frame: object) -> None:
    """End the process after Ctrl-C, at once and without a word.

    So it is while libraries and weights load. Raised as an exception, the interruption could come
    up inside a library that is half imported, which makes another error of it, or swallows it.
    ``terminal.interruptible`` is for work that must be tidied up.

    Before it is put in place Python starts, and reads the package's ``__init__``, this file and
    ``signal``, some milliseconds in all. Ctrl-C in that time ends the process with Python's own
    traceback: a package that is imported must not change what Ctrl-C does.
    """
    if os.isatty(2):
        os.write(2, b"\n")
    os._exit(130)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: the process's own unless given; Ctrl-C is taken over for those alone, and not
            where it is ignored, as behind ``nohup``.
    """
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from smol_scratch.terminal import manners

    with manners(NAME):
        from smol_scratch.commands import run_command

        run_command(NAME, sys.argv[1:] if arguments is None else arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
