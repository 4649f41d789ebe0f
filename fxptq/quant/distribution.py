"""Distribution: the statistics of a quantizer's values that a search for bounds reads.

A distribution holds sorted support values with the count, the sum and the sum of squares of the elements at each, one
row a range. It is made from a tensor, whose every element becomes a support value, so that it is exact; or from a
streaming Histogram, whose every bin becomes a support value at its mean. The squared error of any grid then costs
2**bits - 1 binary searches, and no pass over the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fxptq.errors import CalibrationError
from fxptq.quant import operators  # noqa: F401  # registers fxptq::grid_errors
from fxptq.quant.grid import levels

_QUERIES = 1 << 21
"""Thresholds looked up at a time; this bounds the memory of a search over many candidates."""


@dataclass(frozen=True)
class Distribution:
    """Statistics of a tensor, per range; float64 on the CPU throughout.

    Attributes:
        values: support, ascending along each row, [ranges, support].
        counts: number of elements at each support value, [ranges, support].
        sums: sum of those elements, [ranges, support].
        squares: sum of their squares, [ranges, support].
        minimum: smallest element, exact, [ranges].
        maximum: largest element, exact, [ranges].
    """

    values: Tensor
    counts: Tensor
    sums: Tensor
    squares: Tensor
    minimum: Tensor
    maximum: Tensor

    @classmethod
    def of(cls, tensor: Tensor, ranges: int = 1, axis: int = 0) -> Distribution:
        """Makes the exact distribution of a tensor.

        Args:
            tensor: any shape, not empty.
            ranges: number of equal contiguous blocks along `axis`, as of a Quantizer; each is a row.
            axis: the axis of the ranges.

        Raises:
            CalibrationError: the tensor is empty, holds a NaN or an infinity, or does not divide into the ranges.
        """
        if tensor.numel() == 0 or not tensor.isfinite().all():
            raise CalibrationError(f"a tensor of shape {tuple(tensor.shape)} is empty or holds NaN or infinite values")
        moved = tensor.detach().movedim(axis, 0) if tensor.dim() else tensor.detach()
        if moved.numel() % ranges or (ranges > 1 and moved.shape[0] % ranges):
            raise CalibrationError(
                f"{ranges} ranges do not divide axis {axis} of a tensor of shape {tuple(tensor.shape)}"
            )
        plain = moved.to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        # numpy sorts several times faster than torch, and float32 faster than float64.
        values = torch.from_numpy(np.sort(plain.reshape(ranges, -1).numpy(), axis=1)).double()
        return cls(values, torch.ones_like(values), values, values.square(), values[:, 0], values[:, -1])

    @property
    def ranges(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    @cached_property
    def total(self) -> Tensor:
        """Number of elements, [ranges]."""
        return self.counts.sum(1)

    @cached_property
    def power(self) -> Tensor:
        """Mean square of the elements, [ranges]."""
        return self.squares.sum(1) / self.total

    @cached_property
    def _center(self) -> Tensor:
        """The origin of the prefix sums, in the middle of the values so that little cancels, [ranges, 1]."""
        return ((self.minimum + self.maximum) / 2)[:, None]

    @cached_property
    def _prefix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count, sum and sum of squares about the centre of the elements before each support value.

        Each of the three tensors is [ranges, support + 1].
        """
        c = self._center
        sums = self.sums - c * self.counts
        squares = self.squares - 2 * c * self.sums + c.square() * self.counts
        count, total, square = (torch.nn.functional.pad(t.cumsum(1), (1, 0)) for t in (self.counts, sums, squares))
        return count, total, square

    def quantile(self, fraction: float) -> Tensor:
        """Finds the smallest support value with at least `fraction` (0..1) of the elements at or below it, [ranges]."""
        rank = (fraction * self.total)[:, None].contiguous()
        index = torch.searchsorted(self._prefix[0][:, 1:].contiguous(), rank).clamp_(max=self.values.shape[1] - 1)
        return self.values.gather(1, index)[:, 0]

    def clipping_error(self, bound: Tensor, side: Literal["below", "above"]) -> Tensor:
        """Computes the squared error of clipping to one bound, a lower limit of the error of any grid with that bound.

        Args:
            bound: candidates, [ranges, candidates].
            side: the side of the clipped elements, `below` or `above` the bound.

        Returns:
            Sums of squares, [ranges, candidates].
        """
        index = torch.searchsorted(self.values, bound.contiguous())
        count, total, square = (prefix.gather(1, index) for prefix in self._prefix)
        if side == "above":
            count, total, square = (p[:, -1:] - t for p, t in zip(self._prefix, (count, total, square), strict=True))
        centred = bound - self._center
        return (square - 2 * centred * total + centred.square() * count).clamp_(min=0.0)

    def squared_error(self, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
        """Computes the squared error of quantization on each of many grids, summed over the elements.

        Let the grid values be v_0 < ... < v_n with a step of s, and t_j the middle of v_(j-1) and v_j. By summation by
        parts, rounding to the nearest value gives
        sum (x - q(x))^2 = sum (x - v_n)^2 + 2 s sum_j (P1(t_j) - t_j P0(t_j)), where P0 and P1 are the count and the
        sum of the elements below t. So each threshold costs one binary search.

        Args:
            lower: lower bounds, [ranges, candidates].
            upper: upper bounds, [ranges, candidates], not below `lower`.
            bits: 2 to 8.

        Returns:
            Sums of squares, [ranges, candidates]; exact, to float64 rounding, for a distribution made from a tensor.
        """
        n = levels(bits)
        per_block = max(1, _QUERIES // (n * self.ranges))
        blocks = zip(*(torch.split(bound.double(), per_block, 1) for bound in (lower, upper)), strict=True)
        center = self._center[:, 0]
        return torch.cat(
            [
                torch.ops.fxptq.grid_errors(self.values, *self._prefix, center, low.contiguous(), high.contiguous(), n)
                for low, high in blocks
            ],
            1,
        )


def signal_to_noise(power: float, error: float) -> float:
    """Computes the signal-to-quantization-noise ratio in dB; infinite for no error, 0 for no signal."""
    if error <= 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power > 0.0 else 0.0
