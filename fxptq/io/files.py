"""Files written whole or not at all, and a look ahead at whether a file can be written.

Promises: whoever reads the file sees the old content or the new, whenever the writer is killed; a link stays a link; a
device, a pipe or standard output is written to and not replaced. What cannot be written is an `InputError` of one line
that names the file, and nothing is left beside it. What a killed process left is removed by `check_writable`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fxptq.errors import InputError
from fxptq.io.locks import is_current, lock, remove_if_abandoned

_PART = ".fxptq-{}.part"  # short, so that every name that a file may have leaves room for it
_LINKS = 40  # followed at most, as the system itself does


def check_writable(path: Path) -> None:
    """Finds out before the work, not after it, whether a file can be written at `path`; missing folders are made.

    Raises:
        InputError: it cannot, or `path` is a folder.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected the name of a file")
        if _written_in_place(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(13, os.strerror(13))
            return
        target = _followed(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        handle, part = _new_part(target.parent)
        os.close(handle)
        part.unlink()
    except OSError as error:
        raise _refused(path, error) from None


def remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed while writing into `folder` have left there."""
    with contextlib.suppress(OSError):
        for part in list(folder.glob(_PART.format("*"))):
            remove_if_abandoned(part)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file: beside its place first, flushed to the disk, then moved there; missing folders are made.

    Raises:
        InputError: the file cannot be written.
    """
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file as `write_bytes` does, piece by piece, so that its content need not be in memory at once.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if _written_in_place(path):
            _write_in_place(path, pieces)
        else:
            _replace(_followed(path), pieces)
    except OSError as error:
        raise _refused(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file as `write_bytes` does; what UTF-8 cannot express (odd file names) is written escaped.

    Raises:
        InputError: the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON as `write_bytes` does; numbers it cannot express (the infinite PSNR of equal pictures) become null.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json.dumps(_expressible(content), indent=1, allow_nan=False) + "\n")


def _expressible(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expressible(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_expressible(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(target: Path, pieces: Iterable[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = _new_part(target.parent)
    try:
        with open(handle, "wb") as stream:  # noqa: PTH123  # of a handle
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
            with contextlib.suppress(OSError):  # a private file stays private
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            if os.name != "nt":  # while it is locked; an open file cannot be moved on Windows
                part.replace(target)
        if os.name == "nt":
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _new_part(folder: Path) -> tuple[int, Path]:
    """A new file in `folder`, open and locked for as long as it is open."""
    while True:
        part = folder / _PART.format(secrets.token_hex(6))
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        lock(handle)
        if is_current(handle, part):  # else it was taken for abandoned before it was locked
            return handle, part
        os.close(handle)


def _written_in_place(path: Path) -> bool:
    """Whether `path` is something that exists and is no plain file, or names an open descriptor of this process."""
    if _descriptor(path) is not None:
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _write_in_place(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor = _descriptor(path)
    if descriptor is not None:  # opening it anew would start over at the beginning of a file
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    handle = os.dup(descriptor) if descriptor is not None else os.open(path, os.O_WRONLY)
    with open(handle, "wb") as file:  # noqa: PTH123  # of a handle
        file.writelines(pieces)


def _descriptor(path: Path) -> int | None:
    """The open descriptor of this process that `path` names, as /dev/stdout and /dev/fd/3 do."""
    own = re.compile(rf"(/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd)/(\d+)")
    for _ in range(_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if found := own.fullmatch(str(path)):
            return int(found[3])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _followed(path: Path) -> Path:
    """Where a link leads; `path` itself if it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _refused(path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = f"something in {path.parent} is a file and no folder"
    return InputError(f"{path}: cannot be written: {reason}")


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable, on systems where a folder can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
