"""The memory of one way to run a network, measured in a process of its own, which this module is also the program of.

Linux tells a process its largest memory and lets it forget it, so that what loading and compiling took is not counted.
Elsewhere the largest memory of the whole life of the process is all there is.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from fxptq import memory
from fxptq.bench.ways import subject, ways

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TIMEOUT = 900  # seconds


@dataclass(frozen=True)
class Memory:
    """MB, 2**20 bytes.

    Attributes:
        peak_mb: largest memory of the process while the network runs, libraries, weights and all.
        working_mb: how much of it the process had not held before the call: activations and workspaces.
    """

    peak_mb: float
    working_mb: float


def measure(checkpoint: Path, way: str, size: str, threads: int, factory: str | None) -> Memory | None:
    """Runs one way in a new process; None where that fails."""
    command = [sys.executable, "-m", "fxptq.bench.memory", str(checkpoint), way, size, str(threads), factory or ""]
    try:
        # The interpreter that runs this, on this package's own module.
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)  # noqa: S603
    except (subprocess.SubprocessError, OSError):
        return None
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _main(checkpoint: str, way: str, size: str, threads: str, factory: str) -> None:
    torch.set_num_threads(int(threads))
    with torch.no_grad():
        call = ways()[way](subject(Path(checkpoint), factory or None, size))
        call()
        before = _settle()
        call()
        peak = _peak()
    print(json.dumps({"peak_mb": peak, "working_mb": max(0.0, peak - before)}))


def _settle() -> float:
    """Hands free memory back, forgets the largest so far, and says what is held, MB."""
    gc.collect()
    if not _FORGET.exists():
        return _peak()
    # Without glibc free memory stays with the process, and counts as held.
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


if __name__ == "__main__":
    _main(*sys.argv[1:])
