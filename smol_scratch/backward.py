"""The backward pass by hand: what each part does to a gradient, and a training step made of it.

``dy`` is the gradient of the loss with respect to y: it has y's shape, and says for each number of
y how fast the loss grows with it. The forward pass knows y; the backward pass walks the same way
from the other end, with dy. Three rules are enough for all that follows:

- where the forward pass **adds**, the gradient is copied to both summands;
- where it **uses a thing twice**, the gradients of both uses are added;
- where it **multiplies**, each factor's gradient is multiplied by the other factor.

Nothing here calls autograd; all of it works in float32 and in float64. Letters as in ``model.py``:
B batch, T tokens, C channels, H query heads, G key-value heads, D head dimension, V vocabulary.

Source: Rumelhart, Hinton and Williams, 1986, doi:10.1038/323533a0; for gradients of matrices
Giles, 2008, *An extended collection of matrix derivative results*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.model import Block, SmolLM2, causal_mask, fast_attention, rotate
from smol_scratch.wrappers import unwrapped

if TYPE_CHECKING:
    from smol_scratch.training import TrainingState

ROWS = 256  # tokens whose logits are in memory at a time: 50 MB in float32 at V = 49,152
IGNORED = -100  # the target that does not count, as in F.cross_entropy


# The parts.


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Take the gradient of y = x W^T back to x and to W.

    Each number of W meets each token once, so its gradient is a sum over all tokens.

    Args:
        dy: (..., out).
        x: what was multiplied, (..., in).
        weight: (out, in).

    Returns:
        dx (..., in) and dW (out, in).
    """
    dx = dy @ weight  # (..., in)
    dweight = dy.flatten(0, -2).T @ x.flatten(0, -2)  # (out, in)
    return dx, dweight


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return r = 1 / sqrt(mean(x²) + eps) of each token: (..., C) -> (..., 1)."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    r"""Take the gradient of RMSNorm, y = w ⊙ n with n = r x, back to x and to w.

    All channels share r, and r falls as x grows: dr/dx_j = -r³ x_j / C. So the part of the gradient
    that points along n itself is taken out (up to eps): a longer x would give the same y.

        dx = r (dn - n mean(dn ⊙ n))    with dn = w ⊙ dy

    Args:
        dy: (..., C).
        x: what was normalised, (..., C).
        weight: (C,).
        r: from ``inverse_rms``, (..., 1).

    Returns:
        dx (..., C) and dw (C,), the sum over all tokens.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467, section 4.
    """
    n = x * r  # (..., C)
    dweight = (dy * n).view(-1, x.shape[-1]).sum(0)  # (C,)
    dn = dy * weight  # (..., C)
    dx = r * (dn - n * (dn * n).mean(-1, keepdim=True))  # (..., C)
    return dx, dweight


def rotate_backward(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Take the gradient of ``rotate`` back: turn it by the opposite angle.

    A rotation's transpose is its inverse, and cos(-a) = cos(a), sin(-a) = -sin(a).

    Args:
        dy: gradient of the turned vectors, (B, heads, T, D).
        cos: cosine of the angles, (T, D/2).
        sin: sine of the angles, (T, D/2).

    Returns:
        (B, heads, T, D).
    """
    return rotate(dy, cos, -sin)


