import torch


def parts(x, weight, grad, eps):
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    g = grad * weight
    return r, g, (g * x).mean(-1, keepdim=True)


def without_the_mean(x, weight, grad, eps):
    r, g, _ = parts(x, weight, grad, eps)
    return r * g - x * r**3 * (g * x).sum(-1, keepdim=True)


def mean_over_tokens(x, weight, grad, eps):
    r, g, _ = parts(x, weight, grad, eps)
    return r * g - x * r**3 * (g * x).mean(0, keepdim=True)


def without_the_weight(x, weight, grad, eps):
    return parts(x, torch.ones_like(weight), grad, eps)[0] * grad


def without_eps(x, weight, grad, eps):
    r, g, mean = parts(x, weight, grad, 0.0)
    return r * g - x * r**3 * mean


def plus(x, weight, grad, eps):
    r, g, mean = parts(x, weight, grad, eps)
    return r * g + x * r**3 * mean


def first_half(x, weight, grad, eps):
    return weight * grad * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


WRONG = {
    "check_scale": [
        (10, "what is left of the factor"),
        (10**0.5, "what is left of the factor"),
        (1.01, "what is left of the factor"),
        (0.1, "what is left of the factor"),
        (0, "what is left of the factor"),
    ],
    "check_backward": [
        (first_half, "this is the first half"),
        (without_the_mean, "is the mean taken over channels?"),
        (mean_over_tokens, "is the mean taken over channels?"),
        (without_the_weight, "from autograd"),
        (plus, "from autograd"),
        (without_eps, "from autograd"),
        (lambda x, weight, grad, eps: grad.sum(-1), "must have the shape of x"),
    ],
    "check_overflow": [
        (2**20, "its square is infinite"),
        (256, "its square is infinite"),
        (64, "a larger one fits too"),
        (255, "is no power of two"),
        (65_504, "is no power of two"),
    ],
}
