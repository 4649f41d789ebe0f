"""What the small networks of this suite are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]
Step = Callable[[Any, Tensor], Any]


class Body(nn.Module):
    """A convolution that reads the picture, `step` on its features, and a convolution that makes the output.

    Args:
        step: gets the network and features [N, width, H, W]; gives features for the last convolution.
        width: channels of the features.
        out: channels of the output.
        wide: channels that `step` gives, if not `width`.
        parts: modules and parameters that `step` uses, by the name it calls them.
    """

    def __init__(self, step: Step, width: int = 12, out: int = 3, wide: int = 0, **parts: Any) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(wide or width, out, 3, padding=1)
        self.step = step
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.step(self, self.head(x)))


class Whole(nn.Module):
    """A module whose forward is a function: for networks that are nothing but that."""

    def __init__(self, step: Step, **parts: Any) -> None:
        super().__init__()
        self.step = step
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.step(self, *inputs)


def conv(width: int = 12, out: int = 0, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    """A convolution that keeps height and width, unless the settings say otherwise."""
    return nn.Conv2d(width, out or width, kernel, **{"padding": kernel // 2, **settings})


def noise(*shape: int, scale: float = 0.3) -> nn.Parameter:
    """A learned tensor."""
    return nn.Parameter(torch.randn(shape) * scale)
