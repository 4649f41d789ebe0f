"""What was measured on this machine, kept between runs in the user's cache: small records of numbers and texts.

A record that is missing, damaged or cannot be kept costs a measurement, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.io.files import write_json

Record = dict[str, float | str]

_LARGEST = 1 << 20  # bytes


def read_record(kind: str, key: str) -> Record | None:
    """The record that was kept under a key, or None.

    Args:
        kind: the folder of records of one meaning.
        key: everything that the measurement depends on, as text.
    """
    try:
        path = _place(kind, key)
        if path.stat().st_size > _LARGEST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, InputError):
        return None
    sound = isinstance(found, dict) and all(
        isinstance(value, float | int | str) and not isinstance(value, bool) for value in found.values()
    )
    return found if sound else None


def keep_record(kind: str, key: str, record: Mapping[str, float | str]) -> None:
    """Keeps a record; where the cache cannot be written, it is measured again next time."""
    try:
        write_json(_place(kind, key), dict(record))
    except (InputError, OSError):
        return


def _place(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
