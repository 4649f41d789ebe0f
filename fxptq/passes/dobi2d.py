"""DOBI over both bounds at once: each bound moves on its own, so that skewed values need no separate search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxptq.errors import InputError
from fxptq.passes.base import Context, Operand, Pass, PassReport, register
from fxptq.passes.bounds import set_all_bounds
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer


@register("dobi2d")
class Dobi2d(Pass):
    """Sets the bounds of all quantizers by the search over all pairs of lower and upper candidates."""

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            k: number of candidates for each bound.
        """

        k: int = 100

        def __post_init__(self) -> None:
            if self.k < 1:
                raise InputError(f"k must be at least 1, not {self.k}")

    needs: ClassVar[frozenset[str]] = frozenset({"histogram"})
    sets_bounds: ClassVar[bool] = True
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass."""
        return set_all_bounds(ctx, "dobi2d", self._search)

    def _search(self, values: Distribution, quantizer: Quantizer, operand: Operand) -> search.Bounds:
        return search.dobi2d(values, quantizer, self.settings.k, operand.lowest)
