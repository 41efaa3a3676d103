"""The key-value cache: what attention has already computed for the tokens before.

Letters: B batch, T new tokens, S tokens stored so far, G key-value heads, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smol_scratch.arguments import checked
from smol_scratch.config import SmolLM2Config


class LayerCache:
    """The keys and values of one layer, in memory that is allocated once."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        """Take two buffers of shape (B, G, max_length, D), to be filled from the left."""
        self.k, self.v = k, v
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values, and return all that is stored.

        Args:
            k: keys, (B, G, T, D), already rotated.
            v: values, (B, G, T, D).

        Returns:
            Keys and values of all S + T tokens, two views of shape (B, G, S + T, D).

        Raises:
            ValueError: when batch, heads or dimension differ from the buffer's, or it is full.
        """
        start, end = self.length, self.length + k.shape[2]
        room = (*self.k.shape[:2], k.shape[2], self.k.shape[3])
        if k.shape != room or v.shape != room:
            raise ValueError(
                f"keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit a cache of "
                f"{tuple(self.k.shape)}: make the cache with this batch size and configuration"
            )
        if end > self.k.shape[2]:
            raise ValueError(
                f"{end} tokens do not fit a cache of max_length={self.k.shape[2]}: "
                "make a longer cache or pass fewer tokens"
            )
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


@checked
class KVCache:
    """The keys and values of every layer, handed to ``SmolLM2.forward`` and filled by it."""

    def __init__(
        self,
        config: SmolLM2Config,
        batch_size: int = 1,
        max_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate an empty cache.

        Args:
            config: the model's configuration.
            batch_size: sequences side by side (B).
            max_length: most tokens that will be stored; ``config.block_size`` unless told.
            dtype: of keys and values; that of the model's activations.
            device: where the model is.

        Raises:
            ValueError: when ``max_length`` is not between 1 and ``config.block_size``.
        """
        max_length = config.block_size if max_length is None else max_length
        if not 1 <= max_length <= config.block_size:
            raise ValueError(
                f"max_length={max_length}: must lie between 1 and block_size={config.block_size}"
            )
        shape = (batch_size, config.n_kv_head, max_length, config.head_dim)
        self.layers = [
            LayerCache(
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]

    @property
    def length(self) -> int:
        """Tokens stored so far (S): the position of the next token."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Bytes allocated, in all layers, keys and values together."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers)

    def truncate(self, length: int) -> None:
        """Forget everything from position ``length`` on.

        Raises:
            ValueError: when fewer tokens than that are stored.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length={length}: must lie between 0 and the {self.length} stored")
        for layer in self.layers:
            layer.length = length
