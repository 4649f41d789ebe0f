"""Distances between distributions of activations, against sorted samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.calibration_histograms import reach, spread, wasserstein
from fxptq.quant.distribution import Distribution


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_the_mean_difference_of_sorted_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 1, 500), rng.normal(0.3, 2, 500).round(seed)
    expected = np.abs(np.sort(first) - np.sort(second)).mean()
    a, b = (Distribution.of(torch.from_numpy(sample)) for sample in (first, second))
    assert wasserstein(a, b) == pytest.approx(expected, rel=1e-9)
    assert wasserstein(b, a) == pytest.approx(expected, rel=1e-9)


def test_a_distribution_is_at_no_distance_from_itself_seen_twice() -> None:
    sample = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert wasserstein(Distribution.of(sample), Distribution.of(sample.repeat(2))) == pytest.approx(0, abs=1e-12)


def test_spread_and_reach() -> None:
    sample = Distribution.of(torch.tensor([-5.0, 1.0, 1.0, 3.0]))
    assert spread(sample) == pytest.approx(3.0)
    assert reach(sample) == 5.0
