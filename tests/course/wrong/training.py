import torch


def stop(losses, patience, previous=False, ties=False):
    lowest, missed = 0, 0
    for i, loss in enumerate(losses):
        against = losses[max(i - 1, 0) if previous else lowest]
        if i == 0 or loss < against or (ties and loss == against):
            lowest, missed = i, 0
        else:
            missed += 1
        if missed == patience:
            return i, lowest
    return len(losses) - 1, lowest


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
    "check_stop": [
        (lambda losses, patience: 3, "return two numbers"),
        (lambda losses, patience: stop(losses, patience)[::-1], "the other way round"),
        (lambda losses, patience: stop(losses, patience + 1), "one too early or too late"),
        (lambda losses, patience: (stop(losses, patience)[0],) * 2, "you keep the last weights"),
        (lambda losses, patience: stop(losses, patience, previous=True), "the lowest so far"),
        (lambda losses, patience: stop(losses, patience, ties=True), "is not lower"),
        (lambda losses, patience: (len(losses) - 1, stop(losses, patience)[1]), "have ended"),
        (lambda losses, patience: (stop(losses, patience)[0], min(losses)), "places in the list"),
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
