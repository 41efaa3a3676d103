"""Weights and tokenizer that speak on a terminal: a text continued, a question, a conversation."""

from __future__ import annotations

import contextlib
import sys

import torch

from smol_scratch import generation, terminal
from smol_scratch.hub import load_config, load_pretrained, load_quantized
from smol_scratch.sampling import Sampling
from smol_scratch.tokenizer import tokenizer_for

# Bytes of a prompt that fits into any context worth asking: a token has one at least. To look at
# the configuration first costs half a second where it is in a .gguf file.
SURELY_SHORT = 256


class Speaker:
    """Weights and tokenizer that write to standard output."""

    def __init__(
        self,
        ckpt: str | None,
        how: Sampling,
        seed: int | None = None,
        dtype: str = "float32",
        compile: bool = False,
        prompt: str = "",
        quantize: str | None = None,
    ) -> None:
        """Load, and say what was loaded.

        Args:
            ckpt: as ``load_pretrained`` takes it.
            how: tokens are drawn.
            seed: of the draws; None begins anywhere.
            dtype: of the weights.
            compile: compile the model.
            prompt: what will be asked; one that is too long is refused before the weights are read.
            quantize: "int8" or "int4" keeps the weights in so many bits.

        Raises:
            ValueError, OSError: for weights that cannot be used, and a prompt that is too long.
        """
        self.ckpt, self.how = ckpt, how
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        if len(prompt.encode()) >= SURELY_SHORT:
            config = load_config(ckpt)
            count = len(tokenizer_for(ckpt, config.vocab_size).encode(prompt))
            if count >= config.block_size:
                raise ValueError(
                    f"--prompt: has {count:,} tokens, and the model takes {config.block_size:,} in "
                    "all, the new ones included; shorten it"
                )
        self.model = (
            load_pretrained(ckpt, quiet=True)
            if quantize is None
            else load_quantized(ckpt, quantize, quiet=True)
        )
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
        """Answer line after line of standard input, until an empty one; Ctrl-C stops an answer.

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
        context = self.model.config.block_size
        turns = [] if system is None else [{"role": "system", "content": system}]
        while True:
            asked = terminal.ask()
            if not asked.strip():
                return
            turns.append({"role": "user", "content": asked})
            ids = generation.chat_prompt(self.tokenizer, turns)
            if len(ids) >= context:
                raise ValueError(
                    f"this conversation fills the context of {context:,} tokens; begin a new one"
                )
            answer = self.speak(ids, stoppable=True)
            turns.append({"role": "assistant", "content": answer})
            used = len(ids) + len(self.tokenizer.encode(answer))
            if used > context * 3 // 4:
                print(f"{used:,} of the context's {context:,} tokens are used", file=sys.stderr)

    def speak(self, ids: list[int], stoppable: bool = False) -> str:
        """Write the continuation as it is made, and return it.

        Args:
            ids: the prompt.
            stoppable: Ctrl-C ends the continuation, not the program.
        """
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
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
                said.append(piece)
        except KeyboardInterrupt:
            if not stoppable:
                raise
        print(flush=True)
        if pieces.ended == "context":
            length = self.model.config.block_size
            print(f"the context of {length:,} tokens is full: the text ends here", file=sys.stderr)
        return "".join(said)
