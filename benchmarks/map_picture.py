"""Draws docs/images/channels.svg: the channels of an operand beside its grid, without and with the map of `channels`.

    python -m benchmarks.map_picture

The operand is the input of a linear layer of SwinIR-light x4 at four bits: the one at whose values the map lowers the
error most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.study import ROOT, Study, inputs_of, open_study_network
from fxptq.passes.base import Context, run_passes
from fxptq.passes.samples import sample
from fxptq.progress import RichProgress
from fxptq.quant.schemes.affine import Affine

PICTURE = ROOT / "docs" / "images" / "channels.svg"
BITS, INPUTS = 4, 4
WIDTH, HEIGHT, LEFT, TOP = 360, 300, 20, 40
STYLE = (
    "text{font:14px sans-serif;fill:#1d2227}.small{font-size:12px;fill:#5b6570}.range{stroke:#b9d3ec;stroke-width:3}"
    ".half{stroke:#0b63b5;stroke-width:3}.grid{stroke:#c23b3b;stroke-width:0.7}"
)


def main() -> None:
    torch.set_num_threads(1)
    source = open_study_network("swinir_x4")
    preset = source.recipe.preset("standard")
    study = Study(source, inputs_of(source.recipe, "synthetic", INPUTS, 0), preset, 0, RichProgress())
    ctx = study.at(BITS)
    run_passes([("dobi2d", {})], ctx)
    values = values_at_linear_inputs(ctx)
    before = {key: (panel_of(ctx, key, x), error(ctx, key, x)) for key, x in values.items()}
    run_passes([("channels", {})], ctx)
    gains = {key: before[key][1] / error(ctx, key, x) for key, x in values.items() if not affine(ctx, key).is_identity}
    key = max(gains, key=lambda name: gains[name])
    panels = [before[key][0], panel_of(ctx, key, values[key])]
    PICTURE.write_text(drawing(key, panels, gains[key]), encoding="utf-8")
    print(f"{key}: the error of its values is {gains[key]:.1f} times smaller with the map; {PICTURE}")


def affine(ctx: Context, key: str) -> Affine:
    quantizer = ctx.student.quantizers[key]
    assert isinstance(quantizer, Affine)
    return quantizer


@torch.no_grad()
def values_at_linear_inputs(ctx: Context) -> dict[str, Tensor]:
    """The values [n, channels] of each input of a linear layer that has the asked bits, on the inputs, in float."""
    keys = {
        operand.quantizer
        for site in ctx.student.sites
        if site.kind == "linear"
        for operand in site.operands
        if operand.slot == "input" and ctx.student.quantizers[operand.quantizer].bits == BITS
    }
    samples = sample(ctx, ctx.images, {key: lambda x: x.flatten(0, -2)[::7] for key in sorted(keys)})
    return {key: torch.cat(rows) for key, rows in samples.items()}


@torch.no_grad()
def error(ctx: Context, key: str, x: Tensor) -> float:
    """The mean square of the change of the values by their quantizer."""
    return float((affine(ctx, key).quantize(x) - x).square().mean())


@torch.no_grad()
def panel_of(ctx: Context, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles [5, channels] of the normalized values, and the values of the grid [levels]."""
    quantizer = affine(ctx, key)
    marks = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    quantiles = torch.quantile(quantizer.normalize(x)[:20_000], marks, dim=0)
    steps = torch.linspace(0, 1, 2**BITS)
    grid = quantizer.lower.flatten()[0] + steps * (quantizer.upper - quantizer.lower).flatten()[0]
    return quantiles, grid


def drawing(key: str, panels: list[tuple[Tensor, Tensor]], gain: float) -> str:
    """The two panels, side by side."""
    title = f"The channels of {key} of SwinIR-light and the {2**BITS} values of its grid, before and after a map"
    parts = [f"<title>{title}</title><style>{STYLE}</style>"]
    names = ("one grid for all channels", f"the same after the map: {gain:.1f} times less error")
    for index, (name, (quantiles, grid)) in enumerate(zip(names, panels, strict=True)):
        left = LEFT + index * (WIDTH + LEFT)
        low, high = float(quantiles.min()), float(quantiles.max())

        def height(value: float, low: float = low, high: float = high) -> float:
            return TOP + HEIGHT * (high - value) / (high - low)

        parts.append(f'<text x="{left}" y="{TOP - 16}">{name}</text>')
        parts += [line("grid", left, height(value), left + WIDTH, height(value)) for value in grid.tolist()]
        step = WIDTH / quantiles.shape[1]
        for channel, (least, lower, _, upper, most) in enumerate(quantiles.T.tolist()):
            x = left + step * (channel + 0.5)
            parts.append(line("range", x, height(least), x, height(most)))
            parts.append(line("half", x, height(lower), x, height(upper)))
    bottom = TOP + HEIGHT + 24
    legend = "one bar a channel: from its least to its largest value, dark the middle half; red: the values of the grid"
    parts.append(f'<text class="small" x="{LEFT}" y="{bottom}">{legend}</text>')
    size = f"0 0 {2 * WIDTH + 3 * LEFT} {bottom + 16}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img">{"".join(parts)}</svg>\n'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


if __name__ == "__main__":
    main()
