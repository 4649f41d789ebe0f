"""Weights whose codes stay while their grids learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from fxptq.passes.base import QuantizedNetwork
from fxptq.quant.quantizer import Quantizer


@contextmanager
def pinned_codes(student: QuantizedNetwork, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, each weight has the values that its codes stand for on the grid at hand; afterwards they are the weight.

    So the codes that rounding for the layer's output has found are kept, and gradients reach the grid through them.

    Args:
        student: the network.
        weights: the weights whose codes stay, by quantizer key.
    """
    with in_place_of_rounding(
        student, {key: Decoded(student.quantizers[key], weight) for key, weight in weights.items()}
    ):
        yield


@contextmanager
def in_place_of_rounding(
    student: QuantizedNetwork, values_of: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Within, weights have the values that a function gives in place of their quantizers; afterwards these are they.

    Args:
        student: the network.
        values_of: for each weight, by quantizer key, the function of it.
    """
    with ExitStack() as replaced:
        for key, values in values_of.items():
            quantizer = student.quantizers[key]
            quantizer.forward = values  # type: ignore[method-assign, assignment]  # a hook would quantize first, for nothing
            replaced.callback(delattr, quantizer, "forward")
        yield
    with torch.no_grad():
        for key, values in values_of.items():
            weight = student.weight_of(key)
            assert weight is not None  # the quantizer reads one  # noqa: S101
            student.set_weight(key, values(weight))


class Decoded:
    """The values of codes on the present grid of a quantizer; values that have no code stay as they are.

    Args:
        quantizer: the weight's, with bounds.
        weight: the weight whose codes these are.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        self.quantizer = quantizer
        with torch.no_grad():
            self.first_codes = quantizer.encode(weight)
            self.weight = quantizer.quantize(weight)
            self.coded = quantizer.decode(self.first_codes) == self.weight
        self._all = bool(self.coded.all())

    def values(self) -> Tensor:
        """The values of the codes, of the weight's shape, also where the weight has none."""
        return self.quantizer.decode(self.first_codes)

    def __call__(self, x: Tensor) -> Tensor:  # noqa: ARG002  # takes the place of `Quantizer.forward`
        """The values, whatever the float weight is."""
        return self.values() if self._all else torch.where(self.coded, self.values(), self.weight)
