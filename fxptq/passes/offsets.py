"""Codes of weights that learn: an offset to each, whose sum with it is rounded.

A weight that was rounded for the output of its layer lies in the middle of the cell of its code, and no small offset
moves it to another one. So each starts where the float weight lies, or as near to it as its cell allows: the codes are
those that rounding found, and the first to change are those for which it was a close decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxptq.passes.base import QuantizedNetwork
from fxptq.passes.pinned import Decoded, in_place_of_rounding
from fxptq.quant.quantizer import Quantizer

_INSIDE = 0.3
"""Largest distance of a weight from the middle of its cell at the start, in steps; its border is at 0.5.

So a training must go on for a while until the first code changes, and a short one, whose offsets only follow the noise
of its few crops, keeps them all.
"""


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
def learned_offsets(
    student: QuantizedNetwork, teacher: QuantizedNetwork, weights: Mapping[str, Tensor]
) -> Iterator[dict[str, nn.Parameter]]:
    """Within, each weight has the values of its codes, which offsets change; afterwards these values are the weight.

    Gradients reach the grid through the codes, and offsets straight through the rounding.

    Args:
        student: the network.
        teacher: the same network with float weights.
        weights: the weights of the student whose codes learn, by quantizer key.

    Yields:
        The offsets by key, of the weights' shapes, in units of the step; zero to begin with.
    """
    learned = {
        key: _Learned(student.quantizers[key], weight, student.tensors_in(teacher, key)[0])
        for key, weight in weights.items()
    }
    with in_place_of_rounding(student, learned):
        yield {key: values.offset for key, values in learned.items()}


class _Learned(Decoded):
    """The values of codes that learn.

    Args:
        quantizer: the weight's, with bounds.
        weight: the weight, whose codes are the first ones.
        float_weight: the weight in float, of its shape.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor, float_weight: Tensor) -> None:
        super().__init__(quantizer, weight)
        self.offset = nn.Parameter(torch.zeros_like(weight))
        with torch.no_grad():
            self._step = _step_of_each(quantizer, weight)
            moves = self.coded & (self._step != 0)
            away = (float_weight.to(weight.device) - self.weight) / torch.where(moves, self._step, 1)
            self._start = self.first_codes + torch.where(moves, away, 0).clamp(-_INSIDE, _INSIDE)

    def values(self) -> Tensor:
        """See Decoded; gradients pass to the offsets as if nothing was rounded."""
        most = 2**self.quantizer.bits - 1
        codes = (self._start + self.offset.detach()).clamp(0, most).round().to(torch.uint8)
        return self.quantizer.decode(codes) + self._step * (self.offset - self.offset.detach())


@torch.no_grad()
def _step_of_each(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """The step of the grid at each element, in the shape of the weight."""
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    return quantizer.decode(codes + 1) - quantizer.decode(codes)
