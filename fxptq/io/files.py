"""Text files written whole or not at all, and a look ahead at whether a file can be written.

Promises: what cannot be written is an `InputError` of one line that names the file; nothing is left beside it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from fxptq.errors import InputError


def check_writable(path: Path) -> None:
    """Finds out before the work, not after it, whether a file can be written at `path`; missing folders are made.

    Raises:
        InputError: it cannot, or `path` is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _refused(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; missing folders are made.

    Raises:
        InputError: the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON atomically; numbers it cannot express (the infinite PSNR of equal pictures) become null.

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


def _refused(path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = f"something in {path.parent} is a file and no folder"
    return InputError(f"{path}: cannot be written: {reason}")
