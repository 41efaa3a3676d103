"""The demo: its HTML, its server, and the page in a real browser.

``python -m tests.test_demo`` takes the screenshot in ``figures/`` with the real weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smol_scratch import SmolLM2, SmolLM2Config, assets, commands, load_pretrained, load_tokenizer
from smol_scratch.__main__ import main
from smol_scratch.generation import (
    CHAT_TEMPLATE,
    Step,
    chat_prompt,
    generate,
    stop_tokens,
    stream,
)
from smol_scratch.sampling import Sampling
from smol_scratch.sharing import export_pretrained
from smol_scratch.tokenizer import SmolLM2Tokenizer

pytest.importorskip("gradio", reason="gradio is not installed: the demo needs it")

from smol_scratch import demo

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SOURCE = "random numbers <b>Instruct</b>"
SAYING = ["; seed "]  # how a finished text is reported


# Without a browser


@pytest.mark.parametrize(
    ("probability", "other", "word"),
    [(0.3, 0.25, "next"), (0.3, 0.3, "next"), (0.25, 0.3, "most probable")],
)
def test_a_token_tells_its_probability_and_what_the_other_one_was(
    tokenizer, probability, other, word
):
    king, queen = tokenizer.encode(" king queen")
    span = demo.token_span(tokenizer, " king", [Step(king, probability, queen, other)])
    said = f"&quot; king&quot; {probability:.1%}; {word}: &quot; queen&quot; {other:.1%}"
    assert span == f'<span class="p2" tabindex="-1" data-said="{said}"> king</span>'


@pytest.mark.parametrize(
    ("probability", "kind"), [(1, 0), (0.9, 0), (0.89, 1), (0.5, 1), (0.2, 2), (0.05, 3), (0.0, 4)]
)
def test_the_level_follows_the_probability(tokenizer, probability, kind):
    assert f'class="p{kind}"' in demo.token_span(tokenizer, "a", [Step(30, probability, 31, 0)])


def test_a_character_of_several_tokens_names_them_all(tokenizer):
    ids = tokenizer.encode("𓀀")
    assert len(ids) > 1
    span = demo.token_span(tokenizer, "𓀀", [Step(token, 0.7, 30, 0.1) for token in ids])
    assert span.count("next: ") == len(ids)
    assert span.endswith(">𓀀</span>")
    kind = sum(0.7 ** len(ids) < bound for bound in demo.BOUNDS)  # the product, not one of them
    assert kind > sum(bound > 0.7 for bound in demo.BOUNDS)
    assert f'class="p{kind}"' in span


def test_html_and_templates_are_escaped(tokenizer):
    assert not set("<>\"'{}$@`\\") & set(demo.escaped("<a b=\"c\" d='e'>{{f}} ${g} @children `\\"))
    token = tokenizer.encode("<")[0]
    span = demo.token_span(tokenizer, "<", [Step(token, 1.0, token, 0.0)])
    assert span.count("<") == 2


def test_prompts_are_bounded(tokenizer):
    assert demo.prompt_tokens(tokenizer, "a b", None, 3) == tokenizer.encode("a b")
    assert demo.prompt_tokens(tokenizer, "a", demo.Talk(), 99) == chat_prompt(tokenizer, "a")
    with pytest.raises(ValueError, match="prompt has 3 tokens, and 2 is the most"):
        demo.prompt_tokens(tokenizer, "a b c", None, 3)
    with pytest.raises(ValueError, match="1,025 tokens, and 1,024 is the most"):
        demo.prompt_tokens(tokenizer, "a" + " a" * 1024, None, 8192)
    with pytest.raises(ValueError, match="1,000,000 characters"):
        demo.checked_prompt("a" * 1_000_000)
    with pytest.raises(ValueError, match="empty"):
        demo.checked_prompt(" \n")


def test_the_last_value_within_each_bound_is_taken_and_the_next_is_not():
    longest = "a" * (16 * demo.MAX_PROMPT)
    assert demo.checked_prompt(longest) == longest
    with pytest.raises(ValueError, match="characters"):
        demo.checked_prompt(longest + "a")
    for seed in (0, 2**32 - 1):
        assert demo.checked_seed(seed, True) == seed
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"Seed {seed}: must be .* from 0 to 4294967295"):
            demo.checked_seed(seed, True)
        assert 0 <= demo.checked_seed(seed, False) < 1_000_000  # not held: nobody asks for it
    taken = {"tokens": 400, "temperature": 0, "top_k": 1, "top_p": 1.0}
    assert demo.checked_sampling(**taken, most=400).tokens == 400
    for name, beyond in {"tokens": 401, "temperature": -0.1, "top_k": 0, "top_p": 1.1}.items():
        with pytest.raises(ValueError, match=f"^{name.replace('_', '-').capitalize()} "):
            demo.checked_sampling(**(taken | {name: beyond}), most=400)


def test_a_conversation_is_read_whole_and_leaves_room_for_an_answer(tokenizer):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    ids = chat_prompt(tokenizer, turns)
    talk = demo.Talk(tuple(turns[:2]))
    assert demo.prompt_tokens(tokenizer, "c", talk, len(ids) + 1) == ids
    with pytest.raises(ValueError, match=f"conversation has {len(ids)} tokens.*new conversation"):
        demo.prompt_tokens(tokenizer, "c", talk, len(ids))


def test_examples_suit_the_weights(tokenizer, text, real_model):
    model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1))
    ids = torch.tensor([tokenizer.encode(text[5_000:8_000])[:257]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(10):
        model(ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert demo.openings(model, tokenizer) == demo.CUES
    assert demo.openings(real_model, tokenizer) == demo.OPENINGS


def scripted(monkeypatch: pytest.MonkeyPatch, tokens: list[int], why: str) -> list[demo.Written]:
    """Write what a model would have drawn."""
    steps = [Step(token, 0.5, 30, 0.1) for token in tokens[:-1]]
    steps.append(Step(tokens[-1], 0.5, 30, 0.1, why))
    monkeypatch.setattr(demo, "stream", lambda *_, **__: iter(steps))
    return list(demo.write(small_model(), load_tokenizer(), [1], Sampling(), 0))


@pytest.mark.parametrize("why", demo.ENDINGS)
def test_a_stop_token_is_never_shown(monkeypatch, tokenizer, why):
    for end in stop_tokens(tokenizer):
        last = scripted(monkeypatch, [*tokenizer.encode("so be it"), end], "stop token")[-1]
        assert last.text == re.sub("<[^>]*>", "", last.shown) == "so be it"
        assert (last.speed[:8], last.ended) == ("3 tokens", "the model ended here")
    alone = scripted(monkeypatch, [end], "stop token")
    assert alone == [("", "", "0 tokens", "the model ended here")]
    assert scripted(monkeypatch, [30], why)[-1].ended == demo.ENDINGS[why]


def test_a_character_that_the_end_cuts_is_left_out(monkeypatch, tokenizer):
    cut = tokenizer.encode("a𓀀")[:-1]
    for tokens, why in ((cut, "length"), ([*cut, tokenizer.eos_id], "stop token")):
        last = scripted(monkeypatch, tokens, why)[-1]
        assert "\N{REPLACEMENT CHARACTER}" not in last.text + re.sub("<[^>]*>", "", last.shown)
        assert last.text == "a"


def test_rows_of_a_padded_vocabulary_are_never_drawn(tokenizer):
    torch.manual_seed(0)
    V = tokenizer.vocab_size
    model = SmolLM2(SmolLM2Config.preset("tiny", vocab_size=V + 64)).eval()
    with torch.no_grad():  # a padded row has the largest score by far
        model.model.embed_tokens.weight[V:] = 100 * model.model.embed_tokens.weight[30]
        model.model.norm.weight.mul_(6)  # type: ignore[union-attr, operator]
    *_, last = demo.write(model, tokenizer, [30], Sampling(tokens=40, temperature=2.0), 0)
    assert last.ended
    drawn = [step.token for step in demo.stream(model, [30], 40, temperature=2.0)]
    assert max(drawn) >= V  # or the test says nothing


def test_it_listens_to_this_machine_alone_and_shares_nothing_unasked(monkeypatch):
    given: dict[str, Any] = {}

    def record(**options: Any) -> tuple[None, str, None]:
        given.update(options)
        return None, "http://there/", None

    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = SimpleNamespace(launch=record)
    demo.serve(page, block=False)  # type: ignore[arg-type]
    assert (given["server_name"], given["share"]) == ("127.0.0.1", False)
    demo.serve(page, "::1", block=False)  # type: ignore[arg-type]
    assert given["server_name"] == "[::1]"


def test_without_a_network_share_says_so_in_one_line_and_serves_here(
    model, tokenizer, monkeypatch, capfd
):
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    monkeypatch.setattr("gradio.networking.setup_tunnel", no_network)
    page = demo.build(model, tokenizer, SOURCE)
    address = demo.serve(page, share=True, block=False)
    try:
        assert httpx.get(address).status_code == 200
    finally:
        page.close(verbose=False)
    said = capfd.readouterr()
    assert said.out == ""
    assert re.fullmatch("--share: .* cannot be reached, so there is no public address\n", said.err)


def test_a_port_or_host_that_cannot_be_used_is_told_before_the_weights_are_loaded(monkeypatch):
    loaded: list[Any] = []
    monkeypatch.setattr(demo, "load_pretrained", loaded.append)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"^port={port}: cannot be used .*; name another"):
            demo.launch(None, port=port)
    for host in ("no.such.host.invalid", "203.0.113.7", "x y", ""):
        with pytest.raises(ValueError, match=f"^host='{host}': is no address of this machine"):
            demo.launch(None, host=host)
    assert loaded == []
    for host in ("127.0.0.1", "0.0.0.0", "localhost"):
        demo.check_address(host, None)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the option means another thing")
def test_a_port_that_a_server_has_just_left_is_free():
    """The system keeps it for a minute; a page that is started anew need not wait."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # who closes first has the port kept
            assert client.recv(1) == b""
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))
    demo.check_address("127.0.0.1", port)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "0 tokens"),
        ([10.25], "1 token: the first after 0.25 s"),
        ([10.25, 10.25], "2 tokens: the first after 0.25 s"),
        ([10.5, 12.5, 14.5], "3 tokens: the first after 0.50 s, then 0.5 tokens per second"),
    ],
)
def test_the_speed_is_that_of_the_tokens_after_the_first(times, said):
    assert demo.speed(10.0, times) == said


