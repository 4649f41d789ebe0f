"""Measures the ways to run a network in turns, so that a slow spell of the machine meets them all.

A turn is two calls, and the second is timed. During the first call, threads of the previous way may still spin on the
cores (threads of OpenMP and of ONNX Runtime do, for milliseconds), and the caches hold the weights of the previous way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fxptq.bench import memory
from fxptq.bench.ways import Call, Subject, subject, ways
from fxptq.errors import InputError
from fxptq.kernels.build import backend
from fxptq.progress import Progress
from fxptq.sizes import parse_size

WARMUP, ROUNDS = 2, 7


@dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
        name: eager-fp32, compile-fp32, compile-bf16, fxptq-int, openvino-int8, ...
        ms: median time of a call, milliseconds; None where there is no figure.
        fastest_ms: the least time of a call.
        prepare_s: seconds until the first result, compilation included.
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
        only: names of the ways to measure; all that are installed if empty.
        threads: number of threads that each way may use; torch's own number if 0.

    Raises:
        InputError: the size is malformed, or a way unknown.
    """
    height, width = parse_size(size)
    chosen = _chosen(only)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows = _rows(chosen, subject(checkpoint, factory, size), progress)
        with progress.task("memory", len(rows)) as advance:
            for i, row in enumerate(rows):
                if row.ms is not None:
                    advance(0, note=row.name)
                    footprint = memory.measure(checkpoint, row.name, size, torch.get_num_threads(), factory)
                    rows[i] = row if footprint is None else Row(**asdict(row) | asdict(footprint))
                advance()
        return Bench(f"{height}x{width}", torch.get_num_threads(), backend().name, tuple(rows))
    finally:
        torch.set_num_threads(before)


def _chosen(only: Sequence[str]) -> dict[str, Callable[[Subject], Call]]:
    known = ways()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"--only {unknown[0]}: expected some of {', '.join(known)}; a peer must be installed")
    return {name: make for name, make in known.items() if not only or name in only}


def _rows(chosen: dict[str, Callable[[Subject], Call]], what: Subject, progress: Progress) -> list[Row]:
    calls: dict[str, Call] = {}
    notes, prepared = dict.fromkeys(chosen, ""), dict.fromkeys(chosen, 0.0)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with torch.no_grad(), progress.task("bench", len(chosen) + ROUNDS) as advance:
        for name, make in chosen.items():
            advance(0, note=name)
            started = time.perf_counter()
            try:
                calls[name] = make(what)
                calls[name]()
                prepared[name] = time.perf_counter() - started
                for _ in range(WARMUP):
                    calls[name]()
            except Exception as error:  # noqa: BLE001  # the table shows the error of a peer in place of a figure
                notes[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
                calls.pop(name, None)
            advance()
        for _ in range(ROUNDS):
            for name, call in calls.items():
                call()
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
            advance()
    return [
        Row(name, statistics.median(times[name]), min(times[name]), prepared[name])
        if name in calls
        else Row(name, None, note=notes[name])
        for name in chosen
    ]
