"""The explorer: what chromium computes is what Python computes, and a bug in it is noticed."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import http.server
import json
import os
import random
import shutil
import threading

import numpy as np
import pytest
import torch

from smol_scratch.cache import KVCache
from smol_scratch.chat import encode_chat
from smol_scratch.course import explorer
from smol_scratch.course.inside import (
    attention_maps,
    silenced_branch,
    silenced_heads,
    streams,
    together,
)
from tests.test_tokenizer import CONTROLS, TRICKY

pytest.importorskip("wasmtime", reason='pip install -e ".[book]"')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

TEXTS = (
    "The capital of France is",
    "In 1984, 3.14159 and a  1: 7 × 8 = 56",
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet",
    "def square(x):\n    return x * x\n\nprint(square(12))\n",
    "Größe, naïve — 日本語 😀",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "a a a a a a a a a a a a a a a a",
    "When Mary and John went to the shop, John gave a drink to",
    "\n\n\n",
    "Water boils at a temperature of 100 degrees because, at that point, the pressure of its "
    "vapour equals the pressure of the air around it. On a high mountain the air presses less",
)
CHANGED = {"0.0", "3.2", "3.5", "7.mlp", "29.8"}  # parts to switch off
# How much further from the float64 result the page may be than Python's own float32 is: both round
# every product and sum, in another order. On the ten texts it is 0.3 to 2.0 times as far
# (python -m benchmarks.bench_explorer --exact); each planted bug below must go beyond MARGIN.
MARGIN = 4.0


# A page to ask


class Page:
    """One tab with the explorer in it."""

    def __init__(self, tab, address):
        self.tab, self.address = tab, address
        self.asked, self.errors = [], []
        tab.on("request", lambda request: self.asked.append(request.url))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.goto(address)

    def ask(self, question, **about):
        return self.tab.evaluate(
            """async ([question, about]) => {
              const bytes = (x) => {
                const all = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
                let text = "";
                for (let i = 0; i < all.length; i += 32768)
                  text += String.fromCharCode(...all.subarray(i, i + 32768));
                return btoa(text);
              };
              const sent = (x) => x instanceof Float32Array ? { floats: bytes(x) }
                : Array.isArray(x) ? x.map(sent) : x && typeof x === "object"
                ? Object.fromEntries(Object.entries(x).map(([k, v]) => [k, sent(v)])) : x;
              ask ??= startEngine();
              return sent(await ask(question, about));
            }""",
            [question, about],
        )

    def numbers(self, ids, off=()):
        """Return stream (31, T, C), maps (30, H, T, T) and logits (T, V)."""
        found, T = self.ask("everything", ids=ids, off=sorted(off)), len(ids)
        floats = lambda x: np.frombuffer(base64.b64decode(x["floats"]), np.float32)  # noqa: E731
        return {
            "stream": np.stack([floats(x).reshape(T, -1) for x in found["stream"]]),
            "maps": np.stack([floats(x).reshape(-1, T, T) for x in found["maps"]]),
            "logits": floats(found["logits"]).reshape(T, -1),
        }

    def load(self):
        self.ask("load", url=self.address.replace("index.html", explorer.WEIGHTS))
        return self


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        yield (started := driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]))
        started.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()


@contextlib.contextmanager
def opened(browser, folder, **options):
    with served(folder) as address:
        tab = browser.new_page(**options)
        try:
            yield Page(tab, address)
        finally:
            tab.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory, gguf):
    return explorer.build(tmp_path_factory.mktemp("explorer")).parent


@pytest.fixture(scope="module")
def page(browser, built):
    """A page whose model is loaded. Its text may be changed by every test."""
    with opened(browser, built) as found:
        yield found.load()


# The same numbers in Python


@pytest.fixture(scope="module")
def exact_model(real_model):
    return copy.deepcopy(real_model).double()


@torch.no_grad()
def in_python(model, ids, off=()):
    idx = torch.tensor([ids])
    parts = [part.split(".") for part in off]
    heads = [(int(layer), int(head)) for layer, head in parts if head != "mlp"]
    branches = [silenced_branch(model, int(layer), "mlp") for layer, head in parts if head == "mlp"]
    with together(silenced_heads(model, heads), *branches):
        found = {
            "stream": streams(model, idx)[:, 0],
            "logits": model(idx)[0][0],
            "maps": attention_maps(model, idx)[:, 0],
        }
    return {name: tensor.double().numpy() for name, tensor in found.items()}


def noise(found, exact):
    """How far off it is: the stream at each depth, the maps of each block, the logits as a whole.

    Root mean squares, those of the stream relative to each token's own size: the first token's
    vector is a thousand times as long as the others', and would drown them. What has gone wrong at
    one depth stays in the stream, so each depth has the largest of those up to there.
    """
    square = {name: (found[name] - exact[name]) ** 2 for name in exact}
    relative = square["stream"].sum(-1) / (exact["stream"] ** 2).sum(-1)  # (31, T)
    return {
        "stream": np.maximum.accumulate(np.sqrt(relative.mean(-1))),
        "maps": np.maximum.accumulate(np.sqrt(square["maps"].mean((1, 2, 3)))),
        "logits": np.sqrt(square["logits"].mean()),
    }


def check_numbers(page, models, tokenizer, text, off=()):
    """Raise unless the page is as near to the float64 result as Python's float32 is, up to MARGIN.

    Returns the two noises, of Python and of the page.
    """
    ids = tokenizer.encode(text)
    rounded, exact = (in_python(model, ids, off) for model in models)
    floor, found = noise(rounded, exact), noise(page.numbers(ids, off), exact)
    assert (found["stream"][0], floor["stream"][0]) == (0, 0), "the embedding is read, not computed"
    for name in exact:
        # Where Python happens to be exact, the last bit of a float32 is the least that counts.
        least = 2.0**-24 * (1 if name == "stream" else np.abs(exact[name]).mean())
        assert np.all(found[name] <= MARGIN * floor[name] + least), (
            f"{text!r}: {name} is {np.max(found[name] / (floor[name] + least)):.1f} times as far "
            "from float64 as Python's float32"
        )
    return floor, found


def check_tokens(page, tokenizer, texts):
    for text in texts:
        ids = page.ask("tokens", text=text)["ids"]
        assert ids == tokenizer.encode(text), text
        assert page.ask("decode", ids=ids) == text


@torch.no_grad()
def greedy(model, ids, n):
    """Return the n most probable next tokens, and by how much the closest was ahead."""
    cache, found, ahead = KVCache(model.config, max_length=len(ids) + n), [], []
    new = ids
    for _ in range(n):
        best = model(torch.tensor([new]), cache=cache)[0][0, -1].topk(2)
        new = [int(best.indices[0])]
        found += new
        ahead.append(float(best.values[0] - best.values[1]))
    return found, min(ahead)


def check_greedy(page, model, tokenizer, prompt, n):
    ids = tokenizer.encode(prompt)
    expected, ahead = greedy(model, ids, n)
    page.ask("begin", ids=ids)
    assert [page.ask("step")["id"] for _ in range(n)] == expected, prompt
    return ahead


@pytest.mark.parametrize("text", TEXTS)
def test_logits_maps_and_streams_are_pythons(page, real_model, exact_model, tokenizer, text):
    """The floor is how far Python's float32 is from its float64 on the same weights."""
    check_numbers(page, (real_model, exact_model), tokenizer, text)


