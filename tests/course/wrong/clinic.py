import torch


def shifted(loader):
    x, y = loader(list(range(50)), 2, 4).next_batch()
    return torch.equal(y, x + 1)


def moves(loader):
    it = loader(list(range(50)), 2, 4)
    first, second = it.next_batch(), it.next_batch()
    return shifted(loader) and second[0][0, 0] == first[1][-1, -1]


WRONG = {
    "check_nothing_happens": [
        (("model.py", 46, "seed-not-set"), "the file is not"),
        (("training.py", "scaler.step(optimizer)", "gradients-zeroed-too-late"), "the line is not"),
        (("training.py", "optimizer.zero_grad()", "gradients-never-zeroed"), "the cause is not"),
        ("training.py", "an answer is"),
    ],
    "check_selective_memory": [
        (("model.py", "start = cache.length", "position-stands-still"), "the file is not"),
        (("cache.py", "layer.length", "truncated-in-part"), "in no line"),
        (("cache.py", "self.length = end", "truncated-in-part"), "the line is not"),
        (("cache.py", "self.layers[0].length = length", "cache-not-used"), "the cause is not"),
    ],
    "check_no_way_back": [
        (("model.py", "x32 = x.float()", "tables-rounded"), "the line is not"),
        (("model.py", "self.sin.float()", "theta-ignored"), "the cause is not"),
        (("rope.py", 3, "tables-rounded"), "no such file"),
        (("model.py", 3, "tables-round"), "did you mean tables-rounded"),
    ],
    "check_loader_check": [
        (lambda loader: True, "the targets are the inputs"),
        (lambda loader: False, "refuses the right loader"),
        (shifted, "every batch is the first"),
        (moves, "two processes read the same batch"),
    ],
}
