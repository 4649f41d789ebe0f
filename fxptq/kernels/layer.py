"""A layer in the form that integer kernels need: signed codes of the weight, and factors and offsets for its sums.

An activation is a = s_a A + o_a with codes A, a weight w = s W + o with signed codes W (odd integers up to 7 bits, so
that a symmetric grid has o = 0). Then

    sum a w + bias = s_a s sum(A W) + s_a o sum(A) + (o_a sum(w) + bias)

and the kernel computes only the first two sums. With maps, s_a includes the product of both factors, and the value
of the input's code 0, o_a, is another number for each channel. Where a convolution pads, o_a w is added only for the
taps that lie inside the image, so that the real zero of the border is exact. This module computes everything once, in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxptq.graph.geometry import Geometry
from fxptq.kernels.maps import layer_map
from fxptq.kernels.panels import centred, pad_columns, with_sums
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.refusal import Refusal


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution on codes, neither packed nor padded yet; all tensors but the weight are float64.

    Attributes:
        weight: signed codes, int8, of the weight's shape; (code - zero point) * multiple where there are multiples.
        scale: [N], factor of the sum of products.
        bias: [N].
        row_scale: [N], factor of the sum of the activation codes; None where all weights are centred on zero.
        taps: [taps, N], the value that each tap inside the image adds to the bias; None where no value depends on the
            border.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    row_scale: Tensor | None = None
    taps: Tensor | None = None

    @property
    def columns(self) -> int:
        """Number of outputs."""
        return self.scale.numel()

    def width(self, bits: int) -> int:
        """The width that holds the signed codes: `bits` if they are its odd integers, and 8 with multiples."""
        weight = self.weight.short()
        return bits if bool((weight % 2 != 0).all() and (weight.abs() < 1 << bits).all()) else 8

    def times(self, factor: Tensor | float) -> Layer:
        """The layer with its output multiplied by a number, or one for each column [N]."""
        return replace(
            self,
            scale=self.scale * factor,
            bias=self.bias * factor,
            row_scale=None if self.row_scale is None else self.row_scale * factor,
            taps=None if self.taps is None else self.taps * factor,
        )

    def packable(self) -> Tensor:
        """The weight to pack: with a row of ones, which makes the sums of the codes, where the epilogue needs them."""
        return self.weight if self.row_scale is None else with_sums(self.weight)

    def reordered(self, order: Tensor) -> Layer:
        """The layer with its outputs in another order: output i is the former output `order[i]`."""
        return Layer(
            weight=self.weight[order],
            scale=self.scale[order],
            bias=self.bias[order],
            row_scale=None if self.row_scale is None else self.row_scale[order],
            taps=None if self.taps is None else self.taps[:, order],
        )

    def plus(self, offset: Tensor | float) -> Layer:
        """The layer with a number added to its output, or one for each column [N]."""
        return replace(self, bias=self.bias + offset)

    def epilogue(self) -> dict[str, Tensor | None]:
        """The tensors that the epilogue of an operator takes, by argument name."""
        return {
            "bias": pad_columns(self.bias),
            "scale": pad_columns(self.scale),
            "row_scale": None if self.row_scale is None else pad_columns(self.row_scale),
        }


def integer_layer(
    codes: Tensor, weight: Coding, bias: Tensor | None, entry: Coding, geometry: Geometry | None = None
) -> Layer:
    """A linear layer, or a convolution that is not transposed, on codes.

    Args:
        codes: codes of the weight, uint8 [N, K] or [N, C / groups, kernel height, kernel width].
        weight: the coding of the weight, one grid for each contiguous block of the N outputs.
        bias: [N] or None.
        entry: the coding of the input.
        geometry: of a convolution; where it pads, the input has a border of real zeros, which may lie between two grid
            values.
    """
    columns = len(codes)
    maps = layer_map(weight, entry, tuple(codes.shape), geometry)
    assert not isinstance(maps, Refusal)  # noqa: S101  # Survey has asked
    signed, scale, offset = signed_weight(codes, weight, columns)
    values = signed.reshape(columns, codes.shape[1], -1) * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
    lowest = (maps.factors * maps.lowest).flatten(1).t().to(codes.device)  # [N, inputs of a group]
    inside = torch.einsum("nct,nc->nt", values, lowest)
    constant = inside.new_zeros(columns) if bias is None else bias.detach().double()
    by_tap = geometry is not None and any(geometry.padding) and bool((lowest != 0).any())
    step = entry.grid.scale * maps.product.to(codes.device)
    return Layer(
        weight=signed,
        scale=step * scale,
        bias=constant if by_tap else constant + inside.sum(1),
        row_scale=step * offset if bool((offset != 0).any()) else None,
        taps=inside.t().contiguous() if by_tap else None,
    )


def signed_weight(
    codes: Tensor, coding: Coding, columns: int, *, axis: int = 0, odd: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole numbers that stand for a weight in sums of products, with the scale and the offset of each output.

    They are the signed codes (`Grid.signed`), or where the coding has multiples (code - zero point) * multiple, without
    an offset.

    Args:
        codes: codes of the weight, uint8.
        coding: of the weight; with multiples, each of its grids has a zero point.
        columns: number of outputs.
        axis: the axis of the weight along which they lie.
        odd: whether signed codes of 8 bits are odd integers too, which need more than a byte.

    Returns:
        The numbers of the shape of the codes, float64 with `odd` and int8 else; and float64 [columns] twice.
    """
    if coding.multiples is None:
        scale, offset = signed_columns(coding.grids, columns, codes.device, odd=odd)
        signed = 2 * codes.double() - coding.grid.levels if odd else centred(codes, coding.grid.bits)
        return signed, scale, offset
    pairs = [(grid.zero_code or 0, grid.scale) for grid in coding.grids]
    each = torch.tensor(pairs, dtype=torch.float64, device=codes.device)
    zero, scale = each.repeat_interleave(columns // len(pairs), 0).unbind(1)
    along = [-1 if i == axis else 1 for i in range(codes.dim())]
    multiples = coding.multiples.to(device=codes.device, dtype=torch.int16)
    signed = (codes.short() - zero.short().view(along)) * multiples
    return signed.to(torch.float64 if odd else torch.int8), scale, torch.zeros_like(scale)


def signed_columns(
    grids: Sequence[Grid], columns: int, device: torch.device, *, odd: bool = False
) -> tuple[Tensor, Tensor]:
    """(scale, offset) of the signed codes (`Grid.signed`) of each output, float64 [columns] each."""
    pairs = torch.tensor([grid.signed(odd=odd) for grid in grids], dtype=torch.float64, device=device)
    scale, offset = pairs.repeat_interleave(columns // len(grids), 0).unbind(1)
    return scale, offset
