"""A checkpoint: a Hugging Face model folder, and beside it all that the next step depends on.

``AutoModelForCausalLM.from_pretrained`` loads the folder as it is. Three files more make the run
resumable bit for bit: ``training_state.json`` (step, place in the text, schedule, and the SHA-256
of every file) and, in a folder of their own, since some servers take every safetensors file beside
the model's for weights, ``training/optimizer.safetensors`` and ``training/generators.safetensors``.
A checkpoint is written under a temporary name and renamed when it is whole, so one that has its
name is whole. Nothing is pickled.

A run that is sharded (``--shard``) writes all but the tensors so; weights and moments stand in
``sharded/``, where each process writes and reads its own parts (``sharded.py``). Either kind of run
goes on from either kind of checkpoint, and ``export`` makes a model folder of both.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from types import TracebackType
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

from smol_scratch import assets, sharded
from smol_scratch.data import Tokens
from smol_scratch.hub import describe_model, load_empty, load_pretrained, write_model_files
from smol_scratch.packing import Mixture
from smol_scratch.recipe import TrainingConfig
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import RunOptions, TrainingState

FORMAT = "smol_scratch checkpoint, version 3"
# In version 2 the options of the sitting stood among the recipe's fields.
OLDER = "smol_scratch checkpoint, version 2"
SHARDED = "smol_scratch sharded checkpoint, version 1"
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
    """Write a checkpoint. In a process group all processes call this.

    Of a sharded run each writes its parts, else the first one writes. The chat template of weights
    that a run began with (``--init``) comes along, and with it the token that ends an answer.

    Args:
        state: between two steps.
        folder: made here; its parent must exist or be makeable.
        tokenizer: stored beside the model.
        replace: allow ``folder`` to be there; it is taken away only when the new one is whole.

    Raises:
        FileExistsError: when ``folder`` is there and may not be replaced.
        OSError: when it cannot be written (a full disk, say); nothing is left of it then.
    """
    with Saving(state) as saving:
        saving.begin(folder, tokenizer, replace=replace)
        saving.wait()


class Saving:
    """Writes the checkpoints of a run, one at a time; those of a sharded run while it goes on.

    All processes do the same. At its end what is being written is waited for.
    """

    def __init__(self, state: TrainingState) -> None:
        """Prepare to save a run's checkpoints.

        Args:
            state: the run's, from now on.
        """
        self.state = state
        self.background = sharded.Background() if state.sharded else None
        self._begun: Path | None = None

    def __enter__(self) -> Saving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.background is not None:
            try:
                self.background.close()
            except OSError:
                if error is None:  # else that one comes first
                    raise

    def begin(
        self, folder: Path, tokenizer: SmolLM2Tokenizer | None = None, *, replace: bool = False
    ) -> None:
        """Write a checkpoint, or begin to; the arguments and errors are ``save_checkpoint``'s."""
        state = self.state
        if self.background is not None:
            _begin_sharded(state, folder, tokenizer, replace, self.background)
        else:
            _save_plain(state, folder, tokenizer, replace)
        self._begun = folder

    def done(self) -> bool:
        """Say whether a checkpoint was begun that this process has nothing more to do for."""
        return self._begun is not None and (self.background is None or self.background.done())

    def failed(self) -> bool:
        """Say whether this process knows that one could not be written; ``wait`` says how."""
        return self.background is not None and self.background.failed()

    def wait(self) -> Path | None:
        """Wait until what was begun is whole; return its folder, None where nothing was begun.

        Raises:
            OSError: when it could not be written; nothing is left of it then.
        """
        folder, self._begun = self._begun, None
        if self.background is not None:
            self.background.wait()
        return folder


