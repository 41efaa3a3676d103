"""The bug clinic: symptoms are there, instruments see them, and only right answers count."""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smol_scratch import assets, clinic, hub
from smol_scratch.__main__ import main
from smol_scratch.clinic import desk, instruments, page, patient
from smol_scratch.clinic.instruments import INSTRUMENTS
from smol_scratch.clinic.patient import Patient, admit
from smol_scratch.clinic.symptoms import symptom
from smol_scratch.course.exercises import clinic as exercises
from smol_scratch.course.measure import clinic as measure

CASES = clinic.cases()
# Their symptoms ask the real weights, some seconds each.
REAL = {"wrong-partners", "wrong-gate", "twins", "missed-cue"}
each = pytest.mark.parametrize("one", CASES, ids=lambda one: one.key)


def digest():
    """Return what stands in the checkout's package, bytecode aside."""
    found = hashlib.sha256()
    for path in sorted(patient.HERE.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


BEFORE = digest()


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """Return a function from a case to its copy, made once; None is the healthy one."""

    @functools.cache
    def copy(one):
        faults = one.faults if one else ()
        return Patient(admit(tmp_path_factory.mktemp("case") / "copy", faults))

    return copy


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(line):
    return [float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", line)]


def alike(found, recorded):
    """Say whether two symptoms have the same words, and numbers that rounding cannot tell apart."""
    words = [re.sub(r"\d+\.?\d*(?:e[-+]?\d+)?", "#", line) for line in found]
    others = [re.sub(r"\d+\.?\d*(?:e[-+]?\d+)?", "#", line) for line in recorded]
    return words == others and all(
        abs(a - b) <= 0.15 + 0.1 * abs(b)
        for one, other in zip(found, recorded, strict=True)
        for a, b in zip(numbers(one), numbers(other), strict=True)
    )


# The cases


def test_at_least_two_dozen_in_four_levels():
    assert len(CASES) >= 24
    assert {one.level for one in CASES} == {1, 2, 3, 4}
    assert [one.level for one in CASES] == sorted(one.level for one in CASES)
    assert all(sum(one.level == level for one in CASES) >= 5 for level in clinic.LEVELS)
    for field in ("key", "title", "cause"):
        assert len({getattr(one, field) for one in CASES}) == len(CASES), field


@each
def test_a_case_is_whole(one):
    assert one.cause in clinic.causes()
    assert len(one.hints) == 2
    assert one.shows
    assert set(one.shows) <= set(clinic.tools())
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", one.link)
    assert one.like in clinic.searched()
    assert clinic.recorded()[one.key]
    given_away = clinic.causes()[one.cause]
    assert given_away not in one.complaint + "".join(one.hints)
    for file, lines in clinic.guilty(one).items():
        assert 1 <= len(lines) <= 6, file


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, marks=pytest.mark.slow if one.key in REAL else ()) for one in CASES],
    ids=lambda one: one.key,
)
def test_the_symptom_is_there(one, ill):
    assert alike(symptom(one, ill(one)), clinic.recorded()[one.key])


def test_another_symptom_is_noticed():
    seen = ["step  30: loss 4.1, gradient norm 0.0"]
    assert alike(["step  30: loss 4.2, gradient norm 0.0"], seen)
    assert not alike(["step  30: loss 2.2, gradient norm 0.0"], seen)
    assert not alike(["step  30: loss 4.1, gradient norm above 0"], seen)
    assert not alike([], seen)


@each
def test_its_instruments_see_it(one, ill):
    blind = [name for name in one.shows if INSTRUMENTS[name](ill(one)).fine]
    assert blind == []


@pytest.mark.parametrize("name", list(INSTRUMENTS))
def test_no_instrument_sees_a_fault_in_a_healthy_copy(name, ill):
    reading = INSTRUMENTS[name](ill(None))
    assert reading.fine, reading.lines


@each
def test_the_smallest_test_catches_it_and_passes_without_it(one, ill):
    given = vars(instruments) | {"torch": torch, "hub": hub}

    def run(p):
        torch.manual_seed(0)
        with p.inside():
            exec(one.test, given | {"p": p})

    run(ill(None))
    with pytest.raises((AssertionError, ValueError)):
        run(ill(one))


