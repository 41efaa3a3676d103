"""Build the explorer: one page in which SmolLM2-135M-Instruct runs in the reader's browser.

``python -m smol_scratch.course.explorer`` makes ``build/explorer/index.html`` of the sources in
``docs/explorer``, and puts the weights beside it. The page holds all that it needs but the
weights, and asks no other host for anything.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
from pathlib import Path

from smol_scratch import assets

SOURCE = assets.ROOT / "docs" / "explorer"
BUILT = assets.ROOT / "build" / "explorer"
WEIGHTS = Path(assets.GGUF).name
# What runs in the worker, in the order in which it reads downward.
ENGINE = ("gguf.js", "tokenizer.js", "model.js", "explain.js", "worker.js")
PAGE = ("client.js", "page.js")


def kernels(source: Path = SOURCE) -> bytes:
    """Return the WebAssembly that ``kernels.wat`` describes.

    Raises:
        ModuleNotFoundError: where ``wasmtime`` is missing, with the remedy.
        ValueError: when it cannot be translated, saying where.
    """
    try:
        from wasmtime import WasmtimeError, wat2wasm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "wasmtime is not installed: it translates kernels.wat; pip install -e '.[book]'"
        ) from error
    path = source / "kernels.wat"
    try:
        return bytes(wat2wasm(path.read_text("utf-8")))
    except WasmtimeError as error:
        raise ValueError(f"{path}: {error}") from error


def page(source: Path = SOURCE) -> str:
    """Return the whole page: style, engine, WebAssembly, sentences and script in one file."""

    def text(*names: str) -> str:
        return "\n".join((source / name).read_text("utf-8") for name in names)

    binary = base64.b64encode(kernels(source)).decode()
    parts = {
        "STYLE": text("page.css"),
        "ENGINE": f'const KERNELS = "{binary}";\n{text(*ENGINE)}',
        "SENTENCES": text("sentences.json"),
        "PAGE": text(*PAGE),
    }
    whole = text("page.html")
    for name, part in parts.items():
        mark = f"<!-- {name} -->"
        if whole.count(mark) != 1 or "</script" in part:
            raise ValueError(f"{source / 'page.html'}: {mark} must stand in it once, and what it "
                             "stands for must not end a script")  # fmt: skip
        whole = whole.replace(mark, part)
    return whole


def build(target: Path = BUILT, source: Path = SOURCE, weights: str = "link") -> Path:
    """Write the page into a folder.

    Args:
        target: the folder; made where it is missing.
        source: the folder of the sources.
        weights: what to do with the GGUF file: "link" or "copy" puts it beside the page, "none"
            leaves there what is there; a reader can drop the file onto the page.

    Returns:
        The page.

    Raises:
        MissingAssetError: when the weights are to be put there and are not here.
    """
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.html").write_text(page(source), "utf-8")
    beside = target / WEIGHTS
    if weights != "none":
        beside.unlink(missing_ok=True)
        stored = assets.verified(assets.GGUF)
        if stored is None:
            raise assets.MissingAssetError(
                f"{WEIGHTS} is not here: run `python -m smol_scratch assets`, or build without it "
                "(--weights none) and drop the file onto the page"
            )
        if weights == "copy":
            shutil.copyfile(stored, beside)
        else:
            os.symlink(stored.resolve(), beside)
    return target / "index.html"


def main() -> int:
    """Build the page as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m smol_scratch.course.explorer",
                                     description=(__doc__ or "").partition("\n")[0])  # fmt: skip
    parser.add_argument("--out", type=Path, default=BUILT, help="folder (%(default)s)")
    parser.add_argument("--weights", choices=("link", "copy", "none"), default="link",
                        help="how the 98 MB get beside the page (%(default)s)")  # fmt: skip
    chosen = parser.parse_args()
    try:
        written = build(chosen.out, weights=chosen.weights)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{written}: {written.stat().st_size / 1e3:.0f} kB")
    print(f"to read it: python -m http.server --directory {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
