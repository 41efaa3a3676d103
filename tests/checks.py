"""The named checks: what a model must do, each as one function.

Each check takes a *model module*, ``smol_scratch.model`` or a copy of it with a planted bug
(``planted_bugs.py``), and raises AssertionError with what it found. Those called ``oracle_…``
compare with ``transformers``' own classes on random weights; the others need no second
implementation, and the table of planted bugs shows what they cannot see.

How near is near enough? Floating-point sums depend on their order, so two right programs differ
a little. How much is measured, not chosen: ``transformers`` is run twice, the second time with the
channels of the residual stream and the hidden units of the MLPs in another order. That is the same
function, rounded differently. The largest difference between the two is the *noise floor* of this
configuration and quantity, and ours may differ from ``transformers`` by FACTOR times that.

Why 4: ours against theirs is one more such pair of right programs, whose largest difference is of
the floor's size but not the floor itself. Over all configurations, quantities and seeds of
``python -m benchmarks.report`` the ratio stays below 2.5; what is left is for other processors. The
gentlest planted bug stands at more than 20 times the floor.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.cache import KVCache
from smol_scratch.config import SmolLM2Config
from smol_scratch.hub import llama_config, to_transformers

FACTOR = 4

# Query heads fill the width (6 · 8 = 48), so that a transposed matrix does not show by its shape;
# dropout is on, so that it shows where evaluation mode does not switch it off.
SMALL = SmolLM2Config(
    block_size=64,
    vocab_size=61,
    n_layer=2,
    n_head=6,
    n_kv_head=2,
    n_embd=48,
    intermediate_size=80,
    head_dim=8,
    dropout=0.1,
)


class Measured(NamedTuple):
    """A largest difference and the noise floor it was held against."""

    difference: float
    floor: float

    @property
    def ratio(self) -> float:
        """How many times the floor the difference is."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.floor if self.floor > 0 else math.inf


class TooFarError(AssertionError):
    """A difference that is no noise."""

    def __init__(self, message: str, measured: Measured) -> None:
        super().__init__(message)
        self.measured = measured


def close(what: str, difference: float, floor: float) -> Measured:
    """Assert that a difference is noise."""
    measured = Measured(difference, floor)
    if not measured.ratio <= FACTOR:  # nan too
        raise TooFarError(
            f"{what}: the largest difference is {difference:.2e}, more than {FACTOR} times the "
            f"noise floor of {floor:.2e}",
            measured,
        )
    return measured


def largest(difference: Tensor) -> float:
    """Return the largest absolute value; nan where there is one."""
    return difference.detach().abs().max().item()


def nan_max(numbers: list[float]) -> float:
    """Return the largest number; nan where there is one."""
    return largest(torch.tensor(numbers, dtype=torch.float64))


def randomise(model: torch.nn.Module) -> None:
    """Draw every weight anew, norm weights included, so that none can stand in for another.

    Matrices get a standard deviation of 1/√inputs: scores and gates are then of the order of one,
    attention is far from uniform, and the embeddings are small enough for epsilon to matter.
    """
    for weight in model.parameters():
        noise = torch.randn_like(weight)
        weight.data = 1 + 0.3 * noise if weight.ndim == 1 else noise * weight.shape[1] ** -0.5


def reordered(name: str, weight: Tensor, channels: Tensor, hidden: Tensor) -> Tensor:
    """Return a weight, or its gradient, with channels and hidden units in another order."""
    if weight.ndim == 1:  # a norm
        return weight[channels]
    if name.endswith("down_proj.weight"):
        return weight[channels][:, hidden]
    if name.endswith("o_proj.weight"):
        return weight[channels]
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        weight = weight[hidden]
    return weight[:, channels]


