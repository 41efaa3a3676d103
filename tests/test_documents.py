"""Documents out of every kind of file: the same tokens, and nothing lost or counted twice."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from smol_scratch import documents, load_text, load_tokenizer, shards
from smol_scratch.__main__ import main
from smol_scratch.documents import Report, Seen, input_files, read_documents, usable
from smol_scratch.shards import TokenShards, write_shards

pyarrow = pytest.importorskip("pyarrow", reason="pip install smol_scratch[shards]")
parquet = pytest.importorskip("pyarrow.parquet")

SPEECHES = load_text()[:40_000].split("\n\n")[:120]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def json_lines(texts, column="text"):
    return "".join(json.dumps({"n": i, column: text}) + "\n" for i, text in enumerate(texts))


def write(path, texts):
    """Write documents in the form that a file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json_lines(texts).encode()
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(rows))
    elif path.name.endswith(".zst"):
        middle = rows.index(b"\n", len(rows) // 2) + 1  # two frames, as appending tools leave them
        codec = pyarrow.Codec("zstd")
        frames = [codec.compress(part, asbytes=True) for part in (rows[:middle], rows[middle:])]
        path.write_bytes(b"".join(frames))
    elif path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    elif path.name.endswith(".txt"):
        path.write_text("<|endoftext|>".join(texts), encoding="utf-8", newline="")
    else:
        path.write_bytes(rows)
    return path


NAMES = ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


def stored(folder, *flags):
    """Run the command; return the shards and the report."""
    assert main(["shards", "--output", str(folder), *map(str, flags)]) == 0
    return TokenShards(folder, load_tokenizer().fingerprint), json.loads(
        (folder / "report.json").read_text("utf-8")
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_same_tokens(tmp_path, tokenizer, name):
    found, report = stored(tmp_path / "out", "--input", write(tmp_path / name, SPEECHES))
    expected = [t for text in SPEECHES for t in (*tokenizer.encode(text), tokenizer.eos_id)]
    assert found[:].tolist() == expected
    assert len(found.documents) == report["documents"] == len(SPEECHES)
    assert report["tokens"] == len(expected)
    assert report["bytes"] == sum(len(text.encode()) for text in SPEECHES)
    assert report["bytes_per_token"] == pytest.approx(report["bytes"] / len(expected), abs=1e-4)
    assert report["skipped"] == {}


def test_folders_are_read_in_order_and_a_data_set_behind_them(tmp_path, tokenizer):
    for i, name in enumerate(NAMES):
        write(tmp_path / "in" / f"{i}" / name, SPEECHES[i * 5 : i * 5 + 5])
    (tmp_path / "in" / "picture.png").write_bytes(b"no text")
    rows = write(tmp_path / "set" / "train.jsonl", SPEECHES[25:40])
    found, report = stored(tmp_path / "out", "--input", tmp_path / "in", "--dataset", rows.parent)
    assert tokenizer.decode(found[:]) == "".join(f"{text}<|endoftext|>" for text in SPEECHES[:40])
    assert report["files"] == 6


def test_a_name_on_the_hub_needs_a_commit(tmp_path, capsys):
    for name in ("owner/set", "owner/set@main"):
        with pytest.raises(SystemExit):
            main(["shards", "--output", str(tmp_path / "out"), "--dataset", name])
        assert "a revision must be pinned" in capsys.readouterr().err


def test_a_data_set_is_streamed_at_its_commit(tmp_path, monkeypatch):
    """Not downloaded whole, and what stands behind the name now is what is read tomorrow."""
    asked = []

    def load_dataset(name, **how):
        asked.append((name, how))
        return [{"words": "One."}, {"words": "Two."}]

    monkeypatch.setattr(
        documents, "library", lambda name: SimpleNamespace(load_dataset=load_dataset)
    )
    commit, report = "0123456789" * 4, Report()
    for name in (f"owner/set@{commit}", str(tmp_path)):
        parts = list(documents.read_dataset(name, "test", "words", report))
        assert [(part.where, part.piece.text) for part in parts] == [
            (f"{name} row 0", "One."),
            (f"{name} row 1", "Two."),
        ]
    assert report.files == 2
    same = {"split": "test", "streaming": True}
    assert asked == [
        ("owner/set", same | {"revision": commit}),
        (str(tmp_path), same | {"revision": None}),
    ]


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path, capsys):
    rows = json_lines(SPEECHES[:3]) + "\n" + '{"text": 5}\n{"text": null}\n["text"]\nno json\n'
    rows += json_lines(["", " \n", "a\x04b", SPEECHES[0], "\ud800", "the last"])
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    out = tmp_path / "out"
    found, report = stored(out, "--input", *sorted(tmp_path.glob("*.*")), "--unique")
    assert report["documents"] == len(found.documents) == 4
    assert report["skipped"] == {
        "holds no text in its field 'text'": 2,
        "has no field 'text'": 1,
        "is no JSON": 1,
        "is empty": 3,
        "holds U+0004, which the vocabulary lacks": 1,
        "holds U+D800, which the vocabulary lacks": 1,
        "was there before": 1,
        "is no UTF-8": 1,
    }
    assert report["first_skipped"]["is no JSON"] == f"{tmp_path / 'a.jsonl'} line 8"
    said = capsys.readouterr().out
    assert "4 documents" in said
    assert "3 left out, since each is empty" in said
    assert not (out / ".seen.sqlite").exists()


def test_another_column(tmp_path, tokenizer, capsys):
    (tmp_path / "a.jsonl").write_text(json_lines(SPEECHES[:2], "body"))
    found, _ = stored(tmp_path / "out", "--input", tmp_path / "a.jsonl", "--text-column", "body")
    assert len(found.documents) == 2
    table = write(tmp_path / "a.parquet", SPEECHES[:2])
    with pytest.raises(SystemExit):
        main(["shards", "--output", str(tmp_path / "o"), "--input", str(table),
              "--text-column", "body"])  # fmt: skip
    assert "has no column 'body', it has text" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_a_torn_file_is_an_error_that_names_it(tmp_path, capsys, name, how):
    path = write(tmp_path / name, SPEECHES)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3] if how == "cut" else b"garbage" * 50)
    with pytest.raises(SystemExit):
        main(["shards", "--output", str(tmp_path / "out"), "--input", str(path)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--input {path}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to read; name --input or --dataset"),
        (["--input", "absent.txt"], "--input absent.txt: no such file or folder"),
        (["--input", "empty"], "--input empty: is a folder without files of .txt"),
        (["--input", "a.pdf"], "--input a.pdf: must be a file of .txt"),
        (["--input", "blank.txt"], "no document can be used: 1 left out, since each is empty"),
        (["--input", "a.txt", "--output", "empty/.."], "holds a.pdf, which is no part of shards"),
        (["--input", "a.txt", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--input", "a.txt", "--shard-tokens", "0"], "--shard-tokens 0: must be"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.txt": "words", "a.pdf": "words", "blank.txt": " \n"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    output = [] if "--output" in flags else ["--output", "out"]
    with pytest.raises(SystemExit):
        main(["shards", *flags, *output])
    said = [line for line in capsys.readouterr().err.splitlines() if "smol_scratch" in line]
    assert len(said) == 1
    assert message in said[0]


def test_a_long_document_is_read_in_pieces_and_lies_in_several_shards(
    tmp_path, tokenizer, monkeypatch
):
    """A document longer than what is held back, and than a shard, beside short and empty ones."""
    monkeypatch.setattr(documents, "HELD", 30_000)
    monkeypatch.setattr(documents, "PIECE", 5_000)
    monkeypatch.setattr(shards, "BATCH", 10_000)
    text = load_text()[:200_000]
    for name, content in {"a.txt": "short", "b.txt": text, "c.txt": "", "d.txt": "end"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    held = []
    encode = tokenizer.encode_batch
    monkeypatch.setattr(
        type(tokenizer), "encode_batch", lambda self, b: held.append(sum(map(len, b))) or encode(b)
    )
    report = Report()
    parts = read_documents(input_files([tmp_path]), "text", report)
    found = write_shards(tmp_path / "out", usable(parts, tokenizer, report), tokenizer, 10_000)
    monkeypatch.undo()
    expected = [[*tokenizer.encode(each), tokenizer.eos_id] for each in ("short", text, "end")]
    assert found[:].tolist() == [token for each in expected for token in each]
    assert found.ends.tolist() == [len(expected[0]), sum(map(len, expected[:2])), len(found)]
    assert len(files(tmp_path / "out")) > 2 * 5
    assert max(held) < 20_000  # of 200,000 characters: never the whole
    assert report.documents == 3
    assert report.skipped == {"is empty": 1}


def test_a_fault_in_a_document_too_long_to_be_left_out_is_an_error(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(documents, "HELD", 10_000)
    monkeypatch.setattr(documents, "PIECE", 1_000)
    (tmp_path / "a.txt").write_text(load_text()[:30_000] + "\x04", encoding="utf-8")
    report = Report()
    parts = read_documents(input_files([tmp_path]), "text", report)
    with pytest.raises(ValueError, match=r"a\.txt: holds U\+0004.*too long to be left out"):
        list(usable(parts, tokenizer, report))


def test_what_was_seen_lies_in_a_file(tmp_path):
    seen = Seen(tmp_path / "seen")
    assert [seen.is_new(bytes([n])) for n in (1, 2, 1, 3, 2)] == [True, True, False, True, False]
    seen.close()
    assert not (tmp_path / "seen").exists()


# Encodes less at once than the real one, so that its shards come one after the other.
PROGRAM = """
import sys
from smol_scratch import shards
from smol_scratch.__main__ import main
shards.BATCH = 20_000
main(sys.argv[1:])
"""


def command(folder, source, *flags):
    words = ["-c", PROGRAM, "shards", "--output", folder, "--input", source, *flags]
    return [sys.executable, *map(str, words)]


def test_the_number_of_workers_changes_nothing(tmp_path):
    source = write(tmp_path / "a.jsonl", SPEECHES)
    for workers in (1, 2):
        flags = ["--workers", workers, "--shard-tokens", 3000]
        subprocess.run(command(tmp_path / f"{workers}", source, *flags), check=True, cwd=ROOT,
                       capture_output=True)  # fmt: skip
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_killed_at_any_moment_it_goes_on_and_nothing_is_twice_or_lost(tmp_path):
    text = load_text()[:600_000].split("\n\n")
    source = write(tmp_path / "a.jsonl", text * 2)
    flags = ["--shard-tokens", 8000, "--unique"]
    expected, _ = stored(tmp_path / "whole", "--input", source, *flags)
    killed, out = 0, tmp_path / "out"
    for wanted in (1, 4, 9):
        process = subprocess.Popen(
            command(out, source, *flags), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(out.glob("shard-*"))) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    with pytest.raises(ValueError, match="unfinished"):
        TokenShards(out, expected.fingerprint)
    found, report = stored(out, "--input", source, *flags)
    assert files(out) == files(tmp_path / "whole")
    assert found.sha256 == expected.sha256
    assert report["documents"] == len({each for each in text if each.strip()})
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))
