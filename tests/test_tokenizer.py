"""SmolLM2's tokenizer: the real one, from any source, with nothing lost without a word."""

from __future__ import annotations

import json
import logging
import random
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from smol_scratch import SmolLM2, SmolLM2Config, assets, load_tokenizer
from smol_scratch.sharing import export_gguf
from smol_scratch.tokenizer import (
    _CUTS,
    HUB_NAME,
    HUB_REVISION,
    REVISIONS,
    SmolLM2Tokenizer,
    merges_of,
    tokenizer_for,
)

# Every digit by itself, also the raised and the broken ones; blanks before a digit stay together.
TRICKY = {
    "In 1984, 3.14159": ["In", " ", *"1984", ",", " ", "3", ".", *"14159"],
    "a  1": ["a", "  ", "1"],
    "a\n\n3": ["a", "\n\n", "3"],
    "²³ ½": ["²", "³", " ", "½"],
}
# Control characters without a token. The planes 4 to 11, of which nothing is assigned, have none
# either.
CONTROLS = "\x04\x06\x13\x14\x16\x1d"


def test_text_gives_the_known_tokens_and_itself_again(tokenizer, text, caplog, capfd, recwarn):
    with caplog.at_level(logging.WARNING):
        ids = tokenizer.encode(text)
    assert (tokenizer.vocab_size, len(ids), len(set(ids))) == (49_152, 341_094, 11_542)
    assert tokenizer.decode(ids) == text
    # A third of a million tokens, and no word about the longest sequence.
    assert (caplog.records, capfd.readouterr(), list(recwarn)) == ([], ("", ""), [])


@pytest.mark.parametrize("string", TRICKY)
def test_tricky_strings(tokenizer, string):
    ids = tokenizer.encode(string)
    assert tokenizer.tokens(ids) == TRICKY[string]
    assert tokenizer.decode(ids) == string