def _save_plain(
    state: TrainingState, folder: Path, tokenizer: SmolLM2Tokenizer | None, replace: bool
) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(state.model, options=options)
    moments = _moments(state, options)
    generators = _generators(state)
    if state.rank == 0:
        flat = _flat(moments)
        content = _content(state, moments["param_groups"], FORMAT)
        _check_place(folder, replace, [*weights.values(), *flat.values()])
        try:
            with assets.written_whole(folder) as new:
                (new / OPTIMIZER).parent.mkdir(parents=True)
                template = getattr(state.model, "chat_template", None)
                write_model_files(
                    weights, state.model.config, new, tokenizer=tokenizer, chat_template=template
                )
                save_file(flat, new / OPTIMIZER, metadata={"format": "pt"})
                save_file(generators, new / GENERATORS, metadata={"format": "pt"})
                _write_state(new, content, {})
        except SafetensorError as error:  # what its writer makes of a full disk, say
            raise OSError(f"{folder} cannot be written: {error}") from error
    if state.world_size > 1:
        dist.barrier()


def _begin_sharded(
    state: TrainingState,
    folder: Path,
    tokenizer: SmolLM2Tokenizer | None,
    replace: bool,
    background: sharded.Background,
) -> None:
    """Copy this process's parts, and write them from a thread while training goes on."""
    weights: dict[str, Any] = get_model_state_dict(state.model)
    moments = _moments(state, StateDictOptions())
    tensors = weights | {sharded.OPTIMIZER + name: t for name, t in _flat(moments).items()}
    content = _content(state, moments["param_groups"], SHARDED)
    generators = _generators(state)

    def whole() -> sharded.Whole:
        _check_place(folder, replace, tensors.values())
        try:
            with assets.written_whole(folder) as new:
                (new / GENERATORS).parent.mkdir(parents=True)
                template = getattr(state.model, "chat_template", None)
                describe_model(state.model.config, new, tokenizer=tokenizer, chat_template=template)
                save_file(generators, new / GENERATORS, metadata={"format": "pt"})
                hashes = yield new / sharded.FOLDER
                found = {f"{sharded.FOLDER}/{name}": hashes[name] for name in sorted(hashes)}
                _write_state(new, content, found)
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written: {error}") from error

    files = {name: 1 if name in weights else 2 for name in tensors}
    background.begin(tensors, files, folder, whole())


def _moments(state: TrainingState, options: StateDictOptions) -> dict[str, Any]:
    if not state.optimizer.state:  # PyTorch would make it, and count a step
        return {"state": {}, "param_groups": []}
    return dict(get_optimizer_state_dict(state.model, state.optimizer, options=options))


def _check_place(folder: Path, replace: bool, tensors: Iterable[Tensor]) -> None:
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} is already there: name another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(t.numel() * t.element_size() for t in tensors)  # of all processes
    if (free := shutil.disk_usage(folder.parent).free) < needed:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; make "
            "room, or keep fewer with --keep",
            str(folder),
        )


def _flat(moments: dict[str, Any]) -> dict[str, Tensor]:
    """Return an optimizer's tensors by the names of their weight and their part."""
    return {
        f"{name}.{part}": tensor
        for name, parts in moments["state"].items()
        for part, tensor in parts.items()
    }


