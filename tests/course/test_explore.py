"""The explorables: what each computes in a browser is what Python computes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks import record_explore
from smol_scratch import RMSNorm
from smol_scratch.model import RotaryPositionalEmbedding

NAMES = sorted(path.stem for path in record_explore.SOURCE.glob("*.html"))
DATA = {n: json.loads((record_explore.SOURCE / f"{n}.json").read_text("utf-8")) for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_its_source_and_is_small(name):
    built = (record_explore.PAGES / f"{name}.html").read_text("utf-8")
    assert built == record_explore.page(name), "python -m benchmarks.record_explore --pages"
    data = (record_explore.SOURCE / f"{name}.json").stat().st_size
    assert data < 300_000
    assert len(built.encode()) - data < 60_000
    assert (record_explore.PAGES / f"{name}.png").stat().st_size < 300_000
    # Nothing is loaded; the only address is that of SVG, which nobody visits.
    assert set(re.findall(r"https?://[^\s\"']+", built)) <= {"http://www.w3.org/2000/svg"}
    assert re.findall(r"\bsrc=\"([^\"]*)\"", built) == [f"{name}.png"]
    assert "<link" not in built
    assert "@import" not in built


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
    controls = "input, select, textarea, button, [tabindex='0']"
    expected = page.evaluate(f"document.querySelectorAll({json.dumps(controls)}).length")
    reached = set()
    for _ in range(expected + 2):
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
        torch.tensor(found, dtype=torch.float64),
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


@pytest.mark.slow
def test_ropes_heads_are_those_of_the_model(real_model, tokenizer):
    real = object.__new__(record_explore.Real)
    real.model, real.tokenizer = real_model, tokenizer
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
