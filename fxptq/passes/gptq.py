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
from fxptq.quant.grid import levels
from fxptq.quant.quantizer import Quantizer
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
        with ctx.progress.task("gptq", len(weights)) as advance:
            for key, weight in weights.items():
                rounded = round_weight(weight, student.quantizers[key], ctx.moments[key], self.settings.damping)
                if isinstance(rounded, Refusal):
                    notes.append(f"{key} keeps its weights: {rounded.reason}")
                else:
                    student.set_weight(key, rounded.weight)
                    figures[key] = rounded.figures
                advance()
        if not figures:
            raise InputError("gptq rounds weights to bounds that are set: run a pass such as `dobi` before it")
        return PassReport(quantizers=figures, notes=tuple(notes))


@dataclass(frozen=True)
class Rounded:
    """A rounded weight.

    Attributes:
        weight: on its grid, of the shape of the float weight.
        figures: `snr_db` and `nearest_snr_db`; see `Gptq.run`.
    """

    weight: Tensor
    figures: dict[str, float]


def round_weight(weight: Tensor, quantizer: Quantizer, moments: Tensor, damping: float) -> Rounded | Refusal:
    """Rounds a weight for the smallest error of its layer's output.

    Args:
        weight: [outputs, inputs of a group, ...].
        quantizer: the weight's quantizer.
        moments: second moments of the inputs, [groups, inputs of a group, inputs of a group].
        damping: added to the diagonal of the moments, in units of its mean.

    Returns:
        A refusal if the values of the quantizer are not linear in the code.
    """
    grid = _grid_of_each(quantizer, weight)
    if grid is None:
        return Refusal(f"{quantizer.scheme}: its values are not linear in the code")
    scale, offset = grid
    flat = scale == 0  # such ranges keep their weights, so any scale will do for them
    parts = [t.flatten(1).cpu().chunk(len(moments)) for t in (weight, scale.masked_fill(flat, 1.0), offset)]
    rounded, power, error, nearest = [], 0.0, 0.0, 0.0
    for w, unit, start, m in zip(*parts, moments.cpu(), strict=True):
        rounded.append(gptq(w, m, unit, start, quantizer.bits, damping))
        power += float(output_error(w, torch.zeros_like(w), m).sum())
        error += float(output_error(w, rounded[-1], m).sum())
        nearest += float(output_error(w, to_nearest(w, unit, start, quantizer.bits), m).sum())
    figures = {"snr_db": signal_to_noise(power, error), "nearest_snr_db": signal_to_noise(power, nearest)}
    values = torch.where(flat, weight, torch.cat(rounded).view_as(weight).to(weight.device))
    return Rounded(torch.where(flat, weight, quantizer.quantize(values)), figures)


def _grid_of_each(quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The scale and the offset of the grid of each weight; None if its values are not linear in the code."""
    n = levels(quantizer.bits)
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    offset = quantizer.decode(codes)
    scale = (quantizer.decode(codes + n) - offset) / n
    middle = quantizer.decode(codes + n // 2)
    off = (middle - (offset + n // 2 * scale)).abs()
    return (scale, offset) if bool((off <= 0.01 * scale.abs()).all()) else None
