"""The grid against float64, against autograd of a soft twin, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.quant import grid
from fxptq.quant.grid import Grid, levels

BITS = [2, 3, 4, 8]


def encode(x: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Codes in a clipping range."""
    return grid.encode(x, width / levels(bits), lower, bits)


def decode(codes: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Values of codes in a clipping range."""
    return grid.decode(codes, width / levels(bits), lower)


def fake_quantize(x: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Quantized values in a clipping range, differentiable in its bounds."""
    return grid.fake_quantize(x, width / levels(bits), lower, bits)


def reference_gradients(x: Tensor, lower: Tensor, width: Tensor, bits: int, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's gradients, element by element as it states them, in float64, as (x, lower at fixed width, width)."""
    x, lower, width, g = (t.double() for t in (x, lower, width, g))
    n, upper = levels(bits), lower + width
    z = (x - lower) / (width / n)
    r = z.clamp(0, n).round()
    below, above = x < lower, x > upper
    inside = ~(below | above)
    d_upper = torch.where(inside, (r - z) / n, above.double())
    d_lower = torch.where(inside, -(r - z) / n, below.double())
    # upper = lower + width: moving lower at fixed width moves both.
    return g * inside, (g * (d_lower + d_upper)).sum_to_size(lower.shape), (g * d_upper).sum_to_size(width.shape)


def case(shape: tuple[int, ...], bounds: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    lower = -1.2 + 0.3 * torch.rand(bounds, generator=generator)
    width = 1.9 + torch.rand(bounds, generator=generator)
    return x, lower, width, torch.randn(shape, generator=generator)


@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_is_decode_of_encode_bit_for_bit(bits: int) -> None:
    x, lower, width, _ = case((3, 50_000), (1,))
    assert torch.equal(fake_quantize(x, lower, width, bits), decode(encode(x, lower, width, bits), lower, width, bits))


@pytest.mark.parametrize("bits", BITS)
def test_order_of_operations_is_the_stated_one(bits: int) -> None:
    x, lower, width, _ = case((1000,), (1,))
    step = width / (2**bits - 1)
    code = torch.round((torch.clip(x, lower, lower + width) - lower) / step)
    assert torch.equal(encode(x, lower, width, bits), code.to(torch.uint8))
    assert torch.equal(fake_quantize(x, lower, width, bits), step * code + lower)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30),
    lower=st.floats(-1e6, 1e6, width=32),
    width=st.floats(2**-20, 2**20, width=32),
    bits=st.integers(2, 8),
)
def test_codes_stay_in_range_whatever_the_rounding(values: list[float], lower: float, width: float, bits: int) -> None:
    # With |lower| >> width, float32 lower + width may lie steps away from the true upper bound.
    x, low, wide = torch.tensor(values), torch.tensor([lower]), torch.tensor([width])
    n = levels(bits)
    assert int(encode(x, low, wide, bits).max()) <= n
    values_of_codes = low + wide / n * torch.arange(n + 1)
    assert torch.isin(fake_quantize(x, low, wide, bits), values_of_codes).all()


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**10), 2.0**10, width=32), min_size=1, max_size=30),
    lower=st.floats(-(2.0**7), 2.0**7, width=32),
    width=st.floats(2**-7, 2**10, width=32),
    bits=st.integers(2, 8),
)
def test_values_on_the_grid_are_left_as_they_are(values: list[float], lower: float, width: float, bits: int) -> None:
    low, wide = torch.tensor([lower]), torch.tensor([width])
    once = fake_quantize(torch.tensor(values), low, wide, bits)
    assert torch.equal(fake_quantize(once, low, wide, bits), once)


