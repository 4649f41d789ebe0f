"""The tensors that one call cut a tensor into, when their number depends on the size of the input.

A loop over them, or their number, is right only while there are as many; unpacking them (`q, k, v = x.chunk(3)`) fails
by itself when there are not, so that it needs no guard.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, fx


class CountRecorder(Protocol):
    """The part of the tracer that pieces use."""

    @property
    def open(self) -> bool:
        """Whether the trace is still going on."""

    def pin_count(self, pieces: fx.Node, count: int) -> None:
        """Requires that the call always returns so many values."""


class Pieces(tuple[Tensor, ...]):
    """A tuple that pins its length in the graph when somebody learns it.

    Args:
        items: the tensors.
        origin: the node of the call that returned them.
        recorder: the trace it belongs to.
    """

    # A tuple has no `__init__`, and no slots of its own.
    def __new__(cls, items: Iterable[Tensor], origin: fx.Node, recorder: CountRecorder) -> Pieces:  # noqa: D102  # see the class
        pieces = super().__new__(cls, items)
        pieces._origin, pieces._recorder = origin, recorder  # type: ignore[attr-defined]  # a tuple has no __init__
        return pieces

    def pin_count(self) -> None:
        """Requires that there are always as many as now."""
        if self._recorder.open:  # type: ignore[attr-defined]  # as above
            self._recorder.pin_count(self._origin, super().__len__())  # type: ignore[attr-defined]  # as above

    def __len__(self) -> int:
        self.pin_count()
        return super().__len__()

    def __iter__(self) -> Iterator[Tensor]:
        if not _is_unpacking(sys._getframe(1)):  # noqa: SLF001  # the only way to the caller
            self.pin_count()
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or index < 0:
            self.pin_count()
        return super().__getitem__(index)

    def __add__(self, other: Any) -> Any:
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + tuple(self)

    def __mul__(self, times: Any) -> Any:
        return tuple(self) * times

    def __reduce__(self) -> Any:
        return tuple, (list(self),)


def pieces_in(values: Any) -> Iterator[Pieces]:
    """The pieces among arguments, however nested."""
    if isinstance(values, Pieces):
        yield values
    elif type(values) in (tuple, list):
        for value in values:
            yield from pieces_in(value)
    elif isinstance(values, dict):
        yield from pieces_in(list(values.values()))


def _is_unpacking(frame: FrameType) -> bool:
    """Whether the frame is at `a, b = ...`, itself or by the `__iter__` of a tensor."""
    if frame.f_code is torch.Tensor.__iter__.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] == "UNPACK_SEQUENCE"
