"""Fake quantization of rows as shares of their sum, in one pass over memory each way.

code = round(clip(factor * x / largest of the row, 0, 2**bits - 1)),  value = code / sum of the row's codes
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fxptq.quant import grid, operators

_EXACT = 1 << 24
"""Float32 holds all whole numbers up to here."""


def fake_quantize(x: Tensor, factor: Tensor, bits: int) -> Tensor:
    """The share of each code in the codes of its row; differentiable in `x` and `factor`.

    Gradients pass through rounding, and not through the largest value of a row; a clipped value passes none.

    Args:
        x: values, any shape and floating-point type, with rows along the last axis.
        factor: levels over the ceiling, > 0, broadcastable to `x`.
        bits: 1 to 8.

    Returns:
        Values of `x`'s shape.
    """
    out: Tensor = _Shares.apply(x, factor, grid.levels(bits))  # type: ignore[no-untyped-call]  # torch's own
    return out


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x, factor)
        ctx.levels = levels
        runs = _runs(x, factor, levels)
        if runs is None:
            return operators.shares(x, factor, levels)
        out: Tensor = torch.ops.fxptq.shares(x.view(runs), factor.reshape(-1), levels)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, factor = ctx.saved_tensors
        of_values, runs = ctx.needs_input_grad[0], _runs(x, factor, ctx.levels)
        if runs is None:
            of_x, of_factor = operators.shares_backward(x, grad, factor, ctx.levels, of_values)
        else:
            of_x, of_factor = torch.ops.fxptq.shares_backward(
                x.view(runs), grad.contiguous().view(runs), factor.reshape(-1), ctx.levels, of_values
            )
        return of_x.view(x.shape) if of_values else None, of_factor.view(factor.shape), None


def _runs(x: Tensor, factor: Tensor, levels: int) -> tuple[int, int, int, int] | None:
    """The shape [outer, ranges, rows, length] in which the operators take `x`; None where they do not."""
    # torch.compile fuses the plain form with its neighbours.
    if {x.dtype, factor.dtype} != {torch.float32} or torch.compiler.is_compiling():
        return None
    if not x.is_contiguous() or x.numel() == 0 or x.shape[-1] * levels >= _EXACT:
        return None
    if factor.numel() == 1:
        return 1, 1, prod(x.shape[:-1]), x.shape[-1]
    axes = [axis for axis in range(-factor.dim(), 0) if factor.shape[axis] > 1]
    if len(axes) > 1 or axes == [-1] or factor.dim() > x.dim() or x.shape[axes[0]] != factor.numel():
        return None
    rows = prod(x.shape[x.dim() + axes[0] + 1 : -1])
    return x.numel() // (factor.numel() * rows * x.shape[-1]), factor.numel(), rows, x.shape[-1]
