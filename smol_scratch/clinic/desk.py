"""The clinic's desk: what ``python -m smol_scratch clinic`` prints, in plain lines.

A case that was opened lies in a folder with its copy of the package and the player's score; nothing
else remembers anything. PyTorch is imported for an instrument alone.
"""

from __future__ import annotations

import getpass
import json
import os
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smol_scratch import assets, clinic, terminal
from smol_scratch.clinic import patient

PROGRAM = "python -m smol_scratch clinic"
STATE = "score.json"
KIND = "smol_scratch clinic"


def default_folder() -> Path:
    """Return where cases are opened unless told: a folder for temporary files, the user's own."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "you"
    return Path(tempfile.gettempdir()) / f"smol_scratch-clinic-{user}"


def say(text: str = "", indent: str = "") -> None:
    """Print a paragraph in lines of at most 88 characters."""
    print(textwrap.fill(text, 88, initial_indent=indent, subsequent_indent=indent))


class Desk:
    """One player's cases, in a folder.

    Attributes:
        folder: has a folder for each case that was opened.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder; it is made when a case is opened."""
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--folder {folder}: is a file; name a folder")
        # Instruments run what lies there, so it must be nobody else's.
        if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid != os.getuid():
            raise ValueError(f"--folder {folder}: belongs to another user; name a folder of yours")

    def place(self, one: clinic.Case) -> Path:
        """Return the folder of a case."""
        return self.folder / f"case-{one.number:02}"

    def state(self, one: clinic.Case) -> dict[str, Any]:
        """Return what was done in a case.

        Raises:
            ValueError: when it is not open.
        """
        file = self.place(one) / STATE
        if not file.is_file():
            raise ValueError(f"case {one.number}: is not open; `{PROGRAM} open {one.number}`")
        try:
            found = json.loads(file.read_text("utf-8"))
            if found["kind"] != KIND:
                raise KeyError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{file}: is damaged; `{PROGRAM} reset {one.number}` begins anew"
            ) from None
        return dict(found)

    def write(self, one: clinic.Case, state: dict[str, Any]) -> None:
        """Keep what was done."""
        with terminal.interruptible():
            assets.write_atomically(self.place(one) / STATE, json.dumps(state).encode())

    # What can be asked for.

    def list(self) -> None:
        """Print all cases, and how far the player is."""
        level = 0
        for one in clinic.cases():
            if one.level != level:
                level = one.level
                print(f"{'' if level == 1 else chr(10)}Level {level}: {clinic.LEVELS[level]}")
            mark = ""
            if (self.place(one) / STATE).is_file():
                state = self.state(one)
                mark = f"  [{'solved' if state['solved'] else 'open'}, {_spent(state)}]"
            print(f"  {one.number:>2}  {one.title}{mark}")
        print()
        say(f"`{PROGRAM} open 1` opens a case. The aim: name file, line and cause, with as few "
            "instruments as you can.")  # fmt: skip

    def open(self, one: clinic.Case) -> None:
        """Make a case's copy unless it is there, and print its symptom."""
        place = self.place(one)
        if not (place / STATE).is_file():
            if place.exists():
                raise ValueError(f"{place}: is in the way; remove it, or name another --folder")
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            state = {"kind": KIND, "used": [], "hints": 0, "wrong": 0, "solved": False}
            # Whole or not at all: what is half there would be in the next one's way.
            with terminal.interruptible(), assets.written_whole(place) as new:
                patient.admit(new, one.faults)
                (new / STATE).write_text(json.dumps(state), "utf-8")
        print(f"Case {one.number}, level {one.level}: {one.title}\n")
        say(f"“{one.complaint}”", "  ")
        print()
        for line in clinic.recorded()[one.key]:
            print(f"  | {line}")
        print()
        say(f"The program is in {place / patient.NAME}. Read it; you may even change it, and "
            "use an instrument again. (A comparison with your own copy would give it away at once. "
            "Real bugs come without one.)")  # fmt: skip
        say("An answer names a line as it was handed out, by its number or a piece of its text; "
            "where a line is missing, name one beside the gap.")  # fmt: skip
        print()
        self.instruments(one)

    def instruments(self, one: clinic.Case) -> None:
        """Print the instruments."""
        print("Instruments, and what each costs:")
        for name, tool in clinic.tools().items():
            print(f"  {name:<11} {tool.cost}  {tool.asks}")
        print(f"\n  {PROGRAM} run {one.number} INSTRUMENT")
        print(
            f"  {PROGRAM} answer {one.number} FILE LINE CAUSE    (`{PROGRAM} causes` lists causes)"
        )
        print(f"  {PROGRAM} hint {one.number}")
        print(f"\nA hint costs {clinic.HINT}, a wrong answer {clinic.WRONG}.")

    def run(self, one: clinic.Case, name: str) -> None:
        """Use an instrument on a case's copy, and print its reading."""
        state, tools = self.state(one), clinic.tools()
        if name not in tools:
            raise ValueError(f"{name}: no such instrument; there are {', '.join(tools)}")
        import torch

        from smol_scratch.clinic.instruments import INSTRUMENTS

        torch.set_num_threads(1)  # the models are tiny
        print(f"{name} (cost {tools[name].cost}): {tools[name].asks}")
        with terminal.interruptible():  # some write models into a folder of their own
            reading = INSTRUMENTS[name](patient.Patient(self.place(one)))
        for line in reading.lines:
            print(f"  {line}")
        if name not in state["used"]:
            state["used"].append(name)
        state["shown"] = state.get("shown", False) or not reading.fine
        self.write(one, state)
        print(f"{_spent(state)} so far")

    def answer(self, one: clinic.Case, file: str, line: str, cause: str) -> None:
        """Judge an answer; the right one is followed by how one could have known."""
        state = self.state(one)
        verdict = clinic.judge(one, file, line, cause)
        print(f"{'✓' if verdict.right else '✗'} {verdict.words}")
        if not verdict.right:
            state["wrong"] += not state["solved"]
            self.write(one, state)
            return
        state["solved"] = True
        self.write(one, state)
        print(f"Solved with {_spent(state)}.\n")
        if not state.get("shown"):
            say("So far it is a suspicion: no instrument has shown you the fault.")
        say(f"{_witness(one)} Mend the line and use it again: what was ✗ must become ✓.")
        print()
        self._tell(one)

    def hint(self, one: clinic.Case) -> None:
        """Print the next hint."""
        state = self.state(one)
        if state["hints"] < len(one.hints):
            state["hints"] += 1
            self.write(one, state)
        for number, hint in enumerate(one.hints[: state["hints"]], start=1):
            say(f"Hint {number}: {hint}")
        if state["hints"] == len(one.hints):
            print(f"There are no more; `{PROGRAM} solution {one.number}` gives up.")

    def solution(self, one: clinic.Case) -> None:
        """Give up: print where the fault is, and how one could have known."""
        self.state(one)
        for file, lines in clinic.guilty(one).items():
            print(f"{file}, line {', '.join(map(str, sorted(lines)))}")
        say(f"Cause: {clinic.causes()[one.cause]} ({one.cause})")
        say(_witness(one))
        print()
        self._tell(one)

    def _tell(self, one: clinic.Case) -> None:
        say(one.solution)
        print("\nThe smallest test that catches it:\n")
        print(textwrap.indent(one.test.strip(), "    "))
        print()
        say(f"Where it happened: {one.happened}")
        print(one.link)

    def reset(self, one: clinic.Case) -> None:
        """Forget a case, its copy included."""
        self.state(one)
        # Under its own name there is never a part of a case.
        with (
            terminal.interruptible(),
            tempfile.TemporaryDirectory(prefix=".closed.", dir=self.folder) as gone,
        ):
            self.place(one).rename(Path(gone, "case"))
        print(f"case {one.number} is closed; nothing of it is left")


