"""SmolLM2-135M from scratch: the package under the notebooks."""

from smol_scratch.cache import KVCache
from smol_scratch.config import SmolLM2Config
from smol_scratch.corpus import load_text
from smol_scratch.data import DataLoaderLite, TokenShards
from smol_scratch.generation import generate, stream, stream_text
from smol_scratch.hub import load_pretrained, to_transformers
from smol_scratch.model import (
    Block,
    GroupedQueryAttention,
    RMSNorm,
    RotaryPositionalEmbedding,
    SmolLM2,
    SwiGLU,
    causal_mask,
    explicit_attention,
    fast_attention,
    rotate,
)
from smol_scratch.sharing import export_gguf, export_pretrained
from smol_scratch.tokenizer import load_gpt2_tokenizer, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "Block",
    "DataLoaderLite",
    "GroupedQueryAttention",
    "KVCache",
    "RMSNorm",
    "RotaryPositionalEmbedding",
    "SmolLM2",
    "SmolLM2Config",
    "SwiGLU",
    "TokenShards",
    "causal_mask",
    "explicit_attention",
    "export_gguf",
    "export_pretrained",
    "fast_attention",
    "generate",
    "load_gpt2_tokenizer",
    "load_pretrained",
    "load_text",
    "load_tokenizer",
    "rotate",
    "stream",
    "stream_text",
    "to_transformers",
]
