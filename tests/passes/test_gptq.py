"""Second moments of what weights multiply, and rounding by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fxptq.errors import InputError
from fxptq.graph.geometry import Geometry
from fxptq.passes.base import Context, run_passes
from fxptq.passes.moments import _patches


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "groups"),
    [(3, 8, 3, 1, 1), (4, 4, 3, 1, 4), (6, 4, 3, 2, 2), (5, 2, 1, 1, 1)],
    ids=["plain", "depthwise", "strided-grouped", "pointwise"],
)
def test_patches_are_what_the_convolution_multiplies(
    channels: int, outputs: int, kernel: int, stride: int, groups: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 8, 8, generator=generator)
    weight = torch.randn(outputs, channels // groups, kernel, kernel, generator=generator)
    y = F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=groups)
    geometry = Geometry((stride, stride), (kernel // 2, kernel // 2), groups=groups)
    patches, step = _patches(x, (kernel, kernel), geometry, rows=10**6)
    assert step == 1
    by_group = weight.flatten(1).view(groups, outputs // groups, -1)
    product = torch.einsum("gpi,goi->gop", patches, by_group).reshape(outputs, 2, *y.shape[2:])
    torch.testing.assert_close(product.transpose(0, 1), y, rtol=1e-4, atol=1e-5)


def test_moments_are_of_the_quantized_inputs(context: Context) -> None:
    run_passes([("dobi", {}), ("moments", {"rows": 10**6})], context)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for image in context.images:
        with torch.no_grad():
            feature = context.student.with_features(image)[1][0]
            x = context.student.quantizers["mix.input"](feature).movedim(1, 3).reshape(-1, 8).double()
        expected += x.T @ x
    torch.testing.assert_close(context.moments["mix.weight"], expected[None])
    assert context.moments["conv.weight"].shape == (1, 27, 27)
    assert not any(q._forward_hooks for q in context.student.quantizers.values())


def test_fewer_rows_estimate_the_same(new_context: Callable[..., Context]) -> None:
    every, some = new_context(), new_context()
    run_passes([("dobi", {}), ("moments", {"rows": 10**6})], every)
    run_passes([("dobi", {}), ("moments", {"rows": 200})], some)
    torch.testing.assert_close(some.moments["mix.weight"], every.moments["mix.weight"], rtol=0.3, atol=20.0)


def test_gptq_brings_the_output_closer_and_leaves_weights_on_their_grid(context: Context) -> None:
    def error() -> float:
        with torch.no_grad():
            return sum(float((context.student(x) - context.teacher(x)).square().mean()) for x in context.images)

    run_passes([("dobi", {})], context)
    before = error()
    report = run_passes([("gptq", {})], context)
    assert [r.name for r in report] == ["moments", "gptq"]
    assert error() < before
    for key in ("conv.weight", "mix.weight"):
        weight = context.student.weight_of(key)
        assert weight is not None
        assert torch.equal(context.student.quantizers[key](weight), weight)
        figures = report[-1].quantizers[key]
        assert figures["snr_db"] >= figures["nearest_snr_db"]


def test_gptq_keeps_rows_that_are_not_quantized(context: Context) -> None:
    run_passes([("dobi", {})], context)
    quantizer, weight = context.student.quantizers["conv.weight"], context.student.weight_of("conv.weight")
    assert weight is not None
    width, before = quantizer.width.detach().clone(), weight.clone()
    width[3] = 0.0
    quantizer.restore({"lower": quantizer.lower, "width": width})
    run_passes([("gptq", {})], context)
    assert torch.equal(weight[3], before[3])
    assert not torch.equal(weight[2], before[2])


def test_gptq_needs_bounds(context: Context) -> None:
    with pytest.raises(InputError, match="run a pass such as `dobi` before it"):
        run_passes([("gptq", {})], context)
