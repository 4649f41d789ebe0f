"""Fake quantization behind a map, in one pass over memory each way.

    value = factor * (scale * code + offset) + center

A map has a factor and a center for each channel, head, or both, and all channels share one grid. The values are those
of the map, the grid and the map back, one after the other, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fxptq.quant import grid


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor, factor: Tensor, center: Tensor, bits: int) -> Tensor:
    """The nearest values of one grid behind a map; differentiable in `x`, `scale` and `offset`.

    Args:
        x: values, any shape and floating-point type.
        scale: distance of neighbouring values of the grid, > 0, [1].
        offset: value of code 0 of the grid, [1].
        factor: > 0, of a shape that broadcasts to the trailing axes of `x`; it takes no gradient.
        center: of the shape of `factor`; it takes no gradient.
        bits: 1 to 8.

    Returns:
        Values of `x`'s shape.
    """
    dense = grid.as_dense(x)
    runs = _runs(dense, factor)
    if runs is None:
        return grid.fake_quantize((x - center) / factor, scale, offset, bits) * factor + center
    out: Tensor = _MappedFakeQuantize.apply(  # type: ignore[no-untyped-call]  # torch's own
        dense, scale, offset, runs.of_map(factor), runs.of_map(center), bits, runs
    )
    return out


@dataclass(frozen=True)
class _Runs:
    """How the operators see the memory of a tensor behind a map.

    Attributes:
        shape: [outer, heads, rows, channels]; the map changes with heads and channels.
        order: the axes of the map in the order of the tensor's memory.
    """

    shape: tuple[int, int, int, int]
    order: tuple[int, ...]

    def of_map(self, numbers: Tensor) -> Tensor:
        """The numbers of a map as [heads, channels]."""
        return numbers.permute(self.order).reshape(self.shape[1], self.shape[3])

    def of_values(self, dense: Tensor) -> Tensor:
        """The memory of a dense tensor, in its order."""
        _, heads, rows, channels = self.shape
        return dense.as_strided(self.shape, (heads * rows * channels, rows * channels, channels, 1))


def _runs(dense: Tensor, factor: Tensor) -> _Runs | None:
    """The form in which the operators take a dense tensor and a map; None where they do not."""
    # torch.compile fuses the plain form with its neighbours.
    if {dense.dtype, factor.dtype} != {torch.float32} or dense.numel() == 0 or torch.compiler.is_compiling():
        return None
    ahead = dense.dim() - factor.dim()
    axes = sorted(range(dense.dim()), key=dense.stride, reverse=True)  # as they lie in memory; sorting is stable
    sizes = [(dense.shape[axis], axis >= ahead and factor.shape[axis - ahead] > 1) for axis in axes]
    # Neighbours in memory that all change the map, or all do not, are one axis.
    groups = groupby(((size, mapped) for size, mapped in sizes if size > 1), lambda axis: axis[1])
    merged = [(mapped, prod(size for size, _ in group)) for mapped, group in groups]
    outer = merged.pop(0)[1] if merged and not merged[0][0] else 1
    order = tuple(axis - ahead for axis in axes if axis >= ahead)
    match [length for _, length in merged]:
        case []:
            shape = (1, 1, outer, 1)
        case [channels]:
            shape = (1, 1, outer, channels)
        case [heads, rows]:
            shape = (outer, heads, rows, 1)
        case [heads, rows, channels]:
            shape = (outer, heads, rows, channels)
        case _:
            return None
    return _Runs(shape, order)


class _MappedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dense: Tensor, scale: Tensor, offset: Tensor, factor: Tensor, center: Tensor, bits: int, runs: _Runs
    ) -> Tensor:
        ctx.save_for_backward(dense, scale, offset, factor, center)
        ctx.bits, ctx.runs = bits, runs
        out: Tensor = torch.ops.fxptq.mapped_fake_quantize(
            runs.of_values(dense), scale, offset, factor, center, grid.levels(bits)
        )
        return out.as_strided(dense.shape, dense.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None, None]:
        dense, scale, offset, factor, center = ctx.saved_tensors
        if grad.stride() != dense.stride():
            grad = torch.empty_like(dense).copy_(grad)
        of_values, levels = ctx.needs_input_grad[0], grid.levels(ctx.bits)
        values, upstream = ctx.runs.of_values(dense), ctx.runs.of_values(grad)
        of_x, of_scale, of_offset = torch.ops.fxptq.mapped_fake_quantize_backward(
            values, upstream, scale, offset, factor, center, levels, of_values
        )
        of_x = of_x.as_strided(dense.shape, dense.stride()) if of_values else None
        return of_x, of_scale, of_offset, None, None, None, None
