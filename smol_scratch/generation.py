"""Text from a model: scores are filtered, a token is drawn, and the model reads it in turn.

Letters: B batch, T tokens of a prompt, C width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch.cache import KVCache
from smol_scratch.chat import encode_chat
from smol_scratch.model import SmolLM2
from smol_scratch.sampling import Sampling as Sampling
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.wrappers import unwrapped

Prompt = Tensor | Sequence[int]
Decoder = Callable[[Tensor, KVCache], Tensor]

# The filters. Each takes the scores of the next token and returns changed ones; a score of minus
# infinity takes a token out. None of them touches its input.


# Scores are float32: a smaller number would be 0 there, a larger one infinite.
_TEMPERATURES = "above 0 and finite, between 1e-45 and 3e38; generation takes 0, for greedy"


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the differences between scores: below 1 the likely grow likelier, above 1 rarer.

    Args:
        logits: (B, V).
        temperature: above 0.

    Returns:
        (B, V), the largest of each row at 0: a shift changes no probability, and from there even
        a tiny temperature cannot overflow.
    """
    _check_scores(logits)
    _check("temperature", temperature, lambda t: 1e-45 <= t <= 3e38, _TEMPERATURES)
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the ``top_k`` largest scores; those equal to the last of them stay too.

    Shapes: (B, V) -> (B, V). A ``top_k`` beyond V keeps all.

    Source: Fan et al., 2018, arXiv:1805.04833.
    """
    _check_scores(logits)
    _check("top_k", top_k, _at_least_one, "a whole number of at least 1")
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities add up to ``top_p`` or more.

    Shapes: (B, V) -> (B, V). The likeliest token always stays.

    Source: Holtzman et al., 2020, arXiv:1904.09751, "nucleus sampling".
    """
    _check_scores(logits)
    _check("top_p", top_p, lambda p: 1e-45 <= p <= 1, "above 0 and at most 1")
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
    _check_scores(logits)
    _check("min_p", min_p, lambda p: 0 <= p <= 1, "between 0 and 1")
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
    _check_scores(logits)
    _check_ids(logits, ids)
    _check(
        "repetition_penalty",
        repetition_penalty,
        lambda r: 1e-30 <= r <= 1e30,
        "above 0 and finite, between 1e-30 and 1e30",
    )
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
    _check_scores(logits)
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


def _check(name: str, value: Any, good: Callable[[Any], bool], must_be: str) -> None:
    """Raise unless it is a number, and a good one."""
    if not isinstance(value, Real) or isinstance(value, bool) or not good(value):
        raise ValueError(f"{name}={value!r:.60}: must be {must_be}")


def _at_least_one(value: object) -> bool:
    return isinstance(value, Integral) and value >= 1


def _check_scores(logits: Tensor) -> None:
    """Raise unless they are scores, (B, V)."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits={type(logits).__name__}: must be a tensor of scores, (B, V)")
    if logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and type {logits.dtype}: must be (B, V) scores"
        )


def _check_ids(logits: Tensor, ids: Tensor) -> None:
    """Raise unless they are tokens, (B, T), of which each has a score."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids={type(ids).__name__}: must be a tensor of tokens, (B, T)")
    if ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != len(logits):
        raise ValueError(
            f"ids of shape {tuple(ids.shape)} and type {ids.dtype}: must be (B, T) of int64, with "
            f"the B={len(logits)} of the logits"
        )
    # On a GPU this look at the values would stall the queue, so there it is left to CUDA.
    if ids.numel() and ids.device.type == "cpu":
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= logits.shape[1]:
            wrong = low if low < 0 else high
            raise ValueError(f"token {wrong}: must lie between 0 and {logits.shape[1] - 1}")


def _check_step(model: SmolLM2, idx: Tensor, cache: KVCache) -> None:
    """Raise for what cannot be scored: the cheap checks, before each token."""
    if not isinstance(idx, Tensor) or not isinstance(cache, KVCache):
        kinds = type(idx).__name__, type(cache).__name__
        raise TypeError(f"idx={kinds[0]}, cache={kinds[1]}: must be a tensor and a KVCache")
    if idx.ndim != 2 or idx.numel() == 0 or idx.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"idx of shape {tuple(idx.shape)} and type {idx.dtype}: must be (B, T) integers"
        )
    if len(cache.layers) != len(model.model.layers):
        raise ValueError(
            f"a cache of {len(cache.layers)} layers for a model of {len(model.model.layers)}: make "
            "it with the model's own configuration"
        )


