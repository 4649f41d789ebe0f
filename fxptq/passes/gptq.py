"""GPTQ: rounds weights so that the error of each layer's output is small for the observed inputs (arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, register
from fxptq.passes.offsets import movable_weights
from fxptq.quant.rounded import round_weight
from fxptq.quant.rounding import DAMPING
from fxptq.refusal import Refusal


@register("gptq")
class Gptq(Pass):
    """Replaces weights that have moments (see `moments`) by values on grids that fit them.

    It needs bounds that are set; it moves those of rows of weights to where the error of the output is least for the
    codes (see `fxptq.quant.rounded`). A later `dqc` should start from the codes.
    """

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            damping: added to the diagonal of the inputs' second moments, in units of its mean.
        """

        damping: float = DAMPING

        def __post_init__(self) -> None:
            if self.damping <= 0:
                raise InputError(f"damping must be above 0, not {self.damping}")

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    settings: Settings

    @torch.no_grad()
    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Returns:
            For each weight `snr_db`, the signal-to-noise ratio in dB of its layer's output for the observed inputs, and
            `nearest_snr_db`, the ratio that rounding to nearest would have given.

        Raises:
            InputError: if no weight with moments has bounds.
        """
        student, figures, notes = ctx.student, dict[str, dict[str, float]](), list[str]()
        weights = {key: weight for key, weight in movable_weights(student).items() if key in ctx.moments}
        with ctx.progress.task("gptq", len(weights)) as advance:
            for key, weight in weights.items():
                rounded = round_weight(weight, student.quantizers[key], ctx.moments[key], self.settings.damping)
                if isinstance(rounded, Refusal):
                    notes.append(f"{key} keeps its weights: {rounded.reason}")
                else:
                    student.quantizers[key].restore(rounded.bounds)
                    student.set_weight(key, rounded.weight)
                    figures[key] = rounded.figures
                advance()
        if not figures:
            raise InputError("gptq rounds weights to bounds that are set: run a pass such as `dobi` before it")
        return PassReport(quantizers=figures, notes=tuple(notes))
