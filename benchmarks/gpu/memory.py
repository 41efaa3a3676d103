"""Memory of a training step and of a cache: predicted by ``accounting``, and measured.

Two measurements: the tensors that are alive at one moment (``measured_peak``, on every device),
and on a card what its allocator has given out at most, which also sees inside an operation.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.gpu.stage import Stage
from smol_scratch import KVCache, SmolLM2, SmolLM2Config
from smol_scratch.accounting import (
    kv_cache_bytes,
    measured_activations,
    measured_peak,
    training_memory,
)
from smol_scratch.hardware import choose_precision, find_hardware


def memory(stage: Stage) -> None:
    """Compare for some shapes, and for the cache."""
    chosen = choose_precision(find_hardware(stage.device)).dtype
    shapes = [(4, 256), (16, 256), (4, 1024)] if stage.device.type == "cuda" else [(2, 64)]
    for B, T in shapes:
        for dtype in dict.fromkeys((chosen, torch.float32)):
            name = f"{B} x {T}, {str(dtype).removeprefix('torch.')}"
            stage.part(name, lambda B=B, T=T, dtype=dtype: step(stage, B, T, dtype), needs=2)
            gc.collect()
    stage.part("cache", lambda: cache(stage, chosen))


def step(stage: Stage, B: int, T: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return predicted and measured bytes of a step's peak and of its activations."""
    config = SmolLM2Config.preset(stage.preset, block_size=max(T, 64))
    predicted = training_memory(config, B, T, dtype)
    # On a card attention's output comes with its heads side by side: it is kept once.
    heads = config.n_layer * config.n_head * config.head_dim * dtype.itemsize * B * T
    once = heads if stage.device.type == "cuda" else 0
    card = stage.device.type == "cuda"
    if card:
        free, _ = torch.cuda.mem_get_info(stage.device)
        if predicted["peak"] > 0.9 * free:
            raise MemoryError(f"{predicted['peak']:,} bytes are predicted and {free:,} are free")
    torch.manual_seed(0)
    before = torch.cuda.memory_allocated(stage.device) if card else 0
    model = SmolLM2(config).to(stage.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = torch.randint(config.vocab_size, (B, T + 1)).to(stage.device)
    idx, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast(stage.device.type, dtype, enabled=dtype != torch.float32):
            _logits, loss = model(idx, targets)  # the logits are held, as in training
        loss.backward()
        optimizer.step()

    train()  # so that the moments are there
    optimizer.zero_grad()
    kept = measured_activations(model, idx, targets, dtype)
    stage.wait()
    found = {
        "predicted_peak": predicted["peak"] - once,
        "predicted_activations": predicted["activations"] - once,
        "measured_activations": kept,
    }
    if card:
        torch.cuda.reset_peak_memory_stats(stage.device)
        train()
        stage.wait()
        found["allocator_peak"] = torch.cuda.max_memory_allocated(stage.device) - before
        found["allocator_reserved"] = torch.cuda.max_memory_reserved(stage.device)
        optimizer.zero_grad()
    found["tensors_peak"] = measured_peak(train, model, optimizer)
    found["activations_ratio"] = kept / found["predicted_activations"]
    found["peak_ratio"] = found["tensors_peak"] / found["predicted_peak"]
    return found


def cache(stage: Stage, dtype: torch.dtype) -> dict[str, int]:
    """Return predicted and allocated bytes of a cache for all that a context holds."""
    config = SmolLM2Config.preset(stage.preset)
    card = stage.device.type == "cuda"
    before = torch.cuda.memory_allocated(stage.device) if card else 0
    store = KVCache(config, 1, dtype=dtype, device=stage.device)
    found = {"tokens": config.block_size, "measured": store.nbytes,
             "predicted": kv_cache_bytes(config, config.block_size, dtype)}  # fmt: skip
    if card:
        found["allocator"] = torch.cuda.memory_allocated(stage.device) - before
    return found
