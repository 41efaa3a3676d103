"""The bug clinic: copies of this package with a hidden fault, and instruments to find it with.

A case is a symptom, produced by running the faulty copy, and a fault in one line or a few. The
player names file, line and cause; the score is what the instruments used have cost. Nothing here
needs PyTorch; ``instruments`` and ``symptoms`` do.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from smol_scratch.clinic import patient

HERE = Path(__file__).parent
LEVELS = {
    1: "shapes and obvious ones",
    2: "wrong, and learning",
    3: "training",
    4: "systems",
}


HINT, WRONG = 2, 1  # what a hint costs, and a wrong answer


class Instrument(NamedTuple):
    """A question that can be asked of a program; ``instruments.INSTRUMENTS`` answers it.

    Attributes:
        cost: 1 for some calls of the model or of a function; 2 where something is trained, or
            saved and loaded; 3 where numbers of somebody else's are needed.
        asks: the question.
    """

    cost: int
    asks: str


class Fault(NamedTuple):
    """A piece of a file of the package, and what stands there in the copy."""

    file: str
    old: str
    new: str


class Case(NamedTuple):
    """A fault, what it looks like, and what is known of it.

    Attributes:
        number: from 1.
        key: its short name, by which records know it.
        level: 1 to 4.
        title: gives nothing away.
        complaint: what somebody would write in an issue.
        like: the symptom, as one would search for it.
        cause: the key of what is wrong, in ``causes()``.
        faults: what is exchanged.
        shows: instruments that see it.
        hints: two.
        solution: how one could have known.
        test: the smallest one that fails in the copy.
        happened: where it did.
        link: to that.
        also: lines as guilty as those that were exchanged, since a mend could stand there as well:
            (file, text) each.
    """

    number: int
    key: str
    level: int
    title: str
    complaint: str
    like: str
    cause: str
    faults: tuple[Fault, ...]
    shows: tuple[str, ...]
    hints: tuple[str, ...]
    solution: str
    test: str
    happened: str
    link: str
    also: tuple[tuple[str, str], ...] = ()


@functools.cache
def _read() -> dict[str, Any]:
    return tomllib.loads((HERE / "cases.toml").read_text("utf-8"))


@functools.cache
def cases() -> tuple[Case, ...]:
    """Return all cases, in order."""
    found = []
    for number, entry in enumerate(_read()["case"], start=1):
        faults = tuple(Fault(**fault) for fault in entry["fault"])
        rest = {name: value for name, value in entry.items() if name != "fault"}
        rest |= {"shows": tuple(entry["shows"]), "hints": tuple(entry["hints"])}
        rest["also"] = tuple((one["file"], one["text"]) for one in entry.get("also", ()))
        found.append(Case(number=number, faults=faults, **rest))
    return tuple(found)


def causes() -> dict[str, str]:
    """Return all causes that a line can be accused of: key to sentence."""
    return {key: words for drawer in _read()["causes"].values() for key, words in drawer.items()}


def drawers() -> dict[str, tuple[str, ...]]:
    """Return the four places where a fault can be: data, model and so on, to their causes."""
    return {name: tuple(causes) for name, causes in _read()["causes"].items()}


def searched() -> dict[str, str]:
    """Return, for each symptom that a case is like, how else people search for it."""
    return dict(_read()["searched"])


def tools() -> dict[str, Instrument]:
    """Return what can be asked, by name, the cheap ones first."""
    return {name: Instrument(**entry) for name, entry in _read()["instruments"].items()}


def case(name: int | str) -> Case:
    """Return a case by its number or key.

    Raises:
        ValueError: when there is none.
    """
    for one in cases():
        if str(name) in (str(one.number), one.key):
            return one
    raise ValueError(f"case {name}: there are 1 to {len(cases())}")


@functools.cache
def recorded() -> dict[str, list[str]]:
    """Return what each case's symptom looked like when it was recorded: key to lines."""
    found: dict[str, list[str]] = json.loads((HERE / "symptoms.json").read_text("utf-8"))
    return found


