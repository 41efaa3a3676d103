"""Checkers for notebook 08, parameters and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smol_scratch.accounting import measured_peak, parameters, total_parameters, training_memory
from smol_scratch.config import SmolLM2Config
from smol_scratch.course.exercises import Hint, exercise
from smol_scratch.model import SmolLM2


@exercise
def check_no_grouping(answer: dict[str, int]) -> str:
    """Expect parameters, and activation bytes per token, that grouping the heads saves."""
    keys = ("parameters", "bytes per token")
    if not isinstance(answer, dict) or set(answer) != set(keys):
        raise Hint("answer with a dictionary, as in the cell: " + " and ".join(map(repr, keys)))
    numbers, size = (answer[key] for key in keys)
    if not isinstance(numbers, int) or not isinstance(size, int):
        raise Hint("both are whole numbers")
    config = SmolLM2Config()
    shapes = config, replace(config, n_kv_head=config.n_head)
    with torch.device("meta"):
        models = [SmolLM2(shape) for shape in shapes]
    few, many = (sum(weight.numel() for weight in model.parameters()) for model in models)
    if numbers == many:
        raise Hint("that is the total; how many more is it than with three key-value heads?")
    if numbers * config.n_layer == many - few:
        raise Hint("parameters: right for one layer; there are more")
    if 2 * numbers == many - few:
        raise Hint("parameters: keys and values both have heads")
    if numbers == 3 * (many - few) // 2:
        raise Hint("that is all that nine heads take; three of them are there already")
    if numbers != many - few:
        raise Hint(
            "a key-value head takes two matrices of 576 × 64 in each layer, one for keys and one "
            "for values; how many heads are new?"
        )
    less, more = (training_memory(shape, 1, 1, torch.bfloat16)["activations"] for shape in shapes)
    expected = more - less - 2 * (many - few)  # without the copies of the new weights
    if size == 2 * expected:
        raise Hint("bytes: these are kept in 16 bits")
    if 2 * size == expected:
        raise Hint("bytes: numbers are counted, or only keys or only values; bytes of both, please")
    if 2 * size == 3 * expected:
        raise Hint("bytes: of k, only the rotated one is kept")
    if size * config.n_layer == expected:
        raise Hint("bytes: right for one layer; there are more")
    if size != expected:
        raise Hint("bytes: six more keys and six more values of 64 channels; what is kept of each?")
    return "a tenth more parameters, and 3 % more bytes for each token"


def _bytes_per_token(
    config: SmolLM2Config, *, size: int = 2, copies: int = 5, outputs: int = 2,
    vocabulary: int = 14, ends: bool = True, numbers: int = 16, sums: bool = True, **other: int,
) -> int:  # fmt: skip
    """Return the table's sum of a token's bytes, or what a mistake makes of it."""
    C, hidden = config.n_embd, config.intermediate_size
    q = other.get("q", config.n_head * config.head_dim)
    kv = other.get("kv", config.n_kv_head * config.head_dim)
    block = 4 * C * 4 + 2 * 4
    block += (copies * C + q + 2 * kv + outputs * q + 4 * hidden) * size
    block += 4 * config.n_head if sums else 0
    last = 2 * C * 4 + 4 + C * size if ends else 0
    blocks = other.get("layers", config.n_layer) * block
    return blocks + last + numbers + vocabulary * config.vocab_size


@exercise
def check_bytes_per_token(answer: Callable[[SmolLM2Config], int]) -> str:
    """Expect a function config -> bytes that one more token adds to the peak, mixed precision."""
    first, second = SmolLM2Config(), SmolLM2Config.preset("360M")
    for config in (first, second, replace(first, head_dim=32), replace(first, n_layer=3)):
        # Where so many tokens are, the peak is a straight line.
        two, one = (training_memory(config, B, 256, torch.bfloat16)["peak"] for B in (2048, 1024))
        expected = (two - one) // (1024 * 256)
        found = answer(config)
        if found == expected:
            continue
        where = f"a model of {total_parameters(config):,} parameters"
        if config != first and found == _bytes_per_token(first):
            raise Hint(f"{where}: that is the 135M's sum; take the sizes from config")
        heads = config.n_head * config.head_dim
        mistakes: dict[str, list[dict[str, Any]]] = {
            "only one block is counted": [{"layers": 1}],
            "keys and values have n_kv_head heads, not n_head": [{"kv": heads}],
            "q is n_head · head_dim wide, which need not be n_embd": [{"q": config.n_embd}],
            "all is counted with 4 bytes; the products are in 16 bits": [{"size": 4}],
            "autocast copies a norm's output for each matrix that reads it: q, k, v, gate, up":
                [{"copies": n} for n in (0, 1, 2, 3, 4)],
            "attention's output is kept twice": [{"outputs": 1}],
            "at the peak the vocabulary has four tensors: 2 + 4 + 4 + 4 bytes":
                [{"vocabulary": n} for n in (0, 2, 4, 6, 8, 10, 12, 16)],
            "after the last block come one more norm and the head's copy": [{"ends": False}],
            "the two integers, the token's id and its target's, take 16 bytes": [{"numbers": 0}],
            "attention keeps one softmax sum for each head": [{"sums": False}],
        }  # fmt: skip
        for hint, cases in mistakes.items():
            if any(found == _bytes_per_token(config, **case) for case in cases):
                raise Hint(f"{where}: {hint}")
        raise Hint(f"{where}: {found} is not the sum; go through the table row by row")
    return "with this and 14 bytes per parameter you know what fits before you rent a card"


def colleague_count(config: SmolLM2Config) -> int:
    """Return a colleague's count of a model's parameters: right for every released SmolLM2."""
    square = config.n_embd**2
    rows = parameters(config) | dict.fromkeys(
        ("Attention Q", "Attention O"), config.n_layer * square
    )
    return sum(rows.values())


@exercise
def check_counterexample(answer: SmolLM2Config) -> str:
    """Expect a configuration for which ``colleague_count`` is wrong."""
    if not isinstance(answer, SmolLM2Config):
        raise Hint("answer with a configuration, SmolLM2Config(...) with some field changed")
    if colleague_count(answer) != total_parameters(answer):
        return (
            f"{colleague_count(answer):,} by the colleague, {total_parameters(answer):,} in the "
            "model: q_proj and o_proj were taken as square"
        )
    if answer in (SmolLM2Config.preset(name) for name in ("135M", "360M", "1.7B")):
        raise Hint("the count is right for each of the released models; change a field")
    if answer.tie_embeddings is False:
        raise Hint("an untied head is counted too; which matrices look square, and need not be?")
    if answer.n_kv_head == answer.n_head:
        raise Hint("grouping is counted rightly; so it is not k_proj or v_proj")
    raise Hint(
        "right for this one too. q_proj maps n_embd to n_head · head_dim channels: what can a "
        "counter mistake for what while the two are equal?"
    )


def _number(model: SmolLM2, idx: Tensor, targets: Tensor, log: list[Any]) -> None:
    _, loss = model(idx, targets)
    loss.backward()
    log.append(loss.item())


def _loss(model: SmolLM2, idx: Tensor, targets: Tensor, log: list[Any]) -> None:
    _, loss = model(idx, targets)
    loss.backward()
    log.append(loss.detach())


def _scores(model: SmolLM2, idx: Tensor, targets: Tensor, log: list[Any]) -> None:
    logits, loss = model(idx, targets)
    loss.backward()
    log.append(logits[0, -1].detach())


def _copied_scores(model: SmolLM2, idx: Tensor, targets: Tensor, log: list[Any]) -> None:
    logits, loss = model(idx, targets)
    loss.backward()
    log.append(logits[0, -1].detach().clone())


SUSPECTS: dict[str, Callable[[SmolLM2, Tensor, Tensor, list[Any]], None]] = {
    "A": _number, "B": _loss, "C": _copied_scores, "D": _scores,
}  # fmt: skip


@exercise
def check_leak(answer: tuple[str, int]) -> str:
    """Expect which of ``SUSPECTS`` holds what it does not need, and its bytes per further step."""
    model = SmolLM2(SmolLM2Config.preset("tiny"))
    idx, targets = torch.zeros(2, 2, 64, dtype=torch.long).unbind()

    def peak(steps: int) -> int:
        log: list[Any] = []
        return measured_peak(
            lambda: [SUSPECTS["D"](model, idx, targets, log) for _ in range(steps)], model
        )

    peak(1)  # afterwards the gradients exist
    each = (peak(4) - peak(2)) // 2
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Hint('answer with a letter and the bytes per further step, such as ("A", 1000)')
    letter, found = answer
    if letter not in SUSPECTS:
        raise Hint(f"{letter!r} is none of {', '.join(SUSPECTS)}")
    if letter == "A":
        raise Hint("A logs a plain number; its peak stays the same however many steps you run")
    if letter == "B":
        raise Hint("B grows by the four bytes of a loss per step; another grows far faster")
    if letter == "C":
        raise Hint("C grows by 49,152 numbers per step, which it copied on purpose; one holds more")
    if found == each // 4:
        raise Hint("the right suspect; those are numbers, and each takes four bytes")
    if found in (peak(n) for n in (1, 2, 4, 8)):
        raise Hint("the right suspect; the bytes are those per further step, not the whole peak")
    if found != each:
        raise Hint("the right suspect; now the bytes: (peak of 4 steps − peak of 2 steps) / 2")
    return "a window of 49,152 numbers keeps the whole of the logits alive"
