"""A scheme of another package: each row is quantized in a range of its own, found at run time, within static limits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxptq.quant import grid
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer, Role, Trainable
from fxptq.quant.scheme import register
from fxptq.refusal import Refusal


@register("row_dynamic")
class RowDynamic(Quantizer):
    """Clips to limits found by a search, then cuts the range of each row of the last axis into 2**bits - 1 steps."""

    stores_codes = False

    def __init__(self, bits: int, ranges: int = 1, axis: int = 0, role: Role = "symmetric") -> None:
        super().__init__(bits, ranges, axis, role)
        self.register_buffer("limits", torch.zeros(2, ranges))
        self.stretch = nn.Parameter(torch.zeros(ranges))

    @property
    def lower(self) -> Tensor:
        return self.limits[0] * self.stretch.exp()

    @property
    def upper(self) -> Tensor:
        return self.limits[1] * self.stretch.exp()

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.maximum(x.amin(-1, keepdim=True), self.spread(self.lower, x))
        high = torch.minimum(x.amax(-1, keepdim=True), self.spread(self.upper, x))
        return (high - low).clamp(min=1e-6) / grid.levels(self.bits), low

    def quantize(self, x: Tensor) -> Tensor:
        scale, low = self._range(x)
        return grid.fake_quantize(x, scale, low, self.bits)

    def encode(self, x: Tensor) -> Tensor:
        return grid.encode(x, *self._range(x), self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError("codes alone do not say the range of their row")

    def set_bounds(self, lower: Tensor | float, upper: Tensor | float) -> None:
        with torch.no_grad():
            self.limits.copy_(torch.stack([self.per_range(bound, self.stretch) for bound in (lower, upper)]))
            self.stretch.zero_()

    def squared_error(self, values: Distribution, lower: Tensor, upper: Tensor) -> Tensor:
        return values.squared_error(lower, upper, self.bits)

    def stored(self) -> dict[str, Tensor]:
        return {"limits": self.limits, "stretch": self.stretch.detach()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.limits.copy_(tensors["limits"])
            self.stretch.copy_(tensors["stretch"])

    def trainables(self) -> tuple[Trainable, ...]:
        return (Trainable(self.stretch, grid.levels(self.bits)),)

    def grids(self) -> Refusal:
        return Refusal("the range of each row is found at run time")
