"""The table of a checkpoint's tensors: what each is called, how it is stored, and how many bytes it takes.

It is read from the file alone. No network is needed, and none is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fxptq.checkpoint.file import Checkpoint

Holds = Literal["codes", "bounds", "float"]

_LOWER, _WIDTH = ".lower", ".width"
"""Ends of the names of bounds that stand among the floats."""


@dataclass(frozen=True)
class StoredTensor:
    """One row of the table.

    Attributes:
        name: the name in the file: of a weight, of a quantizer, or of a tensor in float.
        holds: `codes` of a weight, the `bounds` of a quantizer, or a tensor in `float` (any dtype).
        shape: of the tensor; [ranges] of bounds.
        bits: bits of a code; None where no operand says the bits of the grid, and for floats.
        dtype: the type that is stored: `uint8` of packed codes.
        bytes: bytes in the file before a run of floats is deflated.
        scale: the smallest and the largest distance of neighbouring grid values over the ranges; None without a grid.
    """

    name: str
    holds: Holds
    shape: tuple[int, ...]
    bits: int | None
    dtype: str
    bytes: int
    scale: tuple[float, float] | None = None


def tensor_table(checkpoint: Checkpoint) -> tuple[StoredTensor, ...]:
    """The tensors of a checkpoint: weights in codes, then quantizers, then everything in float."""
    return (*_codes(checkpoint), *_bounds(checkpoint), *_floats(checkpoint))


def _codes(checkpoint: Checkpoint) -> Iterator[StoredTensor]:
    keys = {operand.codes: operand.quantizer for site in checkpoint.meta.sites for operand in site.operands}
    for name, codes in checkpoint.codes.items():
        key = keys.get(name, "")
        width = checkpoint.bounds[key][1] if key in checkpoint.bounds else checkpoint.floats.get(f".{key}.width")
        scale = _scales(None if width is None else width.float(), codes.bits)
        yield StoredTensor(name, "codes", codes.shape, codes.bits, "uint8", _size(codes.packed), scale)


def _bounds(checkpoint: Checkpoint) -> Iterator[StoredTensor]:
    bits = {operand.quantizer: operand.bits for site in checkpoint.meta.sites for operand in site.operands}
    floats = checkpoint.floats
    keys = [name[1 : -len(_WIDTH)] for name in floats if name.startswith(".") and name.endswith(_WIDTH)]
    pairs = {key: (floats[f".{key}{_LOWER}"], floats[f".{key}{_WIDTH}"]) for key in keys}
    for key, (lower, width) in {**checkpoint.bounds, **pairs}.items():
        scale = _scales(width.float(), bits.get(key))
        nbytes = _size(lower) + _size(width)
        yield StoredTensor(key, "bounds", (width.numel(),), bits.get(key), _dtype(width), nbytes, scale)


def _floats(checkpoint: Checkpoint) -> Iterator[StoredTensor]:
    for name, tensor in checkpoint.floats.items():
        if not (name.startswith(".") and name.endswith((_LOWER, _WIDTH))):
            yield StoredTensor(name, "float", tuple(tensor.shape), None, _dtype(tensor), _size(tensor))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _scales(width: Tensor | None, bits: int | None) -> tuple[float, float] | None:
    if width is None or bits is None or width.numel() == 0:
        return None
    scale = width / (2**bits - 1)
    return float(scale.min()), float(scale.max())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