# Answers


@each
def test_the_right_answer_is_accepted_by_number_and_by_text(one):
    for file, lines in clinic.guilty(one).items():
        for line in lines:
            assert clinic.judge(one, file, line, one.cause).right
        text = clinic.faulty(one)[file].splitlines()
        pieces = [text[line - 1].strip() for line in lines if text[line - 1].strip()]
        whole = [piece for piece in pieces if sum(piece in there for there in text) == 1]
        assert all(clinic.judge(one, file, piece, one.cause).right for piece in whole)


def wrong_answers(one):
    """Yield plausible wrong answers: the fault's neighbours, near causes, other files."""
    (file, lines), *_ = clinic.guilty(one).items()
    line, last = min(lines), len(clinic.faulty(one)[file].splitlines())
    every = set().union(*clinic.accepted(one).values())
    for near in (line - 6, line - 3, line - 2, line + 3, line + 6, line + 12):
        if 1 <= near <= last and near not in every:
            yield file, near, one.cause
    others = [cause for cause in clinic.causes() if cause != one.cause]
    causes = list(clinic.causes())
    place = causes.index(one.cause)
    beside = [causes[i] for i in (place - 1, (place + 1) % len(causes))]
    for cause in {*difflib.get_close_matches(one.cause, others, 4, 0.1), *beside}:
        yield file, line, cause
    for other in ("model.py", "training.py", "data.py", "generation.py"):
        if other not in clinic.guilty(one):
            yield other, 50, one.cause


