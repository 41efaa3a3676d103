"""The explorables: what each computes in a browser is what Python computes."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import statistics
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks import record_explore
from smol_scratch import RMSNorm, SmolLM2Config, assets
from smol_scratch.accounting import (
    PRODUCT_TYPES,
    activations,
    matrix_products,
    palm_flops,
    total_parameters,
    training_cost,
    training_memory,
)
from smol_scratch.course import inside
from smol_scratch.course.measure import parameters
from smol_scratch.generation import apply_temperature, keep_min_p, keep_top_k, keep_top_p
from smol_scratch.hardware import CARDS
from smol_scratch.model import RotaryPositionalEmbedding
from smol_scratch.tokenizer import merges_of
from tests.test_tokenizer import TRICKY

NAMES = sorted(path.stem for path in record_explore.PAGES.glob("*.html"))
DATA = {name: record_explore.stored(name) for name in NAMES}


def test_the_readmes_moving_picture_says_what_the_recorded_numbers_say():
    [scene] = [s for s in DATA["attention"]["sentences"] if "keys" in "".join(s["words"])]
    words = DATA["attention"]["vocabulary"]
    best = [
        words[max(w, key=lambda pair: pair[1])[0]] for w in (scene["whole"], scene["silent"][17][0])
    ]
    assert [word.strip() for word in best] == ["keys", "missing"]
    assert (17, 0, True) in [scene[:3] for scene in record_explore.SCENES]
    with Image.open(record_explore.MOVING) as picture:
        assert picture.n_frames == len(record_explore.SCENES)
    assert "without head 0 of block 17" in (assets.ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_small_and_loads_what_lies_beside_it(name):
    folder, text = record_explore.PAGES, (record_explore.PAGES / f"{name}.html").read_text("utf-8")
    files = {f"{name}.js", "common.js", "common.css"}
    assert (folder / f"{name}.js").stat().st_size < 300_000
    assert (folder / f"{name}.png").stat().st_size < 300_000
    script = [text, *((folder / file).read_text("utf-8") for file in ("common.js", "common.css"))]
    assert sum(len(part.encode()) for part in script) < 60_000
    # The only address is that of SVG, which nobody visits.
    found = re.findall(r"https?://[^\s\"'`]+", "".join(script))
    assert set(found) <= {"http://www.w3.org/2000/svg"}
    loaded = re.findall(r"\b(?:src|href)=\"([^\"]*)\"", text)
    assert set(loaded) - {f"{name}.png"} == files
    assert "@import" not in "".join(script)


def test_what_is_stored_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(record_explore, "PAGES", tmp_path)
    for data in ({"a": ["</script>;", "é\n", 1.5]}, [";"], {}):
        record_explore.store("x", data)
        assert record_explore.stored("x") == data


def test_every_page_has_its_recorder():
    assert sorted(record_explore.RECORD) == NAMES


@pytest.fixture(scope="module")
def browser():
    if record_explore.CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=record_explore.CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Open an explorable; at the end nothing may have failed, and nothing been asked."""
    pages, faults = [], []

    def open_page(name, width=760):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: r.url.startswith("file:") or faults.append(r.url))
        page.goto((record_explore.PAGES / f"{name}.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_phone_shows_all_and_the_keyboard_reaches_all(name, opened):
    page = opened(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    # In a table of buttons, one is reached by Tab and the others by the arrow keys.
    controls = ":is(input, select, textarea, button, [tabindex='0']):not([tabindex='-1'])"
    expected = page.evaluate(f"document.querySelectorAll({json.dumps(controls)}).length")
    reached = set()
    for _ in range(expected + 3):
        page.keyboard.press("Tab")
        found = "[...document.querySelectorAll('*')].indexOf(document.activeElement)"
        reached.add(page.evaluate(found))
        page.keyboard.press("ArrowRight")  # moves a slider or a choice, and must not fail
    assert len(reached) >= expected > 0
    unlabelled = "[...document.querySelectorAll('input, select, textarea')]"
    assert page.evaluate(f"{unlabelled}.filter((c) => !c.labels.length).length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_no_serious_fault_of_accessibility(name, scheme, opened):
    axe = os.environ.get("AXE_CORE", "")
    if not axe:
        pytest.skip("AXE_CORE names no axe.min.js (npm install axe-core)")
    page = opened(name)
    page.emulate_media(color_scheme=scheme)
    page.evaluate(Path(axe).read_text("utf-8"))
    found = page.evaluate("axe.run().then((r) => r.violations.map((v) => [v.impact, v.id]))")
    assert [fault for fault in found if fault[0] in ("serious", "critical")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_its_picture_without_javascript(name, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((record_explore.PAGES / f"{name}.html").as_uri())
    assert page.locator("main img").is_visible()
    assert not page.locator(".live").is_visible()
    context.close()


def close(found, right, tolerance=1e-5):
    """JavaScript computes in float64, Python here in float32, whose rounding is allowed for."""
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(right, dtype=torch.float64),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.mark.slow
def test_ropes_scores_are_the_models(opened):
    page = opened("rope")
    turn = RotaryPositionalEmbedding(64, 64, DATA["rope"]["theta"])
    for i, head in enumerate(DATA["rope"]["heads"]):
        q, k = (torch.tensor(head[x]).expand(1, 1, 61, 64) for x in "qk")
        right = turn(q)[0, 0] @ turn(k)[0, 0].T / 8  # (61, 61)
        found = page.evaluate(
            "(i) => [...Array(61).keys()].map((m) => [...Array(61).keys()].map("
            "(n) => explore.score(data.heads[i], m, n)))",
            i,
        )
        close(found, right, 1e-4)  # 32 angles up to 60, of which float32 knows 4e-6


@pytest.fixture
def real(real_model, tokenizer):
    found = object.__new__(record_explore.Real)
    found.model, found.tokenizer = real_model, tokenizer
    return found


@pytest.mark.slow
def test_ropes_heads_are_those_of_the_model(real):
    for found, stored in zip(
        record_explore.rope(real)["heads"], DATA["rope"]["heads"], strict=True
    ):
        close(found["q"], stored["q"], 0.02)  # two decimals, and the last may be rounded otherwise
        close(found["k"], stored["k"], 0.02)


@pytest.mark.slow
def test_rmsnorms_arrows_are_the_packages(opened):
    page = opened("rmsnorm")
    x, weight = torch.tensor(DATA["rmsnorm"]["x"]), torch.tensor(DATA["rmsnorm"]["weight"])
    norm = RMSNorm(2)
    norm.weight.data = weight
    close(page.evaluate("explore.norm(data.x, data.weight, 'channels')"), norm(x).detach())
    over_time = weight * x * (x.pow(2).mean(0) + 1e-5).rsqrt()
    close(page.evaluate("explore.norm(data.x, data.weight, 'time')"), over_time)
    before = page.locator("#say").inner_text()
    page.locator("#axis").select_option("time")
    page.locator("#c0").focus()
    page.keyboard.press("ArrowRight")
    assert "the output of the first token moved" in page.locator("#say").inner_text() != before


SHAPES = {
    **{name: SmolLM2Config.preset(name) for name in DATA["memory"]["shapes"]},
    # No two sizes alike, a head of its own, and the heads wider together than the stream.
    "untied": SmolLM2Config(
        block_size=512, vocab_size=101, n_layer=3, n_head=6, n_kv_head=2, n_embd=40,
        intermediate_size=72, head_dim=8, tie_embeddings=False,
    ),
    "one head": SmolLM2Config(
        block_size=512, vocab_size=99, n_layer=2, n_head=1, n_kv_head=1, n_embd=8,
        intermediate_size=24, head_dim=8,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRODUCT_TYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_memorys_bytes_are_the_packages(name, dtype, opened):
    page, shape = opened("memory"), SHAPES[name]
    word = str(dtype).removeprefix("torch.")
    assert name not in DATA["memory"]["shapes"] or DATA["memory"]["shapes"][name] == asdict(shape)
    for B, T in ((1, 1), (1, 32), (4, 256), (64, 256)):
        held = page.evaluate(
            "(a) => [memory(...a, 'AdamW', 'all'), activations(...a)]", [asdict(shape), B, T, word]
        )
        right = training_memory(shape, B, T, dtype)
        assert held[0]["peak"] == right["peak"]
        assert sum(held[1].values()) == right["activations"] == sum(
            activations(shape, B, T, dtype).values()
        )  # fmt: skip
        assert held[0]["optimizer"] == right["AdamW's two moments"]
        # The parts that the page shows are the peak, and nothing is left over.
        parts = {k: v for k, v in held[0].items() if k not in ("peak", "moment")}
        assert sum(parts.values()) == held[0]["peak"]
        states = {"SGD with momentum": 4, "SGD": 0}
        for optimizer, size in states.items():
            found = page.evaluate(
                "([s, B, T, d, o]) => memory(s, B, T, d, o, 'all').peak",
                [asdict(shape), B, T, word, optimizer],
            )
            assert found == right["peak"] + (size - 8) * total_parameters(shape)


@pytest.mark.slow
def test_memorys_largest_batch_is_notebook_08s(opened):
    page = opened("memory")
    most = page.evaluate(
        "mostSequences(16e9, data.shapes['135M'], 256, 'bfloat16', 'AdamW', 'all')"
    )
    shape = SmolLM2Config.preset("135M")
    peaks = [training_memory(shape, most + n, 256, torch.bfloat16)["peak"] for n in (0, 1)]
    assert peaks[0] <= 16e9 < peaks[1]
    assert page.locator("#say").inner_text().startswith("It does not fit: 28.8 GB")
    page.locator("#B").fill(str(most))
    assert page.locator("#say").inner_text().startswith("It fits")
    page.locator("#B").fill("2.5")
    assert page.locator("#say").inner_text() == (
        "sequences = 2.5: must be a whole number of at least 1"
    )


def with_checkpoints(model, idx, targets):
    """The model's forward pass; of each block only the input is kept."""
    x = model.model.embed_tokens(idx)
    for block in model.model.layers:
        x = checkpoint(block, x, use_reentrant=False)
    logits = functional.linear(model.model.norm(x), model.model.embed_tokens.weight)
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return logits, loss


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "B", "T"), [("135M", 16, 256), ("13M", 2, 512), ("13M", 1, 16)])
def test_memorys_checkpoints_are_those_of_a_rehearsed_step(name, B, T, dtype, opened):
    page, shape = opened("memory"), SHAPES[name]
    word = str(dtype).removeprefix("torch.")
    held = page.evaluate("(a) => memory(...a, 'AdamW', 'input')", [asdict(shape), B, T, word])
    right = parameters.rehearse(shape, B, T, dtype, loss=with_checkpoints).peak
    # AdamW's counter of steps for each tensor, and the loss; the page leaves them out.
    assert 0 <= right - held["peak"] < 2_000


@pytest.mark.slow
@pytest.mark.parametrize("B", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memorys_checkpoints_of_a_small_vocabulary_are_as_near_as_the_page_says(dtype, B, opened):
    """What one operation of a block's backward pass needs is not counted, and shows here."""
    page = opened("memory")
    shape = SmolLM2Config(
        vocab_size=256, n_layer=8, n_head=4, n_kv_head=2, n_embd=256, intermediate_size=700
    )
    word = str(dtype).removeprefix("torch.")
    held = page.evaluate("(a) => memory(...a, 'AdamW', 'input')", [asdict(shape), B, 256, word])
    right = parameters.rehearse(shape, B, 256, dtype, loss=with_checkpoints).peak
    assert held["peak"] <= right <= 1.1 * held["peak"]
    page.locator("#keep").select_option("input")
    page.locator("details > summary").click()
    page.locator("#vocab_size").fill("256")
    assert page.locator("#preset").input_value() == "own"
    assert "up to a tenth more" in page.locator("#run").inner_text()


@pytest.mark.slow
def test_memorys_time_is_the_packages(opened):
    page = opened("memory")
    for name, shape in SHAPES.items():
        for keep in ("all", "input"):
            found = page.evaluate("(a) => flops(...a)", [asdict(shape), 256, keep])
            again = sum(
                p.flops for p in matrix_products(shape, 1, 256, training=False) if p.part != "head"
            )
            assert found == sum(palm_flops(shape, 256).values()) + again * (keep == "input"), name
    for card, known in DATA["memory"]["cards"].items():
        assert known["watts"] == CARDS[card].watts
        for dtype in PRODUCT_TYPES:
            peak = known[str(dtype).removeprefix("torch.")]
            if peak is None:
                continue
            cost = training_cost(SHAPES["360M"], 5 * 10**6, 1024, card, 0.3, dtype)
            seconds = page.evaluate(
                "(p) => seconds(data.shapes['360M'], 1024, 'all', 5e6, p * 1e12, 0.3)", peak
            )
            assert seconds / 86_400 == pytest.approx(cost.card_days, rel=1e-12)


@pytest.mark.slow
def test_rooflines_points_are_the_packages(opened):
    page, shape = opened("roofline"), SmolLM2Config.preset("135M")
    assert [page.evaluate(f"batchOf({at})") for at in (0, 40, 100)] == [1, 16, 1024]
    for B in (1, 7, 153, 1024):
        found = page.evaluate("(B) => products(data.shape, B)", B)
        right = matrix_products(shape, B, 1, 1024, training=False)
        assert [tuple(p.values()) for p in found] == [
            (p.name, p.m, p.k, p.n, p.times) for p in right
        ]
        points = page.evaluate("(B) => products(data.shape, B).map(intensity)", B)
        assert points == [p.intensity(2) for p in right]
        for name, card in CARDS.items():
            peak, bandwidth = (card.bf16 or card.fp16) * 1e12, card.bandwidth * 1e9
            found = page.evaluate(
                "([name, B]) => products(data.shape, B).map((p) => [bound(data.cards[name], "
                "intensity(p)), seconds(data.cards[name], p)])",
                [name, B],
            )
            for (bound, seconds), product in zip(found, right, strict=True):
                # The same operations in another order: a rounding or two of float64.
                expected = min(peak, product.intensity(2) * bandwidth)
                assert bound == pytest.approx(expected, rel=1e-12)
                longer = max(seconds.values())
                assert longer == pytest.approx(product.flops / expected, rel=1e-12)


BPE_TEXTS = [
    *TRICKY, "", " ", "a\n\n1", "naïve café – 東京 🙂 ½", "def f(x):\n    return x**2  # it's\n",
    "<|im_start|>user\nHi!<|im_end|>\n", "aaaaaaaa ababab", *record_explore.BPE_TEXT.split(),
]  # fmt: skip


@pytest.mark.slow
def test_bpes_merges_are_the_real_tokenizers(opened, tokenizer, text):
    page = opened("bpe")
    dice = random.Random(0)
    characters = "".join(map(chr, range(0x20, 0x7F))) + "  \n\n\t0123456789²½—…😀é\xa0\x85"
    drawn = ["".join(dice.choices(characters, k=dice.randint(1, 30))) for _ in range(200)]
    texts = [*BPE_TEXTS, *drawn, *(line for line in text[:20_000].split("\n") if line)]
    found = page.evaluate("(texts) => texts.map(encode)", texts)
    assert found == [tokenizer.encode(some) for some in texts]
    # Each merge takes the lowest rank that is possible, and the state at its end is the next.
    states, merges = page.evaluate(
        "(() => { const { states, merges } = merging(data.text); "
        "return [states.map((s) => s.map((w) => w.map((p) => p.id))), "
        "merges.map((m) => m.rank)]; })()"
    )
    ranks = {pair: rank for rank, pair in enumerate(merges_of(tokenizer.backend))}
    names = {number: piece for piece, number in tokenizer.backend.get_vocab().items()}
    for state, rank, after in zip(states, merges, states[1:], strict=False):
        pairs = [(names[a], names[b]) for word in state for a, b in pairwise(word)]
        assert rank == min(ranks.get(pair, math.inf) for pair in pairs)
        assert sum(map(len, after)) < sum(map(len, state))
    assert [i for word in states[-1] for i in word] == tokenizer.encode(DATA["bpe"]["text"])
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator("#text").fill("W" * 150 + "x" * 150)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#text").fill("a\x04b")
    assert "no token for one of its bytes" in page.locator("#say").inner_text()


@pytest.mark.slow
def test_runs_numbers_are_the_records(opened):
    page = opened("run")
    records = assets.ROOT / "data" / "records"

    def read(name):
        lines = (records / name).read_text("utf-8").splitlines()
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))

    rows = read("full_run.csv")
    losses = {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]}
    held = {int(r["step"]): float(r["held_out_loss"]) for r in rows if r["held_out_loss"]}
    assert sorted(losses) == list(range(5050))
    for step in (0, 50, 1990, 2000, 5000, 5050):
        found = page.evaluate(f"at({step})")
        last = min(step, 5049)
        mean = statistics.mean(losses[s] for s in range(max(0, last - 99), last + 1))
        nearest = min(held, key=lambda s: abs(s - step))
        assert found["measured"] == nearest
        assert found["training"] == pytest.approx(mean, abs=0.005)  # losses have two decimals
        assert found["held_out"] == pytest.approx(held[nearest], abs=0.005)
        assert found["perplexity"] == pytest.approx(math.exp(found["held_out"]))
    assert page.evaluate("best[0]") == min(held, key=held.get)
    copies = [row for row in read("copied.csv") if row["who"] == "135M"]
    for i, sample in enumerate(DATA["run"]["samples"]):
        for how in ("sampled", "greedy"):
            of = [r for r in copies if r["how"] == how and int(r["step"]) == sample["step"]]
            shares = page.evaluate(
                "([i, how]) => data.samples[i].texts.map((t) => copied(t[how]))", [i, how]
            )
            assert shares == [int(r["at_least_8"]) / int(r["tokens"]) for r in of]
            together = page.evaluate("([i, how]) => copiedOfAll(data.samples[i], how)", [i, how])
            total = sum(int(r["tokens"]) for r in of)
            assert together == sum(int(r["at_least_8"]) for r in of) / total
    # The keyboard moves through the run.
    before = page.locator("#say").inner_text()
    page.locator("#step").focus()
    page.keyboard.press("PageUp")
    assert page.locator("#say").inner_text() != before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "roofline", "bpe", "run"])
def test_the_stored_data_are_what_the_command_records(name, tokenizer):
    real = object.__new__(record_explore.Real)
    real.tokenizer = tokenizer
    assert record_explore.RECORD[name](real) == DATA[name]


def weights_of(sentence):
    """Return the stored maps of a sentence in percent, (30, 9, T, T)."""
    T = len(sentence["words"])
    maps = torch.zeros(30, 9, T, T)
    maps[..., *torch.tril_indices(T, T)] = torch.tensor(sentence["weights"]).float()
    return maps


@pytest.mark.slow
def test_attentions_maps_and_losses_are_pythons(opened):
    page = opened("attention")
    for i, sentence in enumerate(DATA["attention"]["sentences"]):
        T = len(sentence["words"])
        found = page.evaluate(
            "([s, T]) => [...Array(30).keys()].map((l) => [...Array(9).keys()].map((h) => "
            "[...Array(T).keys()].map((t) => Object.assign(Array(T).fill(0), "
            "explore.weights(s, l, h, t)))))",
            [i, T],
        )
        assert found == weights_of(sentence).tolist()
        right = -torch.log(torch.tensor(sentence["kept"]) / sentence["whole"][0][1])
        losses = "[...Array(30).keys()].map((l) => [...Array(9).keys()].map((h) => "
        close(page.evaluate(f"(s) => {losses} explore.loss(s, l, h)))", i), right)


@pytest.mark.slow
def test_a_silent_head_changes_attentions_next_word(opened):
    page = opened("attention")
    say = page.locator("#say")
    assert "Block 17, head 0" in say.inner_text()
    page.get_by_role("button", name="silence this head").click()
    assert "the next word is “missing”" in say.inner_text()
    page.locator("#layer").focus()
    page.keyboard.press("ArrowRight")
    assert "the next word is still “keys”" in say.inner_text()
    page.locator("#map rect[data-layer='5'][data-head='8']").last.click()
    assert "block 5, head 8" in say.inner_text()


@pytest.mark.slow
def test_attentions_data_are_the_models(real):
    """Of the last sentence: all maps, and some heads silenced in another way."""
    stored = DATA["attention"]["sentences"][-1]
    ids = real.ids(record_explore.ATTENTION_TEXTS[-1])
    assert real.words(ids) == stored["words"]
    maps = 100 * inside.attention_maps(real.model, ids)[:, 0]
    # rounded to whole percent
    torch.testing.assert_close(weights_of(stored), maps, atol=0.51, rtol=0)
    vocabulary = DATA["attention"]["vocabulary"]
    for layer, head in ((17, 0), (0, 8), (29, 3)):
        with inside.silenced_heads(real.model, [(layer, head)]):
            p = 1000 * real.model(ids)[0][0, -1].softmax(-1)
        for word, per_mille in stored["silent"][layer][head]:
            (number,) = real.tokenizer.encode(vocabulary[word])
            assert abs(p[number].item() - per_mille) < 0.6, (layer, head, vocabulary[word])
    # The recorder itself, on one block.
    again = record_explore.attention_of(real, record_explore.ATTENTION_TEXTS[-1], range(17, 18))
    torch.testing.assert_close(again["kept"][0], stored["kept"][17], atol=1, rtol=0)


SETTINGS = [
    {"temperature": 1, "k": 0, "p": 1, "m": 0},
    {"temperature": 0.5, "k": 0, "p": 1, "m": 0},
    {"temperature": 2, "k": 50, "p": 1, "m": 0},
    {"temperature": 1, "k": 0, "p": 0.9, "m": 0},
    {"temperature": 1.5, "k": 0, "p": 1, "m": 0.1},
    {"temperature": 1.3, "k": 200, "p": 0.8, "m": 0.02},
]


def drawn_from(prompt, temperature, k, p, m):
    """Return the probabilities of all tokens, the best first, by the package's filters, (V,)."""
    steps = torch.arange(len(prompt["counts"])).repeat_interleave(torch.tensor(prompt["counts"]))
    scores = -DATA["sampling"]["unit"] * steps[None].double()
    scores = apply_temperature(scores, temperature)
    if k:
        scores = keep_top_k(scores, k)
    # Of tokens with equal scores top-p keeps any, and how many is a question of rounding.
    return keep_min_p(keep_top_p(scores, p), m).softmax(-1)[0].sort(descending=True).values


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_samplings_probabilities_are_the_packages(opened, settings):
    page = opened("sampling")
    for i, prompt in enumerate(DATA["sampling"]["prompts"]):
        right = drawn_from(prompt, **settings)
        found = page.evaluate(
            "([i, s]) => explore.byRank(data.prompts[i], "
            "explore.filtered(data.prompts[i], s), 49152)",
            [i, settings],
        )
        found = torch.tensor(found, dtype=torch.float64).sort(descending=True).values
        assert abs((found > 0).sum() - (right > 0).sum()) <= 1
        close(found, right)
        assert abs(found.sum().item() - 1) < 1e-9


@pytest.mark.slow
def test_samplings_darts_hit_what_pythons_hit(opened):
    page = opened("sampling")
    darts = [(n + 0.5) / 200 for n in range(200)]
    for i, settings in ((0, SETTINGS[0]), (0, SETTINGS[4]), (1, SETTINGS[3])):
        found = page.evaluate(
            "([i, s, darts]) => { const steps = explore.filtered(data.prompts[i], s); "
            "return darts.map((dart) => explore.hit(data.prompts[i], steps, dart)); }",
            [i, settings, darts],
        )
        ends = drawn_from(DATA["sampling"]["prompts"][i], **settings).cumsum(-1)
        right = torch.searchsorted(ends, torch.tensor(darts, dtype=torch.float64), right=True)
        assert found == right.tolist()
    page.get_by_role("button", name="draw a hundred words").click()
    times = re.findall(r"×(\d+)", page.locator("#drawn").inner_text())
    once = page.locator("#drawn b").count() - len(times)
    assert once + sum(map(int, times)) == 100


@pytest.mark.slow
def test_samplings_scores_are_the_models(real):
    again = record_explore.sampling(real)
    for found, stored in zip(again["prompts"], DATA["sampling"]["prompts"], strict=True):
        assert sum(stored["counts"]) == 49_152
        assert found["words"][:12] == stored["words"][:12]
        assert len(set(found["words"]) ^ set(stored["words"])) < 10  # at the 3,000th
        width = max(len(found["counts"]), len(stored["counts"]))
        sums = [torch.tensor(x["counts"] + [0] * (width - len(x["counts"]))).cumsum(0)
                for x in (found, stored)]  # fmt: skip
        # A score at the edge of a step may fall on either side of it on another machine.
        assert (sums[0] - sums[1]).abs().max() <= 5


@pytest.mark.slow
def test_the_lenses_words_are_the_models(opened, real):
    again = record_explore.lens(real)["sentences"]
    page = opened("lens")
    for i, (found, stored) in enumerate(zip(again, DATA["lens"]["sentences"], strict=True)):
        assert found["words"] == stored["words"]
        for blocks, row in enumerate(stored["cells"]):
            for token, cell in enumerate(row):
                assert page.evaluate("(a) => explore.five(...a)", [i, blocks, token]) == cell
                p = dict(found["cells"][blocks][token])
                assert cell[0][0] in p
                assert all(abs(p.get(word, percent) - percent) <= 1 for word, percent in cell)
        for token in range(len(stored["words"])):
            firsts = [row[token][0][0] for row in stored["cells"]]
            among = [firsts[-1] in dict(row[token]) for row in stored["cells"]]
            settled = max([b + 1 for b, word in enumerate(firsts) if word != firsts[-1]], default=0)
            near = max([b + 1 for b, inside_five in enumerate(among) if not inside_five], default=0)
            assert page.evaluate("(a) => explore.settled(...a)", [i, token]) == settled
            assert page.evaluate("(a) => explore.near(...a)", [i, token]) == near


@pytest.mark.slow
def test_the_lens_is_read_by_touch_hover_and_keys(opened):
    page = opened("lens")
    cells = DATA["lens"]["sentences"][0]["cells"]
    five = page.locator("#five b")
    for move in ("click", "hover", "focus"):
        for blocks in (4, 20):
            getattr(page.locator(f"button[data-blocks='{blocks}'][data-token='2']"), move)()
            shown = [text.strip("“”") for text in five.all_inner_texts()]
            assert shown == [word.strip() or "␣" for word, _ in cells[blocks][2]]
    page.keyboard.press("ArrowDown")
    assert "after 21 of 30 blocks" in page.locator("#say").inner_text()
