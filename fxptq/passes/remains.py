"""Remains: the part of the error of each weight that is left once it is rounded for the output of its layer.

Rounding for the output takes most of the error from a layer whose inputs are alike, and little from one whose inputs
are independent. So bits for weights are worth less in some layers than the errors of nearest values say.
"""

from __future__ import annotations

import math
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
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.rounded import Rounded, layer_error, round_weight
from fxptq.quant.search import Bounds

_ROWS = 4096
"""Largest number of positions that moments are taken over; a preview needs fewer than the rounding itself."""

_DAMPING = 0.01

_NARROW, _WIDE = 2, 4
"""Widths at which weights are rounded. The part lies between at 3 bits; above, where little is clipped, it is taken to
be that at 4."""


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
        By quantizer key and width, the squared error of the layer's output after rounding for it and after the
        correction of the bias, as a part of the error that nearest values make; for weights alone that can be rounded
        so.
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
            vectors = input_vectors(x, layer.site, _ROWS)[0]
            mean = vectors.mean(1)
            if ctx.student.bias_of(layer.key) is None:
                mean.zero_()  # nothing corrects its error
            moments = moments_about(mean, vectors)
            widths = bounds[layer.key]

            def part(bits: int) -> float:
                there = deepcopy(at_width(quantizer, bits))
                there.set_bounds(widths[bits].lower, widths[bits].upper)
                return _part(weight, there, mean, moments)

            if _NARROW in widths:
                narrow, wide = part(_NARROW), part(_WIDE)
                between = math.sqrt(narrow * wide)
                found[layer.key] = {
                    bits: narrow if bits == _NARROW else between if bits < _WIDE else wide for bits in widths
                }
            else:
                found[layer.key] = {bits: part(bits) for bits in widths}
            advance()

        if layers:
            visit(ctx, layers, batches(ctx, crops)[0], preview)
    return found


def _part(weight: Tensor, quantizer: Quantizer, mean: Tensor, moments: Tensor) -> float:
    """The part of the error that is left at the quantizer's width.

    Args:
        weight: [outputs, inputs of a group, ...].
        quantizer: the weight's quantizer.
        mean: the mean of the inputs, of which the bias corrects the error, [groups, inputs of a group].
        moments: the second moments about it, [groups, inputs of a group, inputs of a group].
    """
    rounded = round_weight(weight, quantizer, moments, _DAMPING)
    nearest = layer_error(weight, quantizer.quantize(weight), moments + mean[:, :, None] * mean[:, None])
    if not isinstance(rounded, Rounded) or nearest <= 0:
        return 1.0
    return layer_error(weight, rounded.weight, moments) / nearest
