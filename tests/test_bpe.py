import random
import re
import shutil
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from smol_scratch import assets, load_text, load_tokenizer
from smol_scratch.tokenizer import (
    GPT2_WORD,
    SMOLLM2_WORD,
    VOCABULARY_SHA256,
    BytePairEncoding,
    load_gpt2_tokenizer,
    merges_of,
    split_words,
    train_bpe,
)


@pytest.fixture(scope="module")
def text():
    return load_text()


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer()


@pytest.fixture(scope="module")
def gpt2():
    return load_gpt2_tokenizer()


@pytest.fixture(scope="module")
def ours(smollm2):
    return BytePairEncoding(merges_of(smollm2.backend), smollm2.backend.get_vocab())


# The walkthrough's figures


def test_both_tables_of_the_description(text, smollm2, gpt2):
    """Its dataset table was made with GPT-2's tokenizer, its training log with SmolLM2's."""
    assert len(text) == 1_115_394
    table = gpt2.encode(text).ids
    assert (len(table), len(set(table)), gpt2.get_vocab_size()) == (338_025, 11_706, 50_257)
    log = smollm2.encode(text)
    assert (len(log), smollm2.vocab_size) == (341_094, 49_152)
    assert len(set(log)) == 11_542
    assert gpt2.decode(table) == smollm2.decode(log) == text


def test_gpt2s_known_tokens(gpt2):
    assert gpt2.encode("Hello world").ids == [15496, 995]
    assert gpt2.encode("<|endoftext|>").ids == [50256]
    assert gpt2.encode(" 1984").tokens == ["Ġ1984"]


def test_gpt2_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "wheel_path", lambda relative: None)
    with pytest.raises(assets.MissingAssetError, match="python -m smol_scratch assets"):
        load_gpt2_tokenizer()
    copy = tmp_path / "vocab.bpe"
    monkeypatch.undo()
    shutil.copy(assets.wheel_path(assets.GPT2_MERGES), copy)
    copy.write_text(copy.read_text("utf-8").replace("t h\n", "t H\n", 1))
    monkeypatch.setattr(assets, "wheel_path", lambda relative: copy)
    with pytest.raises(assets.CorruptAssetError, match=r"vocab\.bpe"):
        load_gpt2_tokenizer()


def test_the_fingerprint_is_that_of_the_vocabulary(smollm2):
    assert smollm2.fingerprint == VOCABULARY_SHA256


# Ours against the library


def test_our_encoder_equals_the_library_on_the_whole_text(text, smollm2, ours):
    assert len(ours.ranks) == 48_900
    ids = ours.encode(text)
    assert len(ids) == 341_094
    assert ids == smollm2.encode(text)
    assert ours.decode(ids) == text


def test_with_gpt2s_merges_it_is_gpt2(text, gpt2):
    encoder = BytePairEncoding(merges_of(gpt2), gpt2.get_vocab(), GPT2_WORD)
    assert encoder.encode(text) == gpt2.encode(text).ids
    assert encoder.encode("in 1984, 20 km") == gpt2.encode("in 1984, 20 km").ids


CODE = "def f(x):\n\treturn x[1:-1] ** 2  # 'quoted', 1984's\r\n\n    pass"


@pytest.mark.parametrize(
    "text", ["", " ", "a  1", "a\n\n1", "1984", "naïve café – 東京 🙂 ½", CODE]
)
def test_awkward_texts(text, smollm2, ours):
    assert ours.encode(text) == smollm2.encode(text)
    assert ours.decode(ours.encode(text)) == text


def test_digits_are_single(ours):
    assert len(ours.encode("a  1")) == 3
    assert split_words("a  1984's 2½") == ["a", "  ", "1", "9", "8", "4", "'s", " ", "2", "½"]
    assert split_words(" 1984's 2½", GPT2_WORD) == [" 1984", "'s", " 2½"]


# Assigned characters, without the surrogates (no text has them alone) and private ones.
ASSIGNED = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
]
AWKWARD = [*" \n\t'1a_.", "  ", "'s", "'LL", "'re", "\r\n", "\xa0", "\x1c", "\x85", *"½²Ⅷ一é٣́"]


def library_words(backend, text):
    return [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]


