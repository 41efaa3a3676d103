"""The tables of ``docs/`` say what was recorded."""

from __future__ import annotations

import pytest

from benchmarks import pages


def test_the_pages_say_what_the_records_say():
    found = pages.pages()
    assert [page.name for page in found] == ["proofs.md", "training.md"]
    for page in found:
        text = page.read_text("utf-8")
        assert text == pages.written(text), f"run `python -m benchmarks.pages` for {page.name}"


def test_each_table_stands_on_a_page():
    text = "".join(page.read_text("utf-8") for page in pages.pages())
    assert sorted(found[2] for found in pages.MARK.finditer(text)) == sorted(pages.BLOCKS)
    assert text.count("<!-- written by") == text.count("<!-- to here") == len(pages.BLOCKS)


@pytest.mark.parametrize(
    ("name", "record", "number", "other"),
    [("long runs", "finetuned_run.csv", "3.7788", "0.0001"),
     ("speed", "training_speed.csv", "2.991", "1.5"),
     ("generation", "generation_speed.csv", "39.7", "99.9"),
     ("few bits", "quantized_quality.csv", "55.92", "9.99"),
     ("equality", "planted_bugs.md", "| no final norm |", "no row")],
)  # fmt: skip
def test_another_record_makes_another_table(name, record, number, other, tmp_path, monkeypatch):
    data = pages.assets.ROOT / "data"
    (tmp_path / "data" / "records").mkdir(parents=True)
    for file in (*data.glob("*.md"), *data.glob("records/*.csv")):
        text = file.read_text("utf-8")
        if file.name == record:
            assert number in text
            text = text.replace(number, other, 1)
        (tmp_path / file.relative_to(data.parent)).write_text(text, "utf-8")
    before = pages.BLOCKS[name]()
    monkeypatch.setattr(pages.assets, "ROOT", tmp_path)
    monkeypatch.setattr(pages.assets, "records", lambda: tmp_path / "data" / "records")
    assert pages.BLOCKS[name]() != before
