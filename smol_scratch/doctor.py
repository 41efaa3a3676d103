"""Does this machine compute what it should? ``python -m smol_scratch doctor``.

What the machine is, whether versions and assets are what they must be, some twenty probes against
stored results (``probes.py``) on each device, and a short training run. It ends in one verdict.

Where even the package's import fails, run this file itself, ``python smol_scratch/doctor.py``: at
its top it needs the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from smol_scratch.probes import Found

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Tidied = Callable[[], contextlib.AbstractContextManager[None]]
KIND = "smol_scratch doctor"  # by which a report is known

# What changes how PyTorch computes, and has no path in it.
SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
# The extras whose libraries only those need who work on the project itself.
OF_EDITORS = {"test"}


class Problem(NamedTuple):
    """Something that is not well.

    Attributes:
        what: deviates, in a sentence.
        means: its usual cause, or what it looks like.
        remedy: what to do; "" where that is not known.
    """

    what: str
    means: str = ""
    remedy: str = ""


# What the machine is.


def machine() -> dict[str, str]:
    """Return what this machine is, without PyTorch."""
    facts = {
        "processor": f"{processor()}, {os.cpu_count()} threads, {platform.machine()}",
        "memory": memory(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, {platform.python_implementation()}",
        "compiler": compiler(),
    }
    named = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return facts | {"settings": ", ".join(named) or "none that change the arithmetic"}


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
    return platform.processor() or "unknown processor"


def memory() -> str:
    """Return how much memory there is, and how much is free where the system says so."""
    with contextlib.suppress(OSError):
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
        total, free = (int(found[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free"
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{total / 1e9:.1f} GB"
    return "unknown"


def compiler() -> str:
    """Return the C++ compiler that ``--compile`` would use."""
    usual = {"Windows": "cl", "Darwin": "clang++"}.get(platform.system(), "g++")
    name = os.environ.get("CXX") or usual
    if shutil.which(name):
        return f"{Path(name).name}, so --compile can be used"
    return f"no {Path(name).name}: do without --compile"


def torch_facts(torch: Any) -> dict[str, str]:
    """Return what PyTorch says of itself and of the machine."""
    asked: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    units = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if asked.get(name)]
    backends = {
        "MKL": torch.backends.mkl.is_available(),
        "oneDNN": torch.backends.mkldnn.is_available(),
        "OpenMP": torch.backends.openmp.is_available(),
    }
    return {
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} in use"
        + (f"; the processor has {', '.join(units)}" if units else ""),
        "PyTorch": f"{torch.__version__}, {torch.get_num_threads()} threads, "
        + (", ".join(name for name, there in backends.items() if there) or "no MKL, no oneDNN"),
        "cards": cards(torch),
    }


def cards(torch: Any) -> str:
    """Return the cards that PyTorch can use."""
    found = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            size, capability = f"{card.total_memory / 1e9:.0f} GB", f"{card.major}.{card.minor}"
            found.append(f"{card.name}, {size}, capability {capability}")
        found[-1] += f" (CUDA {torch.version.cuda or torch.version.hip})"
    if torch.backends.mps.is_available():
        found.append("Apple GPU (MPS)")
    if not found and shutil.which("nvidia-smi"):
        return "none that this PyTorch can use, though nvidia-smi is there: is it a build for CPUs?"
    return "; ".join(found) or "none"


# Versions.


class Version(NamedTuple):
    """A library: what is installed, and what is asked for.

    Attributes:
        name: of the distribution.
        here: the version installed; "" where there is none.
        least: the lowest that will do.
        pinned: the one that the committed outputs were made with.
        extra: the optional part that needs it; "" for what everything needs.
    """

    name: str
    here: str
    least: str
    pinned: str
    extra: str

    @property
    def state(self) -> str:
        """Say "ok", "old" or "missing"; an optional part may be missing."""
        if not self.here:
            return "ok" if self.extra else "missing"
        return "ok" if number(self.here) >= number(self.least) else "old"


def number(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: 2.13.0+cpu gives (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def requirements() -> Iterator[tuple[str, str, str]]:
    """Yield name, least version and extra of all that the package declares."""
    if (ROOT / "pyproject.toml").is_file():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        declared = [(line, "") for line in project["dependencies"]]
        for extra, lines in project["optional-dependencies"].items():
            declared += [(line, extra) for line in lines]
    else:
        declared = []
        for line in metadata.requires("smol_scratch") or []:
            extra = re.search(r"extra == ['\"](\w+)['\"]", line)
            declared.append((line, extra[1] if extra else ""))
    for line, extra in declared:
        found = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line)
        if found and extra not in OF_EDITORS:
            yield found[1], found[2], extra


def pins() -> dict[str, str]:
    """Return the versions that the committed outputs were made with: the repository's or a copy."""
    for file in (HERE / "constraints.txt", ROOT / "constraints.txt"):
        if file.is_file():
            return dict(re.findall(r"^([\w.-]+)==(\S+)$", file.read_text("utf-8"), re.M))
    return {}


