"""GPTQ: rounds weights so that the error of each layer's output is small for the observed inputs (arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, register
from fxptq.passes.offsets import movable_weights
from fxptq.quant.distribution import signal_to_noise
from fxptq.quant.grid import Grid
from fxptq.quant.rounding import gptq, output_error, to_nearest
from fxptq.refusal import Refusal


@register("gptq")
class Gptq(Pass):
    """Replaces weights that have moments (see `moments`) by values on their grids; bounds stay as they are.

    It needs bounds that are set, and it makes them final: a later `dqc` should leave the bounds of weights alone.
    """

    @dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
            damping: added to the diagonal of the inputs' second moments, in units of its mean.
        """

        damping: float = 0.01

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
        grids = {key: student.quantizers[key].grids() for key in weights}
        with ctx.progress.task("gptq", len(weights)) as advance:
            for key, weight in weights.items():
                row_grids = grids[key]
                if isinstance(row_grids, Refusal):
                    notes.append(f"{key} keeps its weights: {row_grids.reason}")
                else:
                    rounded, figures[key] = self._round(weight, row_grids, ctx.moments[key])
                    student.set_weight(key, rounded)
                advance()
        if not figures:
            raise InputError("gptq rounds weights to bounds that are set: run a pass such as `dobi` before it")
        return PassReport(quantizers=figures, notes=tuple(notes))

    def _round(self, weight: Tensor, grids: tuple[Grid, ...], moments: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The weight on its grid, and its figures; every group of a grouped convolution has moments of its own."""
        rows, bits = len(weight) // len(grids), grids[0].bits
        scale = weight.new_tensor([grid.scale for grid in grids]).repeat_interleave(rows)[:, None]
        offset = weight.new_tensor([grid.offset for grid in grids]).repeat_interleave(rows)[:, None]
        flat = scale == 0  # such rows keep their weights, so any scale will do for them
        parts = [t.chunk(len(moments)) for t in (weight.flatten(1), scale.masked_fill(flat, 1.0), offset)]
        rounded, power, error, nearest = [], 0.0, 0.0, 0.0
        for w, unit, start, m in zip(*parts, moments, strict=True):
            rounded.append(gptq(w, m, unit, start, bits, self.settings.damping))
            power += float(output_error(w, torch.zeros_like(w), m).sum())
            error += float(output_error(w, rounded[-1], m).sum())
            nearest += float(output_error(w, to_nearest(w, unit, start, bits), m).sum())
        figures = {"snr_db": signal_to_noise(power, error), "nearest_snr_db": signal_to_noise(power, nearest)}
        return torch.where(flat, weight.flatten(1), torch.cat(rounded)).view_as(weight), figures
