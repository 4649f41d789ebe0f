"""Fake quantization by compiled kernels: the values of the plain form bit for bit, and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels.build import backend
from fxptq.quant import grid, operators
from fxptq.quant.schemes.uniform import Uniform


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")


def case(seed: int, shape: tuple[int, int, int], bits: int, exponent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values around their grids with ties, the floats beside ties, and extreme values; an upstream gradient."""
    g = torch.Generator().manual_seed(seed)
    levels, ranges = 2**bits - 1, shape[1]
    scale = (1 + torch.rand(ranges, generator=g)) * 2.0**exponent
    offset = scale * (torch.rand(ranges, generator=g) * 2 - 1.5) * levels
    low, step = offset[:, None], scale[:, None]
    x = low + step * levels * (torch.rand(shape, generator=g) * 1.6 - 0.3)
    ties = low + step * (torch.randint(-1, levels + 2, shape, generator=g) + 0.5)
    beside = (ties.view(torch.int32) + torch.randint(-2, 3, shape, generator=g, dtype=torch.int32)).view(torch.float32)
    x = torch.where(torch.rand(shape, generator=g) < 0.3, beside, x)
    extreme = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 0.0, -0.0, 1e-45])
    chosen = extreme[torch.randint(len(extreme), shape, generator=g)]
    x = torch.where(torch.rand(shape, generator=g) < 0.05, chosen, x)
    return x, scale, offset, torch.randn(shape, generator=g)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 90))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), shapes, st.integers(2, 8), st.integers(-40, 40))
def test_values_are_the_plain_form_s_bit_for_bit(
    seed: int, shape: tuple[int, int, int], bits: int, exponent: int
) -> None:
    x, scale, offset, _ = case(seed, shape, bits, exponent)
    found = torch.ops.fxptq.fake_quantize(x, scale, offset, 2**bits - 1)
    assert torch.equal(found, operators.fake_quantize(x, scale[:, None], offset[:, None], 2**bits - 1))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), shapes, st.integers(2, 8), st.integers(-40, 40), st.booleans())
def test_gradients_are_the_plain_form_s_in_float64(
    seed: int, shape: tuple[int, int, int], bits: int, exponent: int, of_values: bool
) -> None:
    x, scale, offset, grad = case(seed, shape, bits, exponent)
    levels = 2**bits - 1
    found = torch.ops.fxptq.fake_quantize_backward(x, grad, scale, offset, levels, of_values)
    low, step = offset[:, None], scale[:, None]
    if of_values:
        assert torch.equal(found[0], operators.fake_quantize_backward(x, grad, step, low, levels, True)[0])
    # Codes and quotients are those of float32, because a tie decides by an ulp; sums are float64.
    z = (x - low) / step
    clipped = z.clamp(0, levels)
    outside = z != clipped
    slope = torch.where(outside, clipped, clipped.round() - clipped).double()
    size = grad.double().abs().sum((0, 2))
    assert bool((found[1] - (slope * grad).sum((0, 2))).abs().le(1e-6 * levels * size).all())
    assert bool((found[2] - (outside * grad.double()).sum((0, 2))).abs().le(1e-6 * size).all())


