import math


def batch(k, n, ridge, size, up=math.ceil, none=True, by=1):
    room = 2 * k * n - ridge * size * (k + n)
    if room <= 0:
        return None if none else 1
    return up(by * ridge * size * k * n / room)


WRONG = {
    "check_one_long": [
        (1, "what about the scores?"),
        (32, "the rest of the model"),
        (0.343, "the other way round"),
        (3.105, "the 32 short sequences"),
        (10.9, "if they are 1 at 3,891"),
        ("three", "answer with one number"),
    ],
    "check_batch_to_fill": [
        (lambda *given: batch(*given, up=math.floor), "round up"),
        (lambda *given: batch(*given, none=False), "no batch suffices"),
        (lambda *given: batch(*given, up=lambda m: math.floor(m) + 1), ""),
        (lambda *given: batch(*given, by=2), "is not the smallest"),
        (lambda k, n, ridge, size: math.ceil(2 * ridge * size), "is not the smallest"),
        (lambda *given: None, "there is such a batch"),
    ],
    "check_recomputed": [
        (1, "nothing was computed again"),
        (4 / 3, "the head is in no block"),
        (1.2675, "a good hand count"),
        (1.5, "not what PyTorch counts"),
        ("a third more", "answer with one number"),
    ],
}
