import math

import torch


def pieces(model, x, y, sizes, weigh, returned=None):
    total = 0.0
    for x_piece, y_piece in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = model(x_piece, y_piece)[1] * weigh(len(x_piece), len(x), len(sizes))
        loss.backward()
        total += loss.item()
    return total if returned is None else returned(total)


def without_backward(model, x, y, sizes):
    return model(x, y)[1].item()


def of_whole(size, whole, count):
    return size / whole


def resume(state, saved, leave_out=(), **changed):
    saved = saved | changed
    if "weights" not in leave_out:
        state.model.load_state_dict(saved["weights"])
    if "optimizer" not in leave_out:
        state.optimizer.load_state_dict(saved["optimizer"])
    if "loader" not in leave_out:
        state.loader.load_state_dict(saved["loader"])
    if "step" not in leave_out:
        state.step = saved["step"]
    if "generator" not in leave_out:
        torch.set_rng_state(saved["generator"])


def with_another_seed(state, saved):
    resume(state, saved, ["generator"])
    torch.manual_seed(1337)


WRONG = {
    "check_first_loss": [
        (math.log(49_152), "so much costs knowing nothing"),
        (math.log(49_152) + 288, "as long as many tokens share the sum"),
        (24.0, "so large is a common logit"),
        (1_000, "not within a third"),
        ("large", "answer with one number"),
    ],
    "check_accumulate": [
        (lambda *given: pieces(*given, lambda size, whole, n: 1), "times too long"),
        (lambda *given: pieces(*given, lambda size, whole, n: 1 / n), "a mean of means"),
        (without_backward, "call backward()"),
        (lambda *given: pieces(*given, of_whole, lambda total: 2 * total), "is not"),
        (lambda *given: pieces(*given, of_whole, lambda _: None), "return the loss"),
        (lambda *given: pieces(*given, lambda size, whole, n: size), "another one than that of"),
    ],
    "check_resume": [
        (lambda state, saved: None, "the step is"),
        (lambda *given: resume(*given, ["weights"]), "the weights are other ones"),
        (lambda *given: resume(*given, ["optimizer"]), "the optimizer begins anew"),
        (lambda *given: resume(*given, ["loader"]), "the place in the text is"),
        (lambda *given: resume(*given, ["step"]), "the step is"),
        (with_another_seed, "its state is where it is"),
    ],
    "check_batch": [
        (6, "a loader that went on would read it"),
        (0, "the first of the ten lines is of step 5,001"),
        (2, "another batch fits much better"),
        (100, "another batch fits much better"),
        (300, "0 to 288"),
        (-1, "0 to 288"),
        (1.5, "one whole number"),
    ],
}
