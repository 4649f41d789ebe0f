"""The format of the pictures that go into a network and come out, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from fxptq.sizes import ANY_SIZE, Sizes


@dataclass(frozen=True)
class PictureFormat:
    """The pictures of a network.

    Attributes:
        channels: number of channels of the input.
        value_range: the value of white, 1.0 or 255.0.
        scale: ratio of the output's height and width to the input's.
        sizes: the sizes of input that the network takes.
    """

    channels: int = 3
    value_range: float = 1.0
    scale: int = 1
    sizes: Sizes = ANY_SIZE
