"""The memory of a call in this process.

On Linux a process can reset the record of its largest memory, so that the memory of loading and compiling is not
counted. Other systems report only the largest memory of the whole life of the process.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxptq import memory

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Memory in MB, 2**20 bytes.

    Attributes:
        peak_mb: largest memory of the process while the call runs, with libraries and weights.
        working_mb: memory that the call takes on top of the memory before it: activations and workspaces.
    """

    peak_mb: float
    working_mb: float


def of_call(call: Callable[[], Any]) -> Memory:
    """The memory of a call, which should have run before, in a process that does nothing else."""
    before = _settle()
    call()
    peak = _peak()
    return Memory(peak, max(0.0, peak - before))


def _settle() -> float:
    """Hands free memory back, resets the record of the largest memory, and returns the present memory, MB."""
    gc.collect()
    if not _FORGET.exists():
        return _peak()
    # Without glibc, free memory stays with the process, and counts as in use.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    _FORGET.write_text("5")
    return _field("VmRSS")


def _peak() -> float:
    if _STATUS.exists():
        return _field("VmHWM")
    return memory.peak_mb()


def _field(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024
