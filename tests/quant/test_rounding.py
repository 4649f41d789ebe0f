"""Rounding that looks at the inputs, against exhaustive search and rounding to nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxptq.quant import rounding
from fxptq.quant.grid import levels
from fxptq.quant.rounding import output_error


def gptq(weight: Tensor, moments: Tensor, lower: Tensor, width: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """GPTQ in clipping ranges."""
    return rounding.gptq(weight, moments, width / levels(bits), lower, bits, damping)


def to_nearest(weight: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Rounding to nearest in clipping ranges."""
    return rounding.to_nearest(weight, width / levels(bits), lower, bits)


def case(outputs: int, inputs: int, seed: int, correlation: float = 0.8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, second moments of correlated inputs, lower and width of each row."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    common = torch.randn(500, 1, generator=generator, dtype=torch.float64)
    x = correlation * common + torch.randn(500, inputs, generator=generator, dtype=torch.float64)
    lower = weight.amin(1, keepdim=True)
    return weight, x.T @ x / 500, lower, weight.amax(1, keepdim=True) - lower


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_output_is_closer_than_with_rounding_to_nearest(bits: int) -> None:
    weight, moments, lower, width = case(32, 48, bits)
    rounded = gptq(weight, moments, lower, width, bits)
    nearest = to_nearest(weight, lower, width, bits)
    ours, plain = (output_error(weight, w, moments) for w in (rounded, nearest))
    assert bool((ours <= plain).all())
    assert float(ours.sum()) < 0.75 * float(plain.sum())


def test_values_are_on_the_grid_and_stay_there_when_quantized_again() -> None:
    weight, moments, lower, width = case(16, 20, 0)
    rounded = gptq(weight, moments, lower, width, 3)
    assert torch.equal(to_nearest(rounded, lower, width, 3), rounded)


def test_uncorrelated_inputs_give_rounding_to_nearest() -> None:
    weight, _, lower, width = case(8, 12, 1)
    moments = torch.diag(torch.rand(12, dtype=torch.float64) + 0.1)
    assert torch.equal(gptq(weight, moments, lower, width, 4), to_nearest(weight, lower, width, 4))


@pytest.mark.parametrize("seed", range(5))
def test_it_comes_near_the_best_of_all_roundings(seed: int) -> None:
    weight, moments, lower, width = case(1, 5, seed)
    grid = lower + width / 3 * torch.arange(4)
    every = torch.tensor(list(itertools.product(grid[0].tolist(), repeat=5)))
    best = float(output_error(weight.expand(len(every), -1), every, moments).min())
    ours = float(output_error(weight, gptq(weight, moments, lower, width, 2, damping=1e-6), moments))
    plain = float(output_error(weight, to_nearest(weight, lower, width, 2), moments))
    assert best * (1 - 1e-6) <= ours <= plain
    assert ours <= 3 * best


@pytest.mark.parametrize("moments", [torch.zeros(6, 6), torch.ones(6, 6), torch.eye(6) * 1e-30], ids=["0", "1", "tiny"])
def test_moments_without_full_rank_are_no_trouble(moments: Tensor) -> None:
    weight, _, lower, width = case(4, 6, 2)
    rounded = gptq(weight, moments.double(), lower, width, 3)
    assert rounded.isfinite().all()
    assert torch.equal(to_nearest(rounded, lower, width, 3), rounded)


def test_output_error_is_the_expected_square() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 7, generator=generator, dtype=torch.float64)
    w, q = (torch.randn(5, 7, generator=generator) for _ in range(2))
    direct = ((w - q).double() @ x.T).square().mean(1)
    torch.testing.assert_close(output_error(w, q, x.T @ x / 300), direct)


@pytest.mark.parametrize("bits", [2, 4])
def test_columns_with_steps_of_their_own_are_rounded_as_columns_of_equal_steps_are(bits: int) -> None:
    weight, moments, lower, width = case(8, 24, 3)
    factor = 2.0 ** torch.randint(-4, 5, (24,), generator=torch.Generator().manual_seed(1))  # exact in floats
    scaled = rounding.gptq(
        weight * factor, moments / (factor * factor[:, None]), width / levels(bits) * factor, lower * factor, bits
    )
    # The mean of the row's steps is the unit of a column, and a common unit changes nothing but the rounding of sums.
    ours, plain = scaled / factor, gptq(weight, moments, lower, width, bits)
    different = float((ours != plain).float().mean())
    assert different < 0.02
    errors = [float(output_error(weight, rounded, moments).sum()) for rounded in (ours, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
