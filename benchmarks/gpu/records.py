"""Turn a GPU run's files into records: ``python -m benchmarks.gpu.records build/gpu``.

Three files for each card, with its name in theirs: ``gpu_NAME.json`` (what was checked),
``gpu_NAME_speed.csv`` (a row for each variant of a step and of a token) and ``gpu_NAME_run.csv``
(a row for each step, in the form of ``full_run.csv``). ``smol_scratch.course.cards`` reads them.
A run without a card is no record; ``--to`` writes its files elsewhere, to look at their form.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import PLANS, stage_file
from smol_scratch import assets

SPEED = ("what", "variant", "dtype", "tokens_per_s", "of_limit", "times_transformers",
         "first_s")  # fmt: skip


def slug(name: str) -> str:
    """Return a card's name as it stands in a file's: lower case, underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "no_card"


def read_stages(output: Path) -> dict[str, dict[str, Any]]:
    """Return the files of a run by stage.

    Raises:
        ValueError: when there are none, or they are not of one card and one preset.
    """
    found = {}
    for plan in PLANS:
        path = stage_file(output, plan.name)
        if path.is_file():
            found[plan.name] = json.loads(path.read_text("utf-8"))
    if not found:
        raise ValueError(f"{output}: no files of a GPU run; python -m benchmarks.gpu makes them")
    for field in ("device", "card", "preset", "torch"):
        values = {content[field] for content in found.values() if content.get(field) is not None}
        if len(values) > 1:
            said = ", ".join(sorted(map(repr, values)))
            raise ValueError(f"{output}: files of several runs, {field} is {said}; run all anew")
    return found


def speed_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each variant that was measured, the limits included."""
    limit = result.get("step, limit", {})
    rows = []
    for key, found in result.items():
        what, _, rest = key.partition(", ")
        if what not in ("step", "token") or not isinstance(found, dict):
            continue
        dtype, variant = limit.get("dtype", ""), rest
        if what == "token":
            dtype, _, variant = rest.partition(", ")
        speed = found.get("tokens_per_s")
        if speed is None:  # it compiled, and there was no time to measure it
            continue
        first = found.get("first_step_s", found.get("cold_s"))
        rows.append({"what": what, "variant": variant, "dtype": dtype, "tokens_per_s": speed,
                     "of_limit": found.get("of_limit"), "first_s": first,
                     "times_transformers": found.get("times_transformers")})  # fmt: skip
    return rows


def table(head: str, columns: tuple[str, ...], rows: list[list[Any]]) -> bytes:
    """Return a CSV file with a line that says where it was made."""
    text = io.StringIO()
    text.write(f"# {head}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if value is None else f"{value:.6g}" if isinstance(value, float)
                         else value for value in row])  # fmt: skip
    return text.getvalue().encode()


def written(output: Path, folder: Path) -> list[Path]:
    """Write the records of a run into a folder, and return their paths."""
    stages = read_stages(output)
    some = next(content for content in stages.values() if "card" in content)
    name = some["card"] or some["device"]
    head = f"{name}, torch {some['torch']}, {some['preset']}; python -m benchmarks.gpu"
    stem = f"gpu_{slug(name)}"
    files: dict[str, bytes] = {}
    checked = {
        "command": "python -m benchmarks.gpu",
        "card": name,
        "torch": some["torch"],
        "preset": some["preset"],
        "stages": {},
    }
    for stage, content in stages.items():
        result = dict(content["result"])
        rows, columns = result.pop("rows", None), result.pop("columns", None)
        checked["stages"][stage] = content | {"result": result}
        if stage == "speed" and (found := speed_rows(result)):
            rows_of = [[row[column] for column in SPEED] for row in found]
            files[f"{stem}_speed.csv"] = table(head, SPEED, rows_of)
        if stage == "run" and rows:
            if result.get("made_up"):
                raise ValueError(f"{output}: the run was on made-up tokens, which is no record; "
                                 "carry the text along (--pack, --data)")  # fmt: skip
            end = [[result["steps"], None, result["final_held_out_loss"], *[None] * 4]] if (
                "final_held_out_loss" in result) else []  # fmt: skip
            files[f"{stem}_run.csv"] = table(head, tuple(columns), rows + end)
    files[f"{stem}.json"] = (json.dumps(checked, indent=1) + "\n").encode()
    for file, data in files.items():
        assets.write_atomically(folder / file, data)
    return [folder / file for file in files]


def main(arguments: list[str] | None = None) -> int:
    """Write the records; say in one line why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="the run's --output")
    parser.add_argument("--to", type=Path, help="another folder than data/records")
    options = parser.parse_args(arguments)
    try:
        stages = read_stages(options.output)
        if options.to is None and any(one.get("device") != "cuda" for one in stages.values()
                                      if "device" in one):  # fmt: skip
            raise ValueError(f"{options.output}: made without a card, which is no record; --to "
                             "FOLDER writes it elsewhere")  # fmt: skip
        for path in written(options.output, options.to or assets.ROOT / "data" / "records"):
            print(f"written: {path}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
