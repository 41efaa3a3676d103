"""Tensors that several processes hold in parts, written and read in parts: nobody holds the whole.

It is PyTorch's own distributed checkpointing (``torch.distributed.checkpoint``) on its Hugging Face
storage: each process writes its parts into safetensors files of its own, which say where in the
whole they belong, and reads what it needs from everybody's. The usual storage keeps that table in a
pickle; here nothing is pickled. Only tensors may be given: anything else would be pickled into
the file. And one thread writes in each process: with several, PyTorch 2.13 loses their errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from smol_scratch import assets

FOLDER = "sharded"  # of the parts, in a checkpoint
OPTIMIZER = "optimizer."  # begins the names there that are no weights

# What the first process does around the writing: it makes a folder and yields it, is sent the
# SHA-256 of all files in it by their names, and ends when the whole has its name.
Whole = Generator[Path, dict[str, str], None]


class _Writer(HuggingFaceStorageWriter):
    """Writes into the folder that the first process makes, and tells it each file's SHA-256."""

    def __init__(self, files: dict[str, int], whole: Whole) -> None:
        super().__init__("", fqn_to_index_mapping=files, save_distributed=True)
        self.whole = whole

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan  # the folder is the first process's to make

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        folder = next(self.whole)
        folder.mkdir()
        return [
            dataclasses.replace(plan, storage_data=plan.storage_data | {"folder": folder})
            for plan in super().prepare_global_plan(plans)
        ]

    def write_data(self, plan: Any, planner: Any) -> Any:
        self.path = plan.storage_data["folder"]
        results = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in results}
        hashes = {name: assets.sha256(Path(self.path, name)) for name in names}
        written: torch.futures.Future[Any] = torch.futures.Future()
        written.set_result([hashes])
        return written

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        hashes = {n: found for [theirs] in results for n, found in theirs.items()}
        with contextlib.suppress(StopIteration):
            self.whole.send(hashes)


class Background:
    """Writes sharded tensors while training goes on, one set at a time. All processes do the same.

    It has a process group of its own: what two threads exchange would mix in one.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")
        self._under_way: tuple[Future[Any], Whole, Path] | None = None

    def begin(
        self, tensors: dict[str, Tensor], files: dict[str, int], target: Path, whole: Whole
    ) -> None:
        """Copy this process's parts and begin to write them; wait first for the set before.

        Args:
            tensors: by their names; parts are DTensors, what is no DTensor is the same everywhere.
            files: number of the file, from 1, for each tensor.
            target: what is written, for errors.
            whole: of the first process; elsewhere it is never begun.
        """
        self.wait()
        future = dcp.async_save(
            tensors, storage_writer=_Writer(files, whole), process_group=self.group
        )
        assert isinstance(future, Future)  # the copy is made, and not in a thread of its own
        self._under_way = future, whole, target

    def done(self) -> bool:
        """Say whether nothing more is being written by this process, whole or failed."""
        return self._under_way is None or self._under_way[0].done()

    def failed(self) -> bool:
        """Say whether what was being written has failed; ``wait`` says how."""
        return self._under_way is not None and self.done() and bool(self._under_way[0].exception())

    def wait(self) -> None:
        """Wait until what is being written is whole.

        Raises:
            OSError: when it could not be written by some process; then nothing is left of it.
        """
        if self._under_way is None:
            return
        (future, whole, target), self._under_way = self._under_way, None
        try:
            future.result()
        except dcp.CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if isinstance(cause, OSError) and cause.errno and cause.filename is None:
                raise OSError(cause.errno, cause.strerror, str(target)) from None
            if isinstance(cause, OSError | ValueError):
                raise cause from None
            raise OSError(f"{target} cannot be written: {cause!r:.500}") from error
        except RuntimeError as error:  # another process is gone
            raise OSError(f"{target} was not written whole: {error}") from error
        finally:
            whole.close()

    def close(self) -> None:
        """Wait, and leave the process group; errors are those that ``wait`` would have raised."""
        try:
            self.wait()
        finally:
            dist.destroy_process_group(self.group)


def shapes(folder: Path) -> dict[str, torch.Size]:
    """Return the shapes of all tensors whose parts, or wholes, lie in a folder's files.

    Raises:
        CorruptAssetError: when a file is damaged, or parts are missing.
    """
    found = {}
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name, tensor in stored.items():
            assert isinstance(tensor, TensorStorageMetadata)
            if not _is_tiled(tensor):
                raise ValueError(f"parts of {name} are missing")
            found[name] = tensor.size
    except Exception as error:  # whatever foreign bytes lead to
        raise assets.CorruptAssetError(f"{folder} is damaged: {error}") from error
    return found


def _is_tiled(tensor: TensorStorageMetadata) -> bool:
    """Say whether the parts follow one another along the first dimension without a gap."""
    end = 0
    for chunk in sorted(tensor.chunks, key=lambda chunk: tuple(chunk.offsets)):
        if tensor.size and chunk.sizes.numel():
            if chunk.offsets != (end, *[0] * (len(tensor.size) - 1)):
                return False
            if chunk.sizes[1:] != tensor.size[1:]:
                return False
            end += chunk.sizes[0]
    return not tensor.size or end == tensor.size[0] or not tensor.size.numel()


def read_into(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool = False) -> None:
    """Fill tensors, each process its own parts of them, from the files of a folder.

    Args:
        tensors: by their names, all of which the files have; their content is replaced.
        folder: of the safetensors files, in parts or not.
        alone: this process reads for itself, whatever others do.

    Raises:
        CorruptAssetError: when they cannot be filled.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(
                dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone
            )
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise assets.CorruptAssetError(f"{folder} is damaged: {cause}") from error


def read_whole(folder: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return tensors as wholes; only for a process that can hold them.

    Args:
        folder: of the files.
        names: of the tensors wanted; all unless told.

    Raises:
        CorruptAssetError: when a file is damaged, or parts are missing.
    """
    found = shapes(folder)
    wanted = found if names is None else {name: found[name] for name in names}
    tensors = {name: torch.zeros(size) for name, size in wanted.items()}
    read_into(tensors, folder, alone=True)
    return tensors
