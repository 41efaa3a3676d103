"""Records with a row for each kind of processor: what is true of one need not be of another."""

from __future__ import annotations

import csv
import datetime
import io
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.bench_training import machine
from smol_scratch import assets

# What tells one sitting from another, before its numbers.
WHERE = ("kind", "processor", "sitting", "date", "versions")


def kind() -> str:
    """Return what a processor multiplies with, as far as speed depends on it."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    if has.get("amx_bf16") or has.get("amx_tile"):
        return "AMX"
    if has.get("avx512_bf16"):
        return "AVX-512 with bfloat16"
    level = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "AVX-512", "DEFAULT": platform.machine()}.get(level, level)


def command(program: str) -> str:
    """Return the command that was given, for anybody to type.

    A flag whose value is a place on this machine goes: it says nothing of what was measured.

    Args:
        program: what comes before the flags.
    """
    kept: list[str] = []
    for word in sys.argv[1:]:
        if Path(word.partition("=")[2] or word).is_absolute():
            if not word.startswith("--"):
                kept.pop()  # the flag that it belongs to
        else:
            kept.append(word)
    return shlex.join([*program.split(), *kept])


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a record; none where there is no such file."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def keep(
    path: Path, rows: Sequence[Mapping[str, object]], command: str, more: str = "", *, one: bool
) -> None:
    """Add a sitting on this machine to a record.

    Rows of the same kind of processor that other versions gave go, since one table must not mix
    them; rows of other kinds stay.

    Args:
        path: of the CSV file.
        rows: names to numbers, all with the same names.
        command: that makes such rows.
        more: of versions, such as llama.cpp's.
        one: keep the last sitting alone, for what does not waver.
    """
    processor, _, versions = machine().partition("; ")
    versions = "; ".join(filter(None, (versions, more))).replace(",", ";")
    here = kind()
    old = [
        row
        for row in read(path)
        if row["kind"] != here or (row["versions"] == versions and not one)
    ]
    sitting = 1 + max((int(row["sitting"]) for row in old if row["kind"] == here), default=0)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    where = dict(zip(WHERE, (here, processor, sitting, today, versions), strict=True))
    table = io.StringIO()
    before = path.read_text("utf-8").splitlines() if old else []
    commands = [line for line in before if line.startswith("#")]
    table.write("\n".join(dict.fromkeys([*commands, f"# {command}"])) + "\n")
    writer = csv.DictWriter(table, [*WHERE, *rows[0]], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([*old, *({**where, **row} for row in rows)])
    assets.write_atomically(path, table.getvalue().encode())
    print(f"written: {path}, sitting {sitting} on {here}")