def test_transformers_alone_misreads_the_gguf(tokenizer, gguf):
    """The reason for a reader of our own: the step that splits digits off is lost on that way."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    wrong = {s for s in TRICKY if theirs(s)["input_ids"] != tokenizer.encode(s)}
    assert wrong == {"a  1", "a\n\n3", "²³ ½"}


def test_special_tokens_are_whole(tokenizer):
    assert len(tokenizer.special_tokens) == 17
    assert tokenizer.eos_id == tokenizer.special_tokens["<|endoftext|>"] == 0
    for token, number in tokenizer.special_tokens.items():
        assert tokenizer.encode(f"a{token}b")[1:-1] == [number]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>user\n1")) == "<|im_start|>user\n1"


def test_ten_thousand_random_strings_survive(tokenizer):
    rare = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) not in ("Cn", "Cs") and character not in CONTROLS
    ]
    common = "".join(map(chr, range(0x20, 0x17F))) + "  \n\n\t0123456789²½—…😀é"
    dice = random.Random(0)
    for _ in range(10_000):
        kinds = dice.choices([rare, common], k=dice.randint(1, 20))
        string = "".join(map(dice.choice, kinds))
        assert tokenizer.decode(tokenizer.encode(string)) == string


def test_what_the_vocabulary_lacks_is_an_error_and_not_dropped(tokenizer):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert sum(tokenizer.backend.token_to_id(byte) is None for byte in alphabet) == 21
    for character in CONTROLS + "\U00040000\U000bffff":
        string = f"a{character}b"
        # The library: nothing is said, and the character is gone.
        assert character not in tokenizer.backend.decode(tokenizer.backend.encode(string).ids)
        with pytest.raises(ValueError, match=rf"U\+{ord(character):04X} at character 1"):
            tokenizer.encode(string)
    for string in ("\x03\x05\x12\x15\x17\x1c\x1e", "\U0003ffff\U000c0000"):  # the neighbours
        assert tokenizer.decode(tokenizer.encode(string)) == string


def test_no_text_is_no_token(tokenizer):
    assert (tokenizer.encode(""), tokenizer.decode([])) == ([], "")


def test_every_source_gives_the_same(tokenizer, tmp_path, hub_cache, nothing_at_hand, tries):
    file = tmp_path / "tokenizer.json"
    tokenizer.backend.save(str(file))
    cached = hub_cache / f"models--{HUB_NAME.replace('/', '--')}" / "snapshots" / HUB_REVISION
    cached.mkdir(parents=True)
    tokenizer.backend.save(str(cached / "tokenizer.json"))
    for source in (file, tmp_path, None):  # the fixture's own is the GGUF
        assert load_tokenizer(source).backend.to_str() == tokenizer.backend.to_str()
    assert not tries


def damaged(kind, tokenizer, gguf, path):
    if kind == "truncated json":
        path.write_text(tokenizer.backend.to_str()[:100_000])
    elif kind == "truncated gguf":
        path = path.with_suffix(".gguf")
        path.write_bytes(gguf.read_bytes()[:1_000_000])
    elif kind == "entries swapped":
        content = json.loads(tokenizer.backend.to_str())
        entries = content["model"]["vocab"]
        entries["Ġthe"], entries["Ġa"] = entries["Ġa"], entries["Ġthe"]
        path.write_text(json.dumps(content))
    elif kind == "digits together":
        backend = Tokenizer.from_str(tokenizer.backend.to_str())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
        backend.save(str(path))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated json", "cannot be read as a tokenizer"),
        ("truncated gguf", "cannot be read as a tokenizer"),
        ("entries swapped", "does not hold SmolLM2's vocabulary"),
        ("digits together", "splits text in another way"),
    ],
)
def test_a_damaged_tokenizer_is_named(kind, message, tokenizer, gguf, tmp_path):
    path = damaged(kind, tokenizer, gguf, tmp_path / "tokenizer.json")
    with pytest.raises(assets.CorruptAssetError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(assets.MissingAssetError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)


def test_weights_bring_their_own_tokenizer_if_they_have_one(tmp_path, monkeypatch):
    asked = []

    def load(source=None):
        asked.append(source)
        return SimpleNamespace(vocab_size=7)

    monkeypatch.setattr("smol_scratch.tokenizer.load_tokenizer", load)
    with_one, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_one, without):
        folder.mkdir()
    (with_one / "tokenizer.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for weights in (None, "HuggingFaceTB/SmolLM2-135M", "not_there.gguf", without):
        tokenizer_for(weights, 7)
    assert asked == [None] * 4
    for weights in (with_one, str(with_one), tmp_path / "model.gguf"):
        tokenizer_for(weights, 8)  # the number was theirs to choose
    assert asked[4:] == [with_one, with_one, tmp_path / "model.gguf"]
    with pytest.raises(ValueError, match="8 entries are not those of SmolLM2's, 7"):
        tokenizer_for(without, 8)


def test_weights_on_the_hub_bring_theirs(monkeypatch, tmp_path):
    cached = tmp_path / "tokenizer.json"
    cached.write_text("{}")
    asked = []

    def look(name, file, revision):
        asked.append((name, revision))
        return str(cached)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    known = next(name for name in REVISIONS if name.endswith("-Instruct"))
    for name in ("other/llama@0123abc", known):
        with pytest.raises(assets.CorruptAssetError, match="cannot be read as a tokenizer"):
            tokenizer_for(name, 49_152)
    assert asked == [("other/llama", "0123abc"), (known, REVISIONS[known])]  # as the weights are


def test_a_gguf_file_without_a_tokenizer_gets_smollm2s(tmp_path, tokenizer):
    model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1))
    file = export_gguf(model, tmp_path / "bare.gguf", "f16")
    with pytest.raises(assets.MissingAssetError, match=r"bare\.gguf holds no tokenizer"):
        load_tokenizer(file)
    assert tokenizer_for(file, 49_152).fingerprint == tokenizer.fingerprint


def test_what_is_no_byte_level_bpe_is_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    with pytest.raises(assets.CorruptAssetError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(file)


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"U\+DCFF at character 2"):
        tokenizer.encode("ab\udcff")  # what Python makes of a command line that is no UTF-8


@pytest.mark.parametrize("number", [-1, 49_152])
def test_a_number_that_is_no_token_is_refused(tokenizer, number):
    with pytest.raises(ValueError, match=f"token {number}: must lie between 0 and 49151"):
        tokenizer.decode([5, number])


# Other people's files


def saved(tokenizer, folder: Path, **changes: object) -> Path:
    """Write a tokenizer.json with other settings; a dict changes single ones, as in "model"."""
    content = json.loads(tokenizer.backend.to_str())
    for name, value in changes.items():
        content[name] = content[name] | value if name == "model" else value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "<|endoftext|>",
}  # fmt: skip
AROUND = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1],
                                        "tokens": ["<|im_start|>"]}},
}  # fmt: skip
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
              "use_regex": True}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"padding": PADDING | {"strategy": "BatchLongest"}, "truncation": TRUNCATION},
        {"post_processor": AROUND},
        {"post_processor": BYTE_LEVEL},
        {"model": {"dropout": 0.5}},  # merges left out by chance
        {"model": {"unk_token": "<|endoftext|>"}},
        {"model": {"fuse_unk": True, "continuing_subword_prefix": "", "end_of_word_suffix": ""}},
        {"decoder": BYTE_LEVEL | {"add_prefix_space": False}},
        {"decoder": None},
        {"normalizer": {"type": "Sequence", "normalizers": []}},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_a_trainer_leaves_in_the_file_does_not_change_a_text(changes, tokenizer, tmp_path):
    ours = load_tokenizer(saved(tokenizer, tmp_path, **changes))
    for string in ("word " * 100, "", *TRICKY):
        assert ours.encode(string) == tokenizer.encode(string)
        assert ours.decode(ours.encode(string)) == string
    assert len(ours.encode("word " * 100)) == 101
    assert ours.fingerprint == tokenizer.fingerprint


def test_the_case_that_was_reported_in_transformers_own_words(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")
    theirs(["a b c"] * 2, truncation=True, max_length=16, padding="max_length")
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 16
    assert len(load_tokenizer(tmp_path).encode("word " * 100)) == 101


@pytest.mark.parametrize(
    "changes",
    [
        *({"normalizer": {"type": kind}} for kind in ("Lowercase", "NFC", "NFD", "NFKC")),
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}},
        {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}},
        {"normalizer": {"type": "Prepend", "prepend": " "}},
        {"pre_tokenizer": BYTE_LEVEL},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
    ids=str,
)
def test_what_changes_a_text_is_refused_with_an_example(changes, tokenizer, tmp_path):
    with pytest.raises(assets.CorruptAssetError, match="splits text in another way") as error:
        load_tokenizer(saved(tokenizer, tmp_path, **changes))
    assert sum(f"of {text!r} it makes" in str(error.value) for text in _CUTS) == 1


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_cut_that_differs_in_one_thing_alone_is_noticed(place, tokenizer, tmp_path):
    """A space before the text, words not cut, digits not split off: each by itself."""
    digits = {"type": "Digits", "individual_digits": True}
    level = BYTE_LEVEL | {"add_prefix_space": place == 1, "use_regex": place != 2}
    parts = [digits, level] if place != 3 else [level | {"add_prefix_space": False}]
    changes = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    with pytest.raises(assets.CorruptAssetError, match="splits text in another way"):
        load_tokenizer(saved(tokenizer, tmp_path, **changes))


def test_special_tokens_that_are_none_are_named(tokenizer, tmp_path):
    with pytest.raises(assets.CorruptAssetError, match="is none of its special tokens"):
        load_tokenizer(saved(tokenizer, tmp_path, added_tokens=[]))


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"model": {}}', "[" * 100_000,
                                     '{"model": {"vocab": {"a": 99999999999}, "merges": []}}',
                                     '{"model": {"vocab": {"a": -1}, "merges": []}}',
                                     '{"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}',
                                     '{"model": {"vocab": {"a": 0}, "merges": [5]}}',
                                     '{"model": {"vocab": {"a": 0}, "merges": []}}'])  # fmt: skip
def test_no_tokenizer_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(assets.CorruptAssetError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_byte_order_mark_does_no_harm(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text("\ufeff" + tokenizer.backend.to_str(), "utf-8")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def extended(tokenizer, *added: AddedToken, entries=(), merges=()) -> Tokenizer:
    """SmolLM2's with tokens and merges behind its own."""
    content = json.loads(tokenizer.backend.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {entry: len(vocabulary) + i for i, entry in enumerate(entries)}
    content["model"]["merges"] += merges
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_tokens(list(added))
    return backend


@pytest.mark.parametrize("where", ["tokenizer.json", "model.gguf"])
def test_tokens_behind_smollm2s_come_along(where, tokenizer, tmp_path):
    backend = extended(
        tokenizer,
        AddedToken("[PAD]", special=True),
        AddedToken("smörgås", normalized=False),
        entries=["Ġlzz"],
        merges=[["Ġl", "zz"]],
    )
    if where == "tokenizer.json":
        backend.save(str(tmp_path / where))
    else:
        model = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1, vocab_size=49_155))
        export_gguf(model, tmp_path / where, "f16", tokenizer=SmolLM2Tokenizer(backend))
    ours = load_tokenizer(tmp_path / where)
    assert ours.vocab_size == 49_155
    assert ours.encode("[PAD] ein smörgås") == backend.encode("[PAD] ein smörgås").ids
    assert 49_154 in ours.encode("ein smörgås")
    assert ours.encode(" lzz") == backend.encode(" lzz").ids == [49_152]
    assert list(set(ours.special_tokens) - set(tokenizer.special_tokens)) == ["[PAD]"]
    assert ours.fingerprint != tokenizer.fingerprint
    for string in TRICKY:
        assert ours.encode(string) == tokenizer.encode(string)
        assert ours.decode(ours.encode(string)) == string


