"""Where parameters and FLOPs go."""

from __future__ import annotations

from smol_scratch.config import SmolLM2Config


def parameters(config: SmolLM2Config) -> dict[str, int]:
    """Return the parameters of each kind, from the configuration alone.

    The ten rows of the walkthrough's table; the head has parameters of its own only when untied.
    """
    q_width = config.n_head * config.head_dim
    kv_width = config.n_kv_head * config.head_dim
    layers, width, hidden = config.n_layer, config.n_embd, config.intermediate_size
    embedding = config.vocab_size * width
    return {
        "Token Embeddings": embedding,
        "Attention Q": layers * width * q_width,
        "Attention K": layers * width * kv_width,
        "Attention V": layers * width * kv_width,
        "Attention O": layers * q_width * width,
        "MLP Gate": layers * width * hidden,
        "MLP Up": layers * width * hidden,
        "MLP Down": layers * hidden * width,
        "RMSNorm": (2 * layers + 1) * width,
        "Output (shared)" if config.tie_embeddings else "Output": (
            0 if config.tie_embeddings else embedding
        ),
    }


def costs(config: SmolLM2Config, context: int) -> dict[str, tuple[int, int]]:
    """Return parameters and forward FLOPs a token for each part, in the order of the notebooks.

    A multiplication and an addition count as two FLOPs. The elementwise parts are counted as:
    RMSNorm 4 a channel (square, add, scale, weight), RoPE 3 a channel (a pair takes four products
    and two sums), SwiGLU 5 a hidden channel beside its products (a sigmoid taken as 3).

    Args:
        config: the model.
        context: tokens that each query attends to.

    Returns:
        Part to (parameters, FLOPs a token).
    """
    count = parameters(config)
    attention = sum(count[f"Attention {letter}"] for letter in "QKVO")
    mlp = sum(count[f"MLP {name}"] for name in ("Gate", "Up", "Down"))
    heads = config.n_head * config.head_dim
    rotated = heads + config.n_kv_head * config.head_dim
    return {
        "RMSNorm": (count["RMSNorm"], 4 * count["RMSNorm"]),
        "RoPE": (0, 3 * rotated * config.n_layer),
        "attention": (attention, 2 * attention + 4 * heads * context * config.n_layer),
        "SwiGLU": (mlp, 2 * mlp + 5 * config.intermediate_size * config.n_layer),
        "embedding and head": (
            config.vocab_size * config.n_embd * (1 if config.tie_embeddings else 2),
            2 * config.vocab_size * config.n_embd,
        ),
    }


def print_costs(config: SmolLM2Config, until: str, context: int = 256) -> None:
    """Print what the parts cost that were built so far, the last of them ``until``.

    Raises:
        ValueError: for a part that does not exist.
    """
    table = costs(config, context)
    if until not in table:
        raise ValueError(f"until={until!r}: must be one of {', '.join(table)}")
    print(f"{'part':<20}{'parameters':>13}{'MB in float32':>15}{'MFLOPs a token':>16}")
    total_parameters = total_flops = 0
    for part, (count, flops) in table.items():
        total_parameters, total_flops = total_parameters + count, total_flops + flops
        print(f"{part:<20}{count:>13,}{4 * count / 1e6:>15.2f}{flops / 1e6:>16.3f}")
        if part == until:
            break
    whole = sum(count for count, _ in table.values())
    print(f"{'so far':<20}{total_parameters:>13,}{4 * total_parameters / 1e6:>15.2f}"
          f"{total_flops / 1e6:>16.3f}")  # fmt: skip
    print(f"{total_parameters / whole:.2%} of the model's {whole:,} parameters")
