"""The geometry of a convolution (stride, padding, dilation, groups): read from its node, and applied to tensors.

Convolutions over one, two and three axes are covered, plain and transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxptq.graph.calls import argument

if TYPE_CHECKING:
    from torch import Tensor, fx


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution; every tuple has one number for each axis of the image.

    Attributes:
        stride: step from one position of the kernel to the next.
        padding: number of zeros before the first value of an axis, and behind the last; a transposed convolution
            removes as many values from both ends of its output.
        trailing: further zeros behind the last value. Only `padding="same"` makes them, where the kernel spans an even
            number of values.
        dilation: distance of two neighbouring taps.
        groups: number of groups of channels that are convolved separately.
        output_padding: number of values that a transposed convolution adds to one end of its output.
        transposed: whether it is a transposed convolution.
    """

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, ...] = (0, 0)
    transposed: bool = False
    trailing: tuple[int, ...] = (0, 0)

    def apply(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The convolution of `x`, without a bias, in any number of groups.

        Args:
            x: [B, C, *image] or [C, *image].
            weight: [N, C / groups, *kernel]; of a transposed convolution [C, N / groups, *kernel].
            groups: replaces the number of groups of the geometry.
        """
        import torch.nn.functional as F  # noqa: PLC0415  # recipes read the table of kinds without torch

        axes = len(self.stride)
        if self.transposed:
            return (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1](
                x, weight, None, self.stride, self.padding, self.output_padding, groups, self.dilation
            )
        if any(self.trailing):
            x = F.pad(x, _pad(axes, [0] * axes, self.trailing))
        plain = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return plain(x, weight, None, self.stride, self.padding, self.dilation, groups)

    def windows(self, x: Tensor, kernel: Sequence[int]) -> Tensor:
        """The values that the kernel multiplies at each position of the output, for a plain convolution.

        Args:
            x: [B, C, *image] or [C, *image].
            kernel: size of the kernel along each axis of the image.

        Returns:
            [B, C, *positions, *kernel], a view of the padded input.
        """
        import torch.nn.functional as F  # noqa: PLC0415  # as above

        axes = len(self.stride)
        windows = x if x.dim() == axes + 2 else x.unsqueeze(0)
        behind = [near + more for near, more in zip(self.padding, self.trailing, strict=True)]
        windows = F.pad(windows, _pad(axes, self.padding, behind))
        for axis in range(axes):
            span = self.dilation[axis] * (kernel[axis] - 1) + 1
            windows = windows.unfold(2 + axis, span, self.stride[axis])[..., :: self.dilation[axis]]
        return windows


def _pad(axes: int, before: Sequence[int], behind: Sequence[int]) -> list[int]:
    """Widths in the order of F.pad, which begins with the last axis."""
    return [width for axis in reversed(range(axes)) for width in (before[axis], behind[axis])]


def convolution_geometry(node: fx.Node) -> Geometry | None:
    """The geometry of a call of conv1d, conv2d or conv3d.

    Args:
        node: the call; the nodes of its input and weight carry their shapes.

    Returns:
        None where the network computes a stride, padding or dilation from sizes, because it then differs between sizes.
    """
    kernel = _shape(node, 1, "weight")[2:]
    axes = len(kernel)
    stride, dilation = (_numbers(argument(node, at, name, 1), axes) for at, name in ((3, "stride"), (5, "dilation")))
    if stride is None or dilation is None:
        return None
    setting = argument(node, 4, "padding", 0)
    if setting == "same":
        spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        padding, trailing = tuple(span // 2 for span in spans), tuple(span % 2 for span in spans)
    else:
        numbers = _numbers(0 if setting == "valid" else setting, axes)
        if numbers is None:
            return None
        padding, trailing = numbers, (0,) * axes
    groups = _groups(argument(node, 6, "groups", 1), _shape(node, 0, "input"), node, axes)
    return Geometry(stride, padding, dilation, groups, (0,) * axes, trailing=trailing)


def transposed_geometry(node: fx.Node) -> Geometry | None:
    """The geometry of a call of conv_transpose1d, conv_transpose2d or conv_transpose3d; see `convolution_geometry`."""
    axes = len(_shape(node, 1, "weight")) - 2
    names = {"stride": (3, 1), "padding": (4, 0), "output_padding": (5, 0), "dilation": (7, 1)}
    read = {name: _numbers(argument(node, at, name, default), axes) for name, (at, default) in names.items()}
    settings = {name: numbers for name, numbers in read.items() if numbers is not None}
    if len(settings) < len(names):
        return None
    groups = _groups(argument(node, 6, "groups", 1), node.meta["shape"], node, axes)
    return Geometry(**settings, groups=groups, transposed=True, trailing=(0,) * axes)


def _shape(node: fx.Node, position: int, name: str) -> tuple[int, ...]:
    return tuple(argument(node, position, name).meta["shape"])


def _numbers(value: object, axes: int) -> tuple[int, ...] | None:
    """An argument as one number for each axis; None where a node computes it."""
    elements = list(value) if isinstance(value, (tuple, list)) else [value]
    numbers = [number for number in elements if isinstance(number, int)]
    if len(numbers) < len(elements):
        return None
    return tuple(numbers * axes if len(numbers) == 1 else numbers)


def _groups(groups: object, shape: Sequence[int], node: fx.Node, axes: int) -> int:
    """The number of groups; where a node computes it (`groups=x.shape[1]`), it follows from the shapes.

    Args:
        groups: the argument of the call.
        shape: the shape whose channels are divided among the groups: [B, channels, *image] or [channels, *image].
        node: the call.
        axes: number of axes of the image.
    """
    return groups if isinstance(groups, int) else shape[-axes - 1] // _shape(node, 1, "weight")[1]
