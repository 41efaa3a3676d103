"""Text files to tokens: pieces give the tokens of the whole; what cannot be read is explained."""

import base64
import codecs
import random
import re
import string
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from benchmarks import text_memory
from smol_scratch import texts
from smol_scratch.texts import Cuts, cut, encode_files, read_pieces, text_files
from smol_scratch.tokenizer import SmolLM2Tokenizer

# What the tokenizer's pattern, its merges and its added tokens look at, and scripts in which words
# are not told apart by spaces. Each text is of one of these, so that its rarer turns are met.
ALPHABETS = {
    "everything": [*"aé日'’.,-_0 9\t\n\r \u00a0\u3000st", "<|endoftext|>", "<|im", "_end|>"],
    "contractions": [*"'strevmld' !\n1é", "'re", "'ll", "'ve"],
    "blanks": [*" \t\n\r\x0b\x1c\x85\u00a0\u2028\u3000\u180e", "   ", "a", "1", "!"],
    "chinese": "人工智能是研究的，。“”《》、一二0的 \n",
    "japanese": "これはペンです。カタカナ漢字「」ー・ \n",
    "thai and hindi": "สวัสดีครับ नमस्ते दुनिया।",
    "greek, russian, arabic": "ΚαλημέραПриветмирمرحبا ,.\n",
    "emoji": ["😀", "👍", "🏽", "\u200d", "\ufe0f", "👩", "🇩", "🇪", "❤", "a", " "],
    "combining": ["e", "\u0301", "a", "\u0308", "n", "\u0303", " ", "'", "s", "\u20d0"],
    "base64": string.ascii_letters + string.digits + "+/=\n",
    "lines": ["foo", "bar", "the", "\n", "\n\n", "1", "'s", "é"],
    "signs": "=-_.,*#/\\|<>(){}[]'\"  \nx1",
    "digits": "0123456789²½Ⅷ一٣. -\n",
}


def encoded(tokenizer, pieces):
    return [number for piece in pieces for number in tokenizer.encode(piece)]


@pytest.mark.parametrize("name", ALPHABETS)
@given(data=st.data(), size=st.integers(1, 30))
def test_pieces_have_the_tokens_of_the_whole(tmp_path_factory, tokenizer, name, data, size):
    alphabet = st.sampled_from(ALPHABETS[name])
    text = "".join(data.draw(st.lists(alphabet, max_size=120)))
    file = tmp_path_factory.mktemp("texts") / "a.txt"
    file.write_text(text, "utf-8", newline="\n")
    whole = file.read_text("utf-8")
    pieces = list(read_pieces(file, Cuts(tokenizer), size))
    assert "".join(pieces) == whole
    assert encoded(tokenizer, pieces) == tokenizer.encode(whole)


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_place_to_cut_gives_the_tokens_of_the_whole(tokenizer, name):
    """Each place by itself, not only those that a size happens to choose."""
    cuts, dice = Cuts(tokenizer), random.Random(0)
    found = 0
    for _ in range(25):
        text = "".join(dice.choices(ALPHABETS[name], k=24))
        whole = tokenizer.encode(text)
        places = {cuts.last(text[:end]) for end in range(1, len(text) + 1)} - {0}
        for at in places:
            assert encoded(tokenizer, (text[:at], text[at:])) == whole, (text, at)
        found += len(places)
    assert found > 25


def test_what_the_pattern_takes_for_a_blank_is_one_to_python(tokenizer):
    """The pattern looks ahead behind blanks, so no text is cut there: none may be overlooked."""
    every = map(chr, range(sys.maxunicode + 1))
    characters = [c for c in every if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    text = "".join(f"{character * 2}!1" for character in characters)
    words = tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)
    starts = {start for _, (start, _) in words}
    # Of two blanks in front of a sign each is a word, and so are two digits.
    apart = {c for i, c in enumerate(characters) if 4 * i + 1 in starts}
    assert {"\t", "\u00a0", "\u2028", "\u3000", "7", "²"} < apart
    assert {c for c in apart if not c.isspace() and unicodedata.category(c)[0] != "N"} == set()


