"""How a convolution walks over its input, read off its node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from fxptq.graph.calls import argument, name_of


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, as `F.conv2d` and `F.conv_transpose2d` take it."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False

    def apply(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The convolution of `x`, without a bias, in any number of groups."""
        if self.transposed:
            return F.conv_transpose2d(
                x, weight, None, self.stride, self.padding, self.output_padding, groups, self.dilation
            )
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups)


def geometry_of(site: fx.Node) -> Geometry:
    """How a convolution's node walks over its input."""

    def pair(value: Any) -> tuple[int, int]:
        first, second = (value, value) if isinstance(value, int) else (value * 2)[:2] if len(value) == 1 else value
        return int(first), int(second)

    transposed = name_of(site) == "conv_transpose2d"
    names = (
        ("stride", "padding", "output_padding", "groups", "dilation")
        if transposed
        else ("stride", "padding", "dilation", "groups")
    )
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    given = {name: argument(site, 3 + i, name, defaults[name]) for i, name in enumerate(names)}
    groups = int(given.pop("groups"))
    return Geometry(groups=groups, transposed=transposed, **{name: pair(value) for name, value in given.items()})
