"""Operators that make codes from values without a product: quantize, and LayerNorm with the quantizer behind it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxptq.kernels.cuda.epilogue import as_codes

_BLOCK = 1024
"""Values of a program."""


@triton.jit
def quantize_kernel(x, codes, count, lower, step, levels, BLOCK: tl.constexpr):
    """Codes as the simulation makes them, operation by operation: the division rounds to nearest."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.div_rn(tl.load(x + i, mask=i < count, other=0.0) - lower, tl.zeros((BLOCK,), tl.float32) + step)
    tl.store(codes + i, as_codes(z, levels), mask=i < count)


def quantize(x: Tensor, *, lower: float, step: float, levels: int) -> Tensor:
    """`ops.quantize`."""
    codes = torch.empty_like(x, dtype=torch.uint8)
    # Both in the order of memory; values with gaps or repeats between them are laid out as torch lays out its results.
    dense = x if x.stride() == codes.stride() else torch.empty_like(codes, dtype=x.dtype).copy_(x)
    if x.numel():
        quantize_kernel[(triton.cdiv(x.numel(), _BLOCK),)](
            dense, codes, x.numel(), float(lower), float(step), float(levels), BLOCK=_BLOCK
        )
    return codes


@triton.jit
def layer_norm_kernel(
    x,
    scale,
    offset,
    codes,
    rows,
    eps,
    levels,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of WIDTH values, padded to BLOCK; two passes, so that the variance of a large mean is right."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    place = r[:, None] * WIDTH + i[None, :]
    inside = (r < rows)[:, None] & (i < WIDTH)[None, :]
    z = tl.load(x + place, mask=inside, other=0.0)
    z = tl.where(inside, z - tl.sum(z, 1)[:, None] / WIDTH, 0.0)
    z = z / tl.sqrt_rn(tl.sum(z * z, 1) / WIDTH + eps)[:, None]
    z = z * tl.load(scale + i, mask=i < WIDTH, other=0.0)[None, :]
    z = z + tl.load(offset + i, mask=i < WIDTH, other=0.0)[None, :]
    tl.store(codes + place, as_codes(z, levels), mask=inside)


def layer_norm_codes(x: Tensor, *, scale: Tensor, offset: Tensor, eps: float, levels: int) -> Tensor:
    """`ops.layer_norm_codes`."""
    values = x.contiguous()
    width = values.shape[-1]
    codes = torch.empty_like(values, dtype=torch.uint8)
    if codes.numel():
        rows, block = codes.numel() // width, triton.next_power_of_2(width)
        lines = max(_BLOCK // block, 1)
        layer_norm_kernel[(triton.cdiv(rows, lines),)](
            values, scale, offset, codes, rows, eps, float(levels), WIDTH=width, ROWS=lines, BLOCK=block
        )
    return codes