LONG = {
    "chinese": "人工智能是研究、开发用于模拟、延伸和扩展人的智能的理论。",
    "chinese without a sign": "天地玄黄宇宙洪荒日月盈昃辰宿列张",
    "japanese": "吾輩は猫である。名前はまだ無い。",
    "thai": "สวัสดีครับผมชื่อสมชาย",
    "one word a line": "foo\nbar1\n",
    "one word a line, many empty": "foo\n\n\n",
    "base64": base64.b64encode(random.Random(0).randbytes(3000)).decode(),
    "emoji": "😀👍🏽👩\u200d👩\u200d👧",
    "digits": "31415926535897932384626433832795",
    "code": "x=[i**2for(i)in(range(9))];",
}


@pytest.mark.parametrize("name", LONG)
def test_no_kind_of_text_stays_in_one_piece(tokenizer, name):
    text = (LONG[name] * 20_000)[:20_000]
    pieces = list(cut(text, 1000, Cuts(tokenizer)))
    assert max(map(len, pieces)) < 1100
    assert "".join(pieces) == text
    assert encoded(tokenizer, pieces) == tokenizer.encode(text)


def test_english_is_cut_at_its_spaces_alone(tokenizer, text):
    pieces = list(cut(text[:50_000], 1000, Cuts(tokenizer)))
    assert len(pieces) > 40
    assert all(re.match(" [a-zA-Z]", piece) for piece in pieces[1:])
    assert pieces == list(cut(text[:50_000], 1000, Cuts()))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"rstrip": True}, {"lstrip": True}, {"single_word": True}])
@given(
    text=st.lists(
        st.sampled_from(
            [
                "foo",
                " foo",
                " ",
                "o",
                "f",
                "_",
                "1",
                "!",
                "\n",
                "日",
                "two words",
                "two",
                " words",
                "wor",
            ]
        )
    ),
    size=st.integers(1, 9),
)
def test_added_tokens_are_never_cut_nor_what_they_look_at(tokenizer, flags, text, size):
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    tokens = ("foo", "two words", "日!")
    backend.add_tokens([AddedToken(token, normalized=False, **flags) for token in tokens])
    other, whole = SmolLM2Tokenizer(backend), "".join(text)
    assert encoded(other, cut(whole, size, Cuts(other))) == other.encode(whole)


def test_a_stretch_without_a_place_is_bounded_and_nothing_is_lost(tokenizer, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST", 2000)
    for stretch in ("a", " ", "=", "\n"):
        text = "Begin" + stretch * 7000 + "<|endoftext|>" + stretch * 7000
        pieces = list(cut(text, 300, Cuts(tokenizer)))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) < 2300
        assert sum(piece.count("<|endoftext|>") for piece in pieces) == 1
    assert list(cut("a" * 1999, 300, Cuts(tokenizer))) == ["a" * 1999]


@pytest.mark.parametrize("before", range(40, 62))
def test_where_a_stretch_is_cut_all_the_same_no_added_token_is(before, tokenizer, monkeypatch):
    """The bound falls before the token, on each of its characters, and behind it."""
    monkeypatch.setattr(texts, "LONGEST", 60)
    text = "a" * before + "<|endoftext|>" + "a" * 30
    parts = [text[:60], text[60:65], text[65:]]
    pieces = list(texts.pieces_of(parts, Cuts(tokenizer)))
    assert "".join(pieces) == text
    assert sum(tokenizer.encode(piece).count(tokenizer.eos_id) for piece in pieces) == 1
    assert len(pieces) > 1
    if before < 60 < before + 13:  # in front of the token: a place that it stands at is its own
        assert len(pieces[0]) == before - 1


def test_a_megabyte_and_a_half_of_one_letter_is_one_piece(tokenizer):
    stretch = "a" * 1_500_000
    assert list(cut(stretch, texts.PIECE, Cuts(tokenizer))) == [stretch]


