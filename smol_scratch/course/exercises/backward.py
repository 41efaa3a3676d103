"""Checkers for notebook 15, the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import backward
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.course.measure.replaced import replaced
from smol_scratch.model import SmolLM2

_PENCIL = {"g": 6, "h": 24, "x": 108}


@exercise
def check_pencil(answer: Mapping[str, float]) -> str:
    """Expect the gradients at g, h and x of h = 3x, g = h x, y = g h at x = 2."""
    if not isinstance(answer, Mapping) or set(answer) != set(_PENCIL):
        raise Hint('the answer is a dictionary with "g", "h" and "x"')
    found = {name: float(value) for name, value in answer.items()}
    if found["g"] == 12:
        raise Hint("12 is g itself; a factor gets the value of the *other* one")
    if found["g"] != 6:
        raise Hint(f"{answer['g']} at g: y grows with it as fast as the other factor is large")
    if found["h"] == 12:
        raise Hint("12 is one of the two gradients that arrive at h: it is used in g and in y")
    if found["h"] != 24:
        raise Hint(f"{answer['h']} at h: h is a factor of two products; find what each sends back")
    if found["x"] == 72:
        raise Hint("72 comes back through h; x is used a second time, in g")
    if found["x"] == 36:
        raise Hint("36 comes back from g alone; x is used a second time, in h")
    if found["x"] != 108:
        raise Hint(f"{answer['x']} at x: x is used in two places; find what each sends back")
    return "y = 9x³, whose slope 27x² is 108 at x = 2"


@exercise
def check_layer_norm(answer: Callable[..., tuple[Tensor, Tensor]]) -> str:
    """Expect a function (dy, x, weight, eps) -> dx, dweight for LayerNorm without bias."""
    generator = torch.Generator().manual_seed(5)
    x, dy = torch.randn(2, 3, 4, 10, generator=generator, dtype=torch.double)
    x = 2 * x + 1
    weight = torch.randn(10, generator=generator, dtype=torch.double).requires_grad_()
    x.requires_grad_()
    want = torch.autograd.grad(F.layer_norm(x, (10,), weight, eps=1e-5), (x, weight), dy)
    found = answer(dy, x.detach(), weight.detach(), 1e-5)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint("return two tensors: dx and dweight")
    for name, ours, theirs in zip(("dx", "dweight"), found, want, strict=True):
        if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
            shape = tuple(getattr(ours, "shape", ()))
            raise Hint(f"{name} has shape {shape}; it must be {tuple(theirs.shape)}")
    dx, dweight = found
    if not torch.allclose(dweight, want[1]):
        plain = torch.autograd.grad(F.rms_norm(x, (10,), weight, 1e-5), weight, dy)[0]
        if torch.allclose(dweight, plain):
            raise Hint("dweight is RMSNorm's: what the weight multiplies has its mean taken off")
        raise Hint("dweight is off: it is the sum over all tokens of dy times what was normalised")
    if torch.allclose(dx, want[0]):
        return "the mean goes out of the gradient as it went out of x: one more term, same pattern"
    n = F.layer_norm(x.detach(), (10,), eps=1e-5)
    dn = dy * weight.detach()
    r = (x.detach().var(-1, keepdim=True, correction=0) + 1e-5).rsqrt()
    if torch.allclose(dx, r * (dn - n * (dn * n).mean(-1, keepdim=True))):
        raise Hint("dx is RMSNorm's: adding a constant to x changes nothing either, so the mean "
                   "of dn must go as well")  # fmt: skip
    if torch.allclose(dx, r * (dn - dn.mean(-1, keepdim=True))):
        raise Hint("dx lets the mean go, and forgets that r depends on x too")
    if torch.allclose(dx, r * dn):
        raise Hint("dx treats mean and r as constants; both depend on x")
    raise Hint("dx is off. Its sum over the channels of a token must be 0, and so must its "
               "product with the normalised x (up to eps)")  # fmt: skip


@lru_cache(maxsize=1)
def _small() -> tuple[SmolLM2, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        model = SmolLM2(
            SmolLM2Config(
                vocab_size=61, block_size=32, n_layer=3, n_head=6, n_kv_head=2, n_embd=48,
                intermediate_size=80, head_dim=8, init_std=48**-0.5,
            )
        )  # fmt: skip
        idx, targets = torch.randint(61, (2, 2, 16))
    return model, idx, targets


def colleague() -> tuple[SmolLM2, Tensor, Tensor, dict[str, Tensor]]:
    """Return a model, tokens and targets (B, T), and the gradients that a colleague computed."""
    model, idx, targets = _small()
    right, calls = backward.attention_backward, 0

    def wrong(
        dy: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        nonlocal calls
        calls += 1
        dq, dk, dv = right(dy, q, k, v)
        lost = q.shape[-1] ** 0.5 if calls == 2 else 1  # the 1/√D of dS, in layer 1
        return lost * dq, lost * dk, dv

    with replaced([backward], "attention_backward", wrong):
        _, grads = backward.loss_and_gradients(model, idx, targets)
    return model, idx, targets, grads


# Variables of the backward pass that the gradients of the colleague rule out, and why.
_RULED_OUT = {
    "dV": "then v_proj's gradient would be wrong, and it is right",
    "dv": "then v_proj's gradient would be wrong, and it is right",
    "dq": "then k_proj's gradient would be right",
    "dK": "then q_proj's gradient would be right",
    "dk": "then q_proj's gradient would be right",
    "dP": "a factor lost there would look just the same from outside, but our line for dP has "
          "none to lose; which line has?",
    "S": "our line for S has no factor to lose",
    "P": "lost there it would change P, and v's gradient with it; but v_proj's is right",
    "dq, dk": "a factor lost in the rotation would reach both, but that line has none to lose; "
              "which line has?",
}  # fmt: skip


@exercise
def check_fault(answer: Mapping[str, object]) -> str:
    """Expect the layer, the variable and the factor of the line that the colleague got wrong."""
    if not isinstance(answer, Mapping) or set(answer) != {"layer", "variable", "factor"}:
        raise Hint('the answer is a dictionary with "layer", "variable" and "factor"')
    layer, variable, factor = (answer[name] for name in ("layer", "variable", "factor"))
    if layer == 2:
        raise Hint("every gradient of layer 2 is right, up to rounding")
    if layer == 0:
        raise Hint("layer 0 is reached last: what came to it from layer 1 was wrong already")
    if layer != 1:
        raise Hint(f"layer {layer!r}: the layers are 0, 1 and 2")
    if variable != "dS":
        first = ("in layer 1 the MLP, o_proj and v_proj are right, q_proj and k_proj are not; on "
                 "which line do those two depend, and v_proj not?")  # fmt: skip
        raise Hint(f"{variable!r}: {_RULED_OUT.get(str(variable), first)}")
    if isinstance(factor, Tensor):
        factor = factor.item()
    if not isinstance(factor, int | float):
        raise Hint("the factor is a number")
    if abs(factor - 8**0.5) < 0.03:
        raise Hint("her gradients are that many times too large; which factor was lost?")
    if abs(factor - 1 / 8) < 0.003:
        raise Hint("1/8 is 1/D; compare the lengths of her gradient of q_proj and the right one")
    if abs(factor - 8**-0.5) > 0.003:
        raise Hint(f"{factor}: compare the lengths of her gradient of q_proj and the right one")
    return "dS lost 1/√8, the 1/√D of the scores: q and k depend on it, v does not"


@exercise
def check_accumulate(answer: Callable[..., dict[str, Tensor]]) -> str:
    """Expect a function (model, pieces) -> gradients of the mean over all counted targets.

    ``pieces`` can be read once; of its three pieces the second has no target that counts.
    """
    model, idx, targets = _small()
    targets = targets.clone()
    targets[1, 3:] = -100
    none = torch.full_like(targets[:1], -100)
    pieces = [(idx[:1], targets[:1]), (idx[:1], none), (idx[1:], targets[1:])]
    _, want = backward.loss_and_gradients(model, idx, targets)
    each = [backward.loss_and_gradients(model, *piece)[1] for piece in (pieces[0], pieces[2])]
    found = answer(model, iter(pieces))
    if isinstance(found, Mapping) and not found:
        raise Hint("nothing came back: `pieces` can be read only once, and a second loop over it "
                   "finds it empty")  # fmt: skip
    if not isinstance(found, Mapping) or set(found) != set(want):
        raise Hint("return a dictionary with a gradient under each parameter's name")
    if any(not isinstance(grad, Tensor) for grad in found.values()):
        raise Hint("a gradient is a tensor; one of these is not")
    if any(grad.isnan().any() for grad in found.values()):
        raise Hint("nan: in one piece no target counts, and its mean is 0/0. Leave it out")

    def near(expected: Callable[[str], Tensor]) -> bool:
        return all(torch.allclose(found[name], expected(name), atol=1e-6) for name in want)

    if near(lambda name: (each[0][name] + each[1][name]) / 2) or near(
        lambda name: (each[0][name] + each[1][name]) / 3
    ):
        raise Hint("these are the pieces' means, averaged: a target in the short piece counts "
                   "five times as much as one in the long piece")  # fmt: skip
    if near(lambda name: each[0][name] + each[1][name]):
        raise Hint("this is the sum of the pieces' means: a target in the short piece counts five "
                   "times as much as one in the long piece")  # fmt: skip
    if near(lambda name: 16 * each[0][name] + 3 * each[1][name]):
        raise Hint("each piece has its right weight; the sum still wants dividing by all targets")
    if not near(lambda name: want[name]):
        raise Hint("not the gradient of all pieces at once. How many targets of a piece count? "
                   "Those that are -100 do not")  # fmt: skip
    return "each piece weighs as many targets as it has, and pieces are no longer seen"
