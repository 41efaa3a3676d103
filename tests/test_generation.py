"""Generation: filters against ``transformers``, batches against rows alone, text, and the cache."""

from __future__ import annotations

import dataclasses
import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from smol_scratch import KVCache, SmolLM2, SmolLM2Config, generation, to_transformers
from smol_scratch.fast_decode import CompiledDecoder
from smol_scratch.generation import (
    Step,
    apply_temperature,
    chat_prompt,
    fast_logits,
    filter_logits,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_logits,
    penalise_repetition,
    stop_tokens,
    stream,
    stream_text,
    text_pieces,
)
from tests.checks import randomise

INFINITY = float("inf")
EMBEDDING = "model.embed_tokens.weight"
SEEDS = st.integers(0, 10_000)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(seed: int, rows: int = 3, V: int = 500) -> tuple[Tensor, Tensor]:
    """Scores as spread out as a model's, and tokens that some of them have seen."""
    logits = torch.randn(rows, V, generator=seeded(seed)) * 4
    return logits, torch.randint(V, (rows, 60), generator=seeded(seed))


@pytest.fixture(scope="module")
def model() -> SmolLM2:
    """Small, with weights that make each greedy choice clear."""
    torch.manual_seed(0)
    config = SmolLM2Config.preset("tiny", vocab_size=211, block_size=64, dropout=0.2)
    model = SmolLM2(config)
    randomise(model)
    return model.eval().requires_grad_(False)


# Filters.


@given(SEEDS, st.floats(0.05, 8.0))
def test_temperature_equals_transformers(seed, temperature):
    logits, ids = random_logits(seed)
    ours = F.softmax(apply_temperature(logits, temperature), dim=-1)
    theirs = F.softmax(TemperatureLogitsWarper(temperature)(ids, logits), dim=-1)
    # We subtract the largest score first. A score of 20 / 0.05 has a last digit of 3e-5.
    torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-4)


@given(SEEDS, st.integers(1, 600))
def test_top_k_equals_transformers(seed, top_k):
    logits, ids = random_logits(seed)
    assert torch.equal(keep_top_k(logits, top_k), TopKLogitsWarper(top_k)(ids, logits))


@given(SEEDS, st.floats(0.01, 0.999))
def test_top_p_equals_transformers(seed, top_p):
    logits, ids = random_logits(seed)
    ours, theirs = keep_top_p(logits, top_p), TopPLogitsWarper(top_p)(ids, logits)
    # They add from the least probable upwards, we from the most: only a token that begins at the
    # bound, up to the rounding of such a sum, may be kept by one and not by the other.
    p, order = logits.double().softmax(-1).sort(descending=True)
    begins = torch.empty_like(p).scatter_(-1, order, p.cumsum(-1) - p)
    other = ours != theirs
    assert ((begins[other] - top_p).abs() < 1e-5).all()
    assert torch.equal(ours[~other], theirs[~other])


@given(SEEDS, st.floats(0.0, 1.0))
def test_min_p_equals_transformers(seed, min_p):
    logits, ids = random_logits(seed)
    assert torch.equal(keep_min_p(logits, min_p), MinPLogitsWarper(min_p)(ids, logits))


@given(SEEDS, st.floats(0.3, 3.0))
def test_repetition_penalty_equals_transformers(seed, penalty):
    logits, ids = random_logits(seed)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalise_repetition(logits, ids, penalty), theirs)


@given(SEEDS)
def test_all_filters_in_their_order_equal_transformers(seed):
    logits, ids = random_logits(seed)
    settings = {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02}
    ours = filter_logits(logits, ids, repetition_penalty=1.3, **settings)
    theirs = logits.clone()
    for processor in (
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.02),
    ):
        theirs = processor(ids, theirs)
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(F.softmax(ours, -1), F.softmax(theirs, -1), atol=0, rtol=1e-5)


@given(SEEDS, st.integers(1, 500), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_filters_keep_what_they_promise(seed, top_k, top_p, min_p):
    logits, ids = random_logits(seed)
    before = logits.clone()
    probabilities = F.softmax(logits, dim=-1)
    best = logits.argmax(-1)
    kept = {}
    for name, filtered in (
        ("k", keep_top_k(logits, top_k)),
        ("p", keep_top_p(logits, top_p)),
        ("min", keep_min_p(logits, min_p)),
    ):
        kept[name] = filtered.isfinite()
        assert kept[name].gather(1, best[:, None]).all(), "the likeliest token always stays"
        assert torch.equal(filtered[kept[name]], logits[kept[name]]), "what stays is unchanged"
        assert (filtered[~kept[name]] == -INFINITY).all()
        # Nothing that goes is likelier than anything that stays.
        lowest = probabilities.masked_fill(~kept[name], INFINITY).amin(-1)
        highest = probabilities.masked_fill(kept[name], 0.0).amax(-1)
        assert (highest <= lowest).all()
    assert (kept["k"].sum(-1) == top_k).all()
    mass = (probabilities * kept["p"]).sum(-1)
    assert (mass >= top_p - 1e-5).all(), "the kept tokens add up to top_p"  # sum of 500 in float32
    least = probabilities.masked_fill(~kept["p"], 1.0).amin(-1)
    assert (mass - least < top_p + 1e-5).all(), "and one fewer would not"
    assert torch.equal(logits, before), "the input is not changed"
    assert torch.equal(ids, random_logits(seed)[1])


def test_equal_scores_stay_together_under_top_k():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, True, False]]


