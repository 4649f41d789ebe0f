"""Weights rounded for their layer's output, with their bounds, in several schemes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxptq.quant.quantizer import Quantizer
from fxptq.quant.rounded import Rounded, round_weight
from fxptq.quant.rounding import gptq, output_error
from fxptq.quant.scheme import make_quantizer
from fxptq.quant.schemes.uniform import Uniform
from fxptq.refusal import Refusal


def layer(groups: int = 1, outputs: int = 8, inputs: int = 12) -> tuple[Tensor, Tensor]:
    """A weight and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(groups)
    weight = torch.randn(outputs, inputs, generator=generator)
    common = torch.randn(groups, 400, 1, generator=generator, dtype=torch.float64)
    x = common + torch.randn(groups, 400, inputs, generator=generator, dtype=torch.float64)
    return weight, x.transpose(1, 2) @ x / 400


def quantizer_of(weight: Tensor, scheme: str = "affine", bits: int = 3, ranges: int = 8) -> Quantizer:
    """A quantizer whose bounds clip nothing."""
    quantizer = make_quantizer(scheme, bits, ranges, 0, "constant")
    rows = weight.detach().reshape(ranges, -1)
    quantizer.set_bounds(rows.amin(1) - 0.01, rows.amax(1) + 0.02)
    quantizer.mode = "on"
    return quantizer


def rounded(weight: Tensor, quantizer: Quantizer, moments: Tensor) -> Rounded:
    """The rounded weight; fails on a refusal."""
    found = round_weight(weight, quantizer, moments, 0.01)
    assert isinstance(found, Rounded)
    return found


def error(weight: Tensor, values: Tensor, moments: Tensor) -> float:
    """The squared error of the output."""
    parts = zip(*(t.reshape(len(moments), -1, moments.shape[1]) for t in (weight, values)), moments, strict=True)
    return sum(float(output_error(w, v, m).sum()) for w, v, m in parts)


@pytest.mark.parametrize("ranges", [8, 2, 1], ids=["rows", "blocks", "tensor"])
@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_a_fitted_grid_is_better_than_gptq_on_the_grid_that_was_there(groups: int, ranges: int) -> None:
    weight, moments = layer(groups)
    quantizer = quantizer_of(weight, ranges=ranges)
    before = [quantizer.lower.clone(), quantizer.upper.clone()]
    found = rounded(weight, quantizer, moments)
    assert torch.equal(torch.stack(before), torch.stack([quantizer.lower, quantizer.upper]))
    scale, offset = (quantizer.spread(t.detach(), weight).expand_as(weight) for t in (quantizer.scale, quantizer.lower))
    parts = (t.reshape(groups, -1, 12) for t in (weight, scale, offset))
    plain = torch.cat([gptq(w, m, s, o, 3) for w, s, o, m in zip(*parts, moments, strict=True)])
    assert error(weight, found.weight, moments) < 0.99 * error(weight, plain, moments)
    assert found.figures["snr_db"] > found.figures["nearest_snr_db"]


@pytest.mark.parametrize("scheme", ["uniform", "affine", "zero_on_grid"])
def test_the_weight_lies_on_the_grid_between_the_new_bounds(scheme: str) -> None:
    weight, moments = layer()
    quantizer = quantizer_of(weight, scheme)
    found = rounded(weight, quantizer, moments)
    quantizer.restore(found.bounds)
    assert torch.equal(quantizer.quantize(found.weight), found.weight)
    assert torch.equal(quantizer.decode(quantizer.encode(found.weight)), found.weight)
    if scheme == "zero_on_grid":
        zeros = torch.zeros_like(weight)
        torch.testing.assert_close(quantizer.quantize(zeros), zeros, rtol=0, atol=1e-6)


def test_symmetric_bounds_stay_symmetric() -> None:
    weight, moments = layer()
    quantizer = quantizer_of(weight)
    quantizer.set_bounds(-weight.abs().amax(1), weight.abs().amax(1))
    found = rounded(weight, quantizer, moments)
    upper = quantizer.upper.clone()
    quantizer.restore(found.bounds)
    assert torch.equal(quantizer.lower, -quantizer.upper)
    assert not torch.equal(quantizer.upper, upper)


def test_weights_behind_a_map_are_fitted_as_weights_of_its_unit() -> None:
    weight, moments = layer()
    factor = 2.0 ** torch.randint(-3, 4, (12,), generator=torch.Generator().manual_seed(3))  # exact in floats
    plain, behind = quantizer_of(weight), quantizer_of(weight)
    behind.set_map(factor)
    of_map = moments / (factor * factor[:, None])
    pair = [
        error(weight, rounded(weight, plain, moments).weight, moments),
        error(weight * factor, rounded(weight * factor, behind, of_map).weight, of_map),
    ]
    assert pair[0] == pytest.approx(pair[1], rel=0.05)


def test_rows_of_zero_width_keep_their_weights() -> None:
    weight, moments = layer()
    quantizer = quantizer_of(weight)
    upper = quantizer.upper.clone()
    upper[3] = quantizer.lower[3]
    quantizer.set_bounds(quantizer.lower.clone(), upper)
    found = rounded(weight, quantizer, moments)
    assert torch.equal(found.weight[3], weight[3])
    assert float(found.bounds["width"][3]) == 0
    assert not torch.equal(found.weight[2], weight[2])


def test_bounds_of_columns_stay() -> None:
    weight, moments = layer(inputs=12)
    quantizer = make_quantizer("uniform", 3, 12, 1, "constant")
    quantizer.set_bounds(weight.amin(0), weight.amax(0))
    quantizer.mode = "on"
    found = rounded(weight, quantizer, moments)
    assert torch.equal(found.bounds["lower"], quantizer.lower)
    assert torch.equal(quantizer.quantize(found.weight), found.weight)


def test_codes_without_a_grid_are_refused() -> None:
    weight, moments = layer()

    class Squares(Uniform):
        """A scheme whose values are not linear in the code; it is not registered."""

        scheme = "squares"

        def decode(self, codes: Tensor) -> Tensor:
            return super().decode(codes).square()

    quantizer = Squares(3, 8, 0, "constant")
    quantizer.set_bounds(weight.amin(1), weight.amax(1))
    found = round_weight(weight, quantizer, moments, 0.01)
    assert isinstance(found, Refusal)
    assert "squares" in found.reason
