"""Plant small faults in the package, one at a time, and count which of them the tests see.

``python -m benchmarks.mutants generation hub`` plants a sample of the faults that cosmic-ray's
operators (``pip install cosmic-ray``) make in these modules: another comparison, another number, a
``not``, a loop that is left out, a decorator that is gone. All happens in copies of the checkout.

First the tests run once under ``coverage``, which writes down which test executes which line (kept
with ``--lines``). A fault is then tried against the tests that execute its line, quickest first,
until one fails; what no test executes is tried against the tests of its file. Each fault has a
process of its own, forked from one that has loaded the libraries already, so that most of them
take a second or two. The table counts planted and caught by module; the faults that slipped
through are shown below it as diffs.

cosmic-ray's own command starts pytest anew for each fault, and loading the libraries takes longer
than the tests that matter. mutmut leaves out decorated functions, which all checkers of exercises
are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "smol_scratch"
SLOWEST = 120  # seconds for one fault, beyond ten times what its tests took
# Whole programs in other processes, where no line is seen, and what looks at texts, not at code.
LEFT_OUT = (
    "test_book", "test_distributed", "test_doctor", "test_notebooks", "test_planted_bugs",
    "test_readme", "test_repository", "test_space", "test_fuzz", "test_oracle", "test_pictures",
)  # fmt: skip
LIBRARIES = (
    "torch", "transformers", "numpy", "safetensors.torch", "tokenizers", "gguf", "hypothesis",
    "jinja2", "huggingface_hub", "matplotlib.pyplot", "torch._dynamo", "transformers.models.llama",
)  # fmt: skip


class Fault(NamedTuple):
    """A module with one change: where it is, who made it, and the whole text."""

    module: str
    line: int
    operator: str
    text: str


# Faults


def annotations(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations stand: nothing computes them, so nothing can see a fault there."""
    parts = [
        part
        for node in ast.walk(tree)
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if isinstance(part, ast.expr)
    ]
    return [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in parts]


def faults(module: str, n: int, seed: int) -> list[Fault]:
    """Draw faults: the places evenly over all that can be changed, then a change for each."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code

    text = (PACKAGE / f"{module}.py").read_text("utf-8")
    tree = ast.parse(text)
    never, nodes = annotations(tree), list(ast_nodes(get_ast(text)))
    places: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(plugins.operator_names()):
        operator = plugins.get_operator(name)
        if operator.arguments():
            continue
        number = 0
        for node in nodes:
            for start, _ in operator().mutation_positions(node):
                if not any(first <= start < last for first, last in never):
                    places[start].append((name, number))
                number += 1
    chance = random.Random(f"{seed} {module}")
    chosen = sorted(places)
    chance.shuffle(chosen)
    found = []
    for place in chosen:
        name, number = chance.choice(places[place])
        changed = mutate_code(text, plugins.get_operator(name)(), number)
        with contextlib.suppress(SyntaxError):
            if changed and ast.dump(ast.parse(changed)) != ast.dump(tree):
                found.append(Fault(module, place[0], name.removeprefix("core/"), changed))
        if len(found) == n:
            break
    return found


def difference(fault: Fault) -> str:
    """Return what a fault changes, without what is around it."""
    old = (PACKAGE / f"{fault.module}.py").read_text("utf-8").splitlines()
    lines = difflib.unified_diff(old, fault.text.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in list(lines)[3:])


# Tests


def copied(folder: Path) -> Path:
    """Copy what git knows and what it does not ignore."""
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    if (ROOT / "data" / "assets").is_dir():  # no link: what is planted may write there
        shutil.copytree(ROOT / "data" / "assets", folder / "data" / "assets", dirs_exist_ok=True)
    return folder


def enter(folder: Path) -> None:
    """Make a copy the place where this process and its children find everything."""
    os.chdir(folder)
    sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "SMOL_SCRATCH_THREADS": "1"}
    for name in [
        n for n in sys.modules if n.split(".")[0] in ("smol_scratch", "tests", "benchmarks")
    ]:
        del sys.modules[name]


class Watch:
    """A plugin of pytest: tells coverage which test runs, and measures how long."""

    def __init__(self, coverage) -> None:
        self.coverage, self.seconds, self.began = coverage, defaultdict(float), {}

    def pytest_runtest_logstart(self, nodeid) -> None:
        self.coverage.switch_context(nodeid)
        self.began[nodeid] = time.perf_counter()

    def pytest_runtest_logfinish(self, nodeid) -> None:
        self.seconds[nodeid] = time.perf_counter() - self.began[nodeid]
        self.coverage.switch_context("")


def watch(files: list[str], result: Path) -> int:
    """In a process of its own: run the tests, write down which of them executes which line."""
    import coverage
    import pytest

    seen = coverage.Coverage(
        data_file=str(result.with_suffix(".coverage")), include=["smol_scratch/*"]
    )
    plugin = Watch(seen)
    seen.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[plugin])
    seen.stop()
    lines: dict[str, dict[int, list[str]]] = {}
    data = seen.get_data()
    for file in data.measured_files():
        module = Path(file).relative_to(Path.cwd() / "smol_scratch").with_suffix("").as_posix()
        lines[module] = {
            line: sorted(filter(None, tests))
            for line, tests in data.contexts_by_lineno(file).items()
        }
    result.write_text(json.dumps({"lines": lines, "seconds": plugin.seconds}))
    return int(status)


def forked(call, seconds: float, output: Path) -> int | None:
    """Run a function in a fork, with its output in a file; return its status, None after a time."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 70
        with contextlib.suppress(BaseException):
            status = call()
        sys.stdout.flush()
        os._exit(status)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def tests_of(fault: Fault, known: dict) -> list[str]:
    """Return the tests that execute a fault's line; where there are none, those of its file."""
    lines = known["lines"].get(fault.module, {})
    tests = lines.get(str(fault.line), [])
    if not tests:  # a line that continues another, or one that only importing executes
        tests = sorted({test for of_line in lines.values() for test in of_line})
        own = [t for t in tests if f"test_{fault.module.rpartition('/')[2]}.py" in t]
        tests = own or tests
    return sorted(tests, key=lambda test: known["seconds"].get(test, 0.0))


