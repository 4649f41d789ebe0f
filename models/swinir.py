"""SwinIR: image restoration with shifted-window attention.

Source: Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV Workshops 2021, arXiv 2108.10257.
Promises: the state-dict keys and shapes of the authors' releases, and their arithmetic in the same order, for every
published variant (light, classical, real-world, denoising, JPEG). Three options that restoration never uses are left
out: patches larger than one pixel, dropout and stochastic depth. `forward` changes nothing in the model: torch
operations compute every tensor that depends on the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.models.window_attention import BasicLayer, shifted_window_mask

RGB_MEAN = (0.4488, 0.4371, 0.4040)


def residual_conv(dim: int, kind: str) -> nn.Module:
    """The convolution that closes a residual branch: one 3x3, or a bottleneck of three ("3conv", fewer parameters)."""
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, 1, 1)
    if kind == "3conv":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 4, 3, 1, 1),
            nn.LeakyReLU(negative_slope=0.2),
            nn.Conv2d(dim // 4, dim // 4, 1, 1, 0),
            nn.LeakyReLU(negative_slope=0.2),
            nn.Conv2d(dim // 4, dim, 3, 1, 1),
        )
    raise ValueError(f"resi_connection is {kind!r}; expected '1conv' or '3conv'")


class PatchEmbed(nn.Module):
    """Map to sequence: [B, C, H, W] -> [B, H * W, C], with LayerNorm where `norm` says so."""

    def __init__(self, dim: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, H * W, C]."""
        x = x.flatten(2).transpose(1, 2)
        return x if self.norm is None else self.norm(x)


