"""Exponents for the columns of a convolution's weight: taps and input channels that are strong get coarser steps.

A convolution that was multiplied out of several ones and a skip has a few taps, mostly in the middle, that are many
times as strong as all others. They stretch the grid of every row. A column is one tap of one input channel; its step is
a power of two times the step of the row (see `fxptq.quant.schemes.affine`). Factors of input channels cannot do that,
because they are the same for all taps, and because an activation pays for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxptq.quant.schemes.affine import most_exponent

_BASES = (1.0, 2.0)
"""Multiples that a column of median strength gets."""


def exponents(weight: Tensor, bits: int) -> Iterator[Tensor]:
    """Exponents to try, in proportion to the strength of columns; none where no width has room or no column has taps.

    Args:
        weight: of a convolution, in the unit of its bounds, [outputs, C, height, width].
        bits: its width.

    Yields:
        uint8 [C, height, width].
    """
    most = most_exponent(bits)
    if weight.dim() != 4 or weight[0, 0].numel() == 1 or most == 0:
        return
    for strength in (weight.square().mean(0).sqrt(), weight.abs().amax(0)):
        middle = strength.median()
        if not bool(middle > 0):
            continue
        for base in _BASES:
            steps = torch.log2((base * strength / middle).clamp(min=1)).round().clamp(max=most).to(torch.uint8)
            if bool(steps.any()):
                yield steps