def test_nan_stays_nan() -> None:
    x = torch.tensor([[[0.1, torch.nan, 0.2]]])
    found = torch.ops.fxptq.fake_quantize(x, torch.tensor([0.1]), torch.tensor([0.0]), 7)
    assert found.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1, 1, 700_001), (3, 50, 300)], ids=["one-range", "ranges"])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, int, int]) -> None:
    x, scale, offset, grad = case(0, shape, 3, 0)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = torch.ops.fxptq.fake_quantize(x, scale, offset, 7)
        results.append((found, *torch.ops.fxptq.fake_quantize_backward(x, grad, scale, offset, 7, True)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("ranges", [1, 3, 6], ids=["tensor", "blocks", "channels"])
@pytest.mark.parametrize("shape", [(6, 40), (6, 5, 3, 3), (6, 1)], ids=["linear", "convolution", "narrow"])
def test_a_quantizer_gives_the_values_of_its_codes(ranges: int, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    quantizer = Uniform(3, ranges=ranges)
    quantizer.set_bounds(-torch.rand(ranges, generator=g), torch.rand(ranges, generator=g))
    quantizer.mode = "on"
    x = torch.randn(shape, generator=g)
    assert torch.equal(quantizer(x), quantizer.decode(quantizer.encode(x)))


def test_operators_refuse_other_arguments() -> None:
    x, scale, offset, grad = case(0, (2, 3, 8), 3, 0)
    with pytest.raises(RuntimeError, match=r"contiguous runs"):
        torch.ops.fxptq.fake_quantize(x.transpose(0, 2), scale, offset, 7)
    with pytest.raises(RuntimeError, match=r"for each of 3 ranges"):
        torch.ops.fxptq.fake_quantize(x, scale[:2], offset, 7)
    with pytest.raises(RuntimeError, match=r"expected scalar type Float"):
        torch.ops.fxptq.fake_quantize(x.double(), scale, offset, 7)
    with pytest.raises(RuntimeError, match=r"shape of the values"):
        torch.ops.fxptq.fake_quantize_backward(x, grad[:1], scale, offset, 7, True)


# -- behind a map ------------------------------------------------------------------------------------------------------


def mapped_case(seed: int, shape: tuple[int, int, int, int], bits: int, exponent: int) -> tuple[Tensor, ...]:
    """As `case`, on one grid, behind a map: values, scale, offset, factors, centers, an upstream gradient."""
    outer, heads, rows, channels = shape
    on_grid, scale, offset, grad = case(seed, (outer, 1, heads * rows * channels), bits, exponent)
    g = torch.Generator().manual_seed(seed)
    factor = torch.rand(heads, channels, generator=g) * 3 + 0.1
    center = torch.randn(heads, channels, generator=g) * scale
    x = on_grid.view(shape) * factor[:, None] + center[:, None]
    return x, scale, offset, factor, center, grad.view(shape)


channels = st.sampled_from([1, 2, 3, 15, 16, 17, 64, 70])
maps = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), channels)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), maps, st.integers(2, 8), st.integers(-40, 40))
def test_values_behind_a_map_are_the_plain_form_s_bit_for_bit(
    seed: int, shape: tuple[int, int, int, int], bits: int, exponent: int
) -> None:
    x, scale, offset, factor, center, _ = mapped_case(seed, shape, bits, exponent)
    found = torch.ops.fxptq.mapped_fake_quantize(x, scale, offset, factor, center, 2**bits - 1)
    step = grid.fake_quantize((x - center[:, None]) / factor[:, None], scale, offset, bits)
    assert torch.equal(found, step * factor[:, None] + center[:, None])


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), maps, st.integers(2, 8), st.integers(-40, 40), st.booleans())
def test_gradients_behind_a_map_are_those_of_the_grid(
    seed: int, shape: tuple[int, int, int, int], bits: int, exponent: int, of_values: bool
) -> None:
    x, scale, offset, factor, center, grad = mapped_case(seed, shape, bits, exponent)
    levels = 2**bits - 1
    found = torch.ops.fxptq.mapped_fake_quantize_backward(x, grad, scale, offset, factor, center, levels, of_values)
    z = ((x - center[:, None]) / factor[:, None] - offset) / scale
    clipped = z.clamp(0, levels)
    outside = z != clipped
    if of_values:
        assert torch.equal(found[0], torch.where(outside, 0.0, grad))
    upstream = (grad * factor[:, None]).double()
    slope = torch.where(outside, clipped, clipped.round() - clipped).double()
    size = float(upstream.abs().sum())
    assert abs(float(found[1] - (slope * upstream).sum())) <= 1e-6 * levels * size
    assert abs(float(found[2] - (outside * upstream).sum())) <= 1e-6 * size


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "shape", [(1, 1, 9_001, 48), (3, 50, 300, 1), (2, 6, 700, 30)], ids=["rows", "planes", "heads"]
)
def test_the_number_of_threads_changes_nothing_behind_a_map(shape: tuple[int, int, int, int]) -> None:
    x, scale, offset, factor, center, grad = mapped_case(0, shape, 3, 0)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = torch.ops.fxptq.mapped_fake_quantize(x, scale, offset, factor, center, 7)
        gradients = torch.ops.fxptq.mapped_fake_quantize_backward(x, grad, scale, offset, factor, center, 7, True)
        results.append((found, *gradients))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_mapped_operators_refuse_other_arguments() -> None:
    x, scale, offset, factor, center, grad = mapped_case(0, (2, 3, 8, 5), 3, 0)
    with pytest.raises(RuntimeError, match=r"contiguous values"):
        torch.ops.fxptq.mapped_fake_quantize(x.transpose(0, 2), scale, offset, factor, center, 7)
    with pytest.raises(RuntimeError, match=r"each of 3 heads of 5 channels"):
        torch.ops.fxptq.mapped_fake_quantize(x, scale, offset, factor, center[:2], 7)
    with pytest.raises(RuntimeError, match=r"one scale"):
        torch.ops.fxptq.mapped_fake_quantize(x, scale.repeat(2), offset, factor, center, 7)
    with pytest.raises(RuntimeError, match=r"shape of the values"):
        torch.ops.fxptq.mapped_fake_quantize_backward(x, grad[:1], scale, offset, factor, center, 7, True)


def test_float64_keeps_its_precision() -> None:
    x = torch.rand(50, dtype=torch.float64)
    scale, offset = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.05], dtype=torch.float64)
    assert torch.equal(
        grid.fake_quantize(x, scale, offset, 3), grid.decode(grid.encode(x, scale, offset, 3), scale, offset)
    )
