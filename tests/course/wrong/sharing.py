import torch

from smol_scratch.course.exercises.sharing import _MOVED


def numbers(raw, kind=torch.int8, by=".view", step_type=torch.float16, start=2):
    blocks = raw.unflatten(-1, (-1, 34))
    step = blocks[..., :2].contiguous().view(step_type).float()
    steps = blocks[..., start : start + 32].contiguous()
    steps = steps.view(kind) if by == ".view" else steps.to(kind)
    return (steps.float() * step).flatten(-2)


def in_float16(raw):
    blocks = raw.unflatten(-1, (-1, 34))
    step = blocks[..., :2].contiguous().view(torch.float16)
    return (blocks[..., 2:].contiguous().view(torch.int8).half() * step).flatten(-2)


_, _, BLOCK, _, MATRIX, _ = _MOVED.split(".")
OTHER_BLOCK = _MOVED.replace(f".{BLOCK}.", ".0." if BLOCK != "0" else ".1.")
RIGHT = {"layer": 29, "matrix": "down_proj", "left": 0.12}
SAME_BLOCK = _MOVED.replace(MATRIX, "k_proj" if MATRIX == "q_proj" else "q_proj")

WRONG = {
    "check_dequantise": [
        (lambda raw: numbers(raw, kind=torch.uint8), "the 32 bytes have a sign"),
        (lambda raw: numbers(raw, step_type=torch.bfloat16), "the first two are the step"),
        (lambda raw: numbers(raw, start=1), "Of each 34 bytes"),
        (in_float16, "multiply in float32"),
        (lambda raw: raw.view(torch.int8).float(), "34 bytes are 32 numbers"),
        (lambda raw: numbers(raw).tolist(), "must be a tensor"),
    ],
    "check_file_size": [
        (1.711, "one byte per number"),
        (1.711e9 * 34 / 32, "divide by 10"),
        (1.711 * 34 / 32 * 1e9 / 2**30, "that is in GiB"),
        (6.85, "32 in a matrix take 34 bytes"),
        (1.83, "32 in a matrix take 34 bytes"),
        (0.97, "32 in a matrix take 34 bytes"),
        ("two", "answer with one number"),
    ],
    "check_arrived": [
        (OTHER_BLOCK, "put the earlier candidates back"),
        (SAME_BLOCK, "the right block"),
        ("model.norm.weight", "which matrices feed RoPE?"),
        (_MOVED.replace(MATRIX, "v_proj"), "which matrices feed RoPE?"),
        (_MOVED.removesuffix(".weight"), "did you mean"),
        ("q_proj", "no such name"),
        (1, "answer with a name"),
    ],
    "check_worst_layer": [
        (RIGHT | {"layer": 27}, "the largest outlier"),
        (RIGHT | {"layer": 30}, "from 0 to 29"),
        (RIGHT | {"layer": 2}, "for all thirty"),
        (RIGHT | {"matrix": "o_proj"}, "holds its largest number"),
        (RIGHT | {"matrix": "up_proj"}, "try all seven"),
        (RIGHT | {"matrix": "mlp.down_proj.weight"}, "one of q_proj"),
        (RIGHT | {"left": 12}, "a share between 0 and 1"),
        (RIGHT | {"left": 0.88}, "the share that is repaired"),
        (RIGHT | {"left": 0.5}, "its mean divided"),
        (29, "a dictionary"),
    ],
}
