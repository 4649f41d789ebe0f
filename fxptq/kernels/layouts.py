"""Layouts of weights: each chooses the operator for a layer and packs the weight for that operator.

Kernels on the CPU read `PANELS`, and so does plain torch; kernels on CUDA read `ROWS`. A back end uses one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from fxptq.graph.geometry import Geometry
from fxptq.kernels.layer import Layer
from fxptq.kernels.panels import (
    LANES,
    fits_bytes,
    joined_groups,
    pack_conv_weight,
    pack_depthwise_weight,
    pack_narrow_conv_weight,
    pack_taps,
    pack_weight,
    pad_columns,
    winograd_fits,
)
from fxptq.kernels.rows import pack_conv_rows, pack_rows, start_of
from fxptq.quant.grid import Grid

_NARROW = 48
"""`narrow_conv2d` is used up to this many columns times taps; above it `conv2d` wastes fewer SIMD lanes."""


@dataclass(frozen=True)
class Packed:
    """A layer prepared for one operator.

    Attributes:
        operator: the name of the operator.
        layer: the layer, with its scales in the units of the operator's sums.
        arguments: arguments of the operator, without the codes, the columns and the epilogue.
    """

    operator: str
    layer: Layer
    arguments: dict[str, Any]


class Layout(Protocol):
    """Chooses operators, and packs weights for them.

    In all methods `bits` is the width of the weight's codes, and `grid` is the grid of the input.
    """

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:
        """Packs a linear layer."""

    def fuses(self, geometry: Geometry, weight: Sequence[int], grid: Grid) -> bool:
        """Whether an operator computes a convolution of this geometry.

        Args:
            geometry: the geometry.
            weight: the shape of the weight.
            grid: the grid of the input.
        """

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:
        """Packs a convolution that an operator computes."""


@dataclass(frozen=True)
class Panels:
    """Panels of 16 columns for vector units, at 2, 3, 4 or 8 bits; 3x3 kernels are packed tap by tap if they fit."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:  # noqa: ARG002  # the codes show their width
        """Packs for the operator `linear`."""
        return Packed("linear", layer, {"weight": pack_weight(layer.packable()), "largest": grid.levels})

    def fuses(self, geometry: Geometry, weight: Sequence[int], grid: Grid) -> bool:
        """All but transposed ones, paddings that differ between the ends, and dilations that are not depthwise."""
        if geometry.transposed or any(geometry.trailing):
            return False
        return geometry.dilation == (1, 1) or _suits_depthwise(geometry, weight, grid)

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:  # noqa: ARG002
        """Packs for the first of `depthwise_conv2d`, `conv3x3`, `narrow_conv2d` and `conv2d` that suits the layer."""
        arguments = _border(layer, geometry)
        columns, channels, *size = layer.weight.shape
        place = {"kernel_size": size, "stride": list(geometry.stride), "largest": grid.levels}
        if _suits_depthwise(geometry, layer.weight.shape, grid):
            arguments |= place | {"weight": pack_depthwise_weight(layer.weight)}
            return Packed("depthwise_conv2d", layer, arguments | {"dilation": list(geometry.dilation)})
        if geometry.groups > 1:
            # The sums of codes that an offset of the weights needs are sums over the channels of one group.
            joined = layer.row_scale is None
            weight, groups = joined_groups(layer.weight, geometry.groups) if joined else (layer.weight, geometry.groups)
            arguments |= place | {"weight": pack_conv_weight(weight, groups), "groups": groups}
            return Packed("conv2d", layer, arguments)
        # With fewer columns or channels, most of a transformed patch would be empty.
        suits_winograd = size == [3, 3] and geometry.stride == (1, 1) and min(columns, channels) >= LANES
        if suits_winograd and winograd_fits(layer.packable(), grid.levels):
            weight = layer.packable()
            narrow = fits_bytes(weight, grid.levels)
            arguments |= {"weight": pack_taps(weight), "largest": grid.levels, "narrow": narrow}
            return Packed("conv3x3", layer, arguments)
        if geometry.stride == (1, 1) and columns * prod(size) <= _NARROW < LANES * prod(size):
            arguments |= {"weight": pack_narrow_conv_weight(layer.weight), "kernel_size": size, "largest": grid.levels}
            return Packed("narrow_conv2d", layer, arguments)
        return Packed("conv2d", layer, arguments | place | {"weight": pack_conv_weight(layer.packable())})


@dataclass(frozen=True)
class Rows:
    """Rows of codes at 2, 4 or 8 bits, which the kernels of a GPU unpack while they run; see rows.py."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:
        """Packs for the operator `rows_linear`."""
        packed = pack_rows(layer.weight, bits)
        start = start_of(packed, bits, grid.levels)
        return Packed("rows_linear", layer, {"weight": packed, "start": start, "bits": bits})

    def fuses(self, geometry: Geometry, weight: Sequence[int], grid: Grid) -> bool:  # noqa: ARG002
        """Convolutions without groups or dilation."""
        plain = not geometry.transposed and not any(geometry.trailing)
        return plain and geometry.groups == 1 and geometry.dilation == (1, 1)

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:
        """Packs for the operator `rows_conv2d`."""
        packed = pack_conv_rows(layer.weight, bits)
        arguments = _border(layer, geometry) | {
            "weight": packed,
            "start": start_of(packed, bits, grid.levels),
            "bits": bits,
            "kernel_size": list(layer.weight.shape[2:]),
            "stride": list(geometry.stride),
        }
        return Packed("rows_conv2d", layer, arguments)


def _suits_depthwise(geometry: Geometry, weight: Sequence[int], grid: Grid) -> bool:
    """Whether each channel has a kernel of its own, with sums of codes that fit 16 bits."""
    columns, channels, *size = weight
    return geometry.groups == columns > 1 == channels and grid.levels * prod(size) < 1 << 16


def _border(layer: Layer, geometry: Geometry) -> dict[str, Any]:
    """The arguments of an operator that describe the border of a convolution."""
    return {
        "padding": list(geometry.padding),
        "taps": None if layer.taps is None else pad_columns(layer.taps),
    }


PANELS: Layout = Panels()
ROWS: Layout = Rows()
