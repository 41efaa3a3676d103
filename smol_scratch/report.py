"""What ``info`` prints of a model: configuration, parameters, memory and FLOPs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from smol_scratch import accounting
from smol_scratch.config import SmolLM2Config
from smol_scratch.hub import load_pretrained


def print_report(
    config: SmolLM2Config | Path, title: str, dtype: torch.dtype, batch: int, length: int
) -> None:
    """Print everything.

    Args:
        config: a configuration, or weights that are counted as they are.
        title: of the whole.
        dtype: of the matrix products and of the key-value cache.
        batch: sequences in a batch.
        length: tokens in a sequence.

    Raises:
        ValueError: for a length that the model cannot take, or damaged weights.
        OSError: for weights that cannot be read.
    """
    if isinstance(config, Path):
        model = load_pretrained(config, quiet=True)
        config, count = model.config, accounting.counted_parameters(model)
    else:
        count = accounting.parameters(config)
    if length > config.block_size:
        raise ValueError(
            f"length={length}: must be at most {config.block_size}, the model's context"
        )
    print_configuration(config, title)
    print()
    print(accounting.parameter_table(count))
    print()
    print_proportions(config)
    print()
    print_memory(config, batch, length, dtype)
    print()
    print_flops(config, length)


def print_configuration(config: SmolLM2Config, title: str) -> None:
    """Print every field."""
    print(f"Configuration: {title}")
    for field in dataclasses.fields(config):
        print(f"  {field.name + ':':<20}{getattr(config, field.name)}")


def print_proportions(config: SmolLM2Config) -> None:
    """Print the shape's ratios, and what tying the head saves."""
    ratios = accounting.ratios(config)
    print(f"aspect ratio {ratios['aspect ratio']:.1f}, head ratio {ratios['head ratio']:.0f}, "
          f"embedding share {ratios['embedding share']:.2%}")  # fmt: skip
    print(f"with a tied head {accounting.total_parameters(config, tied=True):,} parameters, "
          f"with an untied one {accounting.total_parameters(config, tied=False):,}")  # fmt: skip


def print_memory(config: SmolLM2Config, B: int, T: int, dtype: torch.dtype) -> None:
    """Print what a training step holds, and what the key-value cache does."""
    kind = str(dtype).removeprefix("torch.")
    print(f"Memory of a training step with AdamW, {B} × {T} tokens, products in {kind}")
    for name, size in accounting.training_memory(config, B, T, dtype).items():
        name = "peak (never is all there at once)" if name == "peak" else name
        print(f"  {name:<40}{size / 1e6:>12,.2f} MB")
    cache = accounting.kv_cache_bytes(config, 1, dtype)
    whole = accounting.kv_cache_bytes(config, config.block_size, dtype)
    print(f"key-value cache in {kind}: {cache:,} bytes a token, "
          f"{whole / 1e6:,.2f} MB for {config.block_size:,} tokens")  # fmt: skip


def print_flops(config: SmolLM2Config, T: int) -> None:
    """Print the FLOPs of one sequence: by part, and by PaLM's formula."""
    products = accounting.matrix_products(config, 1, T)
    print(f"Matrix products of one sequence of {T} tokens, in FLOPs")
    print(f"  {'':<14}{'forward':>22}{'backward':>22}")
    for part in dict.fromkeys(product.part for product in products):
        mine = [product for product in products if product.part == part]
        forward = sum(product.flops for product in mine if product.direction == "forward")
        backward = sum(product.flops for product in mine) - forward
        print(f"  {part:<14}{forward:>22,}{backward:>22,}")
    for name, flops in accounting.palm_against_hand(config, T).items():
        print(f"  {name:<36}{flops:>22,}")
