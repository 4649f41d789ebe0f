"""The product of two activations, batch by batch.

Left codes go in less 128, which fits every width; the column sums of the right factor, needed for its offset anyway,
put that right.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxptq.kernels import ops
from fxptq.kernels.cuda.tiles import TILES, centred, less_128, tuned

_DEPTH = 1 << 16
"""Products a sum of 32 bits surely holds: 2**16 * 255 * 128 < 2**31."""


@triton.jit
def matmul_kernel(
    lhs,
    rhs,
    out,
    rows,
    depth,
    columns,
    lhs_batch,
    lhs_row,
    lhs_depth,
    rhs_batch,
    rhs_depth,
    rhs_column,
    left,
    left_head,
    left_row,
    left_plane,
    right,
    right_head,
    right_column,
    right_plane,
    heads,
    magnitude,
    N: tl.constexpr,
    BITS: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    SHARES: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """One tile of one batch; strides are in codes. All programs are on one axis: the others take 65535 at most."""
    across, down = tl.cdiv(columns, BN), tl.cdiv(rows, BM)
    tile = tl.program_id(0)
    batch = (tile // (across * down)).to(tl.int64)
    m = (tile // across % down) * BM + tl.arange(0, BM)
    n = (tile % across) * BN + tl.arange(0, BN)
    line = lhs + batch * lhs_batch + m.to(tl.int64)[:, None] * lhs_row
    column = rhs + batch * rhs_batch + n.to(tl.int64)[None, :] * rhs_column
    sums = tl.zeros((BM, BN), tl.int32)
    row_sums = tl.zeros((BM,), tl.int32)
    column_sums = tl.zeros((BN,), tl.int32)
    for base in range(0, depth, BK):
        k = base + tl.arange(0, BK)
        a = tl.load(
            line + k.to(tl.int64)[None, :] * lhs_depth, mask=(m < rows)[:, None] & (k < depth)[None, :], other=0
        )
        here = (k < depth)[:, None] & (n < columns)[None, :]
        b = centred(tl.load(column + k.to(tl.int64)[:, None] * rhs_depth, mask=here, other=0), here, BITS)
        sums = tl.dot(less_128(a), b, sums, out_dtype=tl.int32)
        column_sums += tl.sum(b.to(tl.int32), 0)
        if ROW_SUMS or SHARES:
            row_sums += tl.sum(a.to(tl.uint8, bitcast=True).to(tl.int32), 1)
    rows_at = left + batch % heads * left_head + m * left_row
    columns_at = right + batch % heads * right_head + n * right_column
    unit = (
        tl.load(rows_at, mask=m < rows, other=0.0)[:, None] * tl.load(columns_at, mask=n < columns, other=0.0)[None, :]
    )
    shift = tl.load(rows_at + left_plane, mask=m < rows, other=0.0)
    own = tl.load(columns_at + right_plane, mask=n < columns, other=0.0)
    y = (sums + 128 * column_sums[None, :]).to(tl.float32)
    y += shift.to(tl.float32)[:, None] * (column_sums + own * depth).to(tl.float32)[None, :]
    if ROW_SUMS:
        y += row_sums.to(tl.float32)[:, None] * own.to(tl.float32)[None, :]
    if SHARES:
        y = tl.div_rn(y, tl.zeros((BM, BN), tl.float32) + tl.maximum(row_sums, 1).to(tl.float32)[:, None])
    y *= unit.to(tl.float32)
    to = out + (batch * rows + m)[:, None] * columns + n[None, :]
    tl.store(to, y, mask=(m < rows)[:, None] & (n < columns)[None, :])


_matmul = tuned(TILES, ["N", "BITS", "magnitude"])(matmul_kernel)


def matmul(
    lhs: Tensor,
    rhs: Tensor,
    *,
    bits: int,
    largest: int = 255,
    left: Tensor,
    right: Tensor,
    row_sums: bool = True,
    shares: bool = False,
) -> Tensor:
    """`ops.matmul`; sums too deep for 32 bits are left to its plain form."""
    batch = torch.broadcast_shapes(lhs.shape[:-2], rhs.shape[:-2])
    lhs, rhs = (codes.expand(*batch, *codes.shape[-2:]) for codes in (lhs, rhs))
    rows, depth, columns = lhs.shape[-2], lhs.shape[-1], rhs.shape[-1]
    if depth > _DEPTH:
        return ops.matmul(lhs, rhs, bits=bits, left=left, right=right, shares=shares)
    result = lhs.new_empty((*lhs.shape[:-1], columns), dtype=torch.float32)
    if result.numel() == 0:
        return result
    a, b = (codes.reshape(-1, *codes.shape[-2:]).view(torch.int8) for codes in (lhs, rhs))

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (len(a) * triton.cdiv(rows, tile["BM"]) * triton.cdiv(columns, tile["BN"]),)

    _matmul[grid](
        a,
        b,
        result,
        rows,
        depth,
        columns,
        *a.stride(),
        *b.stride(),
        left,
        *(left.stride(axis) if left.shape[axis] > 1 else 0 for axis in (1, 2)),
        left.stride(0),
        right,
        *(right.stride(axis) if right.shape[axis] > 1 else 0 for axis in (1, 2)),
        right.stride(0),
        batch[-1] if batch else 1,
        (rows * depth).bit_length(),
        N=triton.next_power_of_2(columns),
        BITS=bits,
        ROW_SUMS=row_sums,
        SHARES=shares,
        BK=64,
    )
    return result
