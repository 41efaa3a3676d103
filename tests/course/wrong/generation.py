import math

import torch


def below(logits, bound):
    return logits.masked_fill(logits < bound, -math.inf)


def one_step(q, k, v, cache, scale=None, kept=("k", "v"), itself=True):
    keys, values = (
        torch.cat((cache.get(name, new.new_empty(0, len(new))), new[None]))
        for name, new in (("k", k), ("v", v))
    )
    cache |= {name: all_of_it for name, all_of_it in (("k", keys), ("v", values)) if name in kept}
    if not itself and len(keys) > 1:
        keys, values = keys[:-1], values[:-1]
    return torch.softmax(keys @ q * (len(q) ** -0.5 if scale is None else scale), 0) @ values


def elsewhere(q, k, v, cache, drawer={}):  # noqa: B006 (the mistake)
    if drawer and drawer["k"].shape[-1] != len(q):  # the next try has heads of another width
        drawer.clear()
    return one_step(q, k, v, drawer)


RIGHT = {"temperature": 1.6, "top_p": 0.75, "first": "top_p"}

WRONG = {
    "check_tokens_per_second": [
        (50 / 1.7 / 4.5, "4.5 are bits"),
        (50 / 1.7 / 4, "that is float32"),
        (50 / 1.7 / 2, "that is bfloat16"),
        (50 / 1.7, "that is one byte per weight"),
        (1.7 * 4.5 / 8 / 50, "seconds per token"),
        (26.1, "each weight is read once per token"),
        (50, "divided by the bytes that one token has to read"),
        (54, "divided by the bytes that one token has to read"),
        ("fifty", "answer with one number"),
    ],
    "check_min_p": [
        (lambda z, p: z.masked_fill_(z < 0, 0), "changes its input"),
        (lambda z, p: below(z, p * z.amax()), "is not the score of min_p times as much"),
        (lambda z, p: below(z, z.amax() + math.log(p)), "every row has its own"),
        (lambda z, p: below(z, z.amax(-1, keepdim=True) + p), "logarithm of the quotient"),
        (lambda z, p: below(z, z.amax(-1, keepdim=True) + math.log10(p)), "you keep"),
        (lambda z, p: z.softmax(-1), "what stays must keep its score"),
        (lambda z, p: z[0], "a tensor of the shape of logits"),
    ],
    "check_one_head": [
        (lambda *given: one_step(*given, scale=1.0), "the square root of D"),
        (lambda *given: one_step(*given, kept=()), "does your cache keep anything?"),
        (lambda *given: one_step(*given, itself=False), "a token also attends to itself"),
        (lambda *given: one_step(*given)[None], "return a tensor of shape (D,)"),
        (lambda *given: one_step(*given, scale=0.4), "compare softmax(K q / √D) V by hand"),
        (elsewhere, "what was stored must be in `cache`"),
    ],
    "check_mystery": [
        (RIGHT | {"temperature": 1 / 1.6}, "the temperature's reciprocal"),
        (RIGHT | {"temperature": 1.5}, "the logarithm of their ratio"),
        (RIGHT | {"temperature": 1.0}, "the logarithm of their ratio"),
        (RIGHT | {"top_p": 0.665}, "if the temperature came first"),
        (RIGHT | {"top_p": 0.9}, "how many stay?"),
        (RIGHT | {"top_p": 0.77}, "how many stay?"),
        (RIGHT | {"first": "temperature"}, "move two scores apart"),
        (RIGHT | {"first": "heat"}, 'first must be "temperature" or "top_p"'),
        ((1.6, 0.75), "answer with a dictionary"),
    ],
}
