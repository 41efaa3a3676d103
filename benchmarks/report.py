"""Print what was measured: ``python -m benchmarks.report``.

Largest differences to ``transformers`` and the noise floors (``checks.py`` says what that is), on
random weights over all configurations of ``test_oracle.py`` and on the real weights. ``--write``
keeps it in ``data/records/equality.csv``, which ``docs/proofs.md`` is written from.
"""

from __future__ import annotations

import csv
import io
import sys

import smol_scratch.model as model
from benchmarks.bench_training import machine
from smol_scratch import assets, load_pretrained, load_text, load_tokenizer
from tests import checks
from tests.checks import Measured
from tests.planted_bugs import gentlest, verdicts
from tests.test_oracle import MODULES, ROWS, SEQUENCES, config_of, measure_real_logits, real_ids

PROPERTIES = [
    checks.relative_shift,
    checks.cached_equals_uncached,
    checks.batch_independence,
    checks.explicit_equals_fast,
]
SEEDS = range(100)
RECORD = assets.ROOT / "data" / "records" / "equality.csv"
shown: list[list[object]] = []


def show(what: str, measured: list[Measured]) -> None:
    difference = max(one.difference for one in measured)
    floor = max(one.floor for one in measured)
    ratio = max(one.ratio for one in measured)
    print(f"{what:28} {difference:10.1e} {floor:10.1e} {ratio:8.2f}")
    shown.append([what, len(measured), *(f"{x:.1e}" for x in (difference, floor, ratio))])


def record() -> None:
    """Keep what was shown."""
    table = io.StringIO()
    table.write(f"# {machine()}; python -m benchmarks.report --write\n")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["check", "cases", "difference", "floor", "ratio"])
    writer.writerows(shown)
    assets.write_atomically(RECORD, table.getvalue().encode())
    print(f"written: {RECORD.relative_to(assets.ROOT)}")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit("usage: python -m benchmarks.report [--write]")
    print("ratio: the largest of difference / floor, one by one\n")
    print(f"{'':28} {'difference':>10} {'floor':>10} {'ratio':>8}")
    print(f"Against transformers: {len(ROWS)} configurations, random weights")
    print("(RoPE in units of rounding, gradients relative to the largest of their matrix)")
    for check in MODULES:
        show(check.__name__, [check(model, config_of(row)) for row in ROWS])
    for check in SEQUENCES:
        found = [check(model, config_of(row), length=row[-1]) for row in ROWS]
        show(check.__name__, found)
    print(f"Against itself: {len(SEEDS)} seeds")
    for check in PROPERTIES:
        show(check.__name__, [check(model, seed=seed) for seed in SEEDS])
    print("Against transformers: real weights, real text")
    weights = load_pretrained()
    ids = real_ids(load_text(), load_tokenizer())
    show(f"logits of {ids.numel()} tokens", [measure_real_logits(weights, ids)])
    times, bug, check_name = gentlest(verdicts())
    print(f"\nGentlest planted bug: {bug}, which {check_name} sees at {times:,.0f} times the floor")
    if sys.argv[1:]:
        record()
