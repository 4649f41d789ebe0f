"""Fake quantization behind a map equals the map, the grid and the map back, in every layout of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxptq.kernels.build import backend
from fxptq.quant import grid, mapped, operators

LAYOUTS = {
    "linear": (torch.Size((3, 50, 48)), None, (48,)),
    "convolution": (torch.Size((2, 5, 9, 11)), None, (5, 1, 1)),
    "channels last": (torch.Size((2, 5, 9, 11)), (0, 2, 3, 1), (5, 1, 1)),
    "heads": (torch.Size((2, 5, 9, 8)), None, (5, 1, 8)),
    "heads apart in memory": (torch.Size((2, 5, 9, 8)), (0, 2, 1, 3), (5, 1, 8)),
    "strips": (torch.Size((2, 5, 9, 8)), None, (1, 9, 1)),
    "two gaps": (torch.Size((4, 5, 9, 8)), None, (4, 1, 9, 1)),
    "every element": (torch.Size((5, 9, 8)), None, (5, 9, 8)),
    "three groups": (torch.Size((3, 2, 5, 4, 3)), None, (3, 1, 5, 1, 3)),
    "one factor": (torch.Size((3, 40)), None, ()),
    "one pixel": (torch.Size((1, 5, 1, 1)), None, (5, 1, 1)),
    "no pixel": (torch.Size((0, 5, 2, 2)), None, (5, 1, 1)),
}


def in_memory(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """The same tensor with its axes in another order in memory."""
    if order is None:
        return x
    back = [order.index(axis) for axis in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


@pytest.fixture(params=["plain", "compiled kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the definition in plain torch, and once with what a library registers for the processor."""
    if request.param == "plain":
        monkeypatch.setattr(torch.ops.fxptq, "mapped_fake_quantize", operators.mapped_fake_quantize)
        monkeypatch.setattr(torch.ops.fxptq, "mapped_fake_quantize_backward", operators.mapped_fake_quantize_backward)
    elif not backend().native:
        pytest.skip(f"no compiled kernels: {backend().reason}")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_values_and_gradients_are_those_of_the_steps(
    layout: tuple[torch.Size, tuple[int, ...] | None, tuple[int, ...]], dtype: torch.dtype
) -> None:
    shape, order, of_map = layout
    g = torch.Generator().manual_seed(0)
    x = in_memory(torch.randn(shape, generator=g, dtype=dtype), order)
    factor = torch.rand(of_map, generator=g, dtype=dtype) + 0.5
    center = torch.randn(of_map, generator=g, dtype=dtype) * 0.3
    upstream = torch.randn(shape, generator=g, dtype=dtype)
    results = []
    for way in (
        lambda x, scale, offset: mapped.fake_quantize(x, scale, offset, factor, center, 3),
        lambda x, scale, offset: grid.fake_quantize((x - center) / factor, scale, offset, 3) * factor + center,
    ):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        scale = torch.tensor([0.31], dtype=dtype, requires_grad=True)
        offset = torch.tensor([-0.9], dtype=dtype, requires_grad=True)
        out = way(leaf, scale, offset)
        out.backward(upstream)
        results.append((out.detach(), leaf.grad, scale.grad, offset.grad))
    (values, *gradients), (wanted, *wanted_gradients) = results
    assert torch.equal(values, wanted)
    assert values.stride() == wanted.stride()
    for found, expected in zip(gradients, wanted_gradients, strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
