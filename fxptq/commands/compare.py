"""`fxptq compare`: two networks on the same pictures: two checkpoints, or a checkpoint and its network in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxptq.checkpoint.file import ByteCounts, byte_counts
from fxptq.commands.evaluate import open_checkpoint
from fxptq.commands.scores import as_json as score_json
from fxptq.commands.scores import open_sets, score_sets
from fxptq.commands.source import device_of, open_network
from fxptq.errors import InputError
from fxptq.evaluate.contrast import Contrast, Watch
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.score import SetScore
from fxptq.progress import Progress
from fxptq.quantized import QuantizedModel

FLOAT = "float"
"""Stands for the network of the checkpoint in float, with the weights of its recipe or of `--model`."""


@dataclass(frozen=True)
class Side:
    """One of the two networks.

    Attributes:
        name: the name of its file, or "float".
        model: the network.
        quantized: the same network where it is a checkpoint; None for float.
        sizes: bytes of the checkpoint's parts; None for float.
        nbytes: of the checkpoint, or of the parameters in float32.
    """

    name: str
    model: nn.Module
    quantized: QuantizedModel | None
    sizes: ByteCounts | None
    nbytes: int


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        first: the network to compare with.
        second: the network that is compared with it.
        scores: by name of the network, a score for each set.
        contrast: the pictures of both, side by side.
    """

    first: Side
    second: Side
    scores: Mapping[str, list[SetScore]]
    contrast: Contrast

    def as_json(self) -> dict[str, Any]:
        """The shape scripts rely on: by network, the scores of each set with its pictures."""
        return {
            "first": self.first.name,
            "second": self.second.name,
            "eval": {name: {score.name: score_json(score) for score in scores} for name, scores in self.scores.items()},
        }


def run(
    subjects: tuple[str, str],
    data: Sequence[str],
    factory: str | None,
    weights: Path | None,
    progress: Progress,
    *,
    device: str,
) -> Comparison:
    """Scores two networks on the same pictures and keeps the patches in which they differ most.

    Args:
        subjects: two checkpoints, or "float" and a checkpoint.
        data: `NAME=DIR` of the sets; generated samples when none is named.
        factory: builds the network if it is no bundled one, with its trained weights unless `weights` has them.
        weights: a weights file for the network in float instead of the recipe's.
        progress: shows the state of the work.
        device: auto, cpu or cuda.

    Raises:
        InputError: both are "float", a file cannot be read, or the two networks have different tasks.
    """
    if subjects == (FLOAT, FLOAT):
        raise InputError("float is compared with float; name a checkpoint")
    if FLOAT not in subjects and Path(subjects[0]).resolve() == Path(subjects[1]).resolve():
        raise InputError(f"{subjects[0]} is compared with itself; name another checkpoint, or float")
    opened = {name: open_checkpoint(Path(name), factory) for name in subjects if name != FLOAT}
    quantized = [opened[name] for name in subjects if name in opened]
    task = quantized[-1].task
    if quantized[0].task.pictures != task.pictures or quantized[0].task.task != task.task:
        raise InputError(
            f"{subjects[0]} is made for {quantized[0].task.task} and {subjects[1]} for {task.task}, in other sizes or "
            "ranges; two networks are compared on one task"
        )
    where = device_of(device)
    names = _names(subjects)
    sides = [_side(name, title, opened, factory, weights) for name, title in zip(subjects, names, strict=True)]
    sets = open_sets(data, task)
    watch = Watch(task.task, task.input.range)
    scores = {
        side.name: score_sets(
            NetworkRun(side.model.to(where), where, task.scale), sets, task, progress, side.name, seen
        )
        for side, seen in zip(sides, (watch.first, watch.second), strict=True)
    }
    return Comparison(sides[0], sides[1], scores, watch.result())


def _names(subjects: tuple[str, str]) -> tuple[str, str]:
    """Short names, or the paths where the short names are the same."""
    first, second = (name if name == FLOAT else Path(name).stem for name in subjects)
    return (first, second) if first != second else subjects


def _side(
    subject: str, name: str, opened: Mapping[str, QuantizedModel], factory: str | None, weights: Path | None
) -> Side:
    if subject in opened:
        sizes = byte_counts(Path(subject))
        return Side(name, opened[subject], opened[subject], sizes, sizes.total)
    other = next(iter(opened.values()))
    if factory is None and other.meta.recipe is None:
        raise InputError(
            "the checkpoint holds a network of your own: give --model package.module:factory, which builds it with its "
            "trained weights"
        )
    if factory is not None and not factory.endswith(".toml"):
        model = open_network(None, factory, weights).model
    else:  # a recipe, which says where its trained weights are
        model = open_network(factory or other.meta.recipe, None, weights).model
    return Side(name, model, None, None, 4 * sum(p.numel() for p in model.parameters()))
