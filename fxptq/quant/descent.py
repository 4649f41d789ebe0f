"""Improves rounded weights by descent: codes on a grid, and the grid under codes, each the best while the other stays.

The error is that of a layer's output, E |W x - Q x|^2 = sum of d M d^T over the rows d of W - Q, with the second
moments M of the inputs. Neither step can raise it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxptq.quant.grid import levels

Floats = npt.NDArray[np.float64]

_SINGULAR = 1e-9
"""Part of the product of its diagonal below which the determinant of a 2x2 system counts as zero."""


def best_codes(
    weight: Tensor, moments: Tensor, scale: Tensor, offset: Tensor, codes: Tensor, bits: int, sweeps: int = 1
) -> Tensor:
    """Gives one code after the other the value that is best while all other codes of its row stay.

    Args:
        weight: W, [groups, outputs, inputs], float64.
        moments: M, [groups, inputs, inputs], float64.
        scale: distance of neighbouring values of each weight's grid, > 0, of the shape of `weight`.
        offset: value of code 0 of each weight's grid, of the shape of `weight`.
        codes: the codes to begin with, of the shape of `weight`.
        bits: 2 to 8.
        sweeps: largest number of times that each code is looked at.

    Returns:
        Codes 0 .. 2**bits - 1 of the shape of `weight`, float64.
    """
    found = codes.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    slope = (offset + scale * found - weight) @ moments  # half of the derivative in each weight
    curvature = moments.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float64).tiny)
    most = levels(bits)
    _descend(found.numpy(), slope.numpy(), curvature.numpy(), scale.numpy(), moments.numpy(), most, sweeps)
    return found


def _descend(
    codes: Floats, slope: Floats, curvature: Floats, scale: Floats, moments: Floats, most: int, sweeps: int
) -> None:
    """Improves codes in place; columns are small and many, and a call of numpy takes a fraction of one of torch."""
    for _ in range(sweeps):
        before = codes.copy()
        for j in range(codes.shape[2]):
            unit = scale[..., j]
            wanted = codes[..., j] - slope[..., j] / (curvature[:, j, None] * unit)
            best = np.clip(np.rint(wanted), 0, most)
            slope += ((best - codes[..., j]) * unit)[..., None] * moments[:, j, None]
            codes[..., j] = best
        if np.array_equal(codes, before):
            break


def best_grids(
    weight: Tensor,
    moments: Tensor,
    scale: Tensor,
    offset: Tensor,
    codes: Tensor,
    ranges: int,
    center: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The grids `offset + scale * (gain * code + shift)` of least error for given codes: least squares for each range.

    Args:
        weight: W, [groups, outputs, inputs], float64.
        moments: M, [groups, inputs, inputs], float64.
        scale: distance of neighbouring values of each weight's grid, > 0, of the shape of `weight`.
        offset: value of code 0 of each weight's grid, of the shape of `weight`.
        codes: of the shape of `weight`.
        ranges: number of equal blocks of rows, over all groups, that have one gain and one shift each.
        center: a code whose value stays, so that the shift is center * (1 - gain); None if both are free.

    Returns:
        The gain, above 0, and the shift of each range, [ranges] each; 1 and 0 where codes determine no grid.
    """
    of_code, target = scale * codes.double(), weight - offset
    if center is None:
        left, right = of_code, scale
    else:
        left, right = of_code - center * scale, torch.zeros_like(scale)
        target = target - center * scale

    def product(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ moments) * b).sum(2).reshape(ranges, -1).sum(1)

    ll, lr, rr = product(left, left), product(left, right), product(right, right)
    lt, rt = product(left, target), product(right, target)
    if center is None:
        determinant, top = ll * rr - lr.square(), lt * rr - rt * lr
        gain = top / determinant
        shift = (rt - gain * lr) / rr
        sound = determinant > _SINGULAR * ll * rr
    else:
        gain = lt / ll
        shift = center * (1 - gain)
        sound = ll > 0
    sound &= gain.isfinite() & shift.isfinite() & (gain > 0)
    return torch.where(sound, gain, 1.0), torch.where(sound, shift, 0.0)
