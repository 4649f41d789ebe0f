"""Maps of layers in integers: how their factors and centers leave a sum of codes, and the reason where they cannot.

A sum over an axis stays a sum of codes if the factors of its two operands have one product along that axis. Centers
leave the sum as constants, or as factors of sums of codes. Everything is computed once, in float64 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxptq.graph.geometry import Geometry
from fxptq.quant.coding import Coding
from fxptq.refusal import Refusal

_ROUNDING = 1e-6
"""Products of a float32 factor and its float32 inverse differ by less than this share."""


@dataclass(frozen=True, eq=False)
class LayerMap:
    """The maps of a layer's input and weight, by input channel of a group, group, and output of a group.

    Attributes:
        product: [N], the product of the factors of input and weight.
        factors: [inputs of a group, groups, outputs of a group], of the weight, without the multiples of its codes.
        lowest: [inputs of a group, groups, 1], the value of the input's code 0.
    """

    product: Tensor
    factors: Tensor
    lowest: Tensor


def layer_map(weight: Coding, entry: Coding, shape: tuple[int, ...], geometry: Geometry | None) -> LayerMap | Refusal:
    """The maps of a layer, or the reason why they do not leave its sums.

    Args:
        weight: the coding of the weight.
        entry: the coding of the layer's input.
        shape: of the weight, [N, C / groups, ...]; of a transposed convolution [C, N / groups, ...].
        geometry: of a convolution; None for a linear layer.
    """
    groups, transposed = (1, False) if geometry is None else (geometry.groups, geometry.transposed)
    channels = shape[0] if transposed else shape[1] * groups
    if weight.shares or entry.shares:
        return Refusal("an operand of a layer has shares")
    if bool((weight.centers != 0).any()):
        return Refusal("the map of the weight has centers")
    if weight.multiples is not None and any(grid.scale > 0 and grid.zero_code is None for grid in weight.grids):
        return Refusal("the steps of its columns are multiples, and 0 lies between two codes")
    factors = _along(_without_multiples(weight), (0, 1), tuple(shape))
    by_channel = [_along(x, (-1 if geometry is None else 0,), _input_shape(channels, geometry)) for x in _pair(entry)]
    if factors is None or any(x is None for x in by_channel):
        return Refusal("a map has other axes than the channels")
    own, lowest = (x.reshape(groups, -1).t()[..., None] for x in by_channel if x is not None)
    if transposed:
        factors = factors.reshape(groups, -1, shape[1]).transpose(0, 1)
    else:
        factors = factors.reshape(groups, -1, shape[1]).permute(2, 0, 1)
    products = own * factors
    if not is_even(products, 0):
        return Refusal("the factors of input and weight have no common product")
    return LayerMap(products.mean(0).flatten(), factors, lowest)


def _without_multiples(weight: Coding) -> Tensor:
    """The factors of a weight's values behind codes that are multiplied; without axes along which none varies."""
    if weight.multiples is None:
        return weight.factors
    factors = weight.factors / weight.multiples.double().cpu()
    for axis in range(factors.dim()):
        first = factors.narrow(axis, 0, 1)
        if bool((factors == first).all()):
            factors = first
    return factors


def _pair(entry: Coding) -> tuple[Tensor, Tensor]:
    return entry.factors, entry.lowest


def _input_shape(channels: int, geometry: Geometry | None) -> tuple[int, ...]:
    """The trailing axes of an input that may have a map, with 1 for the axes of the picture."""
    return (channels,) if geometry is None else (channels, *[1] * len(geometry.stride))


def _along(numbers: Tensor, axes: tuple[int, ...], shape: tuple[int, ...]) -> Tensor | None:
    """The numbers of a map along some axes of a shape to whose trailing axes it broadcasts; None if others vary."""
    if numbers.dim() > len(shape):
        return None
    own = numbers.reshape((1,) * (len(shape) - numbers.dim()) + tuple(numbers.shape))
    kept = {axis % len(shape) for axis in axes}
    if any(size > 1 and axis not in kept for axis, size in enumerate(own.shape)):
        return None
    return own.expand([shape[axis] if axis in kept else 1 for axis in range(len(shape))])


def is_even(numbers: Tensor, axis: int) -> bool:
    """Whether positive numbers are equal along an axis, up to the rounding of float32."""
    low, high = numbers.amin(axis), numbers.amax(axis)
    return bool((high - low <= _ROUNDING * high).all())