@each
def test_ten_plausible_wrong_answers_are_not(one):
    answers = list(wrong_answers(one))
    assert len(answers) >= 10
    assert [answer for answer in answers if clinic.judge(one, *answer).right] == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (("nothing.py", 1, "seed-not-set"), "no such file"),
        (("demo.py", 1, "seed-not-set"), "no such file"),
        (("model.py", 0, "seed-not-set"), "line 0"),
        (("model.py", 99_999, "seed-not-set"), "line 99999"),
        (("model.py", "no such line", "seed-not-set"), "in no line"),
        (("model.py", "", "seed-not-set"), "in no line"),
        (("model.py", 1, "seed-not-sat"), "did you mean seed-not-set"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_in_a_line(answer, words):
    with pytest.raises(ValueError, match=words):
        clinic.judge(CASES[0], *answer)


def test_a_piece_that_stands_in_many_lines_is_asked_for_more():
    one = clinic.case("nothing-happens")
    for file, piece in (("training", "optimizer"), ("model", "return")):
        with pytest.raises(ValueError, match=r"stands in \d+ lines .* by its number"):
            clinic.judge(one, file, piece, one.cause)


def test_a_mend_that_could_stand_elsewhere_is_a_right_answer_too():
    places = [(one, place) for one in CASES for place in one.also]
    assert places
    for one, (file, text) in places:
        assert clinic.judge(one, file, text, one.cause).right, one.key
        assert not clinic.judge(one, file, text, "head-not-tied").right


def test_each_cause_lies_in_one_drawer():
    lying = [cause for causes in clinic.drawers().values() for cause in causes]
    assert list(clinic.drawers()) == ["data", "model", "optimisation", "evaluation"]
    assert sorted(lying) == sorted(set(lying)) == sorted(clinic.causes())
    assert all({one.cause for one in CASES} & set(keys) for keys in clinic.drawers().values())


@each
def test_a_fault_cannot_be_found_by_a_linter(one, tmp_path):
    place = admit(tmp_path / "copy", one.faults) / patient.NAME
    files = [str(place / file) for file in clinic.faulty(one)]
    config = ["--config", str(assets.ROOT / "pyproject.toml"), "--no-cache"]
    # The exemptions of pyproject.toml go by path: a public method of model.py needs no docstring.
    for command in (["check", "--ignore", "D102"], ["format", "--check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config, *files],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout


# The copy


def test_a_fault_that_does_not_fit_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="occurs 0 times"):
        admit(tmp_path / "x", [("model.py", "no such text", "")])


def test_inside_the_package_is_the_copy_and_outside_it_is_not(ill):
    import smol_scratch.model

    p = ill(CASES[2])
    with p.inside():
        import smol_scratch.model as inner

        assert Path(inner.__file__).is_relative_to(p.folder)
    assert p.model is inner
    assert sys.modules["smol_scratch.model"] is smol_scratch.model is not inner
    assert str(p.folder) not in sys.path


def test_an_error_in_a_copy_is_a_reading_and_leaves_nothing_behind(tmp_path):
    p = Patient(admit(tmp_path / "x"))
    (p.folder / "smol_scratch" / "model.py").write_text("raise RuntimeError('broken')\nmore")
    modules = set(sys.modules)
    reading = INSTRUMENTS["causality"](p)
    assert reading == (
        False,
        ("✗ stopped with SyntaxError: invalid syntax (model.py, line 2)",),
    ) or ("stopped with" in reading.lines[0])
    assert set(sys.modules) - modules == set()


def test_the_reader_may_mend_the_copy(tmp_path):
    one = clinic.case("average-of-the-future")
    folder = admit(tmp_path / "x", one.faults)
    assert not INSTRUMENTS["causality"](Patient(folder)).fine
    ((file, old, new),) = one.faults
    path = folder / "smol_scratch" / file
    path.write_text(path.read_text("utf-8").replace(new, old), "utf-8")
    assert INSTRUMENTS["causality"](Patient(folder)).fine


# The record, the page and the notebook


def test_the_record_is_of_these_cases_and_these_instruments():
    found = page.measured()
    tools = clinic.tools()
    assert found.cost == {name: tool.cost for name, tool in tools.items()}
    assert list(found.operations) == list(found.share) == list(tools)
    assert list(found.seen) == [page.HEALTHY, *(one.key for one in CASES)], (
        "run `python -m benchmarks.record_clinic --table data/records/clinic.csv`"
    )
    assert not found.seen[page.HEALTHY]
    for one in CASES:
        assert set(one.shows) <= set(found.seen[one.key]), one.key
    assert 0.9 < sum(found.share.values()) < 1.1, "rounded to a digit each"
    assert min(found.operations.values()) >= 0


def test_a_case_is_introduced_by_its_cheapest_witnesses():
    """The desk names the cheapest of `shows`, which a wheel has; the record has none cheaper."""
    found = page.measured()
    for one in CASES:
        cost = [min(found.cost[name] for name in some) for some in (one.shows, found.seen[one.key])]
        assert cost[0] == cost[1], (one.key, found.seen[one.key])


# One of each kind of cost, and the gentlest of the model's faults.
@pytest.mark.slow
@pytest.mark.parametrize("key", ["first-word", "last-voice", "short-memory"])
def test_a_whole_row_is_as_recorded(key, ill):
    one = clinic.case(key)
    seen = tuple(name for name, use in INSTRUMENTS.items() if not use(ill(one)).fine)
    assert seen == page.measured().seen[key]


def test_every_instrument_was_seen_to_fail(tmp_path):
    seen = {name for names in page.measured().seen.values() for name in names}
    assert set(INSTRUMENTS) - seen == {"batch"}, "the others see a case"
    fault = ("model.py", "pow(2).mean(-1, ", "pow(2).mean((0, -1), ")
    assert not INSTRUMENTS["batch"](Patient(admit(tmp_path / "x", [fault]))).fine


def test_what_the_exercises_of_the_notebook_say():
    found, four = page.measured(), measure.narrowed(27)
    assert measure.narrowed("blame-the-cache") == four
    assert found.seen["nothing-happens"][0] == "gradients"
    [last] = measure.agreeing(found, four, {"causality": "✓", "cache": "✗"})
    assert clinic.case(last).number == 27
    ward = measure.Table("healthy")
    ward.change("model.py", "pow(2).mean(-1, ", "pow(2).mean((0, -1), ")
    red = [name for name, fine in ward.use_all().items() if not fine]
    assert red == ["batch", "half", "accumulate", "foreign", "ladder"]
    lines = INSTRUMENTS["ladder"](ward.patient).lines
    assert next(line for line in lines if line[0] == "✗") == lines[0] == "✗ RMSNorm: differs"
    assert len(page.symptoms()) == 31


def test_the_exercise_shows_the_check_that_the_checker_uses():
    stored = json.loads((assets.ROOT / "notebooks" / "16_clinic.ipynb").read_text("utf-8"))
    shown = "".join("".join(cell["source"]) for cell in stored["cells"])
    body = inspect.getsource(exercises.glance).rpartition('"""\n')[2]
    assert f"def glance(Loader):\n{body}```" in shown


def test_a_search_costs_what_it_must():
    cost = {"a": 1, "b": 2}
    found = page.Measured(cost, cost, {}, {"x": ("a",), "y": ("b",), "z": ("b",)})
    first = lambda left, tools: tools[0]  # noqa: E731
    assert measure.search(found, "x", "xyz", first) == 1
    assert measure.search(found, "y", "xyz", first) == 1, "y and z look alike"
    assert measure.search(found, "y", "yz", first) == 0
    assert measure.search(found, "x", "xyz", lambda left, tools: tools[-1]) == 2
    assert page.bits(1, 2) == 1
    assert page.bits(0, 5) == page.bits(5, 5) == 0


def test_every_instrument_has_its_question():
    assert list(clinic.tools()) == list(INSTRUMENTS)
    assert {tool.cost for tool in clinic.tools().values()} == {1, 2, 3}


def test_the_page_is_made_of_them():
    assert page.PAGE.read_text("utf-8") == page.page(), (
        "run `python -m benchmarks.record_clinic --page`"
    )
    assert set(clinic.searched()) == {one.like for one in CASES}


# The desk


def clinic_says(capsys, tmp_path, *words):
    assert main(["clinic", *words, "--folder", str(tmp_path / "desk")]) == 0
    return capsys.readouterr().out


def test_a_game(capsys, tmp_path):
    one = clinic.case("average-of-the-future")
    number = str(one.number)
    says = functools.partial(clinic_says, capsys, tmp_path)
    assert one.title in says()
    opened = says("open", number)
    assert clinic.recorded()[one.key][0] in opened
    assert one.cause not in opened
    assert "✗ tokens from position 6 on" in says("run", number, "causality")
    assert says("run", number, "causality").endswith("1 point so far\n"), "paid once"
    assert "the file is right, the line is not, the cause is not" in says(
        "answer", number, "model.py", "1", "gelu-for-silu"
    )
    assert "Hint 1" in says("hint", number)
    solved = says("answer", number, "model.py", "mean(-2", one.cause)
    assert "Solved with 4 points" in solved
    assert "suspicion" not in solved, "causality has shown it"
    assert "The cheapest instrument that shows it is causality (cost 1)" in solved
    assert one.link in solved
    assert "[solved, 4 points]" in says("list")
    says("reset", number)
    assert not list((tmp_path / "desk").iterdir())


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["opn", "1"], "clinic opn: must be one of"),
        (["open"], "the form is"),
        (["open", "1", "2"], "the form is"),
        (["open", "99"], "case 99: there are 1 to"),
        (["run", "1", "causality"], "is not open"),
        (["hint", "1"], "is not open"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, error, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["clinic", *words, "--folder", str(tmp_path / "desk")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1


def test_damage_and_things_in_the_way_are_said(capsys, tmp_path):
    here = desk.Desk(tmp_path)
    here.open(CASES[0])
    with pytest.raises(ValueError, match="no such instrument; there are first-loss"):
        here.run(CASES[0], "oracle")
    (here.place(CASES[0]) / desk.STATE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        here.state(CASES[0])
    here.place(CASES[1]).mkdir()
    with pytest.raises(ValueError, match="is in the way"):
        here.open(CASES[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        desk.Desk(tmp_path / "file")
    capsys.readouterr()


def test_opening_a_case_needs_no_pytorch(tmp_path):
    program = "import sys; from smol_scratch.__main__ import main\n"
    program += f"main(['clinic', 'open', '3', '--folder', {str(tmp_path / 'desk')!r}])\n"
    program += "print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=assets.ROOT, check=True
    )
    assert ran.stdout.endswith("False\n")
    state = json.loads((tmp_path / "desk" / "case-03" / desk.STATE).read_text())
    assert state["used"] == []


def test_the_checkout_is_as_it_was():
    """Last in this file: after all that was run above."""
    assert digest() == BEFORE
