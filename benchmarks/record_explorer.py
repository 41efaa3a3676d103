"""Computes what the explorer shows before the weights are there: docs/explorer/sentences.json.

``python -m benchmarks.record_explorer`` (minutes). Everything is rounded: attention to whole
percent, probabilities to tenths of a percent, sizes to two digits.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

from smol_scratch import assets, load_pretrained, load_tokenizer
from smol_scratch.course import explorer
from smol_scratch.course.inside import (
    attention_maps,
    changed_output,
    streams,
    together,
)

TEXTS = (
    "The capital of France is",
    "When Mary and John went to the shop, John gave a drink to",
    "The opposite of hot is",
    "The keys to the old cabinet",
    "Once upon a time there was a little",
)
SHOWN = 5  # most probable tokens that are followed


def two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def percent(p: float) -> float:
    return round(100 * p, 1)


def size(x: torch.Tensor) -> list[float]:
    """Return each vector's root mean square: (T, C) -> T numbers."""
    return [two_digits(value) for value in x.pow(2).mean(-1).sqrt().tolist()]


def wrote(block, x: torch.Tensor) -> list[list[float]]:
    """Return the sizes of what a block's attention and its MLP add to the stream."""
    attended = block.self_attn(block.input_layernorm(x))
    return [
        size(attended[0]),
        size(block.mlp(block.post_attention_layernorm(x + attended))[0]),
    ]


def silenced_one_by_one(model, layer: int, x: torch.Tensor) -> torch.Tensor:
    """Return the last token's probabilities without head 0, …, without head 8, without the MLP.

    They are rows of one batch, (10, V); ``x`` is the stream before the block, (T, C).
    """
    block, H, D = model.model.layers[layer], model.config.n_head, model.config.head_dim

    def heads(_, inputs):
        gathered = inputs[0].clone()  # (10, T, H * D)
        for head in range(H):
            gathered[head, :, D * head : D * (head + 1)] = 0
        return (gathered,)

    def mlp(written):
        written = written.clone()  # (10, T, C)
        written[H] = 0
        return written

    hook = block.self_attn.o_proj.register_forward_pre_hook(heads)
    rows = x.expand(H + 1, *x.shape)
    with together(changed_output(block.mlp, mlp)):
        rows = block(rows)
    hook.remove()
    for later in model.model.layers[layer + 1 :]:
        rows = later(rows)
    last = model.model.norm(rows[:, -1])
    return F.linear(last, model.model.embed_tokens.weight).softmax(-1)


@torch.no_grad()
def recorded(model, tokenizer, text, silence=True) -> dict:
    ids = tokenizer.encode(text)
    idx = torch.tensor([ids])
    outer, cfg = model.model, model.config

    def words(probabilities: torch.Tensor, count: int) -> list:
        best = probabilities.topk(count)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[tokenizer.decode([i]), percent(p)] for i, p in pairs]

    stream = streams(model, idx)[:, 0]  # (blocks + 1, T, C)
    lens = F.linear(outer.norm(stream), outer.embed_tokens.weight).softmax(-1)
    maps = attention_maps(model, idx)[:, 0]  # (blocks, H, T, T)
    whole = model(idx)[0][0, -1].softmax(-1)
    best = whole.topk(SHOWN).indices
    off = {}
    for layer in range(cfg.n_layer) if silence else ():
        parts = [*range(cfg.n_head), "mlp"]
        for part, p in zip(parts, silenced_one_by_one(model, layer, stream[layer]), strict=True):
            off[f"{layer}.{part}"] = [[percent(x) for x in p[best].tolist()], words(p, 1)[0]]
    return {
        "text": text,
        "words": tokenizer.tokens(ids),
        # Row after row, only what each token may see.
        "maps": [
            [
                [round(100 * w) for t, row in enumerate(head.tolist()) for w in row[: t + 1]]
                for head in block
            ]
            for block in maps
        ],
        "stream": [size(x) for x in stream],
        "wrote": [wrote(block, x[None]) for block, x in zip(outer.layers, stream, strict=False)],
        "next": [words(lens[-1, t], 10) for t in range(len(ids))],
        "lens": [[words(lens[depth, t], 3) for depth in range(len(stream))]
                 for t in range(len(ids))],
        "off": off,
    }  # fmt: skip


def main() -> None:
    path = assets.verified(assets.GGUF)
    model = load_pretrained(path, quiet=True).requires_grad_(False)
    tokenizer = load_tokenizer(path)
    lines = []
    for text in TEXTS:
        found = recorded(model, tokenizer, text)
        print(text, found["next"][-1][:3])
        lines.append(json.dumps(found, ensure_ascii=False, separators=(",", ":")))
    target = explorer.SOURCE / "sentences.json"
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    print(f"{target.relative_to(assets.ROOT)}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