def test_an_added_token_keeps_how_it_is_matched(tokenizer, tmp_path):
    token = AddedToken("<gap>", lstrip=True, rstrip=True, single_word=True, normalized=False)
    extended(tokenizer, token).save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.decode(ours.encode("a  <gap>  b")) == "a<gap>b"
    assert 49_152 not in ours.encode("a<gap>b")


def test_what_smollm2_has_must_be_in_front(tokenizer, tmp_path):
    content = json.loads(tokenizer.backend.to_str())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(assets.CorruptAssetError, match="does not hold SmolLM2's") as error:
        load_tokenizer(tmp_path)
    assert "49,152 and 48,899" in str(error.value)
    assert "elete" not in str(error.value)  # it is the user's own file


def test_weights_with_fewer_entries_than_tokens_leave_tokens_out(tokenizer, tmp_path):
    """A pad token that was added to the tokenizer alone: the text of it is like any other."""
    added = [AddedToken("[PAD]", special=True), AddedToken("[X]", special=True)]
    extended(tokenizer, *added).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x", "eos_token": "[X]"}')
    ours = tokenizer_for(tmp_path, 49_153)
    assert ours.vocab_size == 49_153
    assert 49_152 in ours.encode("[PAD]")
    assert max(ours.encode("a [X]")) < 49_152
    assert ours.decode(ours.encode("a [X]")) == "a [X]"
    assert (ours.chat_templates, ours.end_ids) == ({"default": "x"}, ())
    assert tokenizer_for(tmp_path, 49_152).fingerprint == tokenizer.fingerprint
    assert tokenizer_for(tmp_path, 49_216).vocab_size == 49_154  # a padded embedding
    with pytest.raises(ValueError, match=r"has 49,154 entries, the weights only 32,000"):
        tokenizer_for(tmp_path, 32_000)


