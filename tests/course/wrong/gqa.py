import math

import torch


def all_at_once(q, keys, values):
    k, v = torch.stack(list(keys)), torch.stack(list(values))
    return torch.softmax(k @ q / math.sqrt(len(q)), dim=0) @ v


def without_maximum(q, keys, values):
    total, y = 0.0, torch.zeros_like(q)
    for k, v in zip(keys, values, strict=True):
        weight = torch.exp(q @ k / math.sqrt(len(q)))
        total, y = total + weight, y + weight * v
    return y / total


def streamed(q, keys, values, scale=None, corrected=True):
    scale = len(q) ** -0.5 if scale is None else scale
    largest, total, y = -math.inf, 0.0, torch.zeros_like(q)
    for k, v in zip(keys, values, strict=True):
        score = float(q @ k) * scale
        new = max(largest, score)
        old = math.exp(largest - new) if corrected or largest == -math.inf else 1.0
        now = math.exp(score - new)
        total, y, largest = total * old + now, y * old + now * v, new
    return y / total


WRONG = {
    "check_silent_heads": [
        ([1, 4, 7], "every third head"),
        ([1], "cannot be 1 of them"),
        ([0, 1, 2], "which is group 1?"),
        ([4, 5, 6], "which is group 1?"),
        (list(range(3, 9)), "cannot be 6 of them"),
        ("3, 4, 5", "a list of the numbers of query heads"),
    ],
    "check_streamed": [
        (all_at_once, "keeps the keys or values"),
        (without_maximum, "right for small scores"),
        (lambda *given: streamed(*given, scale=1.0), "without the division of the scores"),
        (lambda *given: streamed(*given, corrected=False), "multiply it by exp(old - new)"),
        (lambda q, keys, values: torch.stack(list(values)[:3]).mean(0), ""),
    ],
    "check_reach": [
        (3, "the reach of one layer"),
        (4, "the window of four holds the token itself"),
        (12, "the window of four holds the token itself"),
        (64, "not what a gradient shows"),
    ],
}
