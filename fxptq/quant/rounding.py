"""Rounds a weight matrix for the smallest error of its layer's output, instead of the smallest error of each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fxptq.quant.grid import decode, encode


def gptq(weight: Tensor, moments: Tensor, scale: Tensor, offset: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Finds values on the grid that nearly minimise E |W x - Q x|^2 (GPTQ, Frantar et al., arXiv 2210.17323).

    Columns are rounded to the nearest grid values one after the other, the columns of the strongest inputs first. The
    columns that are not rounded yet compensate each error, in the way that would be best if they stayed real numbers.

    Args:
        weight: W, [outputs, inputs].
        moments: E x x^T of the inputs, or any positive multiple of it, [inputs, inputs].
        scale: distance of neighbouring values on the grid of each weight, > 0, [outputs, inputs]; or of each row,
            [outputs, 1] or [1, 1].
        offset: value of code 0, of the shape of `scale`.
        bits: 2 to 8.
        damping: added to the diagonal of the moments, in units of its mean.

    Returns:
        Q, [outputs, inputs], of W's type; its error for these moments is never above the error of rounding to nearest.
    """
    # Columns are weighed in units of their grids, whose steps may differ from column to column.
    unit = scale.double().mean(0) if scale.shape[1] > 1 else torch.ones(weight.shape[1], dtype=torch.float64)
    weighed = moments.double() * unit * unit[:, None]
    diagonal = weighed.diagonal()
    order = diagonal.argsort(descending=True)
    hessian = weighed[order][:, order]
    hessian = hessian + torch.eye(len(order), dtype=torch.float64) * (damping * diagonal.mean()).clamp(min=1e-30)
    # The rows of this factor say how an error in one column is best spread over the columns after it.
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)

    scale, offset = scale.expand_as(weight), offset.expand_as(weight)
    compensated = (weight.double() / unit)[:, order]
    rounded = torch.empty_like(weight)
    for j, column in enumerate(order.tolist()):
        own = slice(column, column + 1)
        wanted = (compensated[:, j : j + 1] * unit[column]).to(weight.dtype)
        on_grid = to_nearest(wanted, scale[:, own], offset[:, own], bits)
        rounded[:, own] = on_grid
        error = (compensated[:, j : j + 1] - on_grid / unit[column]) / spread[j, j]
        compensated[:, j + 1 :] -= error * spread[j, j + 1 :]

    plain = to_nearest(weight, scale, offset, bits)
    worse = output_error(weight, rounded, moments) > output_error(weight, plain, moments)
    return torch.where(worse[:, None], plain, rounded)


def to_nearest(weight: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Rounds each weight to the nearest value on the grid."""
    return decode(encode(weight, scale, offset, bits), scale, offset)


def output_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """Computes E (W x - Q x)^2 of each output, up to the scale of the moments, [outputs]."""
    error = (weight - rounded).double()
    return ((error @ moments.double()) * error).sum(1)
