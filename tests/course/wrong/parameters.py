import torch

from smol_scratch.accounting import training_memory
from smol_scratch.config import SmolLM2Config


def largest(config, T, memory, off=0, exact=True, least=0, dtype=torch.bfloat16):
    low, high = 0, 1 << 15
    while high - low > 1:
        middle = (low + high) // 2
        peak = training_memory(config, middle, T, dtype)["peak"]
        fits = peak <= memory if exact else peak < memory
        low, high = (middle, high) if fits else (low, middle)
    return max(low + off, least)


SIX_HEADS = 6 * 2 * 576 * 64 * 30

WRONG = {
    "check_no_grouping": [
        (134_515_008 + SIX_HEADS, "that is the total"),
        (SIX_HEADS // 30, "right for one layer"),
        (SIX_HEADS // 2, "keys and values both have heads"),
        (SIX_HEADS * 3 // 2, "three of them are there already"),
        (SIX_HEADS // 6, "how many heads are new?"),
        (float(SIX_HEADS), "a whole number"),
    ],
    "check_largest_batch": [
        (lambda *given: largest(*given, off=1), "one too many"),
        (lambda *given: largest(*given, exact=False), "fills the memory to the byte"),
        (lambda *given: largest(*given, least=1), ""),
        (lambda *given: largest(*given, dtype=torch.float32), "is not the largest batch"),
        (lambda config, T, memory: memory // (T * config.n_embd), "is not the largest batch"),
        (lambda config, T, memory: largest(SmolLM2Config(), T, memory), ""),
    ],
    "check_checkpointed": [
        (1.0, "nothing was saved"),
        (0.5, "not what a measurement shows"),
        (1 / 4, "not what a measurement shows"),
        ("a quarter", "answer with one number"),
    ],
}
