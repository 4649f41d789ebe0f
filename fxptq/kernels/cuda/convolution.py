"""The convolution as an implicit matrix product: a row of the left factor is what the taps of one output pixel see.

Nothing is unrolled in memory: programs gather the codes of their pixels tap by tap, channels last. What lies outside
the image has code 0, and `taps`, what the folded grid adds at each tap, is left out there: in the tiles that touch the
border one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxptq.kernels.cuda.epilogue import finish
from fxptq.kernels.cuda.tiles import TILES, add_products, chunk, fields, slice_of, taken_back, tuned
from fxptq.kernels.ops import Epilogue
from fxptq.kernels.rows import stored_bits, tap_channels


@triton.jit
def conv2d_kernel(
    codes,
    weight,
    start,
    bias,
    taps,
    scale,
    row_scale,
    residual,
    levels,
    out,
    pixels,
    height,
    width,
    out_height,
    out_width,
    magnitude,
    slope,
    out_scale,
    out_offset,
    N: tl.constexpr,
    C: tl.constexpr,
    TAP: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    SHUFFLE: tl.constexpr,
    TAPS_STRIDE: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    STORED: tl.constexpr,
    FIELDS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """One tile: BM output pixels by BN columns. TAP codes of a weight's row belong to a tap."""
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    j = tl.arange(0, CHUNK)
    image = m // (out_height * out_width)
    top = m // out_width % out_height * SY - PY
    left = m % out_width * SX - PX
    corner = codes + ((image * height + top).to(tl.int64) * width + left) * C
    column = weight + n[:, None] * ROW_BYTES
    sums = tl.zeros((BM, BN), tl.int32)
    ones = tl.full((CHUNK, 16), 1, tl.int8)
    totals = tl.zeros((BM, 16), tl.int32)
    for base in range(0, ROW_BYTES, CHUNK):
        packed = tl.load(column + (base + j)[None, :], mask=(n < N)[:, None], other=0)
        for field in tl.static_range(FIELDS):
            first = base * FIELDS + field * CHUNK
            if TAP % CHUNK == 0:  # the whole slice is of one tap: where it lies is decided once a pixel
                tap, c = first // TAP, tl.multiple_of(first % TAP, CHUNK) + j
                y, x = tap // KW, tap % KW
                # No pixel is left past the last tap. (`&` with a bool gives no mask in Triton's interpreter.)
                seen = m < pixels * (tap < KH * KW)
                seen = seen & (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width)
                from_tap = (corner + (y * width + x) * C)[:, None] + c[None, :]
                here = seen[:, None]
                if TAP > C:
                    here = here & (c < C)[None, :]
            else:
                tap, c = (first + j) // TAP, (first + j) % TAP
                y, x = top[:, None] + (tap // KW)[None, :], left[:, None] + (tap % KW)[None, :]
                from_tap = corner[:, None] + ((tap // KW * width + tap % KW) * C + c)[None, :]
                here = (m < pixels)[:, None] & ((tap < KH * KW) & (c < C))[None, :]
                here = here & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            a = tl.load(from_tap, mask=here, other=0)
            weights = slice_of(packed, field, BITS, STORED)
            sums, totals = add_products(sums, totals, a, weights, ones, start is not None, row_scale is not None)
    sums, row_sums = taken_back(sums, totals, start, n, N, ROW_BYTES * FIELDS)

    shift = tl.zeros((BM, BN), tl.float32) + tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if taps is not None:
        bottom, right = top + KH > height, left + KW > width
        if tl.max(((top < 0) | (left < 0) | bottom | right).to(tl.int32), 0) > 0:
            for tap in range(KH * KW):
                y, x = top + tap // KW, left + tap % KW
                missed = (y < 0) | (y >= height) | (x < 0) | (x >= width)
                one = tl.load(taps + tap * TAPS_STRIDE + n, mask=n < N, other=0.0)
                shift += tl.where(missed[:, None], 0.0, one[None, :])
        else:
            every = tl.zeros((BN,), tl.float32)
            for tap in range(KH * KW):
                every += tl.load(taps + tap * TAPS_STRIDE + n, mask=n < N, other=0.0)
            shift += every[None, :]
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    to = place
    if SHUFFLE > 1:  # columns come in runs that go to one pixel each, as `ops.spread` has it
        run: tl.constexpr = N // (SHUFFLE * SHUFFLE)
        pixel, c = n // run, n % run
        y = (m // out_width).to(tl.int64)[:, None] * SHUFFLE + (pixel // SHUFFLE)[None, :]
        x = (m % out_width)[:, None] * SHUFFLE + (pixel % SHUFFLE)[None, :]
        to = (y * (out_width * SHUFFLE) + x) * run + c[None, :]
    inside = (m < pixels)[:, None] & (n < N)[None, :]
    finish(
        sums, row_sums, shift, place, to, inside, n, scale, row_scale, residual, levels, out, slope,
        out_scale, out_offset, N, ACTIVATION,
    )  # fmt: skip


_conv2d = tuned(TILES, ["N", "C", "KH", "KW", "SY", "BITS", "magnitude"])(conv2d_kernel)


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
    """`rows.rows_conv2d`."""
    last = torch.channels_last
    batch, channels, height, width = codes.shape
    out_height, out_width = (
        (size + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i, size in enumerate((height, width))
    )
    pixels = batch * out_height * out_width
    residual, levels = epilogue["residual"], epilogue["levels"]
    dtype = torch.float32 if levels is None else torch.uint8
    # Allocated as rows of pixels: a memory format would leave the strides of axes of size one open.
    size = (batch, out_height * shuffle, out_width * shuffle, columns // shuffle**2)
    out = codes.new_empty(size, dtype=dtype).permute(0, 3, 1, 2)
    if pixels == 0:
        return out

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(pixels, tile["BM"]) * triton.cdiv(columns, tile["BN"]),)

    tap = tap_channels(channels)
    _conv2d[grid](
        codes.contiguous(memory_format=last).view(torch.int8),
        weight,
        start,
        bias,
        taps,
        epilogue["scale"],
        epilogue["row_scale"],
        None if residual is None else residual.contiguous(memory_format=last),
        levels,
        out,
        pixels,
        height,
        width,
        out_height,
        out_width,
        pixels.bit_length(),
        epilogue["slope"],
        epilogue["out_scale"],
        epilogue["out_offset"],
        N=columns,
        C=channels,
        TAP=tap,
        KH=kernel_size[0],
        KW=kernel_size[1],
        SY=stride[0],
        SX=stride[1],
        PY=padding[0],
        PX=padding[1],
        SHUFFLE=shuffle,
        TAPS_STRIDE=0 if taps is None else taps.stride(0),
        ROW_BYTES=weight.shape[1],
        BITS=bits,
        STORED=stored_bits(bits),
        FIELDS=fields(bits),
        CHUNK=chunk(weight.shape[1], bits, tap),
        ACTIVATION=epilogue["activation"],
    )
    return out
