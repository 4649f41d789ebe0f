"""Shares: non-negative rows as shares of their sum, for attention weights behind a softmax.

    code = round(clip((2**bits - 1) * x / (ceiling * largest of the row), 0, 2**bits - 1)),  value = code / sum of codes

Rows are along the last axis. Each row has a grid of its own, which fits rows of one strong weight and rows of many weak
ones, and the values of a row sum to one, as the float weights do. A kernel that computes exp(x - max) has `x / largest`
at hand, and its division by the sum of exponentials becomes the division by the sum of codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxptq.errors import CalibrationError
from fxptq.quant import grid, operators, row_shares
from fxptq.quant.coding import Coding
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Quantizer, Role, Trainable
from fxptq.quant.scheme import register
from fxptq.refusal import Refusal

_LEAST = 1e-6
"""The smallest ceiling; below it, every weight of a row would get the largest code."""


@register("shares")
class Shares(Quantizer):
    """Quantizer of rows relative to their largest value; see `Quantizer` for the arguments.

    The bounds speak of `x / largest of its row`: the lower one is 0, and the upper one is called the ceiling.
    Negative values get the code 0, and a row without positive values is 0.

    Attributes:
        log_ratio: trained logarithm of the ceiling over the ceiling that was set, [ranges].
    """

    stores_codes = False  # the codes of a row at its values' shares are other codes
    ceiling0: Tensor

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__(bits, ranges, axis, role)
        self.register_buffer("ceiling0", torch.ones(ranges, dtype=torch.float32))
        self.log_ratio = nn.Parameter(torch.zeros(ranges, dtype=torch.float32))

    @property
    def lower(self) -> Tensor:
        """0 for each range, [ranges]."""
        return torch.zeros_like(self.ceiling0)

    @property
    def upper(self) -> Tensor:
        """The ceiling as a part of the largest value of a row, [ranges]."""
        return self.ceiling0 * self.log_ratio.exp()

    # -- values and codes ----------------------------------------------------------------------------------------------

    def normalize(self, x: Tensor) -> Tensor:
        """`x / largest of its row`, the values that the bounds speak of."""
        return operators.relative(x)

    def quantize(self, x: Tensor) -> Tensor:
        """The share of each code in the codes of its row; a row sums to 1."""
        return row_shares.fake_quantize(x, self._factor(x), self.bits)

    def encode(self, x: Tensor) -> Tensor:
        """uint8 codes of `x`, of its shape."""
        one = torch.ones_like(self.ceiling0[:1])
        return grid.encode(self.normalize(x) * self._factor(x), one, torch.zeros_like(one), self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        """The share of each code in the codes of its row, of the shape of `codes`."""
        return operators.in_shares(codes.to(self.ceiling0.dtype))

    def _factor(self, x: Tensor) -> Tensor:
        """Steps of its row in the largest value of a row, in a shape that broadcasts to `x`."""
        return grid.levels(self.bits) / self.spread(self.upper, x)

    # -- bounds and state ----------------------------------------------------------------------------------------------

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        """Set the ceiling to the upper bound; the lower bound is always 0. See `Quantizer`."""
        low, high = (self.per_range(bound, self.ceiling0) for bound in (lower, upper))
        if not (low.isfinite().all() and high.isfinite().all() and (high >= low).all()):
            raise CalibrationError("bounds must be finite and upper >= lower")
        self._set(high.clamp(min=_LEAST))

    def admissible(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges from 0 to at most 1; see `Quantizer`."""
        return torch.zeros_like(lower), upper.clamp(_LEAST, 1.0)

    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        """Squared error of rounding `x / largest`, before the rows are divided by their sums; see `Quantizer`."""
        return values.squared_error(lower, upper, self.bits)

    def stored(self) -> dict[str, Tensor]:
        """`ceiling`, [ranges]."""
        return {"ceiling": self.ceiling0}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read back `ceiling`; see `Quantizer`."""
        if set(tensors) != {"ceiling"}:
            raise CalibrationError(f"a quantizer of shares stores a ceiling, not {', '.join(sorted(tensors))}")
        ceiling = self.per_range(tensors["ceiling"], self.ceiling0)
        if not bool((ceiling.isfinite() & (ceiling > 0)).all()):
            raise CalibrationError("a ceiling is finite and above 0")
        self._set(ceiling)

    def _set(self, ceiling: Tensor) -> None:
        with torch.no_grad():
            self.ceiling0.copy_(ceiling)
            self.log_ratio.zero_()

    # -- training and integers -----------------------------------------------------------------------------------------

    def trainables(self) -> tuple[Trainable, ...]:
        """`log_ratio`, in units of the ceiling."""
        return (Trainable(self.log_ratio, grid.levels(self.bits)),)

    def absorb(self) -> None:
        """Move the trained ratio into the ceiling; the forward pass stays the same bit for bit."""
        self._set(self.upper.detach())

    def is_sound(self) -> bool:
        """Whether the ceiling is finite and positive."""
        upper = self.upper.detach()
        return bool((upper.isfinite() & (upper > 0)).all())

    def grids(self) -> Refusal:
        """No grid: the values of the codes depend on their row."""
        return Refusal("codes stand for shares of their row's sum")

    def coding(self) -> Coding:
        """The grid of `x / largest` of each range, with codes as shares."""
        with torch.no_grad():
            steps = (self.upper / grid.levels(self.bits)).tolist()
        return Coding(tuple(Grid(step, 0.0, self.bits) for step in steps), shares=True)
