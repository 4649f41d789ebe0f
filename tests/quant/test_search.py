"""Searches against the loop they stand for: every candidate tried on the raw values in float64, strict <."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxptq.quant import search as searches
from fxptq.quant.distribution import Distribution
from fxptq.quant.observer import Histogram
from fxptq.quant.schemes.uniform import Uniform


def uniform(search: Callable[..., searches.Bounds]) -> Callable[..., searches.Bounds]:
    """A search for the bounds of uniform quantizers, called with their bits."""

    def run(values: Distribution, bits: int, *args: Any, **kwargs: Any) -> searches.Bounds:
        return search(values, Uniform(bits), *args, **kwargs)

    return run


minmax, percentile = uniform(searches.minmax), uniform(searches.percentile)
dobi2d, dobi_one_sided = uniform(searches.dobi2d), uniform(searches.dobi_one_sided)
dobi_two_sided = uniform(searches.dobi_two_sided)

Candidates = Iterable[tuple[float, float]]


def integers(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-6, 7, (size,), generator=generator).float()


SHAPES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": lambda n, g: torch.randn(n, generator=g) * 0.3 - 0.1,
    "laplace": lambda n, g: torch.rand(n, generator=g).log() * torch.randn(n, generator=g).sign(),
    "softmax": lambda n, g: (2 * torch.randn(n // 16, 16, generator=g)).softmax(1).flatten(),
    "gelu": lambda n, g: torch.nn.functional.gelu(2 * torch.randn(n, generator=g)),
    "outliers": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.01, 20.0, 1.0) * torch.randn(n, generator=g),
    "integers": integers,
}


def two_sided(x: Tensor, k: int) -> Candidates:
    low, high = float(x.min()), float(x.max())
    d = (high - low) / (2 * k)
    return [(low + i * d, high - i * d) for i in range(k)]


def one_sided(x: Tensor, k: int) -> Candidates:
    low, high = float(x.min()), float(x.max())
    return [(low, high - i * ((high - low) / k)) for i in range(k)]


def plane(x: Tensor, k: int) -> Candidates:
    low, high = float(x.min()), float(x.max())
    d = (high - low) / k
    return [(low + i * d, high - j * d) for i in range(k) for j in range(k - i)]


def loop(x: Tensor, bits: int, candidates: Candidates) -> tuple[float, float, float]:
    values, best = x.double().numpy(), (0.0, 0.0, np.inf)
    for low, high in candidates:
        step = (high - low) / (2**bits - 1)
        q = step * np.round((np.clip(values, low, high) - low) / step) + low if step > 0 else np.clip(values, low, high)
        error = float(((values - q) ** 2).sum())
        if error < best[2]:
            best = (low, high, error)
    return best[0], best[1], best[2] / values.size


CASES = [(shape, seed) for seed in range(9) for shape in SHAPES][:50]


@pytest.mark.parametrize(("shape", "seed"), CASES, ids=[f"{shape}-{seed}" for shape, seed in CASES])
def test_dobi_is_the_candidate_loop(shape: str, seed: int) -> None:
    x = SHAPES[shape](1600, torch.Generator().manual_seed(seed))
    bits = (2, 3, 4, 8)[seed % 4]
    d = Distribution.of(x)
    for found, candidates in (
        (dobi_two_sided(d, bits), two_sided(x, 100)),
        (dobi_one_sided(d, bits), one_sided(x, 100)),
    ):
        lower, upper, error = loop(x, bits, candidates)
        assert (float(found.lower), float(found.upper)) == (lower, upper)
        assert float(found.error) == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_dobi2d_is_the_full_search_over_both_bounds(shape: str, bits: int) -> None:
    x = SHAPES[shape](480, torch.Generator().manual_seed(bits))
    found = dobi2d(Distribution.of(x), bits, candidates=24)
    lower, upper, error = loop(x, bits, plane(x, 24))
    assert (float(found.lower), float(found.upper)) == (lower, upper)
    assert float(found.error) == pytest.approx(error, rel=1e-9)


def test_the_first_of_equal_candidates_wins() -> None:
    """127 values at +-1.5 and nine at 0, two bits, 64 candidates: the first two have exactly the error 2.25."""
    x = torch.tensor([-1.5] * 64 + [1.5] * 63 + [0.0] * 9)
    candidates = list(two_sided(x, 64))
    errors = Distribution.of(x).squared_error(*torch.tensor(candidates[:3], dtype=torch.float64).T[:, None], 2)[0]
    assert errors[0] == errors[1] == 2.25 < errors[2]
    found = dobi_two_sided(Distribution.of(x), 2, candidates=64)
    assert (float(found.lower), float(found.upper)) == loop(x, 2, candidates)[:2] == (-1.5, 1.5)


@pytest.mark.parametrize("search", [minmax, dobi_two_sided, dobi_one_sided, dobi2d])
def test_constant_values_give_bounds_of_zero_width(search: Callable[[Distribution, int], object]) -> None:
    found = search(Distribution.of(torch.full((50,), 0.3)), 4)
    assert found.lower == found.upper == pytest.approx(0.3)  # type: ignore[attr-defined]
    assert found.error == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("ranges", [3, 12])
def test_groups_are_searched_each_on_its_own(ranges: int) -> None:
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 12)[:, None]
    together = Distribution.of(weight, ranges)
    alone = [Distribution.of(block) for block in weight.chunk(ranges)]
    for search in (minmax, dobi_two_sided, dobi_one_sided, dobi2d):
        found = search(together, 3)
        each = [search(d, 3) for d in alone]
        for name in ("lower", "upper", "error"):
            assert torch.equal(getattr(found, name), torch.cat([getattr(one, name) for one in each])), name


def test_a_known_lowest_value_is_where_one_sided_searches_start() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.05
    d = Distribution.of(x)
    assert float(dobi_one_sided(d, 4, lowest=0.0).lower) == 0.0
    assert float(minmax(d, 4, lowest=0.0).lower) == 0.0
    assert float(percentile(d, 4, 99.0, one_sided=True, lowest=0.0).lower) == 0.0
    assert float(dobi_one_sided(d, 4).lower) == float(x.min())
    dead = Distribution.of(torch.zeros(10))
    assert float(dobi_one_sided(dead, 4, lowest=0.0).upper) == 0.0


def test_dobi2d_clips_the_flat_lower_tail_of_gelu() -> None:
    x = torch.nn.functional.gelu(2 * torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    d = Distribution.of(x)
    free, fixed = dobi2d(d, 4), dobi_one_sided(d, 4)
    assert float(free.error) < 0.8 * float(fixed.error)
    assert -0.12 < float(free.lower) < -0.03


def test_minmax_clips_nothing_and_percentile_a_fraction() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    d = Distribution.of(x)
    whole, most = minmax(d, 8), percentile(d, 8, 99.0)
    assert (float(whole.lower), float(whole.upper)) == (float(x.min()), float(x.max()))
    assert int((x > most.upper.float()).sum()) == 100
    assert int((x < most.lower.float()).sum()) in (99, 100)


def test_bounds_from_a_stream_are_as_good_as_exact_ones() -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
    histogram = Histogram()
    for part in x.chunk(5):
        histogram.update(part)
    exact = Distribution.of(x)
    for bits in (2, 4):
        found = dobi2d(histogram.distribution(), bits)
        error = float(exact.squared_error(found.lower[:, None], found.upper[:, None], bits)) / x.numel()
        assert error == pytest.approx(float(dobi2d(exact, bits).error), rel=1e-3)
