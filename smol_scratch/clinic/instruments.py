"""What a copy of the package can be examined with: each instrument asks one question.

An instrument takes a ``Patient`` and returns a ``Reading``: whether all is as it must be, and what
it saw, rounded so that it reads the same on every machine. Nothing here looks at the source text.
All models are tiny; the longest instrument trains for some seconds.

Letters as in ``model.py``: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from smol_scratch import hub, probes
from smol_scratch.clinic.patient import Patient

# Query heads fill the width, so that nothing shows by its shape; two groups of three.
SHAPE = {
    "block_size": 64,
    "vocab_size": 61,
    "n_layer": 2,
    "n_head": 6,
    "n_kv_head": 2,
    "n_embd": 48,
    "intermediate_size": 80,
    "head_dim": 8,
    "norm_eps": 1e-3,
}
V = int(SHAPE["vocab_size"])
CHANCE = math.log(V)
# Two right ways of computing a logit of size 1 differ by some 1e-6 in float32; the gentlest fault
# here moves one by more than 1e-3.
ROUNDING = 1e-4


class Reading(NamedTuple):
    """What an instrument saw.

    Attributes:
        fine: whether all is as it must be.
        lines: what it saw, for people.
    """

    fine: bool
    lines: tuple[str, ...]


INSTRUMENTS: dict[str, Callable[[Patient], Reading]] = {}


def instrument(name: str) -> Callable[..., Any]:
    """Make an instrument of a function that yields (fine, line)."""

    def keep(function: Callable[[Patient], Iterator[tuple[bool, str]]]) -> Any:
        def use(patient: Patient) -> Reading:
            seen: list[tuple[bool, str]] = []
            before = torch.get_rng_state()
            try:
                with patient.inside(), steady():
                    torch.manual_seed(0)
                    seen.extend(function(patient))
            except Exception as error:  # whatever is broken in there is a reading, too
                first = str(error).partition("\n")[0]
                seen.append((False, f"stopped with {type(error).__name__}: {first}"))
            finally:
                torch.set_rng_state(before)
            lines = tuple(f"{'✓' if fine else '✗'} {line}" for fine, line in seen)
            return Reading(all(fine for fine, _ in seen), lines)

        INSTRUMENTS[name] = use
        return function

    return keep


@contextmanager
def steady() -> Iterator[None]:
    """Put back what a training run of the package sets for the whole process."""
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


# What is examined.


def shape(p: Patient, **changes: Any) -> Any:
    """Return the tiny configuration."""
    return p.config.SmolLM2Config(**(SHAPE | changes))


def model(p: Patient, random: bool = True, **changes: Any) -> Any:
    """Return a tiny model in evaluation mode, each weight of its own unless ``random`` is off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = p.model.SmolLM2(shape(p, **changes)).eval()
        if random:
            for weight in made.parameters():
                noise = torch.randn_like(weight)
                norm = weight.ndim == 1
                weight.data = 1 + 0.3 * noise if norm else noise * weight.shape[1] ** -0.5
    return made


def tokens(*size: int, seed: int = 2) -> Tensor:
    """Return tokens drawn by chance."""
    return torch.randint(V, size, generator=torch.Generator().manual_seed(seed))


def noise(n: int) -> list[int]:
    """Return a text in which nothing can be predicted: no model can beat ln V on it."""
    found: list[int] = tokens(n, seed=3).tolist()
    return found


def language(n: int) -> list[int]:
    """Return a text with one rule: three tokens of four follow from the one before."""
    free, chance = noise(n), tokens(n, seed=4).tolist()
    found = [0]
    for i in range(1, n):
        found.append((found[-1] * 7 + 3) % V if chance[i] % 4 else free[i])
    return found


# The entropy of that language: the rule's token has 45 of 61 chances, and a share of the rest.
_HIT = 45 / 61 + 16 / 61 / V
FLOOR = -_HIT * math.log(_HIT) - (1 - _HIT) * math.log((1 - _HIT) / (V - 1))


