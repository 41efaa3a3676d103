"""A folder for a Hugging Face Space: a model, the demo page, and the package that serves them."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import gradio

from smol_scratch import assets
from smol_scratch.model import SmolLM2
from smol_scratch.quantize import FORMS
from smol_scratch.sharing import export_pretrained
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.wrappers import unwrapped

APP = '''"""Serves the model in model/ with the package beside this file."""

from smol_scratch import load_tokenizer
from smol_scratch.demo import build, serve
from smol_scratch.hub import {load}

if __name__ == "__main__":
    model = {load}({how}, quiet=True)
    serve(build(model, load_tokenizer("model"), {source!r}), host=None)
'''
README = """---
title: smol_scratch
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---

A page to try a small language model on. Weights: {source}.

To run it here: `pip install -r requirements.txt`, then `python app.py`. To put it on the hub:
`hf upload USER/NAME . --repo-type space`, after `hf repo create USER/NAME --repo-type space
--space-sdk gradio`.
"""


def check_space(folder: str | Path) -> Path:
    """Return the whole path of a folder that a Space can be written to.

    Raises:
        FileExistsError, NotADirectoryError: when it holds something, or is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder")
    return folder


def write_space(
    model: SmolLM2,
    tokenizer: SmolLM2Tokenizer,
    folder: str | Path,
    quantize: str | None = None,
) -> Path:
    """Write a folder ready for a Hugging Face Space, all of it or nothing.

    The package's source goes along: the Space then runs the very code it was made with, and needs
    no address from which to install it. Weights are written in float32.

    Args:
        model: ``model.source`` is what the page will say of it.
        tokenizer: its tokenizer.
        folder: must not exist, or be empty.
        quantize: "int8" or "int4" has the Space keep them in so many bits once they are read.

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder holds something.
        ValueError: for another form.
    """
    if quantize not in (None, *FORMS):
        raise ValueError(f"quantize={quantize!r:.60}: must be one of {', '.join(FORMS)}")
    model, folder = unwrapped(model), check_space(folder)
    source = str(getattr(model, "source", "unknown"))
    if quantize:
        source += f"; {quantize}"
    load, how = ("load_quantized", f'"model", "{quantize}"') if quantize else (
        "load_pretrained", '"model"')  # fmt: skip
    needed = importlib.metadata.requires("smol_scratch") or []
    names = [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    pins = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]
    # The index of PyTorch's builds without CUDA; its 2.x.y+cpu goes before the plain 2.x.y.
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *pins]
    lines.append(f"gradio=={gradio.__version__}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    card = README.format(gradio=gradio.__version__, python=python, source=source)
    with assets.written_whole(folder) as new:
        export_pretrained(model, new / "model", tokenizer=tokenizer)
        code = Path(__file__).parent
        shutil.copytree(
            code, new / "smol_scratch", ignore=shutil.ignore_patterns("__pycache__", "exercises")
        )
        if (licence := assets.ROOT / "LICENSE").is_file():
            shutil.copy(licence, new)
        (new / "app.py").write_text(APP.format(source=source, load=load, how=how), "utf-8")
        (new / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
        (new / "README.md").write_text(card, "utf-8")
    return folder
