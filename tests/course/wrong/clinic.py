import torch

from smol_scratch import DataLoaderLite, clinic


class SameForAll(DataLoaderLite):
    def next_batch(self):
        self.rank = 0
        return super().next_batch()


class Late(DataLoaderLite):
    """Wrong from the third batch on, where few look."""

    def next_batch(self):
        x, y = super().next_batch()
        self.count = getattr(self, "count", 0) + 1
        return (x, y) if self.count < 3 else (y, x)


class Seen(DataLoaderLite):
    def next_batch(self):
        x, _ = super().next_batch()
        return x, x


def shifted(loader):
    x, y = loader(list(range(50)), 2, 4).next_batch()
    return torch.equal(y, x + 1)


def moves(loader):
    it = loader(list(range(50)), 2, 4)
    first, second = it.next_batch(), it.next_batch()
    return shifted(loader) and second[0][0, 0] == first[1][-1, -1]


def first_of_each_rank(loader):
    """What the folded solution once was: it asks two ranks for their first batches only."""
    first = [loader(list(range(50)), 2, 4, rank=r, world_size=2).next_batch()[0] for r in (0, 1)]
    return moves(loader) and not torch.equal(*first)


def disjoint_first(loader):
    first = [loader(list(range(50)), 2, 4, rank=r, world_size=2).next_batch()[0] for r in (0, 1)]
    return moves(loader) and len(torch.stack(first).unique()) == 16


def once_around(loader):
    """All that the checker asks of a check, and no third batch."""
    ranks, seen = [loader(list(range(61)), 2, 5, rank=r, world_size=2) for r in (0, 1)], []
    for _ in range(2):
        for mine in ranks:
            x, y = mine.next_batch()
            if not torch.equal(y, x + 1):
                return False
            seen += x.flatten().tolist()
    return seen == list(range(40))


[LINE] = clinic.guilty(clinic.case(27))["model.py"]
STANDS_STILL = ("model.py", LINE, "position-stands-still")
HALVED = {"causality": "✓", "cache": "✗"}

WRONG = {
    "check_nothing_happens": [
        (("model.py", 46, "seed-not-set"), "the file is not"),
        (("training.py", "scaler.step(optimizer)", "gradients-zeroed-too-late"), "the line is not"),
        (("training.py", "optimizer.zero_grad()", "gradients-never-zeroed"), "the cause is not"),
        ("training.py", "an answer is"),
    ],
    "check_second_report": [
        (({"causality": "✗"}, *STANDS_STILL), "does not say ✗"),
        (({"greedy": "✗", "causality": "✓"}, *STANDS_STILL), "0 bits"),
        (({"causality": "✓"}, *STANDS_STILL), "2 suspects agree"),
        (({"causality": "✓", "ladder": "✗"}, *STANDS_STILL), "cost 4 points"),
        (({"causality": "yes"}, *STANDS_STILL), "✓ or ✗, not"),
        (({"casuality": "✓"}, *STANDS_STILL), "no such instrument"),
        ((HALVED, "cache.py", "self.length = end", "position-stands-still"), "the file is not"),
        ((HALVED, "model.py", "start = 0", "position-stands-still"), "name one by its number"),
        ((HALVED, "model.py", LINE, "heads-not-transposed"), "the cause is not"),
        (STANDS_STILL, "an answer is"),
    ],
    "check_planted": [
        (("model.py", "pow(2).mean(-1, ", "pow(2).mean((0, 1), "), "mixes tokens"),
        (("model.py", "pow(2).mean(-1, ", "pow(2).mean(1, "), "is read by itself"),
        (("model.py", "pow(2).mean(-1, ", "pow(2).mean(9, "), "cannot be asked"),
        (("model.py", "no such text", ""), "occurs 0 times"),
        (("models.py", "a", "b"), "models.py"),
        ("model.py", "an answer is"),
    ],
    "check_loader_check": [
        ((SameForAll, lambda loader: True), "the targets are the inputs"),
        ((SameForAll, lambda loader: False), "refuses the right loader"),
        ((SameForAll, shifted), "every batch is the first"),
        ((SameForAll, moves), "two processes read the same batch"),
        ((SameForAll, first_of_each_rank), "two processes take overlapping batches"),
        ((SameForAll, disjoint_first), "each process moves on by one batch"),
        ((Late, once_around), "the faulty loader that you wrote yourself"),
        ((DataLoaderLite, once_around), "has no fault"),
        ((Seen, once_around), "`glance` sees the fault"),
        (once_around, "an answer is"),
    ],
}