def test_launch_takes_the_tokenizer_beside_the_weights(tmp_path, tokenizer, monkeypatch):
    built: list[Any] = []
    monkeypatch.setattr(demo, "build", lambda *given: built.append(given))
    monkeypatch.setattr(demo, "serve", lambda *_, **options: built.append(options))
    monkeypatch.setattr(demo, "tokenizer_for", lambda *given: built.append(given))
    model = small_model()
    model.chat_template = "{{ messages }}"  # type: ignore[assignment]
    export_pretrained(model, tmp_path / "mine", tokenizer=tokenizer)
    demo.launch(tmp_path / "mine")
    assert built[0] == (tmp_path / "mine", model.config.vocab_size)
    assert (built[1][0].chat_template, built[1][2]) == ("{{ messages }}", "the folder mine")
    assert built[2] == {"share": False}
    del built[:]
    demo.launch(tmp_path / "mine", quantize="int4")
    assert built[1][2] == "the folder mine; int4"
    assert built[1][0].model.embed_tokens.weight.form == "int4"
    assert built[1][0].chat_template == "{{ messages }}"


def test_the_command_hands_on_all_that_it_was_told(monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(demo, "launch", lambda *given, **named: told.append((given, named)))
    assert main(["demo"]) == 0
    flags = ["--host", "0.0.0.0", "--port", "8000", "--share", "--quantize", "int8"]
    assert main(["demo", "--ckpt", "x", *flags]) == 0
    assert told == [
        ((None,), {"host": "127.0.0.1", "port": None, "share": False, "quantize": None}),
        (("x",), {"host": "0.0.0.0", "port": 8000, "share": True, "quantize": "int8"}),
    ]


def test_the_choice_of_bits_is_generates_own(capsys):
    """One choice, with the same words and the same default, wherever weights speak."""
    asked = {}
    for command in (commands.generate, commands.chat, commands.demo, commands.export):
        choice = inspect.signature(command, eval_str=True).parameters["quantize"]
        asked[command.__name__] = (choice.annotation, choice.default)
    assert set(asked.values()) == {(Literal["int8", "int4"] | None, None)}
    with pytest.raises(SystemExit):
        main(["export", "--gguf", "x.gguf", "--quantize", "int8"])
    assert "is what a Space does with its weights" in capsys.readouterr().err


# With a server


def small_model(source: str = SOURCE) -> SmolLM2:
    """A tiny model with random weights whose probabilities are not all alike."""
    torch.manual_seed(0)
    model = SmolLM2(SmolLM2Config.preset("tiny")).eval().requires_grad_(False)
    model.model.norm.weight.mul_(6)  # type: ignore[union-attr, operator]
    model.source = source  # type: ignore[assignment]
    model.chat_template = CHAT_TEMPLATE  # type: ignore[assignment]
    return model


class Paced:
    """Slows a model down, so that a test can look on, and counts its steps."""

    def __init__(self, model: SmolLM2) -> None:
        self.seconds, self.steps = 0.0, 0
        model.model.norm.register_forward_pre_hook(self.step)  # type: ignore[union-attr]

    def step(self, *_: object) -> None:
        self.steps += 1
        time.sleep(self.seconds)


@pytest.fixture(scope="module")
def model() -> SmolLM2:
    return small_model()


@pytest.fixture(scope="module")
def pace(model: SmolLM2) -> Paced:
    return Paced(model)


@pytest.fixture
def slow(pace: Paced) -> Iterator[Paced]:
    pace.seconds = 0.03
    yield pace
    pace.seconds = 0.0


@pytest.fixture(scope="module")
def address(model: SmolLM2, pace: Paced, tokenizer: SmolLM2Tokenizer) -> Iterator[str]:
    page = demo.build(model, tokenizer, SOURCE)
    yield demo.serve(page, block=False)
    page.close(verbose=False)


def continuation(
    model: SmolLM2,
    tokenizer: SmolLM2Tokenizer,
    ids: list[int],
    length: int,
    seed: int,
    **options: Any,
) -> str:
    ends = stop_tokens(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    [full] = generate(model, ids, length, stop=ends, generator=generator, **options)
    text = tokenizer.decode(token for token in full[len(ids) :].tolist() if token not in ends)
    # HTML knows one kind of newline; a character that the end cuts is left out.
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\N{REPLACEMENT CHARACTER}")


REQUEST = {
    "prompt": "ROMEO:", "form": demo.CONTINUE, "talk": None, "tokens": 5, "temperature": 0,
    "top_k": None, "top_p": 1, "seed": 0, "hold": True,
}  # fmt: skip
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}  # gradio would open it


def post(address: str, data: list[Any]) -> str:
    """Ask the server without its page; return its reply as it comes."""
    url, body = f"{address}gradio_api/call/generate", json.dumps({"data": data})
    reply = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    return httpx.get(f"{url}/{reply.json()['event_id']}", timeout=60).text


def ask(address: str, **changes: Any) -> tuple[str, str]:
    """Ask the server without its page; return text and status as they were at the end."""
    last = post(address, list((REQUEST | changes).values())).split("data: ")[-1]
    text, status, *_ = json.loads(last)
    return text, status


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "The prompt is empty: type something or choose an example."),
        ({"prompt": {"a": 1}}, "The prompt is empty: type something or choose an example."),
        ({"prompt": "word " * 300}, "The prompt has 301 tokens, and 255 is the most: please"),
        ({"form": "Sing"}, "&#x27;Sing&#x27;: must be one of Chat, Continue a text."),
        ({"form": [1]}, "[1]: must be one of Chat, Continue a text."),
        ({"tokens": 100_000}, "Tokens 100000: must be at most 255."),
        ({"tokens": 0}, "Tokens 0: must be at least 1."),
        ({"tokens": "5"}, "Tokens &#x27;5&#x27;: must be a whole number."),
        ({"tokens": True}, "Tokens True: must be a whole number."),
        ({"tokens": None}, "Tokens None: must be a whole number."),
        ({"temperature": -1}, "Temperature -1: must be at least 0."),
        ({"temperature": float("nan")}, "Temperature nan: must be a finite number."),
        ({"temperature": 10**400}, "Temperature ~10^400: must be a finite number."),
        ({"top_k": 0}, "Top-k 0: must be at least 1."),
        ({"top_k": 1.5}, "Top-k 1.5: must be a whole number."),
        ({"top_p": 1.5}, "Top-p 1.5: must be above 0 and at most 1."),
        ({"top_p": "x" * 10_000}, "Top-p &#x27;xxx"),
        ({"seed": -1}, "Seed -1: must be a whole number from 0 to 4294967295."),
        ({"seed": None}, "Seed None: must be a whole number from 0 to 4294967295."),
        ({"seed": [1]}, "Seed [1]: must be a whole number from 0 to 4294967295."),
        ({"seed": 10**400}, "Seed 1000"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line_and_no_work(address, pace, changes, message):
    before = pace.steps
    text, status = ask(address, **changes)
    assert text == ""
    said = re.fullmatch('<p class="wrong" role="alert">([^\n<]{,250})</p>', status)
    assert said is not None, status
    assert said[1].startswith(message), said[1]
    assert pace.steps == before


@pytest.mark.parametrize("data", [[], ["x"], [1] * 30, [FILE] * 9])
def test_a_request_of_a_wrong_form_is_refused_without_a_traceback(address, capfd, data):
    reply = post(address, data)
    assert "event: error" in reply or 'class=\\"wrong\\"' in reply
    assert "Traceback" not in capfd.readouterr().err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts),
    max_leaves=5,
)


