import torch

from smol_scratch.hub import halves_from_neighbours, neighbours_from_halves


def forward(keys, rope, n):
    return torch.cat([rope(key, start=n) for key in keys.split(1, dim=2)], dim=2)


def turned_back(keys, rope, n):
    first, second = keys.chunk(2, dim=-1)
    cos, sin = rope.cos[n], rope.sin[n]
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def one_too_few(keys, rope, n):
    return turned_back(keys, rope, n - 1)


def found(**changed):
    return {"theta": 250_000, "pairs": "neighbours", "direction": "backwards"} | changed


def scores(query_first, key_first):
    return {"query at 2, key at 9": query_first, "query at 9, key at 2": key_first}


WRONG = {
    "check_later_key": [
        (scores(1, -1), "the two are exchanged"),
        (scores(-1, -1), "their sign counts"),
        (scores(1, 1), "their sign counts"),
        (scores(7, 7), "no turn at all"),
        (scores(-1, -7), "key at 2: that is half a turn"),
        (scores(0, 1), "key at 9: 0 is not it. Seven quarters back are one forwards"),
        (-1, "a dictionary with"),
    ],
    "check_back_to_halves": [
        (lambda weight, head_dim: weight, "did not move"),
        (neighbours_from_halves, "the same step once more"),
        (lambda weight, head_dim: halves_from_neighbours(weight, len(weight)), "within each head"),
        (lambda weight, head_dim: weight.T, "of the weight's shape"),
        (lambda weight, head_dim: halves_from_neighbours(weight, head_dim).flip(1), "stays whole"),
        (lambda weight, head_dim: halves_from_neighbours(weight, head_dim).flip(0), "come first"),
    ],
    "check_shift_keys": [
        (forward, "went n positions forward"),
        (lambda keys, rope, n: rope(keys, start=n), "wherever it stands"),
        (one_too_few, "not the keys of n positions earlier"),
        (lambda keys, rope, n: keys, "the keys did not move"),
        (lambda keys, rope, n: rope(keys), "turned by its own place in the tensor"),
        (lambda keys, rope, n: keys[:, :, n:], "a tensor of the keys' shape"),
        (lambda keys, rope, n: keys.roll(n, dims=2), "not the keys of n positions earlier"),
    ],
    "check_mystery": [
        (found(pairs="halves"), "where does the rest appear?"),
        (found(direction="forwards"), "Is the second number above 0?"),
        (found(theta=1.0), "1 radian whatever theta"),
        (found(theta=250_000 ** (1 / 32)), "theta to the power 2/64"),
        (found(theta=100_000), "theta is not 100,000"),
        ({"theta": 250_000}, "a dictionary"),
    ],
}