def tried(fault: Fault, known: dict, folder: Path, patience: float) -> str:
    """Plant a fault in a copy; return what became of it: the test that failed, or ""."""
    tests, total = [], 0.0
    for test in tests_of(fault, known):
        total += known["seconds"].get(test, 0.0)
        if tests and total > patience:
            break
        tests.append(test)
    if not tests:
        return ""
    file = folder / "smol_scratch" / f"{fault.module}.py"
    good = file.read_bytes()
    file.write_text(fault.text, "utf-8")
    output = folder / "build" / "output.txt"
    output.parent.mkdir(exist_ok=True)

    def run() -> int:
        import pytest

        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]))

    try:
        status = forked(run, SLOWEST + 10 * total, output)
    finally:
        file.write_bytes(good)
    if status is None:
        return "it never ended"
    if status == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read_text("utf-8", "replace"), re.M)
    return failed[1] if failed else f"pytest ended with {status}"


# The command


def modules() -> list[str]:
    """Return the names of all modules, as the command takes them."""
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in found if path.stem != "__init__")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where a fault slipped through."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="module", help="generation, or course/book")
    parser.add_argument("--sample", type=int, default=20, help="faults in each module")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--patience", type=float, default=60, help="seconds of tests for a fault")
    parser.add_argument("--tests", nargs="+", help="files of tests, instead of all")
    parser.add_argument("--lines", type=Path, help="which test executes what: kept in this file")
    asked = parser.parse_args(arguments)
    names = asked.modules or modules()
    if wrong := [name for name in names if name not in modules()]:
        parser.error(f"{wrong[0]}: no such module; there are {', '.join(modules())}")
    if not hasattr(os, "fork"):
        parser.error("this system has no fork, and without it each fault takes too long")
    try:
        planted = {name: faults(name, asked.sample, asked.seed) for name in names}
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not there: pip install cosmic-ray")
    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        folder = copied(Path(base).resolve())
        enter(folder)
        for library in ("pytest", *LIBRARIES):
            __import__(library)
        known_at = (asked.lines or folder / "build" / "lines.json").absolute()
        if not known_at.exists():
            known_at.parent.mkdir(parents=True, exist_ok=True)
            files = asked.tests or [
                path.as_posix()
                for path in sorted(Path("tests").rglob("test_*.py"))
                if path.stem not in LEFT_OUT
            ]
            output = known_at.with_suffix(".txt")
            status = forked(lambda: watch(files, known_at), 7200, output)
            if status != 0:
                print(f"without any fault some tests fail (status {status}): {output}")
                if not known_at.exists():
                    return 1
        known = json.loads(known_at.read_text("utf-8"))
        print(f"{'module':<24}{'planted':>8}{'caught':>8}{'seconds':>9}")
        slipped, total, caught = [], 0, 0
        for name, of_module in planted.items():
            began, here = time.perf_counter(), 0
            for fault in of_module:
                failed = tried(fault, known, folder, asked.patience)
                here += bool(failed)
                if not failed:
                    slipped.append(fault)
                    print(f"  {name}.py, line {fault.line}, {fault.operator}", flush=True)
                    print(difference(fault), flush=True)
            total, caught = total + len(of_module), caught + here
            print(f"{name:<24}{len(of_module):>8}{here:>8}{time.perf_counter() - began:>9.0f}",
                  flush=True)  # fmt: skip
    print(f"{'all':<24}{total:>8}{caught:>8}")
    return 1 if slipped else 0


if __name__ == "__main__":
    sys.exit(main())
