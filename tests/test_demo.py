"""The demo: its HTML, its Space, and the page in a real browser.

``python -m tests.test_demo`` takes the screenshot in ``figures/`` with the real weights.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from smol_scratch import SmolLM2, SmolLM2Config, assets, load_pretrained, load_tokenizer
from smol_scratch.generation import Step, chat_prompt, generate, stop_tokens, stream
from smol_scratch.sharing import export_pretrained
from smol_scratch.tokenizer import SmolLM2Tokenizer

pytest.importorskip("gradio", reason="gradio is not installed: the demo needs it")

from smol_scratch import demo

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SOURCE = "random numbers <b>Instruct</b>"
SAYING = ["reached", "ended", "full"]  # how a finished text is reported


# Without a browser


def test_a_token_shows_its_probability_and_the_runner_up(tokenizer):
    king, queen = tokenizer.encode(" king queen")
    span = demo.token_span(tokenizer, " king", [Step(king, 0.3, queen, 0.25)])
    said = "&quot; king&quot; 30.0%, runner-up &quot; queen&quot; 25.0%"
    assert span == f'<span class="p2" title="{said}"> king</span>'


@pytest.mark.parametrize(
    ("probability", "kind"), [(1, 0), (0.9, 0), (0.89, 1), (0.5, 1), (0.2, 2), (0.05, 3), (0.0, 4)]
)
def test_the_level_follows_the_probability(tokenizer, probability, kind):
    assert f'class="p{kind}"' in demo.token_span(tokenizer, "a", [Step(30, probability, 31, 0)])


def test_a_character_of_several_tokens_names_them_all(tokenizer):
    ids = tokenizer.encode("𓀀")
    assert len(ids) > 1
    span = demo.token_span(tokenizer, "𓀀", [Step(token, 0.7, 30, 0.1) for token in ids])
    assert span.count("runner-up") == len(ids)
    assert span.endswith(">𓀀</span>")
    assert 'class="p0"' not in span  # the product, not one of them


def test_html_and_templates_are_escaped(tokenizer):
    assert not set("<>\"'{}$@`\\") & set(demo.escaped("<a b=\"c\" d='e'>{{f}} ${g} @children `\\"))
    token = tokenizer.encode("<")[0]
    span = demo.token_span(tokenizer, "<", [Step(token, 1.0, token, 0.0)])
    assert span.count("<") == 2


def test_prompts_are_bounded(tokenizer):
    assert demo.prompt_tokens(tokenizer, "a b", demo.CONTINUE, 2) == tokenizer.encode("a b")
    assert demo.prompt_tokens(tokenizer, "a", demo.ANSWER, 99) == chat_prompt(tokenizer, "a")
    with pytest.raises(ValueError, match="3 tokens, and 2 is the most"):
        demo.prompt_tokens(tokenizer, "a b c", demo.CONTINUE, 2)
    with pytest.raises(ValueError, match="1,000,000 characters"):
        demo.prompt_tokens(tokenizer, "a" * 1_000_000, demo.CONTINUE, 1024)
    with pytest.raises(ValueError, match="empty"):
        demo.prompt_tokens(tokenizer, " \n", demo.CONTINUE, 2)


def test_it_listens_to_this_machine_alone_and_shares_nothing_unasked(monkeypatch):
    given: dict[str, Any] = {}

    def record(**options: Any) -> tuple[None, str, None]:
        given.update(options)
        return None, "http://there/", None

    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = SimpleNamespace(launch=record)
    demo.serve(page, block=False)  # type: ignore[arg-type]
    assert (given["server_name"], given["share"]) == ("127.0.0.1", False)


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
    assert built[1][2:] == ("the folder mine", True)
    assert built[2] == {"share": False}


# With a server


def small_model(source: str = SOURCE) -> SmolLM2:
    """A tiny model with random weights whose probabilities are not all alike."""
    torch.manual_seed(0)
    model = SmolLM2(SmolLM2Config.preset("tiny")).eval().requires_grad_(False)
    model.model.norm.weight.mul_(6)  # type: ignore[union-attr, operator]
    model.source = source  # type: ignore[assignment]
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
    page = demo.build(model, tokenizer, SOURCE, chat=True)
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
    return tokenizer.decode(token for token in full[len(ids) :].tolist() if token not in ends)


def call(address: str, prompt: str, *settings: Any) -> tuple[str, str]:
    """Ask the server without its page: length, temperature, top-k, top-p and seed."""
    from gradio_client import Client

    client = Client(address, verbose=False, analytics_enabled=False)
    try:
        return client.predict(prompt, demo.CONTINUE, *settings, api_name="/generate")
    finally:
        client.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((100_000, 1, 0, 1, 0), "greater than maximum"),
        ((0, 1, 0, 1, 0), "less than minimum"),
        ((5, -1, 0, 1, 0), "less than minimum"),
        ((5, 1, -3, 1, 0), "less than minimum"),
        ((5, 1, 0, 1.5, 0), "greater than maximum"),
        ((5, 1, 0, 1, -1), "less than minimum"),
        ((5, 1, 0, 1, None), "whole number"),
    ],
)
def test_settings_are_checked_by_the_server_too(address, pace, settings, message):
    before = pace.steps
    with pytest.raises(Exception, match=message):
        call(address, "Hello", *settings)
    assert pace.steps == before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_written_space_starts_and_answers(tmp_path, tokenizer):
    model = small_model("a 'quoted' source")
    folder = demo.write_space(model, tokenizer, tmp_path / "space")

    front = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == demo.gr.__version__
    assert (folder / front["app_file"]).is_file()
    pins = (folder / "requirements.txt").read_text("utf-8").splitlines()
    assert any(re.fullmatch(r"torch==[\d.]+", pin) for pin in pins)
    assert all("==" in pin for pin in pins[1:])
    with pytest.raises(FileExistsError, match="not empty"):
        demo.write_space(model, tokenizer, folder)

    # The package beside app.py is what runs, not the one that is installed here.
    with (folder / "smol_scratch" / "__init__.py").open("a") as file:
        file.write("\nprint(__file__, flush=True)\n")
    port = free_port()
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "SMOL_SCRATCH_DATA": str(tmp_path / "nothing"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",  # the address is read while the page is served
    }
    command = [sys.executable, "app.py"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(str(folder))
            assert f"127.0.0.1:{port}" in process.stdout.readline()  # it is listening
            text, status = call(f"http://127.0.0.1:{port}/", "ROMEO:", 5, 0, 0, 1, 0)
        finally:
            process.terminate()
    shown = re.sub(r"<[^>]*>", "", text).removeprefix("ROMEO:")
    ids = tokenizer.encode("ROMEO:")
    assert shown == demo.escaped(continuation(model, tokenizer, ids, 5, 0, temperature=0))
    assert status.startswith("5 tokens")


# In a browser

# Notes every change of the page: what the status says, and how long the text is.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => window.seen.push([
    document.querySelector('#status').innerText,
    document.querySelector('.text').textContent.length,
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
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for()
        page.evaluate(WATCH)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert wrong == []


def start(page: Any, prompt: str, *, form: str = demo.CONTINUE, **settings: float) -> None:
    page.get_by_role("radio", name=form).check()
    page.get_by_label("Prompt").fill(prompt)
    for label, value in settings.items():
        field = "Seed" if label == "seed" else f"number input for {label.capitalize()}"
        page.get_by_label(field).fill(str(value))
        page.get_by_label(field).press("Tab")
    page.evaluate("window.seen = []")
    page.get_by_role("button", name="Generate").click()


def finish(page: Any) -> str:
    """Wait for the end and return the text."""
    page.wait_for_function(DONE, arg=SAYING)
    return shown(page)


def shown(page: Any) -> str:
    return page.locator(".text").text_content()


def test_text_streams_and_is_what_generate_gives(visit, slow, model, tokenizer):
    page = visit()
    assert SOURCE in page.locator("#head").inner_text()
    start(page, "ROMEO:", length=40, temperature=0)
    text = finish(page)
    lengths = {length for _, length in page.evaluate("window.seen")}
    assert len(lengths) > 8, lengths
    ids = tokenizer.encode("ROMEO:")
    assert text == "ROMEO:" + continuation(model, tokenizer, ids, 40, 0, temperature=0)
    assert re.search(
        r"^40 tokens: the first after \d\.\d\d s, then \d+\.\d tokens a second; length reached$",
        page.locator("#status").inner_text(),
    )
    # What is copied is the text alone.
    copied = page.evaluate(
        "() => { getSelection().selectAllChildren(document.querySelector('.text'));"
        " return getSelection().toString() }"
    )
    assert copied.split() == text.split()


def test_the_seed_decides(visit, model, tokenizer):
    page = visit()
    texts = []
    for seed in (1, 1, 2):
        start(page, "ROMEO:", length=12, seed=seed)
        texts.append(finish(page))
    assert texts[0] == texts[1] != texts[2]
    ids = tokenizer.encode("ROMEO:")
    expected = continuation(model, tokenizer, ids, 12, 1, temperature=0.8, top_k=50)
    assert texts[0] == "ROMEO:" + expected


def test_stop_ends_it_early_and_the_next_one_runs(visit, slow):
    page = visit()
    start(page, "ROMEO:", length=250)
    page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 60")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(300)
    steps, text = slow.steps, shown(page)
    page.wait_for_timeout(400)
    assert (slow.steps, shown(page)) == (steps, text)
    assert len(page.locator(".text [title]").all()) < 200
    start(page, "JULIET:", length=5)
    assert finish(page).startswith("JULIET:")


def test_a_closed_page_stops_its_text(visit, slow):
    page = visit()
    start(page, "ROMEO:", length=250)
    page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 60")
    page.close()
    time.sleep(1)
    steps = slow.steps
    time.sleep(0.5)
    assert slow.steps == steps


def test_two_users_at_once_do_not_mix(visit, slow, model, tokenizer):
    prompts = {"ROMEO:": 3, "KING RICHARD II:": 4}
    pages = [visit() for _ in prompts]
    for page, (prompt, seed) in zip(pages, prompts.items(), strict=True):
        start(page, prompt, length=50, seed=seed)
    for page in pages:  # both are being written now
        page.wait_for_function("window.seen.length && window.seen.at(-1)[1] > 30")
    assert not any(page.evaluate(DONE, SAYING) for page in pages)
    for page, (prompt, seed) in zip(pages, prompts.items(), strict=True):
        ids = tokenizer.encode(prompt)
        options = {"temperature": 0.8, "top_k": 50}
        assert finish(page) == prompt + continuation(model, tokenizer, ids, 50, seed, **options)


def test_an_answer_is_asked_for_in_the_chat_template(visit, model, tokenizer):
    page = visit()
    page.get_by_text("Why is the sky blue?").click()  # an example
    page.wait_for_function("document.querySelector('textarea').value.startsWith('Why')")
    question = "Why is the sky blue?"
    start(page, question, form=demo.ANSWER, length=10, temperature=0)
    ids = chat_prompt(tokenizer, question)
    expected = continuation(model, tokenizer, ids, 10, 0, temperature=0)
    assert finish(page) == f"{question}\n\n{expected}"


def test_hovering_and_tapping_tell_probability_and_runner_up(visit, model, tokenizer):
    page = visit(has_touch=True)
    start(page, "ROMEO:", length=5, temperature=0)
    finish(page)
    token = page.locator(".text [title]").first
    step = next(stream(model, tokenizer.encode("ROMEO:"), 1, temperature=0))
    title = token.get_attribute("title")
    assert f"{step.probability:.1%}, runner-up " in title
    assert title.endswith(f" {step.runner_up_probability:.1%}")
    token.tap()
    assert page.locator(".tapped").text_content() == title


def test_a_prompt_that_is_too_long_is_refused_in_words(visit, pace):
    page, before = visit(), pace.steps
    start(page, "word " * 300)
    page.get_by_text("tokens, and 255 is the most: please shorten it").wait_for()
    assert pace.steps == before


def test_a_script_in_the_prompt_is_text(visit):
    page = visit()
    prompt = (
        "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
        "{{value}} ${window.ran = 3} @children </div> &amp; \\n"
    )
    start(page, prompt, length=5)
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
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    start(page, "x" * 150, length=10)
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
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


def screenshot(path: Path) -> None:
    """Photograph the page after the real Instruct weights have answered."""
    from playwright.sync_api import sync_playwright

    model = load_pretrained(Path(assets.GGUF).name)
    page = demo.build(model, load_tokenizer(), str(model.source), chat=True)
    address = demo.serve(page, block=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
        tab.goto(address)
        tab.get_by_role("button", name="Generate").wait_for()
        tab.evaluate(WATCH)
        start(tab, "Why is the sky blue?", form=demo.ANSWER, temperature=0.3, length=200, seed=0)
        tab.wait_for_function(DONE, arg=SAYING, timeout=120_000)
        tab.locator(".text [title]").nth(3).click()
        tab.mouse.move(0, 0)
        tab.screenshot(path=path, full_page=True)
        print(f"{path}: {path.stat().st_size:,} bytes; {shown(tab)}")
        browser.close()
    page.close(verbose=False)


if __name__ == "__main__":
    screenshot(assets.ROOT / "figures" / "demo.png")
