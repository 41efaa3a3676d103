import torch


def query_heads(mine, theirs, group):
    result = mine.clone()  # as if every query head had values of its own
    for head in range(3 * group, 3 * group + 3):
        result[..., 64 * head : 64 * (head + 1)] = theirs[..., 64 * head : 64 * (head + 1)]
    return result


def in_place(mine, theirs, group):
    mine[..., 64 * group : 64 * (group + 1)] = theirs[..., 64 * group : 64 * (group + 1)]
    return mine


def in_turn(mine, theirs, group):
    result = mine.clone()  # channel c to group c % 3
    result[..., group::3] = theirs[..., group::3]
    return result


WRONG = {
    "check_positions": [
        (0, "if the place counted"),
        ([0], "if the place counted"),
        ([0, 1], "why not the third"),
        ([], "a weighted average of equal values"),
        ([5], "a weighted average of equal values"),
        ([0, 1, 2, 3, 4, 5, 6], "a weighted average of equal values"),
    ],
    "check_group": [
        (lambda mine, theirs, group: theirs.clone(), "all three groups"),
        (in_place, "make a clone first"),
        (in_turn, "which are its 64?"),
        (query_heads, "all three groups"),
        (lambda mine, theirs, group: torch.zeros(3), "the shape of the values"),
    ],
    "check_eraser": [
        ((11, 1229), "writes the giant"),
        ((29, 1165), "takes what is left"),
        ((28, 1095), "the right block"),
        ((27, 903), "begin to fall"),
        ((28, 1600), "from 0 to 1535"),
        (678, "is no pair"),
    ],
    "check_amplified": [
        (1.0, "with the giant and without"),
        (23_700, "that is the giant itself"),
        (0.118, "the other way round"),
        (576**0.5, "with the giant and without"),
    ],
}
