"""The linear layer: bytes by bytes on the matrix units, weights unpacked on the way, the epilogue before any store.

The sums never leave the registers. A library's product (`torch._int_mm`) would write four bytes where the epilogue
makes one, and read them again: at the depths of image restoration, 60 to 360, that costs more than the product.
"""

from __future__ import annotations

from typing import Unpack

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxptq.kernels.cuda.epilogue import finish
from fxptq.kernels.cuda.tiles import TILES, add_products, chunk, fields, slice_of, taken_back, tuned
from fxptq.kernels.ops import Epilogue
from fxptq.kernels.rows import stored_bits


@triton.jit
def linear_kernel(
    codes,
    weight,
    start,
    bias,
    scale,
    row_scale,
    residual,
    levels,
    out,
    rows,
    magnitude,
    slope,
    out_scale,
    out_offset,
    N: tl.constexpr,
    K: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    STORED: tl.constexpr,
    FIELDS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """One tile [BM, BN] of codes [rows, K] times packed weight [N, ROW_BYTES].

    Columns go fastest, for they share rows. `magnitude` of the rows is read by the choice of tiles alone.
    """
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    j = tl.arange(0, CHUNK)
    line = codes + m.to(tl.int64)[:, None] * K
    column = weight + n[:, None] * ROW_BYTES
    sums = tl.zeros((BM, BN), tl.int32)
    ones = tl.full((CHUNK, 16), 1, tl.int8)
    totals = tl.zeros((BM, 16), tl.int32)
    for base in range(0, ROW_BYTES, CHUNK):
        packed = tl.load(column + (base + j)[None, :], mask=(n < N)[:, None], other=0)
        for field in tl.static_range(FIELDS):
            k = base * FIELDS + field * CHUNK + j
            a = tl.load(line + k[None, :], mask=(m < rows)[:, None] & (k < K)[None, :], other=0)
            weights = slice_of(packed, field, BITS, STORED)
            sums, totals = add_products(sums, totals, a, weights, ones, start is not None, row_scale is not None)
    sums, row_sums = taken_back(sums, totals, start, n, N, ROW_BYTES * FIELDS)
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    inside = (m < rows)[:, None] & (n < N)[None, :]
    shift = tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    finish(
        sums, row_sums, shift, place, place, inside, n, scale, row_scale, residual, levels, out, slope, out_scale,
        out_offset, N, ACTIVATION,
    )  # fmt: skip


_linear = tuned(TILES, ["N", "K", "BITS", "magnitude"])(linear_kernel)


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
    """`rows.rows_linear`."""
    codes = codes.contiguous()
    depth = codes.shape[-1]
    rows = codes.numel() // depth
    residual, levels = epilogue["residual"], epilogue["levels"]
    out = codes.new_empty((*codes.shape[:-1], columns), dtype=torch.float32 if levels is None else torch.uint8)
    if rows == 0:
        return out

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(rows, tile["BM"]) * triton.cdiv(columns, tile["BN"]),)

    _linear[grid](
        codes.view(torch.int8),
        weight,
        start,
        bias,
        epilogue["scale"],
        epilogue["row_scale"],
        None if residual is None else residual.contiguous(),
        levels,
        out,
        rows,
        rows.bit_length(),
        epilogue["slope"],
        epilogue["out_scale"],
        epilogue["out_offset"],
        N=columns,
        K=depth,
        ROW_BYTES=weight.shape[1],
        BITS=bits,
        STORED=stored_bits(bits),
        FIELDS=fields(bits),
        CHUNK=chunk(weight.shape[1], bits, weight.shape[1]),
        ACTIVATION=epilogue["activation"],
    )
    return out