def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Take the gradient of causal attention back to queries, keys and values.

    With S = q k^T, P = softmax(S / sqrt(D)) and y = P v, row by row:

        dP = dy v^T        dS = P ⊙ (dP - sum(P ⊙ dP)) / sqrt(D)        dv = P^T dy
        dq = dS k          dk = dS^T q

    A masked score has P = 0, so its dS is 0: the mask needs no step of its own.

    P is computed again from q and k, so nobody has to keep it. The H/G queries of a group read the
    same key: its gradient is the sum of what they send back.

    Args:
        dy: (B, H, T, D).
        q: queries, turned, (B, H, T, D).
        k: keys, turned, (B, G, T, D).
        v: values, (B, G, T, D).

    Returns:
        dq (B, H, T, D), dk (B, G, T, D), dv (B, G, T, D).

    Source: Dao et al., 2022, arXiv:2205.14135, appendix B, for one head.
    """
    B, H, T, D = q.shape
    G = k.shape[1]
    K = k.repeat_interleave(H // G, dim=1)  # (B, H, T, D)
    V = v.repeat_interleave(H // G, dim=1)  # (B, H, T, D)
    S = q @ K.transpose(-2, -1)  # (B, H, T, T)
    S = S.masked_fill(~causal_mask(T, T, q.device), float("-inf"))
    P = F.softmax(S * D**-0.5, dim=-1)
    dP = dy @ V.transpose(-2, -1)  # (B, H, T, T)
    dS = P * (dP - (P * dP).sum(-1, keepdim=True)) * D**-0.5  # (B, H, T, T)
    dq = dS @ K  # (B, H, T, D)
    dK = dS.transpose(-2, -1) @ q  # (B, H, T, D)
    dV = P.transpose(-2, -1) @ dy  # (B, H, T, D)
    dk, dv = (d.view(B, G, H // G, T, D).sum(2) for d in (dK, dV))  # (B, G, T, D)
    return dq, dk, dv


def gate_backward(dm: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Take the gradient of SwiGLU's product, m = SiLU(gate) ⊙ up, back to both factors.

    SiLU(z) = z s with s the sigmoid of z, and ds/dz = s (1 - s): its slope is s (1 + z (1 - s)).

    Shapes: (..., hidden) each, and so the two that are returned.

    Source: Shazeer, 2020, arXiv:2002.05202, for the product.
    """
    s = torch.sigmoid(gate)  # (..., hidden)
    dgate = dm * up * s * (1 + gate * (1 - s))  # (..., hidden)
    dup = dm * gate * s  # (..., hidden)
    return dgate, dup


