"""Shifted-window attention: the transformer blocks of SwinIR.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030, as used by SwinIR (arXiv 2108.10257). Maps are
[B, H, W, C], sequences [B, H * W, C]; H and W are multiples of the window. Names of modules are those of the releases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKED = -100.0


def window_partition(x: Tensor, window: int) -> Tensor:
    """Cuts a map into windows: [B, H, W, C] -> [B * windows, window, window, C]; H and W are multiples of `window`."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, channels)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `window_partition`: [B * windows, window, window, C] -> [B, height, width, C]."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)


def shifted_window_mask(height: int, width: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Computes which pixels of a shifted window may attend to each other.

    The cyclic shift brings opposite borders of the image into one window; pixels from different borders must not see
    each other. Each axis has three regions: before the last window, in it but not wrapped around, wrapped around.

    Returns:
        [windows, window^2, window^2]: 0 where the two pixels are of one region, -100 elsewhere.
    """
    shift = window // 2
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    row_region = (rows >= height - window).long() + (rows >= height - shift).long()
    column_region = (columns >= width - window).long() + (columns >= width - shift).long()
    regions = row_region.unsqueeze(1) * 3 + column_region.unsqueeze(0)
    regions = window_partition(regions.view(1, height, width, 1), window).view(-1, window * window)
    differ = regions.unsqueeze(1) != regions.unsqueeze(2)
    return torch.zeros_like(differ, dtype=dtype).masked_fill(differ, MASKED)


def relative_position_index(window: int) -> Tensor:
    """Computes, for each two pixels of a window, the row of the bias table that belongs to their offset.

    Returns:
        [window^2, window^2], int64, in 0 .. (2 * window - 1)^2 - 1.
    """
    axis = torch.arange(window)
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = coordinates.unsqueeze(2) - coordinates.unsqueeze(1) + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.fc2(self.act(self.fc1(x)))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """Looks the bias up in the table, [heads, pixels, pixels]."""
        pixels = self.relative_position_index.shape[0]
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        return bias.view(pixels, pixels, self.heads).permute(2, 0, 1).contiguous()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends within each window.

        Args:
            x: [B * windows, pixels, dim].
            mask: [windows, pixels, pixels], added to the logits of each image's windows; None adds nothing.

        Returns:
            [B * windows, pixels, dim].
        """
        count, pixels, dim = x.shape
        qkv = self.qkv(x).reshape(count, pixels, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * self.scale
        attn = q @ k.transpose(-2, -1)
        attn = attn + self.position_bias().unsqueeze(0)
        if mask is not None:
            attn = attn.view(-1, mask.shape[0], self.heads, pixels, pixels) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.heads, pixels, pixels)
        attn = self.softmax(attn)
        x = (attn @ v).transpose(1, 2).reshape(count, pixels, dim)
        return self.proj(x)


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each with LayerNorm before and a residual around; odd blocks shift the windows."""

    attn_mask: Tensor | None

    def __init__(
        self, dim: int, resolution: int, heads: int, window: int, *, shifted: bool, mlp_ratio: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        # The mask of the training size is part of the published files, so it must be in the state dict.
        mask = None
        if shifted:
            mask = shifted_window_mask(resolution, resolution, window, torch.device("cpu"), torch.get_default_dtype())
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """One block.

        Args:
            x: [B, H * W, dim].
            size: (H, W), multiples of the window.
            mask: the mask of the shifted windows for `size`; None if the stored mask has that size.

        Returns:
            [B, H * W, dim].
        """
        height, width = size
        batch, length, dim = x.shape
        shortcut = x
        x = self.norm1(x).view(batch, height, width, dim)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
            mask = self.attn_mask if mask is None else mask
        else:
            mask = None
        windows = window_partition(x, self.window).view(-1, self.window * self.window, dim)
        windows = self.attn(windows, mask).view(-1, self.window, self.window, dim)
        x = window_reverse(windows, self.window, height, width)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(batch, length, dim)
        return x + self.mlp(self.norm2(x))


class BasicLayer(nn.Module):
    """A run of blocks, every second one shifted."""

    def __init__(
        self, dim: int, resolution: int, depth: int, heads: int, window: int, *, mlp_ratio: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        # An image of one window or less has nothing to shift.
        shiftable = resolution > window
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim,
                resolution,
                heads,
                min(window, resolution),
                shifted=shiftable and index % 2 == 1,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
            )
            for index in range(depth)
        )

    def forward(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """[B, H * W, dim] -> [B, H * W, dim]; see `SwinTransformerBlock.forward`."""
        for block in self.blocks:
            x = block(x, size, mask)
        return x
