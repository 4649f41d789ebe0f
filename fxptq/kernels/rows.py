"""Weights as dense rows, for kernels that read them at their stored width: 2, 4 or 8 bits a code, unpacked as they run.

A row is cut into slices of 32 codes, the depth of one matrix instruction on bytes. At 8 bits a byte holds one centred
code. At fewer, 32 consecutive bytes hold 4 / 2 slices side by side, the first in the lowest bits: byte i has code i of
each slice, so that a shift and a mask give a whole slice in order. The operators here are those of ops.py on this
layout, in plain torch; cuda/ has their kernels.
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
"""Codes of a slice; bytes of a group of slices."""

FLAT = 16
"""Fewer channels than this stand without gaps between the taps of a convolution: padding them would double the work."""


def stored_bits(bits: int) -> int:
    """The width that codes of `bits` bits are stored at: 2, 4 or 8."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def tap_channels(channels: int) -> int:
    """Codes that a tap takes up in a row: whole slices, but for few channels."""
    return channels if channels < FLAT else channels + -channels % SLICE


def pack_rows(weight: Tensor, bits: int) -> Tensor:
    """Packs centred codes.

    Args:
        weight: int8 [N, K], what `centred` gives for codes of `bits` bits.
        bits: of the codes, 1 to 8.

    Returns:
        uint8 [N, bytes], whole groups of slices. What stands beyond K is unspecified: the activations are 0 there.
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
    """The centred codes of `pack_rows` with what stands beyond them: int8 [N, bytes * 8 / stored bits]."""
    width = stored_bits(bits)
    if width == 8:
        return packed.view(torch.int8)
    fields = 8 // width
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(fields, 1)
    codes = packed.reshape(len(packed), -1, 1, SLICE) >> shifts & (2**width - 1)
    signed: Tensor = 2 * codes.to(torch.int16) - (2**bits - 1)
    return signed.to(torch.int8).reshape(len(packed), -1)


def pack_conv_rows(weight: Tensor, bits: int) -> Tensor:
    """Packs [N, C, height, width] for `rows_conv2d`: channels fastest, each tap `tap_channels` codes."""
    channels = weight.shape[1]
    taps = F.pad(weight.permute(0, 2, 3, 1), (0, tap_channels(channels) - channels))
    if bits < 8:
        # A centred code below 8 bits is odd: zero has none, and any other does, for it meets activations that are 0.
        taps[..., channels:] = 1 - 2**bits
    return pack_rows(taps.flatten(1), bits)


def start_of(packed: Tensor, bits: int, largest: int) -> Tensor | None:
    """What the sums begin with where activations of up to `largest` do not fit a signed byte.

    The kernels then take them less 128, those that are 0 beyond a row included.

    Returns:
        int32 [N], 128 times the sum of each row, what stands beyond it included; None where they fit.
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
    """As `linear`, with a weight from `pack_rows` and `start` from `start_of`."""
    del start  # the plain form takes activations as they are
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
    """As `conv2d`, with a weight from `pack_conv_rows` and `start` from `start_of`."""
    del start
    channels = codes.shape[1]
    depth = kernel_size[0] * kernel_size[1] * tap_channels(channels)
    signed = unpack_rows(weight, bits)[:, :depth].reshape(columns, *kernel_size, -1)[..., :channels]
    place = {"stride": stride, "padding": padding}
    return ops.convolved(codes, signed.permute(0, 3, 1, 2), bias, taps, epilogue, shuffle=shuffle, **place)


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
