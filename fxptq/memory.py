"""The memory of this process and of the machine: the largest so far, what is free, and the return of freed memory."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from fxptq.errors import InputError

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def parse_bytes(value: int | str) -> int:
    """A number of bytes, written as 500M or 4G (of 10**6 and 10**9 bytes) or as a number.

    Raises:
        InputError: it is written in another way, or is 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", str(value).strip())
    number = 0 if found is None or isinstance(value, bool) else int(float(found[1]) * _MULTIPLES[found[2]])
    if number < 1:
        raise InputError(f"memory {value!r}: expected a number of bytes, as in 500M or 4G")
    return number


def peak_mb() -> float:
    """The largest resident memory of this process since it began, MB of 2**20 bytes."""
    if resource is None:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def free_bytes() -> int | None:
    """The memory that this process may still take without others being pushed out, in bytes; None where nobody knows.

    The limit of a container or of `ulimit -v` counts, where it is lower.
    """
    if sys.platform == "win32":
        return _free_on_windows()
    found = [_free_on_linux(), _free_in_group(), _free_below_limit()]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _free_on_linux() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _free_in_group() -> int | None:
    """Below the limit of the control group that a container runs in."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None


def _free_below_limit() -> int | None:
    """Below the limit of the process's address space."""
    if resource is None:
        return None
    limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], _field(Path("/proc/self/status"), "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _field(file: Path, name: str) -> int | None:
    """A number of kilobytes out of a file of /proc, in bytes."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def return_freed_memory() -> None:
    """Returns memory that is free to the system, where the C library would keep it (glibc).

    A capture frees hundreds of large tensors between small ones that stay. The C library keeps the gaps, and each
    capture makes others: without this, the memory of a process that captures again and again grows to several times of
    the tensors that it holds.
    """
    if _trim is not None:
        _trim(0)


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_ulong),
        ("PageFaultCount", ctypes.c_ulong),
        *(
            (name, ctypes.c_size_t)
            for name in (
                "PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage",
                "QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage",
            )
        ),
    )  # fmt: skip


def _peak_on_windows() -> float:
    kernel = ctypes.CDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    counters = _Counters()
    counters.cb = ctypes.sizeof(counters)
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb)
    return float(counters.PeakWorkingSetSize) / (1 << 20)


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "free", "page", "page_free", "virtual", "virtual_free")),
        ("extended", ctypes.c_ulonglong),
    )


def _free_on_windows() -> int | None:
    status = _Status()
    status.length = ctypes.sizeof(status)
    sound = ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free) if sound else None
