"""Run the whole suite, notebooks compared cell by cell: ``python -m tests [pytest's arguments]``.

Two processes of one thread each take less time than one of two: what is computed does not hang on
the number of threads (``make portable`` shows it), and much of the time nothing is computed at all.
"""

import os
import sys

import pytest

# What somebody who edits wants every time.
QUICK = ["accounting", "bpe", "config", "fields", "generation", "model", "package", "readme"]
NOTEBOOKS = ["-p", "tests.strict_nbval", "--nbval", "--nbval-current-env"]


def main() -> int:
    """Run pytest; return its exit status."""
    os.environ |= {"OMP_NUM_THREADS": "1", "SMOL_SCRATCH_THREADS": "1"}
    together = ["-n", "2", "--dist", "loadfile", "-q"]
    given = sys.argv[1:]
    if given[:1] == ["quick"]:
        files = [
            f"tests/test_{name}.py" for name in QUICK if os.path.exists(f"tests/test_{name}.py")
        ]
        return pytest.main([*together, *files, *given[1:]])
    return pytest.main([*together, *NOTEBOOKS, *(given or ["tests", "notebooks"])])


if __name__ == "__main__":
    sys.exit(main())
