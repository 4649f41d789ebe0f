"""Dense packing of low-bit codes: `n` codes of `bits` bits take exactly ceil(n * bits / 8) bytes.

The layout is one little-endian bit stream: code i holds bits [i * bits, (i + 1) * bits) of the stream, lowest bit
first, and the unused high bits of the last byte are zero. Eight codes therefore fill `bits` whole bytes, which is the
unit both directions work in. `unpack` is the exact inverse of `pack` on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fxptq.errors import InputError

_GROUP = 8  # codes that fill `bits` whole bytes


def packed_size(count: int, bits: int) -> int:
    """Number of bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes densely.

    Args:
        codes: uint8, any shape, values 0 .. 2**bits - 1.
        bits: 1 to 8.

    Returns:
        uint8 [ceil(codes.numel() * bits / 8)], on the device of `codes`, in the row-major order of `codes`.

    Raises:
        InputError: if `bits`, the dtype or a value is out of range.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise InputError(f"pack: codes are {codes.dtype}, expected torch.uint8")
    count = codes.numel()
    if bits < 8 and count and int(codes.max()) >> bits:
        raise InputError(f"pack: code {int(codes.max())} does not fit in {bits} bits (0 to {2**bits - 1})")
    groups = -(-count // _GROUP)
    words = torch.nn.functional.pad(codes.reshape(-1), (0, groups * _GROUP - count)).reshape(groups, _GROUP)
    packed = _repartition(words, bits, _GROUP, 8, bits)
    return packed.reshape(-1)[: packed_size(count, bits)].clone()


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Restore the codes that `pack` packed.

    Args:
        packed: uint8 [ceil(prod(shape) * bits / 8)].
        bits: 1 to 8.
        shape: Shape of the codes.

    Returns:
        uint8 of `shape`, values 0 .. 2**bits - 1, on the device of `packed`.

    Raises:
        InputError: if `packed` is not what `pack` makes of codes of this shape and width.
    """
    _check_bits(bits)
    count = prod(shape)
    expected = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise InputError(
            f"unpack: {packed.dtype} {list(packed.shape)} cannot hold codes of shape {list(shape)} at {bits} bits, "
            f"expected torch.uint8 [{expected}]"
        )
    groups = -(-count // _GROUP)
    words = torch.nn.functional.pad(packed, (0, groups * bits - expected)).reshape(groups, bits)
    codes = _repartition(words, 8, bits, bits, _GROUP)
    return codes.reshape(-1)[:count].reshape(list(shape))


def _repartition(fields: Tensor, width: int, count: int, new_width: int, new_count: int) -> Tensor:
    """Read each row as one 64-bit word of `count` fields of `width` bits; cut it into `new_count` of `new_width`."""
    word = torch.zeros(fields.shape[0], dtype=torch.int64, device=fields.device)
    for i in range(count):
        word |= fields[:, i].to(torch.int64) << (width * i)
    mask = 2**new_width - 1
    # The shift is arithmetic, so a word with its top bit set smears ones downwards: the mask takes them off again.
    return torch.stack([((word >> (new_width * i)) & mask).to(torch.uint8) for i in range(new_count)], dim=1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"bits = {bits}: expected 1 to 8")
