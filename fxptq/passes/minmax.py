"""MinMax: bounds at the smallest and the largest value, the baseline with which every paper compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxptq.passes.base import Context, Operand, Pass, PassReport, register
from fxptq.passes.bounds import set_all_bounds
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer


@register("minmax")
class MinMax(Pass):
    """Sets the bounds of all quantizers to the smallest and the largest value that they see."""

    @dataclass(frozen=True)
    class Settings:
        """The pass has no settings."""

    needs: ClassVar[frozenset[str]] = frozenset({"histogram"})
    sets_bounds: ClassVar[bool] = True
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass."""
        return set_all_bounds(ctx, "minmax", self._search)

    def _search(self, values: Distribution, quantizer: Quantizer, operand: Operand) -> search.Bounds:
        return search.minmax(values, quantizer, operand.lowest)
