"""What counts as copied: runs that stand in the text, with and without the speakers' names."""

import csv

from smol_scratch import assets
from smol_scratch.course.measure import training as measure


def rows(name):
    lines = (assets.records() / f"{name}.csv").read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_only_lines_that_name_a_speaker_are_left_out():
    play = "ROMEO:\nIs it so:\nthen, sir.\n\nFirst Citizen:\nNo.\n\nHe said:\n"
    assert measure.spoken(play) == "Is it so:\nthen, sir.\n\nNo.\n\n"
    assert measure.spoken("I said:\nno") == "no"  # at the start it cannot be told from a name
    assert measure.spoken("no\nROMEO:\nyes") == "no\nROMEO:\nyes"  # no empty line before it


def test_the_longest_run_is_the_first_of_its_length():
    assert measure.longest_run([9, 1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 0, 4, 5, 6]) == [1, 2, 3]
    assert measure.longest_run([9, 4, 5], [1, 2, 3, 0, 4, 5, 6]) == [4, 5]


def test_both_counts_are_of_the_same_samples():
    whole, speech = rows("copied"), rows("copied_speech")
    of = ("who", "how", "step")
    assert [[row[k] for k in of] for row in whole] == [[row[k] for k in of] for row in speech]
    models = [pair for pair in zip(whole, speech, strict=True) if pair[0]["who"] != "Shakespeare"]
    assert all(int(a["tokens"]) >= int(b["tokens"]) for a, b in models)
