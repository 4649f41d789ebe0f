"""From integer sums to what the network reads next, as `ops.Epilogue` says; every layer's kernel ends in this."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(z):
    """The nearest integer, ties to even, of a float32 below 2**22: what is added leaves no bits for the fraction."""
    return (z + 12582912.0) - 12582912.0


@triton.jit
def as_codes(z, levels):
    """round(clip(z, 0, levels)) as bytes."""
    return rounded(tl.minimum(tl.maximum(z, 0.0), levels)).to(tl.int32).to(tl.uint8)


@triton.jit
def finish(
    sums,
    row_sums,
    bias,
    place,
    to,
    inside,
    n,
    scale,
    row_scale,
    residual,
    levels,
    out,
    slope,
    out_scale,
    out_offset,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Finishes and stores a tile.

    Args:
        sums: int32 [rows, columns].
        row_sums: int32 [rows], of the codes; read with `row_scale` only.
        bias: float32, [rows or 1, columns].
        place: of each element in `residual`.
        to: of each element in `out`.
        inside: which elements there are.
        n: int32 [columns], their numbers.
        scale: address of the scales of columns, as those of `row_scale`, `residual`, `levels` (or None) and `out`.
        row_scale: or None.
        residual: or None.
        levels: or None.
        out: of float32, or of uint8 with `levels`.
        slope: of the leaky activation.
        out_scale: address of the factors onto the next grid, read where they are not in `scale`.
        out_offset: likewise.
        N: columns of the layer.
        ACTIVATION: an `ops.Activation`.
    """
    there = n < N
    y = sums.to(tl.float32) * tl.load(scale + n, mask=there, other=0.0)[None, :] + bias
    if row_scale is not None:
        y += row_sums.to(tl.float32)[:, None] * tl.load(row_scale + n, mask=there, other=0.0)[None, :]
    if ACTIVATION == 1:
        y = tl.where(y > 0, y, y * slope)
    elif ACTIVATION == 2:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    if residual is not None:
        y += tl.load(residual + place, mask=inside, other=0.0)
    if levels is None:
        tl.store(out + to, y, mask=inside)
    else:
        if ACTIVATION != 0 or residual is not None:
            y = y * tl.load(out_scale + n, mask=there, other=0.0)[None, :]
            y += tl.load(out_offset + n, mask=there, other=0.0)[None, :]
        largest = tl.load(levels + n, mask=there, other=0.0)[None, :]
        tl.store(out + to, as_codes(y, largest), mask=inside)
