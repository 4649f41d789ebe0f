"""Weights that may move before they are rounded: what lets training choose between neighbouring codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxptq.passes.base import QuantizedNetwork
from fxptq.quant.quantizer import Quantizer


def movable_weights(student: QuantizedNetwork) -> dict[str, Tensor]:
    """Weights by their quantizer's key, of quantizers that are on and the only ones to read their weight.

    A weight that is read at two widths or along two axes has no one grid, and a scheme that stores no codes has none at
    all. A weight that something reads in float (a layer left in float, a sum over the weight) must stay as it is for
    that reader.
    """
    weights = {key: weight for key in student.quantizers if (weight := student.weight_of(key)) is not None}
    readers = Counter(weight.data_ptr() for weight in weights.values())
    return {
        key: weight
        for key, weight in weights.items()
        if student.quantizers[key].mode == "on"
        and student.quantizers[key].stores_codes
        and readers[weight.data_ptr()] == 1
        and not student.has_other_readers(key)
    }


@contextmanager
def learned_offsets(student: QuantizedNetwork, weights: Mapping[str, Tensor]) -> Iterator[dict[str, nn.Parameter]]:
    """Within, each weight is quantized as weight + offset * step; afterwards that sum is the weight.

    Args:
        student: the network.
        weights: those to move, by their quantizer's key.

    Yields:
        The offsets by key, of the weights' shapes, in units of the step at the start; zero to begin with.
    """
    offsets: dict[str, nn.Parameter] = {}
    steps: dict[str, Tensor] = {}
    handles = []
    for key, weight in weights.items():
        quantizer = student.quantizers[key]
        offsets[key] = nn.Parameter(torch.zeros_like(weight))
        steps[key] = _step_of_each(quantizer, weight)

        def move(
            _module: nn.Module, args: tuple[Tensor], offset: Tensor = offsets[key], step: Tensor = steps[key]
        ) -> tuple[Tensor]:
            return (torch.addcmul(args[0], offset, step),)

        handles.append(quantizer.register_forward_pre_hook(move))
    try:
        yield offsets
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for key, offset in offsets.items():
                student.set_weight(key, torch.addcmul(weights[key], offset, steps[key]))


@torch.no_grad()
def _step_of_each(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """The step of the grid of each element, of the weight's shape."""
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    return quantizer.decode(codes + 1) - quantizer.decode(codes)
