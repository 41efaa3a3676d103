"""Text files to tokens: pieces give the tokens of the whole; what cannot be read is explained."""

import codecs
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smol_scratch import assets
from smol_scratch.texts import encode_files, read_pieces, text_files

# Everything that the tokenizer's pattern looks at: letters, digits, signs, blanks of several kinds.
ALPHABET = "aé日'’.,-_0 9\t\n\r \u00a0\u3000st" + "<|endoftext|>"


@given(st.text(st.sampled_from(ALPHABET), max_size=120), st.integers(1, 30))
def test_pieces_have_the_tokens_of_the_whole(tmp_path_factory, tokenizer, text, size):
    file = tmp_path_factory.mktemp("texts") / "a.txt"
    file.write_text(text, "utf-8", newline="\n")
    whole = file.read_text("utf-8")
    pieces = list(read_pieces(file, size))
    assert "".join(pieces) == whole
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(whole)


def test_a_play_in_small_pieces_has_the_tokens_of_the_whole(tmp_path, tokenizer, text):
    file = tmp_path / "plays.txt"
    file.write_text(text[:300_000], "utf-8")
    pieces = list(read_pieces(file, 1000))
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


def test_what_is_not_there_or_holds_nothing_is_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder"):
        encode_files(tmp_path / "nowhere", tokenizer)
    with pytest.raises(ValueError, match=r"is a folder without \.txt files"):
        encode_files(tmp_path, tokenizer)


MEMORY = """
import resource, sys
from pathlib import Path
from smol_scratch import load_text, load_tokenizer
from smol_scratch.texts import encode_files
tokenizer, text, file = load_tokenizer(), load_text(), Path(sys.argv[1])
for times in (2, 12):
    file.write_text(text * times, "utf-8")
    assert len(encode_files(file, tokenizer)) == 341_094 * times
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is told in other units")
def test_a_gigabyte_of_text_is_encoded_in_less_than_four(tmp_path):
    """By what each further character takes at the peak: two bytes a token, twice, and no more."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "plays.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=assets.ROOT)
    first, last = map(int, done.stdout.split())
    assert (last - first) / (10 * 1_115_394) < 3
