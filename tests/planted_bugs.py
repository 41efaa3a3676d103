"""Bugs to plant in ``model.py``, most of which real repositories have shipped, and who sees them.

``python -m tests.planted_bugs`` prints the table bug × check; ``--write`` also puts it into
``data/planted_bugs.md``. A test holds the two equal and asks each bug's named check to catch it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

import smol_scratch.model
from tests.checks import CHECKS, TooFarError

SOURCE = Path(smol_scratch.model.__file__).read_text("utf-8")
TABLE = Path(__file__).parent.parent / "data" / "planted_bugs.md"

CAUGHT_BY_NAME, CAUGHT, MISSED = "■", "●", "·"

HEADING = f"""\
# Planted bugs, and the checks that catch them

Made by `python -m tests.planted_bugs --write`. Each row is a bug planted in `model.py` \
(`tests/planted_bugs.py`), each column a check (`tests/checks.py`). \
{CAUGHT_BY_NAME} caught by the check that is there for it, {CAUGHT} caught as well, \
{MISSED} not seen.

- `norm`, `rope`, `attn`, `mlp`, `block`, `logits`, `grads`: equal to `transformers` on random \
weights, from one norm to the gradients of all weights
- `half`: a norm's half-precision result is the exact one, rounded once
- `causal`: the future moves no logit of the past
- `shift`: all positions later, and nothing changes
- `cache`: in pieces as at once
- `batch`: alone as among others
- `fast`: the fast attention as the explicit one, values and gradients
- `names`: names, shapes and number of parameters are the released checkpoint's
- `std`: the initial weights spread as configured

What to notice: a rotation that pairs neighbours, has another theta, exponents off by one or turns \
the other way breaks no property at all. Only the comparison with `transformers` sees it. The \
comparison in turn runs neither with a cache nor in half precision, and sees none of those bugs.
"""


class Edit(NamedTuple):
    """A piece of ``model.py``, what takes its place, and how often it stands there."""

    old: str
    new: str
    times: int = 1


class Bug(NamedTuple):
    """A bug, the check that is there for it, and how to plant it."""

    name: str
    check: str
    edits: tuple[Edit, ...]


def bug(name: str, check: str, *edits: tuple[str, str] | tuple[str, str, int]) -> Bug:
    return Bug(name, check, tuple(Edit(*edit) for edit in edits))


HEADS = ".view(B, T, -1, self.head_dim).transpose(1, 2)"
ROTATED = "q, k = self.rope(q, start), self.rope(k, start)"
INTERLEAVED = "first, second = x[..., 0::2], x[..., 1::2]"
RESIDUALS = """\
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))
"""
POST_NORM = """\
        x = self.input_layernorm(x + self.self_attn(x, cache))
        return self.post_attention_layernorm(x + self.mlp(x))
"""
PARALLEL = """\
        a = self.self_attn(self.input_layernorm(x), cache)
        return x + a + self.mlp(self.post_attention_layernorm(x))