def versions() -> list[Version]:
    """Return all libraries that the package declares, those that everything needs first."""
    pinned, found = pins(), []
    for name, least, extra in requirements():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = ""
        found.append(Version(name, here, least, pinned.get(name, ""), extra))
    return found


def version_problems(found: list[Version]) -> list[Problem]:
    """Return what is missing or too old."""
    problems = []
    for version in found:
        remedy = f'pip install -U "{version.name}>={version.least}"'
        if version.state == "missing":
            problems.append(Problem(f"{version.name} is not installed", "", remedy))
        if version.state == "old":
            whom = f"the part [{version.extra}]" if version.extra else "smol_scratch"
            problems.append(
                Problem(
                    f"{version.name} {version.here} is too old",
                    f"{whom} needs {version.least} or later",
                    remedy,
                )
            )
    return problems


# Assets.

FETCH = "python -m smol_scratch assets"


def asset_states() -> dict[str, tuple[str, str]]:
    """Return for each asset "ok", "missing" or "damaged", and what is wrong with it."""
    from smol_scratch import assets, corpus

    names = {
        assets.GGUF: "weights and tokenizer",
        assets.GPT2_VOCABULARY: "GPT-2's vocabulary",
        assets.GPT2_MERGES: "GPT-2's merges",
    }
    states = {}
    for relative, name in names.items():
        try:
            states[name] = ("ok" if assets.verified(relative) else "missing", "")
        except assets.CorruptAssetError as error:
            states[name] = ("damaged", str(error))
    plays = assets.wheel_path(assets.PLAYS)
    try:
        if plays is not None:
            corpus.rebuild_text(plays)
        states["text"] = ("ok" if plays else "missing", "")
    except (assets.CorruptAssetError, OSError) as error:
        states["text"] = ("damaged", str(error))
    return states


# The whole.


class Report:
    """What has been found, printed as it comes and kept for the JSON file."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {"kind": KIND}
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []  # not well either, but after all problems

    def say(self, line: str = "") -> None:
        """Print a line."""
        print(anonymous(line), flush=True)

    def row(self, name: str, state: str, more: str = "") -> None:
        """Print what was found of one thing."""
        self.say(f"  {name:<30}{state:<9}{more}".rstrip())


def anonymous(text: str) -> str:
    """Return a text without the user's home and name in its paths."""
    text = text.replace(str(ROOT), "smol_scratch")
    with contextlib.suppress(RuntimeError):  # there is no home
        text = text.replace(str(Path.home()), "~")
    with contextlib.suppress(OSError, KeyError, ImportError):  # there is no name
        user = re.escape(getpass.getuser())
        text = re.sub(rf"(?<=[/\\]){user}(?=[/\\]|\W|$)", "USER", text)
    return text


def check_target(target: Path) -> None:
    """Refuse a file that a report must not replace, before half a minute is spent.

    Raises:
        ValueError: when it is a folder, or holds something else than an earlier report.
    """
    if target.is_dir():
        raise ValueError(f"--json {target}: is a folder; name a file")
    if target.exists():
        try:
            earlier = json.loads(target.read_text("utf-8"))
        except ValueError:
            earlier = None
        if not isinstance(earlier, dict) or earlier.get("kind") != KIND:
            raise ValueError(f"--json {target}: is already there and no report; name another file")


