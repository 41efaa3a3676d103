"""Weights and tokenizer that speak on a terminal: a text continued, a question, a conversation."""

from __future__ import annotations

import contextlib
import sys

import torch

from smol_scratch import generation
from smol_scratch.hub import load_pretrained
from smol_scratch.sampling import Sampling
from smol_scratch.tokenizer import tokenizer_for


class Speaker:
    """Weights and tokenizer that write to standard output."""

    def __init__(
        self,
        ckpt: str | None,
        how: Sampling,
        seed: int | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> None:
        """Load, and say what was loaded.

        Args:
            ckpt: as ``load_pretrained`` takes it.
            how: tokens are drawn.
            seed: of the draws; None begins anywhere.
            dtype: of the weights.
            compile: compile the model.
        """
        self.ckpt, self.how = ckpt, how
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.model = load_pretrained(ckpt, quiet=True)
        self.tokenizer = tokenizer_for(ckpt, self.model.config.vocab_size)
        print(f"weights: {self.model.source}", file=sys.stderr)
        self.model.to(getattr(torch, dtype))
        self.decoder = None
        if compile:
            from smol_scratch.fast_decode import CompiledDecoder

            self.decoder = CompiledDecoder(self.model)

    def continue_or_answer(self, asked: str, chat: str) -> None:
        """Write what follows on a prompt.

        Args:
            asked: the prompt.
            chat: whether it is put into the chat template: yes, no, or auto: where there is one.
        """
        if chat == "yes" or (chat == "auto" and self.model.chat_template is not None):
            ids = generation.chat_prompt(self.tokenizer, asked)
        else:
            ids = self.tokenizer.encode(asked)
            if chat == "auto":
                print("these weights have no chat template: they continue text", file=sys.stderr)
            print(asked, end="")
        self.speak(ids)

    def converse(self, system: str | None) -> None:
        """Answer line after line of standard input, until an empty one.

        Args:
            system: a message before the first turn, in place of the template's own.

        Raises:
            ValueError: for weights without a chat template, and when the context is full.
        """
        if self.model.chat_template is None:
            raise ValueError(
                f"--ckpt {self.ckpt}: these weights have no chat template, they only continue "
                "text; use generate"
            )
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (arrow keys in input)
        turns = [{"role": "system", "content": system}] if system else []
        while True:
            try:
                asked = input("> ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
            except EOFError:
                asked = ""
            if not asked.strip():
                return
            turns.append({"role": "user", "content": asked})
            ids = generation.chat_prompt(self.tokenizer, turns)
            if len(ids) >= self.model.config.block_size:
                raise ValueError(
                    f"this conversation fills the context of {self.model.config.block_size:,} "
                    "tokens; begin a new one"
                )
            turns.append({"role": "assistant", "content": self.speak(ids)})

    def speak(self, ids: list[int]) -> str:
        """Write the continuation as it is made, and return it."""
        pieces = generation.stream_text(
            self.model,
            self.tokenizer,
            ids,
            self.how.tokens,
            stop=generation.stop_tokens(self.tokenizer),
            generator=self.generator,
            decoder=self.decoder,
            **self.how.filters(),
        )
        said = []
        for piece in pieces:
            # The last character may be cut where the length is reached.
            shown = piece.removesuffix("\N{REPLACEMENT CHARACTER}") if pieces.ended else piece
            print(shown, end="", flush=True)
            said.append(shown)
        print(flush=True)
        if pieces.ended == "context":
            length = self.model.config.block_size
            print(f"the context of {length:,} tokens is full: the text ends here", file=sys.stderr)
        return "".join(said)
