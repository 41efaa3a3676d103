"""A page to try a model on: text streams, each token coloured by the probability it had.

The page is served to this machine alone and asks nothing of any other.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr
import torch

from smol_scratch import assets
from smol_scratch.generation import Step, chat_prompt, stop_tokens, stream, text_pieces
from smol_scratch.hub import load_pretrained
from smol_scratch.model import SmolLM2
from smol_scratch.sharing import export_pretrained
from smol_scratch.tokenizer import SmolLM2Tokenizer, tokenizer_for

MAX_PROMPT = 1024  # tokens
MAX_LENGTH = 400  # new tokens
AT_ONCE = 2  # users whose text is made at the same time; the others wait in a queue
BETWEEN_UPDATES = 0.04  # seconds; the eye sees no more

ANSWER, CONTINUE = "Answer", "Continue"
CONTINUED = ["First Citizen:\n", "ROMEO:\n", "KING RICHARD II:\n", "To be, or not to be"]
ASKED = ["Who was William Shakespeare?", "Why is the sky blue?"]

# Below each bound the next level begins.
BOUNDS = (0.9, 0.5, 0.2, 0.05)
LEGEND = ("≥ 90 %", "≥ 50 %", "≥ 20 %", "≥ 5 %", "< 5 %")

# Every level has an underline of its own, for who cannot tell the colours apart. Text on the
# strongest colour keeps a contrast above 5 : 1, light and dark.
STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#head h1 { font-size: 1.4rem; font-weight: 600; margin: 0; }
#head p, #status, .legend, .tapped { font-size: .875rem; margin: .25rem 0; }
.gradio-container .html-container { padding: 0; }
#status { min-height: 1.5rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 11rem; padding: .75rem;
  line-height: 1.7; border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--background-fill-primary); color: var(--body-text-color); }
.text:empty::before { content: "The text will stand here."; opacity: .7; }
.given { font-weight: 600; }
.legend span { display: inline-block; margin-right: .5rem; padding: 0 .3rem; }
.tapped { min-height: 1.3rem; white-space: pre-wrap; }
.p0, .p1, .p2, .p3, .p4 { border-radius: 2px; text-underline-offset: 3px; }
.p1 { color: #1a1a1a; background: #fdf1dc; }
.p2 { color: #1a1a1a; background: #fbdcab; text-decoration: underline dotted 1px; }
.p3 { color: #1a1a1a; background: #f5b877; text-decoration: underline dashed 1px; }
.p4 { color: #1a1a1a; background: #ec9255; text-decoration: underline solid 2px; }
.dark .p1 { color: #f7f7f7; background: #3b3020; }
.dark .p2 { color: #f7f7f7; background: #574019; }
.dark .p3 { color: #f7f7f7; background: #764a12; }
.dark .p4 { color: #f7f7f7; background: #944310; }
"""
OUTPUT = """<div class="text">${{value}}</div>
<p class="legend">Probability of each token: {}</p>
<p class="tapped">Hover or tap a token to see it, and the runner-up.</p>""".format(
    " ".join(f'<span class="p{i}">{bounds}</span>' for i, bounds in enumerate(LEGEND))
)
# A finger cannot hover: what it taps is said below the text.
ON_TAP = """element.addEventListener('click', (event) => {
  const token = event.target.closest('.text [title]');
  if (token) element.querySelector('.tapped').textContent = token.title;
});"""


def escaped(text: str) -> str:
    """Return text as HTML that shows it, safe in gradio's templates too (``{{…}}``, ``${…}``)."""
    return html.escape(text).translate({ord(c): f"&#{ord(c)};" for c in "{}$@`\\"})


def token_span(tokenizer: SmolLM2Tokenizer, text: str, steps: Sequence[Step]) -> str:
    """Return a piece of text as HTML, coloured, with what the model thought in its title.

    Args:
        tokenizer: to name the runner-up.
        text: whole characters.
        steps: the tokens that they were made of; more than one where a token ends in the middle
            of a character. The piece's probability is then the product of theirs.
    """
    said = [
        f"{_quoted(tokenizer, step.token)} {step.probability:.1%}, "
        f"runner-up {_quoted(tokenizer, step.runner_up)} {step.runner_up_probability:.1%}"
        for step in steps
    ]
    probability = math.prod(step.probability for step in steps)
    kind = sum(probability < bound for bound in BOUNDS)  # 0 for nearly certain, 4 for a surprise
    return f'<span class="p{kind}" title="{escaped(chr(10).join(said))}">{escaped(text)}</span>'


