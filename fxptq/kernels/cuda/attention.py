"""Attention as one kernel: logits, softmax, its codes and the mix of values never leave the chip.

A program takes one head of one window and a block of its queries. The softmax goes twice over the keys, a block at a
time, in powers of two: its maximum and sum first, then the codes of its values, which depend on both, and their product
with the values. Where one block holds all keys, as the windows of restoration networks are, the logits are made once.
Left factors go in less 128, which the sums of the right ones put right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxptq.kernels.cuda.epilogue import as_codes, rounded
from fxptq.kernels.cuda.tiles import centred, less_128

_KEYS = 256
"""Keys of a block at most."""


@triton.jit
def logits_of(
    a,
    key,
    bias,
    mask,
    n,
    m,
    d,
    keys,
    key_row,
    padded,
    scale,
    key_scale,
    D: tl.constexpr,
    BITS: tl.constexpr,
):
    """The logits [queries, keys] of a block of keys, minus infinity beyond the last."""
    here = (m < keys)[:, None] & (d < D)[None, :]
    k = centred(tl.load(key + m[:, None] * key_row + d[None, :], mask=here, other=0), here, BITS)
    sums = tl.sum(k.to(tl.int32), 1)
    x = (tl.dot(a, k.T, out_dtype=tl.int32) + 128 * sums[None, :]).to(tl.float32) * scale
    x += (sums.to(tl.float32) * key_scale)[None, :]
    place = m[None, :] * padded + n[:, None]  # keys first; queries are padded beyond the last
    there = (m < keys)[None, :] & (n < padded)[:, None]
    if bias is not None:
        x += tl.load(bias + place, mask=there, other=0.0)
    if mask is not None:
        x += tl.load(mask + place, mask=there, other=0.0)
    return tl.where((m < keys)[None, :], x, -float("inf"))


@triton.jit
def attention_kernel(
    query,
    key,
    value,
    bias,
    mask,
    out,
    heads,
    queries,
    keys,
    query_window,
    query_head,
    query_row,
    key_window,
    key_head,
    key_row,
    value_window,
    value_head,
    value_row,
    bias_head,
    masks,
    padded,
    logit,
    logit_head,
    logit_plane,
    prob_scale,
    prob_offset,
    prob_levels,
    terms,
    terms_head,
    terms_column,
    terms_plane,
    levels,
    D: tl.constexpr,
    E: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    SHARES: tl.constexpr,
    CODED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BD: tl.constexpr,
    BE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """BN queries of one head of one window; keys by blocks of BM; widths D and E padded to BD and BE.

    WIDE: codes of the softmax do not fit a signed byte. SHARES: they stand for their part of the sum of their row.
    """
    blocks = tl.cdiv(queries, BN)
    window, head = (tl.program_id(0) // (blocks * heads)).to(tl.int64), tl.program_id(0) // blocks % heads
    n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    key += window * key_window + head * key_head
    value += window * value_window + head * value_head
    if bias is not None:
        bias += head * bias_head
    if mask is not None:
        mask += window % masks * keys * padded
    line = query + window * query_window + head * query_head + n[:, None] * query_row
    a = less_128(tl.load(line + d[None, :], mask=(n < queries)[:, None] & (d < D)[None, :], other=0))

    scale = tl.load(logit + head * logit_head).to(tl.float32)
    key_scale = tl.load(logit + logit_plane + head * logit_head).to(tl.float32)
    top = tl.full((BN,), -3.0e38, tl.float32)  # finite: a block of keys may be masked out altogether
    total = tl.zeros((BN,), tl.float32)
    x = tl.zeros((BN, BM), tl.float32)
    for first in range(0, keys, BM):
        m = first + tl.arange(0, BM)
        x = logits_of(a, key, bias, mask, n, m, d, keys, key_row, padded, scale, key_scale, D, KEY_BITS)
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(x - higher[:, None]), 1)
        top = higher
    if SHARES:
        factor = tl.zeros((BN,), tl.float32) + prob_scale  # powers are relative to the largest of the row already
    else:
        factor = tl.div_rn(tl.zeros((BN,), tl.float32) + prob_scale, total)

    sums = tl.zeros((BN, BE), tl.int32)
    row_sums = tl.zeros((BN,), tl.float32)
    column_sums = tl.zeros((BE,), tl.int32)
    for first in range(0, keys, BM):
        m = first + tl.arange(0, BM)
        if not ONE_BLOCK:
            x = logits_of(a, key, bias, mask, n, m, d, keys, key_row, padded, scale, key_scale, D, KEY_BITS)
        p = tl.exp2(x - top[:, None]) * factor[:, None] + prob_offset
        p = rounded(tl.minimum(tl.maximum(p, 0.0), prob_levels))
        here = (m < keys)[:, None] & (e < E)[None, :]
        v = centred(tl.load(value + m[:, None] * value_row + e[None, :], mask=here, other=0), here, VALUE_BITS)
        if WIDE:
            sums = tl.dot((p - 128).to(tl.int8), v, sums, out_dtype=tl.int32)
        else:
            sums = tl.dot(p.to(tl.int8), v, sums, out_dtype=tl.int32)
        column_sums += tl.sum(v.to(tl.int32), 0)
        if ROW_SUMS or SHARES:
            row_sums += tl.sum(tl.where((m < keys)[None, :], p, 0.0), 1)
    if WIDE:
        sums += 128 * column_sums[None, :]
    term = terms + head * terms_head + e * terms_column
    out_scale = tl.load(term, mask=e < E, other=0.0).to(tl.float32)
    column_scale = tl.load(term + 2 * terms_plane, mask=e < E, other=0.0).to(tl.float32)
    constant = tl.load(term + 3 * terms_plane, mask=e < E, other=0.0) * keys
    constant = (constant + tl.load(term + 4 * terms_plane, mask=e < E, other=0.0)).to(tl.float32)
    y = sums.to(tl.float32)
    if SHARES:
        y = tl.div_rn(y, tl.zeros((BN, BE), tl.float32) + row_sums[:, None])
    y = y * out_scale[None, :] + (column_sums.to(tl.float32) * column_scale + constant)[None, :]
    if ROW_SUMS:
        row_scale = tl.load(term + terms_plane, mask=e < E, other=0.0).to(tl.float32)
        y += row_sums[:, None] * row_scale[None, :]
    place = ((window * queries + n) * heads + head)[:, None] * E + e[None, :]
    inside = (n < queries)[:, None] & (e < E)[None, :]
    if CODED:
        tl.store(out + place, as_codes(y, levels), mask=inside)
    else:
        tl.store(out + place, y, mask=inside)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    mask: Tensor | None,
    query_bits: int = 8,
    key_bits: int,
    value_bits: int,
    logit: Tensor,
    prob: Sequence[float],
    out: Tensor,
    levels: int,
    row_sums: bool = True,
    shares: bool = False,
) -> Tensor:
    """`ops.attention`."""
    del query_bits  # tensor cores add up in 32 bits
    q, k, v = ((x if x.stride(3) == 1 else x.contiguous()).view(torch.int8) for x in (query, key, value))
    windows, heads, queries, depth = q.shape
    keys, width = v.shape[2:]
    result = q.new_empty((windows, queries, heads, width), dtype=torch.uint8 if levels else torch.float32)
    if result.numel() == 0:
        return result.transpose(1, 2)
    terms = bias if bias is not None else mask
    block = min(max(triton.next_power_of_2(keys), 32), _KEYS)
    lines = min(max(triton.next_power_of_2(queries), 16), 64 if block <= 128 else 32)
    # On one axis: the others take 65535 programs at most, which a large picture has windows for.
    attention_kernel[(windows * heads * triton.cdiv(queries, lines),)](
        q,
        k,
        v,
        bias,
        mask,
        result,
        heads,
        queries,
        keys,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        0 if bias is None or len(bias) == 1 else bias.stride(0),
        1 if mask is None else len(mask),
        0 if terms is None else terms.shape[-1],
        logit,
        logit.stride(1) if logit.shape[1] > 1 else 0,
        logit.stride(0),
        *prob,
        out,
        out.stride(1) if out.shape[1] > 1 else 0,
        out.stride(2) if out.shape[2] > 1 else 0,
        out.stride(0),
        float(levels),
        D=depth,
        E=width,
        KEY_BITS=key_bits,
        VALUE_BITS=value_bits,
        WIDE=prob[2] > 127,
        ROW_SUMS=row_sums,
        SHARES=shares,
        CODED=levels != 0,
        ONE_BLOCK=keys <= block,
        BD=max(triton.next_power_of_2(depth), 32),
        BE=max(triton.next_power_of_2(width), 16),
        BM=block,
        BN=lines,
        num_warps=4 if block <= 128 else 8,
    )
    return result.transpose(1, 2)
