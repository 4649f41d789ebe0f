"""Locks on files, which the system releases when their process ends, however it ends.

They keep two processes from building or downloading the same file at once, and tell a file that is being written from
one whose writer was killed. Where the file system knows no locks everything still works, for one process at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody can remove a file there that somebody has open
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process works on `path`, and keeps others waiting meanwhile.

    The lock is a file `path.lock`, which is removed at the end; one that a killed process left is taken over.

    Raises:
        OSError: the folder cannot be written.
    """
    place = path.with_name(path.name + ".lock")
    handle = _open_locked(place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()
        os.close(handle)


def lock(handle: int) -> None:
    """Locks an open file, waiting for whoever holds it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)


def is_current(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def remove_if_abandoned(path: Path) -> None:
    """Removes a file unless a process holds its lock; does nothing where that cannot be told."""
    with contextlib.suppress(OSError):
        if fcntl is None:
            path.unlink()
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        lock(handle)
        if is_current(handle, path):  # whoever had it before may have removed it
            return handle
        os.close(handle)
