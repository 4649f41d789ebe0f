"""Tensors by name on disk: statistics that take more memory than a run may use, and are read one at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Entry:
    start: int
    shape: torch.Size
    dtype: torch.dtype


class Shelf(MutableMapping[str, Tensor]):
    """Tensors in a temporary file that has no name, so that nothing of it stays when the process is killed.

    A tensor that is read is a copy on the CPU. The place of a tensor that is overwritten or deleted is not used again.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        self._end = 0

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor."""
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.seek(self._end)
        self._file.write(flat.numpy().data)
        self._entries[name] = _Entry(self._end, tensor.shape, tensor.dtype)
        self._end += flat.numel()

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor."""
        entry = self._entries[name]
        self._file.seek(entry.start)
        data = bytearray(self._file.read(prod(entry.shape) * entry.dtype.itemsize))
        return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)

    def __delitem__(self, name: str) -> None:
        """Forgets a tensor."""
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they were first written."""
        return iter(self._entries)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._entries)
