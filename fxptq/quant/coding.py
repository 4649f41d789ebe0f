"""How the codes of an operand stand for its values, as integer kernels and exporters use it.

    value = factor * (scale * code + offset) + center = scale * factor * (code - zero point)

A plain coding has grids alone. A map adds a factor and a center for each channel, head, or both. Codes of shares stand
for their part of the sum of their row; the grid then speaks of a row's values relative to its largest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.quant.grid import Grid


@dataclass(frozen=True, eq=False)
class Coding:
    """See the module's description.

    Attributes:
        grids: the grid of each range.
        factor: > 0, of a shape that broadcasts to the trailing axes of the operand; None without a map.
        center: of the shape of `factor`; None without a map.
        shares: whether a value is its code over the sum of the codes of its row, the last axis.
        multiples: the powers of two in `factor` that a kernel may multiply the codes of a weight by, of a shape that
            broadcasts to the weight's trailing axes; None for none.
    """

    grids: tuple[Grid, ...]
    factor: Tensor | None = None
    center: Tensor | None = None
    shares: bool = False
    multiples: Tensor | None = None

    @property
    def grid(self) -> Grid:
        """The grid of the first range, which is the only one of an activation that kernels serve."""
        return self.grids[0]

    @property
    def is_plain(self) -> bool:
        """Whether the grids say everything."""
        return self.factor is None and not self.shares

    @property
    def factors(self) -> Tensor:
        """The factors, float64 on the CPU; 1 without a map."""
        return _number(1.0) if self.factor is None else self.factor.detach().double().cpu()

    @property
    def centers(self) -> Tensor:
        """The centers, float64 on the CPU; 0 without a map."""
        return _number(0.0) if self.center is None else self.center.detach().double().cpu()

    @property
    def lowest(self) -> Tensor:
        """The value of code 0 on the first grid, float64 of the shape of the map."""
        return self.factors * self.grid.offset + self.centers

    @property
    def steps(self) -> Tensor:
        """The distance of two neighbouring values on the first grid, float64 of the shape of the map."""
        return self.factors * self.grid.scale

    @property
    def zero_points(self) -> Tensor:
        """The code of the value 0 on the first grid, a real number, float64 of the shape of the map."""
        return -(self.centers / self.factors + self.grid.offset) / self.grid.scale


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")
