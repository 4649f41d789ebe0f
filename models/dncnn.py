"""A denoiser in the manner of DnCNN: a row of convolutions that estimates the noise, which is taken from the input.

Source: Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP 2017,
arXiv 1608.03981. Where the paper has a chain with batch normalization, here are the residual blocks of EDSR: a chain
without skips adds up the errors of all its layers, and at few bits little is left of the picture. Promises that a fresh
network gives back its input.
"""

from __future__ import annotations

from torch import Tensor, nn

from fxptq.models.edsr import ResBlock


class DnCNN(nn.Module):
    """A convolution, residual blocks and a convolution, whose output is subtracted from the input.

    Args:
        channels: of the image, 3 or 1.
        features: of the layers between.
        blocks: residual blocks of two convolutions.
    """

    def __init__(self, *, channels: int = 3, features: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.body = nn.Sequential(*(ResBlock(features, 1.0) for _ in range(blocks)))
        self.tail = nn.Conv2d(features, channels, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same, both in 0..1."""
        return x - self.tail(self.body(self.head(x)))