def test_the_numbers_of_a_small_example():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert keep_top_p(logits, 0.79).isfinite().sum() == 2
    assert keep_top_p(logits, 0.81).isfinite().sum() == 3
    assert keep_top_p(logits, 1.0) is logits
    assert keep_min_p(logits, 0.29).isfinite().sum() == 3
    assert keep_min_p(logits, 0.31).isfinite().sum() == 2
    half = F.softmax(apply_temperature(logits, 0.5), dim=-1)  # squares, brought back to a sum of 1
    torch.testing.assert_close(half, torch.tensor([[0.25, 0.09, 0.0225, 0.0025]]) / 0.365)
    penalised = penalise_repetition(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[0, 1, 0]]), 2)
    assert penalised.tolist() == [[1.0, -4.0, 2.0]]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-45, "top_p": 1e-45, "min_p": 1e-320, "repetition_penalty": 1e-30},
        {"temperature": 3e38, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 1e30},
        {"temperature": 1e-45, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1e30},
    ],
)
def test_the_ends_of_what_is_allowed_leave_a_distribution(options):
    logits, ids = random_logits(0)
    logits[:, 3] = float("-inf")
    probabilities = F.softmax(filter_logits(logits, ids, **options), dim=-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e30])
def test_no_temperature_overflows(temperature):
    probabilities = F.softmax(apply_temperature(random_logits(0)[0], temperature), dim=-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


def test_top_p_stops_where_the_sum_is_reached_exactly():
    """Sums that float32 holds exactly: the token behind the one that reaches top_p goes."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert F.softmax(logits, -1).tolist() == [[0.5, 0.25, 0.125, 0.125]]
    for top_p, kept in ((0.5, 1), (0.75, 2), (0.875, 3), (1.0, 4), (0.51, 2), (1e-9, 1)):
        assert keep_top_p(logits, top_p).isfinite().sum() == kept, top_p
    assert keep_min_p(logits, 0.5).isfinite().sum() == 2  # half as probable as the likeliest stays
    assert keep_top_k(logits, 2).isfinite().sum() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_filters_reckon_in_float32_whatever_the_scores_are(dtype):
    logits, ids = random_logits(0)
    half = logits.to(dtype)
    for options in ({"repetition_penalty": 1.3}, {"temperature": 1.7}, {"top_p": 0.8},
                    {"repetition_penalty": 1.3, "temperature": 0.3, "min_p": 0.01}):  # fmt: skip
        assert torch.equal(
            filter_logits(half, ids, **options), filter_logits(half.float(), ids, **options)
        )


WRONG = [
    ({"temperature": -0.1}, "temperature=-0.1: must be"),
    ({"temperature": INFINITY}, "temperature=inf: must be"),
    ({"temperature": float("nan")}, "temperature=nan: must be"),
    ({"top_k": 0}, "top_k=0: must be"),
    ({"top_k": 1.5}, "top_k=1.5: must be"),
    ({"top_p": 0.0}, "top_p=0.0: must be"),
    ({"top_p": 1.1}, "top_p=1.1: must be"),
    ({"min_p": -0.1}, "min_p=-0.1: must be"),
    ({"min_p": 1.1}, "min_p=1.1: must be"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be"),
    ({"temperature": 0, "top_p": 7.0}, "top_p=7.0: must be"),
    # Above 0 in Python, and 0 or infinite in float32.
    *({"temperature": t} for t in (1e-46, 1e-320, 1e39)),
    *({"top_p": p} for p in (1e-46, 1e-320)),
    *({"repetition_penalty": r} for r in (1e-320, 1e-40, 1e39)),
    ({"stop": 211}, "stop=211: must be tokens between 0 and 210"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: must be"),
    ({"idx": []}, "integers, one at least"),
    ({"idx": torch.zeros(0, 3, dtype=torch.int64)}, "no prompt"),
    ({"idx": [[1, 2], []]}, "integers, one at least"),
    ({"idx": torch.ones(3)}, "type torch.float32"),
    ({"idx": [1, 211]}, "token 211: must lie between 0 and 210"),
    ({"idx": [-1, 2]}, "token -1: must lie"),
    ({"idx": [1] * 64}, "64 tokens leaves no room .* block_size=64 .* last 63"),
    *({"max_new_tokens": n} for n in ("5", 2.5, None, True, [3])),
    *({"temperature": t} for t in ("1", None, [1.0], True, torch.tensor(1.0), 1j)),
    *({"top_k": k} for k in ("5", 2.5, True)),
    *({"top_p": p} for p in ("0.5", True, [0.5])),
    *({"min_p": p} for p in ("0.5", True)),
    *({"repetition_penalty": r} for r in ("2", None, INFINITY)),
    *({"stop": s} for s in ("a", ["a"], 0.5, [0.5], -1, [211], [None], True)),
    *({"vocab_size": v} for v in ("9", 0, 212, 2.5)),
    ({"vocab_size": 3}, "token 3: must lie between 0 and 2"),
    ({"idx": [[[1]]]}, "must be"),
    ({"idx": [1.5, 2]}, "type torch.float32"),
    ({"idx": torch.ones(3, dtype=torch.bool)}, "type torch.bool"),
    ({"idx": torch.ones(2, 2, 2, dtype=torch.int64)}, "must be"),
]
WRONG = [case if isinstance(case, tuple) else (case, f"{next(iter(case))}=") for case in WRONG]
WRONG_TYPES = [
    ({"idx": "To be"}, "idx='To be': must be token numbers; text is encoded first"),
    ({"idx": b"To be"}, "idx=b'To be': must be token numbers"),
    ({"idx": 5}, "idx=5: must be token numbers"),
    ({"idx": None}, "idx=None: must be token numbers"),
    ({"idx": [None]}, "must be token numbers"),
    ({"idx": [[1, [2]]]}, "must be token numbers"),
    ({"idx": {"a": 1}}, "must be token numbers"),
    ({"generator": 5}, "generator=5: must be a torch.Generator"),
    ({"decoder": "fast"}, "decoder='fast': must be a function"),
    ({"model": "SmolLM2"}, "model=str: must be a SmolLM2"),
    ({"model": None}, "model=NoneType: must be a SmolLM2"),
    ({"model": torch.nn.Linear(2, 2)}, "model=Linear: must be a SmolLM2"),
]


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_settings_are_named_at_once(model, function, change, message):
    arguments = {"idx": [1, 2, 3], "max_new_tokens": 4} | change
    with pytest.raises(ValueError, match=message):
        function(model, **arguments)  # a stream too: nobody has asked for its first token yet


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(("change", "message"), WRONG_TYPES)
def test_arguments_of_the_wrong_type_are_named_at_once(model, function, change, message):
    arguments = {"model": model, "idx": [1, 2, 3], "max_new_tokens": 4} | change
    with pytest.raises(TypeError, match=message):
        function(**arguments)


SCORES = torch.zeros(2, 7)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *(
            (lambda s, f=f: f(s, 1), error, message)
            for f in (apply_temperature, keep_top_k, keep_top_p, keep_min_p)
            for error, message in ((TypeError, "must be a tensor"),)
        ),
        (lambda s: filter_logits(s, SCORES.long()), TypeError, "must be a tensor"),
        (lambda s: filter_logits(SCORES, s, repetition_penalty=2.0), TypeError, "must be a tensor"),
        (lambda s: penalise_repetition(SCORES, s, 2.0), TypeError, "must be a tensor"),
    ],
)
@pytest.mark.parametrize("scores", ["x", None, [[0.0]]])
def test_scores_that_are_no_tensor_are_named(call, error, message, scores):
    with pytest.raises(error, match=message):
        call(scores)


@pytest.mark.parametrize(
    ("scores", "ids", "message"),
    [
        (torch.zeros(7), None, r"logits of shape \(7,\)"),
        (torch.zeros(2, 0), None, r"logits of shape \(2, 0\)"),
        (torch.zeros(2, 7, dtype=torch.int64), None, "type torch.int64: must be"),
        (SCORES, torch.zeros(2, 3), "ids of shape .* type torch.float32"),
        (SCORES, torch.zeros(3, dtype=torch.int64), "ids of shape"),
        (SCORES, torch.zeros(3, 3, dtype=torch.int64), "the B=2 of the logits"),
        (SCORES, torch.full((2, 3), 7), "token 7: must lie between 0 and 6"),
        (SCORES, torch.full((2, 3), -1), "token -1: must lie"),
    ],
)
def test_scores_and_tokens_that_do_not_fit_are_named(scores, ids, message):
    given = torch.zeros(2, 3, dtype=torch.int64) if ids is None else ids
    with pytest.raises(ValueError, match=message):
        filter_logits(scores, given, repetition_penalty=2.0)
    if ids is None:
        for keep, value in ((apply_temperature, 2.0), (keep_top_k, 2), (keep_top_p, 0.5)):
            with pytest.raises(ValueError, match=message):
                keep(scores, value)


@pytest.mark.parametrize(
    ("idx", "cache", "error"),
    [
        ("x", KVCache, TypeError),
        ([[1]], KVCache, TypeError),
        (torch.tensor([[1]]), list, TypeError),
        (torch.tensor([1]), KVCache, ValueError),
        (torch.tensor([[1.5]]), KVCache, ValueError),
        (torch.zeros(1, 0, dtype=torch.int64), KVCache, ValueError),
    ],
)
def test_a_step_with_wrong_arguments_is_named(model, idx, cache, error):
    cache = KVCache(model.config) if cache is KVCache else []
    for function in (next_logits, fast_logits):
        with pytest.raises(error, match="must be"):
            function(model, idx, cache)
    other = KVCache(dataclasses.replace(model.config, n_layer=model.config.n_layer + 1))
    with pytest.raises(ValueError, match=r"a cache of 5 layers for a model of 4"):
        next_logits(model, torch.tensor([[1]]), other)


def test_text_needs_a_tokenizer(model):
    with pytest.raises(TypeError, match="tokenizer='x': must be a SmolLM2Tokenizer"):
        stream_text(model, "x", [1], 1)


def test_numbers_of_any_whole_type_are_a_prompt(model):
    expected = generate(model, [5, 17, 3], 6, temperature=0)[0]
    for kind in (np.uint16, np.int64, np.int32, np.uint8):
        same = [np.array([5, 17, 3], kind), list(np.array([5, 17, 3], kind)),
                torch.from_numpy(np.array([5, 17, 3], kind)), (5, 17, 3)]  # fmt: skip
        for idx in same:
            assert torch.equal(generate(model, idx, np.int64(6), temperature=0)[0], expected)
    one, other = generate(model, [torch.tensor([7]), np.array([9, 8])], 3, temperature=0)
    assert (len(one), len(other)) == (4, 5)
    assert torch.equal(generate(model, np.array([[7], [9]]), 3, temperature=0)[0], one)


# Other people's models.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [math.nan, INFINITY])
def test_weights_that_are_broken_are_named(model, value, temperature, dtype):
    broken = SmolLM2(model.config).eval()
    broken.model.norm.weight.data[0] = value
    broken = broken.to(dtype)
    for write in (
        lambda: generate(broken, [1, 2], 3, temperature=temperature),
        lambda: list(stream(broken, [1, 2], 3, temperature=temperature)),
        lambda: generate(broken, [[1, 2], [3]], 3, temperature=temperature, top_p=0.9),
    ):
        with pytest.raises(ValueError, match=f"scores are not finite in {dtype}.*weights are bro"):
            write()


def test_a_score_of_minus_infinity_is_no_fault(model):
    scores = torch.full((1, 211), -INFINITY)
    scores[0, 42] = 1.0
    assert generate(model, [1], 2, decoder=lambda *_: scores)[0].tolist() == [1, 42, 42]
    both = torch.cat([scores, torch.zeros(1, 211)])  # each row has its own largest score
    assert generate(model, [[1], [2]], 1, decoder=lambda *_: both)[0].tolist() == [1, 42]
    both[1] = -INFINITY
    with pytest.raises(ValueError, match="scores are not finite"):
        generate(model, [[1], [2]], 1, decoder=lambda *_: both)


class Elsewhere(torch.Generator):
    """A generator that says it is on a card, where no card is."""

    device = torch.device("cuda", 1)


@pytest.mark.parametrize("write", [generate, stream])
def test_a_generator_elsewhere_than_the_model_is_refused_with_the_way_to_make_one(model, write):
    said = (
        r"^a generator on {}: must be on the model's device, {}; make .* torch.Generator\('{}'\)$"
    )
    with pytest.raises(ValueError, match=said.format("cuda:1", "cpu", "cpu")):
        write(model, [1, 2], 3, generator=Elsewhere())
    there = SmolLM2(model.config).to("meta")  # a device without memory stands for a card
    with pytest.raises(ValueError, match=said.format("cpu", "meta", "meta")):
        write(there, [1, 2], 3, generator=seeded())


def test_without_a_generator_one_is_made_where_the_model_is(model, monkeypatch):
    made = []

    class Recorded(torch.Generator):
        def __new__(cls, device: object = "cpu") -> torch.Generator:
            made.append(torch.device(device))
            return super().__new__(cls)

        def __init__(self, device: object = "cpu") -> None: ...

    monkeypatch.setattr(torch, "Generator", Recorded)
    there = SmolLM2(model.config).to("meta")
    stream(there, [1, 2], 3)  # nothing is computed before the first token is asked for
    assert made == [torch.device("meta")]


def test_on_a_card_nobody_waits_to_look_at_the_tokens(model):
    """A look at values would stall the card's queue. The meta device has none: a look raises."""
    with pytest.raises(RuntimeError, match="meta"):
        int(torch.zeros(1, device="meta"))
    ids = torch.tensor([[5, 500]], device="meta")
    logits = torch.zeros(1, 211, device="meta")
    assert penalise_repetition(logits, ids, 1.5).shape == (1, 211)
    there = SmolLM2(model.config).to("meta")
    assert there(ids, ids)[1].shape == ()
    assert next_logits(there, ids, KVCache(model.config, device="meta")).shape == (1, 211)
    for ids in (torch.tensor([[5, 211]]), torch.tensor([[-1, 5]])):
        with pytest.raises(ValueError, match=r"token (211|-1): must lie between 0 and 210"):
            penalise_repetition(torch.zeros(1, 211), ids, 1.5)
        with pytest.raises(ValueError, match=r"token (211|-1): must lie between 0 and 210"):
            model(ids)


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel, "averaged", "twice"])
def test_a_wrapped_model_speaks_as_itself(model, wrap):
    if wrap == "averaged":
        wrapped = torch.optim.swa_utils.AveragedModel(model)
    elif wrap == "twice":
        wrapped = torch.compile(torch.nn.DataParallel(model))
    else:
        wrapped = wrap(model)
    expected = generate(model, [5, 17, 3], 6, temperature=0)[0]
    assert torch.equal(generate(wrapped, [5, 17, 3], 6, temperature=0)[0], expected)
    assert [s.token for s in stream(wrapped, [5, 17, 3], 6, temperature=0)] == expected[3:].tolist()
    assert torch.equal(to_transformers(wrapped).model.norm.weight, model.model.norm.weight)
    decoder = CompiledDecoder(wrapped)
    assert type(decoder.model) is type(CompiledDecoder(model).model)
    if wrap == "averaged":  # it holds a copy
        pairs = zip(decoder.model.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    else:
        assert decoder.model is CompiledDecoder(model).model


def test_entries_without_a_token_are_never_drawn(model):
    """An embedding that was filled up: whatever stands there, the tokens are those without it."""
    padded = SmolLM2(dataclasses.replace(model.config, vocab_size=256)).eval()
    weights = model.state_dict()
    embedding = torch.cat([weights[EMBEDDING], 9 * torch.randn(45, 96)])
    padded.load_state_dict(weights | {EMBEDDING: embedding})
    for options in ({"temperature": 0}, {"temperature": 3.0}, {"top_k": 3, "min_p": 0.1},
                    {"repetition_penalty": 1.5}):  # fmt: skip
        same = {"vocab_size": 211, "generator": seeded(5)}
        ours = generate(padded, PROMPTS, 20, **options, **same)
        expected = generate(model, PROMPTS, 20, **options, generator=seeded(5))
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        steps = list(stream(padded, PROMPTS[0], 20, **options, vocab_size=211, generator=seeded(5)))
        right = list(stream(model, PROMPTS[0], 20, **options, generator=seeded(5)))
        for one, other in zip(steps, right, strict=True):
            assert (one.token, one.runner_up, one.ended) == (
                other.token, other.runner_up, other.ended,
            )  # fmt: skip
            # A product of 256 columns may be summed in another order than one of 211.
            assert one[1::2] == pytest.approx(other[1::2], rel=1e-5)
    free = generate(padded, PROMPTS, 20, temperature=0)
    assert max(int(row.max()) for row in free) >= 211, "or the test shows nothing"


def test_text_is_made_of_the_tokenizers_tokens(tokenizer):
    """The case that was reported: the padding is what this model would say at every step."""
    torch.manual_seed(0)
    config = SmolLM2Config.preset("tiny", n_layer=1, vocab_size=49_216, block_size=64)
    padded = SmolLM2(config).eval()
    randomise(padded)
    padded.model.embed_tokens.weight.data[49_152:] *= 100
    assert max(generate(padded, [1, 2, 3], 30, temperature=0)[0]) >= 49_152
    for options in ({"temperature": 0}, {"generator": seeded()}):
        text = "".join(stream_text(padded, tokenizer, [1, 2, 3], 30, **options))
        assert len(tokenizer.encode(text)) > 5


# The loop.


def greedy_without_cache(model: SmolLM2, row: list[int], count: int) -> list[int]:
    ids = list(row)
    for _ in range(count):
        logits, _ = model(torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    return ids


PROMPTS = [[5, 17, 3, 99, 4, 8, 120], [7], [33, 2, 150], [9, 9, 9, 1, 1, 1, 64, 201, 13, 30]]


def test_rows_of_different_lengths_equal_each_alone_and_without_cache(model):
    together = generate(model, PROMPTS, 20, temperature=0)
    assert len({tuple(row.tolist()[-10:]) for row in together}) == 4, "four different texts"
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert row.tolist() == greedy_without_cache(model, prompt, 20)
        assert torch.equal(row, generate(model, prompt, 20, temperature=0)[0])


def test_the_penalty_counts_prompt_and_continuation_and_nothing_else(model):
    ids = list(PROMPTS[0])
    for _ in range(20):
        logits = model(torch.tensor([ids]))[0][:, -1]
        ids.append(int(penalise_repetition(logits, torch.tensor([ids]), 1.8).argmax()))
    prompts = [PROMPTS[0], PROMPTS[3]]
    row, _ = generate(model, prompts, 20, temperature=0, repetition_penalty=1.8)
    assert row.tolist() == ids
    assert row.tolist() != generate(model, PROMPTS[0], 20, temperature=0)[0].tolist()
    # What is not yet written does not count either, whatever number stands in its place.
    scores = torch.zeros(1, 211)
    scores[0, 0], scores[0, 42] = 2.0, 1.5
    options = {"temperature": 0, "repetition_penalty": 1.8}
    [row] = generate(model, [1], 3, decoder=lambda idx, cache: scores, **options)
    assert row.tolist() == [1, 0, 42, 0]


def test_each_kind_of_prompt_is_taken(model):
    expected = generate(model, [5, 17, 3], 6, temperature=0)
    for idx in (torch.tensor([5, 17, 3]), torch.tensor([[5, 17, 3]], dtype=torch.int32)):
        assert torch.equal(torch.stack(generate(model, idx, 6, temperature=0)), expected[0][None])
    both = generate(model, torch.tensor([[5, 17, 3], [1, 2, 3]]), 6, temperature=0)
    assert torch.equal(both[0], expected[0])
    assert [len(row) for row in both] == [9, 9]


def test_a_stop_token_ends_its_row_only(model):
    free = [row.tolist() for row in generate(model, PROMPTS, 20, temperature=0)]
    # A token that one row writes, and another has in its prompt, where it must not count.
    written = free[3][len(PROMPTS[3]) + 4]
    stopped = generate(model, [*PROMPTS, [5, written, 6]], 20, temperature=0, stop=[written, 210])
    for row, whole, prompt in zip(stopped, free, PROMPTS, strict=False):
        new = whole[len(prompt) :]
        end = new.index(written) + 1 if written in new else 20
        assert row.tolist() == whole[: len(prompt) + end]
    assert len(stopped[4]) > 3
    assert {len(row) for row in stopped} != {len(row) for row in map(torch.tensor, free)}


def test_generation_ends_where_the_context_ends(model):
    rows = generate(model, [[1] * 60, [2] * 63, [3] * 5], 10, temperature=0)
    assert [len(row) for row in rows] == [64, 64, 15]
    assert rows[0].tolist() == greedy_without_cache(model, [1] * 60, 4)
    assert len(list(stream(model, [1] * 60, 10))) == 4


@pytest.mark.parametrize(
    ("prompt", "most", "stop", "why", "count"),
    [
        ([1] * 60, 10, None, "context", 4),
        ([1] * 60, 4, None, "length", 4),  # all that was asked for is there
        ([1] * 60, 3, None, "length", 3),
        ([1] * 63, 9, None, "context", 1),
        ([5, 6], 9, "first", "stop token", 1),
        ([1] * 63, 9, "first", "stop token", 1),
    ],
)
def test_the_last_step_says_why_there_is_no_more(model, prompt, most, stop, why, count):
    if stop is not None:
        stop = int(generate(model, prompt, 1, temperature=0)[0][-1])
    steps = list(stream(model, prompt, most, temperature=0, stop=stop))
    assert [step.ended for step in steps] == [None] * (count - 1) + [why]


def test_a_text_says_why_there_is_no_more(real_model, tokenizer):
    text = stream_text(real_model, tokenizer, tokenizer.encode("Once upon"), 3, temperature=0)
    assert text.ended is None
    assert len("".join(text)) > 3
    assert text.ended == "length"
    full = [1] * (real_model.config.block_size - 1)
    short = SmolLM2(dataclasses.replace(TINY_TEXT, block_size=8)).eval()
    text = stream_text(short, tokenizer, full[:7], 5)
    list(text)
    assert text.ended == "context"


def test_chance_comes_from_the_generator_alone(model):
    first = generate(model, [[1, 2], [3]], 30, generator=seeded(3))
    state = torch.random.get_rng_state()
    again = generate(model, [[1, 2], [3]], 30, generator=seeded(3))
    other = generate(model, [[1, 2], [3]], 30, generator=seeded(4))
    free = [generate(model, [1, 2], 30)[0] for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state), "the global state was touched"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(free[0], free[1]), "without a generator two calls drew the same"


def test_tokens_are_drawn_as_often_as_they_are_probable(model):
    rows = generate(model, torch.full((4000, 1), 7), 1, temperature=3.0, generator=seeded())
    counts = torch.stack(rows)[:, 1].bincount(minlength=211) / 4000
    expected = F.softmax(model(torch.tensor([[7]]))[0][0, -1] / 3.0, dim=-1)
    # The standard deviation of a share p of 4,000 draws is sqrt(p (1 - p) / 4000); 211 shares.
    deviation = (counts - expected).abs() / (expected * (1 - expected) / 4000).sqrt()
    assert deviation[expected > 0.002].max() < 4


def test_the_models_mode_is_kept_and_dropout_is_off(model):
    quiet = generate(model, PROMPTS[0], 20, temperature=0)
    model.train()
    try:
        assert torch.equal(generate(model, PROMPTS[0], 20, temperature=0)[0], quiet[0])
        steps = stream(model, PROMPTS[0], 20, temperature=0)
        for step, token in zip(steps, quiet[0][len(PROMPTS[0]) :].tolist(), strict=True):
            assert step.token == token
            assert all(part.training for part in model.modules()), "while the stream is open too"
            assert not torch.is_inference_mode_enabled()
        assert all(part.training for part in model.modules())
    finally:
        model.eval()
    generate(model, PROMPTS[0], 2)
    assert not any(part.training for part in model.modules())


def test_what_comes_out_can_be_trained_on(model):
    [ids] = generate(model, PROMPTS[0], 10, generator=seeded())
    assert not ids.is_inference()
    trained = SmolLM2(model.config)
    trained(ids[None, :-1], ids[None, 1:])[1].backward()


# The stream.


def test_the_stream_is_generates_twin(model):
    settings = {"temperature": 1.3, "top_k": 50, "repetition_penalty": 1.2, "stop": 4}
    [whole] = generate(model, [5, 6], 40, generator=seeded(1), **settings)
    steps = list(stream(model, [5, 6], 40, generator=seeded(1), **settings))
    assert [step.token for step in steps] == whole[2:].tolist()
    assert len(steps) > 3


def test_probabilities_are_the_models_own(model):
    steps = list(stream(model, [5, 6], 30, temperature=2.0, top_k=5, generator=seeded(2)))
    ids = [5, 6, *(step.token for step in steps)]
    distribution = F.softmax(model(torch.tensor([ids]))[0][0], dim=-1)  # (T, V)
    kinds = set()
    for row, step in zip(distribution[1:], steps, strict=False):
        assert step.probability == pytest.approx(row[step.token].item(), rel=1e-3)
        others = row.clone()
        others[step.token] = -1
        assert step.runner_up == int(others.argmax())
        assert step.runner_up_probability == pytest.approx(others.max().item(), rel=1e-3)
        kinds.add(step.probability > step.runner_up_probability)
    assert kinds == {True, False}, "both a likeliest token and a less likely one were drawn"


def test_a_stream_works_only_when_asked(model):
    calls = []

    def counting(idx: Tensor, cache: object) -> Tensor:
        calls.append(idx.shape[1])
        return torch.zeros(1, 211)

    steps = stream(model, [1, 2, 3], 30, decoder=counting)
    assert calls == []
    next(steps)
    next(steps)
    assert calls == [3, 1], "the prompt at once, then a token at a time"
    steps.close()
    assert list(steps) == []
    assert calls == [3, 1]


def test_streams_in_threads_do_not_mix(model):
    expected = [generate(model, p, 30, generator=seeded(i))[0] for i, p in enumerate(PROMPTS)]
    found: dict[int, list[int]] = {}

    def run(i: int) -> None:
        steps = stream(model, PROMPTS[i], 30, generator=seeded(i))
        found[i] = PROMPTS[i] + [step.token for step in steps]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [row.tolist() for row in expected]


# Text.


def as_steps(ids: list[int]) -> list[Step]:
    return [Step(i, 0.5, 0, 0.1) for i in ids]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF)))