def trainee(
    p: Patient,
    text: Sequence[int],
    held_out: Sequence[int] | None = None,
    *,
    dropout: float = 0.0,
    look: int = 0,
    **recipe: Any,
) -> Any:
    """Return a training state over a tiny model."""
    settings = {
        "steps": 40,
        "batch_size": 4,
        "sequence_length": 16,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "warmup_steps": 4,
        "precision": "fp32",
        "seed": 0,
    }
    config = p.recipe.TrainingConfig(**(settings | recipe))
    # The quick pieces of fast.py would stand in for the very code that is examined.
    options = p.recipe.RunOptions(device="cpu", fast=False, eval_interval=look, eval_sequences=4)
    torch.manual_seed(0)
    made = p.model.SmolLM2(shape(p, n_layer=1, dropout=dropout))
    return p.training.TrainingState.create(config, text, held_out, options, model=made)


def losses(p: Patient, state: Any, until: int | None = None) -> list[float]:
    """Train, and return the loss of each step."""
    return [row.loss for row in p.training.train(state, until)]


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference in units of the first one's largest number."""
    return ((a - b).abs().max() / a.abs().max()).item()


def same(what: str, difference: float) -> tuple[bool, str]:
    """Return a verdict on a difference that only rounding may have made."""
    if difference <= ROUNDING:
        return True, f"{what}: equal up to rounding"
    size = f"{difference:.0%}" if difference < 10 else f"{difference:.0e}"
    return False, f"{what}: differ by {size if difference >= 0.01 else 'less than 1%'}"


# Instruments of cost 1: some calls, no training, nobody else's numbers.


@instrument("first-loss")
def first_loss(p: Patient) -> Iterator[tuple[bool, str]]:
    x, y = tokens(8, 32), tokens(8, 32, seed=5)
    with torch.no_grad():
        found = model(p, random=False)(x, y)[1].item()
    yield abs(found - CHANCE) < 0.1, f"loss before training: {found:.1f}; ln V = {CHANCE:.1f}"


@instrument("causality")
def causality(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p), tokens(2, 13)
    edited = ids.clone()
    edited[:, 6:] = (ids[:, 6:] + 1) % V
    with torch.no_grad():
        before, after = made(ids)[0], made(edited)[0]
    moved = [t for t in range(6) if not torch.equal(before[:, t], after[:, t])]
    yield (
        not moved,
        "tokens from position 6 on were replaced; "
        + (
            f"scores moved at positions {', '.join(map(str, moved))}"
            if moved
            else "positions 0 to 5 keep every bit"
        ),
    )


@instrument("shift")
def shift(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p), tokens(2, 13)
    with torch.no_grad():
        before = made(ids)[0]
        for rope in {block.self_attn.rope for block in made.model.layers}:
            rope.cos, rope.sin = rope.cos[29:], rope.sin[29:]
        yield same("scores at position 0 and at position 29", apart(before, made(ids)[0]))


@instrument("cache")
def cache(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p), tokens(2, 13)
    with torch.no_grad():
        whole = made(ids)[0]
        store = p.cache.KVCache(made.config, 2)
        ones = [made(ids[:, i : i + 1], cache=store)[0] for i in range(13)]
        yield same("whole, and one token at a time", apart(whole, torch.cat(ones, dim=1)))
        store = p.cache.KVCache(made.config, 2)
        parts = [made(piece, cache=store)[0] for piece in ids.split([5, 4, 4], dim=1)]
        yield same("whole, and in three pieces", apart(whole, torch.cat(parts, dim=1)))
        made((ids[:, :4] + 1) % V, cache=p.cache.KVCache(made.config, 2))
        store.truncate(5)
        again = made(ids[:, 5:], cache=store)[0]
        yield same("after forgetting the last eight", apart(whole[:, 5:], again))


@instrument("batch")
def batch(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p), tokens(3, 13)
    with torch.no_grad():
        alone = torch.cat([made(row[None])[0] for row in ids])
        yield same("alone, and among others", apart(made(ids)[0], alone))


@instrument("repeat")
def repeat(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p, dropout=0.3), tokens(2, 13)
    with torch.no_grad():
        once, twice = made(ids)[0], made(ids)[0]
    yield (
        torch.equal(once, twice),
        "the same call twice, in evaluation mode, dropout configured: "
        + ("the same bits" if torch.equal(once, twice) else "two results"),
    )


