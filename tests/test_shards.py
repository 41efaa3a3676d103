"""Tokens in files: whole, by position, after interruptions, and damaged in every way."""

import hashlib
import itertools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_scratch import assets, load_text, load_tokenizer, shards
from smol_scratch.data import DataLoaderLite, ngram_overlap, split
from smol_scratch.shards import TokenShards, write_shards


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@dataclass
class Letters:
    """A tokenizer whose tokens are code points."""

    vocab_size: int = 128
    fingerprint: str = "letters"
    eos_id: int = 0
    encoded: list[str] = field(default_factory=list)

    def encode(self, text):
        self.encoded.append(text)
        return [ord(character) for character in text]


TEXTS = ["one", "two words", "", "three of them", "x", "the last"]
FLAT = [ord(c) for text in TEXTS for c in f"{text}\0"]
STARTS = [0, *itertools.accumulate(len(text) + 1 for text in TEXTS)][:-1]


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "shards", TEXTS, Letters(), shard_tokens=10)
    return tmp_path / "shards"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FILE = {"bytes": 134, "sha256": "0"}
ENTRY = {
    "tokens": 3,
    "documents": 1,
    "pieces": 1,
    "source_sha256": "0",
    "files": {"shard-00000.npy": FILE, "documents-00000.npy": FILE},
}


def signed(folder, **changes):
    """Change an index, with a SHA-256 that fits: as another program's would be."""
    content = json.loads((folder / "index.json").read_bytes())["content"] | changes
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps({"content": content, "sha256": digest}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards", []),
        ("shards", {}),
        ("shards", [{}]),
        ("shards", [{"tokens": 3, "documents": 1, "pieces": 1, "source_sha256": "0"}]),
        ("shards", [{**ENTRY, "files": {"shard-00000.npy": ENTRY["files"]["shard-00000.npy"]}}]),
        ("shards", [{**ENTRY, "tokens": 0}]),
        ("shards", [{**ENTRY, "documents": -1}]),
        ("shards", [ENTRY, ENTRY]),
        ("complete", None),
        ("vocab_size", "128"),
        ("eos_id", -1),
        ("fingerprint", 5),
        ("format", None),
    ],
)
def test_an_index_of_another_program_is_named(folder, name, value):
    signed(folder, **{name: value})
    named = f"{name}=" if name != "format" else "format None"
    with pytest.raises(ValueError, match=f"{named}|holds no shard"):
        TokenShards(folder, "letters")


