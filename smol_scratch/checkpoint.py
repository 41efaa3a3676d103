"""A checkpoint: a Hugging Face model folder, and beside it all that the next step depends on.

``AutoModelForCausalLM.from_pretrained`` loads the folder as it is. Three files more make the run
resumable bit for bit: ``training_state.json`` (step, place in the text, schedule, and the SHA-256
of every file) and, in a folder of their own, since some servers take every safetensors file beside
the model's for weights, ``training/optimizer.safetensors`` and ``training/generators.safetensors``.
A checkpoint is written under a temporary name and renamed when it is whole, so one that has its
name is whole. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from smol_scratch import assets
from smol_scratch.data import Tokens
from smol_scratch.hub import load_pretrained, write_model_files
from smol_scratch.packing import Mixture
from smol_scratch.recipe import TrainingConfig
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import RunOptions, TrainingState

FORMAT = "smol_scratch checkpoint, version 3"
# In version 2 the options of the sitting stood among the recipe's fields.
OLDER = "smol_scratch checkpoint, version 2"
STATE, OPTIMIZER, GENERATORS = (
    "training_state.json",
    "training/optimizer.safetensors",
    "training/generators.safetensors",
)
# What cannot change while a run goes on: the shape of its model, and how it began.
FIXED = (
    "preset",
    "init",
    "block_size",
    "init_std",
    "dropout",
    "seed",
    "held_out",
    "weights",
    "order",
    "mask_documents",
    "decay_matrices_only",
)


def save_checkpoint(
    state: TrainingState,
    folder: Path,
    tokenizer: SmolLM2Tokenizer | None = None,
    *,
    replace: bool = False,
) -> None:
    """Write a checkpoint. In a process group all processes call this, and the first one writes.

    The chat template of weights that a run began with (``--init``) comes along, and with it the
    token that ends an answer.

    Args:
        state: between two steps.
        folder: made here; its parent must exist or be makeable.
        tokenizer: stored beside the model.
        replace: allow ``folder`` to be there; it is taken away only when the new one is whole.

    Raises:
        FileExistsError: when ``folder`` is there and may not be replaced.
        OSError: when it cannot be written (a full disk, say); nothing is left of it then.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(state.model, options=options)
    # What FSDP gathered from parts of unequal size is a view of more, which safetensors refuses.
    weights = {
        name: w.clone() if w.untyped_storage().nbytes() > w.nbytes else w
        for name, w in weights.items()
    }
    moments = get_optimizer_state_dict(state.model, state.optimizer, options=options)
    generators = _generators(state)
    if state.rank == 0:
        _write(state, folder, weights, moments, generators, tokenizer, replace)
    if state.world_size > 1:
        dist.barrier()


