"""The memory of one way to run a network, measured in a process of its own; this module is also that process's program.

On Linux a process can reset the record of its largest memory, so that the memory of loading and compiling is not
counted. Other systems report only the largest memory of the whole life of the process.
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
    """Memory in MB, 2**20 bytes.

    Attributes:
        peak_mb: largest memory of the process while the network runs, with libraries and weights.
        working_mb: memory that the call takes on top of the memory before it: activations and workspaces.
    """

    peak_mb: float
    working_mb: float


def measure(checkpoint: Path, way: str, size: str, threads: int, factory: str | None) -> Memory | None:
    """Runs one way in a new process; returns None if the process fails."""
    command = [sys.executable, "-m", "fxptq.bench.memory", str(checkpoint), way, size, str(threads), factory or ""]
    try:
        # The command is the running interpreter with a module of this package.
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


if __name__ == "__main__":
    _main(*sys.argv[1:])