def _content(state: TrainingState, groups: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return what a training state says, but for its files."""
    return {
        "format": kind,
        "step": state.step,
        "config": fields_to_json(state.config),
        "options": fields_to_json(state.options),
        "loader": state.loader.state_dict(),
        "text_sha256": state.text_sha256,
        "scaler": state.scaler.state_dict(),
        "param_groups": groups,
        "world_size": state.world_size,
        "torch": torch.__version__,
    }


def _write_state(new: Path, content: dict[str, Any], known: dict[str, str]) -> None:
    """Write the training state; the SHA-256 of some files, by their names, are known already."""
    files = {
        name: known.get(name) or assets.sha256(path)
        for path in sorted(new.rglob("*"))
        if path.is_file() and (name := path.relative_to(new).as_posix())
    }
    content = content | {"files": files}
    content["sha256"] = _digest(content)
    (new / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
        if found not in (FORMAT, OLDER, SHARDED):
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
    """Check that all files of a checkpoint are there and undamaged.

    Of several processes each checks a share, and all learn what was found.
    """
    rank, processes = _rank_of()
    problem = None
    for name in sorted(content["files"])[rank::processes]:
        if not (folder / name).is_file():
            problem = f"{folder / name} is missing"
        elif (found := assets.sha256(folder / name)) != (expected := content["files"][name]):
            problem = (
                f"{folder / name} is damaged: SHA-256 {found}, expected {expected}; go on from an "
                "earlier checkpoint"
            )
    if processes > 1:
        problems = [problem] * processes
        dist.all_gather_object(problems, problem)
        problem = next((each for each in problems if each), None)
    if problem:
        raise assets.CorruptAssetError(problem)


def _rank_of() -> tuple[int, int]:
    """Return this process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


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
    processes = _rank_of()[1]
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
    by_parts = options.shard and processes > 1
    model = load_empty(folder) if by_parts else load_pretrained(folder, quiet=True)
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
        drawn = load_file(generators)
        flat = (
            _read_parts(state, folder, optimizer.parent, drawn)
            if by_parts
            else _read_moments(folder / sharded.FOLDER, optimizer)
        )
        _set_moments(state, flat, content["param_groups"])
        if state.precision.scaler and content["scaler"]:
            state.scaler.load_state_dict(content["scaler"])
        _set_generators(state, drawn)
    except assets.CorruptAssetError:
        raise
    except Exception as error:  # PyTorch raises whatever does not fit leads to
        raise assets.CorruptAssetError(
            f"{folder} does not hold the whole state of a run: {error!r}; go on from an earlier "
            "checkpoint"
        ) from error
    return state


def _read_moments(parts: Path, path: Path) -> dict[str, Tensor]:
    """Return an optimizer's tensors, whole, from where they are: in parts, or in a file."""
    if parts.is_dir():
        names = [name for name in sharded.shapes(parts) if name.startswith(sharded.OPTIMIZER)]
        whole = sharded.read_whole(parts, names)
        return {name.removeprefix(sharded.OPTIMIZER): tensor for name, tensor in whole.items()}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise assets.CorruptAssetError(f"{path} is damaged: {error}") from error


def _read_parts(
    state: TrainingState, folder: Path, beside: Path, others: Container[str]
) -> dict[str, Tensor]:
    """Fill this process's parts of the weights, and return those of the optimizer's tensors.

    A plain checkpoint is read by parts too; its optimizer's file lies in the folder ``beside``,
    where tensors with ``others`` of the names are too.
    """
    weights: dict[str, Any] = get_model_state_dict(state.model)
    parts, prefix = folder / sharded.FOLDER, sharded.OPTIMIZER
    if not parts.is_dir():
        parts, prefix = beside, ""
    found = sharded.shapes(parts)
    moments: dict[str, Tensor] = {}
    for name in found:
        if name.startswith(prefix) and name not in weights and name not in others:
            like = weights.get(name.removeprefix(prefix).rpartition(".")[0])
            if like is None or like.shape != found[name]:
                like = torch.empty(found[name])
            moments[name] = torch.empty_like(like)
    sharded.read_into(weights, parts if prefix else folder)
    sharded.read_into(moments, parts)
    return {name.removeprefix(prefix): tensor for name, tensor in moments.items()}


def _set_moments(state: TrainingState, flat: dict[str, Tensor], groups: list[Any]) -> None:
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        weight, _, part = name.rpartition(".")
        moments.setdefault(weight, {})[part] = tensor
    # A checkpoint from before the first step has no moments; neither has a new optimizer.
    if not moments:
        return
    shapes = {name: tuple(weight.shape) for name, weight in state.model.named_parameters()}
    if {name: tuple(parts["exp_avg"].shape) for name, parts in moments.items()} != shapes:
        raise assets.CorruptAssetError("the optimizer's tensors belong to another model")
    if sorted(name for group in groups for name in group["params"]) != sorted(shapes):
        # PyTorch would pass over it.
        raise ValueError("param_groups does not name each weight once")
    content: dict[str, Any] = {"state": moments, "param_groups": groups}
    options = StateDictOptions(full_state_dict=not state.sharded)
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
