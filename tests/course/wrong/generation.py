import math


def below(logits, bound):
    return logits.masked_fill(logits < bound, -math.inf)


def search(score, start, beams, length, total=True, worst=False):
    kept = [(0.0, list(start))]
    for _ in range(length):
        longer = [
            ((found if total else 0) + value, [*ids, token])
            for found, ids in kept
            for token, value in enumerate(score(ids).tolist())
        ]
        kept = sorted(longer, key=lambda pair: pair[0], reverse=not worst)[:beams]
    return kept[0][1]


def at_most_two(score, start, beams, length):
    return search(score, start, min(beams, 2), length)


def greedy(score, start, beams, length):
    return search(score, start, 1, length)


WRONG = {
    "check_hot_limit": [
        (0.2, "the limit without top-k"),
        (0.5, "that is temperature 1"),
        (0.34, "divide the scores by a very large number"),
        (1.0, "divide the scores by a very large number"),
        (0.0, "divide the scores by a very large number"),
        ("a third", "answer with one number"),
    ],
    "check_min_p": [
        (lambda z, p: z.masked_fill_(z < 0, 0), "changes its input"),
        (lambda z, p: below(z, p * z.amax()), "is not the score of min_p times as much"),
        (lambda z, p: below(z, z.amax() + math.log(p)), "every row has its own"),
        (lambda z, p: below(z, z.amax(-1, keepdim=True) + p), "logarithm of the quotient"),
        (lambda z, p: below(z, z.amax(-1, keepdim=True) + math.log10(p)), "you keep"),
        (lambda z, p: z.softmax(-1), "what stays must keep its score"),
        (lambda z, p: z[0], "a tensor of the shape of logits"),
    ],
    "check_beam_search": [
        (greedy, "wrong with 2 beams"),
        (at_most_two, "it must find the likeliest of all"),
        (lambda *given: search(*given, total=False), "do you add up the logarithms"),
        (lambda *given: search(*given, worst=True), "it must be the greedy text"),
        (lambda *given: search(*given)[1:], "start, and 4 new ones"),
        (lambda score, start, beams, length: search(score, start, 27, length), "greedy text"),
    ],
}
