"""The heights and widths that a network takes, as one value that all rooms share.

Promises: all code that makes an input for a network (calibration, crops, samples, tiles, padding) asks this value for
the size, so that a network never gets a size that it does not take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxptq.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


def parse_size(text: str) -> Size:
    """Reads height and width from `HEIGHTxWIDTH`.

    Raises:
        InputError: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--size {text!r}: expected HEIGHTxWIDTH, such as 64x64")
    return int(parts[0]), int(parts[1])


@dataclass(frozen=True)
class Sizes:
    """The sizes that a network takes.

    Attributes:
        multiple: height and width are multiples of this.
        minimum: height and width are at least this, pixels.
        square: height and width are equal.
        fixed: the only height and width that the network takes; None for a network of many sizes.

    Raises:
        InputError: a number below 1, or a fixed size that the other fields exclude.
    """

    multiple: int = 1
    minimum: int = 1
    square: bool = False
    fixed: Size | None = None

    def __post_init__(self) -> None:
        for name, value in (("multiple", self.multiple), ("minimum", self.minimum)):
            if value < 1:
                raise InputError(f"the {name} of a network's sizes is {value}; expected 1 or more")
        if self.fixed is not None:
            height, width = self.fixed
            if min(height, width) < self.minimum or height % self.multiple or width % self.multiple:
                raise InputError(f"the fixed size {height}x{width} is none of {self._rule()}")
            if self.square and height != width:
                raise InputError(f"the fixed size {height}x{width} is not square")

    @property
    def least(self) -> int:
        """The smallest side that is a multiple of `multiple` and at least `minimum`."""
        return _up(self.minimum, self.multiple)

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes this size."""
        if self.fixed is not None:
            return (height, width) == self.fixed
        fits = all(side >= self.minimum and side % self.multiple == 0 for side in (height, width))
        return fits and (height == width or not self.square)

    def at_least(self, height: int, width: int) -> Size:
        """The smallest size that the network takes and that holds a picture of this size.

        Raises:
            InputError: the network takes one size only, and the picture is larger.
        """
        if self.fixed is not None:
            if height > self.fixed[0] or width > self.fixed[1]:
                raise InputError(
                    f"a picture of {height}x{width} is larger than {self.fixed[0]}x{self.fixed[1]}, the only size that "
                    "the network takes: run the network in tiles"
                )
            return self.fixed
        rows, columns = (_up(max(side, self.minimum), self.multiple) for side in (height, width))
        return (max(rows, columns),) * 2 if self.square else (rows, columns)

    def near(self, height: int, width: int) -> Size:
        """The size for inputs that are made from scratch: the fixed one, or the smallest at least this."""
        return self.fixed or self.at_least(height, width)

    def crop(self, height: int, width: int, side: int) -> Size | None:
        """The size of crops out of pictures of this size.

        Args:
            height: height of the pictures, pixels.
            width: width of the pictures, pixels.
            side: the preferred side of a crop, pixels.

        Returns:
            The fixed size; or the largest square with sides up to `side`; or the smallest square, if `side` is less.
            None if it does not fit into the pictures.
        """
        if self.fixed is not None:
            return self.fixed if height >= self.fixed[0] and width >= self.fixed[1] else None
        largest = min(side, height, width) // self.multiple * self.multiple
        crop_side = max(largest, self.least)
        return (crop_side, crop_side) if crop_side <= min(height, width) else None

    def padded(self, x: Tensor) -> Tensor:
        """Continues pictures by reflection at the bottom and right up to a size that the network takes.

        Args:
            x: [N, C, H, W], H and W at least 1; reflection is repeated where a picture is smaller than the padding.

        Returns:
            [N, C, *at_least(H, W)].

        Raises:
            InputError: as `at_least`.
        """
        return reflected(x, self.at_least(x.shape[2], x.shape[3]))

    def __str__(self) -> str:
        """In words: "any size", "multiples of 8", "squares of at least 32", "64x64 only"."""
        return f"{self.fixed[0]}x{self.fixed[1]} only" if self.fixed is not None else self._rule()

    def _rule(self) -> str:
        shape = "squares" if self.square else "sizes"
        parts = [f"multiples of {self.multiple}"] if self.multiple > 1 else []
        parts += [f"at least {self.minimum}"] if self.minimum > 1 else []
        if not parts:
            return "squares of any size" if self.square else "any size"
        return f"{shape} in {' and '.join(parts)}" if self.multiple > 1 else f"{shape} of {parts[0]}"


ANY_SIZE = Sizes()


def reflected(x: Tensor, size: Size) -> Tensor:
    """Continues pictures by reflection at the bottom and right, [N, C, H, W] to [N, C, *size]."""
    for axis, wanted in zip((2, 3), size, strict=True):
        length = x.shape[axis]
        if length != wanted:
            x = x.index_select(axis, _reflection(length, wanted).to(x.device))
    return x


def _reflection(length: int, wanted: int) -> Tensor:
    """Positions 0, 1, ..., length - 1, length - 2, ..., 1, 0, 1, ... without repeating the ends."""
    import torch  # noqa: PLC0415  # recipes speak of sizes without torch

    period = max(1, 2 * (length - 1))
    positions = torch.arange(wanted) % period
    return torch.where(positions < length, positions, period - positions)


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
