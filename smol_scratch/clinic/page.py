"""The book's page from symptoms to suspects, written out of the cases and the measured table."""

from __future__ import annotations

from smol_scratch import assets, clinic

PAGE = assets.ROOT / "docs" / "clinic.md"

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


def seen_by(one: clinic.Case) -> list[str]:
    """Return the instruments that are known, and tested, to see a case, the cheapest first."""
    tools = clinic.tools()
    return sorted(one.shows, key=lambda name: tools[name].cost)


def page() -> str:
    """Return the page, in Markdown."""
    tools = clinic.tools()
    said = clinic.causes()
    parts = [HEAD]
    for like in dict.fromkeys(one.like for one in clinic.cases()):
        parts.append(f"## {like[0].upper()}{like[1:]}\n\n*{clinic.searched()[like]}*\n")
        for one in clinic.cases():
            if one.like == like:
                files = " and ".join(f"`{file}`" for file in clinic.faulty(one))
                by = ", ".join(f"`{name}` ({tools[name].cost})" for name in seen_by(one))
                parts.append(
                    f"**{said[one.cause][0].upper()}{said[one.cause][1:]}** ({files}). Seen by "
                    f"{by}.\n\n{one.solution}\n\n```text\n{one.test.strip()}\n```\n\n"
                    f"{one.happened} ([link]({one.link}))\n"
                )
    parts.append(
        "## The instruments\n\nCost 1: some calls of the model or of a function. 2: something is "
        "trained, or saved and loaded. 3: numbers of somebody else's are needed. A test asks that "
        "none sees a fault in a healthy copy, and that each named above sees its fault.\n\n"
        "| instrument | cost | its question |\n|---|:-:|---|"
    )
    parts += [f"| `{name}` | {tool.cost} | {tool.asks} |" for name, tool in tools.items()]
    parts.append(
        "\n`python -m benchmarks.record_clinic --table FILE` measures the whole table. In the "
        "tests, `p` is the copy; `model`, `tokens`, `trainee` and other helpers are those of "
        "`smol_scratch/clinic/instruments.py`."
    )
    return "\n".join(parts) + "\n"
