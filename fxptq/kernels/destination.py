"""The codes that an operator makes of its output: the grids of the quantizers that read it, by channel.

Quantizers read a value through moves and scalings. An operator can make their codes if each channel of the value has
one grid, whoever reads it: the thirds of a fused qkv layer have different grids, and a map gives each channel its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxptq.kernels.patterns import Use, arrivals
from fxptq.quant.coding import Coding


@dataclass(frozen=True, eq=False)
class Target:
    """Codes of a value y: round(clip(y * scale + offset, 0, levels)); all tensors are float64 [channels] on the CPU.

    A channel that no quantizer reads has the code 0.

    Attributes:
        scale: factor from a value to its code.
        offset: the code of the value 0.
        levels: the largest code.
    """

    scale: Tensor
    offset: Tensor
    levels: Tensor

    @property
    def is_even(self) -> bool:
        """Whether all channels have one largest code."""
        return bool((self.levels == self.levels[0]).all())

    def for_shuffle(self, factor: int) -> Target:
        """The target of the channels before a pixel shuffle: each run of factor**2 channels becomes one."""
        return Target(*(x.repeat_interleave(factor * factor) for x in (self.scale, self.offset, self.levels)))

    def reordered(self, order: Tensor) -> Target:
        """The target with its channels in another order: channel i is the former channel `order[i]`."""
        return Target(self.scale[order], self.offset[order], self.levels[order])


def target_of(end: fx.Node, axes: tuple[int, ...], readers: Sequence[tuple[Use, Coding]]) -> Target | None:
    """The codes that the operator of a node makes; None unless each channel has one grid.

    Args:
        end: the node of the value.
        axes: the axes of the value along which its channels lie, in ascending order.
        readers: the quantizers that read the value, with their codings.
    """
    channels = torch.Size(end.meta["shape"][axis] for axis in axes).numel()
    if any(coding.shares for _, coding in readers):
        return None
    if all(coding.is_plain for _, coding in readers) and len({(use.factor, c.grid) for use, c in readers}) == 1:
        return Target(*(numbers.repeat(channels) for numbers in _numbers(*readers[0])))
    found = torch.full((3, channels), torch.nan, dtype=torch.float64, device="cpu")
    for use, coding in readers:
        moved = arrivals(end, axes, use.quantizer)
        if moved is None:
            return None
        own = torch.stack([numbers.expand(moved.shape) for numbers in _numbers(use, coding)]).flatten(1)
        number = moved.flatten()
        before = found[:, number]
        found[:, number] = own
        # Each channel has one grid at all its places, and for all quantizers.
        if not bool((found[:, number] == own).all()) or not bool(((before == own) | before.isnan()).all()):
            return None
    return Target(*found.nan_to_num(0.0).unbind())


def _numbers(use: Use, coding: Coding) -> tuple[Tensor, Tensor, Tensor]:
    zero_points = coding.zero_points
    return use.factor / coding.steps, zero_points, torch.full_like(zero_points, float(coding.grid.levels))
