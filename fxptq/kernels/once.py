"""What is done once in a process, by the first thread that asks; others that ask meanwhile wait for the result.

`functools.cache` alone lets several threads run the function at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  # a decorator
    """Decorator for a function without arguments: the first call that succeeds is the only one."""

    def __init__(self, function: Callable[[], T]) -> None:
        functools.update_wrapper(self, function)
        self._call = functools.cache(function)
        self._lock = threading.RLock()

    def __call__(self) -> T:
        """The result of the one call."""
        with self._lock:
            return self._call()

    def cache_clear(self) -> None:
        """The next call does it again."""
        self._call.cache_clear()
