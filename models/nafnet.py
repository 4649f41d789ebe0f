"""A network of NAFNet's blocks that repairs images at their own size.

Source of the block: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676. A block has
layer norm, a depthwise convolution, products of channels instead of activation functions, and channel attention without
a sigmoid. The paper arranges the blocks in a U of five sizes; this network has them in one row behind a pixel
unshuffle. Promises: a fresh network returns its input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


class NAFBlock(nn.Module):
    """A spatial and a channel step, each a residual branch scaled by a factor for each channel that starts at zero."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(features)
        self.conv1 = nn.Conv2d(features, 2 * features, 1)
        self.conv2 = nn.Conv2d(2 * features, 2 * features, 3, padding=1, groups=2 * features)
        self.sca = nn.Conv2d(features, features, 1)
        self.conv3 = nn.Conv2d(features, features, 1)
        self.norm2 = ChannelNorm(features)
        self.conv4 = nn.Conv2d(features, 2 * features, 1)
        self.conv5 = nn.Conv2d(features, features, 1)
        self.beta = nn.Parameter(torch.zeros(features, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, features, H, W] -> the same."""
        y = _gate(self.conv2(self.conv1(self.norm1(x))))
        y = self.conv3(y * self.sca(y.mean((2, 3), keepdim=True)))
        x = x + y * self.beta
        y = self.conv5(_gate(self.conv4(self.norm2(x))))
        return x + y * self.gamma


class NAFNet(nn.Module):
    """Pixel unshuffle, convolution, blocks, convolution, pixel shuffle, and the input added.

    Args:
        channels: channels of the image, 3 or 1.
        features: channels of the blocks.
        blocks: number of blocks.
        unshuffle: side of the squares of pixels that become channels; height and width must be multiples of it.
    """

    def __init__(self, *, channels: int = 1, features: int = 40, blocks: int = 10, unshuffle: int = 2) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.intro = nn.Conv2d(channels * unshuffle**2, features, 3, padding=1)
        self.body = nn.Sequential(*(NAFBlock(features) for _ in range(blocks)))
        self.ending = nn.Conv2d(features, channels * unshuffle**2, 3, padding=1)
        for parameter in self.ending.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same, both in 0..1."""
        y = self.body(self.intro(F.pixel_unshuffle(x, self.unshuffle)))
        return x + F.pixel_shuffle(self.ending(y), self.unshuffle)


def _gate(x: Tensor) -> Tensor:
    """The product of the first half of the channels with the second."""
    first, second = x.chunk(2, dim=1)
    return first * second
