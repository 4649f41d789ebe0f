"""Vivid copies of calibration pictures: stronger colours and contrast than the pictures of a set usually have.

Some values of a restoration network carry the picture itself, and no norm bounds them. A picture of stronger colours
than all that were seen goes beyond the ranges of such values, by an amount that differs from operand to operand. Vivid
copies show how far. They serve where ranges are fine enough to be that wide, not as inputs to calibrate on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxptq.data.sources import Inputs

COPIES = 8
"""Number of vivid copies that fine ranges reach to."""

_SATURATION, _CONTRAST = 2.0, 1.3
"""Factors of the distances of channels from their mean, and of pixels from the mean of their channel.

Over the inputs of the trunk and the tail of DAT-light, ranges of 8 bits from eight such copies and the pictures have a
mean error of 2.2 units of rounding on Set5 and Set14, and of 9 on the worst picture of each input; without copies 13
and 192, and 1.2 times as wide 7 and 104 (`python -m benchmarks.reach`).
"""


def vivid(images: Sequence[Inputs], count: int) -> list[Tensor]:
    """Copies of the first pictures, whose values stay between the least and the largest of all pictures by channel.

    Args:
        images: calibration inputs, in the network's own range.
        count: number of copies at most.

    Returns:
        The copies, [N, C, H, W] each as the pictures; none of a network of several inputs.
    """
    pictures = [image for image in images if isinstance(image, Tensor) and image.dim() == 4]
    if len(pictures) < len(images) or not pictures:
        return []
    low = torch.stack([picture.amin((0, 2, 3)) for picture in pictures]).amin(0).view(-1, 1, 1)
    high = torch.stack([picture.amax((0, 2, 3)) for picture in pictures]).amax(0).view(-1, 1, 1)
    return [torch.clamp(_stronger(picture), low, high) for picture in pictures[:count]]


def _stronger(picture: Tensor) -> Tensor:
    grey = picture.mean(1, keepdim=True)
    coloured = grey + _SATURATION * (picture - grey)
    middle = coloured.mean((2, 3), keepdim=True)
    return middle + _CONTRAST * (coloured - middle)
