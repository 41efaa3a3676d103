def asked(language=(23, 0.79), opposite=(22, 0.22)):
    return {"languages": language, "opposites": opposite}


def everywhere(word):
    return lambda tokens: [t for t in range(1, len(tokens)) if tokens[t] == word]


WRONG = {
    "check_second_giant": [
        ("The capital of France is", "no second giant"),
        ("A A A A", "no second giant"),  # " A" is another token than "A"
        ("the", "between 2 and 200"),
        (["the", "the"], "is no text"),
    ],
    "check_enough": [
        (0.72, "when the six are silenced"),
        (0.42, "does not return"),
        (0, "cannot copy either"),
        (0.25, "Three losses"),
        (58, "a share of the gain"),
        ("all", "is no number"),
    ],
    "check_rule": [
        (lambda tokens: [0], "something in common"),
        (lambda tokens: [1], "something in common"),
        (everywhere("\n"), "something in common"),
        (lambda tokens: list(range(1, len(tokens))), "Too many alarms"),
        (lambda tokens: 9, "a list of positions"),
        ([9], "is no function"),
    ],
    "check_fetched": [
        (asked((24, 0.86)), "blocks passed *after*"),
        (asked((11, 0.86)), "Between which two depths"),
        (asked(opposite=(23, 0.21)), "blocks passed *after*"),
        (asked(opposite=(22, 0.86)), "no head of it carries"),
        (asked(opposite=(22, 0.63)), "the step of the whole block"),
        (asked((23, 0.11)), "another head carries more"),
        (asked(23), "no pair"),
        ({"languages": (23, 0.9)}, "a dictionary with"),
    ],
}