def test_whatever_a_request_holds_is_answered_in_one_line(address, capfd):
    @given(st.fixed_dictionaries({name: st.just(good) | JSON for name, good in REQUEST.items()}))
    def answered(request: dict[str, Any]) -> None:
        text, status = ask(address, **request)
        if "; seed " not in status:
            assert text == ""
            assert re.fullmatch('<p class="wrong" role="alert">[^\n<]{,250}</p>', status), status

    answered()
    assert "Traceback" not in capfd.readouterr().err


# In a browser

# Notes every change of the page: what the status says, and how long the text is.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => window.seen.push([
    document.querySelector('#status').innerText,
    document.querySelector('.text')?.textContent.length,
  ])).observe(document.querySelector('main'),
              {subtree: true, childList: true, characterData: true});
}"""
# Something other than the end was seen, then the end.
DONE = """(ends) => {
  const done = ([status]) => ends.some((end) => status.includes(end));
  const begun = window.seen.findIndex((entry) => !done(entry));
  return begun >= 0 && done(window.seen.at(-1));
}"""


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Opener = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Opener]:
    """Open the page as a user of its own; afterwards see that nobody else was asked anything."""
    contexts, asked, wrong = [], [], []

    def visit(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for()
        page.evaluate(WATCH)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert asked or not contexts  # a test that was skipped opened no page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert wrong == []


def start(page: Any, prompt: str, *, form: str = demo.CONTINUE, **settings: float) -> None:
    """Fill in the page and press the button; a seed that is given is held."""
    page.get_by_role("radio", name=form).check()
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Hold the seed").set_checked("seed" in settings)
    for label, value in settings.items():
        field = "Seed" if label == "seed" else f"number input for {label.capitalize()}"
        page.get_by_label(field, exact=label == "seed").fill(str(value))
        page.get_by_label(field, exact=label == "seed").press("Tab")
    page.evaluate("window.seen = []")
    page.get_by_role("button", name="Generate").click()


def finish(page: Any) -> str:
    """Wait for the end and return the text."""
    page.wait_for_function(DONE, arg=SAYING)
    return shown(page)


def said_at_the_end(page: Any) -> str:
    page.wait_for_function(DONE, arg=SAYING)
    return page.locator("#status").inner_text()


def shown(page: Any) -> str:
    return page.locator(".text").text_content()


def test_text_streams_and_is_what_generate_gives(visit, slow, model, tokenizer):
    page = visit()
    assert SOURCE in page.locator("#head").inner_text()
    start(page, "ROMEO:", tokens=40, temperature=0)
    text = finish(page)
    lengths = {length for _, length in page.evaluate("window.seen")}
    assert len(lengths) > 8, lengths
    ids = tokenizer.encode("ROMEO:")
    assert text == "ROMEO:" + continuation(model, tokenizer, ids, 40, 0, temperature=0)
    assert re.search(
        r"^40 tokens: the first after \d\.\d\d s, then \d+\.\d tokens per second; "
        r"length reached; seed \d+$",
        page.locator("#status").inner_text(),
    )
    # What is copied is the text alone.
    copied = page.evaluate(
        "() => { getSelection().selectAllChildren(document.querySelector('.text'));"
        " return getSelection().toString() }"
    )
    assert copied.split() == text.split()


def test_a_seed_that_is_held_decides_and_else_each_text_has_its_own(visit, model, tokenizer):
    page = visit()
    texts, seeds = [], []
    for settings in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {}, {}):
        start(page, "ROMEO:", tokens=12, **settings)
        texts.append(finish(page))
        seeds.append(page.get_by_label("Seed", exact=True).input_value())
        assert page.locator("#status").inner_text().endswith(f"; seed {seeds[-1]}")
    assert seeds[:3] == ["1", "1", "2"]
    assert texts[0] == texts[1]
    assert len(set(seeds)) == len(set(texts)) == 4
    ids, options = tokenizer.encode("ROMEO:"), {"temperature": 0.8, "top_p": 0.95}
    for text, seed in zip(texts, seeds, strict=True):  # what is shown is what was drawn with
        assert text == "ROMEO:" + continuation(model, tokenizer, ids, 12, int(seed), **options)


def test_the_page_begins_with_the_settings_of_the_command_line(visit, model):
    page, how = visit(), Sampling()
    fields = {
        "number input for Tokens": how.tokens,
        "number input for Temperature": how.temperature,
        "Top-k": how.top_k or model.config.vocab_size,
        "number input for Top-p": how.top_p,
    }
    for label, value in fields.items():
        assert float(page.get_by_label(label, exact=label == "Top-k").input_value()) == value
    assert not page.get_by_label("Hold the seed").is_checked()
    assert page.get_by_label("Prompt").input_value() == demo.QUESTIONS[0]
    for question in demo.QUESTIONS:
        assert page.get_by_role("button", name=question).is_visible()


@pytest.mark.parametrize(("context", "most"), [(256, 255), (401, 400), (1024, 400)])
def test_every_end_of_a_slider_is_a_setting_that_can_be_used(context, most, tokenizer):
    """No more tokens than the context leaves beside one of a prompt, and at most 400."""
    model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1, block_size=context))
    sliders = {
        block.label: (block.minimum, block.maximum, block.step)
        for block in demo.build(model, tokenizer, SOURCE).blocks.values()
        if isinstance(block, demo.gr.Slider)
    }
    assert sliders == {
        "Tokens": (1, most, 1), "Temperature": (0, 2, 0.05), "Top-p": (0.05, 1, 0.05),
    }  # fmt: skip
    for end in (0, 1):
        tokens, temperature, top_p = (ends[end] for ends in sliders.values())
        demo.checked_sampling(tokens, temperature, None, top_p, most)


def test_stop_ends_it_early_and_the_next_one_runs(visit, slow):
    page = visit()
    start(page, "ROMEO:", tokens=250)
    page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 60")
    page.get_by_role("button", name="Stop").click()
    assert re.search("; stopped; seed", said_at_the_end(page))
    steps, text = slow.steps, shown(page)
    page.wait_for_timeout(400)
    assert (slow.steps, shown(page)) == (steps, text)
    assert 0 < page.locator(".text [data-said]").count() < 200
    start(page, "JULIET:", tokens=5)
    assert finish(page).startswith("JULIET:")


def test_a_second_press_is_refused_aloud_and_disturbs_nothing(visit, slow, model, tokenizer):
    page = visit()
    start(page, "ROMEO:", tokens=200, temperature=0)
    page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 30")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(demo.BUSY).wait_for()
    slow.seconds = 0  # nothing more to look on at
    ids = tokenizer.encode("ROMEO:")
    assert finish(page) == "ROMEO:" + continuation(model, tokenizer, ids, 200, 0, temperature=0)


def test_a_third_visitor_waits_is_told_so_and_can_give_up(visit, slow):
    pages = [visit() for _ in range(demo.AT_ONCE + 1)]
    for page in pages:
        start(page, "ROMEO:", tokens=250)
    pages[-1].get_by_text("waiting: 1 before you").wait_for()
    pages[-1].get_by_role("button", name="Stop").click()
    assert said_at_the_end(pages[-1]).startswith("0 tokens; stopped; seed")
    start(pages[-1], "ROMEO:", tokens=5)
    pages[-1].get_by_text("waiting: 1 before you").wait_for()
    pages[0].get_by_role("button", name="Stop").click()
    assert finish(pages[-1]).startswith("ROMEO:")


def test_a_closed_page_stops_its_text_and_leaves_the_line(visit, slow, address, monkeypatch):
    page = visit()
    start(page, "ROMEO:", tokens=250)
    page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 60")
    page.close()
    time.sleep(1)
    steps = slow.steps
    time.sleep(0.5)
    assert slow.steps == steps
    monkeypatch.setattr(demo, "IN_LINE", 1)  # room for one: it is free again
    assert ask(address)[1].startswith("<p>5 tokens")
    monkeypatch.setattr(demo, "IN_LINE", 0)
    assert "0 visitors are here already: please try again later." in ask(address)[1]


def test_two_users_at_once_do_not_mix(visit, slow, model, tokenizer):
    prompts = {"ROMEO:": 3, "KING RICHARD II:": 4}
    pages = [visit() for _ in prompts]
    for page, (prompt, seed) in zip(pages, prompts.items(), strict=True):
        start(page, prompt, tokens=50, seed=seed)
    for page in pages:  # both are being written now
        page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 30")
    assert not any(page.evaluate(DONE, SAYING) for page in pages)
    for page, (prompt, seed) in zip(pages, prompts.items(), strict=True):
        ids = tokenizer.encode(prompt)
        options = {"temperature": 0.8, "top_p": 0.95}
        assert finish(page) == prompt + continuation(model, tokenizer, ids, 50, seed, **options)


def test_a_conversation_of_several_turns(visit, model, tokenizer):
    page, turns, expected = visit(), [], ""
    page.get_by_text("Why is the sky blue?").click()  # an example
    page.wait_for_function("document.querySelector('textarea').value.startsWith('Why')")
    for question in ("Why is the sky blue?", "And at night?", "Who says so?"):
        start(page, question, form=demo.CHAT, tokens=10, temperature=0)
        turns.append({"role": "user", "content": question})
        ids = chat_prompt(tokenizer, turns)
        answer = continuation(model, tokenizer, ids, 10, 0, temperature=0)
        turns.append({"role": "assistant", "content": answer})
        expected += ("\n\n" if expected else "") + f"{question}\n\n{answer}"
        assert finish(page) == expected
        assert page.get_by_label("Prompt").input_value() == ""
    start(page, "", form=demo.CHAT)  # an error loses nothing that was said
    page.get_by_role("alert").get_by_text("The prompt is empty").wait_for()
    assert shown(page) == expected
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_function("document.querySelector('.text').textContent === ''")
    start(page, "ROMEO:", form=demo.CHAT, tokens=5, temperature=0)
    ids = chat_prompt(tokenizer, "ROMEO:")
    assert finish(page) == "ROMEO:\n\n" + continuation(model, tokenizer, ids, 5, 0, temperature=0)


def test_pointing_tapping_and_arrow_keys_tell_the_probabilities(visit, model, tokenizer):
    page = visit(has_touch=True)
    start(page, "ROMEO:", tokens=5, temperature=0)
    finish(page)
    tokens, detail = page.locator(".text [data-said]"), page.locator("#detail p")
    told = [token.get_attribute("data-said") for token in tokens.all()]
    steps = list(stream(model, tokenizer.encode("ROMEO:"), 5, temperature=0))
    assert len(set(told)) == len(steps) == 5
    for step, said in zip(steps, told, strict=True):
        assert f" {step.probability:.1%}; next: " in said
        assert said.endswith(f" {step.runner_up_probability:.1%}")
    tokens.nth(1).tap()
    assert detail.text_content() == told[1]
    tokens.nth(2).hover()
    assert detail.text_content() == told[2]
    page.get_by_role("button", name="New conversation").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "text"
    for key, place in (
        [("ArrowRight", place) for place in (0, 1, 2, 3, 4, 4)]
        + [("ArrowLeft", 3), ("Home", 0), ("ArrowLeft", 0), ("End", 4)]
    ):  # fmt: skip
        page.keyboard.press(key)
        assert detail.text_content() == told[place], key
        assert tokens.nth(place).evaluate("e => e === document.activeElement")


def test_an_error_clears_what_was_there(visit, pace):
    page = visit()
    start(page, "ROMEO:", tokens=5)
    finish(page)
    before = pace.steps
    start(page, "word " * 300)
    error = "The prompt has 301 tokens, and 255 is the most: please shorten it."
    page.get_by_role("alert").get_by_text(error).wait_for()
    assert page.locator("#status").inner_text().strip() == error
    assert shown(page) == ""
    assert page.get_by_label("Prompt").input_value().startswith("word word")  # to shorten it
    assert pace.steps == before


def test_weights_without_a_chat_template_only_continue_texts(tokenizer):
    model = small_model()
    model.chat_template = None
    page = demo.build(model, tokenizer, SOURCE)
    address = demo.serve(page, block=False)
    try:
        _, status = ask(address, form=demo.CHAT)
        assert "&#x27;Chat&#x27;: must be one of Continue a text." in status
        labels = {block.value: block.visible for block in page.blocks.values()
                  if isinstance(block, demo.gr.Button)}  # fmt: skip
        assert labels == {"Generate": True, "Stop": True, "New conversation": False}
    finally:
        page.close(verbose=False)


def test_the_page_says_below_its_title_what_it_is_for(model, tokenizer):
    """In a sentence, after one on what a token is; nobody knows the word who comes here."""
    page = demo.build(model, tokenizer, SOURCE)
    (head,) = (block.value for block in page.blocks.values()
               if getattr(block, "elem_id", None) == "head")  # fmt: skip
    assert head.startswith(f"<h1>{demo.TITLE}</h1><p>{demo.PURPOSE}</p>")
    words = " ".join(demo.PURPOSE.split())
    what, why = re.findall(r"[^.]+\.", words)
    assert what.startswith("The model writes one token at a time: ")
    assert "the probability that the model gave it, so you see" in why
    assert len(words.split()) < 50


# Each token takes its time, so that Ctrl-C finds the page writing.
SLOWLY = """
import sys, time, torch
real = torch.multinomial
def slowly(*given, **named):
    time.sleep(0.2)
    return real(*given, **named)
