"""Offsets that are added to weights before rounding; training them chooses between neighbouring codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxptq.passes.base import QuantizedNetwork
from fxptq.quant.quantizer import Quantizer


def movable_weights(student: QuantizedNetwork) -> dict[str, Tensor]:
    """The weights that may change, by quantizer key: the quantizer is on, and it is the only reader of the weight.

    A weight that is read at two widths or along two axes has two grids, and a scheme that stores no codes has no grid.
    A weight that something reads in float (a layer left in float, a sum over the weight) must not change for that
    reader.
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
        weights: the weights that get offsets, by quantizer key.

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
    """The step of the grid at each element, in the shape of the weight."""
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    return quantizer.decode(codes + 1) - quantizer.decode(codes)
