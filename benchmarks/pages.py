"""Write the tables of ``docs/`` from what was recorded: ``python -m benchmarks.pages``.

Nothing is measured here. A table stands between ``<!-- written by python -m benchmarks.pages: NAME
-->`` and ``<!-- to here -->``; its numbers come from ``data/records/``, which the commands named in
the table and in the records have written, and from the package's own counts. A test compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from smol_scratch import SmolLM2Config, assets
from smol_scratch.accounting import kv_cache_bytes, palm_flops, parameters
from smol_scratch.course.notebook import read_record

DOCS = assets.ROOT / "docs"
RUNS = {"135M from scratch": "full_run", "13M from scratch": "tenth_run",
        "135M, fine-tuned": "finetuned_run"}  # fmt: skip


def table(*rows: list[str], right: int = 0) -> str:
    """Return a table of Markdown; the last columns are set to the right."""
    width = len(rows[0])
    rule = ["---"] * (width - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def long_runs() -> str:
    """Return what the records of the long runs say."""
    rows = [["run", "steps", "training", "held out, lowest", "held out, at the end"]]
    for name, record in RUNS.items():
        steps = read_record(f"{record}.csv")
        losses = [row["loss"] for row in steps if row["loss"] is not None]
        held_out = [(row["held_out_loss"], row["step"]) for row in steps
                    if row["held_out_loss"] is not None]  # fmt: skip
        ends = [f"{loss:.2f} (step {step:,})" for loss, step in (min(held_out), held_out[-1])]
        rows.append([name, f"{len(losses):,}", f"{mean(losses[-100:]):.2f}", *ends])
    return table(*rows, right=4)


def parts() -> str:
    """Return where the parameters are."""
    count = parameters(SmolLM2Config())
    total = sum(count.values())
    rows = [[name, f"{n:,}", f"{n / total:.2%}"] for name, n in count.items()]
    return table(["part", "parameters", "share"], *rows, ["all", f"{total:,}", ""], right=2)


def costs() -> str:
    """Return what a sequence and a token cost."""
    config = SmolLM2Config()
    flops = sum(palm_flops(config, 256).values())
    cache = kv_cache_bytes(config, 1, torch.bfloat16)
    return (
        f"A sequence of 256 tokens costs {flops:,} FLOPs to train on by PaLM's formula; a token in "
        f"the\nkey-value cache takes {cache:,} bytes in bfloat16."
    )


def equality() -> str:
    """Return how near to ``transformers`` everything is, and which bugs are caught."""
    found = {row["check"]: row for row in read_record("equality.csv")}
    logits, gradients = found["oracle_logits"], found["oracle_gradients"]
    [real] = [row for name, row in found.items() if name.startswith("logits of")]
    bugs = (assets.ROOT / "data" / "planted_bugs.md").read_text("utf-8").splitlines()
    rows = [line for line in bugs if line.startswith("|")]
    planted, checks = len(rows) - 2, rows[0].count("|") - 2
    caught = sum("■" in row for row in rows[2:])
    return table(
        ["claim", "measured", "command"],
        [f"equal to `transformers` on random weights, norm weights included: {logits['cases']} "
         "configurations, every module, logits, all gradients",
         f"logits within {logits['difference']:.1e}, gradients within "
         f"{gradients['difference']:.1e} of their size; two orders of summation inside "
         "`transformers` itself differ by up to "
         f"{logits['floor']:.1e} and {gradients['floor']:.1e} "
         "([record](../data/records/equality.csv))", "`make report`"],
        ["equal on the real weights and real text",
         f"logits within {real['difference']:.1e} (the noise floor there: {real['floor']:.1e}); "
         "100 greedy tokens identical", "`make report`, `make test`"],
        ["planted bugs are caught",
         f"{planted} bugs against {checks} checks, {caught} of them caught by the check that is "
         "there for it: [the table](../data/planted_bugs.md)", "`make bugs`"],
    )  # fmt: skip


def speed() -> str:
    """Return how fast a training step is, against ``transformers`` and against the products."""
    row = {row["variant"]: row for row in read_record("training_speed.csv")}
    ours, compiled = row["ours"], row["ours, blocks compiled"]
    theirs, tuned = row["transformers"], row["transformers, memory kept, fused AdamW"]
    limit = row["matrix products alone"]["s_per_step"]
    return table(
        ["claim", "measured", "command"],
        ["a training step is faster than `transformers`' (4 × 256, AdamW, bf16 autocast; theirs "
         "not compiled)",
         f"{theirs['s_per_step'] / ours['s_per_step']:.2f} × its speed, with compiled blocks "
         f"{theirs['s_per_step'] / compiled['s_per_step']:.2f} ×; "
         f"{tuned['s_per_step'] / ours['s_per_step']:.2f} × when it is given the same allocator "
         f"setting and fused optimizer; {limit / ours['s_per_step']:.0%} and "
         f"{limit / compiled['s_per_step']:.0%} of what the matrix products alone would allow; "
         f"peak memory {ours['peak_gb']:.1f} and {compiled['peak_gb']:.1f} GB against "
         f"{theirs['peak_gb']:.1f} ([record](../data/records/training_speed.csv))",
         "`python -m benchmarks.bench_training --write`"],
    )  # fmt: skip


def ranged(values: list[float], form: str = ".2f") -> str:
    """Return the least and the most of several sittings, once where they print the same."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def sittings(record: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the rows of a record by kind of processor and variant, a row for each sitting."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in read_record(record):
        found.setdefault(row["kind"], {}).setdefault(row["variant"], []).append(row)
    return found


