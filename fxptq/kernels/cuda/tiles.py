"""What kernels of matrix products share: sizes of tiles, and codes as the bytes a matrix instruction takes.

Sizes are measured on the device at the first call of each shape, and of each magnitude of its rows. Sums are integers,
so that no choice changes a result. Triton's interpreter has nothing to measure and takes the first of the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from fxptq.kernels.rows import SLICE, stored_bits


@dataclass(frozen=True)
class Tile:
    """How much of the output a program makes: `rows` x `columns`, by `warps` of 32 threads, loads `stages` ahead."""

    rows: int
    columns: int
    warps: int
    stages: int


TILES = (Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 128, 8, 3), Tile(128, 32, 4, 4), Tile(32, 64, 4, 4))


def tuned(tiles: Sequence[Tile], key: Sequence[str]) -> Callable[[Any], Any]:
    """Makes a kernel choose among tiles, by the values of the arguments that `key` names."""
    chosen = tiles[:1] if triton.knobs.runtime.interpret else tiles
    configs = [triton.Config({"BM": t.rows, "BN": t.columns}, num_warps=t.warps, num_stages=t.stages) for t in chosen]

    def wrap(kernel: Any) -> Any:
        return triton.autotune(configs, list(key), prune_configs_by={"early_config_prune": _of_use})(kernel)

    return wrap


def _of_use(configs: list[Any], positional: dict[str, Any], **named: Any) -> list[Any]:
    """The candidates that are not more than twice as wide as the output."""
    return [c for c in configs if c.kwargs["BN"] < 2 * max(named["N"], 32)] or configs[:1]


def fields(bits: int) -> int:
    """Codes in a byte of a packed weight."""
    return 8 // stored_bits(bits)


def chunk(row_bytes: int, bits: int, tap: int) -> int:
    """Bytes of a row to work on at once: slices of a tap, where each tap has whole ones."""
    if fields(bits) > 1:
        return SLICE
    unit = tap if tap % SLICE == 0 else SLICE
    return next(size for size in (128, 64, SLICE) if row_bytes % size == 0 and unit % size == 0)


@triton.jit
def less_128(codes):
    """Codes, read as signed bytes, less 128: fits them whatever their width."""
    return codes ^ -128


@triton.jit
def slice_of(packed, FIELD: tl.constexpr, BITS: tl.constexpr, STORED: tl.constexpr):
    """The centred codes of one slice of packed bytes (rows.py)."""
    if STORED == 8:
        signed = packed.to(tl.int8, bitcast=True)
    else:
        codes = ((packed >> (FIELD * STORED)) & ((1 << STORED) - 1)).to(tl.int8, bitcast=True)
        signed = (2 * codes - ((1 << BITS) - 1)).to(tl.int8)
    return signed


@triton.jit
def centred(codes, inside, BITS: tl.constexpr):
    """`packing.centred` of codes, read as signed bytes; zero outside."""
    if BITS == 8:
        signed = less_128(codes)
    else:
        signed = (2 * codes.to(tl.int16) - ((1 << BITS) - 1)).to(tl.int8)
    return tl.where(inside, signed, 0).to(tl.int8)


@triton.jit
def add_products(sums, totals, codes, weights, ones, SHIFT: tl.constexpr, TOTALS: tl.constexpr):
    """One slice of a layer's inner loop.

    Args:
        sums: int32 [rows, columns] so far.
        totals: int32 [rows, 16] so far, the sums of codes, every column the same: the matrix units add up fastest.
        codes: bytes [rows, slice].
        weights: centred, int8 [columns, slice].
        ones: int8 [slice, 16].
        SHIFT: codes of 8 bits go in less 128.
        TOTALS: whether the sums of codes are asked for.

    Returns:
        Both sums with this slice.
    """
    if SHIFT:
        codes = less_128(codes)
    sums = tl.dot(codes, weights.T, sums, out_dtype=tl.int32)
    if TOTALS:
        totals = tl.dot(codes, ones, totals, out_dtype=tl.int32)
    return sums, totals


@triton.jit
def taken_back(sums, totals, start, n, N: tl.constexpr, CODES: tl.constexpr):
    """Sums and sums of codes as if nothing had been taken off: `start`, of columns n, or None; CODES make a row."""
    row_sums = tl.max(totals, 1)
    if start is not None:
        sums += tl.load(start + n, mask=n < N, other=0)[None, :]
        row_sums += 128 * CODES
    return sums, row_sums