def test_text_comes_in_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = list(text_pieces(tokenizer, as_steps(ids)))
    assert "".join(piece for piece, _ in pieces) == text == tokenizer.decode(ids)
    assert [step.token for _, steps in pieces for step in steps] == ids
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece, _ in pieces)


@given(st.lists(st.integers(0, 49_151), max_size=40))
def test_any_tokens_give_the_whole_text(tokenizer, ids):
    pieces = list(text_pieces(tokenizer, as_steps(ids)))
    assert "".join(piece for piece, _ in pieces) == tokenizer.decode(ids)
    assert [step.token for _, steps in pieces for step in steps] == ids


def test_a_character_of_several_tokens_comes_once(tokenizer):
    ids = tokenizer.encode("a🂡b")
    assert len(ids) > 4, "the playing card is cut"
    pieces = text_pieces(tokenizer, as_steps(ids))
    assert [text for text, _ in pieces] == ["a", "🂡", "b"]


def test_the_text_stream_ends_before_its_stop_token(real_model, tokenizer):
    prompt = chat_prompt(tokenizer, "What is the capital of France?")
    options = {"temperature": 0, "stop": stop_tokens(tokenizer)}
    pieces = list(stream_text(real_model, tokenizer, prompt, 30, **options))
    [ids] = generate(real_model, prompt, 30, **options)
    assert ids[-1] == stop_tokens(tokenizer)[1]
    assert "".join(pieces) == tokenizer.decode(ids[len(prompt) : -1])
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3


