"""Bounds from a Distribution: pure functions, one a method, vectorised over groups.

A search proposes clipping ranges; the scheme of the quantizer (`Space`) says which ranges it can have and how large the
error of each is. Every search returns the candidate of least squared error, the first of equals, where candidates run
from the widest inwards: a loop over candidates with a strict `<` finds the same. `lowest` is a lower end known from the
network (0 after a softmax or a ReLU); it stands in for the smallest value observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxptq.quant.distribution import Distribution

_SLACK = 1.0 + 1e-9
"""Relative room for float64 rounding when a candidate is ruled out by a bound on its error."""


class Space(Protocol):
    """The clipping ranges of a quantizer (fxptq.quant.quantizer.Quantizer), [groups, candidates] each."""

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The ranges that the scheme can have, nearest to those proposed."""
        ...

    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        """Squared error of quantizing in each; not less than what clipping alone costs."""
        ...


@dataclass(frozen=True)
class Bounds:
    """Bounds found by a search.

    Attributes:
        lower: [groups].
        upper: [groups], not below `lower`.
        error: mean squared error of quantizing between them, [groups].
    """

    lower: Tensor
    upper: Tensor
    error: Tensor


def minmax(values: Distribution, space: Space, lowest: float | None = None) -> Bounds:
    """The whole range of the values; nothing is clipped."""
    return _best(values, space, _start(values, lowest), values.maximum[:, None])


def percentile(
    values: Distribution, space: Space, percent: float, *, one_sided: bool = False, lowest: float | None = None
) -> Bounds:
    """Clip the same fraction of the values whatever their size (Li et al., "Fully quantized network", CVPR 2019).

    Args:
        values: what the quantizer sees.
        space: of the quantizer whose bounds are searched.
        percent: the upper bound is this percentile, the lower one the (100 - percent)th; 50 to 100.
        one_sided: leave the lower end where it is.
        lowest: known lower end, used with `one_sided`.
    """
    lower = _start(values, lowest) if one_sided else values.quantile(1.0 - percent / 100.0)[:, None]
    upper = values.quantile(percent / 100.0)[:, None]
    return _best(values, space, lower, torch.maximum(upper, lower))


def dobi_two_sided(values: Distribution, space: Space, candidates: int = 100) -> Bounds:
    """DOBI for bell-shaped values: both bounds move inwards together (2DQuant, arXiv 2406.06649).

    Candidate i of K is [min + i d, max - i d] with d = (max - min) / 2K, i = 0 .. K-1.
    """
    low, high = values.minimum[:, None], values.maximum[:, None]
    move = torch.arange(candidates, dtype=torch.float64) * ((high - low) / (2 * candidates))
    return _best(values, space, low + move, high - move)


def dobi_one_sided(values: Distribution, space: Space, candidates: int = 100, lowest: float | None = None) -> Bounds:
    """DOBI for skewed values: the lower bound stays, the upper moves inwards (2DQuant, arXiv 2406.06649).

    Candidate i of K is [min, max - i (max - min) / K], i = 0 .. K-1, with `lowest` for min where it is known.
    """
    low, high = _start(values, lowest), values.maximum[:, None]
    move = torch.arange(candidates, dtype=torch.float64) * ((high - low) / candidates)
    return _best(values, space, low.expand_as(move), high - move)


def dobi2d(values: Distribution, space: Space, candidates: int = 100, lowest: float | None = None) -> Bounds:
    """Both bounds free: the best of all [min + i d, max - j d] with d = (max - min) / K and i + j < K.

    Candidates are ordered by i, then j. Those whose clipping alone costs more than some grid's whole error are skipped:
    no others, so the result is that of the full search.
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
    low_of_pair, high_of_pair = space.admissible(lowers[:, i], uppers[:, j])
    if torch.equal(low_of_pair, lowers[:, i]) and torch.equal(high_of_pair, uppers[:, j]):
        # Every candidate is admissible: K lookups a side serve all K squared pairs.
        clipping = values.clipping_error(lowers, "below")[:, i] + values.clipping_error(uppers, "above")[:, j]
    else:
        clipping = values.clipping_error(low_of_pair, "below") + values.clipping_error(high_of_pair, "above")
    worth = (clipping <= reachable * _SLACK) | (i + j == 0)

    # One row a group: the candidates worth a look in their order, then (in shorter rows) others, which cannot win.
    order = worth.logical_not().byte().argsort(stable=True, dim=1)[:, : int(worth.sum(1).max())]
    return _best(values, space, lowers.gather(1, i[order]), uppers.gather(1, j[order]))


def _start(values: Distribution, lowest: float | None) -> Tensor:
    """The lower end candidates start from, [groups, 1]: not above the largest value, so that no range is negative."""
    start = values.minimum if lowest is None else torch.full_like(values.minimum, lowest)
    return torch.minimum(start, values.maximum)[:, None]


def _best(values: Distribution, space: Space, lower: Tensor, upper: Tensor) -> Bounds:
    """The first candidate ([groups, candidates]) of least squared error, of each group."""
    lower, upper, error = _error(values, space, lower, upper)
    best = error.argmin(1, keepdim=True)
    low, high, least = (t.gather(1, best)[:, 0] for t in (lower, upper, error))
    return Bounds(low, high, least / values.total)


def _error(values: Distribution, space: Space, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The admissible ranges nearest to the candidates, and the squared error of each."""
    lower, upper = space.admissible(lower, upper)
    return lower, upper, space.squared_error(values, lower, upper)
