"""The folder for a Space: what is in it, and that it serves its page."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("gradio", reason="gradio is not installed: a Space needs it")

import gradio

from smol_scratch import demo, quantize, space
from tests.test_demo import ask, continuation, small_model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("form", [None, "int4"])
def test_a_written_space_starts_and_answers(form, tmp_path, tokenizer):
    model = small_model("a 'quoted' source")
    folder = space.write_space(model, tokenizer, tmp_path / "space", form)

    front = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == gradio.__version__
    assert (folder / front["app_file"]).is_file()
    pins = (folder / "requirements.txt").read_text("utf-8").splitlines()
    assert any(re.fullmatch(r"torch==[\d.]+", pin) for pin in pins)
    assert all("==" in pin for pin in pins[1:])
    with pytest.raises(FileExistsError, match="not empty"):
        space.write_space(model, tokenizer, folder)

    # The package beside app.py is what runs, not the one that is installed here.
    with (folder / "smol_scratch" / "__init__.py").open("a") as file:
        file.write("\nprint(__file__, flush=True)\n")
    port = free_port()
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "SMOL_SCRATCH_DATA": str(tmp_path / "nothing"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",  # the address is read while the page is served
    }
    command = [sys.executable, "app.py"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(str(folder))
            assert f"127.0.0.1:{port}" in process.stdout.readline()  # it is listening
            text, status = ask(f"http://127.0.0.1:{port}/")
        finally:
            process.terminate()
    shown = re.sub(r"<[^>]*>", "", text).removeprefix("ROMEO:")
    ids = tokenizer.encode("ROMEO:")
    if form:
        model = quantize.quantize(model, form)
    assert shown == demo.escaped(continuation(model, tokenizer, ids, 5, 0, temperature=0))
    assert status.startswith("<p>5 tokens")


def test_a_space_in_another_form_is_refused_before_anything_is_written(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="quantize='int3': must be one of int8, int4"):
        space.write_space(small_model(), tokenizer, tmp_path / "space", "int3")
    assert not list(tmp_path.iterdir())
