"""Adds a pass of one's own to the calibration: it moves each activation's grid so that zero lies on it.

    python examples/own_pass.py

In a package, an entry point of the group `fxptq.passes` makes the pass known; here `@register` does.
"""

from dataclasses import dataclass

import torch
from super_resolution import psnr, trained

import fxptq
from fxptq.passes.base import Context, Pass, PassReport, register

RECIPE = """
name = "small"
title = "Small network, x2, zero on the grid"
scale = 2
degradation = { kind = "bicubic" }
[presets.quick]
passes = [{ name = "dobi2d" }, { name = "zero_on_grid", most = 0.5 }]
"""


@register("zero_on_grid")
class ZeroOnGrid(Pass):
    """Moves both bounds of an activation by the same part of a step, so that zero is a value of its grid."""

    @dataclass(frozen=True)
    class Settings:
        """most: largest move, in steps; a grid that needs a longer one stays."""

        most: float = 0.5

    def run(self, ctx: Context) -> PassReport:
        """Moves the bounds that an earlier pass has set."""
        moves = {}
        for key, quantizer in ctx.student.quantizers.items():
            lower, upper = quantizer.lower.detach(), quantizer.upper.detach()
            step = (upper - lower) / (2**quantizer.bits - 1)
            if ctx.student.weight_of(key) is not None or not bool((step > 0).all()):
                continue  # a weight, or a range without width
            move = (lower / step).round() - lower / step
            move = torch.where(move.abs() <= self.settings.most, move, torch.zeros_like(move))
            quantizer.set_bounds(lower + move * step, upper + move * step)
            moves[key] = {"move": float(move.abs().max())}
        return PassReport(quantizers=moves, notes=(f"{len(moves)} grids moved",))


if __name__ == "__main__":
    network, picture, recipe = trained(), torch.rand(1, 3, 48, 48), fxptq.Recipe.parse(RECIPE, "own_pass.py")
    quantized = fxptq.quantize(network, picture, fxptq.Bits(4, 4), recipe=recipe, preset="quick")
    for report in quantized.report:
        print(f"{report.name:12} {'; '.join(report.notes)}")
    for key, figures in quantized.report[-1].quantizers.items():
        print(f"   {key}: by {figures['move']:.2f} of a step")
    with torch.no_grad():
        print(f"against the float network: {psnr(quantized(picture), network(picture)):.1f} dB")