TINY_TEXT = SmolLM2Config.preset("tiny", n_layer=1)


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("position", range(2))
def test_each_stop_token_ends_a_text_and_is_not_shown(position, as_list, tokenizer):
    """Given alone or among others, at the first token or later."""
    model = SmolLM2(TINY_TEXT).eval()
    words = [*(tokenizer.encode("The king of")), tokenizer.eos_id]
    left = iter(words)

    def say(idx: Tensor, cache: object) -> Tensor:
        scores = torch.zeros(1, TINY_TEXT.vocab_size)
        scores[0, next(left)] = 1.0
        return scores

    stop = words[position] if not as_list else [7, words[position], tokenizer.eos_id]
    text = stream_text(model, tokenizer, [1], 20, temperature=0, stop=stop, decoder=say)
    assert "".join(text) == tokenizer.decode(words[:position])
    assert text.ended == "stop token"
    for ends in stop_tokens(tokenizer):
        left = iter([words[0], ends, words[1]])
        text = stream_text(
            model, tokenizer, [1], 20, temperature=0, stop=stop_tokens(tokenizer), decoder=say
        )
        assert "".join(text) == "The"
        left = iter([words[0], ends, words[1]])
        [row] = generate(model, [1], 20, temperature=0, stop=stop_tokens(tokenizer), decoder=say)
        assert row.tolist() == [1, words[0], ends], "in the tokens it is there"