# One token after the other.


def next_logits(model: SmolLM2, idx: Tensor, cache: KVCache) -> Tensor:
    """Score what comes after the last token of ``idx``, and fill the cache.

    It is ``SmolLM2.forward`` without the scores of the other positions, which nobody reads here:
    for a prompt of 1,000 tokens they would take 197 megabytes and as much time as 30 blocks.

    Shapes: (B, T) -> (B, V).
    """
    model = unwrapped(model)
    _check_step(model, idx, cache)
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
    model = unwrapped(model)
    _check_step(model, idx, cache)
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


def _tensors(idx: Prompt | Sequence[Prompt]) -> list[Tensor]:
    """Return each prompt as a tensor of whatever type it has."""
    if isinstance(idx, np.ndarray):
        idx = torch.from_numpy(idx)
    if isinstance(idx, Tensor):
        return list(idx) if idx.ndim == 2 else [idx]
    try:
        if isinstance(idx, str | bytes):
            raise TypeError("text is encoded first")
        if all(isinstance(token, Integral) for token in idx):
            return [torch.tensor(idx)]
        return [torch.as_tensor(row) for row in idx]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"idx={idx!r:.60}: must be token numbers; {error}") from error


def _rows(model: SmolLM2, idx: Prompt | Sequence[Prompt], V: int) -> list[Tensor]:
    """Return the prompts, each (T,), checked, on the model's device."""
    longest, rows = model.config.block_size, []
    for row in _tensors(idx):
        whole = not (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool)
        if row.ndim != 1 or len(row) == 0 or not whole:
            raise ValueError(
                f"a prompt of shape {tuple(row.shape)} and type {row.dtype}: must be (T,) "
                "integers, one at least (start an empty text with the tokenizer's eos_id)"
            )
        row = row.to(torch.int64)
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
        rows.append(row.to(model.model.embed_tokens.weight.device))
    if not rows:
        raise ValueError("no prompt: idx must hold at least one")
    return rows


class _Settings(NamedTuple):
    """All that steers the core, checked."""

    max_new_tokens: int
    filters: dict[str, Any]
    stop: Tensor
    generator: torch.Generator
    decoder: Decoder
    vocab_size: int


def _settings(
    model: SmolLM2,
    max_new_tokens: int,
    stop: int | Iterable[int] | None,
    generator: torch.Generator | None,
    decoder: Decoder | None,
    vocab_size: int,
    **filters: Any,
) -> _Settings:
    _check("max_new_tokens", max_new_tokens, _at_least_one, "a whole number of at least 1")
    # A wrong setting shows here, before any work.
    filter_logits(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), **filters)
    device = model.model.embed_tokens.weight.device
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()  # from the system's entropy: PyTorch's global state stays as it is
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator={generator!r:.60}: must be a torch.Generator")
    elif generator.device.type != device.type:
        raise ValueError(
            f"a generator on {generator.device}: must be on the model's device, {device}; "
            f"make it with torch.Generator({device.type!r})"
        )
    if decoder is not None and not callable(decoder):
        raise TypeError(f"decoder={decoder!r:.60}: must be a function of tokens and cache")
    return _Settings(
        min(int(max_new_tokens), model.config.block_size),  # more never fit
        filters,
        torch.tensor(_ends(stop, vocab_size), dtype=torch.int64, device=device),
        generator,
        decoder or (lambda idx, cache: fast_logits(model, idx, cache)),
        vocab_size,
    )


def _ends(stop: int | Iterable[int] | None, V: int) -> list[int]:
    """Return the tokens that end a text as a list."""
    if stop is None:
        return []
    tokens = [stop] if isinstance(stop, Integral) or not isinstance(stop, Iterable) else list(stop)
    whole = (isinstance(token, Integral) and not isinstance(token, bool) for token in tokens)
    if not all(whole) or not all(0 <= token < V for token in tokens):
        raise ValueError(f"stop={stop!r:.60}: must be tokens between 0 and {V - 1}")
    return [int(token) for token in tokens]


