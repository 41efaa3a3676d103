"""Text from a model: scores are filtered, a token is drawn, and the model reads it in turn.

Letters: B batch, T tokens of a prompt, C width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.cache import KVCache
from smol_scratch.model import SmolLM2
from smol_scratch.tokenizer import SmolLM2Tokenizer

Prompt = Tensor | Sequence[int]
Decoder = Callable[[Tensor, KVCache], Tensor]

# The filters. Each takes the scores of the next token and returns changed ones; a score of minus
# infinity takes a token out. None of them touches its input.


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the differences between scores: below 1 the likely grow likelier, above 1 rarer.

    Args:
        logits: (B, V).
        temperature: above 0.

    Returns:
        (B, V), the largest of each row at 0: a shift changes no probability, and from there even
        a tiny temperature cannot overflow.
    """
    _check("temperature", temperature, 0 < temperature < float("inf"), "above 0 and finite")
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the ``top_k`` largest scores; those equal to the last of them stay too.

    Shapes: (B, V) -> (B, V). A ``top_k`` beyond V keeps all.

    Source: Fan et al., 2018, arXiv:1805.04833.
    """
    _check("top_k", top_k, isinstance(top_k, int) and top_k >= 1, "a whole number of at least 1")
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities add up to ``top_p`` or more.

    Shapes: (B, V) -> (B, V). The likeliest token always stays.

    Source: Holtzman et al., 2020, arXiv:1904.09751, "nucleus sampling".
    """
    _check("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
    if top_p == 1:  # rounding must not cut what is to be kept whole
        return logits
    sorted_logits, order = logits.sort(descending=True)  # (B, V) each
    probabilities = F.softmax(sorted_logits, dim=-1)
    before = probabilities.cumsum(-1) - probabilities  # the sum over all likelier tokens
    out = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return logits.masked_fill(out, float("-inf"))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as probable as the likeliest.

    Shapes: (B, V) -> (B, V).

    Source: Nguyen et al., 2024, arXiv:2407.01082.
    """
    _check("min_p", min_p, 0 <= min_p <= 1, "between 0 and 1")
    probabilities = F.softmax(logits, dim=-1)
    largest = probabilities.amax(-1, keepdim=True)  # (B, 1)
    return logits.masked_fill(probabilities < min_p * largest, float("-inf"))


def penalise_repetition(logits: Tensor, ids: Tensor, repetition_penalty: float) -> Tensor:
    """Make every token that has occurred less likely: divide a positive score, multiply a negative.

    Args:
        logits: (B, V).
        ids: the tokens so far, prompt included, (B, T).
        repetition_penalty: above 0; 1 changes nothing, below 1 rewards repetition.

    Returns:
        (B, V). Unlike the other filters this one depends on where the model puts its zero.

    Source: Keskar et al., 2019, arXiv:1909.05858, section 4.1; the case of negative scores is
    that of ``transformers``.
    """
    good = 0 < repetition_penalty < float("inf")
    _check("repetition_penalty", repetition_penalty, good, "above 0 and finite")
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, ids, True)  # (B, V)
    up, down = logits * repetition_penalty, logits / repetition_penalty
    return torch.where(seen, torch.where(logits < 0, up, down), logits)


def filter_logits(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """Apply the filters that are asked for, in the order of ``transformers``, in float32.

    Args:
        logits: the model's scores, (B, V).
        ids: the tokens so far, (B, T).
        temperature: 0 keeps the likeliest token alone: greedy.
        top_k: as in ``keep_top_k``; None leaves it out, here and below.
        top_p: as in ``keep_top_p``.
        min_p: as in ``keep_min_p``.
        repetition_penalty: as in ``penalise_repetition``.

    Returns:
        (B, V); their softmax is the distribution to draw from.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        logits = penalise_repetition(logits, ids, repetition_penalty)
    if temperature != 0:
        logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)  # (B, 1); the first, where several are equal
        return torch.full_like(logits, float("-inf")).scatter_(-1, best, 0.0)
    return logits


def _check(name: str, value: object, good: bool, must_be: str) -> None:
    if not good:
        raise ValueError(f"{name}={value}: must be {must_be}")


# One token after the other.


