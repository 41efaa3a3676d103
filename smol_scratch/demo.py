"""A page to try a model on: text streams, each token coloured by the probability it had.

The page is served to this machine alone and asks nothing of any other, unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import io
import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch

from smol_scratch.evaluation import mean_loss
from smol_scratch.generation import Step, chat_prompt, stop_tokens, stream, text_pieces
from smol_scratch.hub import load_pretrained, load_quantized
from smol_scratch.model import SmolLM2
from smol_scratch.sampling import Sampling
from smol_scratch.tokenizer import SmolLM2Tokenizer, tokenizer_for
from smol_scratch.wrappers import unwrapped

SAMPLING = Sampling()
MAX_PROMPT = 1024  # tokens of a text or a question; a conversation may fill the context
MAX_TOKENS = 400  # new tokens
AT_ONCE, IN_LINE = 2, 32  # visitors whose text is made at the same time, and with those who wait
BETWEEN_UPDATES = 0.04  # seconds; the eye sees no more

CHAT, CONTINUE = "Chat", "Continue a text"
# Each kind of weights is shown at what it was trained for.
QUESTIONS = ["Give me three tips for sleeping well.", "Why is the sky blue?",
             "What is the capital of France?", "Who was William Shakespeare?"]  # fmt: skip
CUES = ["First Citizen:\n", "ROMEO:\n", "KING RICHARD II:\n", "To be, or not to be"]
OPENINGS = ["Once upon a time, there was a little girl who", "The capital of France is",
            "The sky is blue because", "To make bread, you need flour,"]  # fmt: skip

# What is known better decides between the two: a passage of a play, and one of plain prose.
PLAY = """First Citizen:
We are accounted poor citizens, the patricians good.
What authority surfeits on would relieve us."""
PROSE = """Water rises from the sea as vapour, cools high above the ground and falls again as rain,
which the rivers carry back to the sea."""
BUSY = "Your text is still being written: wait for its end, or press Stop first."

# Below each bound the next level begins.
BOUNDS = (0.9, 0.5, 0.2, 0.05)
LEGEND = ("≥ 90%", "≥ 50%", "≥ 20%", "≥ 5%", "< 5%")

TITLE = "Watch a small language model write"
PURPOSE = """The model writes one token at a time: a word, part of a word, or a punctuation mark.
Each is coloured by the probability that the model gave it, so you see where it was sure and where
chance decided."""
# Every level has an underline of its own, for who cannot tell the colours apart. Text on the
# strongest colour keeps a contrast above 5 : 1, light and dark.
STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#head h1 { font-size: 1.5rem; font-weight: 600; margin: 0; }
#head p { margin: .35rem 0 0; max-width: 46rem; }
#head .weights, #status, #detail, .legend { font-size: .875rem; }
.gradio-container .html-container { padding: 0; }
.gradio-container span:is(.min_value, .max_value) { color: inherit; }
#status p, #detail p, .legend { margin: .25rem 0; }
#status { min-height: 1.75rem; }
#status .wrong { font-weight: 600; color: #a3231a; }
.dark #status .wrong { color: #ffb4a9; }
#detail { min-height: 1.75rem; white-space: pre-wrap; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 11rem; padding: .75rem;
  max-height: max(16rem, 60vh); overflow-y: auto; line-height: 1.7; border-radius: 6px;
  border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); color: var(--body-text-color); }
.text:empty::before { content: "The text will stand here."; opacity: .75; }
.text:focus-visible, .text span:focus { outline: 2px solid #2563eb; outline-offset: 1px; }
.dark .text:focus-visible, .dark .text span:focus { outline-color: #93c5fd; }
.given { font-weight: 600; }
.legend span { display: inline-block; margin-right: .5rem; padding: 0 .3rem; }
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
OUTPUT = """<div class="text" tabindex="0" role="group" aria-label="The text, token by token: \
arrow keys go from one to the next">${{value}}</div>
<p class="legend">Probability of each token: {}</p>""".format(
    " ".join(f'<span class="p{i}">{bounds}</span>' for i, bounds in enumerate(LEGEND))
)
DETAIL = """<p aria-live="polite">Point at a token, tap it, or go there with the arrow keys: its \
probability, and what else was probable.</p>"""
# What is pointed at, tapped or focused is told below the text. While a text grows its end stays in
# sight, unless the visitor has scrolled away from it.
ON_LOAD = """
const box = element.querySelector('.text');
const tell = (event) => {
  const token = event.target.closest('[data-said]');
  if (token) document.querySelector('#detail p').textContent = token.dataset.said;
};
for (const event of ['mouseover', 'click', 'focusin']) box.addEventListener(event, tell);
box.addEventListener('keydown', (event) => {
  const tokens = [...box.querySelectorAll('[data-said]')];
  const at = tokens.indexOf(document.activeElement), last = tokens.length - 1;
  const next = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last}[event.key];
  if (next === undefined || last < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  tokens[Math.min(Math.max(next, 0), last)].focus();
});
let atEnd = true;
box.addEventListener('scroll', () => {
  atEnd = box.scrollTop + box.clientHeight > box.scrollHeight - 30;
});
watch('value', () => { if (atEnd) box.scrollTop = box.scrollHeight; });
"""


def escaped(text: str) -> str:
    """Return text as HTML that shows it, safe in gradio's templates too (``{{…}}``, ``${…}``)."""
    return html.escape(text).translate({ord(c): f"&#{ord(c)};" for c in "{}$@`\\"})


