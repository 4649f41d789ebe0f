"""The memory of this process: the largest so far, on every system, and the return of freed memory to the system."""

from __future__ import annotations

import ctypes
import sys

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def peak_mb() -> float:
    """The largest resident memory of this process since it began, MB of 2**20 bytes."""
    if resource is None:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


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
