"""Turns: the orientations of a picture, and the answer that a network gives to a crop by way of one of them.

A network that restores a turned picture as well as the picture itself gives two answers that are equally right and
not equal. What they have in common is nearer to the truth than either: the mean of all eight is the self-ensemble of
EDSR (arXiv 1707.02921), which has more PSNR than the network. A student that learns the mean of its teacher's own
answer and of one by way of another orientation, which differs from crop to crop, learns less of what answers do not
share.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_SQUARE, _OTHER = 8, 4
"""Orientations that keep the size of a square crop, and of another crop."""


def turn(x: Tensor, number: int) -> Tensor:
    """The orientation of that number of pictures [..., H, W]; 0 is their own, and from 4 on height and width change."""
    x = x.transpose(-1, -2) if number & 4 else x
    x = x.flip(-2) if number & 2 else x
    return x.flip(-1) if number & 1 else x


def turn_back(x: Tensor, number: int) -> Tensor:
    """The pictures whose orientation of that number is `x`."""
    x = x.flip(-1) if number & 1 else x
    x = x.flip(-2) if number & 2 else x
    return x.transpose(-1, -2) if number & 4 else x


def turn_of(crop: Tensor) -> int:
    """The number of the orientation by way of which a crop [C, H, W] is answered: another than its own, of its size.

    It is read off the content, so that a crop has the same answer whenever it is asked for.
    """
    height, width = crop.shape[-2:]
    content = crop.detach().float().cpu().contiguous().numpy().tobytes()
    return 1 + zlib.crc32(content) % ((_SQUARE if height == width else _OTHER) - 1)


def turned(crops: Tensor) -> tuple[Tensor, list[int]]:
    """Crops [N, C, H, W], each in its orientation, and the numbers of these."""
    numbers = [turn_of(crop) for crop in crops]
    return torch.stack([turn(crop, number) for crop, number in zip(crops, numbers, strict=True)]), numbers


def turned_back(pictures: Tensor, numbers: list[int]) -> Tensor:
    """Pictures [N, C, H, W] that were restored of crops in these orientations, in their own."""
    return torch.stack([turn_back(one, number) for one, number in zip(pictures, numbers, strict=True)])
