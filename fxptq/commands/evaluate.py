"""`fxptq evaluate`: a checkpoint's scores on benchmark sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxptq.api import load
from fxptq.commands.pool import in_processes, threads_of_each
from fxptq.commands.scores import as_json as score_json
from fxptq.commands.scores import open_sets, score_sets
from fxptq.commands.source import device_of, from_factory
from fxptq.errors import InputError
from fxptq.evaluate.restore import NetworkRun, fitted
from fxptq.evaluate.score import Scored, SetScore, in_all, score_one
from fxptq.progress import Progress
from fxptq.quantized import QuantizedModel
from fxptq.ranks import current


def open_checkpoint(path: Path, factory: str | None) -> QuantizedModel:
    """Loads a checkpoint; `factory` builds the network if it is no bundled one."""
    return load(path, from_factory(factory) if factory is not None else None)


def runnable(quantized: QuantizedModel, *, integer: bool) -> nn.Module:
    """The simulation, or the network on integer kernels; not compiled, for pictures come in many sizes."""
    return quantized.to_integer(compile=False) if integer else quantized


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see `fxptq evaluate --help`.

    Raises:
        InputError: a value out of its range.
    """

    checkpoint: Path
    data: tuple[str, ...] = ()
    factory: str | None = None
    integer: bool = False
    device: str = "auto"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: expected the number of processes, 1 or more")


def run(options: Options, progress: Progress) -> list[SetScore]:
    """Scores a checkpoint on each set, on generated samples when none is named; processes share the pictures.

    Raises:
        InputError: the checkpoint, a set or a picture cannot be read.
        FxptqError: the network fails.
    """
    ranks = current()
    if options.jobs > 1 and ranks.world > 1:
        raise InputError("--jobs starts processes, and so does torchrun: give one of them")
    if options.jobs > 1:
        return _in_processes(options, progress)
    opened = _Opened(options)
    return score_sets(opened.run, opened.sets, opened.task, progress, options.checkpoint.name, ranks=ranks)


class _Opened:
    """A checkpoint and the sets that it is scored on."""

    def __init__(self, options: Options) -> None:
        quantized = open_checkpoint(options.checkpoint, options.factory)
        self.task = quantized.task
        self.sets = open_sets(options.data, self.task)
        where = device_of(options.device)
        self.run = NetworkRun(runnable(quantized.to(where), integer=options.integer), where, self.task.scale)


_Place = tuple[int, int]
"""The numbers of a set and of a picture in it."""


def _in_processes(options: Options, progress: Progress) -> list[SetScore]:
    """Each process scores one picture at a time, the largest first."""
    task = open_checkpoint(options.checkpoint, options.factory).task
    sets = open_sets(options.data, task)
    sizes = {(number, i): make.pixels for number, one in enumerate(sets) for i, make in enumerate(one.makers)}
    places = sorted(sizes, key=lambda place: (-sizes[place], place))
    count = min(options.jobs, len(places))
    scored: dict[_Place, Scored] = {}
    work = partial(_score_one, options, threads_of_each(count))
    with (
        in_processes(count, work, places, f"give fewer than {count} --jobs") as finished,
        progress.task(f"{options.checkpoint.name} in {count} processes", len(places)) as advance,
    ):
        for place, score in finished:
            scored[place] = score
            advance(note=score.name)
    return [in_all(one, [scored[number, i] for i in range(len(one))]) for number, one in enumerate(sets)]


def _score_one(options: Options, threads: int, place: _Place) -> Scored:
    """Scores a picture in a process of the pool."""
    opened = _opened(options, threads)
    run = fitted(opened.run, opened.task.pictures)
    return score_one(run, opened.sets[place[0]], place[1], opened.task.input.range)


@lru_cache(maxsize=1)
def _opened(options: Options, threads: int) -> _Opened:
    torch.set_num_threads(threads)
    return _Opened(options)


def as_json(scores: Sequence[SetScore]) -> dict[str, Any]:
    """The shape scripts rely on."""
    return {score.name: score_json(score) for score in scores}