def test_parts_that_are_switched_off_are_off(page, real_model, exact_model, tokenizer):
    """Also by the short way: what stands before the first change is not computed again."""
    models, text = (real_model, exact_model), TEXTS[0]
    for off in ({"29.8"}, CHANGED, CHANGED - {"0.0"}, set()):
        check_numbers(page, models, tokenizer, text, off)


def random_strings(n):
    common = "".join(map(chr, range(0x20, 0x17F))) + "  \n\n\t0123456789²½—…😀é'"
    dice = random.Random(0)
    return ["".join(dice.choices(common, k=dice.randint(1, 20))) for _ in range(n)]


def test_its_tokenizer_is_the_real_one(page, tokenizer, text):
    strings = [*TRICKY, *TEXTS, "", "e\u0301 ﬁ", "  Ab's\tÉ\r\n", "it's we'll I'M", text[:2000]]
    strings += [f"a{token}b" for token in tokenizer.special_tokens]
    check_tokens(page, tokenizer, strings + random_strings(300))
    for character in CONTROLS:
        with pytest.raises(Exception, match="has no token for one of its bytes"):
            page.ask("tokens", text=f"a{character}b")


def test_a_question_is_written_as_the_chat_template_does(page, tokenizer):
    template = tokenizer.chat_templates["default"]
    for question in ("Who are you?", "2 + 2\n= ?", "   "):
        ids = encode_chat(
            tokenizer, template, [{"role": "user", "content": question}], add_generation_prompt=True
        )
        assert page.ask("tokens", text=question, chat=True)["ids"] == ids


