import torch

from smol_scratch import backward


def pencil(g, h, x):
    return {"g": g, "h": h, "x": x}


def fault(layer=1, variable="dS", factor=8**-0.5):
    return {"layer": layer, "variable": variable, "factor": factor}


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


def accumulated(weigh, divide, skip=True):
    def answer(model, pieces):
        pieces = [piece for piece in pieces if counted(piece[1]) or not skip]
        grads = [backward.loss_and_gradients(model, *piece)[1] for piece in pieces]
        weights = [weigh(targets) for _, targets in pieces]
        return {
            name: sum(w * g[name] for w, g in zip(weights, grads, strict=True)) / divide(weights)
            for name in grads[0]
        }

    return answer


def twice_round(model, pieces):
    total, sums = sum(counted(targets) for _, targets in pieces), {}
    for idx, targets in pieces:
        _, grads = backward.loss_and_gradients(model, idx, targets)
        for name, grad in grads.items():
            sums[name] = sums.get(name, 0) + grad * counted(targets) / total
    return sums


def counted(targets):
    return int((targets != -100).sum())


WRONG = {
    "check_pencil": [
        (pencil(12, 24, 108), "the *other* one"),
        (pencil(3, 24, 108), "at g: y grows"),
        (pencil(6, 12, 108), "used in g and in y"),
        (pencil(6, 18, 108), "a factor of two products"),
        (pencil(6, 24, 72), "a second time, in g"),
        (pencil(6, 24, 36), "a second time, in h"),
        (pencil(6, 24, 27), "in two places"),
        ({"g": 6, "h": 24}, "a dictionary with"),
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
    "check_fault": [
        (fault(2), "layer 2 is right"),
        (fault(0), "was wrong already"),
        (fault(7), "the layers are"),
        (fault(variable="dV"), "v_proj's gradient would be wrong"),
        (fault(variable="dq"), "k_proj's gradient would be right"),
        (fault(variable="dP"), "just the same from outside"),
        (fault(variable="dq, dk"), "lost in the rotation"),
        (fault(variable="S"), "has no factor to lose"),
        (fault(variable="P"), "would change P"),
        (fault(variable="dgate"), "on which line do those two depend"),
        (fault(factor=8**0.5), "which factor was lost"),
        (fault(factor=torch.tensor(1 / 8)), "1/8 is 1/D"),
        (fault(factor=2), "compare the lengths"),
        (fault(factor="0.35"), "is a number"),
        ({"layer": 1}, "a dictionary with"),
    ],
    "check_accumulate": [
        (accumulated(lambda _: 1, len), "means, averaged"),
        (accumulated(lambda _: 1, lambda weights: len(weights) + 1), "means, averaged"),
        (accumulated(lambda _: 1, lambda _: 1), "the sum of the pieces' means"),
        (accumulated(counted, sum, skip=False), "its mean is 0/0"),
        (twice_round, "only once"),
        (lambda model, pieces: dict.fromkeys(dict(model.named_parameters()), 0), "is a tensor"),
        (accumulated(counted, lambda _: 1), "still wants dividing"),
        (accumulated(lambda t: t.numel(), sum), "means, averaged"),
        (accumulated(lambda t: counted(t) + 1, sum), "not the gradient of all"),
        (lambda model, pieces: [], "return a dictionary"),
    ],
}
