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


def without_the_weight_inside(x, weight, grad, eps):
    r, g, _ = parts(x, weight, grad, eps)
    return r * g - x * r**3 * (grad * x).mean(-1, keepdim=True)


def diagnosed(**changed):
    right = {"A": "ε outside the root", "B": "mean over time", "C": "weight plus one"}
    return right | {"D": "healthy", "E": "subtracts the mean"} | changed


WRONG = {
    "check_neighbours": [
        (1, "share one root mean square"),
        (0.1, "only one number of four does"),
        (5.07, "the outputs are divided by it"),
        (10, "What is the root mean square of (10, 1, 1, 1)"),
        (0.39, "What is the root mean square of (10, 1, 1, 1)"),
    ],
    "check_backward": [
        (first_half, "this is the first half"),
        (without_the_mean, "a sum where the mean belongs"),
        (mean_over_tokens, "is the mean taken over channels?"),
        (without_the_weight, "from autograd"),
        (without_the_weight_inside, "the weight is missing in the second half"),
        (plus, "right but for one sign"),
        (without_eps, "from autograd"),
        (lambda x, weight, grad, eps: grad.sum(-1), "must have the shape of x"),
    ],
    "check_diagnoses": [
        (dict.fromkeys("ABCDE", "healthy"), "4 of 5 are wrong"),
        (diagnosed(A="healthy", D="ε outside the root"), "on tiny ones"),
        (diagnosed(B="subtracts the mean", E="mean over time"), "add 5 to every channel"),
        (diagnosed(C="mean over time"), "change a later token"),
        (diagnosed(A="wrong epsilon"), "is not one of healthy"),
        ({"A": "healthy"}, "with the keys A, B, C, D, E"),
    ],
}
