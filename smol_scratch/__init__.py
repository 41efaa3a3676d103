"""SmolLM2-135M from scratch: the package under the notebooks.

Importing it loads nothing: a name brings its module, and with it PyTorch, when it is first used.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers know better; ``typing`` itself would take time to import
if TYPE_CHECKING:
    from smol_scratch.cache import KVCache
    from smol_scratch.config import SmolLM2Config
    from smol_scratch.corpus import load_text
    from smol_scratch.data import DataLoaderLite
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
    from smol_scratch.shards import TokenShards
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

# Where the public names live. The modules themselves are at hand by their names, too.
_HOMES = {
    "cache": ("KVCache",),
    "config": ("SmolLM2Config",),
    "corpus": ("load_text",),
    "data": ("DataLoaderLite",),
    "generation": ("generate", "stream", "stream_text"),
    "hub": ("load_pretrained", "to_transformers"),
    "model": (
        "Block",
        "GroupedQueryAttention",
        "RMSNorm",
        "RotaryPositionalEmbedding",
        "SmolLM2",
        "SwiGLU",
        "causal_mask",
        "explicit_attention",
        "fast_attention",
        "rotate",
    ),
    "shards": ("TokenShards",),
    "sharing": ("export_gguf", "export_pretrained"),
    "tokenizer": ("load_gpt2_tokenizer", "load_tokenizer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # or a name that does not exist would have the type of this function

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for (PEP 562)."""
        if name in _HOMES:
            return import_module(f"smol_scratch.{name}")
        if name in _HOME_OF:
            found = getattr(import_module(f"smol_scratch.{_HOME_OF[name]}"), name)
            globals()[name] = found  # from now on without this detour
            return found
        raise AttributeError(f"module 'smol_scratch' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_HOMES})
