"""DnCNN: a plain chain of convolutions that estimates the noise, for denoising.

Source: Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP 2017,
arXiv 1608.03981. Without batch normalization, which the authors' released files have folded in too. Promises that a
fresh network gives back its input.
"""

from __future__ import annotations

from torch import Tensor, nn


class DnCNN(nn.Module):
    """`depth` 3x3 convolutions with ReLU between them, whose output is subtracted from the input.

    Args:
        channels: of the image, 3 or 1.
        features: of the layers between.
        depth: convolutions in all; the paper takes 17 for one noise level.
    """

    def __init__(self, *, channels: int = 3, features: int = 64, depth: int = 17) -> None:
        super().__init__()
        widths = [channels, *[features] * (depth - 1), channels]
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Conv2d(widths[index], widths[index + 1], 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        for layer in self.model[:-1]:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        for parameter in self.model[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same, both in 0..1."""
        return x - self.model(x)
