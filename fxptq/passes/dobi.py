"""DOBI: bounds that minimise the squared error of the quantized values, stage 1 of 2DQuant (arXiv 2406.06649)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fxptq.errors import InputError
from fxptq.passes.base import Context, Operand, Pass, PassReport, register
from fxptq.passes.bounds import set_all_bounds
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer


@register("dobi")
class Dobi(Pass):
    """Sets the bounds of all quantizers by the one- or two-sided search that suits their operand."""

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            k: number of candidates.
            sided: `auto` moves one bound where the graph shows a one-sided operand (after softmax, GELU, ReLU), as the
                paper says; `two` moves both everywhere, as its released code does.
        """

        k: int = 100
        sided: Literal["auto", "two"] = "auto"

        def __post_init__(self) -> None:
            if self.k < 1:
                raise InputError(f"k must be at least 1, not {self.k}")

    needs: ClassVar[frozenset[str]] = frozenset({"histogram"})
    sets_bounds: ClassVar[bool] = True
    settings: Settings

    def run(self, ctx: Context) -> PassReport:
        """See Pass."""
        return set_all_bounds(ctx, "dobi", self._search)

    def _search(self, values: Distribution, quantizer: Quantizer, operand: Operand) -> search.Bounds:
        if operand.role == "one_sided" and self.settings.sided == "auto":
            return search.dobi_one_sided(values, quantizer, self.settings.k, operand.lowest)
        return search.dobi_two_sided(values, quantizer, self.settings.k)
