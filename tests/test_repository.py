"""What surrounds the package: workflow, forms, changelog, and what a wheel and an sdist hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import smol_scratch
from smol_scratch import assets
from smol_scratch.__main__ import main
from smol_scratch.course import book

ROOT = assets.ROOT
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read_yaml(path):
    return yaml.safe_load(path.read_text("utf-8"))


# The workflow

WORKFLOW = read_yaml(ROOT / ".github" / "workflows" / "test.yml")
JOBS = WORKFLOW["jobs"]


def steps(job):
    return [
        line.strip() for step in JOBS[job]["steps"] for line in step.get("run", "").splitlines()
    ]


def test_the_workflow_tries_the_oldest_and_the_newest_python_that_are_claimed():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    newest = re.search(r"Python 3\.11 to (3\.\d+)", README).group(1)
    for job in JOBS.values():
        assert job["strategy"]["matrix"]["python"] == [oldest, newest]
    systems = {*JOBS["make"]["strategy"]["matrix"]["system"], JOBS["windows"]["runs-on"]}
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}


def test_the_workflow_runs_the_commands_of_the_readme():
    with_make = [line for line in steps("make") if line.startswith("make ")]
    assert with_make == ["make notebooks", "make test"]
    for target in with_make:
        assert re.search(rf"^{target} ", README, re.M)
        assert f"\n{target.removeprefix('make ')}: " in (ROOT / "Makefile").read_text("utf-8")
    block = README.partition("Without <code>make</code> (Windows)")[2].partition("```text\n")[2]
    commands = [
        line.partition(" #")[0].rstrip() for line in block.partition("\n\n")[0].splitlines()
    ]
    assert len(commands) == 5
    assert [line for line in steps("windows") if line in commands] == commands
    torch = next(line for line in steps("make") if "torch" in line)
    assert torch in README.replace("\n", " ")
    assert all(
        "smol_scratch doctor --json build/doctor.json" in " ".join(steps(job)) for job in JOBS
    )


def test_what_was_never_run_says_so():
    assert "never run until the repository has a home" in " ".join(CONTRIBUTING.split())


def test_the_workflow_of_the_book_publishes_what_make_book_builds():
    path = ROOT / ".github" / "workflows" / "book.yml"
    assert "Never run" in path.read_text("utf-8").partition("name:")[0]
    published = read_yaml(path)
    assert published["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    [job] = published["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1] == "make book"
    assert runs[0] in README.replace("\n", " "), "the torch that the README names"
    assert "\nbook: " in (ROOT / "Makefile").read_text("utf-8")
    [upload] = [step for step in job["steps"] if "upload-pages" in step.get("uses", "")]
    assert upload["with"]["path"] == book.BOOK.relative_to(ROOT).as_posix()
    [version] = [step["with"]["python-version"] for step in job["steps"]
                 if "setup-python" in step.get("uses", "")]  # fmt: skip
    assert version == PROJECT["requires-python"].removeprefix(">=")


# The forms


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_takes(path):
    form = read_yaml(path)
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("input", "textarea")
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_there_are_forms_for_a_bug_a_question_and_a_text_and_the_bug_wants_the_doctor():
    assert [path.stem for path in FORMS] == ["bug", "question", "text"]
    bug = {field["id"]: field for field in read_yaml(FORMS[0])["body"]}["doctor"]
    assert "python -m smol_scratch doctor --json" in bug["attributes"]["description"]
    assert bug["validations"]["required"]
    assert "CHANGELOG.md" in (ROOT / ".github" / "pull_request_template.md").read_text("utf-8")


# Changelog and version


def test_the_changelog_is_in_its_form():
    log = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.+)$", log, re.M)
    assert versions[0] == "Unreleased"
    assert all(
        re.fullmatch(r"\[?\d+\.\d+\.\d+\]? - \d{4}-\d\d-\d\d", name) for name in versions[1:]
    )
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", log, re.M)) <= kinds


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"smol_scratch {smol_scratch.__version__}\n"


def written(process: subprocess.Popen, folder: Path, pattern: str, end: str) -> str:
    """Wait until the process has written a whole file; return its text."""
    while True:
        for path in folder.glob(pattern):
            text = path.read_text("utf-8").rstrip()
            if text.endswith(end):
                return text
        assert process.poll() is None
        time.sleep(0.1)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.slow
def test_lab_opens_the_first_notebook_and_serves_what_it_links_to(tmp_path):
    # Under `make slow` this make would know that it is the inner one, and say so around its recipe.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(
        ["make", "-n", "-o", ".venv/.ready", "lab"],
        cwd=ROOT, env=alone, capture_output=True, text=True,
    )  # fmt: skip
    _, *words = shlex.split(made.stdout.splitlines()[-1])
    # Any port, nobody asked; the containers that tests run in have one user, root.
    settings = ["--no-browser", "--ServerApp.port=0", "--IdentityProvider.token=", "--allow-root"]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    server = subprocess.Popen(
        [sys.executable, *words, *settings], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | dict.fromkeys(names, str(tmp_path)),
    )  # fmt: skip
    try:
        # A file is there before what it holds is: it is read when its end is.
        told, opened = (
            written(server, tmp_path, f"jpserver-*{rest}", end)
            for rest, end in ((".json", "}"), ("-open.html", "</html>"))
        )
        told = json.loads(told)
        first = sorted(path.name for path in ROOT.glob("notebooks/*.ipynb"))[0]
        assert f"/lab/tree/notebooks/{first}" in opened
        for linked in ("README.md", "data/README.md", f"notebooks/{first}"):
            with urllib.request.urlopen(f"{told['url']}api/contents/{linked}") as answer:
                assert json.load(answer)["path"] == linked
    finally:
        server.terminate()
        server.wait()


# What is built


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Return the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_what_the_package_reads(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    for file in ("py.typed", "doctor_reference.json", "constraints.txt", "requirements-assets.txt"):
        assert f"smol_scratch/{file}" in names
    assert "smol_scratch/records/full_run.csv" in names
    assert not [name for name in names if name.startswith("tests")]
    entries = next(name for name in names if name.endswith("entry_points.txt"))
    said = zipfile.ZipFile(built[0]).read(entries).decode()
    assert "smol-scratch = smol_scratch.__main__:main" in said


def test_the_sdist_holds_what_its_tests_need(built):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    tracked = {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    with tarfile.open(built[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    # What only work on the repository itself needs.
    assert tracked - held == {".ci/run", ".gitattributes", ".pre-commit-config.yaml"}


def test_another_projects_type_checker_sees_the_types(built, tmp_path):
    venv.create(tmp_path / "other")
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    python = tmp_path / "other" / inside
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    zipfile.ZipFile(built[0]).extractall(site.strip())
    (tmp_path / "theirs.py").write_text(
        "from smol_scratch import SmolLM2Config\n"
        "good = SmolLM2Config(n_layer=6)\n"
        'bad = SmolLM2Config(n_layer="six")\n'
        "from smol_scratch import SmolLM3\n"
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "theirs.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    *errors, last = ran.stdout.splitlines()
    assert last.startswith("Found 2 errors in 1 file"), ran.stdout
    assert errors[0].startswith('theirs.py:3: error: Argument "n_layer"')
    assert errors[1].startswith('theirs.py:4: error: Module "smol_scratch" has no attribute')


@pytest.mark.slow
def test_the_readmes_lines_of_python_run_in_a_fresh_installation(built, tmp_path):
    """The wheel in an environment of its own, in an empty folder; PyTorch is this one's."""
    venv.create(tmp_path / "other", symlinks=os.name != "nt")
    scripts = tmp_path / "other" / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "-q", "--no-deps", "--no-index", str(built[0])]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", scripts / "python", *install], check=True
    )
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ask = [scripts / "python", "-c", ask]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (site / "other.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind its own
    # `python -m smol_scratch assets`, the line before them, has brought what is in this folder.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"SMOL_SCRATCH_DATA": str(assets.data_dir()), "HF_HUB_OFFLINE": "1"}
    place = tmp_path / "empty"
    place.mkdir()

    def run(*command):
        ran = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    shown = run(scripts / "python", "-c", "import smol_scratch; print(smol_scratch.__file__)")
    assert Path(shown.strip()).is_relative_to(site)
    assert run(scripts / "smol-scratch", "--version").startswith("smol_scratch ")
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("## Use the parts")[2]
    assert section.index("python -m smol_scratch assets") < section.index("```python")
    [lines] = re.findall(r"```python\n(.+?)```", section, re.DOTALL)
    weights, text = run(scripts / "python", "-c", lines).split("\n", 1)
    assert weights.startswith("weights: ")
    assert text.startswith("To be, or not to be")
    assert [path.name for path in place.iterdir()] == ["my_model"]
    listed = "import sys; from smol_scratch import *; print(*sorted(sys.modules))"
    assert "transformers" not in run(scripts / "python", "-c", listed).split()


def test_the_short_name_is_the_long_one(tmp_path):
    script = PROJECT["scripts"]["smol-scratch"]
    module, _, function = script.partition(":")
    ask = f"import sys; from {module} import {function}; sys.exit({function}(['--version']))"
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == f"smol_scratch {smol_scratch.__version__}\n"
