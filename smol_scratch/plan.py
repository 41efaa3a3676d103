"""What a training run will take before it is begun: memory, time, energy, money, and the wire.

All is arithmetic on a configuration, a card's datasheet and one assumption, the utilisation. What
the arithmetic leaves out is said where it is left out; none of it makes a run smaller or faster.

Letters: B sequences on one card, T tokens in each, C width of the residual stream, L layers, N
parameters, n cards. GB are 10⁹ bytes. Weights, gradients and both moments are float32; products are
in ``dtype``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from smol_scratch import accounting
from smol_scratch.config import SmolLM2Config
from smol_scratch.hardware import CARDS, find_card, peak_flops


def check_count(**counts: int) -> None:
    """Raise unless each is a whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r}: must be a whole number of at least 1")


def memory_per_card(
    config: SmolLM2Config,
    B: int,
    T: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    cards: int = 1,
    shard: bool = False,
    checkpointing: bool = False,
) -> dict[str, int]:
    """Return the bytes of tensors on each card at a training step's fullest moment, by kind.

    On one card, without checkpoints, it is the peak of ``accounting.training_memory``. With
    ``checkpointing`` a block keeps its input alone and is computed again when its backward pass
    comes; that is a third moment that can be the fullest. With ``shard`` (FSDP2) each card holds an
    n-th of weights, gradients and moments; beside them are whole: the embedding, an untied head,
    the last norm, and two blocks, the one at work and the one that is fetched meanwhile, with the
    gradients of what is at work.

    The allocator's losses, what an operation needs inside, and the buffers of the network are not
    in it: leave a tenth of the card free.

    Raises:
        ValueError: for counts below 1 or another type.
    """
    check_count(B=B, T=T, cards=cards)
    count = accounting.parameters(config)
    N = sum(count.values())
    logits = B * T * config.vocab_size
    kept, one, two = (
        sum(accounting.activations(replace(config, n_layer=L), B, T, dtype).values())
        for L in (config.n_layer, 1, 2)
    )
    block = two - one  # what one block keeps
    head = config.vocab_size * config.n_embd
    if checkpointing:
        kept = one - block + config.n_layer * 4 * B * T * config.n_embd
    if shard and cards > 1:
        root = head * (1 if config.tie_embeddings else 2) + config.n_embd
        whole = 2 * block_parameters(config) + root
        states = {
            "weights, an n-th": 4 * -(-N // cards),
            "AdamW's two moments, an n-th": 8 * -(-N // cards),
            "weights fetched whole": 4 * whole,
        }
        gradients = 4 * (-(-N // cards) + block_parameters(config) + root)
    else:
        states = {"weights": 4 * N, "AdamW's two moments": 8 * N}
        gradients = 4 * N
    sums = 2 * head if config.tie_embeddings else 0
    moments = [
        {"activations": kept, "logits and their gradients": (dtype.itemsize + 8) * logits},
        {"gradients": gradients + 4 * sums, "logits": dtype.itemsize * logits},
    ]
    if checkpointing:
        moments.append(
            {
                "activations": kept - 4 * B * T * config.vocab_size,  # the loss is behind
                "a block, computed again": block,
                "gradient of the head": 4 * head,
                "logits": dtype.itemsize * logits,
            }
        )
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    rows = states | {"RoPE's tables": 4 * config.block_size * config.head_dim} | fullest
    return rows | {"peak": sum(rows.values())}


def block_matrices(config: SmolLM2Config) -> int:
    """Return the parameters of one block's seven matrices."""
    heads, kv_heads = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    return config.n_embd * (2 * heads + 2 * kv_heads + 3 * config.intermediate_size)


def block_parameters(config: SmolLM2Config) -> int:
    """Return the parameters of one block: its matrices and two norms."""
    return block_matrices(config) + 2 * config.n_embd


def on_the_wire(
    config: SmolLM2Config, B: int, T: int, dtype: torch.dtype = torch.bfloat16, *, cards: int
) -> dict[str, int]:
    """Return the bytes that a card sends in one training step, by the way the work is split.

    Each row splits over all ``cards`` in one way alone. A sum over all cards in a ring costs each
    card 2 (n - 1)/n times the numbers that are summed, a gathering or a scattering half of that.

    - copies of the model (DDP): the gradients are summed, float32.
    - sharded (FSDP2): every weight is gathered forward, every block's again backward, and the
      gradients are summed and scattered.
    - each matrix split over the cards (tensor parallelism): two sums of the residual stream a
      block, forward and again backward, in ``dtype``.
    - blocks in sequence (pipeline): the stream goes to the next card and its gradient back,
      float32, as the stream is kept here. Of two cards each sends one of these, 4·B·T·C bytes; of
      more, one in the middle sends both, 8·B·T·C, and the first and last half of that. Where the
      embedding is the head too, the first and the last card each have a gradient of it and sum
      the two: each sends 4·V·C bytes more. The row is that of the busiest card.

    Sources: Patarasuk and Yuan, 2009 (the ring); Rajbhandari et al., 2020, arXiv:1910.02054;
    Shoeybi et al., 2019, arXiv:1909.08053; Huang et al., 2019, arXiv:1811.06965.
    """
    check_count(B=B, T=T, cards=cards)
    N = accounting.total_parameters(config)
    blocks, stream = config.n_layer * block_parameters(config), B * T * config.n_embd
    table = config.vocab_size * config.n_embd if config.tie_embeddings else 0
    n = cards

    def ring(numbers: int, passes: int) -> int:
        return passes * numbers * (n - 1) // n

    at_the_ends = stream + table if n > 1 else 0
    in_the_middle = 2 * stream if n > 2 else 0
    return {
        "copies of the model, gradients summed": 4 * ring(N, 2),
        "sharded weights, gradients and moments": 4 * (ring(N, 2) + ring(blocks, 1)),
        "each matrix split": dtype.itemsize * ring(4 * config.n_layer * stream, 2),
        "blocks in sequence": 4 * max(at_the_ends, in_the_middle),
    }


class Plan(NamedTuple):
    """A run on so many cards.

    Attributes:
        memory: bytes on each card by kind, and "peak".
        room: bytes that the card has.
        steps: updates.
        flops: of the whole run, those that checkpoints compute again among them.
        hours: of the run, without loading, evaluation and checkpoints.
        tokens_per_second: that the loader must deliver to all cards together.
        kwh: the boards' full power over that time; hosts, network and cooling are not in it.
        money: cards × hours × price; None where no price was told.
        checkpoint_bytes: weights and both moments, in float32.
        checkpoint_seconds: to write them, at the bandwidth that was told.
        wire: bytes each card sends in a step, see ``on_the_wire``.
        largest_batch: the most sequences that fit a card, 0 where not even one does.
    """

    memory: dict[str, int]
    room: float
    steps: float
    flops: float
    hours: float
    tokens_per_second: float
    kwh: float
    money: float | None
    checkpoint_bytes: int
    checkpoint_seconds: float
    wire: dict[str, int]
    largest_batch: int


def step_flops(config: SmolLM2Config, T: int, *, checkpointing: bool = False) -> int:
    """Return the FLOPs of one sequence: PaLM's formula, and each block forward once more."""
    again = 0
    if checkpointing:
        square = config.n_layer * config.n_head * config.head_dim * T**2
        again = 2 * config.n_layer * block_matrices(config) * T + 4 * square
    return sum(accounting.palm_flops(config, T).values()) + again


def plan(
    config: SmolLM2Config,
    tokens: float,
    card: str,
    cards: int = 1,
    *,
    batch: int = 4,
    length: int = 2048,
    utilisation: float = 0.4,
    dtype: torch.dtype = torch.bfloat16,
    shard: bool = False,
    checkpointing: bool = False,
    price: float | None = None,
    disk: float = 1.0,
) -> Plan:
    """Return what a run takes.

    Args:
        config: the model.
        tokens: seen in training, repetitions included.
        card: a name in ``hardware.CARDS``.
        cards: how many.
        batch: sequences on each card at a time, B.
        length: tokens in each, T.
        utilisation: share of the cards' peak that all products reach, those that are computed again
            included. It is an assumption; notebook 09 says where it goes.
        dtype: of the products.
        shard: split weights, gradients and moments over the cards.
        checkpointing: keep of each block its input alone, and compute the rest again.
        price: of one card for an hour, in your money.
        disk: GB/s at which a checkpoint is written.

    Raises:
        ValueError: for an unknown card, or a value that no run can have, naming it and the rule.
    """
    check_count(batch=batch, length=length, cards=cards)
    if length > config.block_size:
        raise ValueError(
            f"length={length}: must be at most {config.block_size}, the model's context"
        )
    if not batch * length * cards <= tokens < 1e18:
        raise ValueError(f"tokens={tokens:g}: must be one step at least, and below 10^18")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation={utilisation}: must be above 0 and at most 1")
    if not 0 < disk < float("inf"):
        raise ValueError(f"disk={disk}: must be above 0 and finite, in GB/s")
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(f"price={price}: must be at least 0 and finite")
    found = find_card(card)
    options = {"cards": cards, "shard": shard, "checkpointing": checkpointing}

    def peak(B: int) -> int:
        return memory_per_card(config, B, length, dtype, **options)["peak"]  # type: ignore[arg-type]

    room = found.memory * 10**9
    low, high = 0, 1
    while peak(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= room else (low, middle)
    flops = step_flops(config, length, checkpointing=checkpointing) / length * tokens
    seconds = flops / (cards * peak_flops(card, dtype) * utilisation)
    state = 12 * accounting.total_parameters(config)
    return Plan(
        memory=memory_per_card(config, batch, length, dtype, **options),  # type: ignore[arg-type]
        room=room,
        steps=tokens / (cards * batch * length),
        flops=flops,
        hours=seconds / 3600,
        tokens_per_second=tokens / seconds,
        kwh=cards * found.watts * seconds / 3.6e6,
        money=None if price is None else cards * seconds / 3600 * price,
        checkpoint_bytes=state,
        checkpoint_seconds=state / (disk * 1e9),
        wire=on_the_wire(config, batch, length, dtype, cards=cards),
        largest_batch=low,
    )


def full_name(card: str) -> str:
    """Return a card's name in ``CARDS``: of those that begin with the words given, the first."""
    return next((name for name in CARDS if f"{name} ".startswith(f"{card} ")), card)


def print_plan(found: Plan, card: str, cards: int, title: str) -> None:
    """Print a plan, what does not fit first."""
    peak = found.memory["peak"]
    print(f"{title}, on {cards} × {card}")
    share = f"{_gigabytes(peak)} of {_gigabytes(found.room)} on each card"
    print(f"\n{'fits' if peak <= found.room else 'DOES NOT FIT'}: {share}")
    print(f"  most sequences that fit a card: {found.largest_batch:,}")
    for name, held in found.memory.items():
        if name != "peak":
            print(f"  {name:<42}{_gigabytes(held):>10}")
    print(f"\n{found.flops:.3g} FLOPs in {found.steps:,.0f} steps")
    print(f"  time  {_spoken(found.hours)}")
    print(f"  energy  {found.kwh:,.{0 if found.kwh > 10 else 2}f} kWh of the boards alone")
    if found.money is not None:
        print(f"  money  {found.money:,.2f}")
    print(f"  tokens for the loader  {found.tokens_per_second:,.0f} a second")
    print(
        f"  a checkpoint  {_gigabytes(found.checkpoint_bytes)}, "
        f"{found.checkpoint_seconds:,.0f} s to write"
    )
    if cards == 1:
        return
    print("\nsent by each card in a step, were the work split in one way alone")
    for name, sent in found.wire.items():
        print(f"  {name:<42}{_gigabytes(sent):>10}")


def _spoken(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.1f} hours" + (f" ({hours / 24:,.1f} days)" if hours > 48 else "")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count < 1e10 else f"{count / 1e9:,.1f} GB"
