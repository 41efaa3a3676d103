"""Record what the explorables show, and take their pictures.

``python -m benchmarks.record_explore`` writes the data of each page in ``docs/explore`` from the
real model and the real tokenizer (``NAME.js``), and lets chromium take ``NAME.png``. ``--pictures``
leaves the data as they are; names after it choose pages. ``--moving`` takes the README's moving
picture from the page about attention, ``figures/silence.gif``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch

from smol_scratch import (
    SmolLM2Config,
    assets,
    load_pretrained,
    load_text,
    load_tokenizer,
    tokenizer,
)
from smol_scratch.course import inside
from smol_scratch.evaluation import longest_copies
from smol_scratch.hardware import CARDS

PAGES = assets.ROOT / "docs" / "explore"
MOVING = assets.ROOT / "figures" / "silence.gif"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

# Heads whose query meets a key that RoPE turns: (block, head), position of query and key.
ROPE_TEXT = "The lighthouse keeper climbed the stairs, lit the lamp and looked out over the sea."
ROPE_HEADS = {
    "block 16, head 0": (16, 0, 12, 11),
    "block 2, head 1": (2, 1, 12, 11),
    "block 23, head 4": (23, 4, 12, 11),
}

# Next words that hang on single heads, more and less.
ATTENTION_TEXTS = (
    "The capital of France is",
    "The opposite of hot is",
    "One, two, three, four, five,",
    "The red box is heavy and the blue box is",
    "My sister lost her keys. I helped her look for the",
)
SAMPLING_TEXTS = (
    "The old lighthouse keeper opened the door and saw a",
    "The capital of France is",
)
SAMPLING_UNIT = 0.05  # scores are stored in steps of it
LENS_TEXTS = ("The capital of France is", "The opposite of hot is", "The bird built its")


class Real:
    """The real model and tokenizer, loaded when the first page asks."""

    def __init__(self) -> None:
        self.model = load_pretrained(quiet=True).requires_grad_(False)
        self.tokenizer = load_tokenizer()

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(text)])

    def read(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the scores (…, V) that a stream (…, C) stands for."""
        parts: Any = self.model.model
        return torch.nn.functional.linear(parts.norm(stream), parts.embed_tokens.weight)

    def words(self, ids: torch.Tensor) -> list[str]:
        return [self.tokenizer.decode([i]) for i in ids.flatten().tolist()]


