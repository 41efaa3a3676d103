import torch
import torch.nn.functional as F

from smol_scratch import KVCache
from smol_scratch.generation import next_logits


def write(model, ids, count, temperature, stop, generator, *, scale=None, again=False,
          largest=False, place=-1, short=False, keep=True):  # fmt: skip
    ids, new, cache = list(ids), list(ids), KVCache(model.config)
    for _ in range(count):
        scores = next_logits(model, torch.tensor([new]), cache)
        scores = scores * scale(temperature) if scale else scores / temperature
        drawn = torch.multinomial(F.softmax(scores, -1), 1, generator=generator)
        new = [int(scores.argmax() if largest else drawn)]
        if short and new[0] == stop:
            break
        ids += new
        if keep and new[0] == stop:
            break
        new = ids[place:] if place < -1 else new
        if again:
            new, cache = list(ids), KVCache(model.config)
    return ids


def twice(model, ids, count, temperature, stop, generator):
    cache = KVCache(model.config)
    ids = list(ids)
    for _ in range(count):
        scores = next_logits(model, torch.tensor([ids]), cache) / temperature
        ids.append(int(torch.multinomial(F.softmax(scores, -1), 1, generator=generator)))
        if ids[-1] == stop:
            break
    return ids


def afresh(model, ids, count, temperature, stop, generator):
    ids, new = list(ids), list(ids)
    for _ in range(count):
        scores = next_logits(model, torch.tensor([new]), KVCache(model.config)) / temperature
        new = [int(torch.multinomial(F.softmax(scores, -1), 1, generator=generator))]
        ids += new
        if new[0] == stop:
            break
    return ids


def in_place(model, ids, *others):
    ids += write(model, ids, *others)[len(ids) :]
    return ids


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
    "check_write": [
        (lambda *given: write(*given, scale=lambda t: t), "the temperature divides the scores"),
        (lambda *given: write(*given, scale=lambda t: 1), "whatever was asked for"),
        (lambda *given: write(*given, largest=True), "you take the most probable token"),
        (lambda *given: write(*given, keep=False), "yours goes on"),
        (lambda *given: write(*given, short=True), "is part of it"),
        (lambda *given: write(*given, again=True), "with the cache each is read once"),
        (lambda *given: write(*given, place=-2), "which are not those of this generator"),
        (lambda *given: write(*given)[len(given[1]) :], "in one list"),
        (lambda *given: "text", "a list of token numbers"),
        (lambda *given: torch.tensor([write(*given)]), "a list of token numbers"),
        (twice, "yours now has them twice"),
        (afresh, "make the cache once"),
        (in_place, "changes the prompt"),
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
