"""Outputs are joined and compared cell by cell, and each command does its own work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from smol_scratch.course import notebook


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def result(text, **more):
    return new_output("execute_result", {"text/plain": text, **more})


def of_cell(*outputs):
    return new_notebook(cells=[new_code_cell("...", outputs=[*outputs])])


def test_pieces_of_one_stream_are_joined_where_they_are_neighbours():
    pieces = [stream("a"), stream("b"), result("r"), stream("c"), stream("d"),
              stream("e", "stderr"), stream("f", "stderr"), stream("g"), result("s")]  # fmt: skip
    joined = notebook._merged(pieces)
    assert [output.get("text", output.get("data")) for output in joined] == [
        "ab", {"text/plain": "r"}, "cd", "ef", "g", {"text/plain": "s"},
    ]  # fmt: skip
    assert [output.get("name") for output in joined] == [
        "stdout", None, "stdout", "stderr", "stdout", None,
    ]  # fmt: skip
    assert notebook._merged([]) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ([stream("1\n2\n3")], [stream("1\n2\n4")], "'3', now '4'"),
        ([stream("1\n2")], [stream("1\n2\n3")], "'nothing', now '3'"),
        ([result("a\nb")], [result("a\nc")], "'b', now 'c'"),
        ([stream("x")], [stream("x", "stderr")], "stream, now stream"),
        ([stream("x")], [result("x")], "stream, now execute_result"),
        ([stream("x")], [], "1 outputs, now 0"),
        ([result("x")], [result("x", **{"text/html": "x"})], "['text/plain'], now ['text/html', "),
        ([stream("x"), result("y")], [stream("x"), result("z")], "'y', now 'z'"),
        ([new_output("error", ename="A")], [new_output("error", ename="B")], "error, now error"),
    ],
)
def test_the_first_line_that_differs_is_shown(old, new, said):
    found = notebook.differences(of_cell(*old), of_cell(*new))
    assert list(found) == [1]
    assert found[1].startswith(said)
    for same in (old, new):
        assert notebook.differences(of_cell(*same), of_cell(*same)) == {}


def test_outputs_are_taken_out_of_code_cells_and_nothing_else_is_touched():
    cells = [new_markdown_cell("Words."), new_code_cell("1", outputs=[result("1")])]
    cells[1].execution_count = 7
    words, code = notebook.cleared(new_notebook(cells=cells)).cells
    assert "outputs" not in words
    assert (code.source, code.outputs, code.execution_count) == ("1", [], None)


def test_a_run_shows_what_differs_below_its_notebook_and_counts_failures(
    tmp_path, monkeypatch, capsys
):
    results = {"01_a": ["other outputs in 1", "cell 2: '1', now '2'"], "02_b": ["FAILED: no"]}
    asked = []

    def alone(path, folder, environment):
        asked.append(environment)
        return results[path.stem]

    monkeypatch.setattr(notebook, "_run_alone", alone)
    paths = [tmp_path / f"{stem}.ipynb" for stem in results]
    assert notebook.run(paths[:1], tmp_path, jobs=1) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == ["01_a: other outputs in 1", "  cell 2: '1', now '2'"]
    assert out[3] == ""
    assert notebook.run(paths, tmp_path, jobs=2) == 1
    assert asked == [{}, *[{"SMOL_SCRATCH_THREADS": "1"}] * 2]


@pytest.mark.parametrize(
    ("command", "does", "status"),
    [
        (["run"], "run", 1),
        (["one"], "run_one", 0),
        (["portable", "--machine", "one-thread"], "portable", 1),
        (["refresh"], "refresh", 0),
        (["address"], "write_address", 0),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_each_command_does_its_own_work(command, does, status, named, tmp_path, monkeypatch):
    """A status is at most 1, however many notebooks failed: 256 of them would look like none."""
    calls = []
    for name in ("run", "run_one", "portable", "refresh", "write_address"):

        def work(*given, name=name):
            calls.append(SimpleNamespace(name=name, given=given))
            return 256

        monkeypatch.setattr(notebook, name, work)
    path = tmp_path / "01_a.ipynb"
    path.touch()
    monkeypatch.setattr(notebook, "notebooks", lambda: [path, path])
    first, *more = command
    assert notebook.main([first, *([str(path)] if named else []), *more]) == status
    times = 1 if named or does != "run_one" else 2
    assert [call.name for call in calls] == [does] * times
    paths = path if does == "run_one" else [path] if named else [path, path]
    assert calls[0].given[0] == paths
    if does == "portable":
        assert calls[0].given[1] == ["one-thread"]


def test_a_notebook_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        notebook.main(["run", "no/such.ipynb"])
    assert "no such notebook: " in capsys.readouterr().err
