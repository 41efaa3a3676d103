import json
import struct

import torch

from smol_scratch.course.exercises.sharing import _MOVED


def write(tensors, order="<Q", says=0, begins=0, flip=False, name=str, empty=False):
    header, at = {}, 0
    for key, tensor in tensors.items():
        header[name(key)] = {
            "dtype": "F32",
            "shape": list(tensor.shape)[:: -1 if flip else 1],
            "data_offsets": [at, at + 4 * tensor.numel()],
        }
        at += 4 * tensor.numel()
    if begins:
        size = len(json.dumps(header)) + begins
        for entry in header.values():
            entry["data_offsets"] = [8 + size + place for place in entry["data_offsets"]]
        while len(json.dumps(header)) != size:  # the numbers have become longer
            change, size = len(json.dumps(header)) - size, len(json.dumps(header))
            for entry in header.values():
                entry["data_offsets"] = [place + change for place in entry["data_offsets"]]
    words = b"{" if empty else json.dumps(header).encode()
    numbers = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    length = len(words) if says == 0 else len(words) + len(numbers) + 8
    return struct.pack(order, length) + words + numbers


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
SAME_BLOCK = _MOVED.replace(MATRIX, "k_proj" if MATRIX == "q_proj" else "q_proj")

WRONG = {
    "check_write_file": [
        (lambda t: write(t, order=">Q"), "written little-endian"),
        (lambda t: write(t, says=1), "the length of the header alone"),
        (lambda t: write(t, begins=1), "count from the first byte after the header"),
        (lambda t: write(t, flip=True), "comes back with another shape"),
        (lambda t: write(t, name=lambda key: key.replace(" ", "_")), "does not name"),
        (lambda t: write(t, empty=True), "no JSON"),
        (lambda t: write({key: tensor + 1 for key, tensor in t.items()}), "other numbers"),
        (lambda t: write(t)[8:], "so say the 8"),
        (lambda t: write(t).decode("latin-1"), "must be bytes"),
    ],
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
}
