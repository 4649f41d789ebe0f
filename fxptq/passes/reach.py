"""Reach: fine ranges that are wider than the values of the calibration inputs, where pictures go beyond them.

The trunk and the tail read sums that carry the picture itself and that no norm bounds, so that pictures of stronger
colours go beyond all that was seen. Where steps are small, clipping them costs far more than wider steps do.
"""

from __future__ import annotations

from dataclasses import replace

from fxptq.passes.base import QuantizedNetwork
from fxptq.quant.search import Bounds

FINE = 7
"""From so many bits on, the steps are small and clipping makes most of the error, so ranges reach to the extremes."""

REACH = 1.2
"""Width of a fine range of the trunk and the tail in units of the extremes of the calibration inputs."""


def open_inputs(student: QuantizedNetwork) -> frozenset[str]:
    """The quantizers of the inputs of the trunk and the tail."""
    return frozenset(
        operand.quantizer
        for site in student.sites
        if site.edge in ("trunk", "tail")
        for operand in site.operands
        if operand.slot == "input"
    )


def reaching(found: Bounds, floor: float | None) -> Bounds:
    """Bounds that are wider by the reach: on both sides, or above where the values have a floor.

    Args:
        found: bounds at the extremes of the calibration inputs.
        floor: the known floor of the values.
    """
    more = (REACH - 1) * (found.upper - found.lower)
    if floor is not None:
        return replace(found, upper=found.upper + more)
    return replace(found, lower=found.lower - more / 2, upper=found.upper + more / 2)