def next_logits(model: SmolLM2, idx: Tensor, cache: KVCache) -> Tensor:
    """Score what comes after the last token of ``idx``, and fill the cache.

    It is ``SmolLM2.forward`` without the scores of the other positions, which nobody reads here:
    for a prompt of 1,000 tokens they would take 197 megabytes and as much time as 30 blocks.

    Shapes: (B, T) -> (B, V).
    """
    x = model.model.embed_tokens(idx)  # (B, T, C)
    for block, layer in zip(model.model.layers, cache.layers, strict=True):
        x = block(x, layer)
    x = model.model.norm(x[:, -1])  # (B, C)
    head = model.model.embed_tokens if model.config.tie_embeddings else model.lm_head
    return F.linear(x, head.weight)  # (B, V)


class _OneDNNSwitch:
    """Turns oneDNN off for the process while any thread is within, and then back as it was."""

    def __init__(self) -> None:
        self.lock, self.within = threading.Lock(), 0
        self.before: Any = True

    def __enter__(self) -> None:
        with self.lock:
            if self.within == 0:
                self.before = torch.backends.mkldnn.enabled
                torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
            self.within += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.within -= 1
            if self.within == 0:
                torch.backends.mkldnn.set_flags(_enabled=self.before, _fp32_precision=None)


_without_onednn = _OneDNNSwitch()


def fast_logits(model: SmolLM2, idx: Tensor, cache: KVCache) -> Tensor:
    """Score as ``next_logits`` does, faster for a single token in bfloat16 on a CPU.

    There PyTorch leaves products to oneDNN, which was written for matrices: with one vector it
    reads memory at about half the speed of PyTorch's own kernel, which is asked instead. (The
    switch is the process's: a second thread at work meanwhile may be slower, never wrong.)
    """
    embedding = model.model.embed_tokens.weight
    single = idx.numel() == 1 and embedding.device.type == "cpu"
    if not (single and embedding.dtype == torch.bfloat16):
        return next_logits(model, idx, cache)
    with _without_onednn:
        return next_logits(model, idx, cache)


@contextmanager
def _evaluating(model: SmolLM2) -> Iterator[None]:
    """Switch dropout off for a while. Between two tokens a stream's reader may go on training."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _rows(model: SmolLM2, idx: Prompt | Sequence[Prompt]) -> list[Tensor]:
    """Return the prompts, each (T,), checked, on the model's device."""
    if isinstance(idx, Tensor):
        rows = list(idx) if idx.ndim == 2 else [idx]
    elif all(isinstance(token, int) for token in idx):
        rows = [torch.tensor(idx)]
    else:
        rows = [torch.as_tensor(row) for row in idx]
    V, longest = model.config.vocab_size, model.config.block_size
    for row in rows:
        if row.ndim != 1 or len(row) == 0 or row.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"a prompt of shape {tuple(row.shape)} and type {row.dtype}: must be (T,) "
                "integers, one at least (start an empty text with the tokenizer's eos_id)"
            )
        if len(row) >= longest:
            raise ValueError(
                f"a prompt of {len(row)} tokens leaves no room for a new one: the model takes "
                f"block_size={longest} in all; cut the prompt to its last {longest - 1} or fewer"
            )
        if int(row.min()) < 0 or int(row.max()) >= V:
            wrong = int(row.min()) if int(row.min()) < 0 else int(row.max())
            raise ValueError(
                f"token {wrong}: must lie between 0 and {V - 1}; "
                "was the text encoded with another tokenizer?"
            )
    if not rows:
        raise ValueError("no prompt: idx must hold at least one")
    return [row.to(model.model.embed_tokens.weight.device, torch.int64) for row in rows]


class _Settings(NamedTuple):
    """All that steers the core, checked."""

    max_new_tokens: int
    filters: dict[str, Any]
    stop: Tensor
    generator: torch.Generator
    decoder: Decoder


def _settings(
    model: SmolLM2,
    max_new_tokens: int,
    stop: int | Iterable[int] | None,
    generator: torch.Generator | None,
    decoder: Decoder | None,
    **filters: Any,
) -> _Settings:
    good = isinstance(max_new_tokens, int) and max_new_tokens >= 1
    _check("max_new_tokens", max_new_tokens, good, "a whole number of at least 1")
    # A wrong setting shows here, before any work.
    filter_logits(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), **filters)
    device = model.model.embed_tokens.weight.device
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()  # from the system's entropy: PyTorch's global state stays as it is
    elif generator.device.type != device.type:
        raise ValueError(
            f"a generator on {generator.device}: must be on the model's device, {device}; "
            f"make it with torch.Generator({device.type!r})"
        )
    tokens = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    V = model.config.vocab_size
    _check("stop", stop, all(0 <= token < V for token in tokens), f"tokens between 0 and {V - 1}")
    return _Settings(
        max_new_tokens,
        filters,
        torch.tensor(tokens, dtype=torch.int64, device=device),
        generator,
        decoder or (lambda idx, cache: fast_logits(model, idx, cache)),
    )