def _tokens_in(model: SmolLM2, vocab_size: int | None) -> int:
    """Return how many entries of the vocabulary can be drawn."""
    V = model.config.vocab_size
    if vocab_size is None:
        return V
    _check("vocab_size", vocab_size, lambda v: _at_least_one(v) and v <= V, f"between 1 and {V}")
    return int(vocab_size)


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
            logits = settings.decoder(new, cache)[:, : settings.vocab_size]  # (B, V)
        if not logits.amax(-1).isfinite().all():  # nan, or infinite
            raise ValueError(
                f"the model's scores are not finite in {logits.dtype}: its weights are broken, or "
                "too large for that type"
            )
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
    vocab_size: int | None = None,
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
        vocab_size: entries that have a token (``tokenizer.vocab_size``). An embedding may have
            more, to fill it up to a round number: those are never drawn. All, unless told.

    Returns:
        For each prompt a tensor, (its length + its new tokens,): prompt and continuation. Where it
        has ``block_size`` tokens, the context is full.

    Raises:
        ValueError: for a setting out of its range, a prompt that is empty, too long, or holds a
            token that the model does not know, and for weights whose scores are not finite.
        TypeError: for what is no model, no prompt or no generator.
    """
    model = unwrapped(model)
    V = _tokens_in(model, vocab_size)
    rows = _rows(model, idx, V)
    settings = _settings(
        model,
        max_new_tokens,
        stop,
        generator,
        decoder,
        V,
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
        ended: why the text ends with this token: "stop token", "length" (``max_new_tokens``) or
            "context" (it is full); None while it goes on.
    """

    token: int
    probability: float
    runner_up: int
    runner_up_probability: float
    ended: str | None = None


def stream(
    model: SmolLM2,
    idx: Prompt,
    max_new_tokens: int,
    *,
    stop: int | Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    vocab_size: int | None = None,
    **filters: Any,
) -> Iterator[Step]:
    """Continue one prompt and yield every token when it is there.

    The twin of ``generate``, with the same arguments (``filters`` are ``temperature`` to
    ``repetition_penalty``) and errors, raised at once, not at the first token. Work is done only
    when the next token is asked for: who stops asking stops it.

    Yields:
        A ``Step`` for each new token.
    """
    model = unwrapped(model)
    V = _tokens_in(model, vocab_size)
    rows = _rows(model, idx, V)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} prompts: stream takes one; use generate for several")
    settings = _settings(model, max_new_tokens, stop, generator, decoder, V, **filters)
    return _steps(model, rows, settings)


def _steps(model: SmolLM2, rows: list[Tensor], settings: _Settings) -> Iterator[Step]:
    ends, room = set(settings.stop.tolist()), model.config.block_size - len(rows[0])
    for count, (tokens, _, logits) in enumerate(_decode(model, rows, settings), start=1):
        token = int(tokens)
        why = "context" if count == room else None
        why = "length" if count == settings.max_new_tokens else why
        why = "stop token" if token in ends else why
        probabilities = F.softmax(logits[0].float(), dim=-1)  # (V,)
        values, best = probabilities.topk(min(2, len(probabilities)))
        other = 1 if int(best[0]) == token and len(best) == 2 else 0
        yield Step(token, float(probabilities[token]), int(best[other]), float(values[other]), why)


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
) -> TextStream:
    """Yield the continuation of one prompt as text, in whole characters.

    A character that the length cut through is left out at the end.

    Args:
        model: whose weights speak.
        tokenizer: the tokenizer that the prompt was encoded with; what it has no token for is
            never drawn.
        idx: the prompt, (T,) or a list of token numbers.
        max_new_tokens: at most so many.
        stop: a token, or several, after which the text ends; the token itself is not shown.
        **options: the others of ``stream``.
    """
    if not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"tokenizer={tokenizer!r:.60}: must be a SmolLM2Tokenizer")
    model = unwrapped(model)
    V = min(tokenizer.vocab_size, model.config.vocab_size)
    ends = _ends(stop, V)
    steps = stream(model, idx, max_new_tokens, stop=ends, **{"vocab_size": V} | options)
    return TextStream(tokenizer, steps)