def unembed(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Sequence to map: [B, H * W, C] -> [B, C, H, W]."""
    return x.transpose(1, 2).view(x.shape[0], -1, size[0], size[1])


class RSTB(nn.Module):
    """Residual Swin Transformer block: a `BasicLayer` and a convolution, with a residual around both."""

    def __init__(
        self,
        dim: int,
        resolution: int,
        depth: int,
        heads: int,
        window: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        resi_connection: str,
    ) -> None:
        super().__init__()
        self.residual_group = BasicLayer(dim, resolution, depth, heads, window, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
        self.conv = residual_conv(dim, resi_connection)
        self.patch_embed = PatchEmbed(dim, norm=False)

    def forward(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """[B, H * W, dim] -> [B, H * W, dim]; see `SwinTransformerBlock.forward`."""
        return self.patch_embed(self.conv(unembed(self.residual_group(x, size, mask), size))) + x


def shuffle_stages(scale: int, features: int) -> nn.Sequential:
    """Sub-pixel up-sampling by 2^n (n stages of x2) or by 3 (one stage)."""
    if scale == 3:
        return nn.Sequential(nn.Conv2d(features, 9 * features, 3, 1, 1), nn.PixelShuffle(3))
    if scale < 1 or scale & (scale - 1):
        raise ValueError(f"scale is {scale}; expected a power of two, or 3")
    stages: list[nn.Module] = []
    for _ in range(scale.bit_length() - 1):
        stages += [nn.Conv2d(features, 4 * features, 3, 1, 1), nn.PixelShuffle(2)]
    return nn.Sequential(*stages)


class SwinIR(nn.Module):
    """SwinIR in all its published forms.

    Input and output are [B, in_chans, H, W] in 0..1, of any size from window / 2 + 1 on; the output is `upscale` times
    as large. The image is reflect-padded to a multiple of the window, and the result cropped back.

    Args:
        img_size: training size, a multiple of the window; the size of the stored masks and, with `ape`, the only
            size of an input.
        in_chans: number of colours; with 3 the mean of DIV2K is subtracted before and added after.
        embed_dim: channels of the features.
        depths: blocks in each residual group.
        num_heads: heads in each residual group.
        window_size: side of the attention window, pixels.
        mlp_ratio: hidden features of the MLP over `embed_dim`.
        qkv_bias: whether q, k and v have a bias.
        ape: adds a learned absolute position.
        patch_norm: LayerNorm after the shallow features.
        upscale: 1 for denoising and JPEG.
        img_range: factor applied to the input and taken out of the output (255 for the JPEG release).
        upsampler: "pixelshuffledirect" (light), "pixelshuffle" (classical), "nearest+conv" (real-world), "" (no scale).
        resi_connection: "1conv" or "3conv".
    """

    mean: Tensor

    def __init__(
        self,
        *,
        img_size: int = 64,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ape: bool = False,
        patch_norm: bool = True,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str = "",
        resi_connection: str = "1conv",
    ) -> None:
        super().__init__()
        if img_size % window_size:
            raise ValueError(f"img_size is {img_size}; expected a multiple of window_size, {window_size}")
        self.img_size = img_size
        self.window_size = window_size
        self.upscale = upscale
        self.img_range = img_range
        self.upsampler = upsampler
        mean = torch.tensor(RGB_MEAN) if in_chans == 3 else torch.zeros(1)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, 1, 1)
        self.patch_embed = PatchEmbed(embed_dim, norm=patch_norm)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, img_size * img_size, embed_dim)) if ape else None
        self.layers = nn.ModuleList(
            RSTB(
                embed_dim,
                img_size,
                depth,
                heads,
                window_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                resi_connection=resi_connection,
            )
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self._add_reconstruction(in_chans, embed_dim)
        self.apply(_initialize)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def _add_reconstruction(self, in_chans: int, embed_dim: int, features: int = 64) -> None:
        if self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, self.upscale**2 * in_chans, 3, 1, 1), nn.PixelShuffle(self.upscale)
            )
        elif self.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, features, 3, 1, 1), nn.LeakyReLU())
            self.upsample = shuffle_stages(self.upscale, features)
            self.conv_last = nn.Conv2d(features, in_chans, 3, 1, 1)
        elif self.upsampler == "nearest+conv":
            if self.upscale not in {2, 4}:
                raise ValueError(f"upscale is {self.upscale}; the upsampler 'nearest+conv' knows 2 and 4")
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, features, 3, 1, 1), nn.LeakyReLU())
            self.conv_up1 = nn.Conv2d(features, features, 3, 1, 1)
            if self.upscale == 4:
                self.conv_up2 = nn.Conv2d(features, features, 3, 1, 1)
            self.conv_hr = nn.Conv2d(features, features, 3, 1, 1)
            self.conv_last = nn.Conv2d(features, in_chans, 3, 1, 1)
            self.lrelu = nn.LeakyReLU(negative_slope=0.2)
        elif self.upsampler == "":
            if self.upscale != 1:
                raise ValueError(f"upscale is {self.upscale}; without an upsampler it must be 1")
            self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, 1, 1)
        else:
            raise ValueError(
                f"upsampler is {self.upsampler!r}; expected 'pixelshuffledirect', 'pixelshuffle', 'nearest+conv' or ''"
            )

    def pad(self, x: Tensor) -> Tensor:
        """Reflect-pads right and bottom to a multiple of the window."""
        bottom = -x.shape[2] % self.window_size
        right = -x.shape[3] % self.window_size
        return F.pad(x, (0, right, 0, bottom), "reflect")

    def forward_features(self, x: Tensor) -> Tensor:
        """The deep features: [B, embed_dim, H, W] -> [B, embed_dim, H, W], H and W multiples of the window."""
        height, width = x.shape[2], x.shape[3]
        size = (height, width)
        mask = None
        if height != self.img_size or width != self.img_size:
            mask = shifted_window_mask(height, width, self.window_size, x.device, x.dtype)
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed
        for layer in self.layers:
            x = layer(x, size, mask)
        return unembed(self.norm(x), size)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Features to image: [B, embed_dim, H, W] -> [B, in_chans, H * upscale, W * upscale]."""
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(x)))
        if self.upsampler == "nearest+conv":
            x = self.conv_before_upsample(x)
            x = self.lrelu(self.conv_up1(F.interpolate(x, scale_factor=2, mode="nearest")))
            if self.upscale == 4:
                x = self.lrelu(self.conv_up2(F.interpolate(x, scale_factor=2, mode="nearest")))
            return self.conv_last(self.lrelu(self.conv_hr(x)))
        return self.conv_last(x)

    def forward(self, x: Tensor) -> Tensor:
        """Restores an image: [B, in_chans, H, W] -> [B, in_chans, H * upscale, W * upscale]."""
        height, width = x.shape[2], x.shape[3]
        x = (self.pad(x) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        deep = self.conv_after_body(self.forward_features(shallow)) + shallow
        y = self.reconstruct(deep)
        if self.upsampler == "":
            y = x + y
        y = y / self.img_range + self.mean
        return y[:, :, : height * self.upscale, : width * self.upscale]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
