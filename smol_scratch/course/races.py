"""Small trainings that are compared with each other: the experiments of notebooks 04 and 05.

Each is short, but many are needed before a difference can be told from luck. So they are run once,
by ``python -m benchmarks.record_races``, and the notebooks read the record and repeat one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smol_scratch.config import SmolLM2Config
from smol_scratch.corpus import load_text
from smol_scratch.model import SmolLM2, SwiGLU

Wiring = Callable[[nn.Module, Tensor], Tensor]


class GELUMLP(nn.Module):
    """The MLP before SwiGLU: two matrices, a bend between them, as many parameters."""

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__()
        hidden = config.intermediate_size * 3 // 2
        self.up_proj = nn.Linear(config.n_embd, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map vectors (..., C) to (..., C)."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class BilinearMLP(SwiGLU):
    """A gate without a bend: the plain product of the two readings."""

    def forward(self, x: Tensor) -> Tensor:
        """Map vectors (..., C) to (..., C)."""
        out: Tensor = self.down_proj(self.gate_proj(x) * self.up_proj(x))
        return out


class BiasedSwiGLU(SwiGLU):
    """SwiGLU with a bias behind each matrix; they start at zero, as those of GPT-2 do."""

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__(config)
        for part in (self.gate_proj, self.up_proj, self.down_proj):
            part.bias = nn.Parameter(torch.zeros(part.out_features))


GATES = {"SwiGLU": SwiGLU, "GELU": GELUMLP, "bilinear": BilinearMLP, "biases": BiasedSwiGLU}


# What a network of 28 parameters is to learn of two numbers a and b between -2 and 2.
TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda a, b: a * b,
    "edge": lambda a, b: torch.where(a > 0, b, 0 * b),
}
_BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu, "GELU": F.gelu, "SwiGLU": F.silu, "bilinear": lambda z: z
}  # fmt: skip
FITS = tuple(_BENDS)


def grid() -> tuple[Tensor, Tensor]:
    """Return a and b on 21 × 21 points, (b, a) each."""
    side = torch.linspace(-2, 2, 21, dtype=torch.double)
    b, a = torch.meshgrid(side, side, indexing="ij")
    return a, b


def fit(kind: str, target: str, seed: int, steps: int = 1000) -> tuple[Tensor, float]:
    """Train a network of one hidden layer and 28 parameters to compute a function of two numbers.

    ReLU and GELU: seven units read (a, b, 1) with three weights and write with one. SwiGLU and
    bilinear: four units read it twice.

    Args:
        kind: a name of ``FITS``.
        target: a name of ``TARGETS``.
        seed: of the starting weights.
        steps: of Adam, on all points of the grid at once.

    Returns:
        What it answers on the grid, (b, a), and its error: the root of the mean squared distance
        from the target, as a share of the target's own root mean square.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = grid()
    x = torch.stack([a, b, torch.ones_like(a)], -1)  # (b, a, 3)
    gated = kind in ("SwiGLU", "bilinear")
    units = 4 if gated else 7

    def start(rows: int, columns: int) -> Tensor:
        weights = torch.randn(rows, columns, generator=generator, dtype=torch.double)
        return (weights / columns**0.5).requires_grad_()

    gate, up, down = start(units, 3), start(units, 3), start(1, units)
    weights = [gate, up, down] if gated else [gate, down]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    want = TARGETS[target](a, b)
    for step in range(steps + 1):
        hidden = _BENDS[kind](x @ gate.T)
        answer = ((hidden * (x @ up.T) if gated else hidden) @ down.T).squeeze(-1)
        loss = (answer - want).pow(2).mean()
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return answer.detach(), (loss.detach() / want.pow(2).mean()).sqrt().item()


def characters() -> Tensor:
    """Return tiny Shakespeare as numbers from 0 to 64, one for each character."""
    text = load_text()
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[character] for character in text])


def pre_norm(block: nn.Module, x: Tensor) -> Tensor:
    """SmolLM2's wiring: x (B, T, C) plus what each branch makes of the normed x."""
    x = x + block.self_attn(block.input_layernorm(x))
    out: Tensor = x + block.mlp(block.post_attention_layernorm(x))
    return out


def post_norm(block: nn.Module, x: Tensor) -> Tensor:
    """The wiring of 2017: the norm stands on the stream itself."""
    x = block.input_layernorm(x + block.self_attn(x))
    out: Tensor = block.post_attention_layernorm(x + block.mlp(x))
    return out


def no_residual(block: nn.Module, x: Tensor) -> Tensor:
    """No stream at all: each branch replaces what came in."""
    x = block.self_attn(block.input_layernorm(x))
    out: Tensor = block.mlp(block.post_attention_layernorm(x))
    return out


WIRINGS = {"pre-norm": pre_norm, "post-norm": post_norm, "no residual": no_residual}


