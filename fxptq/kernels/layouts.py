"""How weights lie for a device's kernels: which operator computes a layer, and the weight as that operator takes it.

`PANELS` is what kernels on the CPU read (and those of every device that has none of its own), `ROWS` what they read on
CUDA; a back end has one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from fxptq.graph.geometry import Geometry
from fxptq.kernels.layer import Layer
from fxptq.kernels.panels import (
    LANES,
    pack_conv_weight,
    pack_narrow_conv_weight,
    pack_taps,
    pack_weight,
    pad_columns,
    winograd_fits,
)
from fxptq.kernels.rows import pack_conv_rows, pack_rows, start_of
from fxptq.quant.grid import Grid

_NARROW = 48
"""Columns times taps up to which multiplying every pixel by every tap once beats leaving lanes empty."""


@dataclass(frozen=True)
class Packed:
    """A layer as one operator takes it.

    Attributes:
        operator: the name of the operator.
        layer: as that operator takes it.
        arguments: of the operator, but for the codes, the columns and the epilogue.
    """

    operator: str
    layer: Layer
    arguments: dict[str, Any]


class Layout(Protocol):
    """Chooses operators, and packs weights for them.

    `bits` are those of the weight, `grid` is that of the input.
    """

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:
        """For a linear layer."""

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:
        """For a convolution without groups or dilation."""


@dataclass(frozen=True)
class Panels:
    """Panels of 16 columns, as vector units read them, in bytes or half bytes; 3x3 kernels tap by tap if they fit."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:  # noqa: ARG002  # bytes whatever the bits
        """`linear`."""
        return Packed("linear", layer, {"weight": pack_weight(layer.packable())})

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:  # noqa: ARG002
        """`conv3x3`, `narrow_conv2d` or `conv2d`."""
        place = _place(layer, geometry)
        columns, channels, *size = layer.weight.shape
        # Fewer columns or channels leave most of a transformed patch empty.
        wide = size == [3, 3] and geometry.stride == (1, 1) and min(columns, channels) >= LANES
        if wide and winograd_fits(layer.packable(), grid.levels):
            place |= {"weight": pack_taps(layer.packable()), "largest": grid.levels}
            return Packed("conv3x3", layer.for_sums_times(4), place)
        if geometry.stride == (1, 1) and columns * prod(size) <= _NARROW < LANES * prod(size):
            place |= {"weight": pack_narrow_conv_weight(layer.weight), "kernel_size": size}
            return Packed("narrow_conv2d", layer, place)
        place |= {"weight": pack_conv_weight(layer.packable()), "kernel_size": size, "stride": list(geometry.stride)}
        return Packed("conv2d", layer, place)


@dataclass(frozen=True)
class Rows:
    """Rows of codes at 2, 4 or 8 bits, which a GPU unpacks as it goes; see rows.py."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Packed:
        """`rows_linear`."""
        packed = pack_rows(layer.weight, bits)
        start = start_of(packed, bits, grid.levels)
        return Packed("rows_linear", layer, {"weight": packed, "start": start, "bits": bits})

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Packed:
        """`rows_conv2d`."""
        packed = pack_conv_rows(layer.weight, bits)
        place = _place(layer, geometry) | {
            "weight": packed,
            "start": start_of(packed, bits, grid.levels),
            "bits": bits,
            "kernel_size": list(layer.weight.shape[2:]),
            "stride": list(geometry.stride),
        }
        return Packed("rows_conv2d", layer, place)


def _place(layer: Layer, geometry: Geometry) -> dict[str, Any]:
    return {
        "padding": list(geometry.padding),
        "taps": None if layer.taps is None else pad_columns(layer.taps),
    }


PANELS: Layout = Panels()
ROWS: Layout = Rows()
