"""Descent of rounded weights: single codes against every other code, grids against a least-squares solver."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxptq.quant.descent import best_codes, best_grids
from fxptq.quant.grid import levels

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def case(groups: int, outputs: int, inputs: int, bits: int, seed: int) -> Case:
    """Weight, inputs, moments, scale, offset and codes rounded to nearest, of layers whose columns have own steps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = normal(groups, outputs, inputs)
    x = normal(groups, 200, inputs) + normal(groups, 200, 1)
    moments = x.transpose(1, 2) @ x / 200
    of_column = normal(inputs).exp()
    scale = (weight / of_column).abs().amax(2, keepdim=True) * 2 / levels(bits) * of_column
    offset = -scale * levels(bits) / 2
    codes = ((weight - offset) / scale).round().clamp(0, levels(bits))
    return weight, x, moments, scale, offset, codes


def error(weight: Tensor, moments: Tensor, rounded: Tensor) -> Tensor:
    """The squared error of each output, [groups, outputs]."""
    off = weight - rounded
    return ((off @ moments) * off).sum(2)


@given(bits=st.integers(2, 4), groups=st.integers(1, 3), inputs=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_no_other_value_of_a_single_code_is_better(bits: int, groups: int, inputs: int, seed: int) -> None:
    weight, _, moments, scale, offset, codes = case(groups, 4, inputs, bits, seed)
    found = best_codes(weight, moments, scale, offset, codes, bits, sweeps=1000)
    least = error(weight, moments, offset + scale * found)
    assert bool((least <= error(weight, moments, offset + scale * codes) * (1 + 1e-9)).all())
    assert torch.equal(found, found.round())
    for j in range(inputs):
        for value in range(2**bits):
            other = found.clone()
            other[..., j] = value
            assert bool((error(weight, moments, offset + scale * other) >= least * (1 - 1e-9)).all())


def test_independent_inputs_leave_rounding_to_nearest() -> None:
    weight, _, moments, scale, offset, codes = case(2, 5, 6, 3, 0)
    diagonal = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    assert torch.equal(best_codes(weight, diagonal, scale, offset, torch.zeros_like(codes), 3), codes)


def test_inputs_that_never_come_are_no_trouble() -> None:
    weight, _, moments, scale, offset, codes = case(1, 3, 5, 3, 1)
    found = best_codes(weight, torch.zeros_like(moments), scale, offset, codes, 3)
    assert bool(found.isfinite().all() & (found >= 0).all() & (found <= 7).all())
    gain, shift = best_grids(weight, torch.zeros_like(moments), scale, offset, codes, 3)
    assert torch.equal(gain, torch.ones_like(gain))
    assert torch.equal(shift, torch.zeros_like(shift))


@pytest.mark.parametrize("ranges", [1, 2, 6], ids=["tensor", "blocks", "rows"])
def test_grids_are_the_least_squares_solution(ranges: int) -> None:
    weight, x, moments, scale, offset, codes = case(1, 6, 5, 3, 2)
    gain, shift = best_grids(weight, moments, scale, offset, codes, ranges)
    of_code, of_one, target = (t[0].reshape(ranges, -1, 5) @ x[0].T for t in (scale * codes, scale, weight - offset))
    for i in range(ranges):
        columns = torch.stack([of_code[i].flatten(), of_one[i].flatten()], 1)
        solution = torch.linalg.lstsq(columns, target[i].flatten()[:, None]).solution[:, 0]
        torch.testing.assert_close(torch.stack([gain[i], shift[i]]), solution)


def test_a_code_keeps_its_value() -> None:
    weight, x, moments, scale, offset, codes = case(2, 3, 5, 2, 3)
    center = 1.5
    gain, shift = best_grids(weight, moments, scale, offset, codes, 6, center)
    torch.testing.assert_close(gain * center + shift, torch.full_like(gain, center))
    distances = (scale * (codes - center)) @ x.transpose(1, 2)
    targets = (weight - offset - center * scale) @ x.transpose(1, 2)
    best = (distances * targets).sum(2) / distances.square().sum(2)
    torch.testing.assert_close(gain, best.flatten())


def test_rows_of_one_code_keep_their_grid() -> None:
    weight, _, moments, scale, offset, codes = case(1, 4, 6, 3, 4)
    codes[0, 2] = 5.0
    gain, shift = best_grids(weight, moments, scale.expand_as(weight).contiguous(), offset, codes, 4)
    assert (gain[2].item(), shift[2].item()) == (1.0, 0.0)
    assert bool((gain[[0, 1, 3]] != 1).all())
