"""A denoiser in the manner of DnCNN: convolutions estimate the noise, and the network subtracts it from the input.

Source: Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP 2017,
arXiv 1608.03981. The paper has a chain of convolutions with batch normalization; this network has the residual blocks
of EDSR, because a chain without skips adds up the rounding errors of all its layers and fails at few bits. Promises: a
fresh network returns its input.
"""

from __future__ import annotations

from torch import Tensor, nn

from fxptq.models.edsr import ResBlock


class DnCNN(nn.Module):
    """A convolution, residual blocks and a convolution, whose output is subtracted from the input.

    Args:
        channels: channels of the image, 3 or 1.
        features: channels between the layers.
        blocks: number of residual blocks of two convolutions.
    """

    def __init__(self, *, channels: int = 3, features: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.body = nn.Sequential(*(ResBlock(features, 1.0) for _ in range(blocks)))
        self.tail = nn.Conv2d(features, channels, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Removes noise: [B, channels, H, W] -> [B, channels, H, W], both in 0..1."""
        return x - self.tail(self.body(self.head(x)))