class TextStream(Iterator[str]):
    """Text, piece by piece, as it is made.

    Attributes:
        ended: why there is no more, as in ``Step``; None until then.
    """

    def __init__(self, tokenizer: SmolLM2Tokenizer, steps: Iterator[Step]) -> None:
        self.ended: str | None = None
        self._pieces = text_pieces(tokenizer, self._shown(steps))

    def __next__(self) -> str:
        text = next(self._pieces)[0]
        if self.ended in ("length", "context") and text.endswith("\N{REPLACEMENT CHARACTER}"):
            text = text[:-1] or next(self)
        return text

    def _shown(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            self.ended = step.ended
            if step.ended != "stop token":
                yield step


# Conversations.

SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# The form that the Instruct weights know, for a tokenizer that brings none of its own.
CHAT_TEMPLATE = f"""\
{{%- set own = [{{'role': 'system', 'content': '{SYSTEM_MESSAGE}'}}] %}}
{{%- for turn in ([] if messages[0].role == 'system' else own) + messages %}}
    {{{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '<|im_start|>assistant\\n' }}}}
{{%- endif %}}"""
# Who can speak, by the field's names; and whoever a template names.
ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")


def chat_prompt(
    tokenizer: SmolLM2Tokenizer,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[int]:
    """Write a conversation in the form that the weights know, as ``apply_chat_template`` does.

    Special tokens in what is said are characters like any others: nobody can forge a turn. The
    model's answer ends with a token of its own: pass ``stop=stop_tokens(tokenizer)``.

    Args:
        tokenizer: brings the template (``tokenizer.chat_templates``); without one the form is that
            of SmolLM2's Instruct weights, whose system message comes first unless there is one.
        messages: a question, or a list of messages, each with a "role" and its "content".
        template: another template, or the name of one that the tokenizer brings. Unless told it
            is "default", or "tool_use" where there are tools and a template of that name.
        tools: JSON schemas of functions that the model may call.
        add_generation_prompt: end with the start of the assistant's turn.
        **variables: what else the template reads.

    Returns:
        The token numbers of the prompt, up to where the assistant begins to speak.

    Raises:
        TypeError: for messages that are none.
        ValueError: for an empty list, a message without role or content, a role that the template
            does not know, or whatever the template refuses.

    Source: ``tokenizer.chat_template`` in the GGUF file of SmolLM2-135M-Instruct.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise TypeError(f"messages={messages!r:.60}: must be a question, or a list of messages")
    if not messages:
        raise ValueError("messages=[]: must hold at least one message")
    source = _chat_template(tokenizer, template, bool(tools))
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role is None or (content is None and not message.get("tool_calls")):
            raise ValueError(f"message {dict(message)}: must have a role and a content")
        if not isinstance(role, str) or (role not in ROLES and role not in source):
            raise ValueError(f"role {role!r}: must be one of {', '.join(ROLES[:4])}")
        if content is not None and not isinstance(content, str | list | tuple):
            raise ValueError(f"content {content!r:.60}: must be text, or a list of parts")
    return encode_chat(
        tokenizer,
        source,
        messages,
        tools=None if tools is None else list(tools),
        add_generation_prompt=add_generation_prompt,
        **variables,
    )


def _chat_template(tokenizer: SmolLM2Tokenizer, template: str | None, tools: bool) -> str:
    found = tokenizer.chat_templates
    if template is None:
        names = ["tool_use"] * tools + ["default"]
        if not found:
            return CHAT_TEMPLATE
        template = next((name for name in names if name in found), None)
        if template is None:
            raise ValueError(
                f"template: must be one of {', '.join(sorted(found))}; none is default"
            )
    return found.get(template, template)


def stop_tokens(tokenizer: SmolLM2Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end a text: ``<|endoftext|>``, and ``<|im_end|>`` of an answer.

    Others that the tokenizer's folder or file names come behind.
    """
    known = (tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"])
    return (*known, *(end for end in tokenizer.end_ids if end not in known))