def post_norm_alone(block: nn.Module, x: Tensor) -> Tensor:
    """Post-norm with attention taken out: no token sees another."""
    x = block.input_layernorm(x)
    out: Tensor = block.post_attention_layernorm(x + block.mlp(x))
    return out


def no_residual_alone(block: nn.Module, x: Tensor) -> Tensor:
    """No stream and no attention: MLPs in a row."""
    out: Tensor = block.mlp(block.post_attention_layernorm(x))
    return out


WITHOUT_ATTENTION = {"post-norm": post_norm_alone, "no residual": no_residual_alone}


class WithoutGate(nn.Module):
    """The MLP before SwiGLU, with the matrices of one: nothing is multiplied with anything."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map vectors (..., C) to (..., C)."""
        out: Tensor = self.mlp.down_proj(F.silu(self.mlp.up_proj(x)))
        return out


def wired_loss(model: SmolLM2, wiring: Wiring, idx: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in nats with another wiring of the blocks; idx, targets (B, T)."""
    x = model.model.embed_tokens(idx)  # (B, T, C)
    for block in model.model.layers:
        x = wiring(block, x)
    logits = F.linear(model.model.norm(x), model.model.embed_tokens.weight)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gate_model(mlp: Callable[[SmolLM2Config], nn.Module], width: int, seed: int) -> SmolLM2:
    """Return a language model of characters with one block and another MLP.

    Args:
        mlp: the class.
        width: of the residual stream; a multiple of 12.
        seed: within one, all other starting weights are the same for every MLP.
    """
    torch.manual_seed(seed)
    config = SmolLM2Config(
        vocab_size=65, block_size=32, n_layer=1, n_head=4, n_kv_head=2, n_embd=width,
        head_dim=width // 4, intermediate_size=8 * width // 3, init_std=width**-0.5,
    )  # fmt: skip
    model = SmolLM2(config)
    model.model.layers[0].mlp = mlp(config)
    for weight in model.model.layers[0].mlp.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=config.init_std)
    return model


def gate_race(
    model: SmolLM2, seed: int, numbers: Tensor, rate: float = 0.02, steps: int = 200
) -> tuple[list[float], float]:
    """Train a model of one block; return its losses, and its loss on text it never saw, in nats.

    Args:
        model: from ``gate_model``.
        seed: of the batches.
        numbers: from ``characters``; the first million is trained on.
        rate: learning rate at its peak: up for 20 steps, then down to zero.
        steps: how many.
    """
    practice, exam = numbers[:1_000_000], numbers[1_000_000:][: 512 * 33].view(512, 33)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    history = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        starts = torch.randint(len(practice) - 33, (16, 1), generator=generator)
        batch = practice[starts + torch.arange(33)]  # (B, T + 1)
        loss = model(batch[:, :-1], batch[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    with torch.no_grad():
        return history, model(exam[:, :-1], exam[:, 1:])[1].item()


def _pieces(seed: int, numbers: Tensor, steps: int) -> Iterator[Tensor]:
    """Draw the batches of a race of wirings, (B, T + 1) each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(numbers) - 32, (8, 1), generator=generator)
        yield numbers[starts + torch.arange(33)]


def frequency_loss(seed: int, numbers: Tensor, steps: int = 200, last: int = 20) -> float:
    """Return the loss that the text's frequencies alone give on the last batches of a race."""
    share = numbers.bincount() / len(numbers)
    targets = torch.stack(list(_pieces(seed, numbers, steps))[-last:])[:, :, 1:]
    return -share.log()[targets].mean().item()


def wiring_race(
    wiring: str, spread: float, rate: float, seed: int, numbers: Tensor, steps: int = 200,
    *, attention: bool = True, gate: bool = True, eps: float = 1e-5,
) -> list[float]:  # fmt: skip
    """Train thirty narrow blocks with another wiring; return the loss of each step, in nats.

    Args:
        wiring: a name of ``WIRINGS``.
        spread: standard deviation of the initial weights.
        rate: the learning rate, the same at every step.
        seed: of weights and batches.
        numbers: from ``characters``.
        steps: how many.
        attention: False takes it out of every block, for a wiring of ``WITHOUT_ATTENTION``.
        gate: False takes it out of every MLP.
        eps: what each norm adds to the mean square.
    """
    torch.manual_seed(seed)
    config = SmolLM2Config(
        vocab_size=65, block_size=32, n_layer=30, n_head=2, n_kv_head=1, n_embd=32,
        head_dim=16, intermediate_size=80, init_std=spread, norm_eps=eps,
    )  # fmt: skip
    model = SmolLM2(config)
    inner: Any = model.model
    if not gate:
        for block in inner.layers:
            block.mlp = WithoutGate(block.mlp)
    wired = (WIRINGS if attention else WITHOUT_ATTENTION)[wiring]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), fused=True)
    history = []
    for piece in _pieces(seed, numbers, steps):
        loss = wired_loss(model, wired, piece[:, :-1], piece[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history
