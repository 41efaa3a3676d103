import torch


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


WRONG = {
    "check_later_key": [
        (1, "a query *after* its key"),
        (7, "no turn at all"),
        (-7, "half a turn"),
        (0, "seven quarters back are one forwards"),
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