@pytest.mark.parametrize("prompt", [TEXTS[0], TEXTS[5], "Once upon a time"])
def test_fifty_greedy_tokens_are_pythons(page, real_model, tokenizer, prompt):
    ahead = check_greedy(page, real_model, tokenizer, prompt, 50)
    assert ahead > 1e-3, "a tie within the rounding: choose another prompt"


# Any number and its products


WIDTHS = {"attended": 576, "final": 576, "gate": 1536, "gathered": 576, "hidden": 1536, "k": 192,
          "k0": 192, "logit": 49_152, "middle": 576, "mlp": 576, "normed1": 576, "normed2": 576,
          "q": 576, "q0": 576, "stream": 576, "up": 1536, "v": 192}  # fmt: skip


def check_made_of_its_terms(found):
    products = [np.prod([f["value"] for f in term["factors"]]) for term in found["terms"]]
    if found["how"] == "share":
        assert sum(term["value"] for term in found["terms"]) == pytest.approx(1)
    else:
        # Each of n roundings moves a sum by at most 2^-24 of what is summed.
        bound = (len(products) + 4) * 2**-24 * np.abs(products).sum()
        assert abs(sum(products) - found["value"]) <= bound, found["title"]


@pytest.mark.parametrize("kind", [*WIDTHS, "weight", "score"])
def test_every_number_is_made_of_the_products_that_are_shown(page, tokenizer, kind):
    """Of each kind three at random, and of each of these one number that it leads to."""
    ids, dice = tokenizer.encode(TEXTS[0]), random.Random(1)
    page.ask("read", ids=ids)
    for _ in range(3):
        ref = {"kind": kind, "layer": dice.randrange(1, 30), "t": len(ids) - 1}
        if kind in WIDTHS:
            ref |= {"i": dice.randrange(WIDTHS[kind])}
        else:
            ref |= {"h": dice.randrange(9), "s": dice.randrange(len(ids))}
        found = page.ask("number", **ref)
        check_made_of_its_terms(found)
        leading = [f for term in found["terms"] for f in term["factors"] if f.get("ref")]
        chosen = dice.choice(leading)
        deeper = page.ask("number", **chosen["ref"])
        check_made_of_its_terms(deeper)
        if chosen["name"] != "silu(gate)":
            assert deeper["value"] == pytest.approx(chosen["value"], rel=2**-22, abs=1e-12)


def test_the_first_number_is_read_from_the_embedding(page, tokenizer, real_model):
    ids, embedding = tokenizer.encode(TEXTS[0]), real_model.model.embed_tokens.weight
    page.ask("read", ids=ids)
    found = page.ask("number", kind="stream", layer=0, t=2, i=7)
    assert (found["how"], found["value"]) == ("leaf", embedding[ids[2], 7])


# The page


def wait(page, what):
    page.tab.wait_for_function(what, timeout=120_000)


def widths(page):
    return page.tab.evaluate("[innerWidth, document.documentElement.scrollWidth]")


def faults(page):
    """Return what axe-core finds serious, where it is at hand (.ci/run fetches it)."""
    if not (path := os.environ.get("AXE_CORE")):
        return []
    page.tab.add_script_tag(path=path)
    found = page.tab.evaluate("async () => (await axe.run()).violations")
    return [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


SCREENS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
}


