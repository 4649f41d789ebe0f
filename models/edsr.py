"""EDSR: a residual network of convolutions for super-resolution.

Source: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR Workshops 2017,
arXiv 1707.02921. Promises: the state-dict keys and shapes of the authors' PyTorch release (baseline and full, x2, x3,
x4), mean-shift layers included. Input and output are in 0..rgb_range, not 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxptq.models.swinir import RGB_MEAN, shuffle_stages


def mean_shift(rgb_range: float, sign: int) -> nn.Conv2d:
    """Builds the fixed 1x1 convolution that adds (`sign` 1) or subtracts (-1) the mean of DIV2K, as in the release."""
    shift = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        shift.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        shift.bias.copy_(sign * rgb_range * torch.tensor(RGB_MEAN))
    return shift.requires_grad_(False)


class ResBlock(nn.Module):
    """Convolution, ReLU, convolution, scaled by `res_scale`, with a residual around; no normalization."""

    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, 1, 1), nn.ReLU(), nn.Conv2d(features, features, 3, 1, 1)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, features, H, W] -> [B, features, H, W]."""
        return self.body(x) * self.res_scale + x


class EDSR(nn.Module):
    """EDSR, baseline (16 blocks, 64 features, `res_scale` 1) or full (32 blocks, 256 features, `res_scale` 0.1).

    Args:
        n_resblocks: number of residual blocks.
        n_feats: channels of the features.
        scale: 2, 3 or 4.
        res_scale: factor of each residual branch.
        rgb_range: the largest value of the input, 255 for the release.
    """

    def __init__(
        self,
        *,
        n_resblocks: int = 16,
        n_feats: int = 64,
        scale: int = 4,
        res_scale: float = 1.0,
        rgb_range: float = 255.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean = mean_shift(rgb_range, -1)
        self.add_mean = mean_shift(rgb_range, 1)
        self.head = nn.Sequential(nn.Conv2d(3, n_feats, 3, 1, 1))
        self.body = nn.Sequential(
            *(ResBlock(n_feats, res_scale) for _ in range(n_resblocks)), nn.Conv2d(n_feats, n_feats, 3, 1, 1)
        )
        self.tail = nn.Sequential(shuffle_stages(scale, n_feats), nn.Conv2d(n_feats, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Upscales an image: [B, 3, H, W] -> [B, 3, H * scale, W * scale], both in 0..rgb_range."""
        shallow = self.head(self.sub_mean(x))
        deep = self.body(shallow) + shallow
        return self.add_mean(self.tail(deep))
