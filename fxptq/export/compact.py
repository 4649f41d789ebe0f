"""Constants in few bytes: position tables that were spread over windows, and floats that half precision holds exactly.

A runtime computes both back to the same float32 values once, when it loads the file.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from fxptq.export.builder import TYPES, Builder

_SMALL = 1024
"""Constants of fewer elements are stored as they are."""

_WORTH = 0.5
"""A constant is stored by its distinct columns if they and the index take at most this part of its bytes."""


def compact(b: Builder, tensor: Tensor, name: str) -> str:
    """The name of a constant, or of the nodes that compute it from fewer bytes."""
    if tensor.dtype is not torch.float32 or tensor.numel() < _SMALL:
        return b.constant(tensor, name)
    splits = [_distinct(tensor, axes) for axes in range(1, tensor.dim() - 1)]
    columns, places = min(splits, key=_bytes, default=(tensor, torch.empty(0)))
    if not splits or _bytes((columns, places)) > _WORTH * tensor.numel() * tensor.element_size():
        return _half(b, tensor, name)
    spread = b.op("Gather", _half(b, columns, name), places, axis=1)
    return b.op("Reshape", spread, b.numbers(list(tensor.shape)))


def _distinct(tensor: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """The distinct columns of a tensor whose first axes are rows and whose others are columns, and their places.

    A table of attention biases [heads, 64, 64] has one column of heads for each distance, at many pairs of places.
    Columns are in the order in which they appear, so that equal patterns give equal places.
    """
    columns = tensor.reshape(prod(tensor.shape[:axes]), -1).t().contiguous().numpy()
    known: dict[bytes, int] = {}
    places = [known.setdefault(column.tobytes(), len(known)) for column in columns]
    distinct = np.frombuffer(b"".join(known), columns.dtype).reshape(len(known), -1)
    return torch.from_numpy(distinct.copy()).t().contiguous(), torch.tensor(places, dtype=torch.int32)


def _bytes(split: tuple[Tensor, Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in split)


def _half(b: Builder, tensor: Tensor, name: str) -> str:
    small = tensor.half()
    if not torch.equal(small.float(), tensor):
        return b.constant(tensor, name)
    return b.op("Cast", b.constant(small, name), to=TYPES[torch.float32])
