import math

import torch


def all_at_once(q, keys, values):
    k, v = torch.stack(list(keys)), torch.stack(list(values))
    return torch.softmax(k @ q / math.sqrt(len(q)), dim=0) @ v


def without_maximum(q, keys, values):
    total, y = 0.0, 0.0
    for k, v in zip(keys, values, strict=True):
        weight = torch.exp(q @ k / math.sqrt(len(q)))
        total, y = total + weight, y + weight * v
    return y / total


def streamed(q, keys, values, scale=None, corrected=True):
    scale = len(q) ** -0.5 if scale is None else scale
    largest, total, y = -math.inf, 0.0, 0.0
    for k, v in zip(keys, values, strict=True):
        score = float(q @ k) * scale
        new = max(largest, score)
        old = math.exp(largest - new) if corrected or largest == -math.inf else 1.0
        now = math.exp(score - new)
        total, y, largest = total * old + now, y * old + now * v, new
    return y / total


WRONG = {
    "check_cache_bytes": [
        (65_536, "half of it"),
        (524_288, "the query heads are not stored"),
        (262_144, "bfloat16 takes two bytes"),
        (4096, "that is one layer"),
        (23_040, "layers · 2 · key-value heads"),
    ],
    "check_streamed": [
        (all_at_once, "keeps the keys or values"),
        (without_maximum, "right for small scores"),
        (lambda *given: streamed(*given, scale=1.0), "without the division of the scores"),
        (lambda *given: streamed(*given, corrected=False), "multiply it by exp(old - new)"),
        (lambda q, keys, values: torch.zeros_like(q), "as wide as a value"),
        (lambda q, keys, values: torch.stack(list(values)[:3]).mean(0), ""),
    ],
    "check_mystery": [
        ({"window": 6, "sinks": 0}, "whether it still sees the very first token"),
        ({"window": 9, "sinks": 3}, "the sinks do not belong to the window"),
        ({"window": 5, "sinks": 3}, "the window holds the token itself"),
        ({"window": 6, "sinks": 1}, "not 1 sinks"),
        ({"window": 7, "sinks": 3}, "not a window of 7"),
    ],
    "check_means": [
        ({"before": 0.051, "first": 0.093, "after": 0.058, "itself": 0.0135}, "what zeros do"),
        (dict.fromkeys(("before", "first", "after", "itself"), 0.0964), "is the hook at work"),
        ({"before": 3.1, "first": 3.2, "after": 3.0, "itself": 1.0}, "take the softmax"),
        ({"before": 0.2, "first": 0.0964, "after": 0.3, "itself": 0.1}, "The mean goes over"),
        ({"before": 0.05}, "a dictionary with before"),
    ],
}
