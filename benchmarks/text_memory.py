"""What a text takes in memory for each of its bytes, encoded and trained on.

    python -m benchmarks.text_memory
    python -m benchmarks.text_memory --trained --preset 135M --sizes 20 80 --flags="--batch-size 1"

Two sizes of each text are measured; the difference is what each further byte takes at the peak, and
the rest (PyTorch, the model, a piece of the text) is there for any size. Linux tells the peak in
kilobytes; elsewhere the unit is another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from smol_scratch import assets, load_text

CHINESE = "人工智能是研究、开发用于模拟、延伸和扩展人的智能的理论、方法、技术及应用系统。"


def samples() -> dict[str, str]:
    """Return texts of about a megabyte by what they are."""
    return {
        "English verse": load_text(),
        "Chinese": CHINESE * 9_000,
        "Chinese without a sign": "天地玄黄宇宙洪荒日月盈昃辰宿列张" * 22_000,
        "one word a line": "foo\nbar1\n" * 120_000,
    }


class Memory(NamedTuple):
    """Peaks of memory, in bytes.

    Attributes:
        base: at the smaller text.
        per_byte: for each further byte of text.
    """

    base: float
    per_byte: float

    def at(self, size: float) -> float:
        """Return what a text of so many bytes would take."""
        return self.base + self.per_byte * size


Command = Callable[[Path, Path], list[str]]  # of the text's file, and of what may be written

ENCODE = "from pathlib import Path; import sys; from smol_scratch import load_tokenizer, texts; "
ENCODE += "texts.encode_files(Path(sys.argv[1]), load_tokenizer())"
TRAIN = ["-m", "smol_scratch", "train", "--steps", "1", "--held-out", "0.01", "--device", "cpu"]


def encoding(text: str, sizes: tuple[int, int] = (2, 12)) -> Memory:
    """Measure the encoding of a text, repeated so many times."""
    return _by_size(text, sizes, lambda file, _: ["-c", ENCODE, str(file)])


def training(
    text: str, preset: str, sizes: tuple[int, int] = (2, 12), flags: Sequence[str] = ()
) -> Memory:
    """Measure ``train --text`` with a single step: hash, split and loader are all there."""
    asked = [*TRAIN, "--preset", preset, *flags]
    return _by_size(
        text, sizes, lambda file, save: [*asked, "--text", str(file), "--save", str(save)]
    )


def _by_size(text: str, sizes: tuple[int, int], command: Command) -> Memory:
    with tempfile.TemporaryDirectory() as place:
        peaks = list(_peaks(text, sizes, Path(place), command))
    size = len(text.encode())
    return Memory(peaks[0], (peaks[1] - peaks[0]) / (size * (sizes[1] - sizes[0])))


def _peaks(text: str, sizes: tuple[int, int], place: Path, command: Command) -> Iterator[int]:
    for times in sizes:
        file = place / f"{times}.txt"
        file.write_text(text * times, "utf-8")
        process = subprocess.Popen(
            [sys.executable, *command(file, place / f"model{times}")],
            env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise OSError(f"{' '.join(command(file, place))}: ended with status {status}")
        yield usage.ru_maxrss * 1024


def main() -> None:
    """Print a row for each kind of text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="tiny", help="of the model that is trained")
    parser.add_argument("--sizes", type=int, nargs=2, default=(2, 12), metavar="MEGABYTES",
                        help="about how large the two texts are")  # fmt: skip
    parser.add_argument("--trained", action="store_true", help="leave out what is only encoded")
    parser.add_argument("--flags", default="", help="more for the command train")
    asked = parser.parse_args()
    print(f"{'':34}{'at the start':>14}{'per byte':>10}{'at 1 GB':>10}")
    texts = {} if asked.trained else samples()
    rows = {f"encoded, {kind}": encoding(text, tuple(asked.sizes)) for kind, text in texts.items()}
    rows[f"trained on ({asked.preset}), English verse"] = training(
        load_text(), asked.preset, tuple(asked.sizes), asked.flags.split()
    )
    for name, memory in rows.items():
        print(f"{name:34}{memory.base / 1e6:>11,.0f} MB{memory.per_byte:>10.2f}"
              f"{memory.at(1e9) / 1e9:>7.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