@pytest.mark.parametrize("screen", SCREENS)
def test_the_first_view_needs_no_weights(browser, tmp_path, screen):
    explorer.build(tmp_path, weights="none")
    with opened(browser, tmp_path, **SCREENS[screen]) as page:
        tab = page.tab
        assert tab.locator("#grid .cell").count() == 30 * 10 + 31
        assert tab.locator("#bars code").first.inner_text() == "·Paris"
        before = tab.locator("#bars .amount").first.inner_text()
        tab.click("#sentences button >> nth=1")
        assert tab.locator("#bars code").first.inner_text() == "·Mary"
        tab.get_by_role("radio", name="what changes without it").click()
        # By keyboard alone: into the grid, two parts to the right, off, open, and back.
        tab.locator('#grid .cell[tabindex="0"]').focus()
        for pressed in ("ArrowRight", "ArrowRight", "ArrowDown", "x"):
            tab.keyboard.press(pressed)
        assert "Switched off: block 1 head 2" in tab.locator("#off").inner_text()
        assert tab.locator("#bars .before").count() >= 5
        tab.keyboard.press("Enter")
        assert tab.locator("#part-title").inner_text() == "Block 1, head 2"
        assert widths(page)[0] >= widths(page)[1], "wider than the screen"
        assert faults(page) == []
        tab.keyboard.press("Escape")
        assert not tab.locator("#part").is_visible()
        tab.click("#load")
        wait(page, "document.getElementById('status').textContent.includes('not beside')")
        assert before != tab.locator("#bars .amount").first.inner_text()
        allowed = (page.address.rpartition("/")[0], "data:", "blob:")
        assert [url for url in page.asked if not url.startswith(allowed)] == []
        assert page.errors == []


@pytest.mark.parametrize("screen", ["light", "phone"])
def test_the_model_answers_the_readers_words(browser, built, tokenizer, screen):
    with opened(browser, built, **SCREENS[screen]) as page:
        tab = page.tab
        tab.click("#load")
        wait(page, "state.source.live && state.lens")
        tab.fill("#words", "7 × 8 is")
        wait(page, "state.text === '7 × 8 is' && state.next.every((x) => 'id' in x)")
        assert tab.locator("#tokens button").count() == len(tokenizer.encode("7 × 8 is"))
        # Three levels: the model, a head, one number and what made it.
        tab.locator("#grid .cell").nth(5).click()
        tab.locator("#part-body .link").first.click()
        wait(page, "document.querySelector('#number-title').textContent.startsWith('Attention of')")
        tab.locator("#number-body .made .link").first.click()
        wait(page, "document.querySelector('#number-title').textContent.startsWith('Score of')")
        tab.locator("#number-body .made .link").first.click()
        wait(page, "document.querySelector('#number-title').textContent.startsWith('Query')")
        assert widths(page)[0] >= widths(page)[1], "wider than the screen"
        # What a switch changes stands beside what was.
        tab.locator("#part-body button").first.click()
        wait(page, "document.querySelectorAll('#bars .before').length >= 5")
        tab.get_by_role("button", name="Switch all on").click()
        wait(page, "!document.querySelector('#bars .before')")
        tab.fill("#words", "Who are you?")
        tab.check("#chat")
        wait(page, "state.source.words.join('').endsWith('assistant\\n')")
        tab.click("#write")
        wait(page, "document.getElementById('written').textContent.length > 12")
        tab.click("#write")  # stop
        assert page.errors == []


def test_a_page_from_the_disk_takes_the_file_that_is_chosen(browser, built, gguf):
    tab = browser.new_page()
    page = Page(tab, (built / "index.html").as_uri())
    tab.click("#load")
    wait(page, "document.getElementById('status').textContent.includes('choose or drop')")
    tab.set_input_files("#file", str(gguf))
    wait(page, "state.source.live && state.next[0].word === ' Paris'")
    tab.set_input_files("#file", {"name": "x.gguf", "mimeType": "", "buffer": b"GGUF" + b"\3" * 99})
    wait(page, "document.getElementById('status').textContent.includes('no whole GGUF file')")
    tab.close()
    assert page.errors == []


def near(found, stored, unit):
    """Compare nested lists of rounded numbers; two machines may round to neighbours."""
    if isinstance(stored, list):
        assert len(found) == len(stored)
        for pair in zip(found, stored, strict=True):
            near(*pair, unit)
    elif isinstance(stored, str):
        assert found == stored
    else:
        assert abs(found - stored) <= unit * (1 + 1e-6), (found, stored)


