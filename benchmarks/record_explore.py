"""Record what the explorables show, build their pages, and take their pictures.

``python -m benchmarks.record_explore`` writes the data of each page from the real model, the real
tokenizer (``benchmarks/explore/NAME.json``), puts source, data, the common style and script
together in ``docs/explore/NAME.html``, and lets chromium take ``NAME.png``. ``--pages`` leaves the
data as they are; names after it choose pages.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import torch

from smol_scratch import assets, load_pretrained, load_tokenizer
from smol_scratch.course import inside

SOURCE = assets.ROOT / "benchmarks" / "explore"
PAGES = assets.ROOT / "docs" / "explore"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

# Heads whose query meets a key that RoPE turns: (block, head), position of query and key.
ROPE_TEXT = "The lighthouse keeper climbed the stairs, lit the lamp and looked out over the sea."
ROPE_HEADS = {
    "block 16, head 0": (16, 0, 12, 11),
    "block 2, head 1": (2, 1, 12, 11),
    "block 23, head 4": (23, 4, 12, 11),
}


class Real:
    """The real model and tokenizer, loaded when the first page asks."""

    def __init__(self) -> None:
        self.model = load_pretrained(quiet=True).requires_grad_(False)
        self.tokenizer = load_tokenizer()

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(text)])

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


RECORD: dict[str, Callable[[Real], dict[str, Any]]] = {"rope": rope, "rmsnorm": rmsnorm}


def page(name: str) -> str:
    """Return a page: its source with the common style and script, and its data."""
    text = (SOURCE / f"{name}.html").read_text("utf-8")
    data = (SOURCE / f"{name}.json").read_text("utf-8").replace("</", "<\\/").strip()
    parts = {
        "style": (SOURCE / "common.css").read_text("utf-8"),
        "script": f"const data = {data};\n" + (SOURCE / "common.js").read_text("utf-8"),
    }
    return re.sub(r"/\* common (style|script) \*/", lambda match: parts[match[1]].strip(), text)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", action="store_true", help="build pages from the stored data")
    parser.add_argument("--data", action="store_true", help="record the data alone")
    parser.add_argument("names", nargs="*", default=list(RECORD))
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(RECORD):
        parser.error(f"{', '.join(unknown)}: must be among {', '.join(RECORD)}")
    if not chosen.pages:
        real = Real()
        for name in chosen.names:
            content = json.dumps(RECORD[name](real), ensure_ascii=False, separators=(",", ":"))
            (SOURCE / f"{name}.json").write_text(content + "\n", "utf-8")
    if not chosen.data:
        PAGES.mkdir(exist_ok=True)
        for name in chosen.names:
            (PAGES / f"{name}.html").write_text(page(name), "utf-8")
        take_pictures(chosen.names)


if __name__ == "__main__":
    main()