def _quoted(tokenizer: SmolLM2Tokenizer, token: int) -> str:
    return json.dumps(tokenizer.decode([token]), ensure_ascii=False)  # a line end shows as \n


def prompt_tokens(tokenizer: SmolLM2Tokenizer, prompt: str, form: str, longest: int) -> list[int]:
    """Return a prompt's token numbers.

    Raises:
        ValueError: when it is empty or has more than ``longest`` tokens, in words for the page.
    """
    if not prompt.strip():
        raise ValueError("The prompt is empty: type something or choose an example.")
    if len(prompt) > 16 * longest:  # before the tokenizer works on megabytes
        raise ValueError(f"The prompt has {len(prompt):,} characters: please shorten it.")
    ids = chat_prompt(tokenizer, prompt) if form == ANSWER else tokenizer.encode(prompt)
    if len(ids) > longest:
        raise ValueError(
            f"The prompt has {len(ids):,} tokens, and {longest:,} is the most: please shorten it."
        )
    return ids


def build(model: SmolLM2, tokenizer: SmolLM2Tokenizer, source: str, chat: bool) -> gr.Blocks:
    """Return the page.

    Args:
        model: whose weights speak.
        tokenizer: its tokenizer.
        source: which weights these are, shown on the page.
        chat: they were trained to answer: offer that beside continuing a text.
    """
    block_size = model.config.block_size
    longest, most = min(MAX_PROMPT, block_size - 1), min(MAX_LENGTH, block_size - 1)
    forms = [ANSWER, CONTINUE] if chat else [CONTINUE]
    ends, device = stop_tokens(tokenizer), next(model.parameters()).device

    def speak(
        prompt: str, form: str, length: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> Iterator[tuple[str, str]]:
        """Stream the text as HTML, and how fast it comes. Everything in here is one user's own."""
        began = time.perf_counter()
        try:
            if not isinstance(seed, int):
                raise ValueError("The seed must be a whole number.")
            ids = prompt_tokens(tokenizer, prompt, form, longest)
            steps = stream(
                model,
                ids,
                length,
                temperature=temperature,
                top_k=top_k or None,
                top_p=top_p,
                stop=ends,
                generator=torch.Generator(device).manual_seed(seed),
            )
        except ValueError as error:
            # It stands on the page until it is closed.
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        between = "\n\n" if form == ANSWER else ""
        text = f'<span class="given">{escaped(prompt)}</span>{between}'
        count, shown, last = 0, began, None
        first = began
        yield text, "reading the prompt"
        for piece, made_of in text_pieces(tokenizer, steps):
            now = time.perf_counter()
            first = first if count else now
            count, last = count + len(made_of), made_of[-1].token
            if last in ends:
                break
            text += token_span(tokenizer, piece, made_of)
            if now - shown >= BETWEEN_UPDATES:
                shown = now
                yield text, _speed(count, first - began, now - first)
        if last in ends:
            why = "the model ended here"
        else:
            why = "length reached" if count >= length else "context full"
        took = time.perf_counter() - first
        yield text, f"{_speed(count, first - began, took)}; {why}"

    examples = [[example, CONTINUE] for example in CONTINUED]
    if chat:
        examples = [[example, ANSWER] for example in ASKED] + examples
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with gr.Blocks(title="smol_scratch", analytics_enabled=False) as page:
        gr.HTML(f"<h1>smol_scratch</h1><p>Weights: {escaped(source)}</p>", elem_id="head")
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                prompt = gr.Textbox(examples[0][0], label="Prompt", lines=3, max_lines=8)
                form = gr.Radio(forms, value=forms[0], label="What to do with it", visible=chat)
                labels = [example.strip() for example, _ in examples]
                gr.Examples(examples, [prompt, form], example_labels=labels)
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", min_width=100)
                    halt = gr.Button("Stop", min_width=100)
                status = gr.HTML(elem_id="status")
                text = gr.HTML(html_template=OUTPUT, js_on_load=ON_TAP)
            with gr.Column(scale=1, min_width=240):
                settings = [
                    gr.Slider(1, most, min(120, most), precision=0, step=1, label="Length",
                              info="new tokens, at most"),
                    gr.Slider(0, 2, 0.8, step=0.05, label="Temperature",
                              info="0: always the likeliest"),
                    gr.Slider(0, 200, 50, precision=0, step=1, label="Top-k", info="0: all tokens"),
                    gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1: all tokens"),
                    gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed",
                              info="the same gives the same text"),
                ]  # fmt: skip
        event = gr.on(
            [go.click, prompt.submit],
            speak,
            [prompt, form, *settings],
            [text, status],
            api_name="generate",
            concurrency_limit=AT_ONCE,
            show_progress="minimal",
            show_progress_on=status,
        )
        halt.click(None, cancels=[event], queue=False)
    return page.queue(max_size=32, default_concurrency_limit=AT_ONCE)


