"""The quicker forms give what the plain ones give, and are taken where they should be."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import platform
import subprocess
import sys

import pytest
import torch

from benchmarks import bench_training as bench
from smol_scratch import SmolLM2, SmolLM2Config, explicit_attention, fast, fast_attention
from smol_scratch.fast import FastRMSNorm, FastSmolLM2, accelerate, grouped_attention, restore
from smol_scratch.model import RMSNorm
from tests.checks import SMALL, close, largest, nan_max, randomise

# B, H, G, T, S, D: groups of three, of one, of all; one token; a cache; a scale that is no power
# of two; the size of the training run.
SHAPES = [
    (2, 6, 2, 13, 13, 8),
    (2, 4, 4, 7, 7, 8),
    (2, 6, 1, 9, 9, 6),
    (2, 6, 2, 1, 1, 8),
    (2, 6, 2, 1, 9, 8),
    (1, 6, 3, 5, 12, 10),
    (1, 9, 3, 256, 256, 64),
]


def unit(values: torch.Tensor) -> float:
    """One rounding of the largest value: nearer than that, no two programs need to be."""
    return largest(values) * torch.finfo(values.dtype).eps


def with_gradients(attend, inputs, upstream):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y = attend(*inputs)
    y.backward(upstream)
    return [y, *(tensor.grad for tensor in inputs)]


# Attention


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_attention_and_its_gradients_are_those_of_the_plain_forms(shape, dtype):
    """The noise floor is how far the two plain forms are from each other."""
    B, H, G, T, S, D = shape
    q, upstream = torch.randn(2, B, H, T, D, dtype=dtype)
    k = torch.randn(B, G, S, D, dtype=dtype)
    v = torch.randn(B, S, G, D, dtype=dtype).transpose(1, 2)  # as the model hands it over
    grouped, plain, spelled = (
        with_gradients(attend, (q, k, v), upstream)
        for attend in (grouped_attention, fast_attention, explicit_attention)
    )
    for what, ours, one, other in zip("yqkv", grouped, plain, spelled, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == one.shape
        floor = max(largest(one.float() - other.float()), unit(one))
        close(what, largest(ours.float() - one.float()), floor)


def test_softmax_of_16_bits_is_computed_in_32():
    scores = 8 * torch.randn(64, 256, dtype=torch.bfloat16)
    assert torch.equal(scores.softmax(-1), scores.float().softmax(-1).bfloat16())


def test_dropout_drops_weights_and_scales_the_others():
    B, H, G, T, p = 4, 6, 2, 64, 0.3
    q, k = torch.randn(B, H, T, T), torch.randn(B, G, T, T)
    v = torch.eye(T).expand(B, G, T, T)  # the output is then the weights themselves
    weights, dropped = grouped_attention(q, k, v), grouped_attention(q, k, v, p)
    stays = dropped != 0
    torch.testing.assert_close(dropped[stays], weights[stays] / (1 - p))
    n = B * H * T * (T + 1) // 2
    assert abs(stays.sum().item() / n - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5  # 5 sigma


@pytest.mark.parametrize(
    ("device", "dtype", "T", "S", "expected"),
    [
        ("cpu", torch.bfloat16, 256, 256, "grouped"),
        ("cpu", torch.bfloat16, fast.LONGEST_GROUPED, fast.LONGEST_GROUPED, "grouped"),
        ("cpu", torch.bfloat16, 1, fast.LONGEST_GROUPED + 1, "fast"),
        ("cpu", torch.float32, 256, 256, "fast"),
        ("meta", torch.bfloat16, 256, 256, "fast"),
    ],
)
def test_attention_is_chosen_by_device_type_and_length(monkeypatch, device, dtype, T, S, expected):
    monkeypatch.setattr(fast, "grouped_attention", lambda *_: "grouped")
    monkeypatch.setattr(fast, "fast_attention", lambda *_: "fast")
    q = torch.empty(1, 3, T, 8, dtype=dtype, device=device)
    k = torch.empty(1, 1, S, 8, dtype=dtype, device=device)
    assert fast.attention_by_size(q, k, k) == expected


# RMSNorm


def norms(width: int, dtype: torch.dtype = torch.float32) -> tuple[RMSNorm, FastRMSNorm]:
    plain = RMSNorm(width, eps=1e-5)
    randomise(plain)
    quick = FastRMSNorm(width, eps=1e-5)
    quick.load_state_dict(plain.state_dict())
    return plain.to(dtype), quick.to(dtype)


def norm_and_gradients(norm, x, upstream):
    norm.weight.grad = None
    y, dx = with_gradients(norm, [x], upstream)
    return [y, dx, norm.weight.grad]


@pytest.mark.parametrize("shape", [(2, 13, 48), (48,), (1, 1, 48), (4, 256, 576)], ids=str)
def test_the_norm_and_its_gradients_are_those_of_the_plain_form(shape):
    """The noise floor is how far the plain form is from itself with its channels reordered."""
    plain, quick = norms(shape[-1])
    # From short, where epsilon counts, to long.
    x = torch.randn(shape) * 10 ** (6 * torch.rand(*shape[:-1], 1) - 3)
    upstream = torch.randn(shape)
    order = torch.randperm(shape[-1])
    reordered = copy.deepcopy(plain)
    reordered.weight.data = plain.weight.data[order]
    ours = norm_and_gradients(quick, x, upstream)
    theirs = norm_and_gradients(plain, x, upstream)
    again = norm_and_gradients(reordered, x[..., order], upstream[..., order])
    names = ("output", "gradient of x", "gradient of the weight")
    for what, one, other, third in zip(names, ours, theirs, again, strict=True):
        # Relative to each vector's own length: a gradient is large where x is short.
        size = other.norm(dim=-1, keepdim=True)
        back = third[..., order.argsort()]
        floor = max(largest((back - other) / size), torch.finfo(torch.float32).eps)
        close(what, largest((one - other) / size), floor)


def test_the_norms_gradient_agrees_with_finite_differences():
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    for eps in (1e-5, 1.0):  # the latter large enough to count
        assert torch.autograd.gradcheck(fast._RMSNormFunction.apply, (x, weight, eps, None))


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_norm_keeps_the_types_of_the_plain_form(of_x, of_weight):
    plain, quick = norms(48, of_weight)
    x = torch.randn(2, 13, 48).to(of_x)
    upstream = torch.randn(2, 13, 48).type_as(plain(x))
    ours, theirs = (norm_and_gradients(norm, x, upstream) for norm in (quick, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        # A handful of operations, each rounded to the coarsest type that takes part.
        coarsest = max((of_x, of_weight), key=lambda dtype: torch.finfo(dtype).eps)
        size = other.double().norm(dim=-1, keepdim=True)
        difference = largest((one.double() - other.double()) / size)
        assert difference <= 4 * torch.finfo(coarsest).eps


def test_under_autocast_the_norm_rounds_as_the_next_product_would():
    """One rounding to bfloat16 forward, one backward: half a step each, of numbers below 2x."""
    plain, quick = norms(48)
    x = torch.randn(2, 13, 48)
    upstream = torch.randn(2, 13, 48).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = norm_and_gradients(quick, x, upstream)
        theirs = norm_and_gradients(plain, x, upstream.float())
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.float32, torch.float32]
    eps = torch.finfo(torch.bfloat16).eps
    assert largest((ours[0] - theirs[0]) / theirs[0]) <= eps
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        size = other.norm(dim=-1, keepdim=True)
        assert largest((one - other) / size) <= 4 * torch.finfo(torch.float32).eps


# Cross-entropy

ROWS = fast._CrossEntropyFunction.ROWS


def scored(function, logits, targets):
    logits = logits.clone().requires_grad_()
    loss = function(logits, targets)
    (3 * loss).backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("tokens", [1, ROWS - 1, 2 * ROWS, 2 * ROWS + 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ignored", [False, True])
def test_the_cross_entropy_and_its_gradient_are_those_of_the_plain_form(tokens, dtype, ignored):
    logits = (6 * torch.randn(tokens, 311)).to(dtype)
    targets = torch.randint(311, (tokens,))
    if ignored and tokens > 1:
        targets[::3] = -100
        logits[::3, 5] = float("-inf")  # whatever stands there must not matter
    plain = lambda z, y: torch.nn.functional.cross_entropy(z.float(), y)  # noqa: E731
    loss, gradient = scored(fast._CrossEntropyFunction.apply, logits, targets)
    expected, plain_gradient = scored(plain, logits, targets)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    close("loss", abs(loss - expected), unit(expected))
    # Both round the same float32 numbers to 16 bits: where those differ in their last digit, by
    # one step of the 16-bit type at most (a number of the type's smallest ones has a fixed step).
    step = plain_gradient.double().abs() * torch.finfo(dtype).eps + torch.finfo(dtype).tiny
    assert ((gradient.double() - plain_gradient.double()).abs() <= step).all()


def test_the_cross_entropys_gradient_agrees_with_finite_differences():
    logits = torch.randn(ROWS + 3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(7, (ROWS + 3,))
    targets[1] = -100
    assert torch.autograd.gradcheck(fast._CrossEntropyFunction.apply, (logits, targets))


@pytest.mark.parametrize("bf16", [True, False])
def test_the_quick_model_returns_and_refuses_what_the_plain_one_does(bf16):
    plain = tiny(n_layer=1)
    quick = copy.deepcopy(plain)
    quick.__class__ = FastSmolLM2
    idx = torch.randint(311, (2, 9))
    for targets in (None, idx.roll(-1, 1)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            (logits, loss), (same, other) = quick(idx, targets), plain(idx, targets)
        assert torch.equal(logits, same)
        assert (loss is None) == (other is None) == (targets is None)
    if bf16:
        close("loss", abs(loss - other), unit(other))
    else:
        assert torch.equal(loss, other)
    for wrong in (idx[:, 1:], idx[0]):
        with pytest.raises(ValueError, match="targets of shape"):
            quick(idx, wrong)


# The model


def losses(model: SmolLM2, precision: torch.dtype, steps: int = 5) -> torch.Tensor:
    """Train a copy on one batch."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randint(
        model.config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(1)
    )
    found = []
    for _ in range(steps):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = model(batch[:, :-1], batch[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return torch.tensor(found)


def tiny(**changes: object) -> SmolLM2:
    return SmolLM2(SmolLM2Config.preset("tiny", vocab_size=311, **changes))


def test_switched_off_again_nothing_is_left(monkeypatch):
    model = tiny(dropout=0.1)
    names, shown = list(model.state_dict()), repr(model)
    torch.manual_seed(2)
    before = losses(model, torch.bfloat16)
    assert accelerate(model)
    assert list(model.state_dict()) == names
    assert all(type(m) is FastRMSNorm for m in model.modules() if isinstance(m, RMSNorm))
    assert all(block.self_attn.attend is fast.attention_by_size for block in model.model.layers)
    assert type(model) is FastSmolLM2
    restore(model)
    assert type(model) is SmolLM2
    assert repr(model) == shown
    assert not any(isinstance(m, FastRMSNorm) for m in model.modules())
    torch.manual_seed(2)
    assert torch.equal(losses(model, torch.bfloat16), before)


def test_twice_on_is_once_on():
    model = tiny()
    accelerate(model)
    once = [type(module) for module in model.modules()]
    accelerate(model)
    assert [type(module) for module in model.modules()] == once
    restore(model)
    assert all(type(m) is not FastRMSNorm for m in model.modules())


def test_elsewhere_than_on_a_cpu_the_plain_forms_stay():
    with torch.device("meta"):
        model = tiny()
    assert accelerate(model) == []
    assert type(model) is SmolLM2
    assert not any(isinstance(m, FastRMSNorm) for m in model.modules())
    assert all(block.self_attn.attend is fast_attention for block in model.model.layers)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_training_takes_the_same_course(precision):
    """The noise floor is how far the losses of the two plain forms are from each other.

    Gradients differ by rounding, and Adam's first steps turn even the smallest difference of a
    gradient near zero into a whole step, in the one pair as in the other.
    """
    model = tiny()
    randomise(model)
    quick, spelled = copy.deepcopy(model), copy.deepcopy(model)
    accelerate(quick)
    for block in spelled.model.layers:
        block.self_attn.attend = explicit_attention
    plain = losses(model, precision)
    assert plain[-1] < plain[0] - 0.1  # it learns
    floor = largest(losses(spelled, precision) - plain)
    close("loss", largest(losses(quick, precision) - plain), max(floor, unit(plain)))


def test_generation_with_a_cache_is_the_same():
    from smol_scratch import KVCache

    model = SmolLM2(dataclasses.replace(SMALL, dropout=0.0)).eval()
    randomise(model)
    quick = copy.deepcopy(model)
    accelerate(quick)
    ids = torch.randint(SMALL.vocab_size, (2, 12))
    found = []
    for one in (quick, model):
        cache = KVCache(one.config, batch_size=2)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append([one(piece, cache=cache)[0] for piece in ids.split([7, 4, 1], dim=1)])
    for one, other in zip(*found, strict=True):
        assert largest(one - other) <= 0.02 * nan_max([largest(other)])


def test_the_pieces_are_compiled_without_a_break():
    """By the tracer alone: a compiler for C++ is not needed here."""
    model = tiny(n_layer=1)
    accelerate(model)
    block, compiled = model.model.layers[0], copy.deepcopy(model.model.layers[0])
    compiled.compile(fullgraph=True, backend="aot_eager")
    assert list(compiled.state_dict()) == list(block.state_dict())
    x, upstream = torch.randn(2, 2, 17, model.config.n_embd)
    found = []
    for one in (block, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        y.backward(upstream)
        found.append([y, *(weight.grad for weight in one.parameters())])
    for one, other in zip(*found, strict=True):
        # The tracer may leave out roundings to bfloat16 between two operations.
        assert largest(one - other) <= 4 * torch.finfo(torch.bfloat16).eps * largest(other)


# Memory

FREED = """
import resource, torch
from smol_scratch.fast import keep_freed_memory
if {keep}: assert keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
x = torch.ones(64 << 20, dtype=torch.float32)  # 256 MiB
held = resident() - before
del x
print(f"{{(resident() - before) / held:.3f}}")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_freed_memory_is_kept_only_when_asked_for():
    kept, given_back = (
        float(subprocess.check_output([sys.executable, "-c", FREED.format(keep=keep)]))
        for keep in (True, False)
    )
    assert kept > 0.9
    assert given_back < 0.1


def test_without_glibc_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(fast.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(fast.ctypes, "CDLL", None)  # not even looked for
    assert fast.keep_freed_memory() is False


# The benchmark's ladder


@pytest.mark.parametrize("bf16", [False, True])
def test_all_rungs_of_the_ladder_compute_the_same_training(monkeypatch, bf16):
    """Three losses of each rung on one batch; weights so large that they depend on all pieces.

    In float32 they differ by rounding, which the updates may enlarge: 5e-7 was measured. In
    bfloat16 the noise floor is how far autocast alone takes the plain model; the two rungs that
    round more are almost twice as far.
    """
    small = dataclasses.replace(SMALL, init_std=0.2, dropout=0.0)
    for name, value in (("CONFIG", small), ("B", 2), ("T", 32)):
        monkeypatch.setattr(bench, name, value)

    def losses(variant, bf16=bf16):
        monkeypatch.setattr(bench, "has_bf16", lambda: bf16)
        step = bench.make_step(variant)
        return [step() for _ in range(3)]

    plain, autocast, *others = (v for v in bench.LADDER if not v.compiled)
    right = losses(plain)
    assert right[2] < right[0]
    floor = max(abs(a - b) for a, b in zip(losses(autocast), right, strict=True)) if bf16 else 1e-5
    assert floor > 0
    for variant in others:
        for ours, wanted in zip(losses(variant), right, strict=True):
            assert abs(ours - wanted) <= (3 if bf16 else 1) * floor, variant.name


def test_the_ladder_is_whole_and_its_sittings_are_put_in_proportion(monkeypatch):
    """Every sitting here is twice as slow as the one before: the rows must not show it."""
    slow = itertools.count()

    def measure(variants, rounds):
        factor = 2 ** next(slow)
        numbers = [bench.LADDER.index(variant) + 1 for variant in variants]
        return [bench.Row(v, n * factor, 0.0, 0) for v, n in zip(variants, numbers, strict=True)]

    monkeypatch.setattr(bench, "measure", measure)
    rows = bench.climb(bench.SITTINGS, 1)
    assert [row.variant for row in rows] == bench.LADDER
    assert [row.seconds for row in rows] == list(range(1, len(bench.LADDER) + 1))
