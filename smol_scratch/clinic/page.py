"""The book's page from symptoms to suspects, written out of the cases and the measured table."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from smol_scratch import assets, clinic

PAGE = assets.ROOT / "docs" / "clinic.md"
TABLE = "clinic.csv"  # in data/records
HEALTHY = "healthy"

HEAD = """\
# Something is wrong: from a symptom to its suspects

Made by `python -m benchmarks.record_clinic`. Search this page for what you see. Under each \
symptom stand the faults that showed it when we planted them, one at a time, in a copy of this \
package; then the instruments that saw the fault, the cheapest first, and the smallest test that \
catches it. Other faults can have the same symptom: these are suspects, not verdicts.

To find such faults yourself before you read about them: notebook 16, or \
`python -m smol_scratch clinic`. **This page gives the cases away.**

How to search: first ask whether it is the data, the model, the optimisation or the evaluation; \
use the question that leaves half of the suspects; and trust no check that you have not seen fail.
"""

INSTRUMENTS = """\
## The instruments

Cost, in the game: 1 for some calls of the model or of a function; 2 where something is trained, \
or saved and loaded; 3 where you need somebody else's numbers. *Operations* are those on tensors, \
counted on a healthy copy: with one version of PyTorch, the same number on every machine. *Time* \
is an instrument's share of the time that all of them take together on one case. *Cases* says how \
many of the {cases} it saw. None saw a fault in the healthy copy.

| | instrument | cost | operations | time | cases | its question |
|:-:|---|:-:|--:|--:|:-:|---|"""

MATRIX = """\
## Which instrument sees which case

Each instrument was used on each case. A row is a case, a column an instrument by its number \
above, ● a fault that was seen. {alone} of the {cases} cases are seen by a single instrument: a \
suite without that one lets the fault pass.
"""


class Measured(NamedTuple):
    """The table case × instrument.

    Attributes:
        cost: of each instrument in the game, by name.
        operations: on tensors, on a healthy copy.
        share: of the time of all instruments.
        seen: for each case, and ``healthy``, the instruments that see a fault, the cheap ones
            first.
    """

    cost: dict[str, int]
    operations: dict[str, int]
    share: dict[str, float]
    seen: dict[str, tuple[str, ...]]


def measured(file: Path | None = None) -> Measured:
    """Read the table that ``python -m benchmarks.record_clinic --table`` writes."""
    lines = (file or assets.records() / TABLE).read_text("utf-8").splitlines()
    (_, *names), *rows = csv.reader(line for line in lines if not line.startswith("#"))
    table = {key: dict(zip(names, row, strict=True)) for key, *row in rows}
    numbers = {name: {tool: float(x) for tool, x in table.pop(name).items()}
               for name in ("cost", "operations", "share")}  # fmt: skip
    return Measured(
        {tool: int(x) for tool, x in numbers["cost"].items()},
        {tool: int(x) for tool, x in numbers["operations"].items()},
        numbers["share"],
        {case: tuple(tool for tool, x in row.items() if x == "1") for case, row in table.items()},
    )


def bits(seen: int, cases: int) -> float:
    """Return what an instrument tells that sees so many of so many suspects, in bits."""
    shares = (seen / cases, 1 - seen / cases)
    return 0.0 - sum(share * math.log2(share) for share in shares if share)  # never -0.0


def symptoms() -> list[tuple[str, list[clinic.Case]]]:
    """Return each symptom with its suspects, in the order of the cases."""
    likes = dict.fromkeys(one.like for one in clinic.cases())
    return [(like, [one for one in clinic.cases() if one.like == like]) for like in likes]


def _upper(words: str) -> str:
    return words[0].upper() + words[1:]


def page() -> str:
    """Return the page, in Markdown."""
    tools, found, said = clinic.tools(), measured(), clinic.causes()
    count = len(clinic.cases())
    drawer_of = {cause: name for name, causes in clinic.drawers().items() for cause in causes}
    parts = [HEAD, "| symptom | suspects | drawer | seen by (cost) |\n|---|---|---|---|"]
    for like, suspects in symptoms():
        for one in suspects:
            by = ", ".join(f"`{name}` ({tools[name].cost})" for name in found.seen[one.key][:3])
            more = len(found.seen[one.key]) - 3
            parts.append(
                f"| {_upper(like)} | {said[one.cause]} | {drawer_of[one.cause]} | {by}"
                f"{f', {more} more' if more > 0 else ''} |"
            )
    parts.append("")
    for like, suspects in symptoms():
        parts.append(f"## {_upper(like)}\n\n*{clinic.searched()[like]}*\n")
        for one in suspects:
            files = " and ".join(f"`{file}`" for file in clinic.faulty(one))
            by = ", ".join(f"`{name}` ({tools[name].cost})" for name in found.seen[one.key])
            parts.append(
                f"**{_upper(said[one.cause])}** ({files}). Seen by "
                f"{by}.\n\n{one.solution}\n\n```text\n{one.test.strip()}\n```\n\n"
                f"{one.happened} ([link]({one.link}))\n"
            )
    parts.append(INSTRUMENTS.format(cases=count))
    sees = {name: sum(name in found.seen[one.key] for one in clinic.cases()) for name in tools}
    parts += [
        f"| {number} | `{name}` | {tool.cost} | {found.operations[name]:,} | "
        f"{found.share[name]:.1%} | {sees[name]} | {tool.asks} |"
        for number, (name, tool) in enumerate(tools.items(), start=1)
    ]
    alone = sum(len(found.seen[one.key]) == 1 for one in clinic.cases())
    parts.append("\n" + MATRIX.format(alone=alone, cases=count))
    parts.append("| case | " + " | ".join(map(str, range(1, len(tools) + 1))) + " |")
    parts.append("|---|" + ":-:|" * len(tools))
    for one in clinic.cases():
        marks = " | ".join("●" if name in found.seen[one.key] else " " for name in tools)
        parts.append(f"| {one.number} {one.title} | {marks} |")
    parts.append(
        "\n`python -m benchmarks.record_clinic --table data/records/clinic.csv` measures it. Tests "
        "ask on each machine that no instrument sees a fault in a healthy copy, that those which a "
        "case names see it, and, for some cases, that a whole row is as recorded. In the smallest "
        "tests, `p` is the copy; `model`, `tokens`, `trainee` and other helpers are those of "
        "`smol_scratch/clinic/instruments.py`."
    )
    return "\n".join(parts) + "\n"
