"""Zero on the grid: a uniform quantizer with a whole zero point, so that 0 is one of the values, as other runtimes ask.

When bounds are set, the range is extended up to 0 where it does not reach it, and then moved by at most half a step. A
constant, such as a weight, has its zero in the middle, at the code 2**(bits - 1), because runtimes compute on weights
of signed codes. Training scales a range and leaves the code of 0 as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxptq.quant import grid
from fxptq.quant.quantizer import Trainable
from fxptq.quant.scheme import register
from fxptq.quant.schemes.uniform import Uniform


def with_zero(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The lower end and the width of a range, extended to 0 and moved by at most half a step to give 0 a code.

    Args:
        lower: lower ends, any shape and floating-point type.
        upper: upper ends, of the same shape, nowhere below `lower`.
        bits: 1 to 8.
    """
    n = grid.levels(bits)
    low, high = lower.clamp(max=0), upper.clamp(min=0)
    scale = (high - low) / n
    zero = torch.where(scale > 0, -low / scale, torch.zeros_like(scale)).round()
    return -zero * scale, n * scale


def with_zero_in_the_middle(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The lower end and the width of the smallest range whose code 2**(bits - 1) is 0 and that holds another range.

    Args:
        lower: lower ends, any shape and floating-point type.
        upper: upper ends, of the same shape.
        bits: 2 to 8.
    """
    zero = 1 << (bits - 1)
    scale = torch.maximum(-lower.clamp(max=0) / zero, upper.clamp(min=0) / (zero - 1))
    return -zero * scale, grid.levels(bits) * scale


@register("zero_on_grid")
class ZeroOnGrid(Uniform):
    """Uniform quantizer whose zero point is a whole number; see `Uniform`.

    `shift` is not trained, because a move of the lower bound would take 0 off the grid.
    """

    @property
    def lower(self) -> Tensor:
        """Lower ends of the clipping range, [ranges]; a whole number of steps below 0."""
        return self.lower0 * self.log_scale.exp()

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the clipping range, moved so that 0 has a code; see `Quantizer`."""
        low, high = (self.per_range(bound, self.lower0) for bound in (lower, upper))
        if not bool((low.isfinite() & high.isfinite() & (high >= low)).all()):
            self._set(low, high - low)  # raises
        self._set(*self._possible(low, high))

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges with a code for 0; see `Quantizer`."""
        low, width = self._possible(lower, upper)
        return low, low + width

    def _possible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The lower end and the width of the range that stands for a proposal."""
        return (with_zero_in_the_middle if self.role == "constant" else with_zero)(lower, upper, self.bits)

    def shorten(self) -> None:
        """Leaves the bounds as they are, because rounding one would take 0 off the grid."""

    def trainables(self) -> tuple[Trainable, ...]:
        """`log_scale`, in units of the initial width; none if every width is zero."""
        return super().trainables()[1:]