def faulty(one: Case) -> dict[str, str]:
    """Return the files that a case's fault stands in, as they are in the copy."""
    texts: dict[str, str] = {}
    for file, old, new in one.faults:
        texts.setdefault(file, (patient.HERE / file).read_text("utf-8"))
        texts[file] = texts[file].replace(old, new)
    return texts


def guilty(one: Case) -> dict[str, set[int]]:
    """Return the lines at fault, by file, counted from 1 in the copy.

    Where a line is missing, the two that stood beside it are.
    """
    found: dict[str, set[int]] = {}
    for file, text in faulty(one).items():
        before = (patient.HERE / file).read_text("utf-8").splitlines()
        matcher = difflib.SequenceMatcher(None, before, text.splitlines(), autojunk=False)
        for kind, _, _, start, end in matcher.get_opcodes():
            if kind == "delete":
                found.setdefault(file, set()).update((start, start + 1))
            elif kind != "equal":
                found.setdefault(file, set()).update(range(start + 1, end + 1))
    return found


def accepted(one: Case) -> dict[str, set[int]]:
    """Return the lines that are a right answer: those at fault, and where a mend could stand."""
    found = {file: set(lines) for file, lines in guilty(one).items()}
    for file, text in one.also:
        lines = faulty(one)[file].splitlines()
        found[file].update(i for i, line in enumerate(lines, start=1) if text in line)
    return found


class Verdict(NamedTuple):
    """What is right about an answer.

    Attributes:
        file, line, cause: whether that part is.
        words: for the player; they say which part is wrong, and not what is right.
    """

    file: bool
    line: bool
    cause: bool
    words: str

    @property
    def right(self) -> bool:
        """Whether all of it is."""
        return self.file and self.line and self.cause


def judge(one: Case, file: str, line: int | str, cause: str) -> Verdict:
    """Judge an answer.

    Args:
        one: the case.
        file: its name, with or without folder and ``.py``.
        line: its number in the copy, or a piece of its text.
        cause: a key of ``causes()``.

    Raises:
        ValueError: for a file, line or cause that does not exist, and for a piece of text that
            stands in several lines, of which not all are right.
    """
    name = Path(file).stem + ".py"
    if not (patient.HERE / name).is_file() or name in patient.LEFT_OUT:
        raise ValueError(f"{file}: no such file in the copy")
    if cause not in causes():
        near = difflib.get_close_matches(cause, causes(), 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{cause}: no such cause{guess} `clinic causes` lists them")
    text = faulty(one).get(name) or (patient.HERE / name).read_text("utf-8")
    lines = text.splitlines()
    if isinstance(line, str) and line.strip().isdecimal():
        line = int(line)
    if isinstance(line, int):
        if not 1 <= line <= len(lines):
            raise ValueError(f"line {line}: {name} has {len(lines)}")
        meant = {line}
    else:
        meant = {i for i, there in enumerate(lines, start=1) if line.strip() in there}
        if not line.strip() or not meant:
            raise ValueError(f"{line!r}: stands in no line of {name}")
    wrong = accepted(one)
    here, there = name in wrong, meant <= wrong.get(name, set())
    right = cause == one.cause
    if len(meant) > 1 and not there:
        numbers = ", ".join(map(str, sorted(meant)))
        raise ValueError(
            f"{line!r}: stands in {len(meant)} lines of {name} ({numbers}): name one by its number"
        )
    if here and there and right:
        words = "right: file, line and cause"
    else:
        parts = (
            f"the file is {_yes(here)}",
            f"the line is {_yes(there)}",
            f"the cause is {_yes(right)}",
        )
        words = ", ".join(parts)
    return Verdict(here, there, right, words)


def _yes(right: bool) -> str:
    return "right" if right else "not"