def cross_entropy_backward(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the gradient of the mean cross-entropy with respect to the logits.

    For one token, -log softmax(z)_y has the gradient p - onehot(y): the prediction, minus the token
    that really came next. In the mean each token's share is 1 / ``count``.

    Args:
        logits: (N, V).
        targets: (N,); -100 where none counts.
        count: targets that count, in the whole batch.

    Returns:
        (N, V).
    """
    valid = targets != IGNORED  # (N,)
    dlogits = F.softmax(logits, dim=-1)  # (N, V)
    dlogits[valid.nonzero().squeeze(1), targets[valid]] -= 1
    return dlogits * (valid.to(logits.dtype) / count).unsqueeze(1)  # (N, V)


def head_backward(
    x: Tensor, weight: Tensor, targets: Tensor, rows: int = ROWS
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss and its gradient in one go, for ``rows`` tokens at a time.

    Here the forward pass turns round. A token's logits are needed for its own loss and gradient
    alone, so no more than ``rows`` of them are ever in memory.

    Args:
        x: what the head reads, (N, C).
        weight: of the head, (V, C).
        targets: (N,); -100 where none counts.
        rows: tokens at a time.

    Returns:
        The mean loss, dx (N, C), and the head's gradient (V, C).
    """
    count = int((targets != IGNORED).sum())
    loss, dweight, parts = x.new_zeros(()), torch.zeros_like(weight), []
    for some, of_them in zip(x.split(rows), targets.split(rows), strict=True):
        logits = F.linear(some, weight)  # (rows, V)
        loss += F.cross_entropy(logits, of_them, reduction="sum") / count
        dlogits = cross_entropy_backward(logits, of_them, count)  # (rows, V)
        dx, dw = linear_backward(dlogits, some, weight)  # (rows, C), (V, C)
        dweight += dw
        parts.append(dx)
    return loss, torch.cat(parts), dweight


def embedding_backward(dx: Tensor, idx: Tensor, vocab_size: int) -> Tensor:
    """Take the gradient of the looked-up vectors back to the table: added up by token.

    Args:
        dx: (..., C).
        idx: token numbers, (...).
        vocab_size: rows of the table.

    Returns:
        (V, C); zero where a token does not occur in ``idx``.
    """
    dtable = dx.new_zeros(vocab_size, dx.shape[-1])  # (V, C)
    return dtable.index_add_(0, idx.flatten(), dx.flatten(0, -2))


# The model.


class Kept(NamedTuple):
    """What a block's backward pass needs of its forward pass; all else is computed again.

    Attributes:
        x: the stream as it came in, (B, T, C).
        q: queries, turned, (B, H, T, D).
        k: keys, turned, (B, G, T, D).
        v: values, (B, G, T, D).
        y: what attention gathered, (B, H, T, D).
        h: the stream after attention, (B, T, C).
        gate: what the gate's matrix gave, before SiLU, (B, T, hidden).
        up: what the other matrix gave, (B, T, hidden).
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    y: Tensor
    h: Tensor
    gate: Tensor
    up: Tensor


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Cut channels into heads: (B, T, heads · D) -> (B, heads, T, D)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Put heads side by side: (B, heads, T, D) -> (B, T, heads · D)."""
    return x.transpose(1, 2).flatten(2)


def block_forward(block: Block, x: Tensor) -> tuple[Tensor, Kept]:
    """Run a block as ``Block.forward`` does, and keep what the way back needs.

    Args:
        block: its weights are read, nothing else of it is run.
        x: the stream, (B, T, C).

    Returns:
        The stream after the block, (B, T, C), and what to keep.
    """
    attention, mlp = block.self_attn, block.mlp
    norm, T, D = block.input_layernorm, x.shape[1], attention.head_dim
    cos, sin = attention.rope.cos[:T], attention.rope.sin[:T]  # (T, D/2) each
    a = norm.weight * (x * inverse_rms(x, norm.eps))  # (B, T, C)
    q = rotate(split_heads(F.linear(a, attention.q_proj.weight), D), cos, sin)  # (B, H, T, D)
    k = rotate(split_heads(F.linear(a, attention.k_proj.weight), D), cos, sin)  # (B, G, T, D)
    v = split_heads(F.linear(a, attention.v_proj.weight), D)  # (B, G, T, D)
    y = fast_attention(q, k, v)  # (B, H, T, D)
    h = x + F.linear(join_heads(y), attention.o_proj.weight)  # (B, T, C)
    norm = block.post_attention_layernorm
    b = norm.weight * (h * inverse_rms(h, norm.eps))  # (B, T, C)
    gate, up = F.linear(b, mlp.gate_proj.weight), F.linear(b, mlp.up_proj.weight)
    out = h + F.linear(F.silu(gate) * up, mlp.down_proj.weight)  # (B, T, C)
    return out, Kept(x, q, k, v, y, h, gate, up)


def block_backward(block: Block, kept: Kept, dout: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Take the stream's gradient back through a block: the lines of ``block_forward``, upwards.

    Args:
        block: its weights.
        kept: from ``block_forward``.
        dout: gradient of the stream after the block, (B, T, C).

    Returns:
        The gradient of the stream before it, (B, T, C), and the block's own: name to gradient.
    """
    x, q, k, v, y, h, gate, up = kept
    attention, mlp, grads = block.self_attn, block.mlp, {}
    D, T = attention.head_dim, x.shape[1]
    cos, sin = attention.rope.cos[:T], attention.rope.sin[:T]  # (T, D/2) each

    # The MLP: out = h + down(SiLU(gate) ⊙ up).
    norm = block.post_attention_layernorm
    r = inverse_rms(h, norm.eps)  # (B, T, 1)
    b = norm.weight * (h * r)  # (B, T, C)
    dm, grads["mlp.down_proj.weight"] = linear_backward(
        dout, F.silu(gate) * up, mlp.down_proj.weight
    )
    dgate, dup = gate_backward(dm, gate, up)  # (B, T, hidden) each
    db, grads["mlp.gate_proj.weight"] = linear_backward(dgate, b, mlp.gate_proj.weight)
    more, grads["mlp.up_proj.weight"] = linear_backward(dup, b, mlp.up_proj.weight)
    dh, grads["post_attention_layernorm.weight"] = norm_backward(db + more, h, norm.weight, r)
    dh = dout + dh  # h was used twice: beside the branch, and in it

    # Attention: h = x + o(attend(q, k, v)).
    norm = block.input_layernorm
    r = inverse_rms(x, norm.eps)  # (B, T, 1)
    a = norm.weight * (x * r)  # (B, T, C)
    dy, grads["self_attn.o_proj.weight"] = linear_backward(
        dh, join_heads(y), attention.o_proj.weight
    )
    dq, dk, dv = attention_backward(split_heads(dy, D), q, k, v)
    dq, dk = rotate_backward(dq, cos, sin), rotate_backward(dk, cos, sin)
    da = torch.zeros_like(a)  # a was used three times
    for name, d in (("q_proj", dq), ("k_proj", dk), ("v_proj", dv)):
        weight = attention.get_parameter(f"{name}.weight")
        more, grads[f"self_attn.{name}.weight"] = linear_backward(join_heads(d), a, weight)
        da = da + more
    dx, grads["input_layernorm.weight"] = norm_backward(da, x, norm.weight, r)
    return dh + dx, grads


def model_forward(model: SmolLM2, idx: Tensor) -> tuple[Tensor, list[Kept]]:
    """Run all blocks; return the stream before the last norm, and what each block kept.

    Args:
        model: its weights are read; ``accelerate`` and dropout change nothing here.
        idx: token numbers, (B, T).

    Returns:
        (B, T, C), and one ``Kept`` for each block.
    """
    model = unwrapped(model)
    inner: Any = model.model
    x, kept = F.embedding(idx, inner.embed_tokens.weight), []  # (B, T, C)
    for block in inner.layers:
        x, of_block = block_forward(block, x)
        kept.append(of_block)
    return x, kept


def model_backward(
    model: SmolLM2, idx: Tensor, targets: Tensor, x: Tensor, kept: list[Kept]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss, and its gradient for every weight of the model.

    Args:
        model: the same that ``model_forward`` ran.
        idx: token numbers, (B, T).
        targets: what really came next, (B, T); -100 where none counts.
        x: from ``model_forward``, (B, T, C).
        kept: from ``model_forward``; emptied on the way, so that its memory can be used again.

    Returns:
        The mean loss in nats per token, and the gradients under the names and in the order of
        ``model.named_parameters()``.
    """
    model = unwrapped(model)
    inner: Any = model.model
    norm, first = inner.norm, "model.embed_tokens.weight"
    head = first if model.config.tie_embeddings else "lm_head.weight"
    r = inverse_rms(x, norm.eps)  # (B, T, 1)
    y = norm.weight * (x * r)  # (B, T, C)
    loss, dy, dhead = head_backward(y.flatten(0, 1), model.get_parameter(head), targets.flatten())
    grads = {head: dhead}
    dx, grads["model.norm.weight"] = norm_backward(dy.view_as(x), x, norm.weight, r)
    for i in reversed(range(model.config.n_layer)):
        dx, of_block = block_backward(inner.layers[i], kept.pop(), dx)
        grads |= {f"model.layers.{i}.{name}": grad for name, grad in of_block.items()}
    dtable = embedding_backward(dx, idx, model.config.vocab_size)  # (V, C)
    # Tied, the one table was used twice: to look up, and as the head.
    grads[first] = grads[first] + dtable if first in grads else dtable
    return loss, {name: grads[name] for name, _ in model.named_parameters()}


@torch.no_grad()
def loss_and_gradients(
    model: SmolLM2, idx: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Do what ``model(idx, targets)[1].backward()`` does, without autograd.

    Args:
        model: weights in float32 or float64.
        idx: token numbers, (B, T).
        targets: what really came next, (B, T); -100 where none counts.

    Returns:
        The mean loss in nats per token, and the gradient of each parameter by its name.

    Raises:
        ValueError: for weights in 16 bits, for a dropout that is switched on, and for whatever the
            model itself refuses.
    """
    model = unwrapped(model)
    model._check(idx, targets, None)
    dtype = model.get_parameter("model.embed_tokens.weight").dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weights of {dtype}: the backward pass by hand takes model.float()")
    if model.training and model.config.dropout:
        raise ValueError(f"dropout={model.config.dropout}: not done by hand; call model.eval()")
    return model_backward(model, idx, targets, *model_forward(model, idx))


# The step.


def clip_gradients(gradients: Mapping[str, Tensor], largest: float) -> float:
    """Shorten all gradients by one factor, in place, where together they are too long.

    Args:
        gradients: name to gradient.
        largest: the length that all of them may have, as one long vector.

    Returns:
        Their length before.

    Source: Pascanu et al., 2013, arXiv:1211.5063; ``torch.nn.utils.clip_grad_norm_`` has the 1e-6.
    """
    norm = math.sqrt(sum(float(grad.norm()) ** 2 for grad in gradients.values()))
    for grad in gradients.values():
        grad.mul_(min(1.0, largest / (norm + 1e-6)))
    return norm


def adamw(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int, *,
    rate: float, decay: float, beta1: float, beta2: float, eps: float = 1e-8,
) -> None:  # fmt: skip
    """Move one weight by AdamW, in place, and its two moments with it.

    Args:
        weight: any shape; so the other three.
        grad: its gradient.
        mean: running mean of the gradient.
        square: running mean of its square.
        step: this update's number, from 1.
        rate: the learning rate.
        decay: share of the weight, per unit of the rate, by which it shrinks.
        beta1: memory of ``mean``.
        beta2: memory of ``square``.
        eps: keeps the division from exploding where all gradients were about zero.

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """
    mean.mul_(beta1).add_(grad, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    spread = (square / (1 - beta2**step)).sqrt_().add_(eps)  # both moments began at zero
    weight.mul_(1 - rate * decay)
    weight.addcdiv_(mean, spread, value=-rate / (1 - beta1**step))


@dataclass
class Moments:
    """What AdamW remembers: for each weight by its name, two tensors of its shape."""

    mean: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def train_step_by_hand(state: TrainingState, moments: Moments) -> tuple[float, float, float]:
    """Make the update that ``training.train_step`` makes, without autograd and torch.optim.

    Args:
        state: of a run in float32 on one device; its own optimizer is left alone.
        moments: of the same run; empty before the first step.

    Returns:
        Loss, learning rate and gradient norm.

    Raises:
        ValueError: for a run in 16 bits, on several devices, or with dropout.
        ArithmeticError: when loss or gradient is not finite; nothing is updated then.
    """
    config, model = state.config, state.model
    if state.precision.dtype != torch.float32 or state.world_size > 1:
        raise ValueError(
            f"precision {state.precision.dtype} on {state.world_size} device(s): by hand a step "
            "takes precision='fp32' and one device"
        )
    place, total = state.loader.state_dict(), 0.0
    sums: dict[str, Tensor] = {}
    for _ in range(config.accumulate):
        x, y = (t.to(state.device) for t in state.loader.next_batch())  # (B, T) each
        loss, grads = loss_and_gradients(model, x, y)
        total += loss.item() / config.accumulate
        for name, grad in grads.items():
            grad /= config.accumulate
            sums[name] = sums[name].add_(grad) if name in sums else grad
    rate, norm = config.learning_rate_at(state.step), clip_gradients(sums, config.clip)
    if not math.isfinite(total) or not math.isfinite(norm):
        state.loader.load_state_dict(place)
        raise ArithmeticError(f"step {state.step}: loss {total}, gradient norm {norm}: not finite")
    state.step += 1
    for name, weight in model.named_parameters():
        for moment in (moments.mean, moments.square):
            if name not in moment:
                moment[name] = torch.zeros_like(weight)
        decays = weight.ndim >= 2 or not config.decay_matrices_only
        adamw(
            weight, sums.pop(name), moments.mean[name], moments.square[name], state.step,
            rate=rate, decay=config.weight_decay if decays else 0.0,
            beta1=config.beta1, beta2=config.beta2,
        )  # fmt: skip
    return total, rate, norm
