"""Rounds a weight matrix for the smallest error of its layer's output, instead of the smallest error of each weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxptq.quant.grid import decode, encode, levels

Floats = npt.NDArray[Any]

DAMPING = 0.01
"""Added to the diagonal of the inputs' second moments, in units of its mean."""


def gptq(weight: Tensor, moments: Tensor, scale: Tensor, offset: Tensor, bits: int, damping: float = DAMPING) -> Tensor:
    """Finds values on the grid that nearly minimise E |W x - Q x|^2 (GPTQ, Frantar et al., arXiv 2210.17323).

    Columns are rounded to the nearest grid values one after the other, the columns of the strongest inputs first. The
    columns that are not rounded yet compensate each error, in the way that would be best if they stayed real numbers.

    Args:
        weight: W, [..., outputs, inputs]; the leading axes are layers, or groups of one, with inputs of their own.
        moments: E x x^T of the inputs, or any positive multiple of it, [..., inputs, inputs].
        scale: distance of neighbouring values on the grid of each weight, > 0, [..., outputs, inputs]; or of each row,
            [..., outputs, 1] or [..., 1, 1].
        offset: value of code 0, of the shape of `scale`.
        bits: 2 to 8.
        damping: added to the diagonal of the moments, in units of its mean.

    Returns:
        Q, of W's shape and type; its error for these moments is never above the error of rounding to nearest.
    """
    scale, offset = scale.expand_as(weight), offset.expand_as(weight)
    unit = _units(scale)
    weighed = moments.double() * unit[..., None, :] * unit[..., :, None]
    diagonal = weighed.diagonal(dim1=-2, dim2=-1)
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    hessian = weighed.take_along_dim(order[..., :, None], -2).take_along_dim(order[..., None, :], -1)
    added = (damping * diagonal.mean(-1)).clamp(min=1e-30)[..., None, None]
    hessian = hessian + torch.eye(weight.shape[-1], dtype=torch.float64) * added
    # The rows of this factor say how an error in one column is best spread over the columns after it.
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)

    columns = order[..., None, :]
    compensated = (weight.double() / unit[..., None, :]).take_along_dim(columns, -1)
    scales, offsets, units = (t.take_along_dim(columns, -1) for t in (scale, offset, unit[..., None, :]))
    exact = torch.promote_types(weight.dtype, torch.float32)  # numpy has no bfloat16
    grid = scales.to(exact).numpy(), offsets.to(exact).numpy()
    by_column = _by_columns(compensated.numpy(), units.numpy(), *grid, spread.numpy(), levels(bits))
    rounded = torch.from_numpy(by_column).to(weight.dtype)
    rounded = rounded.take_along_dim(order.argsort(-1)[..., None, :], -1)

    plain = to_nearest(weight, scale, offset, bits)
    worse = output_error(weight, rounded, moments) > output_error(weight, plain, moments)
    return torch.where(worse[..., None], plain, rounded)


def _by_columns(
    compensated: Floats, units: Floats, scales: Floats, offsets: Floats, spread: Floats, most: int
) -> Floats:
    """The columns' rounded values; `compensated`, in units of the columns, loses what later columns make up for.

    Each column becomes codes and values as by `grid.encode` and `grid.decode`; columns are small and many, and calls of
    torch would take longer.
    """
    rounded = np.empty_like(scales)
    for j in range(scales.shape[-1]):
        scale, offset, unit = scales[..., j], offsets[..., j], units[..., j]
        wanted = (compensated[..., j] * unit).astype(scales.dtype)
        codes = np.rint(np.clip((wanted - offset) / scale, 0, most))
        rounded[..., j] = codes * scale + offset
        error = (compensated[..., j] - rounded[..., j] / unit) / spread[..., j, j, None]
        compensated[..., j + 1 :] -= error[..., None] * spread[..., j, None, j + 1 :]
    return rounded


def damped(moments: Tensor, scale: Tensor, damping: float) -> Tensor:
    """The moments that `gptq` rounds by, with what it adds to the diagonal; see its arguments."""
    unit = _units(scale)
    mean = (moments.diagonal(dim1=-2, dim2=-1).double() * unit.square()).mean(-1, keepdim=True)
    return moments.double() + torch.diag_embed((damping * mean).clamp(min=1e-30) / unit.square())


def _units(scale: Tensor) -> Tensor:
    """Columns are weighed in units of their grids, whose steps may differ from column to column; [..., inputs]."""
    return scale.double().mean(-2)


def to_nearest(weight: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Rounds each weight to the nearest value on the grid."""
    return decode(encode(weight, scale, offset, bits), scale, offset)


def output_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """Computes E (W x - Q x)^2 of each output, up to the scale of the moments, [..., outputs]."""
    error = (weight - rounded).double()
    return ((error @ moments.double()) * error).sum(-1)