@instrument("half")
def half(p: Patient) -> Iterator[tuple[bool, str]]:
    norm = p.model.RMSNorm(48).half()
    x = (3000 * torch.randn(4, 48)).half()
    right = torch.nn.functional.rms_norm(x.float(), (48,), eps=1e-5)
    found = norm(x).float()
    finite = bool(found.isfinite().all())
    yield (
        finite and apart(right, found) < 0.01,
        "a norm of float16 numbers around 3,000: "
        + ("as in float32" if finite and apart(right, found) < 0.01 else "not as in float32"),
    )
    ids, made = tokens(2, 60), model(p)
    made.bfloat16().float()
    fresh = model(p)
    fresh.load_state_dict(made.state_dict())
    with torch.no_grad():
        difference = apart(fresh(ids)[0], made(ids)[0])
    yield same("to bfloat16 and back, and a new model with the same weights", difference)


@instrument("gradients")
def gradients(p: Patient) -> Iterator[tuple[bool, str]]:
    state = trainee(p, language(2000))
    before = {name: w.detach().clone() for name, w in state.model.named_parameters()}
    x, y = tokens(4, 16), tokens(4, 16, seed=5)
    state.model(x, y)[1].backward()
    none = [n for n, w in state.model.named_parameters() if w.grad is None or not w.grad.any()]
    yield not none, f"parts without a gradient after backward(): {', '.join(none) or 'none'}"
    _, _, norm = p.training.train_step(state)
    yield (
        0 < norm < math.inf,
        f"gradient norm of a training step: {'0' if norm == 0 else 'above 0'}",
    )
    still = [n for n, w in state.model.named_parameters() if torch.equal(w, before[n])]
    share = f"{len(before) - len(still)} of {len(before)}"
    yield not still, f"tensors that the step moved: {share}"


@instrument("schedule")
def schedule(p: Patient) -> Iterator[tuple[bool, str]]:
    def by_hand(kind: str, step: int) -> float:
        if step < 10:
            return (step + 1) / 10
        if kind == "wsd":
            return 0.1 + 0.9 * min((100 - step) / 20, 1)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2

    for kind in ("cosine", "wsd"):
        recipe = p.recipe.TrainingConfig(
            steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1, schedule=kind
        )
        at = (0, 9, 10, 55, 99)
        found = [recipe.learning_rate_at(step) for step in at]
        right = [by_hand(kind, step) for step in at]
        fine = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, right, strict=True))
        words = ", ".join(f"{step}: {rate:.2f}" for step, rate in zip(at, found, strict=True))
        if not fine:
            words += f" (by the formula {', '.join(f'{rate:.2f}' for rate in right)})"
        yield fine, f"{kind}, peak 1, rate at step {words}"


@instrument("batches")
def batches(p: Patient) -> Iterator[tuple[bool, str]]:
    text = list(range(100, 161))
    loader = p.data.DataLoaderLite(text, 2, 5)
    x, y = loader.next_batch()
    yield (
        torch.equal(y, x + 1),
        (f"text 100 101 102 …: first row {x[0].tolist()}, to be predicted {y[0].tolist()}"),
    )
    second = loader.next_batch()[0][0, 0].item()
    yield second == 110, f"the second batch begins with {second}; 110 comes next"
    seen: list[int] = []
    for rank in range(2):
        mine = p.data.DataLoaderLite(text, 2, 5, rank=rank, world_size=2)
        for _ in range(mine.batches_per_pass):
            seen += mine.next_batch()[0].flatten().tolist()
    twice = len(seen) - len(set(seen))
    yield twice == 0, f"two processes, one pass: {twice} tokens were handed out twice"


@instrument("held-out")
def held_out(p: Patient) -> Iterator[tuple[bool, str]]:
    text = tokens(2000, seed=6).tolist()
    train, held = p.data.split(text, 0.2)
    grams = {tuple(train[i : i + 8]) for i in range(len(train) - 7)}
    places = len(held) - 7
    found = sum(tuple(held[i : i + 8]) in grams for i in range(places)) / places
    yield found == 0, f"runs of 8 held-out tokens that stand in the training text: {found:.0%}"
    yield len(train) + len(held) == len(text), f"{len(train)} + {len(held)} of {len(text)} tokens"


