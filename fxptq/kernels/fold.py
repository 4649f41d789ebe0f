"""Folds grids, weights and biases into the few numbers the integer kernels need.

An activation is a = s_a A + l_a with codes A, a weight w = s W + c with centred codes W (odd integers up to 7 bits, so
that a symmetric grid has c = 0). Then

    sum a w + bias = s_a s sum(A W) + s_a c sum(A) + (l_a sum(w) + bias)

and only the first two sums are left to the kernel. Where a convolution pads, l_a w is added only for the taps that lie
inside the image, so that the real zero of the border is exact. Everything here is float64, once, ahead of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.kernels.panels import centred, pad_columns, with_sums
from fxptq.quant.grid import levels
from fxptq.quant.quantizer import Quantizer

_ROUNDING = 2.0**-21
"""Centres smaller than this share of the largest value are the float32 rounding of bounds that are symmetric."""


@dataclass(frozen=True)
class Grid:
    """One grid of an activation: value = step * code + lower, codes 0 .. levels."""

    lower: float
    step: float
    bits: int

    @classmethod
    def of(cls, quantizer: Quantizer) -> Grid | None:
        """The grid of a per-tensor quantizer; None for several groups, or zero width (no codes can stand for those)."""
        if quantizer.groups > 1 or quantizer.width.item() == 0.0:
            return None
        return cls(quantizer.lower.item(), quantizer.step.item(), quantizer.bits)

    @property
    def levels(self) -> int:
        """The largest code."""
        return levels(self.bits)

    @property
    def centre(self) -> tuple[float, float]:
        """(s, c) of value = s * centred code + c."""
        lower, step = (torch.tensor([value], device="cpu") for value in (self.lower, self.step))
        scale, centre = centred_grid(lower, step, self.bits, odd=False)
        return float(scale), float(centre)


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution, folded: neither packed nor padded yet, float64 but for the weight.

    Attributes:
        weight: centred codes, int8, of the weight's shape.
        scale: [N], of the sum of products.
        bias: [N].
        row_scale: [N], of the sum of the activation codes; None where all weights are centred on zero.
        taps: [taps, N], what each tap inside the image adds to the bias; None where nothing depends on the border.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    row_scale: Tensor | None = None
    taps: Tensor | None = None

    @property
    def columns(self) -> int:
        """Number of outputs."""
        return self.scale.numel()

    def times(self, factor: Tensor | float) -> Layer:
        """The layer with its output multiplied by a number, or one for each column [N]."""
        return replace(
            self,
            scale=self.scale * factor,
            bias=self.bias * factor,
            row_scale=None if self.row_scale is None else self.row_scale * factor,
            taps=None if self.taps is None else self.taps * factor,
        )

    def packable(self) -> Tensor:
        """The weight as it is to be packed: with its column of sums where the epilogue needs them."""
        return self.weight if self.row_scale is None else with_sums(self.weight)

    def reordered(self, order: Tensor) -> Layer:
        """The layer with its outputs in another order: output i is what `order[i]` was."""
        return Layer(
            weight=self.weight[order],
            scale=self.scale[order],
            bias=self.bias[order],
            row_scale=None if self.row_scale is None else self.row_scale[order],
            taps=None if self.taps is None else self.taps[:, order],
        )

    def for_sums_times(self, factor: int) -> Layer:
        """The layer for a kernel whose sums are a multiple of the real ones."""
        row_scale = None if self.row_scale is None else self.row_scale / factor
        return replace(self, scale=self.scale / factor, row_scale=row_scale)

    def plus(self, offset: Tensor | float) -> Layer:
        """The layer with a number added to its output, or one for each column [N]."""
        return replace(self, bias=self.bias + offset)

    def epilogue(self) -> dict[str, Tensor | None]:
        """The tensors that the epilogue of an operator takes, by argument name."""
        return {
            "bias": pad_columns(self.bias),
            "scale": pad_columns(self.scale),
            "row_scale": None if self.row_scale is None else pad_columns(self.row_scale),
        }


def fits(shape: Sequence[int]) -> bool:
    """Whether the sums of a weight [N, ...] of 8-bit codes cannot leave 32 bits."""
    return prod(shape[1:]) * 255 * 128 < 1 << 31


def fold_linear(weight: Tensor, quantizer: Quantizer, bias: Tensor | None, grid: Grid) -> Layer:
    """Folds a linear layer.

    Args:
        weight: [N, K], float, as it is before quantization.
        quantizer: of the weight, along its output axis or per tensor.
        bias: [N] or None.
        grid: of the input.

    Raises:
        InputError: if the sums could leave 32 bits.
    """
    return _fold(weight, quantizer, bias, grid, padded=False)


def fold_conv2d(weight: Tensor, quantizer: Quantizer, bias: Tensor | None, grid: Grid, padding: Sequence[int]) -> Layer:
    """Folds a convolution [N, C, kernel height, kernel width] with zero padding; otherwise as `fold_linear`."""
    return _fold(weight, quantizer, bias, grid, padded=any(padding))


def _fold(weight: Tensor, quantizer: Quantizer, bias: Tensor | None, grid: Grid, *, padded: bool) -> Layer:
    columns = weight.shape[0]
    if not fits(weight.shape):
        raise InputError(f"sums over {list(weight.shape[1:])} 8-bit codes do not fit 32 bits: leave this site in float")
    signed = centred(quantizer.encode(weight), quantizer.bits)
    lower, step = _per_column(quantizer.lower, columns), _per_column(quantizer.step, columns)
    scale, centre = centred_grid(lower, step, quantizer.bits, odd=False)
    values = signed.reshape(columns, weight.shape[1], -1) * scale.view(-1, 1, 1) + centre.view(-1, 1, 1)
    inside = grid.lower * values.sum(1)  # [N, taps]
    constant = inside.new_zeros(columns) if bias is None else bias.detach().double()
    by_tap = padded and grid.lower != 0.0
    return Layer(
        weight=signed,
        scale=grid.step * scale,
        bias=constant if by_tap else constant + inside.sum(1),
        row_scale=grid.step * centre if bool((centre != 0).any()) else None,
        taps=inside.t().contiguous() if by_tap else None,
    )


def _per_column(values: Tensor, columns: int) -> Tensor:
    """Bounds of each group as bounds of each column."""
    return values.detach().double().repeat_interleave(columns // values.numel())


def centred_grid(lower: Tensor, step: Tensor, bits: int, *, odd: bool) -> tuple[Tensor, Tensor]:
    """(s, c) of value = s * centred code + c, float64; the centred codes of 8 bits are odd integers too if `odd`."""
    low, width = lower.double(), step.double() * levels(bits)
    if bits < 8 or odd:
        scale, centre = step.double() / 2, low + width / 2
    else:
        scale, centre = step.double(), low + 128 * step.double()
    largest = torch.maximum(low.abs(), (low + width).abs())
    return scale, centre.masked_fill(centre.abs() <= _ROUNDING * largest, 0.0)


def onto(layer: Layer, grid: Grid) -> Layer:
    """The layer with its output in units of the next grid: codes are the rounded and clipped output."""
    return layer.plus(-grid.lower).times(1.0 / grid.step)


def product_terms(lhs: Grid, rhs: Grid, target: Grid | None = None) -> list[float]:
    """The numbers (a, b, c, d, e) that turn sums of codes into a product of values.

    With A the left codes, B the centred right codes and `depth` products a sum, the product of the values is
    a sum(A B) + b sum(A) + c sum(B) + d depth + e, in units of `target` where one is given.
    """
    step, centre = rhs.centre
    unit, offset = (1.0, 0.0) if target is None else (target.step, target.lower)
    terms = (lhs.step * step, lhs.step * centre, lhs.lower * step, lhs.lower * centre, -offset)
    return [term / unit for term in terms]
