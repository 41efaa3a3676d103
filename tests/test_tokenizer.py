"""SmolLM2's tokenizer: the real one, from any source, with nothing lost without a word."""

from __future__ import annotations

import json
import logging
import random
import sys
import unicodedata
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from smol_scratch import SmolLM2, SmolLM2Config, assets, load_tokenizer
from smol_scratch.sharing import export_gguf
from smol_scratch.tokenizer import HUB_NAME, HUB_REVISION, REVISIONS, tokenizer_for

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
