"""A verdict on two tensors: rounding is let through, a bug is not, and no digit depends on luck."""

import pytest
import torch

from smol_scratch import RMSNorm
from smol_scratch.course.notebook import compare, read_record, rounding


def verdict(capsys, *args, **how):
    same = compare("label", *args, **how)
    line = capsys.readouterr().out
    assert line.startswith("label ")
    assert ("✓" in line) == same
    return line.removeprefix("label").strip()


def test_sums_in_another_order_are_equal_up_to_rounding(capsys):
    x = torch.randn(64, 1536)
    w = torch.randn(1536, 1536)
    order = torch.randperm(1536)
    shuffled = x[:, order] @ w[order]
    assert not torch.equal(shuffled, x @ w)
    assert verdict(capsys, shuffled, x @ w) == "✓ equal up to rounding"


def test_the_same_words_whether_bits_agree_or_not(capsys):
    x = torch.randn(8, 8)
    assert verdict(capsys, x, x.clone()) == "✓ equal up to rounding"
    assert verdict(capsys, x, x * (1 + 1e-7)) == "✓ equal up to rounding"


def test_exact_asks_for_bits(capsys):
    x = torch.randn(8, 8)
    assert verdict(capsys, x, x.clone(), exact=True) == "✓ equal, bit for bit"
    nearly = x.clone()
    nearly[0, 0] = torch.nextafter(x[0, 0], torch.tensor(9.0))
    assert verdict(capsys, x, nearly, exact=True).startswith("✗ different, by up to ")


def test_a_bound_of_its_own(capsys):
    x = torch.ones(3)
    assert verdict(capsys, x, x + 0.01, within=0.02) == "✓ equal within 0.02"
    assert verdict(capsys, x, x + 0.25, within=0.25) == "✓ equal within 0.25"
    assert verdict(capsys, x, x + 0.03, within=0.02) == "✗ different, by up to 0.03"


@pytest.mark.parametrize("eps", [1e-6, 1e-4])
def test_the_gentlest_bug_is_seen(capsys, eps):
    """Another epsilon, which changes a vector of RMS 1 by five millionths."""
    x = 0.3 * torch.randn(4, 576)
    right, wrong = RMSNorm(576, eps=1e-5)(x), RMSNorm(576, eps=eps)(x)
    assert verdict(capsys, wrong.detach(), right.detach()).startswith("✗ different")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_floor_follows_type_and_size(dtype):
    one = torch.ones(3, dtype=dtype)
    assert rounding(one, one) >= 4 * torch.finfo(dtype).eps
    assert rounding(one, one) <= 64 * torch.finfo(dtype).eps
    assert rounding(8 * one, one) == 8 * rounding(one, one)


def test_other_shapes_and_nan_are_never_equal(capsys):
    with pytest.raises(ValueError, match=r"label: shapes \(2,\) and \(3,\) differ"):
        compare("label", torch.ones(2), torch.ones(3))
    x = torch.tensor([1.0, float("nan")])
    assert verdict(capsys, x, torch.ones(2)).startswith("✗ different, by up to nan")


def test_a_record_is_read_with_its_numbers():
    rows = read_record("gate_race.csv")
    assert len(rows) == 4 * 2 * 2 * 12
    assert {row["kind"] for row in rows} == {"SwiGLU", "GELU", "bilinear", "biases"}
    assert all(isinstance(row["held_out"], float) and row["seed"] in range(12) for row in rows)
