"""Percentile: bounds that leave out a fixed fraction of the values (Li et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxptq.errors import InputError
from fxptq.passes.base import Context, Operand, Pass, PassReport, register
from fxptq.passes.bounds import set_all_bounds
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer


@register("percentile")
class Percentile(Pass):
    """Sets the bounds of all quantizers to percentiles of their values; one-sided operands keep their lower end."""

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            p: the upper bound is the p-th percentile, the lower one the (100 - p)-th; above 50, up to 100.
        """

        p: float = 99.9

        def __post_init__(self) -> None:
            if not 50 < self.p <= 100:
                raise InputError(f"p must be above 50 and at most 100 (percent), not {self.p}")

    needs: ClassVar[frozenset[str]] = frozenset({"histogram"})
    sets_bounds: ClassVar[bool] = True
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass."""
        return set_all_bounds(ctx, "percentile", self._search)

    def _search(self, values: Distribution, quantizer: Quantizer, operand: Operand) -> search.Bounds:
        one_sided = operand.role == "one_sided"
        return search.percentile(values, quantizer, self.settings.p, one_sided=one_sided, lowest=operand.lowest)
