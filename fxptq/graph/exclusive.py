"""Threads: one network is captured at a time in a process, and only the thread that captures sees what that changes.

A capture changes for a while what belongs to the whole process: functions of the network's files, torch's hooks, the
stance of torch.compile, the limit of recursion. `CAPTURING` keeps captures apart. Threads that
run a graph, or the user's own network, never wait for it; what is put in their way chooses by thread (`here_or`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CAPTURING = threading.RLock()
"""Held by the thread that captures, or that runs a network in the manner of a capture."""


def here_or(here: T, elsewhere: T) -> Callable[[], T]:
    """A function that gives `here` in the thread that asks now, and `elsewhere` in every other one."""
    owner = threading.get_ident()

    def choose() -> T:
        return here if threading.get_ident() == owner else elsewhere

    return choose


class ChosenByThread:
    """A class attribute that differs between threads; see `here_or`."""

    def __init__(self, choose: Callable[[], Any]) -> None:
        self._choose = choose

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = self._choose()
        bind = getattr(type(value), "__get__", None)
        return value if bind is None else bind(value, instance, owner)


class OwnLock:
    """A lock for a few steps of bookkeeping; a copy of its owner gets a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[OwnLock], tuple[()]]:
        return OwnLock, ()