def token_span(tokenizer: SmolLM2Tokenizer, text: str, steps: Sequence[Step]) -> str:
    """Return a piece of text as HTML, coloured, with what the model thought in ``data-said``.

    Args:
        tokenizer: to name the tokens.
        text: whole characters.
        steps: the tokens that they were made of; more than one where a token ends in the middle
            of a character. The piece's probability is then the product of theirs.
    """
    said = "\n".join(_thought(tokenizer, step) for step in steps)
    probability = math.prod(step.probability for step in steps)
    kind = sum(probability < bound for bound in BOUNDS)  # 0 for nearly certain, 4 for a surprise
    return f'<span class="p{kind}" tabindex="-1" data-said="{escaped(said)}">{escaped(text)}</span>'


def _thought(tokenizer: SmolLM2Tokenizer, step: Step) -> str:
    """Name a token and the most probable of the others, each with its probability."""
    first = step.probability >= step.runner_up_probability
    chosen, other = (
        json.dumps(tokenizer.decode([token]), ensure_ascii=False)  # a newline shows as \n
        for token in (step.token, step.runner_up)
    )
    return (
        f"{chosen} {step.probability:.1%}; {'next' if first else 'most probable'}: "
        f"{other} {step.runner_up_probability:.1%}"
    )


# What is asked of the page. It may come from anybody, in any shape; what cannot be used is named.


class Talk(NamedTuple):
    """A conversation so far.

    Attributes:
        turns: its messages, as ``chat_prompt`` takes them.
        shown: the same as HTML.
    """

    turns: tuple[dict[str, str], ...] = ()
    shown: str = ""


