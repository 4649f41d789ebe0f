"""The layouts of tensors for the operators: panels of weights, padded columns, logits, orders of channels.

All functions are pure. They run once, ahead of time.
"""

from __future__ import annotations

from math import e, log2

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16
"""Queries, or columns, that a kernel works on at once."""

COLUMN_BLOCK = 64
"""Columns that an epilogue works on at once."""

LOG2E = log2(e)


def centred(codes: Tensor, bits: int) -> Tensor:
    """Signed integers for unsigned codes: the odd integers 2 code - (2**bits - 1) up to 7 bits, code - 128 for 8.

    Args:
        codes: uint8, values 0 .. 2**bits - 1.
        bits: 1 to 8.

    Returns:
        int8 of the same shape.
    """
    integers = codes.to(torch.int16)
    return (integers - 128 if bits == 8 else 2 * integers - (2**bits - 1)).to(torch.int8)


def pack_weight(weight: Tensor) -> Tensor:
    """Lays signed codes out for the kernels: [N, K] int8 -> panels [ceil(N / 16), ceil(K / 4), 16, 4], padded.

    Codes of b = 2, 3 or 4 bits, odd numbers up to 2**b - 1, take b bits each: uint8 [ceil(N / 16), ceil(K / 4), 8 b].
    The kernels unpack them to bytes when they use them.
    """
    return _narrowed(_panels(weight), weight)


def _panels(weight: Tensor) -> Tensor:
    rows, depth = weight.shape
    padded = F.pad(weight, (0, -depth % 4, 0, -rows % LANES))
    blocks = padded.reshape(padded.shape[0] // LANES, LANES, padded.shape[1] // 4, 4)
    return blocks.permute(0, 2, 1, 3).contiguous()


def _narrowed(panels: Tensor, weight: Tensor) -> Tensor:
    """The panels with codes c = (W + 2**b - 1) / 2 in the b = 2, 3 or 4 bits that all weights fit, if they do.

    Of each 64 codes, those of 2 or 4 bits lie in 16 or 32 bytes: the first part of them in the lowest bits, the next
    part above. Codes of 3 bits are their two low bits in 16 bytes, then their high bits in 8 bytes.
    """
    bits = _odd_bits(weight)
    if bits is None:
        return panels
    codes = torch.div(panels.short() + 2**bits - 1, 2, rounding_mode="floor").to(torch.uint8).flatten(-2)
    if bits == 3:
        return torch.cat([_plane(codes & 3, 2), _plane(codes >> 2, 1)], -1)
    return _plane(codes, bits)


def _odd_bits(weight: Tensor) -> int | None:
    """The fewest bits, 2, 3 or 4, whose odd numbers include every weight."""
    if not bool((weight % 2 != 0).all()):
        return None
    largest = int(weight.short().abs().max()) if weight.numel() else 0
    return next((bits for bits in (2, 3, 4) if largest < 2**bits), None)


def _plane(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., 64] of `bits` bits in bytes [..., 8 * bits]: code i is in byte i modulo their number."""
    parts = codes.reshape(*codes.shape[:-1], 8 // bits, 8 * bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device).view(-1, 1)
    packed: Tensor = (parts << shifts).sum(-2, dtype=torch.uint8)
    return packed


def _codes_of(plane: Tensor, bits: int) -> Tensor:
    """The inverse of `_plane`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=plane.device).view(-1, 1)
    codes: Tensor = (plane.unsqueeze(-2) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)


def with_sums(weight: Tensor) -> Tensor:
    """Adds a row of ones where packing has room for it; its sums are the sums of codes that `row_scale` scales."""
    if weight.shape[0] % LANES == 0:
        return weight
    return torch.cat([weight, weight.new_ones(1, *weight.shape[1:])])


