"""The shape of a model, in one frozen and validated dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class SmolLM2Config:
    """Everything that decides the shape and the start of a SmolLM2.

    The defaults are those of the walkthrough's own training run: SmolLM2-135M with a context of
    1,024 tokens and weights drawn with a standard deviation of 0.02. The released model is
    ``SmolLM2Config.preset("135M")``: the same shape, 8,192 positions, standard deviation 1/24.

    Attributes:
        block_size: the longest sequence that the model accepts, in tokens.
        vocab_size: entries in the vocabulary (V).
        n_layer: blocks.
        n_head: query heads (H).
        n_kv_head: key-value heads (G); each serves ``n_head // n_kv_head`` query heads.
        n_embd: width of the residual stream (C).
        intermediate_size: width of the MLP's hidden layer.
        head_dim: width of one head (D); even, since RoPE turns pairs.
        rope_theta: base of RoPE's wavelengths.
        norm_eps: added to the mean of squares in RMSNorm.
        tie_embeddings: whether the output head is the embedding matrix.
        dropout: probability of dropping an attention weight in training.
        init_std: standard deviation of the initial weights.

    Raises:
        ValueError: for each impossible value or combination, naming field, value and rule.

    Source: the released configuration of HuggingFaceTB/SmolLM2-135M.
    """

    block_size: int = 1024
    vocab_size: int = 49_152
    n_layer: int = 30
    n_head: int = 9
    n_kv_head: int = 3
    n_embd: int = 576
    intermediate_size: int = 1536
    head_dim: int = 64
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}={value!r}: must be a whole number of at least 1")
            if field.type == "float" and type(value) not in (int, float):
                raise ValueError(f"{field.name}={value!r}: must be a number")
            if field.type == "bool" and type(value) is not bool:
                raise ValueError(f"{field.name}={value!r}: must be True or False")
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head}: must be a multiple of n_kv_head={self.n_kv_head}, "
                "so that every key-value head serves equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even, since RoPE turns pairs")
        if not 1 < self.rope_theta < float("inf"):
            raise ValueError(f"rope_theta={self.rope_theta}: must be above 1 and finite")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps={self.norm_eps}: must lie between 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if not 0 < self.init_std < float("inf"):
            raise ValueError(f"init_std={self.init_std}: must be above 0 and finite")

    @classmethod
    def preset(cls, name: str, **changes: object) -> SmolLM2Config:
        """Return a named configuration, with single fields replaced by ``changes``.

        Args:
            name: "135M", "360M" or "1.7B" for the released models, "13M" for a tenth of the
                smallest, "tiny" for one that trains within minutes on a laptop (5.1 million
                parameters); all have the same tokenizer.
            **changes: fields to replace.

        Raises:
            ValueError: for an unknown name or field.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
        unknown = set(changes) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: no such field in SmolLM2Config")
        return cls(**(PRESETS[name] | changes))  # type: ignore[arg-type]


# The released configurations (HuggingFaceTB/SmolLM2-135M, -360M, -1.7B). Not to be confused with
# the original training configuration in huggingface/smollm, which says theta 10,000 and 2,048
# positions: that is the first stage, before the context was extended.
PRESETS: dict[str, dict[str, int | float | bool]] = {
    "135M": {"block_size": 8192, "init_std": 576**-0.5},
    "360M": {
        "block_size": 8192,
        "n_layer": 32,
        "n_head": 15,
        "n_kv_head": 5,
        "n_embd": 960,
        "intermediate_size": 2560,
        "init_std": 0.02,
    },
    "1.7B": {
        "block_size": 8192,
        "n_layer": 24,
        "n_head": 32,
        "n_kv_head": 32,
        "n_embd": 2048,
        "intermediate_size": 8192,
        "rope_theta": 130_000.0,
        "init_std": 0.02,
    },
    "13M": {
        "n_layer": 10,
        "n_head": 3,
        "n_kv_head": 1,
        "n_embd": 192,
        "intermediate_size": 512,
        "init_std": 192**-0.5,
    },
    "tiny": {
        "block_size": 256,
        "n_layer": 4,
        "n_head": 6,
        "n_kv_head": 2,
        "n_embd": 96,
        "intermediate_size": 256,
        "head_dim": 16,
        "init_std": 96**-0.5,
    },
}
