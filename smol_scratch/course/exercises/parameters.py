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
def check_no_grouping(answer: int) -> str:
    """Expect how many parameters more the model has with a key-value head for each query head."""
    config = SmolLM2Config()
    with torch.device("meta"):
        models = [SmolLM2(config), SmolLM2(replace(config, n_kv_head=config.n_head))]
    few, many = (sum(weight.numel() for weight in model.parameters()) for model in models)
    if not isinstance(answer, int):
        raise Hint("answer with a whole number of parameters")
    if answer == many:
        raise Hint("that is the total; how many more is it than with three key-value heads?")
    if answer * config.n_layer == many - few:
        raise Hint("right for one layer; there are more")
    if 2 * answer == many - few:
        raise Hint("keys and values both have heads")
    if answer == 3 * (many - few) // 2:
        raise Hint("that is all that nine heads take; three of them are there already")
    if answer != many - few:
        raise Hint(
            "a key-value head takes two matrices of 576 × 64 in each layer, one for keys and one "
            "for values; how many heads are new?"
        )
    return "six heads more in thirty layers, a tenth of the model"


@exercise
def check_largest_batch(answer: Callable[[SmolLM2Config, int, int], int]) -> str:
    """Expect a function (config, T, memory in bytes) -> largest batch that fits, 0 if none."""
    full, tiny = SmolLM2Config(), SmolLM2Config.preset("tiny")
    for config, T, memory in (
        (full, 256, 16 * 10**9),
        (full, 1024, 16 * 10**9),
        (full, 256, 2 * 10**9),
        (full, 1, 2_380_000_000),
        (tiny, 64, training_memory(tiny, 7, 64, torch.bfloat16)["peak"]),
    ):
        expected = 0
        # Doubling and halving, since the peak grows with the batch.
        step = 1 << 14
        while step:
            peak = training_memory(config, expected + step, T, torch.bfloat16)["peak"]
            expected += step if peak <= memory else 0
            step //= 2
        found = answer(config, T, memory)
        if found == expected:
            continue
        where = f"T={T} and {memory:,} bytes for a model of {total_parameters(config):,}"
        if expected == 0:
            raise Hint(f"{where}: not even one sequence fits, so the answer is 0")
        if isinstance(found, int) and found == expected + 1:
            raise Hint(f"{where}: one too many; does your last batch still fit?")
        if isinstance(found, int) and found == expected - 1:
            raise Hint(f"{where}: one too few; a batch that fills the memory to the byte fits")
        raise Hint(
            f"{where}: {found} is not the largest batch; ask training_memory(config, B, T, "
            "torch.bfloat16)['peak'] for several B"
        )
    return "what fits can be computed before a machine is rented"


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
