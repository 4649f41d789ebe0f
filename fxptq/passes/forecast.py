"""Forecast: the error of the output that widths will have once weights are rounded for the outputs of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxptq.passes.base import Context
from fxptq.passes.judge import Judge, Snapshot, batches
from fxptq.passes.refit import round_in_order
from fxptq.passes.samples import turned_off

_INPUTS, _ROWS = 8, 8192
"""Largest number of inputs, and of positions of each layer, that weights are rounded for in a rehearsal."""


@dataclass(frozen=True)
class Prediction:
    """What the error on held-out inputs will be.

    Attributes:
        measured: the error with the weights in float that a later pass rounds.
        left: the sum of the errors that rounding will leave of these weights, each alone.
    """

    measured: float
    left: float

    @property
    def error(self) -> float:
        """The sum of both."""
        return self.measured + self.left


@dataclass(frozen=True)
class Forecast:
    """What the error on held-out inputs will be with the present widths; the student stays as it is.

    Attributes:
        ctx: the student, with bounds that are set.
        judge: measures the error.
        of_weights: by quantizer and width, the squared error of the output that rounding will leave; for the weights
            that a later pass rounds. Where there are none, a forecast is the error of now.
    """

    ctx: Context
    judge: Judge
    of_weights: Mapping[str, Mapping[int, float]]

    def predicted(self) -> Prediction:
        """The error with these weights in float, and the errors that rounding will leave of them."""
        student = self.ctx.student
        with turned_off(student, self.of_weights):
            measured = self.judge.measure()
        left = sum(errors[student.quantizers[key].bits] for key, errors in self.of_weights.items())
        return Prediction(measured, left)

    def rehearsed(self) -> float:
        """The error behind `refit`, on fewer inputs and positions; small errors may make more than their sum."""
        before = Snapshot.of(self.ctx.student, self.ctx.student.quantizers)
        try:
            round_in_order(self.ctx, batches(self.ctx, self.judge.inputs[:_INPUTS])[0], _ROWS)
            return self.judge.measure()
        finally:
            before.restore()
