import torch


def one_head(mine, theirs, heads, start):
    result = mine.clone()
    result[:, start:, 64 * heads[0] : 64 * heads[0] + 64] = theirs[
        :, start:, 64 * heads[0] : 64 * heads[0] + 64
    ]
    return result


def in_place(mine, theirs, heads, start):
    for head in heads:
        mine[:, start:, 64 * head : 64 * head + 64] = theirs[:, start:, 64 * head : 64 * head + 64]
    return mine


def from_the_beginning(mine, theirs, heads, start):
    result = mine.clone()
    for head in heads:
        result[..., 64 * head : 64 * head + 64] = theirs[..., 64 * head : 64 * head + 64]
    return result


def only_there(mine, theirs, heads, start):
    result = mine.clone()
    for head in heads:
        result[:, start, 64 * head : 64 * head + 64] = theirs[:, start, 64 * head : 64 * head + 64]
    return result


def interleaved(mine, theirs, heads, start):
    result = mine.clone()  # channel c to head c % 9
    for head in heads:
        result[:, start:, head::9] = theirs[:, start:, head::9]
    return result


def everywhere(word):
    return lambda tokens: [t for t in range(1, len(tokens)) if tokens[t] == word]


WRONG = {
    "check_second_giant": [
        ("The capital of France is", "no second giant"),
        ("A A A A", "no second giant"),  # " A" is another token than "A"
        ("the", "between 2 and 200"),
        (["the", "the"], "is no text"),
    ],
    "check_transplant": [
        (one_head, "64 channels changed instead of 128"),
        (in_place, "make a clone first"),
        (from_the_beginning, "positions before 2"),
        (only_there, "positions 2 to the last"),
        (interleaved, "the wrong channels"),
        (lambda mine, theirs, heads, start: torch.zeros(3), "the shape of what came in"),
    ],
    "check_rule": [
        (lambda tokens: [0], "something in common"),
        (lambda tokens: [1], "something in common"),
        (everywhere("\n"), "something in common"),
        (lambda tokens: list(range(1, len(tokens))), "Too many alarms"),
        (lambda tokens: 9, "a list of positions"),
        ([9], "is no function"),
    ],
    "check_fetching_head": [
        ((22, 4), "how many blocks"),
        ((23, 5), "another head carries more"),
        ((24, 4), "how many blocks"),
        ((23, 9), "from 0 to 8"),
        (23, "is no pair"),
    ],
}