def checked_prompt(prompt: object) -> str:
    """Return a prompt that is one.

    Raises:
        ValueError: when it is no text, empty or very long, in words for the page.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("The prompt is empty: type something or choose an example.")
    if len(prompt) > 16 * MAX_PROMPT:  # before the tokenizer works on megabytes
        raise ValueError(f"The prompt has {len(prompt):,} characters: please shorten it.")
    return prompt


def checked_sampling(tokens: Any, temperature: Any, top_k: Any, top_p: Any, most: int) -> Sampling:
    """Return how a text is to be drawn.

    Raises:
        ValueError: for a value that cannot be used, by its label on the page.
    """
    try:
        sampling = Sampling(tokens, temperature, top_k, top_p)
    except ValueError as error:
        name, _, rest = str(error).partition("=")
        raise ValueError(f"{name.replace('_', '-').capitalize()} {rest}.") from error
    if tokens > most:
        raise ValueError(f"Tokens {tokens}: must be at most {most}.")
    return sampling


def checked_seed(seed: object, hold: object) -> int:
    """Return the seed that is held, else a new one.

    Raises:
        ValueError: when the one to hold is no seed.
    """
    if not hold:
        return secrets.randbelow(1_000_000)  # six digits are quickly copied
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"Seed {seed!r:.60}: must be a whole number from 0 to {2**32 - 1}.")
    return seed


def prompt_tokens(
    tokenizer: SmolLM2Tokenizer, prompt: str, talk: Talk | None, block_size: int
) -> list[int]:
    """Return the tokens of a text, or of a question after all that was said.

    Args:
        tokenizer: encodes it.
        prompt: the text, or the question.
        talk: what was said; None for a text.
        block_size: of the model; one token's place is left for what is new.

    Raises:
        ValueError: when there are too many, in words for the page.
    """
    count, longest = len(ids := tokenizer.encode(prompt)), min(MAX_PROMPT, block_size - 1)
    if count > longest:
        raise ValueError(
            f"The prompt has {count:,} tokens, and {longest:,} is the most: please shorten it."
        )
    if talk is None:
        return ids
    ids = chat_prompt(tokenizer, [*talk.turns, {"role": "user", "content": prompt}])
    if len(ids) >= block_size:
        raise ValueError(
            f"With this question the conversation has {len(ids):,} tokens, and the model reads "
            f"{block_size - 1:,} at most: please shorten the question or begin a new conversation."
        )
    return ids


def openings(model: SmolLM2, tokenizer: SmolLM2Tokenizer) -> list[str]:
    """Return beginnings that suit weights: of plays, when plays are what they know best."""
    model = unwrapped(model)
    play, prose = (
        mean_loss(model, torch.tensor([tokenizer.encode(text)[: model.config.block_size]]))
        for text in (PLAY, PROSE)
    )
    return CUES if play < prose else OPENINGS


# Writing.


class Written(NamedTuple):
    """A text as far as it has come.

    Attributes:
        shown: as HTML.
        text: the same as text.
        speed: how many tokens, and how fast they come.
        ended: why there is no more, in words for the page; empty while it goes on.
    """

    shown: str
    text: str
    speed: str
    ended: str = ""


ENDINGS = {
    "stop token": "the model ended here",
    "length": "length reached",
    "context": "the context is full",
}


def write(
    model: SmolLM2, tokenizer: SmolLM2Tokenizer, ids: list[int], how: Sampling, seed: int
) -> Iterator[Written]:
    """Continue a prompt.

    Args:
        model: whose weights speak.
        tokenizer: what it has no token for is never drawn.
        ids: the prompt.
        how: to draw.
        seed: decides all chance.

    Yields:
        The text so far, as often as it can be seen; at the end all of it, with the reason.
    """
    model, began = unwrapped(model), time.perf_counter()
    steps = stream(
        model,
        ids,
        how.tokens,
        stop=stop_tokens(tokenizer),
        generator=torch.Generator(next(model.parameters()).device).manual_seed(seed),
        vocab_size=min(tokenizer.vocab_size, model.config.vocab_size),
        **how.filters(),
    )
    times: list[float] = []  # when each token was there
    ended = None

    def visible() -> Iterator[Step]:
        nonlocal ended
        for step in steps:
            ended = step.ended
            if ended != "stop token":
                times.append(time.perf_counter())
                yield step

    shown, text, last = "", "", began
    for piece, made_of in text_pieces(tokenizer, visible()):
        if ended:  # perhaps in the middle of a character
            piece = piece.rstrip("\N{REPLACEMENT CHARACTER}")
        shown, text = shown + token_span(tokenizer, piece, made_of), text + piece
        if times[-1] - last >= BETWEEN_UPDATES:
            last = times[-1]
            yield Written(shown, text, speed(began, times))
    yield Written(shown, text, speed(began, times), ENDINGS[ended or "length"])


def speed(began: float, times: Sequence[float]) -> str:
    """Say how fast tokens came, from the times at which each was there."""
    if not times:
        return "0 tokens"
    took = times[-1] - times[0]
    rate = f", then {(len(times) - 1) / took:.1f} tokens per second" if took > 0 else ""
    plural = "s" if len(times) > 1 else ""
    return f"{len(times)} token{plural}: the first after {times[0] - began:.2f} s{rate}"


# The page.


class Page(gr.Blocks):
    """Refuses a request of a wrong form in one line, where gradio would print a traceback."""

    async def preprocess_data(self, *request: Any, **options: Any) -> list[Any]:
        """Read the fields of a request."""
        try:
            return await super().preprocess_data(*request, **options)
        except ValueError as error:
            raise gr.Error(str(error).splitlines()[0], print_exception=False) from error


def build(model: SmolLM2, tokenizer: SmolLM2Tokenizer, source: str) -> gr.Blocks:
    """Return the page. With weights that have a chat template it holds conversations too.

    Args:
        model: whose weights speak.
        tokenizer: its tokenizer.
        source: which weights these are, shown on the page.
    """
    model = unwrapped(model)
    block_size, V = model.config.block_size, model.config.vocab_size
    most = min(MAX_TOKENS, block_size - 1)
    chat = getattr(model, "chat_template", None) is not None
    forms = [CHAT, CONTINUE] if chat else [CONTINUE]
    # Who writes and who waits, in order of arrival, each with the wish to stop. Only the server's
    # event loop comes here, so nothing needs a lock.
    line: dict[Any, asyncio.Event] = {}

    async def speak(
        prompt: Any, form: Any, talk: Talk, tokens: Any, temperature: Any, top_k: Any, top_p: Any,
        seed: Any, hold: Any, request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:  # fmt: skip
        """Stream text, status, prompt, seed and conversation; all of it is one visitor's own."""
        me = request.session_hash or object()
        if me in line and not line[me].is_set():
            gr.Warning(BUSY)
            yield (gr.skip(),) * 5
            return
        while me in line:  # what was stopped ends with its next token
            await asyncio.sleep(BETWEEN_UPDATES)
        line[me] = stop = asyncio.Event()
        asks = form == CHAT
        talk = talk if asks else Talk()
        try:
            if len(line) > IN_LINE:
                raise ValueError(f"{IN_LINE} visitors are here already: please try again later.")
            if form not in forms:
                raise ValueError(f"{form!r:.60}: must be one of {', '.join(forms)}.")
            prompt = checked_prompt(prompt)
            top_k = None if top_k == V else top_k  # the page's number has no way to be empty
            how = checked_sampling(tokens, temperature, top_k, top_p, most)
            seed = checked_seed(seed, hold)
            ids = prompt_tokens(tokenizer, prompt, talk if asks else None, block_size)
            before = talk.shown + ("\n\n" if talk.shown else "")
            before += f'<span class="given">{escaped(prompt)}</span>' + ("\n\n" if asks else "")
            yield before, said("reading the prompt"), "" if asks else gr.skip(), seed, talk
            while (ahead := list(line).index(me) + 1 - AT_ONCE) > 0 and not stop.is_set():
                yield before, said(f"waiting: {ahead} before you"), *(gr.skip(),) * 3
                await asyncio.sleep(5 * BETWEEN_UPDATES)
            written, new = write(model, tokenizer, ids, how, seed), Written("", "", "0 tokens")
            while not (new.ended or stop.is_set()):
                new = await asyncio.to_thread(next, written)
                yield before + new.shown, said(new.speed), *(gr.skip(),) * 3
            if asks:
                turns = ({"role": "user", "content": prompt},
                         {"role": "assistant", "content": new.text})  # fmt: skip
                talk = Talk((*talk.turns, *turns), before + new.shown)
            status = said(f"{new.speed}; {new.ended or 'stopped'}; seed {seed}")
            yield before + new.shown, status, gr.skip(), gr.skip(), talk
        except ValueError as error:
            wrong = f'<p class="wrong" role="alert">{escaped(str(error))}</p>'
            yield talk.shown, wrong, gr.skip(), gr.skip(), talk
        finally:
            del line[me]

    async def stop_writing(request: gr.Request) -> None:
        if request.session_hash in line:
            line[request.session_hash].set()

    async def begin_anew(request: gr.Request) -> tuple[Any, ...]:
        if request.session_hash in line:
            gr.Warning(BUSY)
            return (gr.skip(),) * 3
        return "", "", Talk()

    examples = QUESTIONS if chat else openings(model, tokenizer)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with Page(title=f"smol_scratch: {TITLE.lower()}", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>{PURPOSE}</p><p class='weights'>Weights: {escaped(source)}</p>",
            elem_id="head",
        )
        talk = gr.State(Talk())
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                prompt = gr.Textbox(examples[0], label="Prompt", lines=3, max_lines=8)
                form = gr.Radio(forms, value=forms[0], label="What to do with it", visible=chat)
                gr.Examples(
                    [[example, forms[0]] for example in examples],
                    [prompt, form],
                    example_labels=[example.strip() for example in examples],
                )
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", min_width=100)
                    halt = gr.Button("Stop", min_width=100)
                    anew = gr.Button("New conversation", min_width=100, visible=chat)
                status = gr.HTML(elem_id="status")
                text = gr.HTML(html_template=OUTPUT, js_on_load=ON_LOAD)
                gr.HTML(DETAIL, elem_id="detail")
            with gr.Column(scale=1, min_width=240):
                settings = [
                    gr.Slider(1, most, min(SAMPLING.tokens, most), step=1, label="Tokens",
                              info="at most"),
                    gr.Slider(0, 2, SAMPLING.temperature, step=0.05, label="Temperature",
                              info="0: most probable"),
                    gr.Number(SAMPLING.top_k or V, label="Top-k",
                              info=f"so many most probable tokens; {V}: all"),
                    gr.Slider(0.05, 1, SAMPLING.top_p, step=0.05, label="Top-p",
                              info="1: all tokens"),
                ]  # fmt: skip
                seed = gr.Number(0, label="Seed", info="the same seed gives the same text")
                hold = gr.Checkbox(label="Hold the seed", info="otherwise each text has a new one")
        gr.on(
            [go.click, prompt.submit],
            speak,
            [prompt, form, talk, *settings, seed, hold],
            [text, status, prompt, seed, talk],
            api_name="generate",
            trigger_mode="multiple",  # a second press is answered, not ignored
            concurrency_limit=None,  # the line is our own
            show_progress="hidden",
            preprocess=False,  # whatever comes is checked here, and refused in one line
        )
        halt.click(stop_writing, queue=False, api_visibility="private")
        anew.click(
            begin_anew, None, [text, status, talk], show_progress="hidden", api_visibility="private"
        )
    return page


