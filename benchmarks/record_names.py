"""Write down where a run's held-out loss sits: in the lines that name a speaker, or in the speech.

``python -m benchmarks.record_names FOLDER/again --out data/records/tenth_run_names.csv`` reads the
checkpoints ``FOLDER/again_step_50`` and so on, and the last one, ``FOLDER/again``. The held-out
tokens are those that the run itself looked at, so the two means give its held-out loss.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smol_scratch import SmolLM2, load_pretrained, load_tokenizer
from smol_scratch.assets import write_atomically
from smol_scratch.corpus import unseen_plays
from smol_scratch.evaluation import evenly_spaced
from smol_scratch.hardware import choose_precision, find_hardware
from smol_scratch.recipe import TrainingConfig
from smol_scratch.training import RunOptions


def held_out() -> tuple[Tensor, Tensor]:
    """Return the rows that a run looks at by default, (sequences, T + 1), and which are names.

    The second is True for a token of a line such as ``HAMLET:``, colon and line end included.
    """
    text = "\n".join(unseen_plays().values())
    named = np.zeros(len(text), dtype=bool)
    for line in re.finditer(r"(?:\A|(?<=\n\n))[^\n]+:\n", text):
        named[line.start() : line.end()] = True
    encoded = load_tokenizer().backend.encode(text)
    is_name = [int(named[start]) for start, _ in encoded.offsets]
    config = TrainingConfig()
    of = (config.sequence_length, RunOptions().eval_sequences)
    return evenly_spaced(encoded.ids, *of), evenly_spaced(is_name, *of).bool()


@torch.no_grad()
def losses(model: SmolLM2, rows: Tensor, batch: int = 4) -> Tensor:
    """Return the loss of each token that follows another, in nats, (sequences, T)."""
    dtype = choose_precision(find_hardware(torch.device("cpu"))).dtype
    found = []
    for part in rows.split(batch):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, _ = model(part[:, :-1])
        found.append(F.cross_entropy(logits.float().mT, part[:, 1:], reduction="none"))
    return torch.cat(found)


def main() -> None:
    """Record every checkpoint of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("save", type=Path, help="what the run's --save said")
    parser.add_argument("--last", type=int, required=True, help="steps of the last checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    folders = {chosen.last: chosen.save}
    for folder in chosen.save.parent.glob(f"{chosen.save.name}_step_*"):
        folders[int(folder.name.rpartition("_")[2])] = folder
    rows, names = held_out()
    names = names[:, 1:]
    table = io.StringIO()
    table.write(
        f"# python -m benchmarks.record_names {chosen.save.name} --last {chosen.last}; "
        f"{names.sum()} of {names.numel()} held-out tokens are of lines that name a speaker; "
        f"torch {torch.__version__}\n"
    )
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "names", "speech", "share_of_names"])
    for step in sorted(folders):
        found = losses(load_pretrained(folders[step], quiet=True), rows)
        means = (found[names].mean(), found[~names].mean(), names.double().mean())
        writer.writerow([step, *(f"{mean.item():.6g}" for mean in means)])
        print(step, *(f"{mean.item():.3f}" for mean in means), flush=True)
    write_atomically(chosen.out, table.getvalue().encode())


if __name__ == "__main__":
    main()
