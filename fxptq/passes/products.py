"""Quantizers for the two kinds of product of an attention, chosen by the error of the product.

A query and a key share a factor of each channel along the summed axis, s and 1 / s; the key's center is its mean, which
a softmax does not see. A value has ranges of its own along the axes that the product does not sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxptq.passes.samples import evenly
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.schemes.affine import Affine, short
from fxptq.quant.schemes.shares import Shares
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.search import dobi2d

_BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Powers of the query's ranges in the factor that query and key share: 0 makes the key's ranges equal."""

_CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

_WIDENINGS = (1.0, 1.1, 1.25, 1.5)
"""Factors of the widths that have the least squared error of each value. A sum over many positions averages the errors
of rounding, but not those of clipping, which all have the same sign; so wider ranges are often better for the sum."""

_VALUES = 60_000
"""Values that a search for bounds reads, spread over the ranges; each range gets at least `_LEAST`."""

_LEAST = 2048


class ProductSearch:
    """The choice of quantizers for the two kinds of product.

    Args:
        k: number of candidates for each bound.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    @torch.no_grad()
    def scores(
        self, own: Sequence[Quantizer], query: Tensor, key: Tensor, fixed: Sequence[frozenset[int]], stride: int = 1
    ) -> tuple[Quantizer, Quantizer]:
        """Quantizers of the query [windows, heads, N, d] and the key [windows, heads, d, M].

        Bounds are searched on all windows, and products are computed for every `stride`-th.
        """
        heads = frozenset((-3,))
        if -1 not in fixed[0] or -2 not in fixed[1]:
            # The sum runs over positions, so the channels are the outer axes.
            outer = fixed[0] & {-3, -2}, fixed[1] & {-3, -1}
            return self._ranged(own[0], query, outer[0]), self._ranged(own[1], key, outer[1])
        some, others = query[::stride], key[::stride]
        reference = _about_row(some @ others)
        mean = key.mean((0, 3), keepdim=True) if -3 in fixed[1] else key.mean((0, 1, 3), keepdim=True)
        pairs = [self._pair(own, query, key, mean, None, heads & fixed[0])]
        ranges = [_spread(query, 2, fixed[0]), _spread(key, 3, fixed[1]).transpose(-2, -1)]  # [1, H or 1, 1, d]
        for power in _BALANCES:
            factor = ranges[0] ** power / ranges[1] ** (1 - power)
            factor = factor / factor.log().mean(-1, keepdim=True).exp()
            pairs.append(self._pair(own, query, key, mean, factor, heads & fixed[0]))

        def error(pair: tuple[Affine, Affine]) -> float:
            return float((_about_row(pair[0](some) @ pair[1](others)) - reference).square().mean())

        return min(pairs, key=error)

    def _pair(
        self,
        own: Sequence[Quantizer],
        query: Tensor,
        key: Tensor,
        mean: Tensor,
        factor: Tensor | None,
        heads: frozenset[int],
    ) -> tuple[Affine, Affine]:
        """Quantizers with a factor [1, H or 1, 1, d] for the query and its inverse for the key.

        The query's grid is symmetric, so that the offset of the key's codes gives the same number for all keys.
        """
        factor = torch.ones(1, 1, 1, 1, dtype=torch.float32) if factor is None else factor
        largest = self._symmetric(own[0].bits, query / factor, heads)
        first = _affine(own[0], short(factor[0] * largest), torch.zeros((), dtype=torch.float32), -1.0, 1.0)
        across = (first.factor / largest)[None].transpose(-2, -1)  # of the rounded factor, so that the sum stays one
        centred = (key - mean) * across
        lower, width = self._bounds(own[1].bits, centred, heads)
        second = _affine(own[1], width / across[0], mean[0] + lower / across[0], 0.0, 1.0)
        return first, second

    @torch.no_grad()
    def mix(
        self,
        own: Sequence[Quantizer],
        attention: Tensor,
        value: Tensor,
        fixed: Sequence[frozenset[int]],
        values: Tensor | None = None,
    ) -> tuple[Quantizer, Quantizer]:
        """Quantizers of the attention weights [windows, heads, N, M] and the value [windows, heads, M, d].

        Bounds are searched on `values`, the value in more windows, if they are given.
        """
        narrow = self._ranged(own[1], value if values is None else values, fixed[1] & {-3, -1})
        reference = attention @ value
        seconds = [_wider(narrow, widening) for widening in _WIDENINGS]
        second = min(seconds, key=lambda wider: float((attention @ wider(value) - reference).square().mean()))
        coded = second(value)
        firsts = []
        for ceiling in _CEILINGS:
            first = Shares(own[0].bits)
            first.set_bounds(0.0, ceiling)
            first.mode = "on"
            firsts.append(first)
        errors = [float((first(attention) @ coded - reference).square().mean()) for first in firsts]
        return firsts[errors.index(min(errors))], second

    def _ranged(self, own: Quantizer, x: Tensor, axes: frozenset[int]) -> Affine:
        """A quantizer with bounds of its own along some axes."""
        lower, width = self._bounds(own.bits, x, axes)
        return _affine(own, short(width), lower, 0.0, 1.0)

    def _bounds(self, bits: int, x: Tensor, axes: frozenset[int]) -> tuple[Tensor, Tensor]:
        """Lower bounds and widths along some of the last three axes, of length 1 along the others of them."""
        values, shape = _by_range(x, axes)
        found = dobi2d(Distribution.of(values, len(values)), Uniform(bits, len(values)), self.k)
        width = (found.upper - found.lower).clamp(min=1e-9)
        return found.lower.float().view(shape), width.float().view(shape)

    def _symmetric(self, bits: int, x: Tensor, axes: frozenset[int]) -> Tensor:
        """The ends of ranges about zero along some axes, shaped as by `_bounds`."""
        values, shape = _by_range(x, axes)
        distribution = Distribution.of(values, len(values))
        ends = (
            values.abs().amax(1, keepdim=True).double().clamp(min=1e-9)
            * torch.linspace(1, 0.2, self.k, dtype=torch.float32).double()
        )
        error = distribution.squared_error(-ends, ends, bits)
        return ends.gather(1, error.argmin(1, keepdim=True)).float().view(shape)


def _by_range(x: Tensor, axes: frozenset[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Values as rows, one for each place along `axes` among the last three axes, and the shape of such numbers."""
    kept = sorted(axes)
    others = [axis for axis in range(-x.dim(), 0) if axis not in axes]
    shape = tuple(x.shape[axis] if axis in axes else 1 for axis in (-3, -2, -1))
    rows = x.permute(*kept, *others).reshape(max(1, torch.Size(shape).numel()), -1)
    return evenly(rows, max(_LEAST, _VALUES // len(rows)), 1), shape


def _spread(x: Tensor, positions: int, fixed: frozenset[int]) -> Tensor:
    """The range of nearly all values of each head and channel; axis `positions` and the windows are gone over."""
    gone = [0, positions] + ([] if -3 in fixed else [1])
    kept = [axis for axis in range(4) if axis not in gone]
    rows = x.permute(*kept, *gone).flatten(len(kept))
    rows = evenly(rows, 1 << 14, -1)
    # numpy partitions the values, ten times faster than torch sorts them.
    low, high = np.quantile(rows.numpy(), (0.001, 0.999), axis=-1)
    wide = torch.from_numpy(high - low).float().clamp(min=1e-5)
    return wide.view([1 if axis in gone else x.shape[axis] for axis in range(4)])


def _about_row(logits: Tensor) -> Tensor:
    """Logits about the mean of their row, because a softmax sees no more."""
    return logits - logits.mean(-1, keepdim=True)


def _affine(own: Quantizer, factor: Tensor, center: Tensor, lower: float, upper: float) -> Affine:
    quantizer = Affine(own.bits, own.ranges, own.axis, own.role)
    quantizer.set_map(factor, short(center))
    quantizer.set_bounds(lower, upper)
    quantizer.mode = "on"
    return quantizer


def _wider(quantizer: Affine, widening: float) -> Affine:
    """A quantizer whose ranges are wider by a factor about their middles."""
    middle = quantizer.center + quantizer.factor * (quantizer.lower + quantizer.upper) / 2
    half = widening * quantizer.factor * (quantizer.upper - quantizer.lower) / 2
    if bool((quantizer.lower == -quantizer.upper).all()):
        return _affine(quantizer, short(half), quantizer.center, -1.0, 1.0)
    return _affine(quantizer, short(2 * half), middle - half, 0.0, 1.0)
