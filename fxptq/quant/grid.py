"""The uniform grid: `2**bits` levels a `scale` apart, and the gradients that move them.

A grid gives each code 0 .. 2**bits - 1 the value `scale * code + offset`. The clipping range is [lower, upper] with
`lower = offset` and `upper = offset + (2**bits - 1) * scale`. Everything in fxptq that quantizes goes through the
operations of `encode` and `decode`, in that order and in the tensor's own precision, so that a stored model repeats the
simulated one bit for bit. Clipping is done in units of the scale (0 .. 2**bits - 1): the same number as clipping to
[lower, upper] first, but the rounding of `upper` can then take no code out of its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fxptq.quant import operators

_SHORTEST = 8
"""Elements side by side in one range from which on the operators are worth their calls."""

_ROUNDING = 2.0**-21
"""Offsets of signed codes below this share of the largest value are the float32 rounding of a symmetric range."""

_ON_THE_GRID = 1e-5
"""The largest distance of a zero point from a whole number, in codes, that is rounding."""


@dataclass(frozen=True)
class Grid:
    """The grid of one range as kernels and exporters use it: `value = scale * code + offset`, codes 0 .. levels.

    Attributes:
        scale: distance of neighbouring values, > 0.
        offset: value of code 0, the lower end of the clipping range.
        bits: 1 to 8.
    """

    scale: float
    offset: float
    bits: int

    @property
    def levels(self) -> int:
        """The largest code."""
        return levels(self.bits)

    @property
    def zero_point(self) -> float:
        """The code of the value 0, a real number: `value = scale * (code - zero_point)`."""
        return -self.offset / self.scale

    @property
    def zero_code(self) -> int | None:
        """The code of the value 0, a whole number; None where 0 lies between two codes or beyond the grid."""
        if self.scale == 0:
            return None
        code = round(self.zero_point)
        return code if 0 <= code <= self.levels and abs(self.zero_point - code) <= _ON_THE_GRID else None

    def signed(self, *, odd: bool = False) -> tuple[float, float]:
        """(scale, offset) of the same values by signed codes: `value = scale * signed code + offset`.

        Signed codes are the odd integers 2 code - levels up to 7 bits, so that a symmetric range has the offset 0, and
        code - 128 for 8 bits, which fit a byte; with `odd` they are the odd integers for 8 bits too.
        """
        width = self.scale * self.levels
        if self.bits < 8 or odd:
            scale, offset = self.scale / 2, self.offset + width / 2
        else:
            scale, offset = self.scale, self.offset + 128 * self.scale
        largest = max(abs(self.offset), abs(self.offset + width))
        return scale, 0.0 if abs(offset) <= _ROUNDING * largest else offset


def levels(bits: int) -> int:
    """The largest code of a `bits`-bit grid: `2**bits - 1`."""
    return (1 << bits) - 1


def encode(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Nearest code of each value: `round(clip((x - offset) / scale, 0, 2**bits - 1))`, ties to even.

    Args:
        x: values, any shape.
        scale: distance of neighbouring values, > 0, broadcastable to `x`.
        offset: value of code 0, of `scale`'s shape.
        bits: 1 to 8.

    Returns:
        uint8 codes 0 .. 2**bits - 1, of `x`'s shape.
    """
    n = levels(bits)
    return torch.sub(x, offset).div_(scale).clamp_(0, n).round_().to(torch.uint8)


