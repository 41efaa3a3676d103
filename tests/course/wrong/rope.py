import torch


def forward(keys, rope, n):
    return torch.cat([rope(key, start=n) for key in keys.split(1, dim=2)], dim=2)


def turned_back(keys, rope, n):
    first, second = keys.chunk(2, dim=-1)
    cos, sin = rope.cos[n], rope.sin[n]
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def one_too_few(keys, rope, n):
    return turned_back(keys, rope, n - 1)


WRONG = {
    "check_slowest": [
        (10, "the last one has i = 31"),
        (1, "pair 0, whose exponent is 0"),
        (9.33, "put in i = 31"),
        (10 ** (31 / 64), "put in i = 31"),
        (10 ** (-62 / 64), "put in i = 31"),
    ],
    "check_shift_keys": [
        (forward, "went n positions forward"),
        (lambda keys, rope, n: rope(keys, start=n), "wherever it stands"),
        (one_too_few, "not the keys of n positions earlier"),
        (lambda keys, rope, n: keys, "the keys did not move"),
        (lambda keys, rope, n: rope(keys), "those of position n, wherever it stands"),
        (lambda keys, rope, n: keys[:, :, n:], "a tensor of the keys' shape"),
        (lambda keys, rope, n: keys.roll(n, dims=2), "not the keys of n positions earlier"),
    ],
    "check_theta": [
        (10_000, "pairs stay below one turn"),
        (100_000, "pairs stay below one turn"),
        (876_543, "is no multiple of 10,000"),
        (-880_000, "theta must be above 0"),
        (900_000, "a smaller multiple of 10,000"),
        (1_000_000, "a smaller multiple of 10,000"),
    ],
}