def test_ties_go_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -7.0, 9.0])
    assert encode(x, torch.tensor([0.0]), torch.tensor([3.0]), 2).tolist() == [0, 2, 2, 0, 3]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("shape", "bounds"),
    [((64, 33), (1,)), ((6, 5, 3, 3), (6, 1, 1, 1)), ((6, 5, 3, 3), (1, 5, 1, 1)), ((), ()), ((600_000,), (1,))],
    ids=["per-tensor", "axis-0", "axis-1", "scalar", "several-blocks"],
)
def test_gradients_are_the_papers(bits: int, shape: tuple[int, ...], bounds: tuple[int, ...]) -> None:
    x, lower, width, g = case(shape, bounds)
    for t in (x, lower, width):
        t.requires_grad_()
    got = torch.autograd.grad(fake_quantize(x, lower, width, bits), (x, lower, width), g)
    expected = reference_gradients(x.detach(), lower.detach(), width.detach(), bits, g)
    torch.testing.assert_close(got[0].double(), expected[0])
    scale = float(g.abs().sum()) * 1e-6
    torch.testing.assert_close(got[1].double(), expected[1], rtol=1e-5, atol=scale)
    torch.testing.assert_close(got[2].double(), expected[2], rtol=1e-5, atol=scale)


@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_of_the_bounds_are_finite_differences(bits: int) -> None:
    """With round replaced by its straight-through tangent the value is smooth in the bounds: differentiate that."""
    x, lower, width, _ = (t.double() for t in case((200,), (1,), seed=3))
    n = levels(bits)
    codes = ((x - lower) / (width / n)).clamp(0, n).round()

    def soft(low: Tensor, wide: Tensor) -> Tensor:
        z = ((x - low) / (wide / n)).clamp(0, n)
        z0 = ((x - lower) / (width / n)).clamp(0, n)
        return wide / n * (codes + z - z0) + low

    low, wide = lower.clone().requires_grad_(), width.clone().requires_grad_()
    fake_quantize(x, low, wide, bits).sum().backward()
    eps = 1e-7
    d_lower = (soft(lower + eps, width) - soft(lower - eps, width)).sum() / (2 * eps)
    d_width = (soft(lower, width + eps) - soft(lower, width - eps)).sum() / (2 * eps)
    assert low.grad is not None
    assert wide.grad is not None
    assert float(low.grad) == pytest.approx(float(d_lower), rel=1e-5, abs=1e-5)
    assert float(wide.grad) == pytest.approx(float(d_width), rel=1e-5, abs=1e-5)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "strided": lambda x: x[:, ::2],
    "offset": lambda x: x[1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_value_and_no_gradient(layout: str) -> None:
    x, lower, width, _ = case((3, 8, 5, 7), (1,))
    x = LAYOUTS[layout](x)
    plain = x.contiguous().clone().requires_grad_()
    given_x = x.detach().requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    low, wide = lower.requires_grad_(), width.requires_grad_()
    got = fake_quantize(given_x, low, wide, 3)
    expected = fake_quantize(plain, low, wide, 3)
    assert torch.equal(got, expected)
    if layout == "channels-last":
        assert got.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(
        torch.autograd.grad(got, (given_x, low, wide), upstream),
        torch.autograd.grad(expected, (plain, low, wide), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_memory_kept_for_backward_is_the_input_and_the_bounds() -> None:
    kept: list[Tensor] = []
    x, lower, width, _ = case((1000,), (1,))
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        fake_quantize(x, lower.requires_grad_(), width.requires_grad_(), 4)
    assert sorted(t.numel() for t in kept) == [1, 1, 1000]
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


@settings(max_examples=300, deadline=None)
@given(
    offset=st.floats(-100, 100, width=32),
    scale=st.floats(2**-10, 10, width=32),
    bits=st.integers(2, 8),
    odd=st.booleans(),
)
def test_signed_codes_and_the_zero_point_give_the_same_values(
    offset: float, scale: float, bits: int, odd: bool
) -> None:
    found, codes = Grid(scale, offset, bits), torch.arange(2**bits, dtype=torch.float64)
    values = scale * codes + offset
    signed_scale, signed_offset = found.signed(odd=odd)
    signed = codes - 128 if bits == 8 and not odd else 2 * codes - found.levels
    # A symmetric range has the offset 0, up to the float32 rounding of its bounds.
    assert float((signed_scale * signed + signed_offset - values).abs().max()) <= 2**-20 * float(values.abs().max())
    assert torch.allclose(scale * (codes - found.zero_point), values, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_range_has_signed_codes_without_an_offset(bits: int) -> None:
    upper = torch.tensor(0.3)
    scale = float(2 * upper / levels(bits))
    assert Grid(scale, float(-upper), bits).signed(odd=True)[1] == 0.0