def gguf_with(tokenizer, path: Path, **changes: object) -> Path:
    """Write a GGUF file that holds a tokenizer alone; None leaves a field out."""
    from gguf import GGUFWriter

    vocabulary = tokenizer.backend.get_vocab()
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": sorted(vocabulary, key=vocabulary.__getitem__),
        "token_type": [3] * 17 + [1] * (len(vocabulary) - 17),
        "merges": [" ".join(pair) for pair in merges_of(tokenizer.backend)],
    } | changes
    writer = GGUFWriter(path, "llama")
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{name}", value)
        elif value is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_fields_on_the_tokenizer_can_be_left_out(tokenizer, tmp_path):
    left_out = {"model": None, "pre": None, "token_type": None}
    ours = load_tokenizer(gguf_with(tokenizer, tmp_path / "any.gguf", **left_out))
    assert ours.special_tokens == tokenizer.special_tokens
    assert (ours.names, ours.end_ids) == ({}, ())
    for string in TRICKY:
        assert ours.encode(string) == tokenizer.encode(string)


def test_gguf_fields_on_the_tokenizer_are_read(tokenizer, tmp_path):
    ids = {"bos": 3, "eos": 4, "unknown": 5, "padding": 6, "eot": 7, "eom": 8}
    ids = {f"{name}_token_id": number for name, number in ids.items()}
    ours = load_tokenizer(gguf_with(tokenizer, tmp_path / "any.gguf", **ids))
    number = ours.special_tokens
    assert {name: number[token] for name, token in ours.names.items()} == {
        "bos_token": 3, "eos_token": 4, "unk_token": 5, "pad_token": 6,
    }  # fmt: skip
    assert ours.end_ids == (4, 7, 8)
    with pytest.raises(assets.CorruptAssetError, match=r"tokenizer.ggml.model='llama'"):
        load_tokenizer(gguf_with(tokenizer, tmp_path / "other.gguf", model="llama"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode(5), TypeError, "text=5: must be a str"),
        (lambda t: t.encode(b"a" * 100), TypeError, r"text=b'aaa.*\(bytes\): must be a str"),
        (lambda t: t.encode(None), TypeError, "text=None"),
        (lambda t: t.decode(5), TypeError, "ids=5: must be whole numbers"),
        (lambda t: t.decode("abc"), TypeError, "ids='abc'"),
        (lambda t: t.decode([1.5]), TypeError, r"ids=\[1\.5\]"),
        (lambda t: t.decode([None]), TypeError, r"ids=\[None\]"),
        (lambda t: t.decode(torch.tensor([1.5])), TypeError, "ids="),
        (lambda t: t.tokens(7), TypeError, "ids=7"),
        (lambda t: load_tokenizer(5), TypeError, "source=5: must be a path"),
        (lambda t: load_tokenizer(""), TypeError, "source=''"),
        (lambda t: tokenizer_for(None, "49152"), TypeError, "vocab_size='49152'"),
        (lambda t: SmolLM2Tokenizer("x"), TypeError, "backend=str"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(call, error, message, tokenizer):
    with pytest.raises(error, match=message):
        call(tokenizer)


def test_numbers_of_any_kind_are_decoded(tokenizer):
    ids = tokenizer.encode("To be")
    for same in (np.array(ids, dtype=np.uint16), torch.tensor(ids), tuple(ids), iter(ids)):
        assert tokenizer.decode(same) == "To be"
