"""Rows as shares of their sum by compiled kernels: the values of the plain form bit for bit, and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxptq.kernels.build import backend
from fxptq.quant import operators, row_shares
from fxptq.quant.schemes.shares import Shares


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")


def case(seed: int, shape: tuple[int, int, int, int], bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a softmax, some with ties, negative values or nothing above 0; factors; an upstream gradient."""
    g = torch.Generator().manual_seed(seed)
    levels = 2**bits - 1
    x = (4 * torch.randn(shape, generator=g)).softmax(-1)
    factor = levels / (0.4 + 0.6 * torch.rand(shape[1], generator=g))
    largest = x.amax(-1, keepdim=True)
    ties = largest * (torch.randint(levels, shape, generator=g) + 0.5) / factor[:, None, None]
    x = torch.where((torch.rand(shape, generator=g) < 0.2) & (ties < largest), ties, x)
    x = torch.where(torch.rand(shape, generator=g) < 0.05, -x, x)
    x[torch.rand(shape[:3], generator=g) < 0.05] *= -1
    x[torch.rand(shape[:3], generator=g) < 0.05] = 0
    return x, factor, torch.randn(shape, generator=g)


lengths = st.sampled_from([1, 2, 3, 15, 16, 17, 33, 64, 144])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), lengths)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), shapes, st.integers(2, 8))
def test_values_are_the_plain_form_s_bit_for_bit(seed: int, shape: tuple[int, int, int, int], bits: int) -> None:
    x, factor, _ = case(seed, shape, bits)
    found = torch.ops.fxptq.shares(x, factor, 2**bits - 1)
    assert torch.equal(found, operators.shares(x, factor[:, None, None], 2**bits - 1))
    assert bool(((found.sum(-1) - 1).abs() < 1e-5)[(x > 0).any(-1)].all())


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 9999), shapes, st.integers(2, 8), st.booleans())
def test_gradients_are_the_plain_form_s_in_float64(
    seed: int, shape: tuple[int, int, int, int], bits: int, of_values: bool
) -> None:
    x, factor, grad = case(seed, shape, bits)
    levels = 2**bits - 1
    of_x, of_factor = torch.ops.fxptq.shares_backward(x, grad, factor, levels, of_values)
    # Places as the forward pass rounds them, everything behind them in float64.
    ratio, wide = operators.relative(x), factor[:, None, None]
    place = ratio * wide
    clipped = place.clamp(0, levels)
    codes = clipped.round().double().requires_grad_()
    (codes / codes.sum(-1, keepdim=True).clamp(min=1)).backward(grad.double())
    assert codes.grad is not None
    inside = torch.where(place == clipped, codes.grad, 0.0)
    size = float(inside.abs().sum()) + 1e-30
    assert abs(float((of_factor - (inside * ratio).sum((0, 2, 3))).abs().max())) <= 1e-5 * size
    if of_values:
        expected = inside * (wide / x.amax(-1, keepdim=True).clamp(min=1e-30))
        assert torch.allclose(of_x.double(), expected, rtol=2e-4, atol=1e-5 * float(grad.abs().max() * wide.max()))
    else:
        assert of_x.numel() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_without_an_end_is_nan(value: float) -> None:
    x = torch.rand(1, 1, 3, 40)
    x[0, 0, 1, 35] = value
    found, plain = torch.ops.fxptq.shares(x, torch.tensor([7.0]), 7), operators.shares(x, torch.tensor([7.0]), 7)
    assert torch.equal(found.isnan(), plain.isnan())
    assert bool(found[0, 0, 1].isnan().all())
    assert torch.equal(found[0, 0, ::2], plain[0, 0, ::2])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "shape", [(1, 1, 9_001, 48), (3, 6, 300, 64), (1, 2, 3, 30_000)], ids=["rows", "heads", "long"]
)
def test_the_number_of_threads_changes_nothing(shape: tuple[int, int, int, int]) -> None:
    x, factor, grad = case(0, shape, 3)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = torch.ops.fxptq.shares(x, factor, 7)
        results.append((found, *torch.ops.fxptq.shares_backward(x, grad, factor, 7, True)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_operators_refuse_other_arguments() -> None:
    x, factor, grad = case(0, (2, 3, 8, 5), 3)
    with pytest.raises(RuntimeError, match=r"contiguous rows"):
        torch.ops.fxptq.shares(x.transpose(0, 2), factor, 7)
    with pytest.raises(RuntimeError, match=r"a factor for each of 3 ranges"):
        torch.ops.fxptq.shares(x, factor[:2], 7)
    with pytest.raises(RuntimeError, match=r"no exact sum"):
        torch.ops.fxptq.shares(torch.rand(1, 1, 1, 70_000), factor[:1], 255)
    with pytest.raises(RuntimeError, match=r"shape of the values"):
        torch.ops.fxptq.shares_backward(x, grad[:1], factor, 7, True)


@pytest.mark.parametrize(
    ("ranges", "axis", "shape"),
    [
        (1, 0, (2, 3, 8, 16)),
        (3, 1, (2, 3, 8, 16)),
        (3, 1, (2, 6, 8, 16)),
        (4, 2, (2, 3, 8, 16)),
        (4, -1, (2, 3, 8, 16)),
        (1, 0, (5,)),
        (1, 0, (0, 4)),
        (2, 0, (4, 16)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float32", "float64", "transposed"])
def test_a_quantizer_gives_what_its_codes_stand_for(
    ranges: int, axis: int, shape: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=g, dtype=torch.float64 if kind == "float64" else torch.float32)
    x = x.transpose(0, -1).contiguous().transpose(0, -1) if kind == "transposed" else x
    quantizer = Shares(3, ranges, axis)
    quantizer.set_bounds(0.0, 0.5 + 0.5 * torch.rand(ranges, generator=g))
    x.requires_grad_()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        values = quantizer.quantize(x)
        upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=values.dtype)
        return values.detach(), *torch.autograd.grad(values, (x, quantizer.log_ratio), upstream)

    found = run()
    assert torch.allclose(found[0], quantizer.decode(quantizer.encode(x.detach())).to(x.dtype), rtol=1e-6)
    monkeypatch.setattr(row_shares, "_runs", lambda *_: None)
    plain = run()
    assert torch.equal(found[0], plain[0])
    for ours, theirs in zip(found[1:], plain[1:], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
