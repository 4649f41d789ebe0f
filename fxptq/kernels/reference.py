"""Reference results of the integer operators from first principles: int64 sums and float64 values, nothing combined.

The functions are slow and plain on purpose. Tests compare every kernel with them; nothing else calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.quant.grid import Grid


def values(codes: Tensor, grid: Grid) -> Tensor:
    """The values that codes stand for, float64."""
    return codes.double() * grid.scale + grid.offset


def codes_of(x: Tensor, grid: Grid) -> Tensor:
    """Nearest codes of float64 values, int64."""
    return ((x - grid.offset) / grid.scale).clamp(0, grid.levels).round().long()


def sums(codes: Tensor, weight: Tensor) -> Tensor:
    """int64 sums of products: codes [..., K] by signed codes [N, K] -> [..., N]."""
    return codes.long() @ weight.long().t()


def convolved_sums(codes: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """int64 sums of products of a convolution whose border holds code 0: [B, C, H, W] by [N, C, h, w]."""
    height, width = weight.shape[2:]
    bordered = F.pad(codes.long(), (padding[1], padding[1], padding[0], padding[0]))
    windows = bordered.unfold(2, height, stride[0]).unfold(3, width, stride[1])
    return torch.einsum("bcyxhw,nchw->bnyx", windows, weight.long())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on float64 values."""
    return F.linear(x, weight, None if bias is None else bias.double())


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """A convolution on float64 values; the border is the value 0, not the code 0."""
    return F.conv2d(x, weight, None if bias is None else bias.double(), tuple(stride), tuple(padding))


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, mask: Tensor | None, prob: Grid
) -> tuple[Tensor, Tensor]:
    """Attention on float64 values [B, heads, N, D], with a quantized softmax.

    Args:
        query: [B, heads, N, D].
        key: [B, heads, M, D].
        value: [B, heads, M, E].
        bias: [heads, N, M], or None.
        mask: [masks, N, M], or None; window b takes mask b modulo their number.
        prob: grid of the softmax output.

    Returns:
        The result [B, heads, N, E] and the softmax before quantization.
    """
    logits = query @ key.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.double()
    if mask is not None:
        logits = logits + mask.double()[torch.arange(len(query)) % len(mask)].unsqueeze(1)
    p = logits.softmax(-1)
    return values(codes_of(p, prob), prob) @ value, p
