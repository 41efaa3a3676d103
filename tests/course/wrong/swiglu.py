import torch


def matrices(gate, up, down):
    return lambda: tuple(torch.tensor(matrix, dtype=torch.double) for matrix in (gate, up, down))


WRONG = {
    "check_growth": [
        (2, "the up value doubles"),
        (3, "is not it. An open gate"),
        (8, "is not it. An open gate"),
        (1, "is not it. An open gate"),
    ],
    "check_weights": [
        (matrices([[1, 0], [-1, 0]], [[0, 1], [0, 1]], [[1, -1]]), "the product x0 · x1"),
        (matrices([[1, 0], [-1, 0]], [[0, 1], [0, -1]], [[1, 1]]), "the product x0 · x1"),
        (matrices([[1, 1], [-1, -1]], [[-1, 1], [1, -1]], [[1, 1]]), "the wrong way round"),
        (matrices([[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[0.9, -0.9]]), "it gives"),
        (matrices([[1, 1]], [[1, -1]], [[1]]), "gate has shape (1, 2)"),
        (lambda: torch.eye(2), "return three tensors"),
    ],
    "check_beta": [
        (1.0, "try a larger beta"),
        (2.0, "try a smaller beta"),
        (1.702, "is not one of"),
        (1.6, "try a larger beta"),
        (1.9, "try a smaller beta"),
        (17, "is not one of"),
    ],
}
