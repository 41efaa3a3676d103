import torch


def batch(tokens, B, T, k, stay=False, shift=1):
    batches = (len(tokens) - 1) // (B * T)
    start = (min(k, batches - 1) if stay else k % batches) * B * T
    x, y = (part[start : start + B * T] for part in (tokens, tokens.roll(-shift)))
    return x.view(B, T), y.view(B, T)


def round_the_end(tokens, B, T, k):
    places = (torch.arange(B * T + 1) + k * B * T) % len(tokens)
    return tokens[places[:-1]].view(B, T), tokens[places[1:]].view(B, T)


WRONG = {
    "check_place": [
        ((3_590, 15), "if a batch could run over the end"),
        ((5_120, 14), "14 passes is not it"),
        ((5_120, 16), "16 passes is not it"),
        ((5, 15), "It counts tokens, not batches"),
        (5_120, "two numbers in brackets"),
    ],
    "check_batch_at": [
        (round_the_end, "x is another part of the text"),
        (lambda *given: batch(*given, shift=0), "y must be the token after"),
        (lambda *given: batch(*given, shift=2), "y must be the token after"),
        (lambda *given: batch(*given, stay=True), "How many batches make a pass?"),
        (lambda tokens, B, T, k: batch(tokens, B, T, k + 1), "x is another part of the text"),
        (lambda *given: batch(*given)[0], "return two tensors"),
        (lambda *given: tuple(part.T for part in batch(*given)), "x has shape"),
    ],
    "check_greedy": [
        (" Romeo", "no cut into fewer exists"),
        ("ROMEO", "no cut into fewer exists"),
        (" Coriolanus", "no cut into fewer exists"),
        ("xylophone", "is none of the words"),
        (" the king", "is none of the words"),
        (17, "a word is wanted"),
    ],
}
