"""Sketches: counts of a plain histogram of all values."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fxptq.quant.distribution import Distribution
from fxptq.quant.observer import Histogram
from fxptq.quant.sketch import Sketch


@given(arrays(np.float32, (4, 6), elements=st.floats(-8, 8, width=32)), st.sampled_from([1, 2, 4]))
def test_counts_are_those_of_all_values(values: np.ndarray, ranges: int) -> None:
    sketch = Sketch.of(Distribution.of(torch.from_numpy(values), ranges), bins=5)
    assert (sketch.minimum, sketch.maximum) == (values.min(), values.max())
    assert sum(sketch.counts) == values.size
    if values.min() < values.max():
        edges = np.linspace(values.min().astype(float), values.max().astype(float), 6)
        inside = [np.sum((values >= low) & (values < high)) for low, high in pairwise(edges)]
        # A value on an edge may fall to either side by rounding.
        on_edges = sum(int(np.sum(np.isclose(values, edge, atol=1e-6))) for edge in edges)
        assert sum(abs(int(a) - b) for a, b in zip(inside, sketch.counts, strict=True)) <= 2 * on_edges
    else:
        assert sketch.counts == (values.size,)


def test_a_streamed_histogram_has_the_sketch_of_its_values() -> None:
    values = torch.linspace(-1, 3, 4001)
    histogram = Histogram()
    for part in values.split(500):
        histogram.update(part)
    assert Sketch.of(histogram.distribution(), bins=4).counts == pytest.approx((1000, 1000, 1000, 1001), abs=2)
