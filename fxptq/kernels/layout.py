"""How weights lie for a device's kernels: which operator serves a layer, and the weight as that operator takes it.

`PANELS` is for the CPU (and whatever has no kernels of its own), `ROWS` for CUDA; rewriting a graph takes one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch

from fxptq.graph.geometry import Geometry
from fxptq.kernels.fold import Grid, Layer
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

_NARROW = 48
"""Columns times taps up to which multiplying every pixel by every tap once beats leaving lanes empty."""


@dataclass(frozen=True)
class Served:
    """A layer and what serves it.

    Attributes:
        operator: its name.
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

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Served:
        """For a linear layer."""

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Served:
        """For a convolution without groups or dilation."""


@dataclass(frozen=True)
class Panels:
    """Panels of 16 columns, as vector units read them, in bytes or half bytes; 3x3 kernels tap by tap if they fit."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Served:  # noqa: ARG002  # bytes whatever the bits
        """`linear`."""
        return Served("linear", layer, {"weight": pack_weight(layer.packable())})

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Served:  # noqa: ARG002
        """`conv3x3`, `narrow_conv2d` or `conv2d`."""
        place = _place(layer, geometry)
        columns, channels, *size = layer.weight.shape
        # Fewer columns or channels leave most of a transformed patch empty.
        wide = size == [3, 3] and geometry.stride == (1, 1) and min(columns, channels) >= LANES
        if wide and winograd_fits(layer.packable(), grid.levels):
            place |= {"weight": pack_taps(layer.packable()), "largest": grid.levels}
            return Served("conv3x3", layer.for_sums_times(4), place)
        if geometry.stride == (1, 1) and columns * prod(size) <= _NARROW < LANES * prod(size):
            place |= {"weight": pack_narrow_conv_weight(layer.weight), "kernel_size": size}
            return Served("narrow_conv2d", layer, place)
        place |= {"weight": pack_conv_weight(layer.packable()), "kernel_size": size, "stride": list(geometry.stride)}
        return Served("conv2d", layer, place)


@dataclass(frozen=True)
class Rows:
    """Rows of codes at 2, 4 or 8 bits, which a GPU unpacks as it goes; see rows.py."""

    def linear(self, layer: Layer, bits: int, grid: Grid) -> Served:
        """`rows_linear`."""
        packed = pack_rows(layer.weight, bits)
        start = start_of(packed, bits, grid.levels)
        return Served("rows_linear", layer, {"weight": packed, "start": start, "bits": bits})

    def convolution(self, layer: Layer, bits: int, grid: Grid, geometry: Geometry) -> Served:
        """`rows_conv2d`."""
        packed = pack_conv_rows(layer.weight, bits)
        place = _place(layer, geometry) | {
            "weight": packed,
            "start": start_of(packed, bits, grid.levels),
            "bits": bits,
            "kernel_size": list(layer.weight.shape[2:]),
            "stride": list(geometry.stride),
        }
        return Served("rows_conv2d", layer, place)


def _place(layer: Layer, geometry: Geometry) -> dict[str, Any]:
    return {
        "padding": list(geometry.padding),
        "taps": None if layer.taps is None else pad_columns(layer.taps),
    }


PANELS: Layout = Panels()
ROWS: Layout = Rows()


def layout_for(device: torch.device) -> Layout:
    """The layout that the kernels of a device read."""
    return ROWS if device.type == "cuda" else PANELS