@instrument("sampler")
def sampler(p: Patient) -> Iterator[tuple[bool, str]]:
    scores = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    ids = torch.tensor([[4]])

    def kept(**filters: Any) -> Tensor:
        chances: Tensor = p.generation.filter_logits(scores, ids, **filters).softmax(-1)[0]
        return chances

    for filters, right in (
        ({"top_p": 0.35}, 1),
        ({"top_p": 0.65}, 2),
        ({"top_k": 2}, 2),
        ({"min_p": 0.3}, 3),
        ({"temperature": 0}, 1),
    ):
        found = int((kept(**filters) > 0).sum())
        name, value = next(iter(filters.items()))
        words = f"{name} {value} of chances 0.40 0.30 0.15 0.10 0.05 keeps {found}"
        yield found == right, words + ("" if found == right else f", not {right}")
    cold, hot = kept(temperature=0.5)[0].item(), kept(temperature=2.0)[0].item()
    yield (
        cold > 0.5 and hot < 0.4,
        (f"temperature 0.5, 1, 2: the first token has {cold:.2f}, 0.40, {hot:.2f}"),
    )


@instrument("greedy")
def greedy(p: Patient) -> Iterator[tuple[bool, str]]:
    made, prompt = model(p), tokens(7).tolist()
    right = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            right.append(int(made(torch.tensor([right]))[0][0, -1].argmax()))
    found = p.generation.generate(made, prompt, 12, temperature=0)[0].tolist()
    agree = sum(a == b for a, b in zip(found[7:], right[7:], strict=False))
    yield (
        agree == 12,
        f"greedy generation and the whole model's best token agree {agree} times of 12",
    )
    made = model(p, dropout=0.3)
    twice = [p.generation.generate(made, prompt, 12, temperature=0)[0].tolist() for _ in range(2)]
    yield (
        twice[0] == twice[1],
        "greedy twice, dropout configured: "
        + ("the same text" if twice[0] == twice[1] else "two texts"),
    )


@instrument("work")
def work(p: Patient) -> Iterator[tuple[bool, str]]:
    stream = p.generation.stream(model(p), tokens(7).tolist(), 33, temperature=0)
    spent = []
    for new in range(33):
        with FlopCounterMode(display=False) if new in (1, 32) else nullcontext() as counter:
            next(stream)
        if counter is not None:
            spent.append(counter.get_total_flops())
    growth = spent[1] / spent[0]
    yield growth < 2, f"the 33rd new token takes {growth:.1f} times the FLOPs of the 2nd"


@instrument("tokenizer")
def tokenizer(p: Patient) -> Iterator[tuple[bool, str]]:
    made = p.tokenizer.load_tokenizer()
    for text, right in (
        ("ROMEO: I'll look", [3911, 3945, 63, 42, 339, 3060, 1492]),
        ("a  1", [81, 256, 33]),
        ("In 1984", [788, 216, 33, 41, 40, 36]),
    ):
        found = made.encode(text)
        fine = found == right
        yield fine, f"{text!r}: {found}" + ("" if fine else f", must be {right}")
    said = "  naïve\tcafé 日本 🙂\n"
    back = made.decode(made.encode(said)) == said
    yield back, f"{said!r} {'comes' if back else 'does not come'} back as it was"