def steps() -> str:
    """Return how long a training step takes, a table for each kind of processor."""
    parts = []
    for kind, variants in sittings("training_sittings.csv").items():
        rows = [["", "seconds", "× `transformers` given the same", "of the products alone",
                 "of products and memory", "peak memory, GB"]]  # fmt: skip
        for name, sat in variants.items():
            line = [name]
            for column, form in (("s_per_step", ".2f"), ("times_given_the_same", ".2f"),
                                 ("of_products", ".0%"), ("of_both", ".0%"),
                                 ("peak_gb", ".1f")):  # fmt: skip
                alone = "products" in name or "bytes" in name
                values = [row[column] for row in sat]
                line.append("" if alone and column != "s_per_step" else ranged(values, form))
            rows.append(line)
        any_row = next(iter(variants.values()))
        where, dates = any_row[0], sorted({row["date"] for row in any_row})
        parts.append(
            f"**{kind}** ({where['processor']}; {where['versions']}; "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; sittings: {len(any_row)}):\n\n"
            + table(*rows, right=5)
        )
    return "\n\n".join(parts)


def generation() -> str:
    """Return how fast text is written, a table for each kind of processor."""
    parts = []
    for kind, variants in sittings("generation_speed.csv").items():
        rows = [["", "tokens per second", "× `transformers`", "× llama.cpp",
                 "the same, of processor time", "first token, ms",
                 "peak memory, MB"]]  # fmt: skip
        for name, sat in variants.items():
            line = [name]
            for column, form in (("tokens_per_s", ".0f"), ("times_transformers", ".2f"),
                                 ("times_llama", ".2f"), ("cpu_times_llama", ".2f"),
                                 ("first_ms", ".0f"),
                                 ("peak_mb", ".0f")):  # fmt: skip
                values = [row[column] for row in sat if row[column] is not None]
                line.append(ranged(values, form) if values else "")
            rows.append(line)
        where = next(iter(variants.values()))[0]
        every = [row for sat in variants.values() for row in sat]
        dates, count = sorted({row["date"] for row in every}), max(row["sitting"] for row in every)
        parts.append(
            f"**{kind}** ({where['processor']}; {where['versions']}; "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; sittings: {count}):\n\n"
            + table(*rows, right=6)
        )
    return "\n\n".join(parts)


def in_few_bits() -> str:
    """Return the README's sentence on speed: ranges over kinds of processor and sittings."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in read_record("generation_speed.csv"):
        by_variant.setdefault(row["variant"], []).append(row)

    def of(column: str, form: str) -> str:
        return ranged([row[column] for row in by_variant[f"ours, compiled {form}"]])

    kinds = len(sittings("generation_speed.csv"))
    return (
        f"compiled, 8 bits made {of('times_bfloat16', 'int8')} × as many tokens per second as "
        f"bfloat16 and {of('times_llama', 'int8')} × as many as llama.cpp, the 4 bits of the file "
        f"{of('times_bfloat16', 'Q4_1')} × and {of('times_llama', 'Q4_1')} × "
        f"(kinds of processor measured: {kinds})"
    )


def few_bits() -> str:
    """Return what weights in few bits cost in quality."""
    parts = []
    for kind, variants in sittings("quantized_quality.csv").items():
        rows = [["", "MB", "perplexity", "added loss", "largest change of a logit",
                 "the same token, of 200"]]  # fmt: skip
        for name, (row,) in variants.items():
            perplexity = f"{row['perplexity']:.2f} ± {row['perplexity_error']:.2f}"
            added = f"{row['added_loss'] + 0.0:+.4f} ± {row['added_error']:.4f}"
            same = f"{row['agrees']:.1f} ± {row['agrees_error']:.1f}"
            rows.append([name, f"{row['mb']:.0f}", perplexity, added, f"{row['logit']:.2f}", same])
        where = next(iter(variants.values()))[0]
        parts.append(
            f"**{kind}** ({where['versions']}; {where['date']}):\n\n" + table(*rows, right=5)
        )
    return "\n\n".join(parts)


BLOCKS = {"long runs": long_runs, "parts": parts, "costs": costs, "equality": equality,
          "speed": speed, "steps": steps, "generation": generation,
          "few bits": few_bits}  # fmt: skip
MARK = re.compile(
    r"(<!-- written by `python -m benchmarks\.pages`: (.*?) -->\n).*?(\n<!-- to here -->)", re.S
)


def written(text: str) -> str:
    """Return a page with its tables as the records have them now."""
    return MARK.sub(lambda found: found[1] + "\n" + BLOCKS[found[2]]() + "\n" + found[3], text)


def pages() -> list[Path]:
    """Return the pages that have such tables."""
    return [page for page in sorted(DOCS.glob("*.md")) if MARK.search(page.read_text("utf-8"))]


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python -m benchmarks.pages")
    for page in pages():
        old = page.read_text("utf-8")
        new = written(old)
        page.write_text(new, "utf-8")
        print(f"{page.relative_to(assets.ROOT)}: {'written' if new != old else 'no change'}")