def test_the_stored_sentences_are_what_the_model_computes(real_model, tokenizer):
    from benchmarks import record_explorer

    stored = json.loads((explorer.SOURCE / "sentences.json").read_text("utf-8"))
    assert tuple(sentence["text"] for sentence in stored) == record_explorer.TEXTS
    for sentence in (stored[0], stored[2]):  # the short ones
        found = record_explorer.recorded(real_model, tokenizer, sentence["text"])
        assert (found["words"], found["off"].keys()) == (sentence["words"], sentence["off"].keys())
        near(found["maps"], sentence["maps"], 1)
        for part, (five, (word, p)) in found["off"].items():
            near(five, sentence["off"][part][0], 0.1)
            # Which word is the first may hang on the last digit, its probability may not.
            assert abs(p - sentence["off"][part][1][1]) <= 0.1 + 1e-6, (part, word)
        for mine, theirs in ((found["stream"], sentence["stream"]),
                             (found["wrote"], sentence["wrote"])):  # fmt: skip
            np.testing.assert_allclose(mine, theirs, rtol=0.1)
        probabilities = lambda x: [[p for _, p in row] for row in x]  # noqa: E731
        near(probabilities(found["next"]), probabilities(sentence["next"]), 0.1)
        for mine, theirs in zip(found["lens"], sentence["lens"], strict=True):
            near(probabilities(mine), probabilities(theirs), 0.1)


# Bugs

BUGS = {
    "RoPE turns neighbours' weights by halves": (
        "model.js", "if (/attn_[qk]\\.weight$/.test(name))", "if (false)", "numbers"),
    "RoPE turns the other way": (
        "model.js", "first * cos - second * sin", "first * cos + second * sin", "numbers"),
    "query heads share keys in turn": (
        "model.js", "const g = Math.floor(h / (H / G));\n    for", "const g = h % G;\n    for",
        "numbers"),
    "no norm before the MLP": (
        "model.js", 'norm(middle, "ffn_norm")', "middle", "numbers"),
    "no final norm": (
        "model.js", "this.weights.linear(this.finalNorm(x)", "this.weights.linear((x)", "logits"),
    "scores are not scaled": (
        "model.js", "row[s] = score / Math.sqrt(D)", "row[s] = score", "numbers"),
    "a token sees the next": (
        "model.js", "const seen = S - T + t + 1", "const seen = Math.min(S, S - T + t + 2)",
        "numbers"),
    "gate without silu": ("model.js", "silu(value) * up[i]", "value * up[i]", "numbers"),
    "epsilon is forgotten": ("model.js", "Math.sqrt(meanSquare + eps)", "Math.sqrt(meanSquare)",
        "numbers"),
    "low and high half of a byte exchanged": (
        "kernels.wat",
        "(v128.and (local.get $pairs) (local.get $low))",
        "(v128.and (i16x8.shr_u (local.get $pairs) (i32.const 4)) (local.get $low))", "numbers"),
    "numbers keep their digits together": (
        "tokenizer.js", "of part.split(DIGIT))", "of [part])", "tokens"),
    "spaces before a word stay together": (
        "tokenizer.js", "\\p{White_Space}+(?!\\P{White_Space})|", "", "tokens"),
    "a new token stands at position 0": (
        "model.js", "const start = cache ? cache.length : 0", "const start = 0", "greedy"),
    "the cache forgets the oldest": (
        "model.js", "return [this.k[layer].subarray(0, end)",
        "return [this.k[layer].subarray(this.width * (start > 0), end)", "greedy"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, browser, tmp_path, real_model, exact_model, tokenizer, gguf):
    file, piece, replacement, catches = BUGS[bug]
    shutil.copytree(explorer.SOURCE, tmp_path / "source")
    path = tmp_path / "source" / file
    source = path.read_text("utf-8")
    assert source.count(piece) == 1, f"{file} has changed: {piece!r}"
    path.write_text(source.replace(piece, replacement), "utf-8")
    explorer.build(tmp_path / "built", tmp_path / "source")
    with opened(browser, tmp_path / "built") as page:
        page.load()
        if catches in ("numbers", "logits"):
            with pytest.raises(AssertionError, match="times as far" if catches == "numbers"
                               else "logits is"):  # fmt: skip
                check_numbers(page, (real_model, exact_model), tokenizer, TEXTS[0])
        elif catches == "tokens":
            with pytest.raises(AssertionError):
                check_tokens(page, tokenizer, [*TRICKY, "two  spaces"])
        else:
            with pytest.raises(AssertionError):
                check_greedy(page, real_model, tokenizer, TEXTS[0], 5)
