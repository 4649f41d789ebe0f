"""Weights as dense rows of codes at 2, 4 or 8 bits, which kernels unpack while they run.

A row is cut into slices of 32 codes, the depth of one matrix instruction on bytes. At 8 bits a byte holds one centred
code. At 2 or 4 bits, 32 consecutive bytes hold 4 or 2 slices side by side, the first slice in the lowest bits. Byte i
holds code i of each slice, so that a shift and a mask give a whole slice in order. The operators `rows_linear` and
`rows_conv2d` are `linear` and `conv2d` on this layout, in plain torch; cuda/ has their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from fxptq.kernels import ops
from fxptq.kernels.ops import EPILOGUE, Epilogue, define

SLICE = 32
"""Codes in a slice; also the number of bytes that hold slices side by side."""

FLAT = 16
"""With fewer input channels than this, the taps are stored without gaps, because padding each would double the work."""


def stored_bits(bits: int) -> int:
    """The width that codes of `bits` bits are stored at: 2, 4 or 8."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def tap_channels(channels: int) -> int:
    """The number of codes that one tap takes in a row: whole slices, or `channels` if there are fewer than `FLAT`."""
    return channels if channels < FLAT else channels + -channels % SLICE


def pack_rows(weight: Tensor, bits: int) -> Tensor:
    """Packs centred codes.

    Args:
        weight: int8 [N, K], results of `centred` for codes of `bits` bits.
        bits: width of the codes, 1 to 8.

    Returns:
        uint8 [N, bytes], a multiple of 32 bytes a row. The codes beyond K have any value, because the activations are 0
        there.
    """
    width = stored_bits(bits)
    if width == 8:
        return F.pad(weight, (0, -weight.shape[1] % SLICE)).contiguous().view(torch.uint8)
    fields = 8 // width
    codes = (weight.to(torch.int16) + (2**bits - 1)) // 2
    groups = F.pad(codes, (0, -codes.shape[1] % (SLICE * fields))).reshape(len(codes), -1, fields, SLICE)
    shifts = torch.arange(0, 8, width, dtype=torch.int16, device=weight.device).view(fields, 1)
    packed: Tensor = (groups << shifts).sum(2)
    return packed.to(torch.uint8).reshape(len(codes), -1)


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """The centred codes in the result of `pack_rows`, with the codes beyond K: int8 [N, bytes * 8 / stored bits]."""
    width = stored_bits(bits)
    if width == 8:
        return packed.view(torch.int8)
    fields = 8 // width
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(fields, 1)
    codes = packed.reshape(len(packed), -1, 1, SLICE) >> shifts & (2**width - 1)
    signed: Tensor = 2 * codes.to(torch.int16) - (2**bits - 1)
    return signed.to(torch.int8).reshape(len(packed), -1)


def pack_conv_rows(weight: Tensor, bits: int) -> Tensor:
    """Packs [N, C, height, width] for `rows_conv2d`: channels fastest, `tap_channels` codes for each tap."""
    channels = weight.shape[1]
    taps = F.pad(weight.permute(0, 2, 3, 1), (0, tap_channels(channels) - channels))
    if bits < 8:
        # Below 8 bits every centred code is odd, so none is 0. Any code will do here, because the activations are 0.
        taps[..., channels:] = 1 - 2**bits
    return pack_rows(taps.flatten(1), bits)


def start_of(packed: Tensor, bits: int, largest: int) -> Tensor | None:
    """The start values of the sums, for activations of up to `largest` that do not fit a signed byte.

    The kernels then subtract 128 from every activation, also from the zeros beyond a row.

    Returns:
        int32 [N], 128 times the sum of each row with the codes beyond K; None where the activations fit.
    """
    if largest < 128:
        return None
    return 128 * unpack_rows(packed, bits).sum(1, dtype=torch.int32)


def rows_linear(
    codes: Tensor,
    weight: Tensor,
    start: Tensor | None,
    *,
    columns: int,
    bits: int,
    bias: Tensor,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """`linear` with a weight from `pack_rows` and `start` from `start_of`."""
    del start  # the plain form subtracts nothing from the activations
    signed = unpack_rows(weight, bits)[:columns, : codes.shape[-1]]
    return ops.multiplied(codes, signed, bias, epilogue)


def rows_conv2d(
    codes: Tensor,
    weight: Tensor,
    start: Tensor | None,
    *,
    columns: int,
    bits: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    shuffle: int = 1,
    bias: Tensor,
    taps: Tensor | None,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """`conv2d` with a weight from `pack_conv_rows` and `start` from `start_of`."""
    del start
    channels = codes.shape[1]
    depth = kernel_size[0] * kernel_size[1] * tap_channels(channels)
    signed = unpack_rows(weight, bits)[:, :depth].reshape(columns, *kernel_size, -1)[..., :channels]
    weight = signed.permute(0, 3, 1, 2)
    return ops.convolved(codes, weight, bias, taps, epilogue, stride=stride, padding=padding, shuffle=shuffle)


define(
    "rows_linear",
    f"(Tensor codes, Tensor weight, Tensor? start, *, int columns, int bits, Tensor bias, {EPILOGUE}) -> Tensor",
    rows_linear,
)
define(
    "rows_conv2d",
    "(Tensor codes, Tensor weight, Tensor? start, *, int columns, int bits, int[] kernel_size, int[] stride, "
    f"int[] padding, int shuffle=1, Tensor bias, Tensor? taps, {EPILOGUE}) -> Tensor",
    rows_conv2d,
)
