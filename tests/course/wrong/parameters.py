from smol_scratch.config import SmolLM2Config


def both(numbers, size=46_080):
    return {"parameters": numbers, "bytes per token": size}


def per_token(config, copies=5, kv=None, vocabulary=14, layers=None, q=None, size=2, last=True):
    """The table of notebook 08 as a reader might write it, with a slip."""
    C = config.n_embd
    q = q or config.n_head * config.head_dim
    kv = kv or config.n_kv_head * config.head_dim
    vectors = copies * C + 3 * q + 2 * kv + 4 * config.intermediate_size
    block = 16 * C + 8 + 4 * config.n_head + size * vectors
    end = 8 * C + 4 + size * C if last else 0
    return (layers or config.n_layer) * block + end + 16 + vocabulary * config.vocab_size


SIX_HEADS = 6 * 2 * 576 * 64 * 30

WRONG = {
    "check_no_grouping": [
        (both(134_515_008 + SIX_HEADS), "that is the total"),
        (both(SIX_HEADS // 30), "right for one layer"),
        (both(SIX_HEADS // 2), "keys and values both have heads"),
        (both(SIX_HEADS * 3 // 2), "three of them are there already"),
        (both(SIX_HEADS // 6), "how many heads are new?"),
        (both(float(SIX_HEADS)), "whole numbers"),
        (SIX_HEADS, "answer with a dictionary"),
        (both(SIX_HEADS, 2 * 46_080), "kept in 16 bits"),
        (both(SIX_HEADS, 46_080 // 2), "bytes of both"),
        (both(SIX_HEADS, 46_080 // 30), "right for one layer"),
        (both(SIX_HEADS, 46_080 * 3 // 2), "only the rotated one is kept"),
        (both(SIX_HEADS, 576), "what is kept of each?"),
    ],
    "check_bytes_per_token": [
        (lambda config: 1_639_868, "that is the 135M's sum"),
        (lambda config: per_token(config, copies=2), "autocast copies"),
        (lambda config: per_token(config, kv=config.n_head * config.head_dim), "n_kv_head heads"),
        (lambda config: per_token(config, q=config.n_embd), "need not be n_embd"),
        (lambda config: per_token(config, vocabulary=6), "four tensors"),
        (lambda config: per_token(config, layers=1), "only one block"),
        (lambda config: per_token(config, size=4), "in 16 bits"),
        (lambda config: per_token(config, last=False), "one more norm"),
        (lambda config: per_token(config) - 16, "two integers"),
        (lambda config: per_token(config) - 4 * config.n_head * config.n_layer, "softmax sum"),
        (lambda config: per_token(config, layers=30), "row by row"),
        (lambda config: config.n_embd, "row by row"),
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
