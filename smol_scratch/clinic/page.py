"""The book's page from symptoms to suspects, written out of the cases and the measured table."""

from __future__ import annotations

import csv

from smol_scratch import assets, clinic

PAGE = assets.ROOT / "docs" / "clinic.md"

# How people search for a symptom, beside the words of the cases.
SEARCHED = {
    "the loss stays where it began, near ln V": "loss stuck at 10.8 = ln 49,152; loss not decreasing; gradient norm 0",
    "an error about shapes": "size mismatch in the key-value cache; does not fit; RuntimeError",
    "the first loss is far above ln V": "initial loss too high; loss starts at 300",
    "the loss is too good to be true": "loss goes to 0; loss below the entropy; learns random numbers; data leak, future leak",
    "scores of a text change when more text follows": "causality broken; future leak; non-causal; logits change with sequence length",
    "generated text ignores the prompt": "same answer to every prompt; first token always the same",
    "two runs with one seed differ": "not reproducible; seed has no effect; nondeterminism",
    "loaded weights talk nonsense, training from scratch works": "gibberish after loading a checkpoint; repeats the prompt; wrong RoPE",
    "loaded weights work, and a little worse than elsewhere": "perplexity higher than published; incoherent on long prompts",
    "scores depend on the absolute position": "same text, other logits further on",
    "tests on a fresh model pass, loaded weights talk nonsense": "equal to the reference with initial weights only",
    "gradient accumulation changes the run": "gradient_accumulation_steps; loss or gradient norm multiplied; small batches differ from a large one",
    "mixed precision behaves differently": "fp16, GradScaler, huge gradient norm, learns very slowly",
    "the held-out loss is noisy, or differs each time": "validation loss jumps; model.eval() missing",
    "a look at the held-out text changes the training": "model.train() missing after validation; dropout off",
    "generation at temperature 0 is not repeatable": "greedy decoding differs each time; dropout at inference",
    "the loss spikes after the warm-up": "learning rate above its maximum; jump at the end of the warm-up",
    "weight decay has another effect than elsewhere": "Adam or AdamW; weights do not shrink",
    "the loss changes after going on from a checkpoint": "loss jumps or drops after resume; restart from checkpoint",
    "the loss falls and stops too early": "plateau; learns, but worse; labels shifted twice",
    "NaN, inf or zeros in 16 bits": "NaN after N steps in fp16; overflow; works in float32",
    "equal weights give other scores": "different logits after save and load; .half().float()",
    "generation degenerates though the loss is fine": "repeats itself, gibberish after some tokens; KV cache wrong",
    "answers depend on what was taken back": "cache rollback, speculative decoding, edited chat",
    "sampled text is dull, repeats, or stops with an error": "top_p; probability tensor contains inf, nan",
    "tokens differ from another program's": "tokenizer mismatch; numbers tokenised otherwise",
    "chat answers are odd, plain text is fine": "chat template; generation prompt; never stops",
    "an exported file works here and not elsewhere": "GGUF, llama.cpp gibberish, permuted rows; round trip passes",
    "the held-out loss is too good to be true": "validation set leaks; held-out loss as low as training loss",
    "more devices do not help": "DDP, every rank the same batch",
    "generation slows down with length": "tokens per second drop; no KV cache; quadratic",
}  # fmt: skip

HEAD = """\
# Something is wrong: from a symptom to its suspects

Made by `python -m benchmarks.record_clinic`. Search this page for what you see. Under each symptom \
stand the faults that showed it when we planted them, one at a time, in a copy of this package; then \
the instruments that saw the fault, the cheapest first, and the smallest test that catches it. Other \
faults can have the same symptom: these are suspects, not verdicts.

To find such faults yourself before you read about them: notebook 16, or \
`python -m smol_scratch clinic`. **This page gives the cases away.**

How to search: first ask whether it is the data, the model, the optimisation or the evaluation; use \
the question that leaves half of the suspects; and trust no check that you have not seen fail.
"""


def table() -> tuple[dict[str, dict[str, bool]], dict[str, float]]:
    """Return the measured table, case to instrument to whether it saw it, and median seconds."""
    lines = (assets.records() / "clinic.csv").read_text("utf-8").splitlines()
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    names = rows[0][1:]
    seconds = dict(zip(names, map(float, rows[2][1:]), strict=True))
    return {
        row[0]: {name: cell == "1" for name, cell in zip(names, row[1:], strict=True)}
        for row in rows[3:]
    }, seconds


def seen_by(key: str) -> list[str]:
    """Return the instruments that saw a case, the cheapest first."""
    tools = clinic.instruments()
    found = [name for name, saw in table()[0][key].items() if saw]
    return sorted(found, key=lambda name: tools[name].cost)


def page() -> str:
    """Return the page, in Markdown."""
    tools, sees = clinic.instruments(), table()[0]
    said = clinic.causes()
    parts = [HEAD]
    for like in dict.fromkeys(one.like for one in clinic.cases()):
        parts.append(f"## {like[0].upper()}{like[1:]}\n\n*{SEARCHED[like]}*\n")
        for one in clinic.cases():
            if one.like == like:
                files = " and ".join(f"`{file}`" for file in clinic.faulty(one))
                by = ", ".join(f"`{name}` ({tools[name].cost})" for name in seen_by(one.key))
                parts.append(
                    f"**{said[one.cause][0].upper()}{said[one.cause][1:]}** ({files}). Seen by "
                    f"{by}.\n\n{one.solution}\n\n```python\n{one.test.strip()}\n```\n\n"
                    f"{one.happened} ([link]({one.link}))\n"
                )
    parts.append(
        "## The instruments\n\nCost 1: some calls of the model or of a function. 2: something is "
        "trained, or saved and loaded. 3: numbers of somebody else's are needed. None sees "
        f"a fault in a healthy copy; of the {len(sees)} cases each sees so many:\n\n"
        "| instrument | cost | sees | its question |\n|---|:-:|:-:|---|"
    )
    parts += [
        f"| `{name}` | {tool.cost} | {sum(row[name] for row in sees.values())} | {tool.asks} |"
        for name, tool in tools.items()
    ]
    parts.append(
        "\nThe whole table, case by case, is `data/records/clinic.csv`. In the tests, `p` is the "
        "copy, and helpers such as `model`, `tokens` and `trainee` are those of "
        "`smol_scratch/clinic/instruments.py`."
    )
    return "\n".join(parts) + "\n"
