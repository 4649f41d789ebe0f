"""Distributions: squared errors against brute force, streaming against all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.quant.distribution import Distribution, signal_to_noise
from fxptq.quant.observer import Histogram

FLOATS = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


def histogram(parts: Sequence[Tensor], bins: int = 64) -> Histogram:
    h = Histogram(bins)
    for part in parts:
        h.update(part)
    return h


def table(h: Histogram) -> dict[float, tuple[float, float, float]]:
    """Lower edge of each bin in use -> count, sum, sum of squares."""
    d = h.distribution()
    edges = torch.floor(d.values[0] / h.bin_width) * h.bin_width
    rows = zip(edges.tolist(), d.counts[0].tolist(), d.sums[0].tolist(), d.squares[0].tolist(), strict=True)
    return {edge: row for edge, *row in rows}


def brute_force_error(x: Tensor, lower: float, upper: float, bits: int) -> float:
    x = x.double()
    if upper == lower:
        return float((x - lower).square().sum())
    step = (upper - lower) / (2**bits - 1)
    q = step * torch.round((x.clip(lower, upper) - lower) / step) + lower
    return float((x - q).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_squared_error_is_brute_force(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3000, generator=generator) * 2 + 5
    low = torch.rand(40, generator=generator, dtype=torch.float64) * 6 - 1
    high = low + torch.rand(40, generator=generator, dtype=torch.float64) * 8
    got = Distribution.of(x).squared_error(low[None], high[None], bits)[0]
    expected = [brute_force_error(x, float(a), float(b), bits) for a, b in zip(low, high, strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=40),
    lower=st.integers(-25, 25),
    width=st.integers(0, 40),
    bits=st.integers(2, 8),
)
def test_squared_error_with_values_on_thresholds_and_repeated(
    values: list[int], lower: int, width: int, bits: int
) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    ends = torch.tensor([[float(lower)]]), torch.tensor([[float(lower + width)]])
    got = float(Distribution.of(x).squared_error(*ends, bits))
    assert got == pytest.approx(brute_force_error(x, lower, lower + width, bits), rel=1e-9, abs=1e-9)


def test_many_candidates_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    d = Distribution.of(torch.randn(4, 500), ranges=4)
    low, high = -torch.rand(4, 30).double(), torch.rand(4, 30).double()
    whole = d.squared_error(low, high, 4)
    monkeypatch.setattr("fxptq.quant.distribution._QUERIES", 100)
    assert torch.equal(d.squared_error(low, high, 4), whole)


@pytest.mark.parametrize(("ranges", "axis"), [(1, 0), (2, 0), (6, 0), (4, 1), (3, -1)])
def test_groups_are_those_of_the_quantizer(ranges: int, axis: int) -> None:
    x = torch.randn(6, 4, 3)
    d = Distribution.of(x, ranges, axis)
    for row, block in enumerate(x.chunk(ranges, dim=axis)):
        assert torch.equal(d.values[row], block.double().flatten().sort()[0])
        assert float(d.power[row]) == pytest.approx(float(block.double().square().mean()))
    assert torch.equal(d.minimum, d.values[:, 0])
    assert torch.equal(d.maximum, d.values[:, -1])


def test_clipping_error_is_that_of_clipping_alone() -> None:
    x = torch.randn(1000).double()
    d = Distribution.of(x)
    bounds = torch.linspace(-2, 2, 9, dtype=torch.float64)
    below, above = d.clipping_error(bounds[None], "below")[0], d.clipping_error(bounds[None], "above")[0]
    for b, low, high in zip(bounds, below, above, strict=True):
        assert float(low) == pytest.approx(float((b - x).clamp(min=0).square().sum()), rel=1e-9, abs=1e-9)
        assert float(high) == pytest.approx(float((x - b).clamp(min=0).square().sum()), rel=1e-9, abs=1e-9)


def test_quantile_is_an_element_with_that_fraction_at_or_below() -> None:
    x = torch.arange(1.0, 101.0)
    d = Distribution.of(x[torch.randperm(100)])
    assert [float(d.quantile(f)) for f in (0.0, 0.01, 0.5, 0.995, 1.0)] == [1.0, 1.0, 50.0, 100.0, 100.0]


def test_signal_to_noise_in_decibels() -> None:
    assert signal_to_noise(100.0, 1.0) == pytest.approx(20.0)
    assert signal_to_noise(1.0, 0.0) == math.inf
    assert signal_to_noise(0.0, 1.0) == 0.0


@pytest.mark.parametrize("bad", [torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.empty(0)])
def test_distribution_of_what_is_not_finite_is_refused(bad: Tensor) -> None:
    with pytest.raises(CalibrationError, match="empty or holds NaN or infinite"):
        Distribution.of(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_histogram_refuses_what_is_not_finite_and_stays_as_it_was(bad: float) -> None:
    h = histogram([torch.randn(100)])
    before = table(h)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        h.update(torch.tensor([3.0, bad]))
    assert table(h) == before
    assert h.count == 100


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.lists(FLOATS, max_size=12), min_size=1, max_size=5),
    cut=st.integers(0, 5),
    bins=st.sampled_from([2, 3, 8, 100]),
)
def test_merged_histograms_are_the_histogram_of_everything(parts: list[list[float]], cut: int, bins: int) -> None:
    tensors = [torch.tensor(p, dtype=torch.float32) for p in parts]
    whole = histogram([torch.cat(tensors)], bins)
    halves, other = histogram(tensors[:cut], bins), histogram(tensors[cut:], bins)
    widened = [histogram(tensors[:cut], bins), histogram(tensors[cut:], bins)]
    halves.merge(other)
    for part in widened:
        part.widen(halves.minimum, halves.maximum, halves.count)
    assert torch.equal(widened[0].table + widened[1].table, halves.table)
    assert {part.bin_width for part in widened} == {halves.bin_width}
    assert (halves.minimum, halves.maximum, halves.count) == (whole.minimum, whole.maximum, whole.count)
    if whole.count == 0:
        return
    assert halves.bin_width == whole.bin_width
    got, expected = table(halves), table(whole)
    assert {edge: row[0] for edge, row in got.items()} == {edge: row[0] for edge, row in expected.items()}
    scale = float(torch.cat(tensors).double().abs().max())
    for edge, (_, total, square) in expected.items():
        assert got[edge][1] == pytest.approx(total, rel=1e-12, abs=1e-12 * scale)
        assert got[edge][2] == pytest.approx(square, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=30), bins=st.sampled_from([2, 5, 64]))
def test_bins_are_dyadic_the_narrowest_that_fit_and_hold_their_values(values: list[float], bins: int) -> None:
    x = torch.tensor(values, dtype=torch.float32).double()
    h = histogram([x.float()], bins)
    width = h.bin_width
    assert math.frexp(width)[0] == 0.5
    expected: dict[float, int] = {}
    for v in x.tolist():
        edge = math.floor(v / width) * width
        expected[edge] = expected.get(edge, 0) + 1
    assert {edge: row[0] for edge, row in table(h).items()} == expected

    def span(w: float) -> int:
        return math.floor(float(x.max()) / w) - math.floor(float(x.min()) / w) + 1

    assert span(width) <= bins
    largest = float(x.abs().max())
    finest = 2.0 ** (math.frexp(largest)[1] - 50) if largest else 2.0**-200
    assert width == finest or span(width / 2) > bins


def test_histogram_moments_and_ends_are_exact() -> None:
    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) * 2**i for i in range(6)]
    h, x = histogram(parts, 512), torch.cat(parts).double()
    d = h.distribution()
    assert (h.minimum, h.maximum, h.count) == (float(x.min()), float(x.max()), x.numel())
    assert float(d.total) == x.numel()
    assert float(d.sums.sum()) == pytest.approx(float(x.sum()), rel=1e-12)
    assert float(d.power) == pytest.approx(float(x.square().mean()), rel=1e-12)
    assert bool((d.values.diff(dim=1) > 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_histogram_takes_any_floating_type_and_layout(dtype: torch.dtype) -> None:
    x = torch.randn(8, 6, 10).to(dtype)
    found, exact = (table(histogram([y])) for y in (x.transpose(0, 2), x.double().transpose(0, 2).contiguous()))
    assert {start: row[0] for start, row in found.items()} == {start: row[0] for start, row in exact.items()}
    for start, row in found.items():  # sums in another order, to rounding
        assert row[1:] == pytest.approx(exact[start][1:], rel=1e-13, abs=1e-14)


def test_error_from_a_histogram_is_close_to_the_exact_one() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    exact, streamed = Distribution.of(x), histogram(x.chunk(7), 8192).distribution()
    low, high = torch.tensor([[-2.5, -4.0]]).double(), torch.tensor([[2.5, 3.0]]).double()
    for bits, tolerance in ((2, 1e-4), (4, 1e-3), (8, 2e-2)):
        a, b = (d.squared_error(low, high, bits) for d in (exact, streamed))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0)


def test_memory_does_not_grow_with_what_is_seen() -> None:
    h = Histogram(128)
    for scale in (1.0, 10.0, 1000.0):
        h.update(torch.randn(5000) * scale)
    assert h.distribution().values.numel() <= 128


def test_misuse_is_named() -> None:
    with pytest.raises(InputError, match="two bins or more, not 1"):
        Histogram(1)
    with pytest.raises(InputError, match="64 and 32 bins"):
        Histogram(64).merge(Histogram(32))
    with pytest.raises(CalibrationError, match="no values were observed"):
        Histogram().distribution()
