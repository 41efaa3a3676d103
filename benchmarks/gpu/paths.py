"""The ways through the code that only a card takes, or takes otherwise, each tried once.

Autocast and gradient scaler, the attention kernels that PyTorch can take and does take for the
model's shapes, ``torch.compile``, the cache, sampling and a checkpoint's random numbers.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.stage import Stage, one_line
from smol_scratch import KVCache, SmolLM2, SmolLM2Config, fast
from smol_scratch.generation import generate
from smol_scratch.hardware import choose_precision, find_hardware
from smol_scratch.model import causal_mask, explicit_attention
from smol_scratch.training import RunOptions, TrainingConfig, TrainingState, train_step

B, T = 4, 256
TOKENS = 16
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def paths(stage: Stage) -> None:
    """Try each way."""
    stage.part("autocast", lambda: autocast(stage), needs=3)
    stage.part("scaler", lambda: scaler(stage), needs=3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for case in CASES:
            name = f"attention, {case}, {str(dtype).removeprefix('torch.')}"
            stage.part(name, lambda dtype=dtype, case=case: kernels(stage, case, dtype), needs=2)
    stage.part("cache", lambda: cache(stage), needs=3)
    stage.part("sampling", lambda: sampling(stage), needs=5)
    stage.part("random numbers", lambda: random_numbers(stage))
    stage.part("compile", lambda: compiled(stage), needs=15)


def fresh(stage: Stage, **changes: Any) -> SmolLM2:
    """Return a model with random weights on the device, the same each time."""
    torch.manual_seed(0)
    return SmolLM2(SmolLM2Config.preset(stage.preset, **changes)).to(stage.device)


def tokens(stage: Stage, model: SmolLM2, rows: int = B, length: int = T) -> Tensor:
    """Return a batch of random tokens, (rows, length + 1)."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, length + 1)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(stage.device)


def autocast(stage: Stage) -> dict[str, Any]:
    """Return which types autocast gives to logits and loss, and leaves to the weights."""
    dtype = choose_precision(find_hardware(stage.device)).dtype
    model = fresh(stage)
    batch = tokens(stage, model)
    with torch.autocast(stage.device.type, dtype, enabled=dtype != torch.float32):
        logits, loss = model(batch[:, :-1], batch[:, 1:])
    assert loss is not None
    loss.backward()
    types = {str(weight.grad.dtype) for weight in model.parameters() if weight.grad is not None}
    finite = all(bool(weight.grad.isfinite().all()) for weight in model.parameters()
                 if weight.grad is not None)  # fmt: skip
    return {"chosen": dtype, "logits": logits.dtype, "loss": loss.dtype,
            "gradients": sorted(types), "finite": finite}  # fmt: skip


def scaler(stage: Stage) -> dict[str, Any]:
    """Take steps in float16; the first ones may overflow, and must then leave the weights alone."""
    # Few tokens: many processors multiply float16 a hundred times slower than float32.
    rows, length = (B, T) if stage.device.type == "cuda" else (1, 8)
    config = TrainingConfig(preset=stage.preset, precision="fp16", steps=8, warmup_steps=1,
                            batch_size=rows, sequence_length=length, block_size=T)  # fmt: skip
    options = RunOptions(device=stage.device.type, eval_interval=0)  # type: ignore[arg-type]
    data = list(range(100, 100 + 4 * rows * length + 1))
    state = TrainingState.create(config, data, options=options)
    probe = next(state.model.parameters())
    before = probe.detach().clone()
    scales = [state.scaler.get_scale()]
    losses = []
    for _ in range(6):
        losses.append(train_step(state)[0])
        scales.append(state.scaler.get_scale())
    moved = not torch.equal(before, probe)
    # An overflow, made on purpose: the update must be left out, and the scale halved.
    scale, kept = state.scaler.get_scale(), probe.detach().clone()
    state.optimizer.zero_grad()
    for weight in state.model.parameters():
        weight.grad = torch.full_like(weight, float("inf"))
    state.scaler.scale(torch.zeros((), device=stage.device))  # so that it knows its device
    state.scaler.unscale_(state.optimizer)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return {"losses": losses, "scales": scales, "moved": moved,
            "overflow_left_out": torch.equal(kept, probe),
            "overflow_halved": state.scaler.get_scale() == scale / 2}  # fmt: skip


# Queries, keys: a text from its beginning, a token behind a cache, some tokens behind one.
CASES = {"training": (B, T, T), "one token": (1, 1, T), "behind a cache": (1, 16, T)}


