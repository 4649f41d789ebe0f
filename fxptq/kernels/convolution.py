"""Convolutions without a kernel (transposed, dilated, on a GPU grouped), computed exactly on integers in floats.

The codes are small integers, and so are the weights: odd integers 2 W - (2**bits - 1), or multiples of W - zero point.
torch's own float convolution of them is exact as long as every partial sum fits the significand; this condition decides
between float32 and float64. The offsets go into the bias as in layer.py, and a border of real zeros is exact for the
same reason.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from fxptq.graph.geometry import Geometry
from fxptq.kernels.layer import signed_weight
from fxptq.kernels.maps import layer_map
from fxptq.quant.coding import Coding
from fxptq.refusal import Refusal


class GeneralConvolution(nn.Module):
    """Any 2-D convolution on codes.

    Args:
        codes: codes of the weight, uint8 [N, C / groups, h, w], or transposed [C, N / groups, h, w].
        coding: the coding of the weight, one grid for each block along its output axis.
        bias: [N] or None.
        entry: the coding of the input.
        geometry: stride, padding, dilation and groups of the convolution.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    inside: Tensor | None
    row_scale: Tensor | None

    def __init__(
        self, codes: Tensor, coding: Coding, bias: Tensor | None, *, entry: Coding, geometry: Geometry
    ) -> None:
        super().__init__()
        self.geometry = geometry
        axis, blocks = (1, geometry.groups) if geometry.transposed else (0, 1)
        size = codes.shape[axis]
        along = [-1 if i == axis else 1 for i in range(4)]
        maps = layer_map(coding, entry, tuple(codes.shape), geometry)
        assert not isinstance(maps, Refusal)  # noqa: S101  # Survey has asked
        signed, unit, centre = signed_weight(codes, coding, size, axis=axis, odd=True)
        values = signed * unit.view(along) + centre.view(along)
        depth = prod(codes.shape) // size
        exact = torch.float32 if depth * 255 * 255 < 1 << 24 else torch.float64
        # The weight is contiguous to avoid a fault of torch; `convolved` in ops.py describes it.
        self.register_buffer("weight", signed.to(exact).clone(memory_format=torch.contiguous_format))
        step = entry.grid.scale * maps.product.to(codes.device)
        self.register_buffer("scale", (step * unit.repeat(blocks)).float().view(-1, 1, 1))
        self.register_buffer("bias", None if bias is None else bias.detach().float().view(-1, 1, 1))
        # The value that each tap adds where the whole input has code 0, summed over the input channels of its group.
        lowest = (maps.factors * maps.lowest).to(codes.device)
        inside = self._over_inputs(self._by_input(lowest) * values)
        self.register_buffer("inside", inside.float() if bool((lowest != 0).any()) else None)
        self.register_buffer(
            "row_scale",
            (step * centre.repeat(blocks)).float().view(-1, 1, 1) if bool((centre != 0).any()) else None,
        )

    def _by_input(self, numbers: Tensor) -> Tensor:
        """Numbers [inputs of a group, groups, outputs of a group] in a shape that broadcasts to the weight."""
        ordered = numbers.transpose(0, 1).flatten(0, 1) if self.geometry.transposed else numbers.flatten(1).t()
        return ordered[..., None, None]

    def _over_inputs(self, weight: Tensor) -> Tensor:
        """The sum of a weight over its input channels: on one channel it acts as `weight` does on equal channels."""
        if self.geometry.transposed:
            grouped = weight.reshape(self.geometry.groups, -1, *weight.shape[1:])
            return grouped.sum(1).flatten(0, 1).unsqueeze(0)
        return weight.sum(1, keepdim=True)

    def forward(self, codes: Tensor) -> Tensor:
        """uint8 codes [B, C, H, W] -> float32 [B, N, H', W']."""
        weight, groups = self.weight, self.geometry.groups
        x = codes.to(weight.dtype)
        y = self.geometry.apply(x, weight, groups).float() * self.scale
        if self.row_scale is not None:
            y = y + self.geometry.apply(x, torch.ones_like(weight), groups).float() * self.row_scale
        if self.inside is not None:
            one = torch.ones(1, 1, *codes.shape[2:], device=codes.device)
            y = y + self.geometry.apply(one, self.inside, 1)
        return y if self.bias is None else y + self.bias
