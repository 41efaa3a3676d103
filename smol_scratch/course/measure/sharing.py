"""What notebook 12 measures: what storing weights in fewer bits does to them, and to the loss.

Letters: B passages, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor
from torch.func import functional_call

from smol_scratch import SmolLM2, export_pretrained, load_pretrained, load_tokenizer
from smol_scratch.hub import neighbours_from_halves
from smol_scratch.tokenizer import SmolLM2Tokenizer


def in_blocks(weight: Tensor, kind: str) -> Tensor:
    """Store a matrix as the ``gguf`` package does ("q8_0", "q4_0", …), and read it again."""
    of = GGMLQuantizationType[kind.upper()]
    return torch.from_numpy(dequantize(quantize(weight.numpy(), of), of))


def one_scale(weight: Tensor, bits: int) -> Tensor:
    """Store a matrix as whole numbers of so many bits with a single step, and read it again."""
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


# How a matrix is stored to its bits per number, and what comes back.
WAYS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "float32": (32, lambda w: w),
    "float16": (16, lambda w: w.half().float()),
    "bfloat16": (16, lambda w: w.bfloat16().float()),
    "q8_0": (8.5, lambda w: in_blocks(w, "q8_0")),
    "one scale, 8 bits": (8, lambda w: one_scale(w, 8)),
    "q4_0": (4.5, lambda w: in_blocks(w, "q4_0")),
    "one scale, 4 bits": (4, lambda w: one_scale(w, 4)),
}


@torch.no_grad()
def passage_losses(model: SmolLM2, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Return the mean loss of each passage in nats per token, (B,), with other weights.

    Args:
        model: whose arithmetic is used.
        weights: by the names of ``model.state_dict()``.
        rows: passages, (B, T + 1).
    """
    found = []
    for part in rows.split(4):
        logits, _ = functional_call(model, dict(weights), (part[:, :-1],))
        found.append(F.cross_entropy(logits.mT, part[:, 1:], reduction="none").mean(-1))
    return torch.cat(found)


def stored(state: Mapping[str, Tensor], way: str) -> dict[str, Tensor]:
    """Return all weights as they come back from a way of storing; norms stay in float32."""
    change = WAYS[way][1]
    return {name: change(w) if w.ndim == 2 else w for name, w in state.items()}


# Five folders, of which four carry a mistake that real programs have made.

FIVE = ("A", "B", "C", "D", "E")
FAULTS = {
    "A": "rope_theta lost",
    "B": "rows of q and k in GGUF's order",
    "C": "none",
    "D": "tokenizer's cut of digits lost",
    "E": "tie of the head lost",
}


def with_rows_moved(model: SmolLM2, move: Callable[[Tensor, int], Tensor]) -> SmolLM2:
    """Return a copy with the rows of every query and key matrix in another order."""
    copy = SmolLM2(model.config).eval().requires_grad_(False)
    moved = {
        name: move(w, model.config.head_dim) if "q_proj" in name or "k_proj" in name else w
        for name, w in model.state_dict().items()
    }
    copy.load_state_dict(moved)
    return copy


def five_folders(home: Path, model: SmolLM2, tokenizer: SmolLM2Tokenizer) -> None:
    """Write the folders A to E below ``home``, each as ``FAULTS`` says.

    Those with equal weights share one file on the disk.
    """
    export_pretrained(model, home / "C", tokenizer=tokenizer)
    export_pretrained(with_rows_moved(model, neighbours_from_halves), home / "B",
                      tokenizer=tokenizer)  # fmt: skip
    for letter in ("A", "D", "E"):
        (home / letter).mkdir()
        for file in (home / "C").iterdir():
            if file.suffix == ".safetensors":
                (home / letter / file.name).hardlink_to(file)
            else:
                (home / letter / file.name).write_bytes(file.read_bytes())
    change(home / "A" / "config.json", without=("rope_theta", "rope_parameters"))
    change(home / "E" / "config.json", without=("tie_word_embeddings",))
    path = home / "D" / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    path.write_text(json.dumps(content), "utf-8")


def change(path: Path, without: tuple[str, ...]) -> None:
    """Write a JSON file again without some of its fields."""
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in without}), "utf-8")


@torch.no_grad()
def hear(folder: Path, prompt: str, rows: Tensor, new: int = 14) -> dict[str, Any]:
    """Load a folder with ``transformers`` alone, and let it speak.

    Args:
        folder: a model's.
        prompt: what it continues, greedily.
        rows: passages for the loss, (B, T + 1).
        new: tokens of the continuation.

    Returns:
        "text", the "logits" of the prompt, (T, V), the "losses" of the passages, (B,), and their
        mean, the "loss", in nats per token, and the "tokens" of the tricky text "a  1".
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(4)  # what a folder lacks is drawn at random
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    logits = model(rows[:, :-1]).logits
    losses = F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(-1)
    return {
        "text": tokenizer.decode(made[0, ids.shape[1] :]),
        "logits": model(ids).logits[0],
        "losses": losses,
        "loss": losses.mean().item(),
        "tokens": tokenizer("a  1").input_ids,
    }


def from_gguf(path: Path) -> torch.nn.Module:
    """Read a GGUF file with ``transformers``, without its progress bar."""
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name
        )
    return model


def refused(folder: Path) -> bool:
    """Say whether our strict loader refuses a folder's weights or configuration."""
    try:
        load_pretrained(folder, quiet=True)
    except ValueError:
        return True
    return False


def same_tokens(folder: Path, text: str) -> bool:
    """Say whether a folder's tokenizer cuts a text as SmolLM2's own does."""
    from transformers import AutoTokenizer

    theirs: list[int] = AutoTokenizer.from_pretrained(folder)(text).input_ids
    return theirs == load_tokenizer().encode(text)
