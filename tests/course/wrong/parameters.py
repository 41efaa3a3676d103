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
        (lambda *given: largest(*given, least=1), "not even one"),
        (lambda *given: largest(*given, dtype=torch.float32), "is not the largest batch"),
        (lambda config, T, memory: memory // (T * config.n_embd), "is not the largest batch"),
        (lambda config, T, memory: largest(SmolLM2Config(), T, memory), ""),
    ],
    "check_counterexample": [
        (SmolLM2Config.preset("360M"), "released models"),
        (SmolLM2Config(n_kv_head=9), "grouping is counted"),
        (SmolLM2Config(n_layer=3), "right for this one too"),
        (SmolLM2Config(tie_embeddings=False), "untied head"),
        ({"head_dim": 32}, "answer with a configuration"),
    ],
    "check_leak": [
        (("A", 0), "a plain number"),
        (("B", 4), "the four bytes of a loss"),
        (("C", 4 * 49_152), "copied on purpose"),
        (("D", 2 * 64 * 49_152), "those are numbers"),
        (("D", 4 * 49_152), "now the bytes"),
        ("D", "answer with a letter and the bytes"),
        (("E", 1), "is none of"),
    ],
}