def kernels(stage: Stage, case: str, dtype: torch.dtype) -> dict[str, Any]:
    """Say which attention kernels take the model's shapes, how far off each is, and which is taken.

    The distance is the largest, to float32's explicit attention, in units of the largest value.
    """
    config = SmolLM2Config.preset(stage.preset)
    rows, n_query, n_key = CASES[case]
    generator = torch.Generator().manual_seed(2)

    def numbers(heads: int, length: int) -> Tensor:
        shape = (rows, heads, length, config.head_dim)
        return torch.randn(shape, generator=generator).to(stage.device, dtype)

    q, k, v = (numbers(config.n_head, n_query), numbers(config.n_kv_head, n_key),
               numbers(config.n_kv_head, n_key))  # fmt: skip
    right = explicit_attention(q.float(), k.float(), v.float())
    whole = n_query == n_key
    mask = None if whole or n_query == 1 else causal_mask(n_query, n_key, q.device)

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole,
                                              enable_gqa=True)  # fmt: skip

    def distance() -> float:
        return float((attend().float() - right).abs().max() / right.abs().max())

    found: dict[str, Any] = {"as chosen": distance(), "taken": taken(q, k, v, mask, whole)}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel([backend]):
                found[name] = distance()
        except RuntimeError as error:  # it does not take these shapes, types or this device
            found[name] = f"no: {one_line(str(error))[:80]}"
    return found


def taken(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, whole: bool) -> str:
    """Return the kernel that PyTorch takes, as it tells; how to ask is nothing it promises."""
    try:
        number = torch._fused_sdp_choice(q, k, v, mask, 0.0, whole, enable_gqa=True)
    except (AttributeError, TypeError, RuntimeError) as error:
        return f"cannot be asked: {type(error).__name__}"
    names = {int(getattr(backend, "value", backend)): name for name, backend in BACKENDS.items()}
    return names.get(int(number), f"number {int(number)}")


def cache(stage: Stage) -> dict[str, Any]:
    """Compare logits with and without a cache, in float32 and in the chosen type."""
    found = {}
    choice = choose_precision(find_hardware(stage.device)).dtype
    for dtype in dict.fromkeys((torch.float32, choice)):
        model = fresh(stage).eval().requires_grad_(False).to(dtype)
        ids = tokens(stage, model, rows=2, length=63)
        store = KVCache(model.config, 2, 64, dtype=dtype, device=stage.device)
        pieces = [model(piece, cache=store)[0] for piece in ids.split([50, 1, 13], dim=1)]
        whole = model(ids)[0].float()
        apart = (torch.cat(pieces, dim=1).float() - whole).abs().max() / whole.abs().max()
        found[str(dtype).removeprefix("torch.")] = float(apart)
    return found


def sampling(stage: Stage) -> dict[str, Any]:
    """Generate on the device: the same seed twice, unequal prompts together, greedy."""
    model = fresh(stage).eval().requires_grad_(False)

    def drawn(prompt: Any) -> list[Tensor]:
        generator = torch.Generator(stage.device).manual_seed(3)
        return generate(model, prompt, TOKENS, top_p=0.95, generator=generator)

    once, again = drawn([1, 2, 3]), drawn([1, 2, 3])
    several = generate(model, [[1, 2, 3], [4, 5, 6, 7, 8]], TOKENS, temperature=0)
    alone = [generate(model, row, TOKENS, temperature=0)[0] for row in ([1, 2, 3], [4, 5, 6, 7, 8])]
    return {
        "same_seed_same_text": torch.equal(once[0], again[0]),
        "tokens": len(once[0]),
        # With random weights two scores may tie up to rounding: said, not demanded.
        "batch_equals_single": [torch.equal(a, b) for a, b in zip(several, alone, strict=True)],
    }


def random_numbers(stage: Stage) -> dict[str, Any]:
    """Put the device's generator back, as a checkpoint does, and draw again."""
    module = torch.get_device_module(stage.device)
    state = (module if stage.device.type != "cpu" else torch).get_rng_state()
    first = torch.rand(5, device=stage.device)
    (module if stage.device.type != "cpu" else torch).set_rng_state(state.cpu())
    return {"state_is_on": str(state.device), "same_again": torch.equal(
        first, torch.rand(5, device=stage.device))}  # fmt: skip


def compiled(stage: Stage) -> dict[str, Any]:
    """Compare a step's loss and gradients with blocks compiled and not, in the chosen type."""
    dtype = choose_precision(find_hardware(stage.device)).dtype
    model = fresh(stage)
    batch = tokens(stage, model)

    def step() -> tuple[float, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        with torch.autocast(stage.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(batch[:, :-1], batch[:, 1:])[1]
        assert loss is not None
        loss.backward()
        return loss.item(), [w.grad.float() for w in model.parameters() if w.grad is not None]

    loss, gradients = step()
    fast.compile_blocks(model)
    stage.wait()
    begun = time.time()
    compiled_loss, others = step()
    stage.wait()
    apart = [float((a - b).norm() / a.norm()) for a, b in zip(gradients, others, strict=True)]
    return {"seconds": time.time() - begun, "losses": [loss, compiled_loss],
            "gradients_apart": max(apart), "dtype": dtype}  # fmt: skip
