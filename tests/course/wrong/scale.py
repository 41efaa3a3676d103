import torch

from smol_scratch.course.exercises import scale


def split(n, d, more=5000):
    return {"N": n, "D": d, "N, a hundred times the budget": more}


def star(tensors, wire):
    """Everything goes to worker 0, which sends the sum to all others."""
    total = tensors[0].clone()
    for i in range(1, len(tensors)):
        total += wire(i, tensors[i])
    return [total, *(wire(0, total) for _ in tensors[1:])]


def everyone_to_everyone(tensors, wire):
    n = len(tensors)
    sums = [tensor.clone() for tensor in tensors]
    for sender in range(n):
        for receiver in range(n):
            if sender != receiver:
                sums[receiver] = sums[receiver] + wire(sender, tensors[sender])
    return sums


def half_a_ring(tensors, wire):
    """The sums are made, a piece with each worker, and never handed round."""
    n = len(tensors)
    pieces = [list(tensor.chunk(n)) for tensor in tensors]
    for turn in range(n - 1):
        moving = [(i, (i - turn) % n) for i in range(n)]
        carried = [wire(i, pieces[i][k]) for i, k in moving]
        for (i, k), numbers in zip(moving, carried, strict=True):
            pieces[(i + 1) % n][k] = pieces[(i + 1) % n][k] + numbers
    return [torch.cat(mine) for mine in pieces]


def at(n, seed, d):
    return next(i for i, run in enumerate(scale.reported()) if run[:3] == (n, seed, d))


WRONG = {
    "check_split": [
        (split(1000, 1000), "half and half"),
        (split(2000, 500), "wrong way round"),
        (split(500, 1000), "N · D is 500,000"),
        (split(250, 4000), "a larger model would be better"),
        (split(800, 1250), "a smaller model would be better"),
        (split(500, 2000, 50_000), "all of the hundred"),
        (split(500, 2000, 500), "both terms must stay equal"),
        ({"N": 500, "D": 2000}, "a dictionary with"),
    ],
    "check_ring": [
        (star, "worker 0 of 4 sent 72 numbers"),
        (everyone_to_everyone, "in a ring 36 are enough"),
        (half_a_ring, "nobody holds the sum"),
        (lambda tensors, wire: [sum(tensors)] * len(tensors), "use `wire`"),
        (lambda tensors, wire: [sum(tensors), *tensors[1:]], "worker 1 lacks"),
        (lambda tensors, wire: sum(tensors), "return a list of 2"),
    ],
    "check_spoiled": [
        (at(7_008, 0, 114_688), "a seed's luck"),
        (at(7_008, 2, 917_504), "above the rest of its run, but on the law"),
        (at(340_736, 0, 917_504), "closer to the rest of its run"),
        (48, "a place in the list"),
        ("third", "a place in the list"),
    ],
}
