"""Record the clinic: what each case looks like, and which instrument sees it, at what cost.

``python -m benchmarks.record_clinic`` writes the symptoms to ``smol_scratch/clinic/symptoms.json``,
and ``docs/clinic.md`` from the cases and ``data/records/clinic.csv``; ``--page`` writes the page
alone. ``--table data/records/clinic.csv`` uses every instrument on every case: some minutes of one
core, which may be stopped, and goes on where it was when the command is given again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smol_scratch import assets, clinic
from smol_scratch.clinic.instruments import INSTRUMENTS
from smol_scratch.clinic.page import PAGE, page
from smol_scratch.clinic.patient import Patient, admit, sources
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


class Counted(TorchDispatchMode):
    """Counts the tensor operations inside it: the same number on every machine with one torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def fingerprint(texts: dict[str, str]) -> str:
    """Return what changes when a copy, or an instrument, does."""
    tools = (clinic.HERE / "instruments.py").read_text("utf-8")
    return hashlib.sha256(json.dumps([texts, tools], sort_keys=True).encode()).hexdigest()[:16]


def loads() -> dict[str, set[str]]:
    """Return which files of a copy each instrument loads: it cannot see a fault in another."""
    with tempfile.TemporaryDirectory() as folder:
        place = admit(Path(folder) / "copy")
        found = {}
        for tool, use in INSTRUMENTS.items():
            copy = Patient(place)
            use(copy)
            found[tool] = {f"{name.rpartition('.')[2]}.py" for name in copy._modules}
    return found


def examined(one: clinic.Case | None, loaded: dict[str, set[str]]) -> dict[str, Any]:
    """Use the instruments on a case, or on a healthy copy: who sees a fault, and the seconds.

    One that loads no file of the fault reads what it reads of a healthy copy, and is left out.
    """
    seen: list[int] = []
    seconds: list[float | None] = []
    operations = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Patient(admit(Path(folder) / "copy", one.faults if one else ()))
        for tool, use in INSTRUMENTS.items():
            if one and not loaded[tool] & {file for file, _, _ in one.faults}:
                seen.append(0)
                seconds.append(None)
                continue
            start = time.perf_counter()
            seen.append(int(not use(copy).fine))
            seconds.append(time.perf_counter() - start)
            if one is None:  # counted apart, since counting takes time
                with Counted() as counted:
                    use(copy)
                operations.append(counted.count)
    return {"seen": seen, "seconds": seconds, "operations": operations}


def record_table(file: Path) -> None:
    """Use every instrument on a healthy copy and on every case.

    What was done lies beside the file until all is: a run that was stopped goes on from there.
    """
    parts = file.with_suffix(".parts.jsonl")
    lines = parts.read_text("utf-8").splitlines() if parts.exists() else []
    done = {row["key"]: row for row in map(json.loads, lines)}
    rows, loaded = {}, {}
    for one in (None, *clinic.cases()):
        name = one.key if one else "healthy"
        key = fingerprint(sources() | (clinic.faulty(one) if one else {}))
        if key not in done:
            loaded = loaded or loads()
            done[key] = {"key": key, "case": name, **examined(one, loaded)}
            with parts.open("a", encoding="utf-8") as target:
                target.write(json.dumps(done[key]) + "\n")
        rows[name] = done[key]
        print(f"{name:<22}", *rows[name]["seen"], flush=True)
    tools, table = clinic.tools(), io.StringIO()
    whole = [row["seconds"] for row in rows.values() if None not in row["seconds"]]
    shares = [[one / sum(seconds) for one in seconds] for seconds in whole]
    share = [statistics.median(column) for column in zip(*shares, strict=True)]
    table.write(
        f"# python -m benchmarks.record_clinic --table data/records/{file.name}; torch "
        f"{torch.__version__}; 1: the instrument sees a fault; cost: in the game; operations: of "
        "tensors, on a healthy copy; share: of the time of all instruments, the median over "
        "the copies on which all were used\n"
    )
    out = csv.writer(table, lineterminator="\n")
    out.writerow(["case", *tools])
    out.writerow(["cost", *(tool.cost for tool in tools.values())])
    out.writerow(["operations", *rows["healthy"]["operations"]])
    out.writerow(["share", *(f"{part:.1g}" for part in share)])
    for name, row in rows.items():
        out.writerow([name, *row["seen"]])
    assets.write_atomically(file, table.getvalue().encode())
    parts.unlink()


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
