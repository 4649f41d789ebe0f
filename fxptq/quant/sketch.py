"""Sketch: a coarse histogram of the values that a quantizer sees, small enough to keep and to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxptq.quant.distribution import Distribution

BINS = 48


@dataclass(frozen=True)
class Sketch:
    """How many values lie in each of equal intervals.

    Attributes:
        minimum: smallest value, the left end of the first interval.
        maximum: largest value, the right end of the last interval.
        counts: number of values in each interval; a single interval where all values are equal.
    """

    minimum: float
    maximum: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Distribution, bins: int = BINS) -> Sketch:
        """Makes the sketch of all ranges of a distribution together.

        Args:
            values: the distribution; each support value counts with all its elements.
            bins: number of intervals.
        """
        low, high = float(values.minimum.min()), float(values.maximum.max())
        if not low < high:
            return cls(low, high, (int(values.counts.sum()),))
        support, counts = values.values.numpy().ravel(), values.counts.numpy().ravel()
        found, _ = np.histogram(support, bins, (low, high), weights=counts)
        return cls(low, high, tuple(int(count) for count in np.round(found)))
