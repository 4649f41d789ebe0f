"""Dense packing of low-bit codes: `n` codes of `bits` bits take exactly ceil(n * bits / 8) bytes.

The layout is one little-endian bit stream: code i holds bits [i * bits, (i + 1) * bits) of the stream, lowest bit
first, and the unused high bits of the last byte are zero. Eight codes therefore fill `bits` whole bytes; `pack` and
`unpack` work in such blocks. Promises: `unpack` is the exact inverse of `pack` on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fxptq.errors import InputError

_BLOCK = 8  # codes that fill `bits` whole bytes


def packed_size(count: int, bits: int) -> int:
    """Computes the number of bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes without gaps.

    Args:
        codes: uint8, any shape, values 0 .. 2**bits - 1.
        bits: 1 to 8.

    Returns:
        uint8 [ceil(codes.numel() * bits / 8)], on the device of `codes`, in the row-major order of `codes`.

    Raises:
        InputError: `bits`, the dtype or a value is out of range.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise InputError(f"pack: codes are {codes.dtype}, expected torch.uint8")
    count = codes.numel()
    if bits < 8 and count and int(codes.max()) >> bits:
        raise InputError(f"pack: code {int(codes.max())} does not fit in {bits} bits (0 to {2**bits - 1})")
    blocks = -(-count // _BLOCK)
    words = torch.nn.functional.pad(codes.reshape(-1), (0, blocks * _BLOCK - count)).reshape(blocks, _BLOCK)
    packed = _repartition(words, bits, _BLOCK, 8, bits)
    return packed.reshape(-1)[: packed_size(count, bits)].clone()


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Restores the codes that `pack` packed.

    Args:
        packed: uint8 [ceil(prod(shape) * bits / 8)].
        bits: 1 to 8.
        shape: Shape of the codes.

    Returns:
        uint8 of `shape`, values 0 .. 2**bits - 1, on the device of `packed`.

    Raises:
        InputError: `bits` is out of range, or `packed` is no result of `pack` for codes of this shape and width.
    """
    _check_bits(bits)
    count = prod(shape)
    expected = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise InputError(
            f"unpack: {packed.dtype} {list(packed.shape)} cannot hold codes of shape {list(shape)} at {bits} bits, "
            f"expected torch.uint8 [{expected}]"
        )
    blocks = -(-count // _BLOCK)
    words = torch.nn.functional.pad(packed, (0, blocks * bits - expected)).reshape(blocks, bits)
    codes = _repartition(words, 8, bits, bits, _BLOCK)
    return codes.reshape(-1)[:count].reshape(list(shape))


def _repartition(fields: Tensor, width: int, count: int, new_width: int, new_count: int) -> Tensor:
    """Reads each row as one word of `count` fields of `width` bits; cuts it into `new_count` fields of `new_width`."""
    word = torch.zeros(fields.shape[0], dtype=torch.int64, device=fields.device)
    for i in range(count):
        word |= fields[:, i].to(torch.int64) << (width * i)
    mask = 2**new_width - 1
    # The shift is arithmetic, so the top bit of a word spreads downwards as ones; the mask removes them.
    return torch.stack([((word >> (new_width * i)) & mask).to(torch.uint8) for i in range(new_count)], dim=1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"bits = {bits}: expected 1 to 8")
