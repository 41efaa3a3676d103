"""Time one token of each of 1 to 64 sequences, side by side, and write down the seconds.

``python -m benchmarks.record_side_by_side`` writes ``data/records/side_by_side.csv``: a minute.
Each row is the mean over nine sittings of the best of three, with its standard error, in processor
time on one thread. The sittings take turns, so that a slow minute meets all of them.
"""

from __future__ import annotations

import csv
import io
import statistics

import torch

from smol_scratch import SmolLM2, SmolLM2Config, assets
from smol_scratch.course.measure import flops as measure

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
SITTINGS = 9


def main() -> None:
    table = io.StringIO()
    name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    table.write(f"# python -m benchmarks.record_side_by_side; torch {torch.__version__}; {name}\n")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["dtype", "sequences", "seconds", "standard_error"])
    for dtype in (torch.float32, torch.bfloat16):
        model = SmolLM2(SmolLM2Config.preset("135M")).to(dtype)
        times: dict[int, list[float]] = {n: [] for n in SEQUENCES}
        for _ in range(SITTINGS):
            for n in SEQUENCES:
                times[n].append(measure.next_tokens(model, n, rounds=3))
        for n, seconds in times.items():
            mean, spread = statistics.mean(seconds), statistics.stdev(seconds)
            kind = str(dtype).removeprefix("torch.")
            rows.writerow([kind, n, f"{mean:.4f}", f"{spread / SITTINGS**0.5:.4f}"])
            print(kind, n, f"{mean:.4f}", flush=True)
    path = assets.ROOT / "data" / "records" / "side_by_side.csv"
    assets.write_atomically(path, table.getvalue().encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
