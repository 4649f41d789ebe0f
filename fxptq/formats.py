"""What goes into a network and what comes out, as far as pictures are concerned: one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from fxptq.sizes import ANY_SIZE, Sizes


@dataclass(frozen=True)
class PictureFormat:
    """The pictures of a network.

    Attributes:
        channels: of the input.
        value_range: the value of white, 1.0 or 255.0.
        scale: of the output's height and width over the input's.
        sizes: the sizes of input that the network takes.
    """

    channels: int = 3
    value_range: float = 1.0
    scale: int = 1
    sizes: Sizes = ANY_SIZE