def _write(
    state: TrainingState,
    folder: Path,
    weights: dict[str, Any],
    moments: dict[str, Any],
    generators: dict[str, Tensor],
    tokenizer: SmolLM2Tokenizer | None,
    replace: bool,
) -> None:
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} is already there: name another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{name}.{part}": tensor
        for name, parts in moments["state"].items()
        for part, tensor in parts.items()
    }
    needed = sum(t.nbytes for t in (*weights.values(), *flat.values()))
    if (free := shutil.disk_usage(folder.parent).free) < needed:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; make "
            "room, or keep fewer with --keep",
            str(folder),
        )
    try:
        with assets.written_whole(folder) as new:
            (new / OPTIMIZER).parent.mkdir(parents=True)
            template = getattr(state.model, "chat_template", None)
            write_model_files(
                weights, state.model.config, new, tokenizer=tokenizer, chat_template=template
            )
            save_file(flat, new / OPTIMIZER, metadata={"format": "pt"})
            save_file(generators, new / GENERATORS, metadata={"format": "pt"})
            content = {
                "format": FORMAT,
                "step": state.step,
                "config": fields_to_json(state.config),
                "options": fields_to_json(state.options),
                "loader": state.loader.state_dict(),
                "text_sha256": state.text_sha256,
                "scaler": state.scaler.state_dict(),
                "param_groups": moments["param_groups"],
                "world_size": state.world_size,
                "torch": torch.__version__,
                "files": {
                    path.relative_to(new).as_posix(): assets.sha256(path)
                    for path in sorted(new.rglob("*"))
                    if path.is_file()
                },
            }
            content["sha256"] = _digest(content)
            (new / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except SafetensorError as error:  # what its writer makes of a full disk, say
        raise OSError(f"{folder} cannot be written: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a training state as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _generators(state: TrainingState) -> dict[str, Tensor]:
    """Return the states of PyTorch's generators, of all processes, in the first of them."""
    mine = {f"rank{state.rank}.cpu": torch.get_rng_state()}
    if state.device.type != "cpu":
        mine[f"rank{state.rank}.device"] = torch.get_device_module(state.device).get_rng_state()
    if state.world_size == 1:
        return mine
    every: list[Any] = [None] * state.world_size
    dist.all_gather_object(every, mine)
    return {name: tensor for theirs in every for name, tensor in theirs.items()}


def fields_to_json(settings: TrainingConfig | RunOptions) -> dict[str, Any]:
    """Return the fields of a recipe or of options; paths become strings, tuples lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(settings).items()}


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's ``training_state.json``.

    Its ``config`` is an object, a TrainingConfig, and so are its ``options``, RunOptions.

    Raises:
        MissingAssetError: when ``folder`` is not there, or holds a model and no training state.
        CorruptAssetError: when it is damaged or of another kind.
    """
    if not folder.is_dir():
        raise assets.MissingAssetError(f"{folder}: no such checkpoint folder")
    if not (folder / STATE).is_file():
        raise assets.MissingAssetError(
            f"{folder} holds no {STATE}: not a checkpoint of a run. If it is a model folder, "
            f"--init {folder} starts a new run from its weights"
        )
    try:
        content = json.loads((folder / STATE).read_text("utf-8"))
        found = content["format"] if isinstance(content, dict) else type(content).__name__
        if found not in (FORMAT, OLDER):
            raise assets.CorruptAssetError(
                f"{folder / STATE}: format {found!r:.60}, not {FORMAT!r}"
            )
        if content.pop("sha256", None) != _digest(content):
            raise assets.CorruptAssetError(
                f"{folder / STATE} is damaged: its content does not have the SHA-256 that it "
                "states; go on from an earlier checkpoint"
            )
        fields = content["config"]
        if found == OLDER:
            names = {field.name for field in dataclasses.fields(RunOptions)}
            content["options"] = {name: fields.pop(name) for name in names & set(fields)}
        for section in (fields, content["options"]):
            for name in {"ckpt", "save", "text", "metrics"} & set(section):
                section[name] = None if section[name] is None else Path(section[name])
        for name, kind in {"shards": Path, "weights": float}.items():
            if name in fields:
                fields[name] = tuple(map(kind, fields[name]))
        for name, kind in _CONTENT.items():
            if type(content[name]) is not kind:
                raise ValueError(f"{name}={content[name]!r:.60} must be of type {kind.__name__}")
        if content["step"] < 0 or content["world_size"] < 1:
            raise ValueError("no run has made fewer steps than 0, or has fewer processes than 1")
        content["config"] = TrainingConfig(**fields)
        content["options"] = RunOptions(**content["options"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, assets.CorruptAssetError):
            raise
        raise assets.CorruptAssetError(f"{folder / STATE} is damaged: {error!r}") from error
    return content


def _check_files(folder: Path, content: dict[str, Any]) -> None:
    """Check that all files of a checkpoint are there and undamaged."""
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise assets.CorruptAssetError(f"{folder / name} is missing")
        if (found := assets.sha256(folder / name)) != expected:
            raise assets.CorruptAssetError(
                f"{folder / name} is damaged: SHA-256 {found}, expected {expected}; go on from an "
                "earlier checkpoint"
            )


def is_whole(folder: Path, config: TrainingConfig) -> bool:
    """Say whether a checkpoint has all its files, undamaged, and is of a run by this recipe."""
    try:
        content = read_state(folder)
        _check_files(folder, content)
    except (OSError, assets.CorruptAssetError):
        return False
    length = config.schedule_steps or config.steps  # as a run's own recipe has it
    return bool(content["config"] == dataclasses.replace(config, schedule_steps=length))


# What a training state has, beside its format, recipe and options. Its SHA-256 says that it was not
# damaged on the way, not that it was written by us.
_CONTENT = {
    "step": int,
    "loader": dict,
    "text_sha256": str,
    "scaler": dict,
    "param_groups": list,
    "world_size": int,
    "files": dict,
}


def load_checkpoint(
    folder: Path,
    tokens: Tokens | Mixture,
    held_out: Tokens | None = None,
    config: TrainingConfig | None = None,
    options: RunOptions | None = None,
) -> TrainingState:
    """Return the state of a run, ready for the step after the last one made.

    Args:
        folder: the checkpoint.
        tokens: the text that the run was begun with.
        held_out: to look at, or None.
        config: the recipe to go on with; the checkpoint's own unless given.
        options: what is asked of this sitting; the checkpoint's own unless given.

    Raises:
        MissingAssetError: when there is no such checkpoint.
        CorruptAssetError: when a file of it is missing, damaged, or of another model.
        ValueError: when text or recipe do not go with it, or another number of processes would
            change the batch without a word.
    """
    content = read_state(folder)
    before: TrainingConfig = content["config"]
    config, options = config or before, options or content["options"]
    for name in FIXED:
        if getattr(config, name) != getattr(before, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r}: the run in {folder} was begun with "
                f"{getattr(before, name)!r}, which cannot change; leave it out"
            )
    processes = dist.get_world_size() if dist.is_initialized() else 1
    same = all(getattr(config, n) == getattr(before, n) for n in ("batch_size", "accumulate"))
    if same and processes != content["world_size"]:
        sequences = config.batch_size * config.accumulate * content["world_size"]
        raise ValueError(
            f"the run in {folder} had {content['world_size']} process(es), this one has "
            f"{processes}: with --batch-size {config.batch_size} for each, an update would no "
            f"longer be of {sequences} sequences; give --batch-size or --accumulate another "
            f"value, best so that --batch-size × --accumulate × {processes} is {sequences}"
        )
    _check_files(folder, content)
    model = load_pretrained(folder, quiet=True)
    state = TrainingState.create(config, tokens, held_out, options, model=model)
    if state.text_sha256 != content["text_sha256"]:
        raise ValueError(
            f"the run in {folder} was begun with another text (its tokens' SHA-256 begins with "
            f"{content['text_sha256'][:12]}, this one's with {state.text_sha256[:12]})"
        )
    # In version 2 these two stood beside the model.
    optimizer, generators = (
        folder / (name if name in content["files"] else Path(name).name)
        for name in (OPTIMIZER, GENERATORS)
    )
    state.loader.load_state_dict(content["loader"])
    state.step = content["step"]
    try:
        _set_moments(state, optimizer, content["param_groups"])
        if state.precision.scaler and content["scaler"]:
            state.scaler.load_state_dict(content["scaler"])
        _set_generators(state, load_file(generators))
    except assets.CorruptAssetError:
        raise
    except Exception as error:  # PyTorch raises whatever does not fit leads to
        raise assets.CorruptAssetError(
            f"{folder} does not hold the whole state of a run: {error!r}; go on from an earlier "
            "checkpoint"
        ) from error
    return state


def _set_moments(state: TrainingState, path: Path, groups: list[dict[str, Any]]) -> None:
    try:
        flat = load_file(path)
    except SafetensorError as error:
        raise assets.CorruptAssetError(f"{path} is damaged: {error}") from error
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        weight, _, part = name.rpartition(".")
        moments.setdefault(weight, {})[part] = tensor
    # A checkpoint from before the first step has no moments; neither has a new optimizer.
    if not moments:
        return
    shapes = {name: tuple(weight.shape) for name, weight in state.model.named_parameters()}
    if {name: tuple(parts["exp_avg"].shape) for name, parts in moments.items()} != shapes:
        raise assets.CorruptAssetError(f"{path} belongs to another model")
    if sorted(name for group in groups for name in group["params"]) != sorted(shapes):
        # PyTorch would pass over it.
        raise ValueError("param_groups does not name each weight once")
    content: dict[str, Any] = {"state": moments, "param_groups": groups}
    options = StateDictOptions(full_state_dict=True)
    asked = [
        {name: setting for name, setting in group.items() if name != "params"}
        for group in state.optimizer.param_groups
    ]
    set_optimizer_state_dict(state.model, state.optimizer, content, options=options)
    for group, settings in zip(state.optimizer.param_groups, asked, strict=True):
        group.update(settings)  # the recipe's, which may be another now, not the checkpoint's


def _set_generators(state: TrainingState, states: dict[str, Tensor]) -> None:
    """Go on with each process's own generators; one that is new keeps the seed that it has."""
    if (mine := states.get(f"rank{state.rank}.cpu")) is not None:
        torch.set_rng_state(mine)
    device = states.get(f"rank{state.rank}.device")
    if device is not None and state.device.type != "cpu":
        torch.get_device_module(state.device).set_rng_state(device)
