import torch


def matrices(gate, up, down):
    return lambda: tuple(torch.tensor(matrix, dtype=torch.double) for matrix in (gate, up, down))


WRONG = {
    "check_growth": [
        (2, "the up reading doubles"),
        (3, "is not it. An open gate"),
        (8, "doubles nothing"),
        (1, "1 would be a norm"),
        (4.1, "is not it. An open gate"),
    ],
    "check_weights": [
        (matrices([[1, 0], [-1, 0]], [[0, 1], [0, 1]], [[1, -1]]), "the product x0 · x1"),
        (matrices([[1, 0], [-1, 0]], [[0, 1], [0, -1]], [[1, 1]]), "the product x0 · x1"),
        (matrices([[1, 1], [-1, -1]], [[-1, 1], [1, -1]], [[1, 1]]), "the wrong way round"),
        # So near to its origin SiLU(z) is z / 2, and any sum of two products can be had.
        (matrices([[1e-7, 0], [0, 1e-7]], [[1, 0], [0, 1]], [[2e7, 2e7]]), "a sum of squares"),
        (matrices([[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[0.9, -0.9]]), "it gives"),
        (matrices([[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[0.999, -0.999]]), "it gives"),
        (matrices([[1, 1]], [[1, -1]], [[1]]), "gate has shape (1, 2)"),
        (lambda: torch.eye(2), "return three tensors"),
    ],
    "check_split": [
        (lambda fused: fused.chunk(2), "one half after the other"),
        (lambda fused: fused.chunk(2)[::-1], "one half after the other"),
        (lambda fused: (fused[0::2], fused[1::2]), "gate and up are exchanged"),
        (lambda fused: (fused[:, :1], fused[:, 1:]), "of twelve rows it takes"),
        (lambda fused: fused, "return two tensors"),
    ],
    "check_repair": [
        (1, "GELU as it is"),
        (0.6, "narrower than GELU"),
        (1.4, "try a larger scale"),
        (2.5, "try a smaller scale"),
        (-1.7, "is no stretch"),
    ],
}