def decode(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Value of each code: `scale * code + offset`, in the precision of the scale.

    Args:
        codes: integers 0 .. 2**bits - 1, any shape and integer type.
        scale: distance of neighbouring values, broadcastable to `codes`.
        offset: value of code 0, of `scale`'s shape.

    Returns:
        Values of `codes`' shape and `scale`'s dtype.
    """
    return codes.to(scale.dtype).mul_(scale).add_(offset)


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """`decode(encode(x))` in one differentiable step, bit for bit the same values.

    Gradients (2DQuant, arXiv 2406.06649), with n = 2**bits - 1, z = (x - offset) / scale, r = round(z), lower = offset
    and upper = offset + n scale: round passes the gradient through; inside the bounds dy/dx = 1,
    dy/dupper = (r - z) / n and dy/dlower = -(r - z) / n; a clipped element passes nothing to x and 1 to the bound that
    clipped it. In the parameters used here dy/dscale = n dy/dupper, and dy/doffset = 1 for clipped elements and 0
    inside. Only `x` and the two parameters are kept for the backward pass.

    Args:
        x: values, any shape and floating-point type.
        scale: distance of neighbouring values, > 0, broadcastable to `x`.
        offset: value of code 0, of `scale`'s shape.
        bits: 1 to 8.

    Returns:
        Values on the grid, of `x`'s shape and memory format.
    """
    out: Tensor = _FakeQuantize.apply(x, scale, offset, bits)  # type: ignore[no-untyped-call]  # torch's own
    return out


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        dense = as_dense(x)
        ctx.save_for_backward(dense, scale, offset)
        ctx.bits = bits
        return values(dense, scale, offset, bits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        dense, scale, offset = ctx.saved_tensors
        return *gradients(dense, grad, scale, offset, ctx.bits, ctx.needs_input_grad[0]), None


def values(dense: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """`fake_quantize` of a dense tensor, unknown to autograd."""
    runs = _runs(dense, scale)
    if runs is None:
        return operators.fake_quantize(dense, scale, offset, levels(bits))
    out: Tensor = torch.ops.fxptq.fake_quantize(_as(runs, dense), scale.reshape(-1), offset.reshape(-1), levels(bits))
    return out.as_strided(dense.shape, dense.stride())


def gradients(
    dense: Tensor, grad: Tensor, scale: Tensor, offset: Tensor, bits: int, of_values: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of `values` for the gradient `grad` of its result: of the values if asked, scale and offset."""
    if grad.stride() != dense.stride():
        grad = torch.empty_like(dense).copy_(grad)
    runs = _runs(dense, scale)
    if runs is None:
        found = operators.fake_quantize_backward(dense, grad, scale, offset, levels(bits), of_values)
        return found[0] if of_values else None, found[1], found[2]
    of_x, of_scale, of_offset = torch.ops.fxptq.fake_quantize_backward(
        _as(runs, dense), _as(runs, grad), scale.reshape(-1), offset.reshape(-1), levels(bits), of_values
    )
    of_x = of_x.as_strided(dense.shape, dense.stride()) if of_values else None
    return of_x, of_scale.view_as(scale), of_offset.view_as(offset)


def _runs(x: Tensor, scale: Tensor) -> tuple[int, int, int] | None:
    """The shape [outer, ranges, inner] in which the operators take the memory of `x`; None where they do not."""
    # torch.compile fuses the plain form with its neighbours.
    if x.dtype != torch.float32 or scale.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    if scale.numel() == 1:
        return 1, 1, x.numel()
    axes = [axis for axis in range(-scale.dim(), 0) if scale.shape[axis] > 1]
    if len(axes) > 1 or not x.is_contiguous() or scale.dim() > x.dim() or x.shape[axes[0]] != scale.shape[axes[0]]:
        return None
    inner = prod(x.shape[x.dim() + axes[0] + 1 :])
    ranges = scale.numel()
    return (x.numel() // (ranges * inner), ranges, inner) if inner >= _SHORTEST else None


def as_dense(x: Tensor) -> Tensor:
    """`x` without gaps and repeats in memory, with the strides that `empty_like` gives."""
    if x.is_contiguous() or x.stride() == torch.empty_like(x, device="meta").stride():
        return x
    return torch.empty_like(x).copy_(x)


def _as(runs: tuple[int, int, int], dense: Tensor) -> Tensor:
    """The memory of a dense tensor, in its order, as runs."""
    _, ranges, inner = runs
    return dense.as_strided(runs, (ranges * inner, inner, 1))
