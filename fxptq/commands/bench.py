"""`fxptq bench`: how long a checkpoint takes on this machine, beside the float network and what peers are installed."""

from __future__ import annotations

import copy
import importlib.util
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxptq.api import QuantizedModel
from fxptq.commands.evaluate import open_checkpoint
from fxptq.errors import InputError
from fxptq.passes.progress import Progress
from fxptq.recipe import Recipe

WARMUP, ROUNDS = 2, 7


@dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
        name: eager-fp32, compile-fp32, compile-bf16, fxptq-int, openvino-fp32, ...
        ms: median time of a call, milliseconds.
        peak_mb: largest memory of the process when it was measured, MB; it only grows from row to row.
        note: why there is no figure, or what ran it.
    """

    name: str
    ms: float | None
    peak_mb: float
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """All rows of a run, measured in turn."""

    size: str
    threads: int
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """The shape scripts rely on; rows without a figure are left out."""
        rows = [
            {"name": r.name, "ms": r.ms, "peak_mb": r.peak_mb, "note": r.note} for r in self.rows if r.ms is not None
        ]
        return {"size": self.size, "threads": self.threads, "rows": rows}


def run(checkpoint: Path, size: str, factory: str | None, progress: Progress) -> Bench:
    """Measures every way to run the network, round after round, so that a slow spell of the machine meets them all.

    The float networks hold the checkpoint's own weights, whose values do not change their speed.

    Args:
        checkpoint: a file that `fxptq quantize` wrote.
        size: HEIGHTxWIDTH of the input.
        factory: builds the network if it is no bundled one.
        progress: shows how far it is.

    Raises:
        InputError: the size is malformed.
    """
    height, width = _parsed(size)
    quantized = open_checkpoint(checkpoint, factory)
    task = quantized.task.input
    x = torch.rand(1, task.channels, height, width) * task.range
    ways = _ways(quantized, _float_network(quantized, factory), x)
    runs: dict[str, Callable[[], Any]] = {}
    notes: dict[str, str] = {}
    peaks: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad(), progress.task("bench", len(ways) + ROUNDS) as advance:
        for name, make in ways.items():
            try:
                runs[name] = make()
                for _ in range(WARMUP):
                    runs[name]()
            except Exception as error:  # noqa: BLE001  # whatever a peer raises, it has no figure, and the table says why
                notes[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
                runs.pop(name, None)
            peaks[name] = _peak_mb()
            advance(note=name)
        for _ in range(ROUNDS):
            for name, call in runs.items():
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
            advance()
    rows = [
        Row(name, statistics.median(times[name]) if times[name] else None, peaks[name], notes.get(name, ""))
        for name in ways
    ]
    return Bench(f"{height}x{width}", torch.get_num_threads(), tuple(rows))


def _parsed(size: str) -> tuple[int, int]:
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--size {size!r}: expected HEIGHTxWIDTH, such as 64x64")
    return int(parts[0]), int(parts[1])


def _float_network(quantized: QuantizedModel, factory: str | None) -> nn.Module:
    if factory is None and quantized.meta.recipe is not None:
        return Recipe.load(quantized.meta.recipe).build_model()
    return copy.deepcopy(quantized.program.holder.model)


def _ways(quantized: QuantizedModel, network: nn.Module, x: Tensor) -> dict[str, Callable[[], Callable[[], Any]]]:
    """How to make each way to run; made in turn, so that the memory of one is not counted to those before it."""

    def eager() -> Callable[[], Any]:
        return lambda: network(x)

    def compiled() -> Callable[[], Any]:
        fast = torch.compile(network)
        return lambda: fast(x)

    def compiled_bf16() -> Callable[[], Any]:
        fast, small = torch.compile(copy.deepcopy(network).bfloat16()), x.bfloat16()
        return lambda: fast(small)

    def integer() -> Callable[[], Any]:
        fast = quantized.to_integer()
        return lambda: fast(x)

    def openvino() -> Callable[[], Any]:
        import openvino as ov  # noqa: PLC0415  # measured only where it is installed

        fast = ov.compile_model(ov.convert_model(network, example_input=x, input=[tuple(x.shape)]), "CPU")
        return lambda: fast([x.numpy()])

    ways = {"eager-fp32": eager, "compile-fp32": compiled, "compile-bf16": compiled_bf16, "fxptq-int": integer}
    if importlib.util.find_spec("openvino") is not None:
        ways["openvino-fp32"] = openvino
    return ways


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
