"""`fxptq evaluate`: a checkpoint's scores on benchmark sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxptq.api import QuantizedModel, load
from fxptq.commands.scores import as_json as score_json
from fxptq.commands.scores import open_sets, score_sets
from fxptq.commands.source import device_of, from_factory
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.score import SetScore
from fxptq.progress import Progress


def open_checkpoint(path: Path, factory: str | None) -> QuantizedModel:
    """Loads a checkpoint; `factory` builds the network if it is no bundled one."""
    return load(path, from_factory(factory) if factory is not None else None)


def runnable(quantized: QuantizedModel, *, integer: bool) -> nn.Module:
    """The simulation, or the network on integer kernels; not compiled, for pictures come in many sizes."""
    return quantized.to_integer(compile=False) if integer else quantized


def run(
    checkpoint: Path, data: Sequence[str], factory: str | None, progress: Progress, *, integer: bool, device: str
) -> list[SetScore]:
    """Scores a checkpoint on each set; on generated samples when none is named."""
    quantized = open_checkpoint(checkpoint, factory)
    sets = open_sets(data, quantized.task)
    where = device_of(device)
    model = runnable(quantized.to(where), integer=integer)
    task = quantized.task
    return score_sets(NetworkRun(model, where, task.scale), sets, task, progress, checkpoint.name)


def as_json(scores: Sequence[SetScore]) -> dict[str, Any]:
    """The shape scripts rely on."""
    return {score.name: score_json(score) for score in scores}
