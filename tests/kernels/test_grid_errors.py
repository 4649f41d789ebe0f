"""Errors of grids by compiled kernels: those of the plain form, to float64 rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels.build import backend
from fxptq.quant import operators
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import levels


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")


def prefixes(values: Tensor) -> tuple[Tensor, ...]:
    """The arguments that describe sorted float64 values [ranges, support], about their first value."""
    center = values[:, 0].contiguous()
    about = values - center[:, None]
    sums = (torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (torch.ones_like(values), about, about.square()))
    return values, *sums, center


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.lists(st.integers(-40, 40), min_size=5, max_size=5), min_size=1, max_size=3),
    ends=st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 60)), min_size=1, max_size=4),
    bits=st.integers(2, 8),
)
def test_errors_are_exact(rows: list[list[int]], ends: list[tuple[int, int]], bits: int) -> None:
    """Also with values on thresholds, equal values, grids of one value, and grids beside all values."""
    values = torch.tensor(rows).double().sort(1).values
    lower, width = torch.tensor(ends).double().T
    lower, upper = (t.expand(len(rows), -1).contiguous() for t in (lower, lower + width))
    found = torch.ops.fxptq.grid_errors(*prefixes(values), lower, upper, levels(bits))
    step = (upper - lower) / levels(bits)
    x = values[:, None]
    codes = ((x - lower[..., None]) / step[..., None].clamp(min=1e-9)).round().clamp(0, levels(bits))
    expected = (x - lower[..., None] - codes * step[..., None]).square().sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ranges", "support"), [(1, 60_000), (60, 400), (3, 1)], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equals_the_plain_form(ranges: int, support: int, bits: int) -> None:
    values = torch.randn(ranges, support, generator=torch.Generator().manual_seed(bits)).double().sort(1).values
    ends = torch.linspace(0.3, 5, 40, dtype=torch.float64).expand(ranges, -1).contiguous()
    args = *prefixes(values), -ends, ends.flip(1).contiguous(), levels(bits)
    torch.testing.assert_close(torch.ops.fxptq.grid_errors(*args), operators.grid_errors(*args), rtol=1e-8, atol=1e-8)


def test_errors_do_not_depend_on_the_number_of_threads() -> None:
    d, before = Distribution.of(torch.randn(8, 5000), ranges=8), torch.get_num_threads()
    ends = torch.linspace(0.3, 5, 200, dtype=torch.float64).expand(8, -1)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(d.squared_error(-ends, ends, 4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: (2, 4)}, "sums of"),
        ({4: (3,)}, "a center for each of 2 ranges"),
        ({5: (1, 6)}, "bounds are"),
        ({6: (2, 7)}, "an upper bound for each lower one"),
    ],
)
def test_other_shapes_are_refused(changes: dict[int, tuple[int, ...]], message: str) -> None:
    shapes = {0: (2, 5), 1: (2, 6), 2: (2, 6), 3: (2, 6), 4: (2,), 5: (2, 6), 6: (2, 6), **changes}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fxptq.grid_errors(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes.values()), 3)
