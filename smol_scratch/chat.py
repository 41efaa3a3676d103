"""A conversation becomes tokens: a chat template writes it, and nobody's words can forge a turn.

The special tokens that the template wrote become tokens; the same characters in what somebody said
stay characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from smol_scratch.templates import TooMuchError, plain, render_chat, within_time
from smol_scratch.tokenizer import SmolLM2Tokenizer

Change = Callable[[str], str]


def encode_chat(
    tokenizer: SmolLM2Tokenizer,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    **variables: Any,
) -> list[int]:
    """Return the tokens of a conversation as its template writes it.

    For messages without special tokens in them, these are ``tokenizer.encode`` of
    ``render_chat``. In what is said (messages and variables, not what the tokenizer itself calls
    ``bos_token`` and so on), a special token is encoded as the characters that it is written with,
    and so is any other added token that the template names.

    How: each character with which a special token could begin is exchanged for one that stands for
    it alone; what of the text is exchanged was said by somebody, the rest is the template's. Where
    the template reads a token in a message itself, as it does to cut reasoning out of an
    assistant's, that message keeps it.

    Raises:
        ValueError: as ``render_chat``; for a special token in a message that the template reads
            and passes on, unless the assistant said it.
        TypeError: as ``render_chat``.
    """
    with within_time():
        said = _Said(tokenizer, template, messages, variables)
        text = said.written([str] * len(said.strings))
        added = tokenizer.backend.get_added_tokens_decoder().values()
        control = [
            token.content
            for token in added
            if token.special or (token.content in template and not token.content.isspace())
        ]
        marks = _Marks(control, text + template)
        found = _marked(said, marks, text, [marks.strong] * len(said.strings))
        if found is None:
            found = _marked(said, marks, text, _ways(said, marks, text))
        if found is None or found == text:
            return tokenizer.encode(text)
        return _encode_marked(tokenizer, marks, found, control)


class _Said:
    """What was said in a conversation, string by string.

    Attributes:
        strings: each of them.
        by_assistant: for each whether the assistant said it.
    """

    def __init__(
        self,
        tokenizer: SmolLM2Tokenizer,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
    ) -> None:
        self.template, self.names = template, tokenizer.names
        self.messages, self.variables = plain(list(messages)), plain(variables)
        self.now = datetime.now()  # the same, however often it is written
        self.strings: list[str] = []
        self.by_assistant: list[bool] = []
        for message in self.messages:
            _each(message, self._note)
            missing = len(self.strings) - len(self.by_assistant)
            self.by_assistant += [message.get("role") == "assistant"] * missing
        _each(self.variables, self._note)
        self.by_assistant += [False] * (len(self.strings) - len(self.by_assistant))

    def _note(self, string: str) -> str:
        self.strings.append(string)
        return string

    def written(self, ways: Sequence[Change]) -> str:
        """Return what the template writes when each string is changed in its way."""
        left = iter(ways)
        messages, variables = (
            _each(part, lambda string: next(left)(string))
            for part in (self.messages, self.variables)
        )
        return render_chat(self.template, messages, now=self.now, **self.names | variables)


def _each(value: Any, change: Change) -> Any:
    """Return JSON data with each of its strings changed, in a fixed order; roles are no words."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            name: item if name == "role" else _each(item, change) for name, item in value.items()
        }
    return [_each(item, change) for item in value] if isinstance(value, list) else value


def _marked(said: _Said, marks: _Marks, text: str, ways: Sequence[Change]) -> str | None:
    """Return the text with the marks in it; None where they make it another text."""
    try:
        found = marks.unescaped(said.written(ways))
    except TooMuchError:
        raise
    except ValueError:
        return None
    return found if marks.undone(found) == text else None


def _ways(said: _Said, marks: _Marks, text: str) -> list[Change]:
    """Return for each string the strongest mark that the template does not stumble on."""
    ways: list[Change] = [str] * len(said.strings)
    for i, string in enumerate(said.strings):
        for way in (marks.strong, marks.whole, str):
            ways[i] = way
            if _marked(said, marks, text, ways) is not None:
                break
        if way is str and not said.by_assistant[i] and marks.whole(string) != string:
            without = said.written([*ways[:i], marks.removed, *ways[i + 1 :]])
            if marks.count(without) != marks.count(said.written(ways)):
                raise ValueError(
                    f"{marks.token_in(string)!r} is a special token that the chat template reads "
                    "in what is said, and passes on; leave it out"
                )
    return ways


class _Marks:
    """Characters that stand for those with which a special token begins.

    They are as many, so that a text keeps its length, and signs that can be printed, so that no
    way of showing a string shows them otherwise.
    """

    def __init__(self, control: Sequence[str], text: str) -> None:
        signs = filter(str.isprintable, map(chr, range(0x2A00, 0xD7A4)))  # mathematics first
        free = (sign for sign in signs if sign not in text and _escape(sign) not in text)
        self.marks = {token[0]: next(free) for token in dict.fromkeys(control) if token}
        self.there = str.maketrans(dict(self.marks))
        self.back = str.maketrans({mark: first for first, mark in self.marks.items()})
        longest_first = sorted(control, key=len, reverse=True)
        self.tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def strong(self, text: str) -> str:
        """Exchange each character with which a special token could begin."""
        return text.translate(self.there)

    def whole(self, text: str) -> str:
        """Exchange the first character of each special token."""
        return self.tokens.sub(lambda found: self.marks[found[0][0]] + found[0][1:], text)

    def removed(self, text: str) -> str:
        return self.tokens.sub("", text)

    def unescaped(self, text: str) -> str:
        """Undo what JSON in ASCII makes of the marks."""
        for mark in self.marks.values():
            text = text.replace(_escape(mark), mark)
        return text

    def undone(self, text: str) -> str:
        return text.translate(self.back)

    def count(self, text: str) -> int:
        return len(self.tokens.findall(text))

    def token_in(self, text: str) -> str:
        found = self.tokens.search(text)
        return found[0] if found else ""


def _escape(sign: str) -> str:
    return json.dumps(sign)[1:-1]


def _encode_marked(
    tokenizer: SmolLM2Tokenizer, marks: _Marks, text: str, control: Sequence[str]
) -> list[int]:
    """Encode a text whose marked characters are nobody's special tokens."""
    added = tokenizer.backend.get_added_tokens_decoder()
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    ids: list[int] = []
    at = 0
    for number, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        if number in added:  # with the spaces beside it that it takes along
            ids += tokenizer.encode(marks.undone(text[at:start]), as_text=control)
            ids.append(number)
            at = end
    return ids + tokenizer.encode(marks.undone(text[at:]), as_text=control)
