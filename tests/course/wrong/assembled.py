import torch
import torch.nn.functional as F


def surprise(logits, targets):
    kept = targets != -100
    return F.cross_entropy(logits[kept], targets[kept])


def from_softmax(logits, targets):
    kept = targets != -100
    weights = logits[kept].exp()
    chosen = weights.gather(1, targets[kept, None]) / weights.sum(1, keepdim=True)
    return -chosen.log().mean()


def over_all(logits, targets):
    safe = targets.clamp(min=0)
    each = F.cross_entropy(logits, safe, reduction="none") * (targets != -100)
    return each.mean()


def counted_as_the_last(logits, targets):
    return -logits.log_softmax(-1)[torch.arange(len(targets)), targets.clamp(min=-1)].mean()


WRONG = {
    "check_rows": [
        ((12, 12, 12, 49_152), "untied, all: 12 is not it"),
        ((49_152, 9, 1, 49_152), "untied, all: 49152 is not it"),
        ((9, 1, 1, 49_152), "untied, the last: 1 is not it"),
        ((9, 9, 9, 49_152), "untied, the first: 9 is not it"),
        ((9, 9, 1, 1), "tied, the first: 1 is not it"),
        ((9, 9, 1, 9), "tied, the first: 9 is not it"),
        ((9, 49_152), "four numbers in brackets"),
    ],
    "check_cross_entropy": [
        (lambda z, y: -surprise(z, y), "the sign"),
        (lambda z, y: F.cross_entropy(z, y, reduction="sum"), "this is the sum"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), "return one number"),
        (lambda z, y: surprise(z / 2, y), "on six random tokens"),
        (from_softmax, "wrong for logits in the thousands"),
        (over_all, "the mean must be over the other four"),
        (counted_as_the_last, "the mean must be over the other four"),
        (lambda z, y: -z.log_softmax(-1).gather(1, y[:, None]).mean(), "a target of -100"),
    ],
    "check_first_losses": [
        ((10.82, 0.083), "is ln V alone"),
        ((11.13, 0.083), "take half"),
        ((11.38, 0.083), "has σ on top"),
        ((11.10, 0.083), "has σ on top"),
        ((10.92, 0.083), "is SmolLM2's"),
        ((12.0, 0.083), "it is ln V + σ²/2"),
        ((10.98, 2.0), "is that of the logits"),
        ((10.98, 0.0589), "only half the variance"),
        ((10.98, 0.0069), "the variance of a weight"),
        ((10.98, 0.5), "how far above ln 49,152"),
        (10.98, "two numbers in brackets"),
    ],
    "check_mystery": [
        ({4: ("gate_proj", "up_proj")}, "did you count from 0"),
        ({2: ("k_proj", "v_proj"), 6: ("gate_proj", "up_proj")}, "did you count from 0"),
        ({0: ("k_proj", "v_proj")}, "block 0 holds"),
        ({2: ("k_proj", "v_proj")}, "does another rung break"),
        ({5: ("up_proj", "gate_proj")}, "does another rung break"),
        ({2: ("q_proj", "o_proj"), 5: ("gate_proj", "up_proj")}, "compare each matrix"),
        ({2: ("gate_proj", "up_proj"), 5: ("k_proj", "v_proj")}, "which part of it is broken"),
        ({5: ("gate", "up")}, "is no matrix of it"),
        ({5: "mlp"}, "which two of its matrices"),
        ((5, "mlp"), "a dictionary is wanted"),
    ],
}
