"""Rounds a weight for the output of its layer, and fits the weight's grid to the codes that come out.

GPTQ finds codes on the grid that the bounds give. A grid that was chosen for the error of the weights is not the best
one for these codes and the error of the output; so the two are improved in turn (see `fxptq.quant.descent`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.quant import descent
from fxptq.quant.distribution import signal_to_noise
from fxptq.quant.grid import levels
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.rounding import damped, gptq, output_error
from fxptq.refusal import Refusal

_TURNS = 2
"""Largest number of times that grid and codes are improved; the first turn brings most of the gain."""


@dataclass(frozen=True)
class Rounded:
    """A rounded weight and its bounds.

    Attributes:
        weight: on the grid between the bounds, of the shape of the float weight.
        bounds: the tensors of the quantizer between whose bounds it lies (`Quantizer.stored`), by name.
        figures: `snr_db`, the signal-to-noise ratio in dB of the layer's output for the observed inputs, and
            `nearest_snr_db`, the ratio that rounding to nearest between the former bounds would have given.
    """

    weight: Tensor
    bounds: dict[str, Tensor]
    figures: dict[str, float]


def round_weight(weight: Tensor, quantizer: Quantizer, moments: Tensor, damping: float) -> Rounded | Refusal:
    """Rounds a weight for the smallest error of its layer's output, and moves the bounds of its rows.

    Args:
        weight: [outputs, inputs of a group, ...].
        quantizer: the weight's quantizer, with bounds; it stays as it is.
        moments: second moments of the inputs, [groups, inputs of a group, inputs of a group].
        damping: added to the diagonal of the moments, in units of its mean.

    Returns:
        A refusal if the values of the quantizer are not linear in the code.
    """
    layer = _Layer(weight, moments.double().cpu())
    grid = _grid_of_each(quantizer, weight)
    if grid is None:
        return Refusal(f"{quantizer.scheme}: its values are not linear in the code")
    own, scale, offset = (layer.by_group(t) for t in (weight, *grid))
    values = gptq(own, layer.moments, scale, offset, quantizer.bits, damping)
    copy = deepcopy(quantizer)
    copy.absorb()
    best = _Choice(copy, copy.encode(values.view_as(weight).to(weight.device)))
    least, is_symmetric = layer.error(best.values(weight)), torch.equal(copy.lower, -copy.upper)
    for _ in range(_TURNS if _has_bounds_of_rows(quantizer, weight) else 0):
        choice = layer.improved(best, damping, is_symmetric)
        error = layer.error(choice.values(weight))
        if not error < least:
            break
        best, least = choice, error
    power, nearest = layer.error(torch.zeros_like(weight)), layer.error(quantizer.quantize(weight))
    figures = {"snr_db": signal_to_noise(power, least), "nearest_snr_db": signal_to_noise(power, nearest)}
    return Rounded(best.values(weight), best.quantizer.stored(), figures)


def layer_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> float:
    """The squared error of a layer's output, summed over its outputs.

    Args:
        weight: [outputs, inputs of a group, ...].
        rounded: of the shape of `weight`.
        moments: second moments of the inputs, [groups, inputs of a group, inputs of a group], float64, on the CPU.
    """
    return float(output_error(_by_group(weight, moments), _by_group(rounded, moments), moments).sum())


def _by_group(like_weight: Tensor, moments: Tensor) -> Tensor:
    """A tensor of a weight's shape as [groups, outputs of a group, inputs of a group], on the CPU."""
    return like_weight.detach().cpu().reshape(len(moments), -1, moments.shape[1])


@dataclass(frozen=True)
class _Choice:
    """Codes of a weight, and the quantizer that says what they stand for."""

    quantizer: Quantizer
    codes: Tensor

    def values(self, weight: Tensor) -> Tensor:
        """The rounded weight; ranges of zero width keep their weights."""
        values = self.quantizer.decode(self.codes)
        flat = self.quantizer.spread(self.quantizer.upper == self.quantizer.lower, weight)
        return self.quantizer.quantize(torch.where(flat, weight, values)).detach()


@dataclass(frozen=True)
class _Layer:
    """What the error of a layer's output depends on.

    Attributes:
        weight: [outputs, inputs of a group, ...].
        moments: [groups, inputs of a group, inputs of a group], float64.
    """

    weight: Tensor
    moments: Tensor

    def by_group(self, like_weight: Tensor) -> Tensor:
        return _by_group(like_weight, self.moments)

    def error(self, rounded: Tensor) -> float:
        return layer_error(self.weight, rounded, self.moments)

    def improved(self, choice: _Choice, damping: float, is_symmetric: bool) -> _Choice:
        """The best grid for the codes, and then better codes on it; symmetric ranges stay so, as kernels ask for."""
        quantizer = deepcopy(choice.quantizer)
        lower, upper, n = quantizer.lower.detach(), quantizer.upper.detach(), levels(quantizer.bits)
        weight, codes = self.by_group(self.weight).double(), self.by_group(choice.codes).double()
        scale, offset = self._grid(quantizer)
        moments = damped(self.moments, scale, damping)
        center = n / 2 if is_symmetric else None
        fit = descent.best_grids(weight, moments, scale, offset, codes, quantizer.ranges, center)
        gain, shift = (t.to(lower.device) for t in fit)
        low = lower + (upper - lower) / n * shift
        high = -low if is_symmetric else low + (upper - lower) * gain
        quantizer.set_bounds(*(end[:, 0] for end in quantizer.admissible(low[:, None], high[:, None])))
        codes = descent.best_codes(weight, moments, *self._grid(quantizer), codes, quantizer.bits)
        return _Choice(quantizer, codes.to(choice.codes.dtype).view_as(choice.codes).to(choice.codes.device))

    def _grid(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        grid = _grid_of_each(quantizer, self.weight)
        assert grid is not None  # its bounds have moved, and its scheme has not  # noqa: S101
        scale, offset = grid
        return self.by_group(scale).double(), self.by_group(offset).double()


def _has_bounds_of_rows(quantizer: Quantizer, weight: Tensor) -> bool:
    """Whether the ranges are blocks of the weight's rows, or one."""
    return quantizer.ranges == 1 or (quantizer.axis % weight.dim() == 0 and len(weight) % quantizer.ranges == 0)


def _grid_of_each(quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The scale and the offset of the grid of each weight; None if its values are not linear in the code.

    Ranges of zero width, which keep their weights, have the scale 1.
    """
    n = levels(quantizer.bits)
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    with torch.no_grad():
        offset = quantizer.decode(codes)
        scale = (quantizer.decode(codes + n) - offset) / n
        middle = quantizer.decode(codes + n // 2)
    off = (middle - (offset + n // 2 * scale)).abs()
    return (scale.masked_fill(scale == 0, 1.0), offset) if bool((off <= 0.01 * scale.abs()).all()) else None
