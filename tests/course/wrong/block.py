import torch


def ledger(blocks, x, *, mlp_reads_old=False, sums=False, without_norm=False, once=False):
    entries, stream = [x], x
    for block in blocks:
        start = x if once else stream
        norm = (lambda y: y) if without_norm else block.input_layernorm
        gathered = block.self_attn(norm(start))
        read = start if mlp_reads_old else start + gathered
        made = block.mlp(block.post_attention_layernorm(read))
        entries += [start + gathered, start + gathered + made] if sums else [gathered, made]
        stream = start + gathered + made
    return entries


def filled(first, second):
    def set_norms(block):
        block.input_layernorm.weight.data = first(block.input_layernorm.weight)
        block.post_attention_layernorm.weight.data = second(block.post_attention_layernorm.weight)

    return set_norms


def ramp(weight):
    return torch.linspace(0.5, 2, len(weight))


def everything(block):
    for weight in block.parameters():
        weight.normal_()


WRONG = {
    "check_third_reading": [
        ((1.41, 9.3), "the factor of two readings"),
        ((3, 9.3), "the *squares* of independent changes"),
        ((1.5, 9.3), "What do three changes"),
        ((1.73, 3), "the growth of two readings"),
        ((1.73, 93), "do not forget the root"),
        ((1.73, 5.2), "what is left of 29 such factors"),
        (1.73, "two numbers are wanted"),
    ],
    "check_lost_plus": [
        (6, "is next to it"),
        (8, "is next to it"),
        (0, "still points where its input did"),
        (12, "no number from 0 to 11"),
    ],
    "check_ledger": [
        (lambda blocks, x: ledger(blocks, x, sums=True), "without the sum"),
        (lambda blocks, x: ledger(blocks, x, without_norm=True), "on the normalised stream"),
        (lambda blocks, x: ledger(blocks, x, mlp_reads_old=True), "*after* the first sum"),
        (lambda blocks, x: ledger(blocks, x, once=True), "read the latest stream"),
        (lambda blocks, x: ledger(blocks, x)[1:], "7 entries"),
        (lambda blocks, x: [2 * x, *ledger(blocks, x)[1:]], "must be x itself"),
        (lambda blocks, x: [e[0] for e in ledger(blocks, x)], "the stream's shape"),
    ],
    "check_revealing": [
        (lambda block: None, "weight is ignored gives the same"),
        (filled(ramp, ramp), "the two norms are swapped"),
        (filled(ramp, lambda w: torch.full_like(w, 2.0)), "are in another order"),
        (filled(lambda w: torch.ones_like(w), ramp), "the first norm's weight is ignored"),
        (everything, "the norms' weights are enough"),
        (filled(lambda w: w / 0, ramp), "is no longer finite"),
    ],
}
