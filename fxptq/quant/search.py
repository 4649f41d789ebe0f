"""Searches for bounds on a Distribution: pure functions, one for each method, vectorised over ranges.

A search proposes clipping ranges; the scheme of the quantizer (`Space`) gives the nearest possible ranges and the error
of each. Candidates run from the widest inwards. Every search returns the candidate of least squared error, and
the first of equal ones, as a loop over candidates with a strict `<` does. `lowest` is a lower end known from the
network (0 after a softmax or a ReLU); it replaces the smallest observed value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxptq.quant.distribution import Distribution

_SLACK = 1.0 + 1e-9
"""Relative room for float64 rounding when a lower limit of its error rules a candidate out."""


class Space(Protocol):
    """The clipping ranges of a quantizer (fxptq.quant.quantizer.Quantizer), [ranges, candidates] each."""

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ranges that the scheme can have, nearest to the proposed ranges."""
        ...

    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        """Returns the squared error of quantizing in each range; clipping alone never costs more."""
        ...


@dataclass(frozen=True)
class Bounds:
    """The result of a search.

    Attributes:
        lower: [ranges].
        upper: [ranges], not below `lower`.
        error: mean squared error of quantization between the bounds, [ranges].
    """

    lower: Tensor
    upper: Tensor
    error: Tensor


def minmax(values: Distribution, space: Space, lowest: float | None = None) -> Bounds:
    """Takes the whole range of the values; no value is clipped."""
    return _best(values, space, _start(values, lowest), values.maximum[:, None])


def percentile(
    values: Distribution, space: Space, percent: float, *, one_sided: bool = False, lowest: float | None = None
) -> Bounds:
    """Clips a fixed fraction of the values, whatever their size (Li et al., "Fully quantized network", CVPR 2019).

    Args:
        values: the values that the quantizer sees.
        space: the quantizer whose bounds are searched.
        percent: the upper bound is this percentile, the lower one the (100 - percent)th; 50 to 100.
        one_sided: whether the lower end stays at the smallest value.
        lowest: known lower end, used with `one_sided`.
    """
    lower = _start(values, lowest) if one_sided else values.quantile(1.0 - percent / 100.0)[:, None]
    upper = values.quantile(percent / 100.0)[:, None]
    return _best(values, space, lower, torch.maximum(upper, lower))


def dobi_two_sided(values: Distribution, space: Space, candidates: int = 100) -> Bounds:
    """Searches by DOBI for bell-shaped values: both bounds move inwards together (2DQuant, arXiv 2406.06649).

    Candidate i of K is [min + i d, max - i d] with d = (max - min) / 2K, i = 0 .. K-1.
    """
    low, high = values.minimum[:, None], values.maximum[:, None]
    move = torch.arange(candidates, dtype=torch.float64) * ((high - low) / (2 * candidates))
    return _best(values, space, low + move, high - move)


def dobi_one_sided(values: Distribution, space: Space, candidates: int = 100, lowest: float | None = None) -> Bounds:
    """Searches by DOBI for skewed values: the upper bound moves inwards, the lower stays (2DQuant, arXiv 2406.06649).

    Candidate i of K is [min, max - i (max - min) / K], i = 0 .. K-1, with `lowest` for min where it is known.
    """
    low, high = _start(values, lowest), values.maximum[:, None]
    move = torch.arange(candidates, dtype=torch.float64) * ((high - low) / candidates)
    return _best(values, space, low.expand_as(move), high - move)


def symmetric(values: Distribution, space: Space, candidates: int = 100) -> Bounds:
    """Searches ranges about zero: candidate i of K is [-m, m] times 1 - 0.9 i / K, m being the largest magnitude."""
    largest = torch.maximum(values.minimum.abs(), values.maximum.abs())[:, None]
    ends = largest * (1 - 0.9 * torch.arange(candidates, dtype=torch.float64) / candidates)
    return _best(values, space, -ends, ends)


def dobi2d(values: Distribution, space: Space, candidates: int = 100, lowest: float | None = None) -> Bounds:
    """Searches over both bounds: all [min + i d, max - j d] with d = (max - min) / K and i + j < K.

    Candidates are ordered by i, then j. A candidate is skipped only if its clipping alone costs more than the whole
    error of another candidate, so the result equals the result of the full search.
    """
    low, high = _start(values, lowest), values.maximum[:, None]
    steps = torch.arange(candidates)
    move = steps.double() * ((high - low) / candidates)
    lowers, uppers = low + move, high - move
    i, j = (index.flatten() for index in torch.meshgrid(steps, steps, indexing="ij"))
    i, j = i[i + j < candidates], j[i + j < candidates]

    stride = math.isqrt(candidates) // 2 or 1
    coarse = (i % stride == 0) & (j % stride == 0)
    reachable = _error(values, space, lowers[:, i[coarse]], uppers[:, j[coarse]])[2].amin(1, keepdim=True)
    pair_lowers, pair_uppers = space.admissible(lowers[:, i], uppers[:, j])
    if torch.equal(pair_lowers, lowers[:, i]) and torch.equal(pair_uppers, uppers[:, j]):
        # Every candidate is admissible: K lookups a side serve all K squared pairs.
        clipping = values.clipping_error(lowers, "below")[:, i] + values.clipping_error(uppers, "above")[:, j]
    else:
        clipping = values.clipping_error(pair_lowers, "below") + values.clipping_error(pair_uppers, "above")
    worth = (clipping <= reachable * _SLACK) | (i + j == 0)

    # One row a range: first the candidates that can win, in their order, then (in shorter rows) others, which cannot.
    order = worth.logical_not().byte().argsort(stable=True, dim=1)[:, : int(worth.sum(1).max())]
    return _best(values, space, lowers.gather(1, i[order]), uppers.gather(1, j[order]))


def _start(values: Distribution, lowest: float | None) -> Tensor:
    """The lower end of the widest candidate, [ranges, 1], not above the largest value, so that no range is negative."""
    if lowest is None:
        return values.minimum[:, None]
    # A value below the floor is no error: another graph of the network may have made it.
    return torch.minimum(torch.full_like(values.minimum, lowest), values.minimum)[:, None]


def _best(values: Distribution, space: Space, lower: Tensor, upper: Tensor) -> Bounds:
    """Picks the first candidate ([ranges, candidates]) of least squared error for each range."""
    lower, upper, error = _error(values, space, lower, upper)
    best = error.argmin(1, keepdim=True)
    low, high, least = (t.gather(1, best)[:, 0] for t in (lower, upper, error))
    return Bounds(low, high, least / values.total)


def _error(values: Distribution, space: Space, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The admissible ranges nearest to the candidates, and the squared error of each."""
    lower, upper = space.admissible(lower, upper)
    return lower, upper, space.squared_error(values, lower, upper)