def said(status: str) -> str:
    """Return a status as HTML."""
    return f"<p>{escaped(status)}</p>"


# Serving it.


def check_address(host: str, port: int | None) -> None:
    """See that the page can be served there, before anything is loaded.

    Raises:
        ValueError: for a host that is not this machine's, or a port that is taken, by their names.
    """
    try:
        family, kind, *_, where = socket.getaddrinfo(
            host.strip("[]"), port or 0, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            if os.name == "posix":  # as the server will do: a port just left counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if port and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ValueError(
                f"port={port}: cannot be used ({error.strerror}); name another, or leave it out"
            ) from error
        raise ValueError(
            f"host={host!r:.60}: is no address of this machine ({error.strerror or error}); "
            "127.0.0.1 is for this machine alone, 0.0.0.0 lets others in"
        ) from error


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
        share: ask gradio's servers for a public address too; without a network there is none.
        block: return only when the server is stopped with Ctrl-C.
    """
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    with contextlib.redirect_stdout(io.StringIO()):  # gradio's own lines; ours follow
        _, address, shared = page.launch(
            server_name=f"[{host}]" if host and host.count(":") > 1 and host[0] != "[" else host,
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
    if share and not shared:
        print("--share: gradio's servers cannot be reached, so there is no public address",
              file=sys.stderr)  # fmt: skip
    if block:
        print(f"the page is at {shared or address}; Ctrl-C stops it", flush=True)
        try:
            while page.is_running:  # gradio's own wait takes Ctrl-C for an end like any other
                time.sleep(BETWEEN_UPDATES)
        finally:
            page.close(verbose=False)
    return address


def launch(
    ckpt: str | Path | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
    quantize: str | None = None,
) -> None:
    """Load a model and serve its page until Ctrl-C.

    Args:
        ckpt: as ``load_pretrained`` takes it; None for the best weights at hand.
        host: as in ``serve``, as are the others.
        port: likewise.
        share: likewise.
        quantize: "int8" or "int4" keeps the weights in so many bits.

    Raises:
        ValueError: when the page cannot be served there.
    """
    check_address(host, port)
    model = load_pretrained(ckpt) if quantize is None else load_quantized(ckpt, quantize)
    tokenizer = tokenizer_for(ckpt, model.config.vocab_size)
    serve(build(model, tokenizer, str(model.source)), host, port, share=share)
