"""Rounding a weight matrix so that what it multiplies comes out right, not each weight on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fxptq.quant.grid import decode, encode


def gptq(weight: Tensor, moments: Tensor, scale: Tensor, offset: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Values on the grid that nearly minimise E |W x - Q x|^2 (GPTQ, Frantar et al., arXiv 2210.17323).

    Columns are rounded to nearest one after the other, those of the strongest inputs first; the error of each is made
    up for by the columns still to come, in the way that is best for them if they could stay real numbers.

    Args:
        weight: W, [outputs, inputs].
        moments: E x x^T of the inputs, or any positive multiple of it, [inputs, inputs].
        scale: distance of neighbouring values of each row's grid, > 0, [outputs, 1] or [1, 1].
        offset: value of code 0 of each row's grid, of that shape.
        bits: 2 to 8.
        damping: added to the diagonal of the moments, in units of its mean.

    Returns:
        Q, [outputs, inputs], of W's type: for the given moments never worse than rounding to nearest.
    """
    diagonal = moments.diagonal().double()
    order = diagonal.argsort(descending=True)
    hessian = moments.double()[order][:, order]
    hessian = hessian + torch.eye(len(order), dtype=torch.float64) * (damping * diagonal.mean()).clamp(min=1e-30)
    # The rows of this factor say how an error in one column is best spread over those after it.
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)

    left = weight[:, order].double()
    rounded = torch.empty_like(weight)
    for j, column in enumerate(order.tolist()):
        on_grid = to_nearest(left[:, j : j + 1].to(weight.dtype), scale, offset, bits)
        rounded[:, column] = on_grid[:, 0]
        error = (left[:, j : j + 1] - on_grid) / spread[j, j]
        left[:, j + 1 :] -= error * spread[j, j + 1 :]

    plain = to_nearest(weight, scale, offset, bits)
    worse = output_error(weight, rounded, moments) > output_error(weight, plain, moments)
    return torch.where(worse[:, None], plain, rounded)


def to_nearest(weight: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """The nearest values on the grid."""
    return decode(encode(weight, scale, offset, bits), scale, offset)


def output_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """E (W x - Q x)^2 of each output, up to the scale of the moments, [outputs]."""
    off = (weight - rounded).double()
    return ((off @ moments.double()) * off).sum(1)