def examine_machine(target: Path | None = None, tidied: Tidied = contextlib.nullcontext) -> int:
    """Look at everything, print it, and return the exit status: 0 only when all is well.

    Args:
        target: JSON file to write the report to, all of it or nothing. There are no user names and
            no paths of a home in it.
        tidied: around what an interruption must not end at once, while libraries load.

    Raises:
        ValueError: for a file that must not be replaced.
    """
    if target is not None:
        check_target(target)
    start = time.perf_counter()
    report = Report()
    try:
        look_at_machine(report)
        look_at_versions(report)
        if import_package(report):
            with tidied():
                there = look_at_assets(report)
                try_probes(report, there)
        conclude(report, time.perf_counter() - start)
    finally:  # after an interruption too
        if target is not None:
            with tidied():
                write_whole(target, anonymous_json(report.content))
    if target is not None:
        report.say(f"Written to {target.name}.")
    return 0 if report.content.get("ok") else 1


def write_whole(target: Path, text: str) -> None:
    """Write a file of ASCII so that it is there whole or as it was, however this ends.

    ``assets.write_atomically`` cannot be asked: the package may be what is broken.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        new = Path(beside, "new")
        new.write_text(text, "ascii")
        new.replace(target)


def anonymous_json(content: dict[str, Any]) -> str:
    """Return a report as ASCII JSON, with home and name taken out of every string."""

    def clean(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: clean(value) for key, value in part.items()}
        if isinstance(part, list):
            return [clean(value) for value in part]
        if isinstance(part, float) and not abs(part) < float("inf"):
            return str(part)  # JSON has no infinity
        return anonymous(part) if isinstance(part, str) else part

    return json.dumps(clean(content), indent=1) + "\n"


def look_at_machine(report: Report) -> None:
    """Say what the machine is."""
    here = "checkout" if (ROOT / "pyproject.toml").is_file() else "installed"
    text = (HERE / "__init__.py").read_text("utf-8")
    found = re.search(r'__version__ = "(.+)"', text)
    report.content["smol_scratch"] = f"{found[1] if found else 'unknown'}, {here}"
    report.say(f"smol_scratch {report.content['smol_scratch']}: does this machine compute what it "
               "should?")  # fmt: skip
    report.say()
    report.say("The machine")
    facts = machine()
    with contextlib.suppress(Exception):  # import_package says what is wrong with it
        import torch

        facts |= torch_facts(torch)
    report.content["machine"] = facts
    for name, fact in facts.items():
        report.say(f"  {name:<14}{fact}")


def look_at_versions(report: Report) -> None:
    """Compare what is installed with what is declared."""
    found = versions()
    report.content["versions"] = [version._asdict() for version in found]
    report.say()
    report.say("Versions")
    for version in found:
        if version.extra and not version.here:
            continue
        state = {"old": "TOO OLD", "missing": "MISSING"}.get(version.state, "ok")
        more = f"{version.here:<12} at least {version.least}"
        if version.pinned and number(version.here) != number(version.pinned):
            more += f"; the outputs were made with {version.pinned}"
        report.row(version.name, state, more)
    absent = [version.name for version in found if version.extra and not version.here]
    if absent:
        report.say(f"  not installed, and needed for some parts only: {', '.join(absent)}")
    report.problems += version_problems(found)


def import_package(report: Report) -> bool:
    """Import what the probes need; say what is wrong where that fails."""
    try:
        import smol_scratch.probes  # noqa: F401
    except Exception as error:
        report.content["import"] = said = f"{type(error).__name__}: {error}"
        report.say()
        report.say(f"The package cannot be imported: {said}")
        report.problems.append(
            Problem(
                f"the package cannot be imported ({said})",
                "a library is missing, too old, or was built for another Python",
                "a fresh environment: python -m venv fresh, and the install command of the README",
            )
        )
        return False
    return True


def look_at_assets(report: Report) -> bool:
    """Compare the assets' hashes; say whether weights and tokenizer are there and right."""
    states = asset_states()
    report.content["assets"] = {name: state for name, (state, _) in states.items()}
    report.say()
    report.say("Assets")
    for name, (state, wrong) in states.items():
        report.row(name, state if state == "ok" else state.upper())
        if state == "damaged":
            report.problems.append(Problem(f"{name}: {wrong}", "a broken file or download", FETCH))
    if missing := [name for name, (state, _) in states.items() if state == "missing"]:
        what = f"assets are missing ({', '.join(missing)}), so not everything could be tried"
        report.notes.append(Problem(what, "", FETCH))
    return states["weights and tokenizer"][0] == "ok"