def test_words_equal_the_librarys_on_random_unicode(smollm2, gpt2):
    """10,000 strings, half of their characters from those that patterns disagree about."""
    draw = random.Random(0)
    for _ in range(10_000):
        kinds = [draw.choice((AWKWARD, ASSIGNED)) for _ in range(draw.randint(1, 20))]
        text = "".join(draw.choice(kind) for kind in kinds)
        assert split_words(text) == library_words(smollm2.backend, text), ascii(text)
        assert split_words(text, GPT2_WORD) == library_words(gpt2, text), ascii(text)


def test_words_equal_the_librarys_for_every_character(smollm2):
    assert len(ASSIGNED) > 140_000
    text = "".join(f"a{character} {character}1" for character in ASSIGNED)
    assert split_words(text) == library_words(smollm2.backend, text)


@settings(max_examples=50)
@given(st.text())
def test_words_joined_are_the_text(text):
    for pattern in (SMOLLM2_WORD, GPT2_WORD):
        assert "".join(split_words(text, pattern)) == text


# Training


def test_by_hand():
    """The example of Sennrich et al., without its end-of-word sign."""
    words = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    merges = train_bpe(words, 7)
    assert merges[:5] == [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w"), ("n", "e")]
    encoder = BytePairEncoding(merges)
    assert merges[5:] == [("ne", "w"), ("new", "est")]
    names = {number: token for token, number in encoder.vocabulary.items()}
    assert [names[i] for i in encoder.encode("lowest")] == ["low", "est"]
    assert [names[i] for i in encoder.encode("newest")] == ["newest"]
    assert len(encoder.vocabulary) == 256 + 7


def test_a_pair_that_overlaps_itself_merges_from_the_left():
    encoder = BytePairEncoding([("a", "a")])
    pair, single = encoder.vocabulary["aa"], encoder.vocabulary["a"]
    assert encoder.encode("aaaaa") == [pair, pair, single]
    assert train_bpe("aaaa", 2) == [("a", "a"), ("aa", "aa")]


def test_an_earlier_merge_goes_before_a_longer_one():
    encoder = BytePairEncoding([("b", "c"), ("a", "b"), ("ab", "c")])
    assert encoder.encode("abc") == [encoder.vocabulary["a"], encoder.vocabulary["bc"]]


def test_training_equals_the_librarys(text):
    """The library breaks ties in another way: here the 34th merge is one, of ve and an."""
    part = text[:200_000]
    merges = train_bpe(part, 33)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 33, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([part], trainer)
    assert merges_of(backend) == merges


@settings(max_examples=50)
@given(st.text(max_size=30), st.text(alphabet="ab c1é", max_size=60))
def test_what_is_encoded_comes_back(text, training):
    pairs = sum(len(word.encode()) - 1 for word in set(split_words(training)))
    encoder = BytePairEncoding(train_bpe(training, min(3, pairs // 9)))
    assert encoder.decode(encoder.encode(text)) == text


def test_every_merge_shortens_the_text(text):
    part = text[:5_000]
    merges = train_bpe(part, 40)
    lengths = [len(BytePairEncoding(merges[:n]).encode(part)) for n in (0, 1, 10, 40)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 4
    assert lengths[0] == len(part.encode())


def test_training_says_when_nothing_is_left():
    assert train_bpe("abc", 0) == train_bpe("", 0) == []
    assert train_bpe("abc", 2) == [("a", "b"), ("ab", "c")]
    with pytest.raises(ValueError, match="merges=3: this text gives no more than 2"):
        train_bpe("abc", 3)
    with pytest.raises(ValueError, match="merges=-1"):
        train_bpe("abc", -1)


# What cannot be encoded or decoded


def test_a_byte_that_the_vocabulary_lacks_is_an_error(smollm2, ours):
    for tokenizer in (smollm2, ours):
        with pytest.raises(ValueError, match="no token for its byte"):
            tokenizer.encode("fine \x04")


def test_a_vocabulary_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=re.escape("no 'ab', which ('a', 'b') gives")):
        BytePairEncoding([("a", "b")], {"a": 0, "b": 1})


def test_a_number_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="token 256: not in this vocabulary of 256"):
        BytePairEncoding([]).decode([104, 256])


def test_half_a_character_shows_as_such():
    encoder = BytePairEncoding([])
    assert encoder.encode("é") == [0xC3, 0xA9]  # without merges a token is a byte
    assert encoder.decode([0xC3]) == "�"
