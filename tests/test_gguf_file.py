"""GGUF files: read as the format's own library reads them, never believed beyond their end."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf as library
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smol_scratch.assets import CorruptAssetError
from smol_scratch.gguf_file import read_gguf


def write(path: Path, alignment: int | None = None) -> Path:
    """Write a file with a value of every type."""
    writer = library.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, value in (("uint8", 200), ("int8", -100), ("uint16", 60_000), ("int16", -30_000),
                        ("uint32", 4_000_000_000), ("int32", -2_000_000_000), ("uint64", 2**63),
                        ("int64", -(2**62)), ("float32", 1.5), ("float64", 1e-300),
                        ("bool", True), ("string", "é 中 \n")):  # fmt: skip
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_array("a.strings", ["", "a", "Ġb é"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [1.5, -2.5])
    writer.add_array("a.truths", [True, False])
    writer.add_tensor("odd", np.arange(7, dtype=np.float32))
    writer.add_tensor("half", np.arange(12, dtype=np.float16).reshape(3, 4))
    numbers = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    for kind in (library.GGMLQuantizationType.Q8_0, library.GGMLQuantizationType.BF16):
        writer.add_tensor(kind.name, library.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_fields_and_tensors_are_those_of_the_formats_library(alignment, tmp_path):
    path = write(tmp_path / "any.gguf", alignment)
    ours, theirs = read_gguf(path), library.GGUFReader(path)
    known = {n: f.contents() for n, f in theirs.fields.items() if not n.startswith("GGUF.")}
    assert ours.fields == known
    assert len(known) == 17 + (alignment is not None)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.kind == tensor.tensor_type
        assert stored.shape == tuple(tensor.shape.tolist())[::-1]
        expected = library.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(library.dequantize(stored.data, stored.kind), expected), tensor.name


def test_a_vocabulary_is_read_many_times_quicker_than_by_the_formats_library(gguf: Path):
    """Which takes seconds for it, before the first word is spoken."""
    start = time.perf_counter()
    read_gguf(gguf)
    between = time.perf_counter()
    library.GGUFReader(gguf)
    ours, theirs = between - start, time.perf_counter() - between
    assert ours < theirs / 10  # 60 to 70 times was measured


def test_version_2_is_read_too(tmp_path):
    path = write(tmp_path / "any.gguf")
    whole = path.read_bytes()
    fields = read_gguf(path).fields
    path.write_bytes(b"GGUF" + struct.pack("<I", 2) + whole[8:])
    assert read_gguf(path).fields == fields


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "no whole GGUF file: it begins with b''"),
        (b"GGUF", "no whole GGUF file"),
        (b"PK\x03\x04 a zip file", r"it begins with b'PK"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(32), "GGUF version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(32), "its numbers are big-endian"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(32), "GGUF version 4"),
    ],
)
def test_what_is_no_such_file_is_named(start, message, tmp_path):
    path = tmp_path / "any.gguf"
    path.write_bytes(start)
    with pytest.raises(ValueError, match=message) as error:
        read_gguf(path)
    assert str(path) in str(error.value)


def header(n_tensors: int = 0, n_fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields) + rest


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HUGE = 2**62


@pytest.mark.parametrize(
    "content",
    [
        header(HUGE, 0),
        header(0, HUGE),
        header(0, 1, struct.pack("<Q", HUGE)),
        header(0, 1, string(b"a") + struct.pack("<I", 99)),
        header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 8, HUGE)),
        header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 4, HUGE)),
        header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 9, HUGE)),
        header(0, 1, string(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000),
        header(0, 1, string(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
        header(0, 2, 2 * (string(b"a") + struct.pack("<IB", 0, 1))),
        header(1, 0, string(b"a") + struct.pack("<IQIQ", 1, HUGE, 0, 0)),
        header(1, 0, string(b"a") + struct.pack("<IQIQ", 1, 8, 0, HUGE)),
        header(1, 0, string(b"a") + struct.pack("<IQIQ", 1, 8, 77, 0)),
        header(1, 0, string(b"a") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99)),
        header(1, 0, string(b"a") + struct.pack("<IIQ", 0, 0, 0) + bytes(99)),
        header(1, 0, string(b"a") + struct.pack("<I", 2**31)),
        header(2, 0, 2 * (string(b"a") + struct.pack("<IQIQ", 1, 1, 0, 0)) + bytes(99)),
        header(0, 1, string(b"general.alignment") + struct.pack("<II", 4, 0)),
        header(0, 1, string(b"general.alignment") + struct.pack("<If", 6, 32.0)),
    ],
)
def test_numbers_that_cannot_be_are_not_believed(content, tmp_path):
    path = tmp_path / "any.gguf"
    path.write_bytes(content)
    with pytest.raises(CorruptAssetError, match=r"any\.gguf is no whole GGUF file"):
        read_gguf(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "any.gguf")


@given(st.integers(0, 2000))
def test_a_file_that_is_cut_is_named(whole, kept):
    data = whole.read_bytes()
    path = whole.with_name("cut.gguf")
    path.write_bytes(data[: min(kept, len(data) - 1 - (-24 * 4 % 32))])
    with pytest.raises(CorruptAssetError, match="no whole GGUF file"):
        read_gguf(path)


@given(st.lists(st.tuples(st.integers(4, 1500), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_file_that_was_tampered_with_is_read_or_named(whole, changes):
    data = bytearray(whole.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path = whole.with_name("tampered.gguf")
    path.write_bytes(data)
    try:
        read_gguf(path)
    except ValueError as error:  # and nothing else
        assert str(path) in str(error)  # noqa: PT017