"""
REPEATED = "k.repeat(1, q.shape[1] // k.shape[1], 1, 1)"
ALWAYS_MASKED = (
    ("None if whole or n_query == 1 else causal_mask", "causal_mask"),
    ("is_causal=whole", "is_causal=False"),
)

BUGS = (
    # Norms
    bug("mean over time", "causal", (".mean(-1, keepdim=True)", ".mean(-2, keepdim=True)")),
    bug("mean over the whole batch", "batch", (".mean(-1, keepdim=True)", ".mean()")),
    bug("norm in half precision", "half", ("x32 = x.float()", "x32 = x")),
    bug(
        "epsilon outside the root",
        "norm",
        ("x32 * torch.rsqrt(mean_square + self.eps)", "x32 / (mean_square.sqrt() + self.eps)"),
    ),
    bug(
        "epsilon ignores the config",
        "norm",
        ("RMSNorm(config.n_embd, config.norm_eps)", "RMSNorm(config.n_embd, 1e-6)", 3),
    ),
    bug("norm without its weight", "norm", ("return self.weight * normed", "return normed")),
    bug(
        "the two norms swapped",
        "block",
        ("self.self_attn(self.input_layernorm", "self.self_attn(self.post_attention_layernorm"),
        ("self.mlp(self.post_attention_layernorm", "self.mlp(self.input_layernorm"),
    ),
    bug("norms after the sum (post-norm)", "block", (RESIDUALS, POST_NORM)),
    bug("no final norm", "logits", ("        x = self.model.norm(x)\n", "")),
    # Positions
    bug(
        "neighbours rotated, not halves",
        "rope",
        ("first, second = x.chunk(2, dim=-1)", INTERLEAVED),
        ("turned = torch.cat((", "turned = torch.stack(("),
        ("first * sin), dim=-1)", "first * sin), dim=-1).flatten(-2)"),
    ),
    bug("theta 10,000, whatever the config", "rope", ("config.rope_theta)", "10_000.0)")),
    bug(
        "exponents off by one",
        "rope",
        ("torch.arange(0, head_dim, 2)", "torch.arange(2, head_dim + 2, 2)"),
    ),
    bug("rotated the other way round", "rope", ("angles.sin()", "-angles.sin()")),
    bug("queries rotated, keys not", "shift", (ROTATED, "q = self.rope(q, start)")),
    bug("values rotated too", "shift", (ROTATED, ROTATED + "; v = self.rope(v, start)")),
    bug(
        "position stands still with a cache",
        "cache",
        ("start = cache.length if cache is not None else 0", "start = 0"),
    ),
    # Attention
    bug("no mask", "causal", ("allowed.tril(diagonal=n_key - n_query)", "allowed"), *ALWAYS_MASKED),
    bug(
        "mask off by one: sees the next",
        "causal",
        ("diagonal=n_key - n_query)", "diagonal=n_key - n_query + 1)"),
        *ALWAYS_MASKED,
    ),
    bug(
        "mask off by one: not itself",
        "attn",
        ("diagonal=n_key - n_query)", "diagonal=n_key - n_query - 1)"),
        *ALWAYS_MASKED,
    ),
    bug(
        "mask counted from the first key",
        "cache",
        ("allowed.tril(diagonal=n_key - n_query)", "allowed.tril()"),
    ),
    bug("PyTorch's causal flag with a cache", "fast", ("n_query == n_key", "n_query > 1")),
    bug(
        "no 1/√D",
        "attn",
        (" * q.shape[-1] ** -0.5", ""),
        ("enable_gqa=True", "enable_gqa=True, scale=1.0"),
    ),
    bug(
        "key-value heads in turn, not in groups",
        "attn",
        ("k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)", "k = " + REPEATED),
        (
            "v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)",
            "v = " + REPEATED.replace("k.", "v."),
        ),
        (
            "q, k, v, attn_mask=mask",
            f"q, {REPEATED}, {REPEATED.replace('k.', 'v.')}, attn_mask=mask",
        ),
    ),
    bug("softmax over the queries", "fast", ("scores.float(), dim=-1)", "scores.float(), dim=-2)")),
    bug("heads cut across time", "causal", (HEADS, ".view(B, -1, T, self.head_dim)", 3)),
    bug(
        "heads put together wrongly",
        "causal",
        ("y.transpose(1, 2).flatten(2)", "y.reshape(B, T, -1)"),
    ),
    bug(
        "output matrix transposed",
        "attn",
        (
            "self.o_proj(y.transpose(1, 2).flatten(2))",
            "y.transpose(1, 2).flatten(2) @ self.o_proj.weight",
        ),
    ),
    bug(
        "dropout in evaluation mode",
        "attn",
        ("self.attn_dropout.p if self.training else 0.0", "self.attn_dropout.p"),
    ),
    # MLP, block, whole
    bug(
        "gate and up swapped",
        "mlp",
        (
            "F.silu(self.gate_proj(x)) * self.up_proj(x)",
            "F.silu(self.up_proj(x)) * self.gate_proj(x)",
        ),
    ),
    bug("GELU for SiLU", "mlp", ("F.silu(", "F.gelu(")),
    bug("MLP without residual", "block", ("return x + self.mlp(", "return self.mlp(")),
    bug("MLP beside attention, not after", "block", (RESIDUALS, PARALLEL)),
    bug(
        "head not tied",
        "names",
        ("if not config.tie_embeddings:", "if True:"),
        ("self.model.embed_tokens if self.config.tie_embeddings else self.lm_head", "self.lm_head"),
    ),
    bug(
        "targets shifted a second time",
        "grads",
        (
            "F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())",
            "F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())",
        ),
    ),
    bug("initial spread ignores the config", "std", ("std=self.config.init_std", "std=0.02")),
)


def plant(bug: Bug) -> ModuleType:
    """Return a fresh copy of ``smol_scratch.model`` with a bug in it.

    Raises:
        ValueError: when a text does not occur as often in ``model.py`` as it should.
    """
    source = SOURCE
    for edit in bug.edits:
        if (found := source.count(edit.old)) != edit.times:
            raise ValueError(f"{bug.name}: {edit.old!r} occurs {found} times, not {edit.times}")
        source = source.replace(edit.old, edit.new)
    module = ModuleType(f"model with {bug.name}")
    exec(compile(source, f"<{module.__name__}>", "exec"), module.__dict__)
    return module


def failures(module: ModuleType) -> Iterator[tuple[str, AssertionError]]:
    """Yield each check that a model module fails, and how. A crash is no verdict, and goes up."""
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            check(module)
        except AssertionError as error:
            yield name, error


def verdicts() -> dict[str, dict[str, AssertionError]]:
    """Return, for each bug, the checks that catch it and what they say."""
    return {bug.name: dict(failures(plant(bug))) for bug in BUGS}


def gentlest(found: dict[str, dict[str, AssertionError]]) -> tuple[float, str, str]:
    """Return the least multiple of the noise floor that caught a bug, the bug and the check."""
    return min(
        (error.measured.ratio, bug, check)
        for bug, errors in found.items()
        for check, error in errors.items()
        if isinstance(error, TooFarError)
    )


def table(found: dict[str, dict[str, AssertionError]]) -> str:
    """Return the table bug × check, in Markdown."""
    lines = [HEADING, f"| planted bug | {' | '.join(CHECKS)} |", f"|---|{':-:|' * len(CHECKS)}"]
    for bug in BUGS:
        cells = [MISSED if check not in found[bug.name] else CAUGHT for check in CHECKS]
        if bug.check in found[bug.name]:
            cells[list(CHECKS).index(bug.check)] = CAUGHT_BY_NAME
        lines.append(f"| {bug.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit("usage: python -m tests.planted_bugs [--write]")
    text = table(verdicts())
    if sys.argv[1:]:
        TABLE.write_text(text, "utf-8")
    print(text, end="")
