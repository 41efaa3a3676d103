import torch


def batch(tokens, B, T, k, rank, world_size, stay=False, shift=1):
    step = B * T * world_size
    steps = (len(tokens) - 1) // step
    start = (min(k, steps - 1) if stay else k % steps) * step + rank * B * T
    x, y = (part[start : start + B * T] for part in (tokens, tokens.roll(-shift)))
    return x.view(B, T), y.view(B, T)


def round_the_end(tokens, B, T, k, rank, world_size):
    places = (torch.arange(B * T + 1) + (k * world_size + rank) * B * T) % len(tokens)
    return tokens[places[:-1]].view(B, T), tokens[places[1:]].view(B, T)


def alone(tokens, B, T, k, rank, world_size):
    return batch(tokens, B, T, k, 0, 1)


def all_the_same(tokens, B, T, k, rank, world_size):
    return batch(tokens, B, T, k, 0, world_size)


def smoothed(after, token, shorter, d, floor=0.0, freed=None):
    total = after.total()
    if not total:
        return shorter
    freed = d * len(after) if freed is None else freed
    return (max(after[token] - d, floor) + freed * shorter) / total


WRONG = {
    "check_place": [
        ((5_120, 15), "Now 200 of 8 × 256 follow"),
        ((73_626, 16), "if a batch could run over the end"),
        ((72_096, 16), "if a batch could run over the end"),
        ((73_728, 15), "15 passes is not it"),
        ((78_848, 16), "each pass begins at 0"),
        ((36, 16), "It counts tokens"),
        (73_728, "two numbers in brackets"),
    ],
    "check_smoothed": [
        (lambda *given: smoothed(*given, floor=-1.0), "must not fall below 0"),
        (lambda *given: smoothed(*given, freed=0.0), "its part of what is freed"),
        (lambda after, token, shorter, d: smoothed(after, token, 1, d), "never seen here"),
        (lambda after, *rest: max(after[rest[0]] - rest[2], 0) / after.total(), "never seen here"),
        (
            lambda after, token, shorter, d: (
                (after[token] + d * len(after) * shorter) / after.total()
            ),
            "the count less d",
        ),
        (
            lambda after, token, shorter, d: (
                (max(after[token] - d, 0) + d * len(after) * shorter) / after.total()
            ),
            "total 0",
        ),
        (lambda *given: smoothed(*given) if given[0] else 0.0, "the shorter table alone"),
        (lambda *given: None, "return one number"),
    ],
    "check_batch_at": [
        (round_the_end, "x is another part of the text"),
        (alone, "rank 0 of 2: x is another part of the text"),
        (all_the_same, "rank 1 of 2: x is another part of the text"),
        (lambda *given: batch(*given, shift=0), "y must be the token after"),
        (lambda *given: batch(*given, shift=2), "y must be the token after"),
        (lambda *given: batch(*given, stay=True), "How many steps make a pass?"),
        (lambda tokens, B, T, k, *rest: batch(tokens, B, T, k + 1, *rest), "another part of"),
        (lambda *given: batch(*given)[0], "return two tensors"),
        (lambda *given: tuple(part.T for part in batch(*given)), "x has shape"),
    ],
    "check_greedy": [
        (" Romeo", "no cut into fewer exists"),
        ("ROMEO", "no cut into fewer exists"),
        (" Coriolanus", "no cut into fewer exists"),
        ("xylophone", "is none of the words"),
        (" the king", "is none of the words"),
        (17, "a word is wanted"),
    ],
}
