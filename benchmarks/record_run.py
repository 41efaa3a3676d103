"""Write down what a run's checkpoints say: samples, what is copied, and held-out loss by play.

``python -m benchmarks.record_run /path/to/run --out data/records/full_run_samples.json`` reads
``/path/to/run_step_1000`` and so on, and the last checkpoint ``/path/to/run``. The checkpoints
themselves stay out of the repository. About a minute for each on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from smol_scratch import SmolLM2, load_pretrained, load_text, load_tokenizer
from smol_scratch.assets import write_atomically
from smol_scratch.checkpoint import read_state
from smol_scratch.corpus import unseen_plays
from smol_scratch.evaluation import bits_per_byte, copied_share, evenly_spaced, mean_loss
from smol_scratch.generation import generate
from smol_scratch.tokenizer import SmolLM2Tokenizer
from smol_scratch.training import choose_precision, find_hardware

# The first three begin as the text does somewhere; the last stands nowhere in it.
PROMPTS = ("First Citizen:\n", "ROMEO:\n", "KING RICHARD III:\n", "HAMLET:\nTo be, or not to be")
SAMPLING = {"temperature": 0.8, "top_p": 0.95}
NEW_TOKENS = 120
SEQUENCES = 32  # of each play, evenly spaced
COPIED = 8  # tokens in a row


def record(
    model: SmolLM2, step: int, tokenizer: SmolLM2Tokenizer | None = None
) -> dict[str, object]:
    """Return what one model says and knows, computed where it is."""
    tokenizer = tokenizer or load_tokenizer()
    device = next(model.parameters()).device
    text = tokenizer.encode(load_text())
    dtype = choose_precision(find_hardware(device)).dtype
    autocast = None if dtype == torch.float32 else dtype
    samples = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        for settings in (SAMPLING, {"temperature": 0.0}):
            generator = torch.Generator(device).manual_seed(1)
            [whole] = generate(model, ids, NEW_TOKENS, generator=generator, **settings)
            new = whole[len(ids) :].tolist()
            share = round(copied_share(new, text, COPIED), 4)
            samples.append(
                {
                    "prompt": prompt,
                    "greedy": not settings["temperature"],
                    "text": tokenizer.decode(new),
                    "copied": share,
                }
            )
    plays = {}
    for title, play in unseen_plays().items():
        ids = tokenizer.encode(play)
        loss = mean_loss(model, evenly_spaced(ids, 256, SEQUENCES), autocast=autocast)
        plays[title] = {
            "loss": round(loss, 4),
            "bits_per_byte": round(bits_per_byte(loss, len(ids), len(play.encode())), 4),
        }
    return {"step": step, "samples": samples, "held_out": plays}


def main() -> None:
    """Record every checkpoint of a run, the first weights included."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("save", type=Path, help="what the run's --save said")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1000, help="steps between records")
    chosen = parser.parse_args()
    folders = {
        read_state(folder)["step"]: folder
        for folder in (chosen.save, *chosen.save.parent.glob(f"{chosen.save.name}_step_*"))
        if folder.is_dir()
    }
    if not folders:
        parser.error(f"{chosen.save}: no checkpoint of this run")
    last = max(folders)
    config = read_state(folders[last])["config"]
    entries = []
    if config.init is None:
        torch.manual_seed(config.seed)
        first = SmolLM2(config.model_config()).eval()
    else:
        first = load_pretrained(config.init, quiet=True)
    entries.append(record(first, 0))
    for step in sorted(folders):
        if step % chosen.every == 0 or step == last:
            entries.append(record(load_pretrained(folders[step], quiet=True), step))
            print(step, entries[-1]["held_out"], flush=True)
    content = {
        "command": f"python -m benchmarks.record_run {chosen.save.name}",
        "torch": torch.__version__,
        "sampling": SAMPLING | {"seed": 1, "new_tokens": NEW_TOKENS},
        "copied_at_least": COPIED,
        "sequences_of_each_play": SEQUENCES,
        "records": entries,
    }
    write_atomically(chosen.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
