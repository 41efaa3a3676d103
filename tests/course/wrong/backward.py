import torch

from smol_scratch import backward


def pencil(gate, up, x):
    return {"gate": gate, "up": up, "x": x}


def layer_norm(take_mean, take_projection, own_weight=True):
    def answer(dy, x, weight, eps):
        centred = x - x.mean(-1, keepdim=True)
        r = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
        n = centred * r
        dn = dy * weight
        dx = dn - dn.mean(-1, keepdim=True) if take_mean else dn
        if take_projection:
            dx = dx - n * (dn * n).mean(-1, keepdim=True)
        if own_weight:
            return r * dx, (dy * n).flatten(0, -2).sum(0)
        return r * dx, (dy * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).sum((0, 1))

    return answer


def nearly(dy, x, weight, eps):
    dx, dweight = layer_norm(True, True)(dy, x, weight, eps)
    return dx * 1.001, dweight


def accumulated(weigh, divide):
    def answer(model, pieces):
        grads = [backward.loss_and_gradients(model, *piece)[1] for piece in pieces]
        weights = [weigh(targets) for _, targets in pieces]
        return {
            name: sum(w * g[name] for w, g in zip(weights, grads, strict=True)) / divide(weights)
            for name in grads[0]
        }

    return answer


def counted(targets):
    return int((targets != -100).sum())


WRONG = {
    "check_pencil": [
        (pencil(6, 4, 25), "the *other* one"),
        (pencil(3, 6, 25), "at the gate"),
        (pencil(4, 2, 25), "at up"),
        (pencil(4, 6, 24), "a third time, beside it"),
        (pencil(4, 6, 11), "still pass the 3 and the 2"),
        (pencil(4, 6, 13), "three gradients to add"),
        ({"gate": 4, "up": 6}, "a dictionary with"),
    ],
    "check_layer_norm": [
        (layer_norm(False, True), "dx is RMSNorm's"),
        (layer_norm(True, False), "r depends on x too"),
        (layer_norm(False, False), "as constants"),
        (layer_norm(True, True, False), "dweight is RMSNorm's"),
        (nearly, "dx is off"),
        (lambda dy, x, weight, eps: (dy, dy), "dweight has shape"),
        (lambda dy, x, weight, eps: dy, "return two tensors"),
    ],
    "check_first_wrong": [
        ("model.layers.1.mlp.up_proj.weight", "is right"),
        ("model.layers.1.post_attention_layernorm.weight", "reaches sooner"),
        ("model.layers.0.mlp.gate_proj.weight", "the last to be reached"),
        ("model.embed_tokens.weight", "through its look-up"),
        ("gate_proj", "no name of a parameter"),
    ],
    "check_accumulate": [
        (accumulated(lambda _: 1, len), "the mean of the two means"),
        (accumulated(lambda _: 1, lambda _: 1), "the sum of the two means"),
        (accumulated(counted, lambda _: 1), "still wants dividing"),
        (accumulated(lambda t: t.numel(), sum), "the mean of the two means"),
        (accumulated(lambda t: counted(t) + 1, sum), "not the gradient of all"),
        (lambda model, pieces: [], "return a dictionary"),
    ],
}