@instrument("template")
def template(p: Patient) -> Iterator[tuple[bool, str]]:
    made = p.tokenizer.load_tokenizer()
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    form = p.generation.CHAT_TEMPLATE
    found = made.decode(p.generation.chat_prompt(made, turns, template=form))
    right = (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    yield (
        found == right,
        f"system S, user U: {found!r}" + ("" if found == right else f"; must be {right!r}"),
    )


# Of cost 2: something is trained, or saved and loaded.


@instrument("one-batch")
def one_batch(p: Patient) -> Iterator[tuple[bool, str]]:
    state = trainee(p, noise(4 * 16 + 1), steps=80)
    end = losses(p, state)[-1]
    yield end < 0.2, f"one batch of noise, 80 steps: loss {_size(end)}"


def _size(loss: float) -> str:
    """Return a loss in words that are the same on every machine."""
    if loss < 0.2:
        return "below 0.2"
    return f"{loss:.1f}" if loss > 3 else f"about {round(loss * 2) / 2:.1f}"


@instrument("noise")
def pure_noise(p: Patient) -> Iterator[tuple[bool, str]]:
    state = trainee(p, noise(100 * 64 + 1), steps=100)
    end = sum(losses(p, state)[-20:]) / 20
    yield (
        end > CHANCE - 0.1,
        (f"fresh noise, last 20 of 100 steps: loss {_size(end)}; none can be below {CHANCE:.1f}"),
    )


@instrument("learns")
def learns(p: Patient) -> Iterator[tuple[bool, str]]:
    state = trainee(p, language(100 * 64 + 1), steps=100)
    end = sum(losses(p, state)[-20:]) / 20
    near = FLOOR - 0.2 < end < FLOOR + 0.4
    yield (
        near,
        "a text with a rule, last 20 of 100 steps: loss "
        + (f"near the floor of {FLOOR:.1f}" if near else f"{_size(end)}; the floor is {FLOOR:.1f}"),
    )


@instrument("look-twice")
def look_twice(p: Patient) -> Iterator[tuple[bool, str]]:
    state = trainee(p, language(2000), noise(200), dropout=0.3, look=1)
    state.model.train()
    first, second = state.held_out_loss(), state.held_out_loss()
    yield (
        first == second,
        "held-out loss, looked at twice without training: "
        + ("the same" if first == second else "two numbers"),
    )
    yield (
        state.model.training,
        "afterwards the model is in "
        + (
            "training mode, as before"
            if state.model.training
            else "evaluation mode; it was training"
        ),
    )


@instrument("accumulate")
def accumulate(p: Patient) -> Iterator[tuple[bool, str]]:
    found = []
    ways: tuple[dict[str, Any], ...] = ({"batch_size": 4}, {"batch_size": 1, "accumulate": 4})
    for settings in ways:
        state = trainee(p, language(2000), clip=1e9, **settings)
        loss, _, norm = p.training.train_step(state)
        grads = torch.cat([w.grad.flatten() for w in state.model.parameters()])
        found.append((loss, norm, grads))
    one, four = found
    yield (
        abs(four[0] / one[0] - 1) < ROUNDING,
        f"loss, four small batches: {four[0] / one[0]:.1f} times that of a large one",
    )
    ratio = four[1] / one[1]
    yield abs(ratio - 1) < ROUNDING, f"gradient norm: {ratio:.1f} times"
    yield same("the gradients", apart(one[2], four[2]))


@instrument("clipping")
def clipping(p: Patient) -> Iterator[tuple[bool, str]]:
    found = []
    for scaled in (False, True):
        state = trainee(p, language(2000), clip=0.5)
        if scaled:
            state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        _, _, norm = p.training.train_step(state)
        left = torch.cat([w.grad.flatten() for w in state.model.parameters()]).norm().item()
        found.append((norm, left))
    (plain, cut), (scaled_norm, scaled_cut) = found
    yield abs(cut - min(0.5, plain)) < 1e-3, f"norm after clipping at 0.5: {cut:.2f}"
    yield (
        abs(scaled_norm / plain - 1) < 1e-3,
        (f"with a loss scale of 4096: reported norm {scaled_norm / plain:.0f} times as large"),
    )
    yield (
        abs(scaled_cut / cut - 1) < 1e-3,
        (
            "gradient that reaches the optimizer then: "
            + (
                "the same"
                if abs(scaled_cut / cut - 1) < 1e-3
                else f"{scaled_cut / cut:.0e} times as large"
            )
        ),
    )


@instrument("optimizer")
def optimizer(p: Patient) -> Iterator[tuple[bool, str]]:
    for matrices_only in (False, True):
        recipe = p.recipe.TrainingConfig(
            learning_rate=0.01, weight_decay=0.5, decay_matrices_only=matrices_only
        )
        made = model(p)
        adam = p.training.make_optimizer(made, recipe)
        before = {name: w.detach().double() for name, w in made.named_parameters()}
        m = {name: torch.zeros_like(w) for name, w in before.items()}
        v = {name: torch.zeros_like(w) for name, w in before.items()}
        right = {name: w.clone() for name, w in before.items()}
        for step in (1, 2, 3):
            for name, w in made.named_parameters():
                w.grad = torch.randn_like(w)
                g = w.grad.double()
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.95 * v[name] + 0.05 * g * g
                decay = 0.5 if w.ndim > 1 or not matrices_only else 0.0
                root = (v[name] / (1 - 0.95**step)).sqrt() + 1e-8
                right[name] -= 0.01 * decay * right[name]
                right[name] -= 0.01 * m[name] / (1 - 0.9**step) / root
            adam.step()
        wrong = [
            name
            for name, w in made.named_parameters()
            if apart(right[name] - before[name], w.detach().double() - before[name]) > 1e-3
        ]
        norms = [name for name in wrong if made.get_parameter(name).ndim == 1]
        of = "decay on matrices only" if matrices_only else "decay on all"
        words = (
            "as by hand"
            if not wrong
            else f"{len(wrong) - len(norms)} matrices and {len(norms)} norms move otherwise"
        )
        yield not wrong, f"three steps of AdamW, {of}: {words}"


@instrument("resume")
def resume(p: Patient) -> Iterator[tuple[bool, str]]:
    text = language(2000)
    settings: dict[str, Any] = {"steps": 8, "dropout": 0.2}
    through = losses(p, trainee(p, text, **settings))
    with tempfile.TemporaryDirectory() as folder:
        state = trainee(p, text, **settings)
        losses(p, state, 4)
        place = Path(folder) / "saved"
        p.checkpoint.save_checkpoint(state, place)
        torch.manual_seed(9)
        state = p.checkpoint.load_checkpoint(place, text)
        torch_state = state.loader.position
        rest = losses(p, state)
    yield torch_state == 4 * 64, f"after 4 steps of 64 tokens it goes on at token {torch_state}"
    equal = [a == b for a, b in zip(through[4:], rest, strict=True)]
    first = equal.index(False) + 4 if False in equal else None
    yield (
        first is None,
        "losses of the steps after the interruption: "
        + ("the same, bit for bit" if first is None else f"others from step {first} on"),
    )


@instrument("same-seed")
def same_seed(p: Patient) -> Iterator[tuple[bool, str]]:
    recipe = p.recipe.TrainingConfig(
        preset="tiny", block_size=32, sequence_length=8, batch_size=1, steps=2, warmup_steps=0,
        precision="fp32",
    )  # fmt: skip
    options = p.recipe.RunOptions(device="cpu", fast=False, eval_interval=0)
    runs = [
        losses(p, p.training.TrainingState.create(recipe, noise(100), options=options))
        for _ in range(2)
    ]
    yield (
        runs[0] == runs[1],
        "two runs with the same seed: "
        + ("the same losses" if runs[0] == runs[1] else "other losses"),
    )


@instrument("round-trip")
def round_trip(p: Patient) -> Iterator[tuple[bool, str]]:
    made, ids = model(p), tokens(2, 13)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for what, name in (("folder", "hf"), ("GGUF file", "m.gguf")):
            place = Path(folder) / name
            (p.sharing.export_gguf if name == "m.gguf" else p.sharing.export_pretrained)(
                made, place
            )
            back = p.hub.load_pretrained(place, quiet=True)
            yield same(f"written as a {what} and read back", apart(made(ids)[0], back(ids)[0]))


# Of cost 3: somebody else's numbers.


@instrument("foreign")
def foreign(p: Patient) -> Iterator[tuple[bool, str]]:
    # The other program is the reader's own copy of this package, which equals transformers.
    made, ids = model(p), tokens(2, 13)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for what, name in (("folder", "hf"), ("GGUF file", "m.gguf")):
            place = Path(folder) / name
            (p.sharing.export_gguf if name == "m.gguf" else p.sharing.export_pretrained)(
                made, place
            )
            other = hub.load_pretrained(place, quiet=True)
            yield same(
                f"scores, another program's from the {what}", apart(other(ids)[0], made(ids)[0])
            )


LADDER = (
    "RMSNorm",
    "RMSNorm, float16",
    "RoPE",
    "attention, explicit",
    "attention, fast",
    "attention, last tokens",
    "attention with its matrices",
    "SwiGLU",
    "block",
    "whole model",
    "cross-entropy",
    "cache equals no cache",
)


@instrument("ladder")
def ladder(p: Patient) -> Iterator[tuple[bool, str]]:
    # The stored numbers of the doctor: computed from the formulas in float64.
    theirs = p.probes
    theirs.small_weights = probes.small_weights  # made once
    known = probes.references()
    device = torch.device("cpu")
    for probe in theirs.PROBES:
        if probe.name not in LADDER:
            continue
        try:
            found = theirs.summary(probe.run(p.model, device))
            times = probes.judge(found, known[probe.name])[0]
        except Exception as error:
            yield False, f"{probe.name}: stopped with {type(error).__name__}"
            continue
        yield times <= 1, f"{probe.name}: {'equal' if times <= 1 else 'differs'}"