def unpack_weight(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_weight`, which keeps the padding along K: [columns, ceil(K / 4) * 4]."""
    if packed.dtype == torch.uint8:
        bits = packed.shape[-1] // 8
        low = packed[..., :16] if bits == 3 else packed
        codes = _codes_of(low, bits - bits % 2)
        if bits == 3:
            codes = codes | _codes_of(packed[..., 16:], 1) << 2
        packed = (2 * codes.to(torch.int8) - (2**bits - 1)).reshape(*packed.shape[:2], LANES, 4)
    return packed.permute(0, 2, 1, 3).reshape(packed.shape[0] * LANES, -1)[:columns]


def pack_conv_weight(weight: Tensor, groups: int = 1) -> Tensor:
    """Packs [N, C / groups, height, width] for `conv2d`: channels fastest, each tap padded to groups of four.

    The panels of the groups of a convolution come one after the other.
    """
    rows = F.pad(weight.permute(0, 2, 3, 1), (0, -weight.shape[1] % 4)).flatten(1)
    return _narrowed(torch.cat([_panels(group) for group in rows.chunk(groups)]), rows)


def pack_depthwise_weight(weight: Tensor) -> Tensor:
    """Packs [C, 1, height, width] for `depthwise_conv2d`: [height * width, C padded to a multiple of 64]."""
    return F.pad(weight.flatten(1).t(), (0, -len(weight) % COLUMN_BLOCK)).contiguous()


def joined_groups(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """Joins groups with few columns, so that panels are full: the products with the other groups' channels are zero.

    Args:
        weight: int8 [N, C / groups, height, width].
        groups: the number of groups.

    Returns:
        The weight of the joined groups, and their number.
    """
    columns = len(weight) // groups
    together = next(n for n in range(1, groups + 1) if groups % n == 0 and (n * columns >= LANES or n == groups))
    blocks = weight.reshape(groups // together, together, columns, *weight.shape[1:])
    joined = blocks.new_zeros(*blocks.shape[:3], together, *blocks.shape[3:])
    for i in range(together):
        joined[:, i, :, i] = blocks[:, i]
    return joined.flatten(3, 4).flatten(0, 2), groups // together


def pack_narrow_conv_weight(weight: Tensor) -> Tensor:
    """Packs [N, C, height, width] for `narrow_conv2d`: the columns of all taps side by side."""
    return pack_weight(weight.permute(2, 3, 0, 1).flatten(0, 2))


def pad_columns(values: Tensor) -> Tensor:
    """Pads the last axis with zeros to whole groups of 64, float32, contiguous."""
    return F.pad(values.to(torch.float32), (0, -values.shape[-1] % COLUMN_BLOCK)).contiguous()


def key_major(logits: Tensor, factor: float) -> Tensor:
    """A term of the logits in the form of `attention`: [..., N, M] -> [leading sizes, M, N to a multiple of 16].

    Args:
        logits: the term that is added to the logits; its leading axes are joined into one.
        factor: multiplies the term, in addition to log2(e), because the kernels compute the softmax with powers of two.
    """
    by_key = logits.reshape(-1, *logits.shape[-2:]).transpose(-1, -2) * (factor * LOG2E)
    return F.pad(by_key, (0, -logits.shape[-2] % LANES)).contiguous()


def places_first(channels: int, factor: int) -> Tensor:
    """The order of channels for `spread`: channels that a pixel shuffle moves to the same output pixel are together."""
    return torch.arange(channels, device="cpu").reshape(-1, factor * factor).t().reshape(-1)


def pack_taps(weight: Tensor) -> Tensor:
    """Packs [N, C, 3, 3] for `conv3x3`, each tap in the layout of `pack_weight`: [9, ...]."""
    return _narrowed(torch.stack([_panels(tap) for tap in weight.flatten(2).unbind(-1)]), weight)


def winograd_fits(weight: Tensor, largest: int) -> bool:
    """Whether the sums of `conv3x3` are exact: F(4x4, 3x3) computes 64 times each of them modulo 2^32.

    Args:
        weight: int8 [N, C, 3, 3], signed codes.
        largest: largest code of the input.
    """
    sums = [largest * int(w.sum((1, 2, 3)).max()) for w in (weight.long().clamp(min=0), -weight.long().clamp(max=0))]
    return max(sums) < 1 << 25


def fits_bytes(weight: Tensor, largest: int) -> bool:
    """Whether every weight and input that F(2x2, 3x3) transforms fits a byte.

    Args:
        weight: int8 [N, C, 3, 3], signed codes.
        largest: largest code of the input; above 63 the transformed input never fits.
    """
    g = torch.tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=torch.int32)
    return largest <= 63 and int(torch.einsum("iy,jx,ncyx->ijnc", g, g, weight.int().cpu()).abs().max()) <= 127
