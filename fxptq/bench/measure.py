"""Measures the ways to run a network in turns, so that a slow spell of the machine meets them all.

Each way has a process of its own (worker.py). As many are prepared at a time as there are cores; then the ways take
turns, and all but one wait. A turn is two calls, and the second is timed. During the first call, threads of the
previous way may still spin on the cores (threads of OpenMP and of ONNX Runtime do, for milliseconds), and the caches
hold the weights of the previous way.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fxptq.bench.ways import ways
from fxptq.bench.worker import Ready, Worker
from fxptq.commands.evaluate import open_checkpoint
from fxptq.errors import InputError
from fxptq.kernels.build import backend
from fxptq.progress import Progress
from fxptq.sizes import parse_size

ROUNDS, FEWEST_ROUNDS = 7, 3
"""The number of turns of each way, and the number where turns take longer than `PATIENCE`."""

PATIENCE = 40  # seconds of turns

PREPARATION = 60  # seconds in which a way that nobody named must be ready

ALWAYS = ("eager-fp32", "fxptq-int")
"""The ways that are waited for, because every figure is compared with theirs."""


@dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
        name: eager-fp32, compile-fp32, compile-bf16, fxptq-int, openvino-int8, ...
        ms: median time of a call, milliseconds; None where there is no figure.
        fastest_ms: the least time of a call.
        prepare_s: seconds until the first result, compilation included, while other ways are prepared on other cores.
        peak_mb: largest memory of a process that does nothing else, while it runs; None where not measured.
        working_mb: memory of the activations and workspaces of a call.
        note: the reason why there is no figure.
    """

    name: str
    ms: float | None
    fastest_ms: float | None = None
    prepare_s: float | None = None
    peak_mb: float | None = None
    working_mb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """All rows of a run, measured in turn.

    Attributes:
        size: HEIGHTxWIDTH of the input.
        threads: number of threads that each way might use.
        kernels: the engine of fxptq's integers, such as avx512-vnni.
        rows: one row for each way.
    """

    size: str
    threads: int
    kernels: str
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """The form that scripts rely on; rows without a figure are left out."""
        rows = [asdict(row) for row in self.rows if row.ms is not None]
        return {"size": self.size, "threads": self.threads, "kernels": self.kernels, "rows": rows}


def run(
    checkpoint: Path, size: str, factory: str | None, progress: Progress, *, only: Sequence[str] = (), threads: int = 0
) -> Bench:
    """Measures every way to run a checkpoint's network.

    Args:
        checkpoint: a file that `fxptq quantize` wrote.
        size: HEIGHTxWIDTH of the input.
        factory: `module:function` that builds the network if it is no bundled one.
        progress: shows the state of the work.
        only: names of the ways to measure; if empty, all that are installed and get ready in time.
        threads: number of threads that each way may use; torch's own number if 0.

    Raises:
        InputError: the size is malformed, or a way unknown.
        FxptqError: the checkpoint cannot be read, or is of another network.
    """
    height, width = parse_size(size)
    chosen = _chosen(only)
    open_checkpoint(checkpoint, factory)  # a file that cannot be measured is refused before the work
    threads = threads or torch.get_num_threads()
    workers: dict[str, Worker] = {}
    end = time.monotonic() + PREPARATION
    with contextlib.ExitStack() as scope:

        def prepare(way: str) -> Ready:
            hurried = not only and way not in ALWAYS
            late = Ready(note=f"not ready within {PREPARATION} s; --ways {way},... waits for it")
            if hurried and time.monotonic() > end:
                return late
            workers[way] = Worker(checkpoint, way, size, threads, factory)
            scope.callback(workers[way].stop)
            ready = workers[way].ready(end - time.monotonic() if hurried else None)
            return late if hurried and ready.note and time.monotonic() > end else ready

        ready = _prepared(chosen, prepare, progress)
        times = _timed({way: workers[way] for way in chosen if not ready[way].note}, progress)
    rows = tuple(_row(way, ready[way], times.get(way, [])) for way in chosen)
    return Bench(f"{height}x{width}", threads, backend().name, rows)


def _chosen(only: Sequence[str]) -> list[str]:
    known = list(ways())
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"--ways {unknown[0]}: expected some of {', '.join(known)}; a peer must be installed")
    return [name for name in known if not only or name in only]


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepared(chosen: Sequence[str], prepare: Callable[[str], Ready], progress: Progress) -> dict[str, Ready]:
    """Prepares all ways, as many at a time as there are cores."""
    pool, ready = ThreadPoolExecutor(_cores()), {}
    try:
        with progress.task("prepare", len(chosen)) as advance:
            waiting = {pool.submit(prepare, way): way for way in chosen}
            for done in as_completed(waiting):
                ready[waiting[done]] = done.result()
                advance(note=waiting[done])
    finally:  # after an interrupt nobody waits: the caller ends the processes, and with them the threads
        pool.shutdown(wait=False, cancel_futures=True)
    return ready


def _timed(workers: dict[str, Worker], progress: Progress) -> dict[str, list[float]]:
    """The milliseconds of each way's turns."""
    times: dict[str, list[float]] = {way: [] for way in workers}
    started = time.perf_counter()
    with progress.task("measure", ROUNDS) as advance:
        for turns in range(1, ROUNDS + 1):
            for way, worker in workers.items():
                ms = worker.turn()
                if ms is not None:
                    times[way].append(ms)
            advance()
            if turns >= FEWEST_ROUNDS and time.perf_counter() - started > PATIENCE:
                break
    return times


def _row(way: str, ready: Ready, times: Sequence[float]) -> Row:
    if not times:
        return Row(way, None, note=ready.note or "its process ended while it ran")
    footprint = asdict(ready.memory) if ready.memory is not None else {}
    return Row(way, statistics.median(times), min(times), ready.prepare_s, **footprint)
