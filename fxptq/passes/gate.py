"""The quality gate: faults of a finished network that its mean error does not show, each with what to do about it.

The student is compared with the float network on calibration inputs that judged passes hold out, and on a gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.evaluate.artifacts import Floats, banding, colour_shift, mesh
from fxptq.passes.base import Context, PassReport
from fxptq.passes.crops import split
from fxptq.passes.judge import batches

_SHIFT = 1.0
"""Levels of 255 from which on the mean of a colour is off visibly, in large even areas."""

_MESH = 1.0
"""Levels of 255, peak to peak, from which on a regular pattern shows in smooth areas."""

_BAND = 3.0
"""Levels of 255 of a step that a gradient should not have."""

_BEYOND = 0.1
"""Part of white by which the quantized pictures may leave the range of the float ones."""

_LOST = 1.0
"""Signal-to-noise ratio of an operand in dB below which its signal is lost; all zeros have 0 dB, 2 bits about 8 dB.

Attention weights that spread over a window have 2 to 3 dB at 3 bits, and do no harm.
"""

_NAMED = 3
"""The most operands that are named in warnings; the others are counted."""

_HELD = 0.25


@torch.no_grad()
def check_quality(ctx: Context, white: float) -> PassReport:
    """Measures artefacts, and warns of those that people would see.

    Args:
        ctx: the finished student and its teacher, and the calibration inputs.
        white: the value of white in the pictures.

    Returns:
        A report named `quality`. Figures are in levels of 255: `colour_shift`, `mesh` (where the network enlarges),
        `banding` (where inputs are wider than one pixel), and `beyond`, by how much pictures leave the range of the
        float network's.
    """
    _, held = split(ctx.images, _HELD, torch.Generator().manual_seed(ctx.seed))
    figures: dict[str, float] = {}
    warnings: list[str] = []
    pairs = [_pictures(ctx, batch, white) for batch in batches(ctx, held)]
    ours, floats = zip(*(pair for pair, _ in pairs), strict=True)
    period = pairs[0][1]
    shift = np.mean([colour_shift(a, b) for a, b in zip(ours, floats, strict=True)], axis=0)
    figures["colour_shift"] = float(shift[np.abs(shift).argmax()])
    if abs(figures["colour_shift"]) > _SHIFT:
        channel = int(np.abs(shift).argmax())
        warnings.append(
            f"colour shift: channel {channel} is off by {shift[channel]:+.1f} levels of 255 on average; put the pass "
            "`biases` last, or give the last layers 8 bits (--site 'NAME=W8A8')"
        )
    if period > 1:
        figures["mesh"] = float(np.mean([mesh(a, b, period) for a, b in zip(ours, floats, strict=True)]))
        if figures["mesh"] > _MESH:
            warnings.append(
                f"mesh: mean errors of the {period}x{period} sub-pixel phases differ by {figures['mesh']:.1f} levels of"
                " 255; put the pass `biases` last, or give the layers before the pixel shuffle 8 bits"
            )
    ends = [[min(p.min() for p in side), max(p.max() for p in side)] for side in (ours, floats)]
    figures["beyond"] = max(0.0, ends[1][0] - ends[0][0], ends[0][1] - ends[1][1])
    if figures["beyond"] > 255 * _BEYOND:
        warnings.append(
            f"range: values reach {ends[0][0]:.0f}..{ends[0][1]:.0f}, and {ends[1][0]:.0f}..{ends[1][1]:.0f} in float; "
            "calibrate on more inputs, or with more bits"
        )
    gradient = _gradient(ctx, white)
    if gradient is not None:
        (mine, theirs), _ = _pictures(ctx, gradient, white)
        if mine.shape[-2] >= 2 * period:  # a picture of one column has no steps
            figures["banding"] = banding(mine, theirs, period)
        if figures.get("banding", 0.0) > _BAND:
            warnings.append(
                f"banding: a gradient has steps of {figures['banding']:.1f} levels of 255; give activations more bits"
            )
    warnings += _lost_operands(ctx, held[0])
    return PassReport(figures=figures, warnings=tuple(warnings), name="quality")


def _pictures(ctx: Context, batch: Inputs, white: float) -> tuple[tuple[Floats, Floats], int]:
    """The student's and the teacher's pictures, [N, H, W, C] in levels, and how much larger than the input they are."""
    inputs = ctx.placed(batch)
    ours, floats = (ctx.picture.pick(network(*inputs)) for network in (ctx.student, ctx.teacher))
    scale, rest = divmod(floats.shape[-1], inputs[0].shape[-1])
    return (_levels(ours, white), _levels(floats, white)), 1 if rest or scale < 1 else scale


def _levels(picture: Tensor, white: float) -> Floats:
    levels: Floats = picture.movedim(-3, -1).double().cpu().numpy() * (255 / white)
    return levels


def _gradient(ctx: Context, white: float) -> Tensor | None:
    """A grey ramp along the width; None for a network of several inputs."""
    first = ctx.images[0]
    if isinstance(first, tuple):
        return None
    height, width = first.shape[-2:]
    ramp = torch.linspace(0.1, 0.9, width, dtype=first.dtype) * white  # of that type whatever torch's default is
    return ramp.expand(1, first.shape[1], height, width).contiguous()


def _lost_operands(ctx: Context, item: Inputs) -> list[str]:
    """Warns of operands whose signal is lost, worst first."""
    student = ctx.student
    ratios: dict[str, float] = {}
    handles = []
    for key, quantizer in student.quantizers.items():
        if quantizer.mode != "on":
            continue

        def compare(_module: object, args: tuple[Tensor], y: Tensor, key: str = key) -> None:
            x = args[0].double()
            power, noise = float(x.square().sum()), float((y.double() - x).square().sum())
            if power > 0 and noise > 0:
                ratios[key] = 10 * float(np.log10(power / noise))

        handles.append(quantizer.register_forward_hook(compare))
    try:
        student(*ctx.placed(item))
    finally:
        for handle in handles:
            handle.remove()
    lost = sorted((ratio, key) for key, ratio in ratios.items() if ratio < _LOST)
    found = [
        f"{key}: quantization loses most of the signal ({ratio:.1f} dB are left); calibrate on more inputs, or "
        f"give the site 8 bits (--site '{key.rpartition('.')[0]}=W8A8')"
        for ratio, key in lost[:_NAMED]
    ]
    return found + ([f"{len(lost) - _NAMED} more operands lose most of their signal"] if len(lost) > _NAMED else [])
