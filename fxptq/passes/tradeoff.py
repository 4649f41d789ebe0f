"""Tradeoff: the errors of an input and of the weights that read it as one number, where bits will move between them.

A layer of M multiply-accumulates costs M a w bit operations with a bits for its input and w for its weight, and one
more bit divides an error by about four. The widths of least error within a budget then leave to each operand an error
in proportion to what one more bit of it costs, however large the error was at equal widths. So a map that multiplies
the error of the input by r and that of the weight by s frees log4(1/r) bits of M w bit operations and log4(1/s) bits of
M a, which the allocation spends where it likes. The mean of the errors' logarithms, weighted by the costs of one bit,
says how much that is. (Their sum says it only where widths stay.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST = 1e-8
"""Smallest error that counts, of an output of power 1: far below what 8 bits leave."""


@dataclass(frozen=True)
class LayerErrors:
    """The errors of one layer's output, in units of the output's power.

    Attributes:
        of_input: squared, with the input alone quantized.
        of_weight: squared, with the weight alone quantized.
        macs: multiply-accumulates of the layer.
        bits: width of the weight.
    """

    of_input: float
    of_weight: float
    macs: float
    bits: int


def exchanged(layers: Sequence[LayerErrors], bits: int) -> float:
    """The weighted geometric mean of the errors of an input and of the weights that read it.

    Args:
        layers: the layers that read the input.
        bits: width of the input.

    Returns:
        The mean; each error counts by the bit operations that one more bit of its operand costs. NaN if an error is.
    """
    of_input = math.fsum(layer.of_input for layer in layers)
    errors = [(math.fsum(layer.macs * layer.bits for layer in layers), of_input)]
    errors += [(layer.macs * bits, layer.of_weight) for layer in layers]
    if any(math.isnan(error) for _, error in errors):
        return math.nan
    total = math.fsum(cost for cost, _ in errors)
    return math.exp(math.fsum(cost / total * math.log(max(error, _LEAST)) for cost, error in errors))