def _speed(count: int, wait: float, took: float) -> str:
    rate = f", then {(count - 1) / took:.1f} tokens a second" if count > 1 and took > 0 else ""
    return f"{count} tokens: the first after {wait:.2f} s{rate}"


def serve(
    page: gr.Blocks,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
    block: bool = True,
) -> str:
    """Serve the page and return its address.

    Args:
        page: from ``build``.
        host: who can reach it: "127.0.0.1" this machine alone, "0.0.0.0" the network; None leaves
            it to the environment, as a Hugging Face Space needs it.
        port: without one, the first free one from 7860.
        share: ask gradio's servers for a public address too.
        block: return only when the server is stopped with Ctrl-C.
    """
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    _, address, shared = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        # Fonts that are here: none is fetched. The tokens have the orange for themselves.
        theme=gr.themes.Default(primary_hue="blue", font=sans, font_mono=mono).set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
        ),
        css=STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    if block:
        print(f"the page is at {shared or address}; Ctrl-C stops it")
        page.block_thread()
    return address


def launch(
    ckpt: str | Path | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
) -> None:
    """Load a model and serve its page until Ctrl-C.

    Args:
        ckpt: as ``load_pretrained`` takes it; None for the best weights at hand.
        host: as in ``serve``, as are the others.
        port: likewise.
        share: likewise.
    """
    model = load_pretrained(ckpt)
    chat = model.chat_template is not None
    tokenizer = tokenizer_for(ckpt, model.config.vocab_size)
    page = build(model, tokenizer, str(model.source), chat)
    serve(page, host, port, share=share)


# A Hugging Face Space.

APP = '''"""Serves the model in model/ with the package beside this file."""

from smol_scratch import load_pretrained, load_tokenizer
from smol_scratch.demo import build, serve

if __name__ == "__main__":
    model = load_pretrained("model", quiet=True)
    serve(build(model, load_tokenizer("model"), {source!r}, chat={chat}), host=None)
'''
README = """---
title: smol_scratch
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---

A page to try a small language model on. Weights: {source}.

To run it here: `pip install -r requirements.txt`, then `python app.py`. To put it on the hub:
`hf upload USER/NAME . --repo-type space`, after `hf repo create USER/NAME --repo-type space
--space-sdk gradio`.
"""


def write_space(model: SmolLM2, tokenizer: SmolLM2Tokenizer, folder: str | Path) -> Path:
    """Write a folder ready for a Hugging Face Space, all of it or nothing.

    The package's source goes along: the Space then runs the very code it was made with, and needs
    no address from which to install it. Weights are float32, as they are computed with.

    Args:
        model: ``model.source`` is what the page will say of it.
        tokenizer: its tokenizer.
        folder: must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder holds something.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder")
    source = str(getattr(model, "source", "unknown"))
    chat = getattr(model, "chat_template", None) is not None
    needed = importlib.metadata.requires("smol_scratch") or []
    names = [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    pins = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]
    # The index of PyTorch's builds without CUDA; its 2.x.y+cpu goes before the plain 2.x.y.
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *pins]
    lines.append(f"gradio=={gr.__version__}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    card = README.format(gradio=gr.__version__, python=python, source=source)
    with assets.written_whole(folder) as new:
        export_pretrained(model, new / "model", tokenizer=tokenizer)
        code = Path(__file__).parent
        shutil.copytree(
            code, new / "smol_scratch", ignore=shutil.ignore_patterns("__pycache__", "exercises")
        )
        if (licence := assets.ROOT / "LICENSE").is_file():
            shutil.copy(licence, new)
        (new / "app.py").write_text(APP.format(source=source, chat=chat), "utf-8")
        (new / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
        (new / "README.md").write_text(card, "utf-8")
    return folder
