"""Seconds on a device: the one place that knows how a card is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def captured(call: Callable[[], object], times: int) -> Callable[[], object]:
    """Return so many calls as one CUDA graph: a card does them without waiting for Python.

    Small products take a microsecond, and to ask for one takes five. What is measured so is the
    card's own time.

    Source: PyTorch's documentation, "CUDA semantics", section "CUDA Graphs": some calls on a
    stream beside, then the capture.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay


def seconds_of(call: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the seconds of a call, from asking for it until the device has done it: a median.

    The first round is not counted.
    """
    wait = torch.get_device_module(device).synchronize
    found = []
    for _ in range(rounds + 1):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - begin)
    return median(found[1:])


def seconds_each(
    call: Callable[[], object], device: torch.device, times: int = 10, rounds: int = 5
) -> float:
    """Return the seconds of one of so many calls in a row, on a card without the asking."""

    def in_a_row() -> None:
        for _ in range(times):
            call()

    many = captured(call, times) if device.type == "cuda" else in_a_row
    return seconds_of(many, device, rounds) / times


def bandwidth(device: torch.device, size: int) -> dict[str, float]:
    """Return the bytes a second at which a device's memory is read, and copied (both ways counted).

    Args:
        device: to be measured.
        size: bytes; far more than its caches hold.
    """
    source = torch.ones(size // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    reading = seconds_each(source.sum, device, times=5)
    copying = seconds_each(lambda: target.copy_(source), device, times=5)
    return {"read": source.nbytes / reading, "copy": 2 * source.nbytes / copying}