class Trio:
    """Ours, ``transformers``', and ``transformers``' with its channels in another order."""

    def __init__(
        self,
        m: ModuleType,
        config: SmolLM2Config,
        seed: int = 0,
        ours: torch.nn.Module | None = None,
    ) -> None:
        """Make the three with the same weights: random ones, or those of ``ours``."""
        torch.manual_seed(seed)
        if ours is None:
            ours = m.SmolLM2(config).eval()
            randomise(ours)
        self.config, self.ours = config, ours
        self.theirs = to_transformers(ours)
        # The attention that spells the formula out shares no kernel with our fast one.
        self.theirs.set_attn_implementation("eager")
        self.channels = torch.randperm(config.n_embd)
        self.hidden = torch.randperm(config.intermediate_size)
        self.permuted = copy.deepcopy(self.theirs)
        for name, weight in self.permuted.named_parameters():
            weight.data = reordered(name, weight.data, self.channels, self.hidden)

    def tokens(self, batch: int, length: int) -> Tensor:
        return torch.randint(self.config.vocab_size, (batch, length))

    @torch.no_grad()
    def logits(self, ids: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return our logits, theirs, and the noise floor."""
        theirs = self.theirs(ids).logits
        floor = largest(self.permuted(ids).logits - theirs)
        return self.ours(ids)[0], theirs, floor

    @torch.no_grad()
    def compare(
        self, what: str, part: str, x: Tensor, run: Callable[..., Tensor] | None = None
    ) -> Measured:
        """Hold a module of ours against theirs.

        Args:
            what: a name for the message.
            part: the module's name inside the model.
            x: the input, (B, T, C).
            run: how to call theirs, as ``run(model, module, x)``; ``module(x)`` unless told.
        """
        run = run or (lambda _, module, x: module(x))
        theirs = run(self.theirs, self.theirs.get_submodule(part), x)
        again = run(self.permuted, self.permuted.get_submodule(part), x[..., self.channels])
        floor = largest(again - theirs[..., self.channels])
        return close(what, largest(self.ours.get_submodule(part)(x) - theirs), floor)


def oracle_rmsnorm(m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0) -> Measured:
    """A norm, on vectors from very short (where epsilon matters) to very long."""
    trio = Trio(m, config, seed)
    x = torch.randn(2, 13, config.n_embd) * torch.logspace(-3, 3, 13).unsqueeze(-1)
    return trio.compare("RMSNorm", "model.layers.0.post_attention_layernorm", x)


def oracle_rope(m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0) -> Measured:
    """The rotation of queries, at every position, from 0 and from later on; in units of rounding.

    Here the floor is derived: a pair (a, b) of length r turns by two products and one sum for each
    channel. Each operation rounds by half a unit, and the cosines and sines of two libraries may
    differ by one: together at most (√2 + √2 + 1) r, below 4 units of the pair's length.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    trio = Trio(m, config, seed)
    q = torch.randn(1, config.n_head, config.block_size, config.head_dim)
    cos, sin = trio.theirs.model.rotary_emb(q, torch.arange(config.block_size)[None])
    theirs, _ = apply_rotary_pos_emb(q, q, cos, sin)
    first, second = q.chunk(2, dim=-1)
    unit = torch.hypot(first, second).repeat(1, 1, 1, 2) * torch.finfo(torch.float32).eps
    rope = trio.ours.model.layers[-1].self_attn.rope
    start = config.block_size // 2
    ours = torch.cat((rope(q[:, :, :start]), rope(q[:, :, start:], start)), dim=2)
    return close("RoPE, in units of rounding", largest((ours - theirs) / unit), 1.0)


def _with_rope_and_mask(model: torch.nn.Module, module: torch.nn.Module, x: Tensor) -> Tensor:
    T = x.shape[1]
    mask = torch.full((1, 1, T, T), torch.finfo(torch.float32).min).triu(1)
    angles = model.model.rotary_emb(x, torch.arange(T)[None])
    output = module(hidden_states=x, position_embeddings=angles, attention_mask=mask)
    return output[0] if isinstance(output, tuple) else output


def oracle_attention(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13
) -> Measured:
    """Attention, with the rotation and the mask."""
    trio = Trio(m, config, seed)
    x = torch.randn(2, length, config.n_embd)
    return trio.compare("attention", "model.layers.0.self_attn", x, _with_rope_and_mask)


def oracle_swiglu(m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0) -> Measured:
    """The MLP."""
    trio = Trio(m, config, seed)
    return trio.compare("SwiGLU", "model.layers.0.mlp", torch.randn(2, 13, config.n_embd))


def oracle_block(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13
) -> Measured:
    """A whole block: two different norms, attention, MLP, two residual sums."""
    trio = Trio(m, config, seed)
    x = torch.randn(2, length, config.n_embd)
    return trio.compare("block", "model.layers.0", x, _with_rope_and_mask)


def oracle_logits(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13
) -> Measured:
    """The whole model's logits."""
    trio = Trio(m, config, seed)
    ours, theirs, floor = trio.logits(trio.tokens(2, length))
    return close("logits", largest(ours - theirs), floor)


def oracle_gradients(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13
) -> Measured:
    """The loss, and its gradient for every weight, relative to the size of that gradient."""
    trio = Trio(m, config, seed)
    ids, targets = trio.tokens(2, length), trio.tokens(2, length)
    targets[0, : length // 3] = -100  # what the prompt would be in fine-tuning
    ours = trio.ours(ids, targets)[1]
    theirs, again = (
        F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        for model in (trio.theirs, trio.permuted)
    )
    # A mean of two dozen numbers can come out equal by chance: then one unit of rounding.
    unit = torch.finfo(torch.float32).eps * theirs.item()
    close("loss", largest(ours - theirs), max(largest(again - theirs), unit))
    for loss in (ours, theirs, again):
        loss.backward()
    gradients = {name: weight.grad for name, weight in trio.ours.named_parameters()}
    others = {name: weight.grad for name, weight in trio.permuted.named_parameters()}
    difference = floor = 0.0
    worst = ""
    for name, weight in trio.theirs.named_parameters():
        size = largest(weight.grad)
        assert gradients.get(name) is not None, f"gradients: none for {name}"
        moved = reordered(name, weight.grad, trio.channels, trio.hidden)
        floor = max(floor, largest(others[name] - moved) / size)
        here = largest(gradients[name] - weight.grad) / size
        if not here <= difference:
            difference, worst = here, name
    return close(f"gradients ({worst})", difference, floor)


def norm_in_half_precision(m: ModuleType) -> None:
    """A norm's half-precision output is the exact result, rounded once; large inputs survive."""
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        norm = m.RMSNorm(48).to(dtype)
        for scale in (1, 3000):  # the square of 3000 is far above float16's largest, 65504
            x = (scale * torch.randn(4, 13, 48)).to(dtype)
            exact = F.rms_norm(x.double(), (48,), eps=1e-5)
            # Half a unit of rounding, and a thousandth for float32's own rounding before it.
            allowed = 0.501 * torch.finfo(dtype).eps
            size = exact.abs().clamp(min=torch.finfo(dtype).tiny)
            error = largest((norm(x).double() - exact) / size)
            assert error <= allowed, (
                f"RMSNorm of {dtype} around {scale}: relative error {error:.1e}, more than the "
                f"{allowed:.1e} of rounding once"
            )


def causality(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13, cut: int = 6
) -> None:
    """Other tokens from ``cut`` on leave all logits before it as they were, bit for bit."""
    torch.manual_seed(seed)
    model = m.SmolLM2(config).eval()
    randomise(model)
    ids = torch.randint(config.vocab_size, (2, length))
    edited = ids.clone()
    edited[:, cut:] = (ids[:, cut:] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(ids)[0], model(edited)[0]
    # The same shapes take the same path through every kernel, so there is no noise to allow for.
    difference = largest(before[:, :cut] - after[:, :cut])
    assert difference == 0, f"causality: the future moves a logit of the past by {difference:.2e}"
    assert largest(before[:, cut:] - after[:, cut:]) > 0, "causality: the edit changed nothing"


def relative_shift(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, length: int = 13, shift: int = 29
) -> Measured:
    """All positions later by ``shift``, and nothing changes: attention sees only distances."""
    trio = Trio(m, config, seed)
    ids = trio.tokens(2, length)
    with torch.no_grad():
        ours, theirs = trio.ours(ids)[0], trio.theirs(ids).logits
        later = torch.arange(shift, shift + length)[None]
        floor = largest(trio.theirs(ids, position_ids=later).logits - theirs)
        for rope in {block.self_attn.rope for block in trio.ours.model.layers}:
            rope.cos, rope.sin = rope.cos[shift:], rope.sin[shift:]
        return close("relative shift", largest(trio.ours(ids)[0] - ours), floor)


def cached_equals_uncached(
    m: ModuleType,
    config: SmolLM2Config = SMALL,
    seed: int = 0,
    pieces: tuple[int, ...] = (5, 1, 1, 4, 2),
) -> Measured:
    """A sequence in pieces through a cache gives the logits of the whole sequence at once."""
    trio = Trio(m, config, seed)
    ids = trio.tokens(2, sum(pieces))
    ours, _, floor = trio.logits(ids)
    cache = KVCache(config, batch_size=2, max_length=sum(pieces))
    with torch.no_grad():
        parts = [trio.ours(piece, cache=cache)[0] for piece in ids.split(pieces, dim=1)]
    return close(f"cache, pieces {pieces}", largest(torch.cat(parts, dim=1) - ours), floor)


def batch_independence(
    m: ModuleType, config: SmolLM2Config = SMALL, seed: int = 0, batch: int = 3, length: int = 13
) -> Measured:
    """A sequence alone gives the logits that it gives among others."""
    trio = Trio(m, config, seed)
    ids = trio.tokens(batch, length)
    ours, _, floor = trio.logits(ids)
    with torch.no_grad():
        alone = torch.cat([trio.ours(row[None])[0] for row in ids])
    return close("batch", largest(alone - ours), floor)


def explicit_equals_fast(m: ModuleType, seed: int = 0) -> Measured:
    """Both attentions give the same values and gradients: whole, one new token, some new tokens.

    No channels to reorder here: the floor is what float32 costs the fast one against float64.
    """

    def run(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in qkv]
        output = attend(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, towards.to(dtype))]

    torch.manual_seed(seed)
    differences, noise = [], []
    for n_query, n_key in ((13, 13), (1, 13), (5, 13)):
        qkv = [torch.randn(2, 6, n_query, 16), *torch.randn(2, 2, 2, n_key, 16)]
        towards = torch.randn(2, 6, n_query, 16)  # stands for the gradient of a loss
        fast, exact = run(m.fast_attention, torch.float32), run(m.fast_attention, torch.float64)
        explicit = run(m.explicit_attention, torch.float32)
        differences += [largest(a - b) for a, b in zip(explicit, fast, strict=True)]
        noise += [largest(a - b) for a, b in zip(exact, fast, strict=True)]
    return close("explicit and fast attention", nan_max(differences), nan_max(noise))


@functools.cache
def released_layout(tied: bool) -> dict[str, Tensor]:
    """Return the names and shapes that ``transformers`` gives the 135M model, without memory."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        config = SmolLM2Config.preset("135M", tie_embeddings=tied)
        tensors = dict(LlamaForCausalLM(llama_config(config)).state_dict())
    if tied:  # the checkpoint stores the shared matrix once
        del tensors["lm_head.weight"]
    return tensors


def checkpoint_names(m: ModuleType) -> None:
    """Names and shapes are those of the released checkpoint, and a strict load takes them."""
    for tied, count, total in ((True, 272, 134_515_008), (False, 273, 162_826_560)):
        with torch.device("meta"):
            model = m.SmolLM2(SmolLM2Config.preset("135M", tie_embeddings=tied))
        names, expected = set(model.state_dict()), released_layout(tied)
        assert names == set(expected), f"names: {sorted(names ^ set(expected))[:3]} differ"
        assert len(names) == count, f"names: {len(names)} tensors instead of {count}"
        try:
            model.load_state_dict(expected, strict=True, assign=True)
        except RuntimeError as error:
            raise AssertionError(f"names: no strict load: {error}") from error
        found = sum(weight.numel() for weight in model.parameters())
        assert found == total, f"names: {found:,} parameters instead of {total:,}"


def initial_std(m: ModuleType) -> None:
    """Every matrix starts with the configured standard deviation around 0, every norm with ones."""
    torch.manual_seed(0)
    for std in (0.02, 1 / 24):
        config = dataclasses.replace(SMALL, vocab_size=2000, init_std=std, tie_embeddings=False)
        for name, weight in m.SmolLM2(config).named_parameters():
            if weight.ndim == 1:
                assert (weight == 1).all(), f"initial weights: {name} is not all ones"
                continue
            # Five standard errors: of 32 matrices none fails by chance.
            error = 5 * std * weight.numel() ** -0.5
            mean, found = weight.mean().item(), weight.std().item()
            assert abs(mean) < error, f"initial weights: the mean of {name} is {mean:.1e}"
            assert abs(found - std) < error / 2**0.5, (
                f"initial weights: the standard deviation of {name} is {found:.5f}, not {std:.5f}"
            )


# In the order of the table's columns.
CHECKS: dict[str, Callable[..., object]] = {
    "norm": oracle_rmsnorm,
    "rope": oracle_rope,
    "attn": oracle_attention,
    "mlp": oracle_swiglu,
    "block": oracle_block,
    "logits": oracle_logits,
    "grads": oracle_gradients,
    "half": norm_in_half_precision,
    "causal": causality,
    "shift": relative_shift,
    "cache": cached_equals_uncached,
    "batch": batch_independence,
    "fast": explicit_equals_fast,
    "names": checkpoint_names,
    "std": initial_std,
}
