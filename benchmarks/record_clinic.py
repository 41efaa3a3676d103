"""Record the clinic: what each case looks like, and which instrument sees it, at what cost.

``python -m benchmarks.record_clinic`` writes the symptoms to ``smol_scratch/clinic/symptoms.json``,
and ``docs/clinic.md`` from the cases; ``--page`` writes the page alone. ``--table FILE`` uses every
instrument on every case, and writes a CSV: some minutes on a quiet machine.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from smol_scratch import clinic
from smol_scratch.clinic.instruments import INSTRUMENTS
from smol_scratch.clinic.page import PAGE, page
from smol_scratch.clinic.patient import Patient, admit
from smol_scratch.clinic.symptoms import symptom


def record_symptoms() -> None:
    """Run each faulty copy, and keep what is seen."""
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in clinic.cases():
            copy = Patient(admit(Path(folder) / case.key, case.faults))
            lines[case.key] = symptom(case, copy)
    text = json.dumps(lines, indent=1, ensure_ascii=False) + "\n"
    (clinic.HERE / "symptoms.json").write_text(text, "utf-8")


def record_table(file: Path) -> None:
    """Use every instrument on a healthy copy and on every case."""
    tools, rows = clinic.tools(), []
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory() as folder:
        for case in (None, *clinic.cases()):
            name = case.key if case else "healthy"
            copy = Patient(admit(Path(folder) / name, case.faults if case else ()))
            row: list[object] = [name]
            for tool, use in INSTRUMENTS.items():
                start = time.perf_counter()
                row.append(int(not use(copy).fine))
                seconds[tool].append(time.perf_counter() - start)
            rows.append(row)
            print(*row, flush=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["case", *tools])
        writer.writerow(["cost", *(tool.cost for tool in tools.values())])
        writer.writerow(["seconds", *(f"{statistics.median(seconds[n]):.1g}" for n in tools)])
        writer.writerows(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case []:
            record_symptoms()
        case ["--page"]:
            pass
        case ["--table", name]:
            record_table(Path(name))
        case _:
            sys.exit("usage: python -m benchmarks.record_clinic [--page | --table FILE]")
    PAGE.write_text(page(), "utf-8")