def test_a_character_that_the_length_cuts_is_left_out(tokenizer):
    """Not so one that the model itself left broken before it ended."""
    model, words = SmolLM2(TINY_TEXT).eval(), tokenizer.encode("a🂡")

    def say(idx: Tensor, cache: object) -> Tensor:
        scores = torch.zeros(1, TINY_TEXT.vocab_size)
        scores[0, next(left)] = 1.0
        return scores

    for length in range(1, len(words) + 1):
        left = iter(words)
        text = stream_text(model, tokenizer, [1], length, temperature=0, decoder=say)
        assert "".join(text) == ("a🂡" if length == len(words) else "a")
    left = iter([*words[:-1], tokenizer.eos_id])
    ends = stop_tokens(tokenizer)
    text = stream_text(model, tokenizer, [1], 20, temperature=0, decoder=say, stop=ends)
    assert "".join(text) == "a�"


def test_more_tokens_than_any_context_has_are_as_many_as_fit():
    model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1, block_size=8)).eval()
    [row] = generate(model, [1, 2], 10**30)
    assert len(row) == 8


# The chat template.

CONVERSATIONS = [
    [{"role": "user", "content": "Who was Shakespeare?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count to 20\n\n 3"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello. What can I do?"},
        {"role": "user", "content": "Go."},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_prompt_is_that_of_the_released_template(gguf, tokenizer, messages):
    from gguf import GGUFReader

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    theirs.chat_template = GGUFReader(gguf).fields["tokenizer.chat_template"].contents()
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat_prompt(tokenizer, messages) == tokenizer.encode(text)
    if len(messages) == 1:
        assert chat_prompt(tokenizer, messages[0]["content"]) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ([{"role": "wizard", "content": "x"}], "role 'wizard'"),
        ([{"role": "user", "text": "x"}], "a role and a content"),
    ],
)
def test_a_wrong_conversation_is_named(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        chat_prompt(tokenizer, messages)


# The real weights.


@pytest.mark.slow
@torch.no_grad()
def test_real_weights_write_what_transformers_writes(real_model, tokenizer):
    prompt = torch.tensor(tokenizer.encode("Once upon a time, in a small village"))
    [ours] = generate(real_model, prompt, 200, temperature=0)
    new = ours[len(prompt) :].tolist()
    assert len(new) == 200
    assert len(set(new)) > 60, "a text that repeats itself proves little"
    # Without a cache, in one pass: every token is the likeliest after those before it. From the
    # first to the last that is what a greedy loop without a cache would have written.
    logits, _ = real_model(ours[None, :-1])
    assert logits[0, len(prompt) - 1 :].argmax(-1).tolist() == new
    theirs = to_transformers(real_model)
    theirs.generation_config.eos_token_id = None  # or it might stop early
    reference = theirs.generate(prompt[None], max_new_tokens=200, do_sample=False)
    assert reference[0].tolist() == ours.tolist()


def test_real_weights_in_a_batch_write_what_each_prompt_alone_gives(real_model, tokenizer):
    prompts = [tokenizer.encode(text) for text in ("Gravity is", "The old king rose, and said to")]
    together = generate(real_model, prompts, 30, temperature=0)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, generate(real_model, prompt, 30, temperature=0)[0])


def test_the_decoder_of_ones_own_is_used(model):
    scores = torch.eye(211)[42:43]
    [row] = generate(model, [1], 3, temperature=0, decoder=lambda idx, cache: scores)
    assert row.tolist() == [1, 42, 42, 42]


# The compiled decoder.


@pytest.fixture(scope="module")
def compiled(model: SmolLM2) -> CompiledDecoder:
    decoder = CompiledDecoder(model)
    generate(model, [1, 2, 3], 3, decoder=decoder)
    return decoder


def test_compiled_decoding_writes_the_same_tokens(model, compiled):
    for prompt in PROMPTS:
        plain = generate(model, prompt, 60, temperature=0)[0].tolist()
        assert generate(model, prompt, 60, temperature=0, decoder=compiled)[0].tolist() == plain
    both = generate(model, PROMPTS, 20, temperature=0, decoder=compiled)
    assert [row.tolist() for row in both] == [
        row.tolist() for row in generate(model, PROMPTS, 20, temperature=0)
    ]


def test_nothing_is_compiled_again(model, compiled):
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (2, 20, 57):
            generate(model, [1, 2, 3], length, decoder=compiled)


def errors_in_bfloat16(model: SmolLM2, decoder: CompiledDecoder) -> tuple[float, float]:
    """The distances of plain and compiled bfloat16 scores from those of the same in float32."""
    exact = SmolLM2(model.config).eval()
    exact.load_state_dict(model.state_dict())  # the bfloat16 weights, in float32
    ids = torch.randint(model.config.vocab_size, (1, 40), generator=seeded())
    plain, ours = [], []
    with torch.inference_mode():
        caches = [KVCache(model.config, max_length=50, dtype=torch.bfloat16) for _ in range(2)]
        for token in ids[0].split(1):
            plain.append(next_logits(model, token[None], caches[0]))
            ours.append(decoder(token[None], caches[1]))
        expected = exact(ids)[0][0]
    return tuple(float((torch.cat(s).float() - expected).norm()) for s in (plain, ours))


@pytest.mark.slow
def test_compiled_decoding_in_bfloat16_is_as_exact_as_the_plain_one(model):
    half = SmolLM2(dataclasses.replace(model.config, tie_embeddings=False)).eval()
    randomise(half)
    half = half.bfloat16().requires_grad_(False)
    plain, ours = errors_in_bfloat16(half, CompiledDecoder(half))
    # Both round the same sums, in another order: neither is nearer to the truth. The compiled one
    # keeps more in float32 (scores, attention), so it may be nearer, and must not be much further.
    assert 0 < ours < 1.1 * plain


def test_fast_logits_in_bfloat16_are_as_exact_as_the_plain_ones(model):
    half = SmolLM2(dataclasses.replace(model.config, tie_embeddings=False)).eval()
    randomise(half)
    half = half.bfloat16().requires_grad_(False)
    plain, ours = errors_in_bfloat16(half, partial(fast_logits, half))
    assert 0 < ours < 1.1 * plain  # as above: the same sums in another order
    assert torch._C._get_mkldnn_enabled()  # the switch is back where it was


def test_two_threads_that_overlap_leave_the_switch_as_it_was():
    """The one that came first leaves first; who kept what it found would leave oneDNN off."""
    switch, seen = generation._without_onednn, []
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with switch:
            entered.set()
            leave.wait(timeout=60)
            seen.append(torch._C._get_mkldnn_enabled())

    thread = threading.Thread(target=other)
    with switch:
        thread.start()
        assert entered.wait(timeout=60)
    assert not torch._C._get_mkldnn_enabled()  # the other is still within
    leave.set()
    thread.join()
    assert seen == [False]
    assert torch._C._get_mkldnn_enabled()


def test_fast_logits_are_the_plain_ones_where_no_vector_is_multiplied_in_bfloat16(model):
    caches = [KVCache(model.config, max_length=8) for _ in range(2)]
    with torch.inference_mode():
        for ids in (torch.tensor([[1, 2, 3]]), torch.tensor([[4]])):
            plain, ours = next_logits(model, ids, caches[0]), fast_logits(model, ids, caches[1])
            assert torch.equal(plain, ours)


@pytest.mark.parametrize(
    ("dtype", "ids", "off"),
    [
        (torch.bfloat16, [[4]], True),
        (torch.bfloat16, [[1, 2]], False),
        (torch.bfloat16, [[1], [2]], False),
        (torch.float32, [[4]], False),
    ],
)
def test_onednn_is_off_for_a_single_token_in_bfloat16_alone(model, monkeypatch, dtype, ids, off):
    """Whether it is slows or speeds, and changes no score that a test could see."""
    seen = []
    monkeypatch.setattr(
        generation, "next_logits", lambda *_: seen.append(torch._C._get_mkldnn_enabled())
    )
    typed = SmolLM2(model.config).to(dtype)
    cache = KVCache(model.config, batch_size=len(ids), max_length=8, dtype=dtype)
    fast_logits(typed, torch.tensor(ids), cache)
    assert seen == [not off]
    assert torch._C._get_mkldnn_enabled()


def test_a_full_cache_is_an_error_of_the_compiled_decoder_too(model, compiled):
    cache = KVCache(model.config, max_length=3)
    compiled(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of max_length=3"):
        compiled(torch.tensor([[4]]), cache)