def rope(real: Real) -> dict[str, Any]:
    """Query and key of some heads, before they are turned."""
    ids = real.ids(ROPE_TEXT)
    stream, words = inside.streams(real.model, ids), real.words(ids)
    heads = []
    for name, (layer, head, at, to) in ROPE_HEADS.items():
        block = real.model.model.layers[layer]
        x = block.input_layernorm(stream[layer, 0])
        q = block.self_attn.q_proj(x).unflatten(-1, (-1, 64))[at, head]
        k = block.self_attn.k_proj(x).unflatten(-1, (-1, 64))[to, head // 3]
        q, k = ([round(v, 2) for v in x.tolist()] for x in (q, k))
        heads.append({"name": name, "query": words[at], "key": words[to], "q": q, "k": k})
    return {"text": ROPE_TEXT, "theta": 100_000, "heads": heads}


def rmsnorm(_: Real) -> dict[str, Any]:
    """Three tokens of two channels to begin with."""
    return {"x": [[2.0, 0.5], [0.6, 1.2], [-1.2, 0.8]], "weight": [1.5, 0.6], "eps": 1e-5}


def memory(_: Real) -> dict[str, Any]:
    """Shapes to choose from; of each card the peaks and the memory."""
    shapes = {
        name: asdict(SmolLM2Config.preset(name)) for name in ("135M", "360M", "1.7B", "13M", "tiny")
    }
    cards = {}
    for name, card in CARDS.items():
        cards[name] = {
            "memory": card.memory,
            "bfloat16": card.bf16,
            "float16": card.fp16,
            "float32": card.fp32,
            "watts": card.watts,
        }
    return {"shapes": shapes, "cards": cards}


def roofline(_: Real) -> dict[str, Any]:
    """The released shape, and of each card the peak in 16 bits and the bandwidth."""
    cards = {
        name: {
            "peak": round((card.bf16 or card.fp16 or 0) * 1e12),
            "bandwidth": card.bandwidth * 10**9,
        }
        for name, card in CARDS.items()
    }
    return {"shape": asdict(SmolLM2Config.preset("135M")), "cards": cards}


# Base 85 without quotes, backslash and what else a page or JSON would write as two characters.
DIGITS = "#%()*+,-.0123456789:;=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~"
BPE_TEXT = (
    "The lighthouse keeper unlocked the lighthouse in 1984, whispering: thistle, thirst, naïve."
)


def bpe(real: Real) -> dict[str, Any]:
    """All merges, five characters each; the page unpacks them."""
    backend = real.tokenizer.backend
    numbers, characters = backend.get_vocab(), tokenizer._byte_characters()
    merges, first = tokenizer.merges_of(backend), 252
    packed = []
    for rank, (left, right) in enumerate(merges):
        if numbers[left + right] != first + rank:
            raise ValueError(f"merge {rank}: makes token {numbers[left + right]}")
        pair = numbers[left] * 65_536 + numbers[right]
        packed += [DIGITS[pair // 85**place % 85] for place in range(5)]
    special = real.tokenizer.special_tokens
    return {
        "text": BPE_TEXT,
        "first": first,
        "special": sorted(special, key=special.__getitem__),
        "bytes": [numbers.get(characters[byte], -1) for byte in range(256)],
        "digits": DIGITS,
        "merges": "".join(packed),
    }


def run(real: Real) -> dict[str, Any]:
    """The full run's losses, and its samples with what they copy."""
    records = assets.ROOT / "data" / "records"
    lines = (records / "full_run.csv").read_text("utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    content = json.loads((records / "full_run_samples.json").read_text("utf-8"))
    ids, least = real.tokenizer.encode(load_text()), content["copied_at_least"]
    samples = []
    for record in content["records"]:
        texts: dict[str, dict[str, Any]] = {}
        for sample in record["samples"]:
            tokens = real.tokenizer.encode(sample["text"])
            marks = [length >= least for length in longest_copies(tokens, ids)]
            pieces = []
            for mark, group in groupby(zip(tokens, marks, strict=True), key=lambda pair: pair[1]):
                of_run = [token for token, _ in group]
                pieces.append([real.tokenizer.decode(of_run), len(of_run), int(mark)])
            of_prompt = texts.setdefault(sample["prompt"], {"prompt": sample["prompt"]})
            of_prompt["greedy" if sample["greedy"] else "sampled"] = pieces
        samples.append({"step": record["step"], "texts": list(texts.values())})
    table = (records / "copied.csv").read_text("utf-8").splitlines()[1:]
    his = [row for row in csv.DictReader(table) if row["who"] == "Shakespeare"]
    share = sum(int(row[f"at_least_{least}"]) for row in his) / sum(int(r["tokens"]) for r in his)
    return {
        "tokens_per_step": 1024,
        "tokens_per_pass": (len(ids) - 1) // 1024 * 1024,
        "temperature": content["sampling"]["temperature"],
        "top_p": content["sampling"]["top_p"],
        "copied_at_least": least,
        "shakespeare": round(share, 4),
        "loss": [round(float(row["loss"]), 2) for row in rows if row["loss"]],
        "held_out": [
            [int(row["step"]), round(float(row["held_out_loss"]), 2)]
            for row in rows
            if row["held_out_loss"]
        ],
        "samples": samples,
    }


def best(scores: torch.Tensor, count: int, scale: int) -> list[list[int]]:
    """Return the likeliest tokens of scores (V,): number and rounded probability times scale."""
    found = scores.softmax(-1).topk(count)
    return [[i, round(scale * p)] for p, i in zip(*(x.tolist() for x in found), strict=True)]


def continued(real: Real, stream: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the last token's scores (9, V), each row with another head of one block silent.

    Args:
        real: the model.
        stream: what the block reads, (1, T, C).
        layer: number of the block.
    """

    def silence(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        gathered = inputs[0].clone().unflatten(-1, (9, -1))  # (9, T, 9, 64)
        gathered[range(9), :, range(9)] = 0
        return (gathered.flatten(-2),)

    parts: Any = real.model.model
    handle = parts.layers[layer].self_attn.o_proj.register_forward_pre_hook(silence)
    x = parts.layers[layer](stream.repeat(9, 1, 1))
    handle.remove()
    for block in parts.layers[layer + 1 :]:
        x = block(x)
    return real.read(x[:, -1])


def attention_of(real: Real, text: str, layers: range = range(30)) -> dict[str, Any]:
    """Return the weights of heads in percent, and the next words without each, in per mille.

    ``weights`` and ``silent`` are (block, head); a map's lower triangle lies row after row.
    ``kept`` is what the whole model's favourite has left.
    """
    ids = real.ids(text)
    stream, maps = inside.streams(real.model, ids), inside.attention_maps(real.model, ids)[:, 0]
    below = torch.tril_indices(ids.shape[1], ids.shape[1])
    whole = best(real.model(ids)[0][0, -1], 4, 1000)
    found: dict[str, Any] = {"words": real.words(ids), "whole": whole}
    found |= {"weights": [], "silent": [], "kept": []}
    for layer in layers:
        percent = (100 * maps[layer][:, below[0], below[1]]).round().int()  # (9, T (T + 1) / 2)
        found["weights"].append(percent.tolist())
        scores = continued(real, stream[layer], layer)
        found["silent"].append([best(row, 4, 1000) for row in scores])
        kept = 1000 * scores.softmax(-1)[:, whole[0][0]]
        found["kept"].append(kept.round().int().tolist())
    return found


def attention(real: Real) -> dict[str, Any]:
    """Five sentences, and the model without each of its 270 heads."""
    sentences = [attention_of(real, text) for text in ATTENTION_TEXTS]
    vocabulary: dict[int, int] = {}
    for sentence in sentences:
        heads = [head for block in sentence["silent"] for head in block]
        for words in (sentence["whole"], *heads):
            for word in words:
                word[0] = vocabulary.setdefault(word[0], len(vocabulary))
    return {"vocabulary": real.words(torch.tensor(list(vocabulary))), "sentences": sentences}


def sampling(real: Real) -> dict[str, Any]:
    """How many tokens have which score, in steps below the best one's; names of the first."""
    prompts = []
    for text in SAMPLING_TEXTS:
        scores = real.model(real.ids(text))[0][0, -1]  # (V,)
        steps = ((scores.max() - scores) / SAMPLING_UNIT).round().int()
        order = scores.argsort(descending=True)[:3000]
        counts = steps.bincount().tolist()
        prompts.append({"text": text, "counts": counts, "words": real.words(order)})
    return {"unit": SAMPLING_UNIT, "prompts": prompts}


def lens(real: Real) -> dict[str, Any]:
    """The five best words, in percent, at every token after 0, 1, … 30 blocks."""
    sentences = []
    for text in LENS_TEXTS:
        ids = real.ids(text)
        stream = inside.streams(real.model, ids)[:, 0]  # (31, T, C)
        scores = real.read(stream)  # (31, T, V)
        cells = [
            [[[real.tokenizer.decode([i]), p] for i, p in best(at, 5, 100)] for at in block]
            for block in scores
        ]
        sentences.append({"words": real.words(ids), "cells": cells})
    return {"sentences": sentences}


# Each page's recorder, by the page's name.
RECORD: dict[str, Callable[[Real], dict[str, Any]]] = {
    "rope": rope,
    "rmsnorm": rmsnorm,
    "memory": memory,
    "roofline": roofline,
    "bpe": bpe,
    "run": run,
    "attention": attention,
    "sampling": sampling,
    "lens": lens,
}


START, END = "const data = ", ";\n"  # a script, since a page from a file may not fetch another file


def stored(name: str) -> Any:
    """Return a page's data."""
    return json.loads(
        (PAGES / f"{name}.js").read_text("utf-8").removeprefix(START).removesuffix(END)
    )


def store(name: str, data: Any) -> None:
    """Write a page's data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (PAGES / f"{name}.js").write_text(START + text + END, "utf-8")


def take_pictures(names: list[str]) -> None:
    """Let chromium take each page as it looks at first."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 760, "height": 600})
        for name in names:
            view.goto((PAGES / f"{name}.html").as_uri())
            view.locator("main").screenshot(path=PAGES / f"{name}.png")
        browser.close()


# The moving picture: (block, head, silenced?, how long it is seen in milliseconds).
SCENES = (
    *[(block, 0, False, 350) for block in range(11, 17)],
    (17, 0, False, 2500),
    (17, 0, True, 3500),
    (17, 0, False, 1200),
    *[(17, head, False, 350) for head in range(1, 6)],
    (17, 6, False, 1800),
    (17, 6, True, 2500),
)


def take_moving_picture(scenes: tuple[tuple[int, int, bool, int], ...] = SCENES) -> None:
    """Let chromium move through heads and silence one: what the README shows."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    frames = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 720, "height": 1000})
        view.goto((PAGES / "attention.html").as_uri())
        # What is said to the hand, the picture does not need.
        view.add_style_tag(content="main > p:not(.say) { display: none }")
        for block, head, silent, _ in scenes:
            view.locator("#layer").fill(str(block))
            view.locator("#head").fill(str(head))
            pressed = view.locator("#silence").get_attribute("aria-pressed") == "true"
            if pressed != silent:
                view.locator("#silence").click()
            view.evaluate("document.activeElement.blur()")
            shot = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
            frames.append(shot.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
        browser.close()
    first, *rest = frames
    durations = [scene[3] for scene in scenes]
    first.save(MOVING, save_all=True, append_images=rest, duration=durations, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="leave the data as they are")
    parser.add_argument("--moving", action="store_true", help="take the README's moving picture")
    parser.add_argument("names", nargs="*", default=list(RECORD))
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(RECORD):
        parser.error(f"{', '.join(unknown)}: must be among {', '.join(RECORD)}")
    if chosen.moving:
        return take_moving_picture()
    if not chosen.pictures:
        real = Real()
        for name in chosen.names:
            store(name, RECORD[name](real))
    take_pictures(chosen.names)


if __name__ == "__main__":
    main()
