"""Histogram: statistics of all the values that pass a quantizer, in one streaming pass and constant memory.

Bins are 2**k wide and aligned at multiples of 2**k, with the smallest k that fits the range seen so far into the
available bins; when the range grows, neighbours merge. So the bins depend on the range alone, not on the order of the
data: merged histograms equal the histogram of all the data, the counts exactly, the sums to float64 rounding.
Promises: minimum, maximum, counts and the bin of each value are exact; sums and sums of squares add the values
themselves, not bin centres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxptq.errors import CalibrationError, InputError
from fxptq.quant import operators
from fxptq.quant.distribution import Distribution

_LEAST_EXPONENT = -200
"""Narrowest bins are 2**_LEAST_EXPONENT wide, below any float32."""


class Histogram:
    """Counts, sums and sums of squares of values in dyadic bins.

    Args:
        bins: number of available bins; the range of the values spans between half of them and all.

    Attributes:
        minimum: smallest value seen, exact; `inf` before the first.
        maximum: largest value seen, exact; `-inf` before the first.
        count: number of values seen.

    Raises:
        InputError: there are fewer than two bins.
    """

    def __init__(self, bins: int = 8192) -> None:
        if bins < 2:
            raise InputError(f"a histogram has two bins or more, not {bins}")
        self.minimum, self.maximum, self.count = math.inf, -math.inf, 0
        self._exponent = _LEAST_EXPONENT
        self._first = 0  # the bin of table column 0 starts at _first * 2**_exponent
        self._table = torch.zeros(3, bins, dtype=torch.float64)  # count, sum, sum of squares

    @property
    def bins(self) -> int:
        """Number of available bins."""
        return self._table.shape[1]

    @property
    def bin_width(self) -> float:
        """Width of a bin: a power of two."""
        return math.ldexp(1.0, self._exponent)

    def update(self, x: Tensor) -> None:
        """Adds all values of a tensor, of any shape, floating-point type and device.

        Raises:
            CalibrationError: a value is NaN or infinite; the histogram then stays unchanged.
        """
        if x.numel() == 0:
            return
        flat = _flat(x.detach())
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"a tensor of shape {tuple(x.shape)} holds NaN or infinite values, which the network makes of a "
                "calibration input; calibrate on other images, or look for the layer before it that makes them"
            )
        self._cover(low, high)
        binned = operators.histogram if flat.dtype == torch.float64 else torch.ops.fxptq.histogram
        self._table += binned(flat, math.ldexp(1.0, -self._exponent), float(self._first), self.bins).cpu()
        self.count += x.numel()

    def merge(self, other: Histogram) -> None:
        """Adds all values that `other` has seen; `other` stays unchanged.

        Raises:
            InputError: the numbers of bins differ.
        """
        if other.bins != self.bins:
            raise InputError(f"histograms of {self.bins} and {other.bins} bins cannot be merged")
        if other.count == 0:
            return
        self._cover(other.minimum, other.maximum)
        self._table += _move(other._table, other._first, self._first, self._exponent - other._exponent)
        self.count += other.count

    @property
    def table(self) -> Tensor:
        """Count, sum and sum of squares of the values in each bin, [3, bins]; float64, in place."""
        return self._table

    def widen(self, minimum: float, maximum: float, count: int) -> None:
        """Makes the bins those of more values, whose table is then added to `table`.

        Args:
            minimum: smallest of all values, those seen included; `maximum` the largest.
            maximum: see `minimum`.
            count: number of all values, 0 for none.
        """
        if count:
            self._cover(minimum, maximum)
        self.count = count

    def distribution(self) -> Distribution:
        """Makes the distribution of the values seen; each bin that holds values gives one support value, their mean.

        Raises:
            CalibrationError: no values were seen.
        """
        if self.count == 0:
            raise CalibrationError("no values were observed")
        counts, sums, squares = self._table[:, self._table[0] > 0][:, None]
        ends = (torch.tensor([v], dtype=torch.float64) for v in (self.minimum, self.maximum))
        return Distribution(sums / counts, counts, sums, squares, *ends)

    def _cover(self, low: float, high: float) -> None:
        """Widens the range to [low, high], and merges and moves bins to fit it."""
        low, high = min(low, self.minimum), max(high, self.maximum)
        exponent = _exponent_for(low, high, self.bins)
        first = _bin_of(low, exponent)
        if self.count and (exponent, first) != (self._exponent, self._first):
            self._table = _move(self._table, self._first, first, exponent - self._exponent)
        self.minimum, self.maximum, self._exponent, self._first = low, high, exponent, first


def _flat(x: Tensor) -> Tensor:
    """The values in the order of memory where they lie there without gaps; float32, or float64."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    flat = x.permute(order).reshape(-1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent_for(low: float, high: float, bins: int) -> int:
    """Finds the smallest k that fits [low, high] into bins of 2**k and numbers the bins exactly in float64."""
    starts = ((max(abs(low), abs(high)), 50), ((high - low) / bins, 2))
    k = max([_LEAST_EXPONENT, *(math.frexp(size)[1] - spare for size, spare in starts if size > 0)])
    while _bin_of(high, k) - _bin_of(low, k) >= bins:
        k += 1
    return k


def _move(table: Tensor, first: int, new_first: int, coarser: int) -> Tensor:
    """Moves the table to bins that are 2**coarser times as wide; its first column becomes bin `new_first` of these."""
    used = table[0].nonzero()[:, 0]
    target = ((used + first) >> coarser) - new_first
    return torch.zeros_like(table).index_add_(1, target, table[:, used])
