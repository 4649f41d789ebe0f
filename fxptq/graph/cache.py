"""The graphs of a program by the sizes of the inputs, for threads that ask at once. Graphs and sizes are bounded.

The lock is held for a few steps of bookkeeping, never while a network computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fxptq.graph.exclusive import OwnLock

T = TypeVar("T")

SIZES = 256
"""Sizes whose graph is remembered; for any other the conditions of the graphs are asked, which takes milliseconds."""


class Cache(Generic[T]):
    """Values, each for many sizes; the least recently used goes first.

    Attributes:
        values: all of them, in the order they came.
    """

    def __init__(self) -> None:
        self.values: tuple[T, ...] = ()
        self._lock = OwnLock()
        self._by_size: OrderedDict[Hashable, T] = OrderedDict()

    @property
    def sizes(self) -> int:
        """How many sizes are remembered."""
        return len(self._by_size)

    def get(self, size: Hashable) -> T | None:
        """The value for a size, if it is remembered."""
        with self._lock:
            if size not in self._by_size:
                return None
            self._by_size.move_to_end(size)
            return self._by_size[size]

    def remember(self, size: Hashable, value: T) -> None:
        """From now on, the value is the one for this size, unless it has gone meanwhile."""
        with self._lock:
            if any(value is other for other in self.values):
                self._enter(size, value)

    def add(self, size: Hashable, value: T, limit: int) -> None:
        """Takes a new value in, for this size, and keeps at most `limit` values."""
        with self._lock:
            self.values = (*self.values, value)
            self._enter(size, value)
            while len(self.values) > max(limit, 1):
                oldest = self._least_recent()
                self.values = tuple(other for other in self.values if other is not oldest)
                for known in [known for known, other in self._by_size.items() if other is oldest]:
                    del self._by_size[known]

    def replace(self, change: Callable[[T], T]) -> None:
        """Puts the changed value in the place of each."""
        with self._lock:
            changed = {id(value): change(value) for value in self.values}
            self.values = tuple(changed.values())
            for size, value in self._by_size.items():
                self._by_size[size] = changed[id(value)]

    def _enter(self, size: Hashable, value: T) -> None:
        self._by_size[size] = value
        self._by_size.move_to_end(size)
        while len(self._by_size) > SIZES:
            self._by_size.popitem(last=False)

    def _least_recent(self) -> T:
        """The value whose last use is the longest ago; one without a size has not been used for the longest time."""
        recent = {id(value): index for index, value in enumerate(self._by_size.values())}
        return min(self.values, key=lambda value: recent.get(id(value), -1))
