"""How fast the explorer is in chromium on one core, how much memory it takes, how exact it is.

``python -m benchmarks.bench_explorer`` prints both tables; ``--exact`` or ``--fast`` one of them.
Wants a quiet machine; the processor's own seconds stand beside the clock's for one that is not.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from smol_scratch import assets, load_pretrained, load_tokenizer
from smol_scratch.course import explorer
from tests.course import test_explorer as proof

PROMPT = "Name three animals that live in the sea, and say in a few words what each of them eats."
TOKENS = 20, 40  # of the prompt, and generated
TARGETS = {"load": 15, "first token": 5, "tokens per second": 5, "memory": 900}


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def renderers() -> list[Path]:
    """Return the folders in /proc of the browser's processes that run pages."""
    folders = [Path("/proc", str(pid)) for pid in descendants(os.getpid())]
    return [f for f in folders if b"--type=renderer" in (f / "cmdline").read_bytes()]


def processor_seconds() -> float:
    ticks = [sum(map(int, (f / "stat").read_text().rpartition(")")[2].split()[11:13]))
             for f in renderers()]  # fmt: skip
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def peak_megabytes() -> float:
    lines = [line for f in renderers() for line in (f / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def fast(browser, rounds: int) -> None:
    ids = load_tokenizer(assets.wheel_path(assets.GGUF)).encode(PROMPT)[: TOKENS[0]]
    assert len(ids) == TOKENS[0]
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        with proof.opened(browser, explorer.BUILT) as page:
            clock, processor = time.perf_counter(), processor_seconds()

            def lap(what: str) -> None:
                nonlocal clock, processor
                now, used = time.perf_counter(), processor_seconds()
                rows.setdefault(what, []).append(now - clock)
                rows.setdefault(f"{what}, processor", []).append(used - processor)
                clock, processor = now, used

            page.load()
            lap("load")
            page.ask("begin", ids=ids)
            page.ask("step")
            lap("first token")
            for _ in range(TOKENS[1]):
                page.ask("step")
            lap("tokens")
            page.ask("read", ids=ids)
            page.ask("next", position=len(ids) - 1)
            lap("whole view")
            page.ask("lens", position=len(ids) - 1)
            lap("lens")
            page.ask("read", ids=ids, off=["15.mlp"])
            page.ask("next", position=len(ids) - 1)
            lap("switch off block 15's MLP")
            rows.setdefault("memory", []).append(peak_megabytes())
    print(f"one core, median of {rounds} (smallest to largest); the clock, and the processor's own")
    for what, values in rows.items():
        if what.endswith(", processor"):
            continue
        used = rows.get(f"{what}, processor")
        name, unit = what, "s"
        if what == "tokens":
            name, unit = "tokens per second", ""
            values, used = ([TOKENS[1] / v for v in x] for x in (values, used))
        if what == "memory":
            unit = "MB"
        line = f"{name:26} {statistics.median(values):8.2f} {unit:2} ({min(values):.2f} to "
        line += f"{max(values):.2f})"
        if used:
            line += f"; processor {statistics.median(used):.2f}"
        if name in TARGETS:
            line += f"; target {'≥' if name == 'tokens per second' else '≤'} {TARGETS[name]}"
        print(line)


def exact(browser) -> None:
    path = assets.verified(assets.GGUF)
    model, tokenizer = load_pretrained(path, quiet=True).requires_grad_(False), load_tokenizer(path)
    models = model, copy.deepcopy(model).double()
    print("error against float64, page / Python's float32 (how: tests/course/test_explorer.py)")
    print("text                  tokens  stream          maps            logits          ratio")
    with proof.opened(browser, explorer.BUILT) as page:
        page.load()
        for text in proof.TEXTS:
            ids = tokenizer.encode(text)
            rounded, right = (proof.in_python(m, ids) for m in models)
            found = page.numbers(ids)
            floor, ours = proof.noise(rounded, right), proof.noise(found, right)
            cells, ratios = [], []
            for name in ("stream", "maps", "logits"):
                cells.append(f"{np.max(ours[name]):.1e}/{np.max(floor[name]):.1e}")
                least = 2.0**-24 * (1 if name == "stream" else np.abs(right[name]).mean())
                ratios.append(np.max(ours[name] / (floor[name] + least)))
            shown = repr(text)[1:20]
            print(f"{shown:20} {len(ids):7}  {'  '.join(f'{c:15}' for c in cells)} "
                  + " ".join(f"{r:.2f}" for r in ratios))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--exact", action="store_true", help="only how exact it is")
    parser.add_argument("--fast", action="store_true", help="only how fast it is")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring (%(default)s)")
    chosen = parser.parse_args()
    if proof.CHROMIUM is None:
        raise SystemExit("no chromium: apt-get install chromium")
    if shutil.which("uptime"):
        os.system("uptime")
    explorer.build()
    from playwright.sync_api import sync_playwright

    if not chosen.exact:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # what is started from here on inherits it
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=proof.CHROMIUM, args=["--no-sandbox"])
            fast(browser, chosen.rounds)
        os.sched_setaffinity(0, cores)
    if not chosen.fast:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=proof.CHROMIUM, args=["--no-sandbox"])
            exact(browser)


if __name__ == "__main__":
    main()
