import torch

from smol_scratch import GroupedQueryAttention, RMSNorm, SwiGLU


def built(wire, names=("input_layernorm", "post_attention_layernorm"), more=False):
    class Built(torch.nn.Module):
        def __init__(self, config, rope):
            super().__init__()
            for name in names:
                setattr(self, name, RMSNorm(config.n_embd, config.norm_eps))
            self.self_attn = GroupedQueryAttention(config, rope)
            self.mlp = SwiGLU(config)
            if more:
                self.norm = RMSNorm(config.n_embd, config.norm_eps)

        def forward(self, x):
            return wire(x, self.self_attn, self.mlp, *(getattr(self, name) for name in names))

    return Built


def post_norm(x, attention, mlp, first, second):
    x = first(x + attention(x))
    return second(x + mlp(x))


def in_place(x, attention, mlp, first, second):
    x += attention(first(x))
    return x + mlp(second(x))


def always(number):
    return lambda blocks, x: number


def found(blocks, x, shift=0):
    cosines = []
    for block in blocks:
        y = block(x)
        cosines.append(torch.cosine_similarity(x, y, dim=-1).mean().item())
        x = y
    return (min(range(12), key=cosines.__getitem__) + shift) % 12


def least_change(blocks, x):
    changes = []
    for block in blocks:
        y = block(x)
        changes.append((y - x).norm().item())
        x = y
    return min(range(12), key=changes.__getitem__)


def filled(first, second):
    def set_norms(block):
        block.input_layernorm.weight.data = first(block.input_layernorm.weight)
        block.post_attention_layernorm.weight.data = second(block.post_attention_layernorm.weight)

    return set_norms


def ramp(weight):
    return torch.linspace(0.5, 2, len(weight))


def halves(weight):
    return torch.tensor([1.5, 0.5]).repeat_interleave(len(weight) // 2)


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
        (always(6), "is next to it"),
        (lambda blocks, x: found(blocks, x, shift=1), "is next to it"),
        (always(7), "still points where its input did"),
        (least_change, "still points where its input did"),
        (always(12), "no number from 0 to 11"),
        (lambda blocks, x: x, "one whole number"),
    ],
    "check_block": [
        (built(post_norm), "that is post-norm"),
        (built(in_place), "changed its input in place"),
        (built(lambda x, a, m, n1, n2: x + a(n1(x)) + m(n2(x))), "before attention wrote"),
        (built(lambda x, a, m, n1, n2: x + a(n2(x)) + m(n1(x + a(n2(x))))), "norms are swapped"),
        (built(lambda x, a, m, n1, n2: x + a(n1(x)) + m(n1(x + a(n1(x))))), "is used twice"),
        (built(lambda x, a, m, n1, n2: m(n2(a(n1(x))))), "both plus signs"),
        (built(lambda x, a, m, n1, n2: m(n2(x + a(n1(x))))), "the second sum is missing"),
        (built(lambda x, a, m, n1, n2: x + m(n2(x + a(n1(x))))), "the last sum starts from x"),
        (built(lambda x, a, m, n1, n2: a(n1(x)) + m(n2(a(n1(x))))), "the first sum is missing"),
        (built(lambda x, a, m, n1, n2: x + a(x) + m(x + a(x))), "where are the norms"),
        (built(lambda x, a, m, n1, n2: x + 2 * a(n1(x))), "the output is another"),
        (built(post_norm, names=("norm1", "norm2")), "no weight named input_layernorm.weight"),
        (built(post_norm, more=True), "one weight too many"),
        (post_norm, "a class is wanted"),
    ],
    "check_revealing": [
        (lambda block: None, "weight is ignored gives the same"),
        (filled(ramp, ramp), "the two norms are swapped"),
        (filled(ramp, lambda w: torch.full_like(w, 2.0)), "are in another order"),
        (filled(lambda w: torch.ones_like(w), ramp), "the first norm's weight is ignored"),
        (filled(halves, lambda w: 1 + ramp(w)), "of the first norm are equal"),
        (filled(ramp, lambda w: 1 + halves(w)), "of the second norm are equal"),
        (everything, "the norms' weights are enough"),
        (filled(lambda w: w / 0, ramp), "is no longer finite"),
    ],
}
