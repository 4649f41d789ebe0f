"""Histograms by compiled kernels: the bins of exact arithmetic, and sums to float64 rounding."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels.build import backend
from fxptq.quant import operators


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")


def native(x: Tensor, scale: float, first: float, bins: int) -> Tensor:
    return torch.ops.fxptq.histogram(x, scale, first, bins)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=1200), st.integers(-20, 6))
def test_bins_and_sums_are_those_of_exact_arithmetic(values: list[float], exponent: int) -> None:
    width = Fraction(2) ** exponent if exponent >= 0 else Fraction(1, 2**-exponent)
    bins_of = [math.floor(Fraction(v) / width) for v in values]
    first, bins = min(bins_of), min(max(bins_of) - min(bins_of) + 1, 4096)
    values = [v for v, i in zip(values, bins_of, strict=True) if i - first < bins]
    bins_of = [i - first for i in bins_of if i - first < bins]
    found = native(torch.tensor(values), math.ldexp(1.0, -exponent), float(first), bins)
    for i in set(bins_of):
        inside = [v for v, j in zip(values, bins_of, strict=True) if i == j]
        assert found[0, i] == len(inside)
        for row, terms in ((1, inside), (2, [v * v for v in inside])):
            assert abs(float(found[row, i]) - math.fsum(terms)) <= 1e-12 * math.fsum(map(abs, terms))
    assert found[0].sum() == len(values)


@pytest.mark.parametrize("count", [1, 511, 513, 1 << 14, (1 << 17) + 5, (1 << 19) + 1])
def test_equals_the_plain_form_at_every_length(count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    found, plain = native(x, 256.0, -2048.0, 4096), operators.histogram(x, 256.0, -2048.0, 4096)
    assert torch.equal(found[0], plain[0])
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x, before = torch.randn(600_000, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(native(x, 64.0, -512.0, 1024))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("value", [-0.01, 1.0, math.nan, math.inf, -3e38], ids=str)
def test_a_value_outside_the_bins_is_refused(value: float) -> None:
    with pytest.raises(RuntimeError, match="a value lies in none of 8 bins"):
        native(torch.tensor([0.5, value]), 8.0, 0.0, 8)
