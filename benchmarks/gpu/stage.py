"""What a stage of the GPU run is given: device, time left, and a file that grows with each find.

A stage consists of parts. A part that fails is written down with its traceback, one for which no
time is left is written down as left out, and in both cases the next one is tried.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from smol_scratch import assets
from smol_scratch.doctor import anonymous

# What became of a stage. "partly": a part of it failed or was left out; "stopped": its time was
# up before it ended; "died": its process ended without a word; "skipped": it was not begun.
STATES = ("ok", "partly", "failed", "stopped", "died", "skipped")


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no NaN, no tensors, six digits, paths without the user."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    return anonymous(str(value))


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a stage's file: it is there whole or not at all."""
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    assets.write_atomically(path, (text + "\n").encode())


class Stage:
    """One stage at work.

    Attributes:
        device: to be measured.
        preset: shape of the model.
        scratch: folder for what nobody keeps, checkpoints above all.
        steps: of the long run.
        result: what was found.
        notes: what was cut or left out, and why.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        preset: str,
        until: float,
        scratch: Path,
        steps: int = 5050,
    ) -> None:
        """Begin a stage.

        Args:
            path: of its file.
            device: see above.
            preset: see above.
            until: when its time is up, as ``time.time`` counts.
            scratch: see above.
            steps: see above.
        """
        self.path, self.device, self.preset = path, device, preset
        self.until, self.scratch, self.steps = until, scratch, steps
        self.result: dict[str, Any] = {}
        self.notes: list[str] = []
        self.errors: dict[str, str] = {}
        self.begun = time.time()

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.time()

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""
        torch.get_device_module(self.device).synchronize()

    def note(self, text: str) -> None:
        """Say what was cut, left out or missing."""
        print(f"  {text}", flush=True)
        self.notes.append(text)
        self.keep()

    def keep(self, state: str = "stopped", **found: Any) -> None:
        """Write down what is known so far; whoever is stopped from here on has said that much."""
        self.result |= found
        content = {
            "stage": self.path.stem,
            "state": state,
            "seconds": round(time.time() - self.begun, 1),
            "device": self.device.type,
            "card": card_name(self.device),
            "torch": torch.__version__,
            "preset": self.preset,
            "notes": self.notes,
            "errors": self.errors,
            "result": self.result,
        }
        write(self.path, content)

    def part(self, name: str, function: Callable[[], Any], needs: float = 0.0) -> Any:
        """Do a part and keep what it returns; None where it failed or there was no time.

        Args:
            name: its key in the result.
            function: returns what JSON can hold.
            needs: seconds without which it is not begun.
        """
        if self.left() < needs:
            self.note(f"{name}: left out, {self.left():.0f} s are left and it takes {needs:.0f}")
            return None
        begun = time.time()
        try:
            found = function()
        except Exception as error:  # whatever is broken here must not hide the rest
            self.errors[name] = traceback.format_exc()
            self.note(f"{name}: failed, {type(error).__name__}: {one_line(str(error))}")
            return None
        self.keep(**{name: found})
        print(f"  {name}: {time.time() - begun:.1f} s", flush=True)
        return found

    def end(self) -> None:
        """Write down that nothing more comes."""
        self.keep("partly" if self.errors or self.notes else "ok")

    def fail(self) -> None:
        """Write down the error that is under way."""
        self.errors["the stage itself"] = traceback.format_exc()
        self.keep("failed")


def one_line(text: str) -> str:
    """Return the beginning of a text in one line."""
    return " ".join(text.split())[:300]


def card_name(device: torch.device) -> str:
    """Return what CUDA calls the card, or "" where there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
