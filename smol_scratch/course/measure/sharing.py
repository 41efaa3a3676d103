"""What notebook 12 measures: what storing weights in fewer bits does to them, and to the loss.

Letters: B passages, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor
from torch.func import functional_call

from smol_scratch import SmolLM2, export_pretrained, load_pretrained, load_tokenizer
from smol_scratch.course.notebook import read_record
from smol_scratch.hub import neighbours_from_halves
from smol_scratch.tokenizer import SmolLM2Tokenizer


def in_blocks(weight: Tensor, kind: str) -> Tensor:
    """Store a matrix as the ``gguf`` package does ("q8_0", "q4_0", …), and read it again."""
    of = GGMLQuantizationType[kind.upper()]
    return torch.from_numpy(dequantize(quantize(weight.numpy(), of), of))


def one_step(weight: Tensor, bits: int) -> Tensor:
    """Store a matrix as whole numbers of so many bits with a single step, and read it again."""
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


def error(weight: Tensor, stored: Tensor) -> float:
    """Return the size of the error relative to the size of the weights."""
    return ((stored - weight).norm() / weight.norm()).item()


# How a matrix is stored to its bits per number, and what comes back.
WAYS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "float32": (32, lambda w: w),
    "float16": (16, lambda w: w.half().float()),
    "bfloat16": (16, lambda w: w.bfloat16().float()),
    "q8_0": (8.5, lambda w: in_blocks(w, "q8_0")),
    "one step, 8 bits": (8, lambda w: one_step(w, 8)),
    "q4_0": (4.5, lambda w: in_blocks(w, "q4_0")),
    "one step, 4 bits": (4, lambda w: one_step(w, 4)),
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


class OneLayer:
    """Store the matrices of one block in a coarse way, all others as they are, and see the loss.

    Each matrix gets a single step. What happens before the block is computed once.
    """

    def __init__(self, model: SmolLM2, rows: Tensor) -> None:
        """Run the passages through the model, which stays as it is.

        Args:
            model: the real one.
            rows: passages, (B, T + 1).
        """
        self.parts: Any = model.model
        self.rows, x = rows, self.parts.embed_tokens(rows[:, :-1])
        self.before = [x]  # what each block reads, (B, T, C)
        with torch.no_grad():
            for block in self.parts.layers:
                self.before.append(block(self.before[-1]))
        self.base = self._losses(self.before[-1])

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Return the seven matrices of a block: ``q_proj`` to its weights, and so on."""
        named = self.parts.layers[layer].named_parameters()
        return {name.split(".")[-2]: weight for name, weight in named if weight.ndim == 2}

    def added(
        self, layer: int, only: str = "", bits: int = 5, apart: int = 0, chance: bool = False,
        noise: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return the loss that is added, passage by passage, (B,), in nats per token.

        Args:
            layer: number of the block.
            only: one matrix, such as "q_proj", in place of all seven.
            bits: of the whole numbers.
            apart: so many numbers of each matrix, the largest, stay as they are, and the step is
                chosen for the others.
            chance: keep numbers chosen at random in place of the largest.
            noise: add random numbers of this size, relative to the matrix, in place of rounding.
        """
        matrices = self.weights(layer)
        chosen = {only: matrices[only]} if only else matrices
        before = {name: weight.clone() for name, weight in chosen.items()}
        with torch.no_grad():
            for name, weight in chosen.items():
                weight.copy_(_coarse(before[name], bits, apart, chance, noise))
            x = self.before[layer]
            for block in self.parts.layers[layer:]:
                x = block(x)
            for name, weight in chosen.items():
                weight.copy_(before[name])
        return self._losses(x) - self.base

    @torch.no_grad()
    def _losses(self, x: Tensor) -> Tensor:
        found = []
        for part, rows in zip(self.parts.norm(x).split(4), self.rows.split(4), strict=True):
            logits = F.linear(part, self.parts.embed_tokens.weight)
            found.append(F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(-1))
        return torch.cat(found)


def _coarse(weight: Tensor, bits: int, apart: int, chance: bool, noise: float) -> Tensor:
    """Return a matrix as ``OneLayer.added`` stores it."""
    generator = torch.Generator().manual_seed(0)
    if noise:
        shape = torch.randn(weight.shape, generator=generator)
        return weight + noise * weight.norm() * shape / shape.norm()
    flat = weight.flatten()
    kept = (
        torch.randperm(len(flat), generator=generator)[:apart]
        if chance
        else flat.abs().topk(apart).indices
    )
    others = flat.index_fill(0, kept, 0.0)
    return one_step(others, bits).index_copy(0, kept, flat[kept]).view_as(weight)


# What ``data/records/layers.csv`` holds: how a block is stored, beside "5 bits" for all blocks.
LAYER_TESTS: dict[str, dict[str, Any]] = {
    "without the 16 largest": {"apart": 16},
    "without 16 at random": {"apart": 16, "chance": True},
    "noise of 0.3": {"noise": 0.3},
}


def few_bits() -> Iterator[str]:
    """Yield the lines of a table: what few bits cost and bring, by kind of processor."""
    quality, speed = (
        read_record(f"{name}.csv") for name in ("quantized_quality", "generation_speed")
    )
    for kind in dict.fromkeys(row["kind"] for row in quality):
        yield f"{kind}: loss added to that of float32"
        for row in quality:
            if row["kind"] == kind:
                added = f"{row['added_loss'] + 0.0:+.3f} ± {row['added_error']:.3f}"
                yield (
                    f"  {row['variant']:<16} {row['mb']:>4.0f} MB   {added}   "
                    f"perplexity {row['perplexity']:6.2f} ± {row['perplexity_error']:.2f}"
                )
    for kind in dict.fromkeys(row["kind"] for row in speed):
        yield f"{kind}: tokens per second, as a multiple of compiled bfloat16's"
        rows = [row for row in speed if row["kind"] == kind and row["times_bfloat16"] is not None]
        for variant in dict.fromkeys(row["variant"] for row in rows):
            if variant not in ("ours, compiled bfloat16", "transformers bfloat16"):
                times = [row["times_bfloat16"] for row in rows if row["variant"] == variant]
                span = " to ".join(dict.fromkeys(f"{x:.2f}" for x in (min(times), max(times))))
                yield f"  {variant:<23} {span}   (sittings: {len(times)})"


# Five folders, of which four carry a mistake that real programs have made.

FIVE = ("A", "B", "C", "D", "E")
FAULTS = {
    "A": "rope_theta lost",
    "B": "rows of q and k\nin GGUF's order",
    "C": "no fault",
    "D": "the cut of\ndigits lost",
    "E": "the head's\ntie lost",
}


def with_rows_moved(model: SmolLM2, move: Callable[[Tensor, int], Tensor]) -> SmolLM2:
    """Return a copy with the rows of every query and key matrix in another order."""
    copy = SmolLM2(model.config).eval().requires_grad_(False)
    moved = {
        name: move(w, model.config.head_dim) if "q_proj" in name or "k_proj" in name else w
        for name, w in model.state_dict().items()
    }
    copy.load_state_dict(moved)
    copy.chat_template = getattr(model, "chat_template", None)  # type: ignore[assignment]
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


AWKWARD = "a  1"


@torch.no_grad()
def hear(folder: Path, prompt: str, rows: Tensor, new: int = 14) -> dict[str, Any]:
    """Load a folder with ``transformers`` alone, and let it speak.

    Args:
        folder: a model's.
        prompt: what it continues, greedily.
        rows: passages for the loss, (B, T + 1).
        new: tokens of the continuation.

    Returns:
        "text", and what ``evidence`` returns.
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
    found = evidence(lambda idx: model(idx).logits, lambda text: tokenizer(text).input_ids,
                     prompt, rows)  # fmt: skip
    return {"text": tokenizer.decode(made[0, ids.shape[1] :]), **found}


@torch.no_grad()
def evidence(
    logits_of: Callable[[Tensor], Tensor],
    encode: Callable[[str], list[int]],
    prompt: str,
    rows: Tensor,
) -> dict[str, Any]:
    """Return what a sender would publish of a model, and what a reader can compare with it.

    Args:
        logits_of: the model, (B, T) -> (B, T, V).
        encode: its tokenizer.
        prompt: a text for the logits.
        rows: passages for the loss, (B, T + 1).

    Returns:
        "easy" and "awkward": the tokens of the prompt and of ``AWKWARD``, and the logits for them,
        (T, V); "by_token": the losses of the passages, (B, T), and "loss", their mean, in nats.
    """
    by_token = F.cross_entropy(logits_of(rows[:, :-1]).mT, rows[:, 1:], reduction="none")
    found: dict[str, Any] = {"by_token": by_token, "loss": by_token.mean().item()}
    for name, text in (("easy", prompt), ("awkward", AWKWARD)):
        ids = encode(text)
        found[name] = ids, logits_of(torch.tensor([ids]))[0]
    return found


def objects(found: Mapping[str, Any], sent: Mapping[str, Any], text: str) -> bool:
    """Say whether tokens or logits for "easy" or "awkward" are not the sender's.

    The logits of one model in two programs differ by rounding, less than 0.001 here.
    """
    (ids, logits), (sent_ids, sent_logits) = found[text], sent[text]
    return ids != sent_ids or bool((logits - sent_logits).abs().max() > 0.01)


def tensors_that_differ(folder: Path, other: Path) -> dict[str, tuple[int, bool]]:
    """Compare two folders' tensors by name.

    Returns:
        The kind of matrix (``q_proj``, say) to how many of them differ, and whether each still
        holds the same numbers, in another order.
    """
    from safetensors.torch import load_file

    theirs, ours = (load_file(place / "model.safetensors") for place in (folder, other))
    found: dict[str, tuple[int, bool]] = {}
    for name, weight in theirs.items():
        if not torch.equal(weight, ours[name]):
            kind = name.split(".")[-2]
            count, moved = found.get(kind, (0, True))
            same = torch.equal(weight.flatten().sort()[0], ours[name].flatten().sort()[0])
            found[kind] = count + 1, moved and same
    return found


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
