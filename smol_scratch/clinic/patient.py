"""A copy of the package with a fault in it, imported beside the real one under the same name.

The copy lies in a folder of its own, where it may be read and even mended; the checkout is never
written to. While ``inside`` is open, ``import smol_scratch`` means the copy.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from smol_scratch import assets

HERE = Path(__file__).resolve().parent.parent  # the package
NAME = "smol_scratch"
DATA_AT = "SMOL_SCRATCH_DATA"
# What no case touches: the walk's furniture, the clinic itself, the command line.
LEFT_OUT = {"__main__.py", "commands.py", "terminal.py", "doctor.py", "demo.py", "space.py"}
# What is read by the copied modules beside Python.
DATA = ("doctor_reference.json", "corpus_corrections.tsv")


def sources() -> dict[str, str]:
    """Return the modules that a copy consists of: file name to text."""
    files = sorted(path for path in HERE.glob("*.py") if path.name not in LEFT_OUT)
    return {path.name: path.read_text("utf-8") for path in files}


def admit(folder: Path, faults: Any = ()) -> Path:
    """Write a copy of the package into a new folder, and plant a fault in it.

    Args:
        folder: gets the package ``smol_scratch``.
        faults: what to exchange: (file, old, new) each; none for a healthy copy.

    Raises:
        ValueError: for a text that does not stand exactly once in its file.
    """
    texts = sources()
    for file, old, new in faults:
        if (found := texts[file].count(old)) != 1:
            raise ValueError(f"{file}: {old!r} occurs {found} times, not once")
        texts[file] = texts[file].replace(old, new)
    target = folder / NAME
    target.mkdir(parents=True)
    for name, text in texts.items():
        (target / name).write_text(text, "utf-8")
    for name in DATA:
        shutil.copyfile(HERE / name, target / name)
    return folder


def _ours() -> dict[str, ModuleType]:
    """Take what is loaded under the package's name out of Python's table, and return it."""
    names = [name for name in sys.modules if name.split(".")[0] == NAME]
    return {name: sys.modules.pop(name) for name in names}


class Patient:
    """A copied package that can be called.

    Attributes:
        folder: in which the copy lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, ModuleType] = {}
        self._open = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the package's name mean the copy for a while."""
        if self._open:
            yield
            return
        healthy, no_bytecode = _ours(), sys.dont_write_bytecode
        data = os.environ.get(DATA_AT)
        os.environ[DATA_AT] = str(assets.data_dir())  # the copy lies elsewhere
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        sys.dont_write_bytecode = True  # the reader may edit a file twice within a second
        importlib.invalidate_caches()
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self._modules = _ours()
            sys.modules.update(healthy)
            sys.path.remove(str(self.folder))
            sys.dont_write_bytecode = no_bytecode
            if data is None:
                del os.environ[DATA_AT]
            else:
                os.environ[DATA_AT] = data

    def __getattr__(self, module: str) -> Any:
        """Return a module of the copy: ``patient.model``."""
        if module.startswith("_"):
            raise AttributeError(module)
        with self.inside():
            return importlib.import_module(f"{NAME}.{module}")