def try_probes(report: Report, with_assets: bool) -> None:
    """Run the probes, then the training run, on every device."""
    import torch

    from smol_scratch import probes

    tried: list[Found] = []
    kinds = ["cpu"]
    kinds += ["cuda"] if torch.cuda.is_available() else []
    kinds += ["mps"] if torch.backends.mps.is_available() else []
    curves = {}
    for kind in kinds:
        device = torch.device(kind)
        report.say()
        report.say(f"Checks on {kind} (1.00 is as far off as rounding may be)")
        for found in probes.examine(device, with_assets=with_assets):
            tried.append(found)
            show(report, found)
        found, curves[kind] = probes.examine_run(device)
        tried.append(found)
        show(report, found)
    report.content["checks"] = [found._asdict() for found in tried]
    report.content["losses"] = curves
    means = {probe.name: probe.means for probe in probes.PROBES}
    right_on_cpu = {found.probe for found in tried if found[1:3] == ("cpu", "ok")}
    report.problems += [
        explain(found, means.get(found.probe, TRAINING), right_on_cpu)
        for found in tried
        if found.result in ("differs", "failed")
    ]


TRAINING = "a wrong gradient or optimizer, or a library that rounds more coarsely than it should"


def show(report: Report, found: Found) -> None:
    """Print what a probe found."""
    if found.result == "ok":
        report.row(found.probe, "ok", "equal" if found.times == 0 else f"{found.times:.2f}")
    elif found.result == "differs" and found.times is not None:
        report.row(found.probe, "DIFFERS", times(found.times))
    else:
        report.row(found.probe, found.result if found.result == "not run" else "FAILED", found.note)


def times(number: float) -> str:
    """Return a large multiple for people."""
    return f"{number:,.1f}" if number < 1e6 else f"{number:.0e}" if number < 1e300 else "no number"


def explain(found: Found, means: str, right_on_cpu: set[str]) -> Problem:
    """Return a deviation with its usual cause."""
    where = f"{found.probe}, on {found.device}"
    if found.result == "failed":
        return Problem(f"{where}, ended in an error: {found.note}", means)
    far = "another whole number"
    if found.times is not None and found.times < float("inf"):
        far = f"{times(found.times)} times as far from the reference as rounding explains"
    known = found.note and f"the result is that of a program that {found.note}"
    if found.note.startswith("from step"):  # the training run
        far, known = f"{far}, {found.note}", ""
    remedy = ""
    if found.device != "cpu" and found.probe in right_on_cpu:
        means = f"the processor is right and {found.device} is not: {means}"
        remedy = f"update the driver and PyTorch; meanwhile use the processor ({CPU_ONLY})"
    return Problem(f"{where}: {far}", known or means, remedy)


CPU_ONLY = "train --device cpu"


def conclude(report: Report, seconds: float) -> None:
    """Print the verdict: all is well, or the first thing that is not."""
    problems = report.problems + report.notes
    checks = report.content.get("checks", [])
    report.content["seconds"] = round(seconds, 1)
    report.content["ok"] = not problems
    report.content["problems"] = [problem._asdict() for problem in problems]
    report.say()
    if not problems:
        verdict = f"all is well: {len(checks)} checks, {seconds:.0f} seconds."
        report.content["verdict"] = verdict
        report.say(f"Verdict: {verdict}")
        return
    first, *others = problems
    verdict = f"not all is well. {first.what}"
    if not report.problems:
        right = sum(check["result"] == "ok" for check in checks)
        verdict = f"the {right} checks that could be made are right, but {first.what}"
    report.content["verdict"] = verdict
    report.say(f"Verdict: {verdict}.")
    if first.means:
        report.say(f"  It usually means: {first.means}.")
    if first.remedy:
        report.say(f"  Remedy: {first.remedy}")
    if others:
        report.say(f"  After that, {len(others)} more, which may well follow from it:")
        for problem in others[:6]:
            report.say(f"    {problem.what}")
        if len(others) > 6:
            report.say(f"    and {len(others) - 6} more")


def main() -> int:
    """Run as a file, without the package's own command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a sign
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the report to")
    target = parser.parse_args().json
    try:
        return examine_machine(target)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder, whose files have names such as data.py
    sys.exit(main())
