"""The widths that a student's quantizers have, whose bounds follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxptq.passes.base import Context, Operand
from fxptq.passes.bounds import set_bounds
from fxptq.passes.judge import Snapshot
from fxptq.passes.observe import observe
from fxptq.passes.widths import best_bounds
from fxptq.quant import search
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer


class AssignedWidths:
    """The widths of a student's quantizers, whose bounds follow them.

    Args:
        ctx: the student and the statistics of its operands.
        k: number of candidates for each bound.

    Attributes:
        plan: the widths at first.
        weights: the quantizers of weights.
    """

    def __init__(self, ctx: Context, k: int) -> None:
        self._ctx, self._k = ctx, k
        self.plan = self.now
        self.weights = frozenset(key for key in self.plan if ctx.student.weight_of(key) is not None)
        self._before = Snapshot.of(ctx.student, ctx.student.quantizers)

    @property
    def now(self) -> dict[str, int]:
        """The width of each quantizer, by key."""
        return {key: quantizer.bits for key, quantizer in self._ctx.student.quantizers.items()}

    @property
    def changed(self) -> list[str]:
        """The quantizers that have another width than at first."""
        return [key for key, bits in self.now.items() if bits != self.plan[key]]

    def set(self, widths: Mapping[str, int]) -> None:
        """Gives quantizers these widths; bounds are searched where a width changes, and as they were elsewhere."""
        self._ctx.student.set_bits(widths)
        self._before.restore()
        changed = self.changed
        observe_missing(self._ctx, changed)
        set_bounds(self._ctx, changed, "bounds", self._search)

    def take_back(self) -> None:
        """Gives all quantizers the widths and bounds that they had at first."""
        self._ctx.student.set_bits(self.plan)
        self._before.restore()

    def _search(self, values: Distribution, quantizer: Quantizer, _operand: Operand) -> search.Bounds:
        return best_bounds(values, quantizer, self._k)


def observe_missing(ctx: Context, keys: Sequence[str]) -> None:
    """Observes the values of activations again whose map a pass has changed since."""
    missing = [key for key in keys if ctx.student.weight_of(key) is None and key not in ctx.statistics]
    if missing:
        observe(ctx, missing)
