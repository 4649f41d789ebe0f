"""The squared error of an operand's values at every width, by the best bounds for each.

One more bit would divide an error by four if bounds stayed; but with more bits the best bounds clip less, so the error
falls by less, and how much less depends on the tails of the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import levels
from fxptq.quant.quantizer import BITS, Quantizer

_EXACT = 0.02
"""Part of the usual error of rounding below which values lie on the grid; bins of a histogram make a part of 0.001."""


def best_bounds(values: Distribution, quantizer: Quantizer, k: int) -> search.Bounds:
    """The best bounds at the quantizer's width; they stay symmetric where they were, because a kernel may count on it.

    Args:
        values: the values in the unit of the bounds.
        quantizer: the quantizer, whose bounds are set.
        k: number of candidates for each bound.
    """
    if bool((quantizer.lower == -quantizer.upper).all()) and bool((quantizer.upper > 0).all()):
        return search.symmetric(values, quantizer, k)
    return search.dobi2d(values, quantizer, k)


def bounds_by_width(values: Distribution, quantizer: Quantizer, k: int) -> dict[int, search.Bounds]:
    """The best bounds at each width.

    Args:
        values: the values in the unit of the bounds.
        quantizer: the quantizer, whose bounds are set; it stays as it is.
        k: number of candidates for each bound.

    Returns:
        By width, 2 to 8; the quantizer's own width alone where the values lie on its grid, because a multiple of no
        error says nothing of other grids.
    """
    widths = (quantizer.bits,) if _is_exact(values, quantizer) else BITS
    return {bits: best_bounds(values, at_width(quantizer, bits), k) for bits in widths}


def at_width(quantizer: Quantizer, bits: int) -> Quantizer:
    """The quantizer at another width; it shares its tensors, and has a width of its own."""
    other = copy(quantizer)
    other.set_bits(bits)
    return other


def errors_by_width(bounds: Mapping[int, search.Bounds], own: int) -> dict[int, float]:
    """The squared error of the values at each width, as a multiple of the error at a quantizer's own width.

    Args:
        bounds: see `bounds_by_width`; every range has as many values.
        own: the quantizer's own width.

    Returns:
        By width; it never rises with the width.
    """
    errors: dict[int, float] = {}
    for bits, of_width in sorted(bounds.items()):
        total = float(of_width.error.sum())
        errors[bits] = min(total, errors.get(bits - 1, total))  # few candidates may miss the best
    return {bits: error / errors[own] if errors[own] > 0 else 1.0 for bits, error in errors.items()}


def _is_exact(values: Distribution, quantizer: Quantizer) -> bool:
    """Whether values lie so near to the grid that rounding cannot be their error."""
    ends = (quantizer.lower, quantizer.upper)  # all ranges are alike where the values are those of one
    lower, upper = (bound.detach().double()[: values.ranges, None] for bound in ends)
    step = (upper - lower)[:, 0] / levels(quantizer.bits)
    rounding = step.square() / 12 * values.total  # the error of values that lie anywhere
    error = quantizer.squared_error(values, lower, upper)[:, 0]
    return bool((step > 0).any()) and float(error.sum()) < _EXACT * float(rounding.sum())
