"""Remains: how much of the error of each weight is left once it is rounded for the output of its layer.

Rounding for the output takes most of the error from a layer whose inputs are alike, and little from one whose inputs
are independent. So bits for weights are worth less in some layers than the errors of nearest values say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.passes.base import Context
from fxptq.passes.judge import batches
from fxptq.passes.layers import Layer, layers_of, moments_about, visit
from fxptq.passes.moments import input_vectors
from fxptq.passes.widths import at_width
from fxptq.quant.rounded import Rounded, layer_error, round_weight
from fxptq.quant.rounding import DAMPING
from fxptq.quant.search import Bounds

_ROWS = 8192
"""Largest number of positions: weights are rounded for the inputs at one half of them, and judged at the other half."""

MEASURED = (2, 4)
"""Widths at which weights are rounded, where the quantizer may have them."""


@torch.no_grad()
def remains(
    ctx: Context, crops: Sequence[Inputs], bounds: Mapping[str, Mapping[int, Bounds]]
) -> dict[str, dict[int, float]]:
    """Rounds weights as `refit` will, at several widths, and compares the errors of the layers' outputs.

    Args:
        ctx: the student, with bounds that are set; it stays as it is.
        crops: inputs, which may be batches; those of the first shape are used.
        bounds: by the quantizer of a weight, the bounds at each width.

    Returns:
        By quantizer key and measured width, the squared error of the layer's output after rounding for it and after the
        correction of the bias, as a multiple of the error that nearest values make at the quantizer's width of now; for
        weights alone that can be rounded so.
    """
    found: dict[str, dict[int, float]] = {}
    layers = {
        key: chosen
        for key, of_input in layers_of(ctx.student).items()
        if (chosen := [layer for layer in of_input if layer.key in bounds])
    }
    with ctx.progress.task("remains", sum(map(len, layers.values()))) as advance:

        def preview(layer: Layer, x: Tensor) -> None:
            weight, quantizer = ctx.student.weight_of(layer.key), ctx.student.quantizers[layer.key]
            assert weight is not None  # a movable weight  # noqa: S101
            seen, unseen = input_vectors(x, layer.site, _ROWS)[0].chunk(2, 1)
            mean = seen.mean(1)
            if ctx.student.bias_of(layer.key) is None:
                mean.zero_()  # nothing corrects its error
            nearest = moments_about(torch.zeros_like(mean), unseen)
            moments, others = moments_about(mean, seen), moments_about(mean, unseen)
            whole = layer_error(weight, quantizer.quantize(weight), nearest)
            widths = bounds[layer.key]
            parts: dict[int, float] = {}
            for bits in [bits for bits in MEASURED if bits in widths] or widths:
                there = deepcopy(at_width(quantizer, bits))
                there.set_bounds(widths[bits].lower, widths[bits].upper)
                rounded = round_weight(weight, there, moments, DAMPING)
                if isinstance(rounded, Rounded) and whole > 0:
                    parts[bits] = layer_error(weight, rounded.weight, others) / whole
            if parts:
                found[layer.key] = parts
            advance()

        if layers:
            visit(ctx, layers, batches(ctx, crops)[0], preview)
    return found


def left_at(bits: int, measured: Mapping[int, float], errors: Mapping[int, float]) -> float:
    """What is left of a weight's error at a width, from the widths at which it was measured.

    Between two of them it is their geometric interpolation; beyond, it is in proportion to the error of nearest values.

    Args:
        bits: the width.
        measured: what is left, by width.
        errors: the errors of nearest values up to a factor, by width; they hold `bits`, and the measured widths that
            are the nearest to it.
    """
    below = max((width for width in measured if width <= bits), default=min(measured))
    above = min((width for width in measured if width >= bits), default=below)
    if above == below:
        return measured[below] * errors[bits] / errors[below] if errors[below] > 0 else measured[below]
    share = (bits - below) / (above - below)
    return float(measured[below] ** (1 - share) * measured[above] ** share)
