"""What several test files share: assets that take seconds to load, loaded once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from smol_scratch import SmolLM2, load_pretrained, load_text, load_tokenizer
from smol_scratch.tokenizer import SmolLM2Tokenizer

# Reproducible: the same examples in every run. The machine decides how long they take.
settings.register_profile("smol_scratch", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("smol_scratch")


@pytest.fixture(scope="session")
def text() -> str:
    return load_text()


@pytest.fixture(scope="session")
def tokenizer() -> SmolLM2Tokenizer:
    return load_tokenizer()


@pytest.fixture(scope="session")
def real_model() -> SmolLM2:
    """The best real weights at hand. Nobody may change them."""
    return load_pretrained(quiet=True).requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
