"""What each case looks like from outside: what somebody sees who knows nothing of the fault.

A function bears the name of its case (with underscores) and yields lines. ``smol_scratch.clinic``
keeps them as recorded by ``python -m benchmarks.record_clinic``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from smol_scratch import hub, tokenizer
from smol_scratch.clinic import Case
from smol_scratch.clinic.instruments import (
    CHANCE,
    FLOOR,
    apart,
    language,
    losses,
    model,
    noise,
    shape,
    steady,
    tokens,
    trainee,
)
from smol_scratch.clinic.patient import Patient


def symptom(one: Case, p: Patient) -> list[str]:
    """Run a faulty copy and return what is seen, line by line."""
    before = torch.get_rng_state()
    try:
        with p.inside(), steady():
            torch.manual_seed(0)
            return list(globals()[one.key.replace("-", "_")](p))
    finally:
        torch.set_rng_state(before)


def rows(p: Patient, text: Sequence[int], at: Sequence[int], **settings: Any) -> Iterator[str]:
    """Train, and say what the log says at some steps; losses are means of ten."""
    state = trainee(p, text, steps=max(at) + 1, **settings)
    seen = list(p.training.train(state))
    for step in at:
        near = [row.loss for row in seen[max(step - 9, 0) : step + 1]]
        norm = seen[step].gradient_norm
        yield f"step {step:>3}: loss {sum(near) / len(near):.1f}, gradient norm " + (
            "0.0" if norm == 0 else "above 0"
        )


def speak(p: Patient, prompt: str, n: int = 12) -> str:
    """Return how the real weights go on in the copy, greedily."""
    made, words = p.hub.load_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf", quiet=True), None
    words = p.tokenizer.load_tokenizer()
    ids = words.encode(prompt)
    found: str = words.decode(p.generation.generate(made, ids, n, temperature=0)[0][len(ids) :])
    return found


CAPITAL = "The capital of France is"
STORY = "Once upon a time, in a small village, there lived an old man who"


def nothing_happens(p: Patient) -> Iterator[str]:
    yield from rows(p, language(64 * 61), (0, 30, 59))


def does_not_fit(p: Patient) -> Iterator[str]:
    try:
        p.generation.generate(model(p), [1, 2, 3, 4, 5, 6, 7], 3)
    except ValueError as error:
        yield f"ValueError: {error}"


def a_bad_start(p: Patient) -> Iterator[str]:
    yield f"step   0: loss {losses(p, trainee(p, noise(200), steps=1))[0]:.0f}"


def clairvoyant(p: Patient) -> Iterator[str]:
    yield from rows(p, noise(64 * 101), (0, 50, 99))
    yield f"the best possible: {CHANCE:.1f}"


def first_word(p: Patient) -> Iterator[str]:
    made = model(p)
    for rest in ([8, 15], [23, 42], [4, 16]):
        new = p.generation.generate(made, [7, *rest], 1, temperature=0)[0][-1].item()
        yield f"prompt {[7, *rest]}: next token {new}"


def dice(p: Patient) -> Iterator[str]:
    torch.manual_seed(3)
    recipe = p.recipe.TrainingConfig(
        preset="tiny", block_size=8, sequence_length=8, batch_size=1, steps=1, precision="fp32"
    )
    options = p.recipe.RunOptions(device="cpu", fast=False, eval_interval=0)
    first = [
        losses(p, p.training.TrainingState.create(recipe, noise(100), options=options))[0]
        for _ in "ab"
    ]
    same = "equal" if first[0] == first[1] else "not equal"
    yield f"first losses of two runs with seed {recipe.seed}: {same}"


def wrong_partners(p: Patient) -> Iterator[str]:
    yield f"{STORY}{speak(p, STORY)!r}"


def short_memory(p: Patient) -> Iterator[str]:
    made, ids = model(p), tokens(1, 60)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        p.sharing.export_pretrained(made, Path(folder) / "made")
        off = (made(ids)[0] - hub.load_pretrained(Path(folder) / "made", quiet=True)(ids)[0]).abs()
    early, late = off[0, 1:4].mean(), off[0, 50:].mean()
    yield f"mean difference of scores, positions 1 to 3: {early:.2f}; 50 to 59: {late:.2f}"


def where_am_i(p: Patient) -> Iterator[str]:
    made, ids = model(p), tokens(1, 9)
    with torch.no_grad():
        before = made(ids)[0]
        for rope in {block.self_attn.rope for block in made.model.layers}:
            rope.cos, rope.sin = rope.cos[20:], rope.sin[20:]
        moved = apart(before, made(ids)[0])
    yield "scores of one text, once at position 0 and once at position 20: " + (
        "equal" if moved < 1e-4 else "not equal"
    )


def average_of_the_future(p: Patient) -> Iterator[str]:
    made, ids = model(p), tokens(1, 12)
    with torch.no_grad():
        for more in (0, 4):
            part = made(ids[:, : 8 + more])[0][0, :8].log_softmax(-1)
            score = part[torch.arange(7), ids[0, 1:8]].mean()
            yield f"mean log-probability of 8 tokens, with {more} more behind them: {score:.2f}"


def blame_the_cache(p: Patient) -> Iterator[str]:
    yield from standing_still(p)


def wrong_gate(p: Patient) -> Iterator[str]:
    yield f"{CAPITAL}{speak(p, CAPITAL)!r}"


def twins(p: Patient) -> Iterator[str]:
    yield f"{CAPITAL}{speak(p, CAPITAL)!r}"


def loud_chorus(p: Patient) -> Iterator[str]:
    for size, parts in ((4, 1), (1, 4)):
        state = trainee(p, language(200), batch_size=size, accumulate=parts)
        loss, _, norm = p.training.train_step(state)
        yield f"{parts} batch(es) of {size}: loss {loss:.2f}, gradient norm {norm:.2f}"


def last_voice(p: Patient) -> Iterator[str]:
    text = language(64 * 8 + 1)
    for parts, size in ((1, 4), (4, 1), (1, 1)):
        grads = []
        for start in range(0, 64 * 8, 64):
            piece = text[start : start + 65]
            state = trainee(p, piece, batch_size=size, accumulate=parts, clip=1e9)
            p.training.train_step(state)
            grads.append(torch.cat([w.grad.flatten() for w in state.model.parameters()]))
        mean = torch.stack(grads).mean(0)
        apart = torch.stack([grad - mean for grad in grads]).pow(2).sum(1).mean().sqrt()
        yield (
            f"gradients of 8 updates, {parts} batch(es) of {size} each: they scatter by "
            f"{apart / mean.norm():.1f} times the length of their mean"
        )


def sleepwalker(p: Patient) -> Iterator[str]:
    for scale in (1, 4096):
        state = trainee(p, language(200), clip=0.5)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=float(scale))
        yield f"loss scale {scale:>4}: gradient norm {p.training.train_step(state)[2]:.3g}"


def nervous_judge(p: Patient) -> Iterator[str]:
    state = trainee(p, language(64 * 41), language(400), dropout=0.5, look=1)
    losses(p, state, 40)
    state.model.train()
    looks = {state.held_out_loss() for _ in range(3)}
    yield f"three looks at the held-out text, no step between: {len(looks)} different losses"


def first_look(p: Patient) -> Iterator[str]:
    runs = {
        look: losses(p, trainee(p, language(64 * 6), noise(100), dropout=0.3, look=look, steps=5))
        for look in (0, 1)
    }
    equal = sum(a == b for a, b in zip(*runs.values(), strict=True))
    yield f"training losses of 5 steps, with looks and without: {equal} of 5 are equal"


def forgetful_speaker(p: Patient) -> Iterator[str]:
    made = model(p, dropout=0.3)
    texts = {
        tuple(p.generation.generate(made, [1, 2, 3], 20, temperature=0)[0].tolist())
        for _ in range(4)
    }
    yield f"four greedy continuations of one prompt: {len(texts)} different texts"


def spike(p: Patient) -> Iterator[str]:
    state = trainee(
        p, language(64 * 61), steps=60, warmup_steps=20, learning_rate=0.03, min_learning_rate=0.0
    )
    seen = [row.learning_rate for row in p.training.train(state)]
    rates = ", ".join(f"{rate:.3f}" for rate in seen[18:22])
    yield f"learning rate at steps 18, 19, 20, 21: {rates}"


def tired_weights(p: Patient) -> Iterator[str]:
    made = model(p)
    recipe = p.recipe.TrainingConfig(learning_rate=0.01, weight_decay=0.5)
    adam = p.training.make_optimizer(made, recipe)
    large = made.model.norm.weight
    large.data.fill_(100.0)
    for _ in range(20):
        for weight in made.parameters():
            weight.grad = torch.randn_like(weight)
        adam.step()
    yield f"a weight of 100, 20 steps with noise for gradients: {large.mean():.0f}; elsewhere 90"


def deja_vu(p: Patient) -> Iterator[str]:
    text, seen = list(range(61)) * 40, set()
    with tempfile.TemporaryDirectory() as folder:
        state = trainee(p, text, steps=20)
        for end in (10, 20):
            while state.step < end:
                seen.add(state.loader.position)
                p.training.train_step(state)
            p.checkpoint.save_checkpoint(state, Path(folder) / str(end))
            state = p.checkpoint.load_checkpoint(Path(folder) / str(end), text)
    places = 64 * len(seen)
    yield f"20 steps of 64 tokens, interrupted after 10: {places} places of the text were read"


def lost_momentum(p: Patient) -> Iterator[str]:
    text = language(64 * 41)
    through = losses(p, trainee(p, text, steps=40))
    with tempfile.TemporaryDirectory() as folder:
        state = trainee(p, text, steps=40)
        losses(p, state, 20)
        p.checkpoint.save_checkpoint(state, Path(folder) / "saved")
        rest = losses(p, p.checkpoint.load_checkpoint(Path(folder) / "saved", text))
    for step in (0, 1):
        same = "the same loss" if through[20 + step] == rest[step] else "other losses"
        yield f"step {20 + step}, uninterrupted and after going on: {same}"


def one_too_far(p: Patient) -> Iterator[str]:
    yield from rows(p, language(64 * 101), (0, 50, 99))
    yield f"the floor: {FLOOR:.1f}"


def out_of_range(p: Patient) -> Iterator[str]:
    norm = p.model.RMSNorm(48)
    for size in (10, 3000):
        x = torch.full((1, 48), float(size))
        found = norm.half()(x.half()).mean().item()
        yield f"a norm of float16 numbers, all {size}: {found:.1f}; it must be 1.0"


def no_way_back(p: Patient) -> Iterator[str]:
    made, ids = model(p).bfloat16().float(), tokens(1, 60)
    again = model(p)
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        off = (made(ids)[0] - again(ids)[0]).abs().amax(-1)[0]
    early, late = off[1:6].max(), off[50:].max()
    yield f"largest difference of scores, positions 1 to 5: {early:.0e}; 50 to 59: {late:.0e}"


def standing_still(p: Patient) -> Iterator[str]:
    made = model(p)
    right = [3, 1, 4, 1, 5]
    with torch.no_grad():
        for _ in range(8):
            right.append(int(made(torch.tensor([right]))[0][0, -1].argmax()))
    found = p.generation.generate(made, right[:5], 8, temperature=0)[0].tolist()
    marks = "".join("✓" if a == b else "✗" for a, b in zip(found[5:], right[5:], strict=True))
    yield f"eight greedy tokens with the cache, against those without: {marks}"


def selective_memory(p: Patient) -> Iterator[str]:
    made, store = model(p), p.cache.KVCache(shape(p))
    with torch.no_grad():
        made(tokens(1, 12), cache=store)
        store.truncate(6)
        again = made(tokens(1, 12)[:, 6:], cache=store)[0]
        fresh = made(tokens(1, 12))[0][:, 6:]
    yield "the same twelve tokens, the last six taken back and said again: " + (
        "the same scores" if apart(fresh, again) < 1e-4 else "other scores"
    )


def too_narrow(p: Patient) -> Iterator[str]:
    scores = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    for share in (0.35, 0.65, 0.9):
        left = int(p.generation.keep_top_p(scores, share).isfinite().sum())
        yield f"chances 0.40 0.30 0.15 0.10 0.05, top_p = {share}: {left} tokens are left"


def accountant(p: Patient) -> Iterator[str]:
    ours, theirs = p.tokenizer.load_tokenizer(), tokenizer.load_tokenizer()
    for what, text in (
        ("100,000 characters of Shakespeare", p.corpus.load_text()[:100_000]),
        ("'a  1\\nb  2'", "a  1\nb  2"),
    ):
        same = ours.encode(text) == theirs.encode(text)
        yield f"{what}: {'the same tokens as elsewhere' if same else 'other tokens than elsewhere'}"


def missed_cue(p: Patient) -> Iterator[str]:
    made = p.hub.load_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf", quiet=True)
    words = p.tokenizer.load_tokenizer()
    prompt = p.generation.chat_prompt(
        words, "What is the capital of Italy?", template=p.generation.CHAT_TEMPLATE
    )
    found = p.generation.generate(made, prompt, 14, temperature=0)[0][len(prompt) :]
    yield f"What is the capital of Italy? {words.decode(found)!r}"


def two_wrongs(p: Patient) -> Iterator[str]:
    made, ids = model(p), tokens(1, 9)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        place = p.sharing.export_gguf(made, Path(folder) / "m.gguf")
        mine, theirs = (h.load_pretrained(place, quiet=True)(ids)[0] for h in (p.hub, hub))
        right = made(ids)[0]
    for who, found in (("this program", mine), ("another program", theirs)):
        same = "the same scores" if apart(right, found) < 1e-4 else "other scores"
        yield f"{who} reads it back: {same}"


def open_book(p: Patient) -> Iterator[str]:
    train, held = p.data.split(noise(64 * 10), 0.2)
    state = trainee(p, train, held, steps=200, look=50)
    for row in p.training.train(state):
        if row.held_out_loss is not None and row.step in (0, 150):
            yield f"step {row.step:>3}: held-out loss on noise {row.held_out_loss:.1f}"
    yield f"the best possible: {CHANCE:.1f}"


def two_of_the_same(p: Patient) -> Iterator[str]:
    seen: set[int] = set()
    for rank in range(2):
        loader = p.data.DataLoaderLite(list(range(641)), 4, 16, rank=rank, world_size=2)
        for _ in range(loader.batches_per_pass):
            seen.update(loader.next_batch()[0].flatten().tolist())
    yield f"tokens that two processes have seen after a whole pass over 640: {len(seen)}"


def sisyphus(p: Patient) -> Iterator[str]:
    made, read = model(p), []

    def step(idx: Any, store: Any) -> Any:
        read.append(idx.shape[1])
        return p.generation.next_logits(made, idx, store)

    p.generation.generate(made, [1, 2, 3], 6, decoder=step)
    yield f"tokens that the model reads for the new tokens 1 to 6: {read}"
