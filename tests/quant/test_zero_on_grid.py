"""Zero on the grid: 0 is a value of every grid, whatever bounds were asked for, and training keeps it there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxptq.errors import CalibrationError
from fxptq.quant.scheme import make_quantizer
from fxptq.quant.schemes.zero_on_grid import ZeroOnGrid

ends = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def quantizer(bits: int, ranges: int = 1) -> ZeroOnGrid:
    made = make_quantizer("zero_on_grid", bits, ranges=ranges)
    assert isinstance(made, ZeroOnGrid)
    made.mode = "on"
    return made


@given(st.lists(st.tuples(ends, ends), min_size=1, max_size=6), st.integers(2, 8))
def test_zero_has_a_code_and_a_range_moves_by_half_a_step_at_most(pairs: list[tuple[float, float]], bits: int) -> None:
    q = quantizer(bits, len(pairs))
    lower, upper = (torch.tensor([side(pair) for pair in pairs]) for side in (min, max))
    q.set_bounds(lower, upper)
    grids = q.grids()
    assert isinstance(grids, tuple)
    for one, low, high in zip(grids, lower.tolist(), upper.tolist(), strict=True):
        if one.scale == 0:
            assert low == high == 0
            continue
        assert one.zero_point == pytest.approx(round(one.zero_point), abs=1e-4)
        assert 0 <= round(one.zero_point) <= one.levels
        reach = max(high, 0) - min(low, 0)
        assert one.levels * one.scale == pytest.approx(reach, rel=1e-5)
        assert abs(one.offset - min(low, 0)) <= 0.5001 * one.scale
    assert bool((q(torch.zeros(len(pairs), 3)).abs() <= 1e-5 * q.width.max()).all())


@given(ends, ends, st.integers(2, 8))
def test_the_zero_of_a_constant_is_in_the_middle(one: float, other: float, bits: int) -> None:
    q = make_quantizer("zero_on_grid", bits, role="constant")
    lower, upper = min(one, other), max(one, other)
    q.set_bounds(lower, upper)
    (found,) = q.grids()  # type: ignore[misc]
    if found.scale:
        assert found.zero_point == pytest.approx(2 ** (bits - 1), rel=1e-5)
        reach = found.scale * 2 ** (bits - 1)
        assert found.offset <= min(lower, 0) + 1e-5 * reach
        assert found.offset + found.levels * found.scale >= max(upper, 0) - 1e-5 * reach


@given(st.floats(-3, 3), st.integers(2, 8))
def test_training_keeps_the_code_of_zero(change: float, bits: int) -> None:
    q = quantizer(bits)
    q.set_bounds(-0.71, 1.9)
    before = -q.lower / q.scale
    with torch.no_grad():
        q.log_scale.add_(change)
    x = torch.linspace(-3, 3, 101)
    trained = q(x).detach().clone()
    assert torch.allclose(-q.lower / q.scale, before, rtol=1e-5)
    q.absorb()
    assert torch.equal(q(x), trained)
    assert [each.parameter is q.log_scale for each in q.trainables()] == [True]


def test_state_comes_back_bit_for_bit() -> None:
    q, other = quantizer(3, 2), quantizer(3, 2)
    q.set_bounds(torch.tensor([-0.3, -2.0]), torch.tensor([1.7, 0.4]))
    other.restore(q.stored())
    x = torch.randn(2, 50)
    assert torch.equal(q(x), other(x))


def test_one_sided_ranges_stay_as_they_are() -> None:
    q = quantizer(4)
    q.set_bounds(0.0, 3.0)
    assert (q.lower.item(), q.upper.item()) == (0.0, 3.0)


def test_bounds_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CalibrationError, match="bounds must be finite"):
        quantizer(4).set_bounds(float("nan"), 1.0)
    with pytest.raises(CalibrationError, match="bounds must be finite"):
        quantizer(4).set_bounds(1.0, 0.0)