def _spent(state: dict[str, Any]) -> str:
    """Return a score in words."""
    tools = clinic.tools()
    used = sum(tools[name].cost for name in state["used"] if name in tools)
    total = used + clinic.HINT * state["hints"] + clinic.WRONG * state["wrong"]
    return f"{total} {'point' if total == 1 else 'points'}"


def _witness(one: clinic.Case) -> str:
    """Return which instrument shows a case's fault at the lowest cost."""
    tools = clinic.tools()
    name = min(one.shows, key=lambda name: tools[name].cost)
    return f"The cheapest instrument that shows it is {name} (cost {tools[name].cost})."


def causes() -> None:
    """Print all causes, by drawer."""
    print("What a line can be accused of. Suspect first, then look for your suspicion here:")
    said = clinic.causes()
    for drawer, keys in clinic.drawers().items():
        print(f"\n{drawer}")
        for key in keys:
            print(f"  {key:<27}{said[key]}")


ACTIONS: dict[str, tuple[str, ...]] = {
    "list": (),
    "open": ("N",),
    "run": ("N", "INSTRUMENT"),
    "hint": ("N",),
    "causes": (),
    "answer": ("N", "FILE", "LINE", "CAUSE"),
    "solution": ("N",),
    "reset": ("N",),
}


def serve(words: Sequence[str], folder: Path | None) -> None:
    """Do what is asked for.

    Raises:
        ValueError: for what cannot be asked, in one line.
    """
    action, *rest = words or ["list"]
    if action not in ACTIONS:
        raise ValueError(f"clinic {action}: must be one of {', '.join(ACTIONS)}")
    wanted = ACTIONS[action]
    if len(rest) != len(wanted):
        form = " ".join((action, *wanted))
        raise ValueError(f"clinic {' '.join(words)}: the form is `{PROGRAM} {form}`")
    desk = Desk(folder or default_folder())
    if action == "causes":
        causes()
    elif action == "list":
        desk.list()
    else:
        do: Callable[..., None] = getattr(desk, action)
        do(clinic.case(rest[0]), *rest[1:])