torch.multinomial = slowly
from smol_scratch.__main__ import main
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_ctrl_c_ends_the_page_quietly_idle_or_writing_and_frees_its_port(tokenizer, tmp_path):
    folder = str(export_pretrained(small_model(), tmp_path / "model", tokenizer=tokenizer))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for writing in (True, False):  # the second start has the port of the first
        with contextlib.ExitStack() as still_open:
            process = subprocess.Popen(
                [sys.executable, "-c", SLOWLY, "demo", "--ckpt", folder, "--port", port],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
            )  # fmt: skip
            still_open.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("weights: ")
            line = process.stdout.readline()
            assert line == f"the page is at http://127.0.0.1:{port}/; Ctrl-C stops it\n"
            if writing:
                url = f"http://127.0.0.1:{port}/gradio_api/call/generate"
                data = list((REQUEST | {"tokens": 200, "temperature": 1.0}).values())
                event = httpx.post(url, json={"data": data}).json()["event_id"]
                reply = still_open.enter_context(httpx.stream("GET", f"{url}/{event}", timeout=60))
                lines = reply.iter_lines()
                while "1 token:" not in next(lines):
                    pass
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)
            assert (process.returncode, said) == (130, ("", "\n"))


def at_once(coroutine: Any) -> Any:
    """Return what a coroutine that waits for nothing returns; a browser's loop may be running."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


def test_a_new_conversation_does_not_begin_while_one_is_written(tokenizer, monkeypatch):
    """Said aloud, and nothing on the page changes: the text that is being written goes on."""
    said: list[str] = []
    monkeypatch.setattr(demo.gr, "Warning", said.append)
    page = demo.build(small_model(), tokenizer, SOURCE)
    begin = next(f.fn for f in page.fns.values() if getattr(f.fn, "__name__", "") == "begin_anew")
    line = inspect.getclosurevars(begin).nonlocals["line"]
    writer, visitor = SimpleNamespace(session_hash="writer"), SimpleNamespace(session_hash="other")
    line["writer"] = asyncio.Event()
    assert at_once(begin(writer)) == (demo.gr.skip(),) * 3
    assert said == [demo.BUSY]
    assert at_once(begin(visitor)) == ("", "", demo.Talk())
    del line["writer"]
    assert at_once(begin(writer)) == ("", "", demo.Talk())
    assert said == [demo.BUSY]


def test_broken_weights_are_told_in_one_line(tokenizer):
    model = small_model()
    model.model.norm.weight.mul_(float("nan"))  # type: ignore[union-attr, operator]
    page = demo.build(model, tokenizer, SOURCE)
    address = demo.serve(page, block=False)
    try:
        assert "scores are not finite" in ask(address)[1]
    finally:
        page.close(verbose=False)


def test_a_script_in_the_prompt_is_text(visit):
    page = visit()
    prompt = (
        "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
        "{{value}} ${window.ran = 3} @children </div> &amp; \\n"
    )
    start(page, prompt, tokens=5)
    assert finish(page).startswith(prompt)
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.locator("#head b").count() == 0  # nor in the name of the weights


CONTRAST = """(element) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (/, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const a = light(getComputedStyle(element).color);
  const b = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_light_and_dark(visit, scheme):
    page = visit(viewport={"width": 390, "height": 740}, color_scheme=scheme)
    start(page, "x" * 150, tokens=10)
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (sum(brightness[:3]) > 380) == (scheme == "light")
    kinds = page.locator(".legend span").all()
    assert len(kinds) == 5
    for kind in kinds:  # 4.5 is what WCAG 2.2 asks for
        assert kind.evaluate(CONTRAST) > 4.5, kind.text_content()
    styles = {kind.evaluate("e => getComputedStyle(e).textDecoration") for kind in kinds[1:]}
    assert len(styles) == 4  # not by colour alone


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, scheme):
    """``npm pack axe-core``, unpack it, and name its ``axe.min.js`` in AXE_CORE."""
    if not (axe := os.environ.get("AXE_CORE")):
        pytest.skip("AXE_CORE names no axe.min.js")
    page = visit(color_scheme=scheme)
    start(page, "ROMEO:", tokens=30)
    finish(page)
    start(page, "", tokens=30)
    page.get_by_role("alert").wait_for()
    start(page, "ROMEO:", form=demo.CHAT, tokens=30)
    finish(page)
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run(document).then((result) => result.violations)")
    said = [(v["id"], v["help"], [node["html"][:200] for node in v["nodes"]]) for v in found]
    assert said == []


def screenshot(path: Path) -> None:
    """Photograph the page after the real Instruct weights have answered."""
    from playwright.sync_api import sync_playwright

    model = load_pretrained(Path(assets.GGUF).name)
    page = demo.build(model, load_tokenizer(), str(model.source))
    address = demo.serve(page, block=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
        tab.goto(address)
        tab.get_by_role("button", name="Generate").wait_for()
        tab.evaluate(WATCH)
        start(tab, "Why is the sky blue?", form=demo.CHAT, seed=0)
        tab.wait_for_function(DONE, arg=SAYING, timeout=120_000)
        tab.locator(".text .p3, .text .p4").first.click()
        tab.mouse.move(0, 0)
        tab.screenshot(path=path, full_page=True)
        print(f"{path}: {path.stat().st_size:,} bytes; {shown(tab)}")
        browser.close()
    page.close(verbose=False)


if __name__ == "__main__":
    screenshot(assets.ROOT / "figures" / "demo.png")