@torch.inference_mode()
def _decode(
    model: SmolLM2, rows: list[Tensor], settings: _Settings
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """Go through all rows at once, a token each a step, and yield every step.

    No padding and no mask: the shortest prompt's length is read from all rows together. From there
    a row whose prompt goes on takes its own next token instead of the one drawn. At any time all
    rows are equally long.

    Yields:
        The tokens, (B,), whether each is one to keep, (B,) (neither prompt nor after the end), and
        the model's scores that it came from, (B, V).

    Source: Meta's reference for Llama, ``generation.py``, for the unequal lengths.
    """
    device = rows[0].device
    lengths = torch.tensor([len(row) for row in rows], device=device)  # (B,)
    ends = (lengths + settings.max_new_tokens).clamp(max=model.config.block_size)  # (B,)
    last = int(ends.max())
    ids = torch.zeros(len(rows), last, dtype=torch.int64, device=device)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    cache = KVCache(
        model.config,
        batch_size=len(rows),
        max_length=last - 1,  # the last token is never read
        dtype=model.model.embed_tokens.weight.dtype,
        device=device,
    )
    running = torch.ones_like(lengths, dtype=torch.bool)
    position = int(lengths.min())
    new = ids[:, :position]
    while True:
        with _evaluating(model):
            logits = settings.decoder(new, cache)  # (B, V)
        filtered = filter_logits(logits, ids[:, :position], **settings.filters)
        if settings.filters.get("temperature") == 0:
            drawn = filtered.argmax(-1)  # (B,)
        else:
            probabilities = F.softmax(filtered, dim=-1)  # (B, V)
            drawn = torch.multinomial(probabilities, 1, generator=settings.generator)[:, 0]
        in_prompt = position < lengths
        ids[:, position] = torch.where(in_prompt, ids[:, position], drawn)
        fresh = ~in_prompt & running
        running &= ~(fresh & torch.isin(ids[:, position], settings.stop))
        running &= position + 1 < ends
        yield ids[:, position], fresh, logits
        if not running.any():
            return
        new = ids[:, position : position + 1]  # (B, 1)
        position += 1


def generate(
    model: SmolLM2,
    idx: Prompt | Sequence[Prompt],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: int | Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
) -> list[Tensor]:
    """Continue one or several prompts.

    The model's mode (training or evaluation) is what it was before; dropout does not act here.

    Args:
        model: whose weights speak.
        idx: a prompt, (T,) or a list of token numbers; or several, (B, T) or a list of prompts,
            whose lengths may differ.
        max_new_tokens: at most so many after each prompt. Prompt and continuation together end at
            ``block_size``.
        temperature: 0 is greedy: always the likeliest token.
        top_k: keep the k likeliest; None keeps all.
        top_p: keep the fewest that add up to this probability; None keeps all.
        min_p: keep those at least this many times as probable as the likeliest; None keeps all.
        repetition_penalty: above 1 makes tokens that have occurred less likely.
        stop: a token, or several, after which a row ends; it is part of the result.
        generator: source of all chance, on the model's device. In a batch the rows share it. With
            None, each call draws differently; PyTorch's global generator is never touched.
        decoder: what scores the next token in place of ``fast_logits``, as ``CompiledDecoder``.

    Returns:
        For each prompt a tensor, (its length + its new tokens,): prompt and continuation.

    Raises:
        ValueError: for a setting out of its range, a prompt that is empty, too long, or holds a
            token that the model does not know.
    """
    rows = _rows(model, idx)
    settings = _settings(
        model,
        max_new_tokens,
        stop,
        generator,
        decoder,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    found: list[list[Tensor]] = [[row] for row in rows]
    for tokens, fresh, _ in _decode(model, rows, settings):
        for i in fresh.nonzero()[:, 0].tolist():
            found[i].append(tokens[i : i + 1])
    return [torch.cat(pieces) for pieces in found]


class Step(NamedTuple):
    """A token that was generated, and what the model thought of it.

    Both probabilities are the model's own, at temperature 1 and before any filter.

    Attributes:
        token: its number.
        probability: of this token.
        runner_up: the likeliest of the other tokens; likelier than ``token`` itself, where chance
            took a less likely one.
        runner_up_probability: of that one.
    """

    token: int
    probability: float
    runner_up: int
    runner_up_probability: float


def stream(
    model: SmolLM2,
    idx: Prompt,
    max_new_tokens: int,
    *,
    stop: int | Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    **filters: Any,
) -> Iterator[Step]:
    """Continue one prompt and yield every token when it is there.

    The twin of ``generate``, with the same arguments (``filters`` are ``temperature`` to
    ``repetition_penalty``) and errors, raised at once, not at the first token. Work is done only
    when the next token is asked for: who stops asking stops it.

    Yields:
        A ``Step`` for each new token.
    """
    rows = _rows(model, idx)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} prompts: stream takes one; use generate for several")
    settings = _settings(model, max_new_tokens, stop, generator, decoder, **filters)
    return (_step(int(tokens), logits[0]) for tokens, _, logits in _decode(model, rows, settings))


def _step(token: int, logits: Tensor) -> Step:
    probabilities = F.softmax(logits.float(), dim=-1)  # (V,)
    values, best = probabilities.topk(min(2, len(probabilities)))
    other = 1 if int(best[0]) == token and len(best) == 2 else 0
    return Step(token, float(probabilities[token]), int(best[other]), float(values[other]))


# Text.


def text_pieces(
    tokenizer: SmolLM2Tokenizer, steps: Iterable[Step]
) -> Iterator[tuple[str, list[Step]]]:
    """Gather tokens until they make whole characters.

    A token is a string of bytes, and a character may be cut by it. What is no whole character yet
    reads as � and waits for the next token; what never becomes one is yielded at the end.

    Yields:
        Text, and the tokens that it was made of. Joined, the texts are ``tokenizer.decode`` of all
        tokens.
    """
    waiting: list[Step] = []
    for step in steps:
        waiting.append(step)
        text = tokenizer.decode(part.token for part in waiting)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text, waiting
            waiting = []
    if waiting:
        yield tokenizer.decode(part.token for part in waiting), waiting


def stream_text(
    model: SmolLM2,
    tokenizer: SmolLM2Tokenizer,
    idx: Prompt,
    max_new_tokens: int,
    *,
    stop: int | Iterable[int] | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of one prompt as text, in whole characters.

    Args:
        model: whose weights speak.
        tokenizer: the tokenizer that the prompt was encoded with.
        idx: the prompt, (T,) or a list of token numbers.
        max_new_tokens: at most so many.
        stop: a token, or several, after which the text ends; the token itself is not shown.
        **options: the others of ``stream``.
    """
    ends = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    steps = stream(model, idx, max_new_tokens, stop=ends, **options)
    shown = (step for step in steps if step.token not in ends)
    return (text for text, _ in text_pieces(tokenizer, shown))


# The Instruct weights.

SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_prompt(
    tokenizer: SmolLM2Tokenizer, messages: str | Sequence[Mapping[str, str]]
) -> list[int]:
    """Write a conversation in the one form that the Instruct weights know.

    The model's answer ends with ``<|im_end|>``: pass ``stop=stop_tokens(tokenizer)``.

    Args:
        tokenizer: SmolLM2's.
        messages: a question, or a list of messages, each with a "role" ("system", "user",
            "assistant") and its "content". Unless the first is a system message, SmolLM2's own
            comes before it.

    Returns:
        The token numbers of the prompt, up to where the assistant begins to speak.

    Raises:
        ValueError: for an empty list or a message with other keys or roles.

    Source: ``tokenizer.chat_template`` in the GGUF file of SmolLM2-135M-Instruct.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not messages:
        raise ValueError("messages=[]: must hold at least one message")
    for message in messages:
        if set(message) != {"role", "content"}:
            raise ValueError(f"message {dict(message)}: must have a role and a content")
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"role {message['role']!r}: must be system, user or assistant")
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}, *messages]
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages]
    return tokenizer.encode("".join(turns) + "<|im_start|>assistant\n")


def stop_tokens(tokenizer: SmolLM2Tokenizer) -> tuple[int, int]:
    """Return the tokens that end a text: ``<|endoftext|>``, and ``<|im_end|>`` of an answer."""
    return tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"]
