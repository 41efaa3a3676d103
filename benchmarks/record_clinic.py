"""Measure the clinic: what each case looks like, and which instrument sees it, at what cost.

``python -m benchmarks.record_clinic`` writes ``smol_scratch/clinic/symptoms.json`` and
``data/records/clinic.csv`` in some minutes, and ``docs/clinic.md`` from them; ``--page`` writes the
page alone.
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

from smol_scratch import assets, clinic
from smol_scratch.clinic.instruments import INSTRUMENTS
from smol_scratch.clinic.page import PAGE, page
from smol_scratch.clinic.patient import Patient, admit
from smol_scratch.clinic.symptoms import symptom

RECORD = assets.ROOT / "data" / "records" / "clinic.csv"


def measure() -> None:
    """Run every instrument on every case, and on a healthy copy."""
    lines, seconds = {}, {name: [] for name in INSTRUMENTS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        healthy = Patient(admit(Path(folder) / "healthy"))
        for name, one in INSTRUMENTS.items():
            reading = one(healthy)
            if not reading.fine:
                sys.exit(f"{name} finds a fault in a healthy copy: {reading.lines}")
        for case in clinic.cases():
            ill = Patient(admit(Path(folder) / case.key, case.faults))
            lines[case.key] = symptom(case, ill)
            sees = {}
            for name, one in INSTRUMENTS.items():
                start = time.perf_counter()
                sees[name] = int(not one(ill).fine)
                seconds[name].append(time.perf_counter() - start)
            rows.append([case.key, *sees.values()])
            found = [name for name, seen in sees.items() if seen]
            print(f"{case.number:>2} {case.key:<22} {', '.join(found)}", *lines[case.key], sep="\n   ", flush=True)
    text = json.dumps(lines, indent=1, ensure_ascii=False) + "\n"
    (clinic.HERE / "symptoms.json").write_text(text, "utf-8")
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        file.write("# which instrument sees which case: `python -m benchmarks.record_clinic`\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", *INSTRUMENTS])
        writer.writerow(["cost", *(one.cost for one in clinic.instruments().values())])
        medians = (f"{statistics.median(times):.2g}" for times in seconds.values())
        writer.writerow(["seconds", *medians])
        writer.writerows(rows)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--page"]):
        sys.exit("usage: python -m benchmarks.record_clinic [--page]")
    if not sys.argv[1:]:
        torch.set_num_threads(1)
        measure()
    PAGE.write_text(page(), "utf-8")
