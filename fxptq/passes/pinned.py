"""Weights whose codes stay while their grids learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from fxptq.passes.base import QuantizedNetwork


@contextmanager
def pinned_codes(student: QuantizedNetwork, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, each weight has the values that its codes stand for on the grid at hand; afterwards they are the weight.

    So the codes that rounding for the layer's output has found are kept, and gradients reach the grid through them.

    Args:
        student: the network.
        weights: the weights whose codes stay, by quantizer key.
    """
    with in_place_of_rounding(student, {key: _Decoded(student, key, weight) for key, weight in weights.items()}):
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


class _Decoded:
    """The values of fixed codes on the present grid of a quantizer; values that have no code stay as they are."""

    def __init__(self, student: QuantizedNetwork, key: str, weight: Tensor) -> None:
        self._quantizer = student.quantizers[key]
        with torch.no_grad():
            self._codes = self._quantizer.encode(weight)
            self._weight = self._quantizer.quantize(weight)
            self._coded = self._quantizer.decode(self._codes) == self._weight
        self._all = bool(self._coded.all())

    def __call__(self, x: Tensor) -> Tensor:  # noqa: ARG002  # takes the place of `Quantizer.forward`
        values = self._quantizer.decode(self._codes)
        return values if self._all else torch.where(self._coded, values, self._weight)
