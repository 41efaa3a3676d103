"""Checkers for notebook 11, generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import KVCache, SmolLM2, SmolLM2Config, explicit_attention
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.generation import apply_temperature, generate, keep_top_p, next_logits


@exercise
def check_tokens_per_second(answer: float) -> str:
    """Expect the limit for 1.7 billion weights of 4.5 bits at 50 GB per second."""
    if not isinstance(answer, int | float):
        raise Hint("answer with one number, tokens per second")
    right = 50e9 / (1.7e9 * 4.5 / 8)
    slips = {
        50 / 1.7 / 4.5: "4.5 are bits; memory's bandwidth is given in bytes",
        50 / 1.7 / 4: "that is float32, four bytes per weight; these have 4.5 bits",
        50 / 1.7 / 2: "that is bfloat16, two bytes per weight; these have 4.5 bits",
        50 / 1.7: "that is one byte per weight; how many bytes are 4.5 bits?",
        50 / 1.7 / 4.5 * 64: "eight bits are one byte: divide the bits by 8 once",
        1.7 * 4.5 / 8 / 50: "that is seconds per token; the question asks for tokens per second",
        50 / (1.7 * 4.5 / 8) / 2: "each weight is read once per token, not once per operation",
    }
    for value, hint in slips.items():
        if math.isclose(answer, value, rel_tol=0.02):
            raise Hint(hint)
    if not math.isclose(answer, right, rel_tol=0.02):
        raise Hint("bytes per second, divided by the bytes that one token has to read")
    return "no program can be faster on that laptop, whatever its processor"


def _listener() -> SmolLM2:
    """Return a tiny model with opinions: its lists are neither flat nor sure."""
    config = SmolLM2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8,
                           intermediate_size=24, block_size=64)  # fmt: skip
    model, generator = SmolLM2(config).eval(), torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.5, generator=generator)
    return model.requires_grad_(False)


def _slip(
    model: SmolLM2, ids: list[int], count: int, temperature: float, stop: int, slip: str
) -> list[int]:
    """Write as somebody would who makes one mistake."""
    generator, cache = torch.Generator().manual_seed(5), KVCache(model.config)
    ids, new = list(ids), list(ids)
    for _ in range(count):
        scores = next_logits(model, torch.tensor([new]), cache)  # (1, V)
        scores *= {"multiplies": temperature, "forgets": 1.0}.get(slip, 1 / temperature)
        drawn = torch.multinomial(F.softmax(scores, -1), 1, generator=generator)
        new = [int(scores.argmax() if slip == "greedy" else drawn)]
        if slip == "leaves out" and new[0] == stop:
            break
        ids += new
        if slip != "goes on" and new[0] == stop:
            break
        new = list(ids) if slip == "stores twice" else new
        cache = KVCache(model.config) if slip == "new cache" else cache
    return ids


SLIPS = {
    "multiplies": "the temperature divides the scores; yours multiplies them",
    "forgets": "you sample at temperature 1, whatever was asked for",
    "greedy": "you take the most probable token; sample with torch.multinomial",
    "goes on": "the text should end with the token `stop`, and yours goes on",
    "leaves out": "the token `stop` ends the text and is part of it: append it, then break",
    "stores twice": "after the prompt, give next_logits the newest token alone; the cache has the "
    "earlier ones, and yours now has them twice",
    "new cache": "make the cache once, before the loop: with a new one the model forgets the text",
}


@exercise
def check_write(answer: Callable[..., Sequence[int]]) -> str:
    """Expect a function that samples with a temperature, a stop token and the cache."""
    model, prompt = _listener(), [7, 1, 30, 12]
    for count, temperature, end in ((1, 1.0, -1), (8, 0.6, -1), (12, 1.7, -1), (12, 0.8, 5)):
        seeded = torch.Generator().manual_seed(5)
        [row] = generate(model, prompt, count, temperature=temperature, generator=seeded)
        free = row.tolist()
        # A token that comes as the fifth, or one that never comes.
        stop = free[3 + end] if end > 0 else next(t for t in range(40) if t not in free)
        wanted = free[: free.index(stop, len(prompt)) + 1] if end > 0 else free
        read = 0

        def count_tokens(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            nonlocal read
            read += inputs[0].numel()

        hook = model.model.embed_tokens.register_forward_pre_hook(count_tokens)
        given = list(prompt)
        try:
            result = answer(model, given, count, temperature, stop,
                            torch.Generator().manual_seed(5))  # fmt: skip
        finally:
            hook.remove()
        if given != prompt:
            raise Hint("your function changes the prompt that it was given: begin with list(ids)")
        try:
            found = [int(token) for token in result]
        except (TypeError, ValueError, RuntimeError) as error:
            raise Hint("return a list of token numbers: the prompt's and the new ones") from error
        if found == wanted[len(prompt) :] or found[: len(prompt)] != prompt:
            raise Hint("return the prompt's tokens and the new ones, in one list")
        if found != wanted:
            for slip, hint in SLIPS.items():
                if found == _slip(model, prompt, count, temperature, stop, slip):
                    raise Hint(hint)
            raise Hint(
                f"temperature {temperature}: {len(found) - len(prompt)} new tokens "
                f"{found[len(prompt) :]}, which are not those of this generator. Scores divided "
                "by the temperature, softmax, one torch.multinomial per token, nothing else"
            )
        if read > len(found):
            raise Hint(
                f"the right text, but {read} tokens went through the model for one of "
                f"{len(found)}: with the cache each is read once"
            )
    return "the whole of generation: read, sample, append, and stop in time"


@exercise
def check_one_head(answer: Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]) -> str:
    """Expect a function (q, k, v, cache) -> y that attends to all tokens so far."""
    generator = torch.Generator().manual_seed(7)
    for T, D in ((1, 4), (6, 8), (9, 16)):
        q, k, v = (torch.randn(T, D, generator=generator) for _ in range(3))
        whole = explicit_attention(q[None, None], k[None, None], v[None, None])[0, 0]  # (T, D)
        cache: dict[str, Tensor] = {}
        for t in range(T):
            found = answer(q[t].clone(), k[t].clone(), v[t].clone(), cache)
            if not isinstance(found, Tensor) or found.shape != (D,):
                raise Hint(f"token {t + 1}: return a tensor of shape (D,), here ({D},)")
            if torch.allclose(found, whole[t], atol=1e-5):  # sums of 16 numbers of size 1
                continue
            unscaled = (k[: t + 1] @ q[t]).softmax(0) @ v[: t + 1]
            if torch.allclose(found, unscaled, atol=1e-5):
                raise Hint("divide the scores by the square root of D before the softmax")
            if t and torch.allclose(found, v[t], atol=1e-5):
                raise Hint("the second token sees only itself: does your cache keep anything?")
            earlier = (k[:t] @ q[t] / D**0.5).softmax(0) @ v[:t] if t else None
            if earlier is not None and torch.allclose(found, earlier, atol=1e-5):
                raise Hint("a token also attends to itself: append its key and value first")
            raise Hint(f"token {t + 1} of {T} is wrong: compare softmax(K q / √D) V by hand")
        if T > 1 and not cache:
            raise Hint("right, but the cache is empty: what was stored must be in `cache`")
    return "each step attends to everything so far, and computes one row"


def mystery(logits: Tensor) -> Tensor:
    """Return the probabilities that a program draws from, (B, V), given scores (B, V).

    What it does with temperature and top-p is what the exercise asks: find out from outside.
    """
    return F.softmax(apply_temperature(keep_top_p(logits.double(), 0.75), 1.6), dim=-1)


@exercise
def check_mystery(answer: Mapping[str, Any]) -> str:
    """Expect temperature, top_p, and which of the two comes "first"."""
    names = ("temperature", "top_p", "first")
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise Hint(f"answer with a dictionary of {', '.join(names)}")
    temperature, top_p = float(answer["temperature"]), float(answer["top_p"])
    if math.isclose(temperature, 1 / 1.6, abs_tol=0.02):
        raise Hint("the temperature's reciprocal: it divides the scores")
    if not math.isclose(temperature, 1.6, abs_tol=0.03):
        raise Hint(
            "temperature: give it two tokens close enough that both stay, and compare the "
            "logarithm of their ratio with the difference of their scores"
        )
    if math.isclose(top_p, 0.665, abs_tol=0.01):
        raise Hint("top_p: that would be it if the temperature came first; try equal scores")
    if not math.isclose(top_p, 0.75, abs_tol=0.011):
        raise Hint("top_p: of a thousand tokens with equal scores, how many stay?")
    if answer["first"] == "temperature":
        raise Hint(
            "first: move two scores apart until the second token goes. What probability did the "
            "other one have then, with the temperature and without it?"
        )
    if answer["first"] != "top_p":
        raise Hint('first must be "temperature" or "top_p"')
    return "top-p cut the model's own list, and the heat came too late to let anybody in"