def test_a_play_in_small_pieces_has_the_tokens_of_the_whole(tmp_path, tokenizer, text):
    file = tmp_path / "plays.txt"
    file.write_text(text[:300_000], "utf-8")
    pieces = list(read_pieces(file, Cuts(tokenizer), 1000))
    assert len(pieces) > 200
    tokens = [i for piece in pieces for i in tokenizer.encode(piece)]
    assert tokens == tokenizer.encode(text[:300_000])


def test_a_file_gives_two_bytes_a_token(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_text("To be, or not to be: " * 40, "utf-8")
    tokens = encode_files(file, tokenizer)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == tokenizer.encode("To be, or not to be: " * 40)


def test_a_folder_is_its_files_in_order_with_an_end_after_each(tmp_path, tokenizer):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "notes.md"):
        (tmp_path / name).write_text(name, "utf-8")
    (tmp_path / "empty.txt").write_text("")
    assert [file.name for file in text_files(tmp_path)] == ["a.txt", "b.txt", "empty.txt", "c.txt"]
    expected = "a.txt<|endoftext|>b.txt<|endoftext|><|endoftext|>sub/c.txt<|endoftext|>"
    assert encode_files(tmp_path, tokenizer).tolist() == tokenizer.encode(expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (codecs.BOM_UTF16_LE + "Hi".encode("utf-16-le"), "is UTF-16.*iconv -f UTF-16 -t UTF-8"),
        (codecs.BOM_UTF16_BE + "Hi".encode("utf-16-be"), "is UTF-16"),
        (codecs.BOM_UTF32_LE + "Hi".encode("utf-32-le"), "is UTF-32"),
        ("café".encode("latin-1"), "byte 0xE9.*Latin-1.*iconv -f WINDOWS-1252 -t UTF-8"),
        (b"fine \x92s", "byte 0x92"),
    ],
)
def test_another_encoding_is_named_with_a_way_out(tmp_path, tokenizer, data, reason):
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        encode_files(file, tokenizer)


def test_a_mark_of_utf_8_is_left_out(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_bytes(codecs.BOM_UTF8 + b"To be")
    assert encode_files(file, tokenizer).tolist() == tokenizer.encode("To be")


def test_all_characters_without_a_token_are_counted_at_once(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_text("a\x14b\x14c\x16 and on", "utf-8")
    with pytest.raises(ValueError, match=r"U\+0014 \(2 times\), U\+0016 \(1 times\).*perl"):
        encode_files(file, tokenizer)


@pytest.mark.parametrize(("kinds", "rest"), [(7, ""), (8, ""), (9, " and 1 others")])
def test_of_many_characters_without_a_token_eight_are_listed(tmp_path, tokenizer, kinds, rest):
    """The most frequent first; the command leaves all of them out."""
    lacking = ["\x04", "\x06", "\x13", "\x14", "\x16", "\x1d", "\U00040000", "\U00040001",
               "\U00040002"][:kinds]  # fmt: skip
    file = tmp_path / "a.txt"
    file.write_text("To be" + "".join(c * (n + 1) for n, c in enumerate(lacking)), "utf-8")
    with pytest.raises(ValueError, match="has no token for") as error:
        encode_files(file, tokenizer)
    counts = [(f"U+{ord(c):04X}", n + 1) for n, c in enumerate(lacking)][::-1][:8]
    listed = ", ".join(f"{name} ({n} times)" for name, n in counts)
    assert f"no token for {listed}{rest}. Leave them out" in str(error.value)
    assert all(rf"\x{{{ord(c):X}}}" in str(error.value) for c in lacking)


def test_what_is_not_there_or_holds_nothing_is_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder"):
        encode_files(tmp_path / "nowhere", tokenizer)
    with pytest.raises(ValueError, match=r"is a folder without \.txt files"):
        encode_files(tmp_path, tokenizer)


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak has other units")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", text_memory.samples())
def test_a_gigabyte_of_any_text_is_encoded_in_less_than_four(kind):
    """By what each further byte takes at the peak: the tokens, and no more."""
    assert text_memory.encoding(text_memory.samples()[kind]).at(1e9) < 4e9