# A header of an old numpy's kind, which numpy reads with Python's tokenizer.
TORN = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u2', 'x\x7f: 0 } (".ljust(117) + b"\n" + bytes(28)


@pytest.mark.parametrize(
    "stored", [np.zeros(14, np.int64), np.zeros(3, np.uint16), b"no array", TORN]
)
def test_a_shard_that_holds_other_things_than_the_index_says_is_named(folder, stored):
    path = folder / "shard-00000.npy"
    path.write_bytes(stored) if isinstance(stored, bytes) else np.save(path, stored)
    index = json.loads((folder / "index.json").read_bytes())["content"]
    data = path.read_bytes()
    written = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    index["shards"][0]["files"][path.name] = written
    signed(folder, shards=index["shards"])
    with pytest.raises(assets.CorruptAssetError, match=r"shard-00000\.npy holds"):
        TokenShards(folder, "letters")[:3]


def test_shards_are_the_documents_with_an_end_each(folder):
    stored = TokenShards(folder, "letters")
    assert sorted(files(folder)) == sorted(
        [
            "index.json",
            *(f"{kind}-0000{i}.npy" for kind in ("shard", "documents") for i in range(3)),
        ]
    )
    assert len(stored) == len(FLAT)
    assert stored[:].tolist() == FLAT
    assert stored[:].dtype == np.uint16
    assert stored.documents.tolist() == STARTS
    assert (stored.eos_id, stored.vocab_size) == (0, 128)
    assert [stored[i] for i in (0, 5, -1)] == [FLAT[0], FLAT[5], FLAT[-1]]
    assert list(stored) == FLAT
    # Any program that reads NumPy's files can read them.
    assert np.load(folder / "shard-00000.npy").tolist() == FLAT[: len("one two words") + 1]


places = st.one_of(st.none(), st.integers(-2 * len(FLAT), 2 * len(FLAT)))


@settings(max_examples=50)
@given(places, places, st.integers(1, 45))
def test_every_slice_is_that_of_the_whole(tmp_path_factory, start, stop, shard_tokens):
    folder = tmp_path_factory.getbasetemp() / f"slices-{shard_tokens}"
    stored = write_shards(folder, TEXTS, Letters(), shard_tokens)
    assert stored[start:stop].tolist() == FLAT[start:stop]
    part = stored.part(4, 29)  # where a document begins, both
    assert part[start:stop].tolist() == FLAT[4:29][start:stop]
    assert part.documents.tolist() == [s - 4 for s in STARTS if 4 <= s < 29]
    assert part.part(3, 9)[:].tolist() == FLAT[7:13]


def test_wrong_places_are_refused(folder):
    stored = TokenShards(folder, "letters")
    for place in (len(FLAT), -len(FLAT) - 1):
        with pytest.raises(IndexError, match=f"token {place}"):
            stored[place]
    with pytest.raises(ValueError, match="a step of 2"):
        stored[::2]
    for start, stop in ((3, 3), (-1, 3), (0, len(FLAT) + 1)):
        with pytest.raises(ValueError, match="must lie between"):
            stored.part(start, stop)


def test_the_loader_and_the_split_take_shards_as_they_take_lists(folder):
    stored = TokenShards(folder, "letters")
    ours, theirs = DataLoaderLite(stored, 2, 4), DataLoaderLite(FLAT, 2, 4)
    for _ in range(12):
        for a, b in zip(ours.next_batch(), theirs.next_batch(), strict=True):
            assert torch.equal(a, b)
    assert ours.state_dict() == theirs.state_dict()
    parts = split(stored, 0.3)
    assert all(isinstance(part, TokenShards) for part in parts)
    assert [part[:].tolist() for part in parts] == list(split(FLAT, 0.3))
    assert ngram_overlap(*parts, 1) == ngram_overlap(*split(FLAT, 0.3), 1)


def test_only_what_is_read_is_opened(folder, monkeypatch):
    opened = []
    load = np.load
    monkeypatch.setattr(
        np, "load", lambda path, **how: opened.append(path.name) or load(path, **how)
    )
    stored = TokenShards(folder, "letters")
    assert opened == []
    assert isinstance(stored._map(1), np.memmap)
    _ = stored[0:3], stored[2:5]
    assert opened == ["shard-00001.npy", "shard-00000.npy"]


@pytest.mark.parametrize("broken_write", range(10))
def test_an_interrupted_writer_goes_on(tmp_path, folder, monkeypatch, broken_write):
    """Fail at every single write (two files and the index thrice, and the end), and go on."""
    whole, writes = files(folder), itertools.count()
    write = assets.write_atomically

    def fail_once(path, content):
        if next(writes) == broken_write:
            half = path.parent / f".{path.name}.ab12_xyz"  # a folder, as written_whole makes them
            half.mkdir()
            (half / "new").write_bytes(content[: len(content) // 2])
            raise OSError("the disk is full")
        write(path, content)

    monkeypatch.setattr(assets, "write_atomically", fail_once)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OSError, match="disk is full"):
        write_shards(other, TEXTS, Letters(), 10)
    with pytest.raises((assets.MissingAssetError, ValueError), match="write_shards"):
        TokenShards(other, "letters")
    stored = json.loads((other / "index.json").read_text("utf-8")) if broken_write > 2 else None
    tokenizer = Letters()
    write_shards(other, iter(TEXTS), tokenizer, 10)
    assert files(other) == whole
    done = sum(shard["documents"] for shard in stored["content"]["shards"]) if stored else 0
    assert tokenizer.encoded == TEXTS[done:]  # what is stored is not encoded again
    assert done == [0, 0, 0, 2, 2, 2, 4, 4, 4, 6][broken_write]


def test_writing_again_changes_nothing_and_more_documents_are_added(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    tokenizer = Letters()
    write_shards(folder, TEXTS, tokenizer, 10)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert tokenizer.encoded == []
    with pytest.raises(ValueError, match="document 7 has token 233"):
        write_shards(folder, [*TEXTS, "more", "é"], tokenizer, 10)
    assert write_shards(folder, [*TEXTS, "more"], tokenizer, 10)[:].tolist() == [
        *FLAT, *map(ord, "more"), 0
    ]  # fmt: skip


@pytest.mark.parametrize(
    "texts", [["won", *TEXTS[1:]], TEXTS[1:], TEXTS[:3], ["onetwo", " words", *TEXTS[2:]]]
)
def test_other_documents_are_refused(folder, texts):
    with pytest.raises(ValueError, match="holds other documents"):
        write_shards(folder, texts, Letters(), 10)


def test_another_tokenizer_is_refused(folder):
    with pytest.raises(ValueError, match="tokenizer letters, not numbers"):
        TokenShards(folder, "numbers")
    with pytest.raises(ValueError, match="fingerprint letters, not numbers"):
        write_shards(folder, TEXTS, Letters(fingerprint="numbers"), 10)
    with pytest.raises(ValueError, match="eos_id 0, not 1"):
        write_shards(folder, TEXTS, Letters(eos_id=1), 10)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-3] ^= 1
    elif how == "truncate":
        del content[-2:]
    elif how == "extend":
        content += b"\0\0"
    elif how == "empty":
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncate", "extend", "empty"])
def test_a_shard_of_another_size_is_refused_at_once(folder, how):
    damage(folder / "shard-00001.npy", how)
    with pytest.raises(assets.CorruptAssetError, match=r"shard-00001.npy has .* bytes instead of"):
        TokenShards(folder, "letters")


def test_a_changed_shard_is_refused_before_it_is_read(folder):
    damage(folder / "shard-00001.npy", "flip")
    stored = TokenShards(folder, "letters")
    assert stored[0:5].tolist() == FLAT[:5]
    with pytest.raises(assets.CorruptAssetError, match=r"shard-00001.npy is damaged: SHA-256"):
        stored[0:20]
    with pytest.raises(assets.CorruptAssetError, match=r"shard-00001.npy is damaged"):
        stored.verify()
    with pytest.raises(assets.CorruptAssetError, match=r"shard-00001.npy is damaged"):
        write_shards(folder, TEXTS, Letters(), 10)


def test_a_missing_or_swapped_shard_is_refused(folder):
    one, two = folder / "shard-00000.npy", folder / "shard-00001.npy"
    content = one.read_bytes(), two.read_bytes()
    assert len(content[0]) != len(content[1]) or content[0] != content[1]
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    with pytest.raises(assets.CorruptAssetError, match="shard-00000"):
        TokenShards(folder, "letters").verify()
    one.unlink()
    with pytest.raises(assets.MissingAssetError, match=r"shard-00000.npy is missing"):
        TokenShards(folder, "letters")


@pytest.mark.parametrize("how", ["flip", "truncate", "extend", "empty"])
def test_a_damaged_index_is_refused(folder, how):
    damage(folder / "index.json", how)
    with pytest.raises(assets.CorruptAssetError, match=r"index.json is damaged"):
        TokenShards(folder, "letters")


def test_a_changed_index_is_refused(folder):
    index = json.loads((folder / "index.json").read_text("utf-8"))
    index["content"]["shards"][0]["documents"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(assets.CorruptAssetError, match=r"index.json is damaged"):
        TokenShards(folder, "letters")


def test_an_index_of_another_format_is_refused(folder):
    content = json.loads((folder / "index.json").read_text("utf-8"))["content"]
    shards._write_index(folder, content | {"format": "version 0"})
    with pytest.raises(ValueError, match="format 'version 0'"):
        TokenShards(folder, "letters")


def test_no_shards_at_all(tmp_path):
    with pytest.raises(assets.MissingAssetError, match="write_shards makes it"):
        TokenShards(tmp_path, "letters")
    with pytest.raises(ValueError, match="no documents"):
        write_shards(tmp_path / "empty", [], Letters())
    with pytest.raises(ValueError, match="one text"):
        write_shards(tmp_path / "text", "one text", Letters())
    with pytest.raises(ValueError, match="shard_tokens=0"):
        write_shards(tmp_path / "zero", TEXTS, Letters(), 0)


@pytest.mark.parametrize(
    ("text", "tokenizer", "message"),
    [
        ("é", Letters(), "document 1 has token 233: must lie between 0 and 127"),
        ("", Letters(vocab_size=65_537), "vocabulary of 65,537.*16-bit"),
        ("\uffff\U00010000", Letters(vocab_size=65_536), "document 1 has token 65536"),
        ("a\0b", Letters(), "document 1 has the end-of-text token 0 within"),
    ],
)
def test_tokens_that_cannot_be_stored_are_refused(tmp_path, text, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path, ["fine", text], tokenizer)


def test_a_negative_token_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Letters, "encode", lambda self, text: [5, -1])
    with pytest.raises(ValueError, match="document 0 has token -1"):
        write_shards(tmp_path, ["fine"], Letters())


def test_the_largest_token_fits(tmp_path):
    stored = write_shards(tmp_path, ["\uffff"], Letters(vocab_size=65_536))
    assert stored[:].tolist() == [65_535, 0]


@settings(max_examples=25)
@given(texts=st.lists(st.text("ab \n", max_size=8), min_size=1, max_size=8), at=st.integers(1, 20))
def test_any_documents_come_back(tmp_path_factory, texts, at):
    stored = write_shards(tmp_path_factory.mktemp("any"), texts, Letters(), at)
    ends = [*stored.documents[1:].tolist(), len(stored)]
    found = [stored[a : b - 1] for a, b in zip(stored.documents.tolist(), ends, strict=True)]
    assert ["".join(map(chr, document)) for document in found] == texts


def test_real_documents_with_the_real_tokenizer(tmp_path, tokenizer):
    texts = ["To be, or not to be", load_text()[:2000]]
    stored = write_shards(tmp_path, texts, tokenizer)
    assert tokenizer.decode(stored[:]) == "".join(f"{text}<|endoftext|>" for text in texts)
    assert stored.fingerprint == tokenizer.fingerprint
