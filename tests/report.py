"""Print what was measured: ``python -m tests.report``.

Largest differences to ``transformers`` and the noise floors (``checks.py`` says what that is), on
random weights over all configurations of ``test_oracle.py`` and on the real weights.
"""

from __future__ import annotations

import smol_scratch.model
from smol_scratch import load_pretrained, load_text, load_tokenizer
from tests.checks import Measured
from tests.planted_bugs import gentlest
from tests.test_oracle import MODULES, ROWS, SEQUENCES, config_of, measure_real_logits, real_ids


def line(what: str, measured: list[Measured]) -> str:
    difference = max(one.difference for one in measured)
    floor = max(one.floor for one in measured)
    ratio = max(one.difference / one.floor for one in measured)
    return f"{what:28} {difference:10.1e} {floor:10.1e} {ratio:8.2f}"


if __name__ == "__main__":
    print(f"{len(ROWS)} configurations, random weights (RoPE in units of rounding, gradients")
    print("relative to the largest of their matrix); ratio: the largest of difference / floor")
    print(f"{'':28} {'difference':>10} {'floor':>10} {'ratio':>8}")
    for check in MODULES:
        print(line(check.__name__, [check(smol_scratch.model, config_of(row)) for row in ROWS]))
    for check in SEQUENCES:
        found = [check(smol_scratch.model, config_of(row), length=row[-1]) for row in ROWS]
        print(line(check.__name__, found))
    model = load_pretrained()
    ids = real_ids(load_text(), load_tokenizer())
    print(line(f"logits, {ids.numel()} tokens of text", [measure_real_logits(model, ids)]))
    times, bug = gentlest()
    print(f"gentlest planted bug: {bug}, {times:,.0f} times the floor")
