"""What was measured on graphics cards, as far as somebody has had one: ``data/records/gpu_*``.

``python -m benchmarks.gpu`` measures, ``python -m benchmarks.gpu.records`` writes.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from smol_scratch import assets
from smol_scratch.course.notebook import read_record


class CardRecord(NamedTuple):
    """The record of one card.

    Attributes:
        name: as CUDA calls it.
        checked: what each stage found, by stage; see ``benchmarks/gpu``.
        speed: a row for each variant of a training step and of a token.
        run: a row for each step of the full run, as in ``full_run.csv``.
    """

    name: str
    checked: dict[str, dict[str, Any]]
    speed: list[dict[str, Any]]
    run: list[dict[str, Any]]


def card_records() -> list[CardRecord]:
    """Return the records of all cards in the order of their names; none where there are none."""
    found = []
    for path in sorted(assets.records().glob("gpu_*.json")):
        content = json.loads(path.read_text("utf-8"))
        tables = [
            read_record(file.name) if file.is_file() else []
            for file in (path.with_name(f"{path.stem}_{part}.csv") for part in ("speed", "run"))
        ]
        found.append(CardRecord(content["card"], content["stages"], *tables))
    return found
