"""Scoring runs for commands: the sets asked for, a network padded to the size multiple it needs, scores as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.score import SetScore, evaluate
from fxptq.evaluate.sets import BenchmarkSet, open_set, parse_data, samples
from fxptq.evaluate.tiles import run_padded, run_tiled
from fxptq.progress import Advance, Progress
from fxptq.recipe import Recipe

Run = Callable[[Tensor], Tensor]


def open_sets(options: Sequence[str], recipe: Recipe) -> list[BenchmarkSet]:
    """The sets of `NAME=DIR` options; generated samples when there are none.

    Raises:
        InputError: an option is malformed, a folder or picture is missing.
    """
    channels = recipe.input.channels
    if not options:
        return [samples(recipe.task, channels=channels, count=4, size=48)]
    named = [parse_data(option) for option in options]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise InputError(f"there are two sets named {twice[0]!r}; give each a name of its own")
    return [open_set(name, folder, recipe.task, channels=channels) for name, folder in named]


def fitted(run: Run, recipe: Recipe, tile: int = 0) -> Run:
    """`run` for pictures of any size: padded to the multiple the network needs; in tiles if `tile` is not 0."""
    multiple, scale = recipe.input.multiple, recipe.task.scale
    if tile:
        return lambda x: run_tiled(run, x, tile=tile, multiple=multiple, scale=scale)
    return lambda x: run_padded(run, x, multiple=multiple, scale=scale)


def on_device(model: nn.Module, device: torch.device) -> Run:
    """The network on a device, for pictures on the CPU.

    Raises:
        FxptqError: from the call, if the network fails: out of memory, or a size it does not take.
    """

    def run(x: Tensor) -> Tensor:
        try:
            return cast("Tensor", model(x.to(device))).cpu()
        except (RuntimeError, MemoryError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise FxptqError(f"the network failed on an input of shape {tuple(x.shape)}: {reason}") from error

    return run


def score_sets(run: Run, sets: Sequence[BenchmarkSet], recipe: Recipe, progress: Progress, what: str) -> list[SetScore]:
    """Scores a network on each set."""
    scores = []
    for benchmark in sets:
        with progress.task(f"{what} on {benchmark.name}", len(benchmark)) as advance:
            scores.append(
                evaluate(
                    fitted(run, recipe),
                    benchmark,
                    value_range=recipe.input.range,
                    progress=partial(_advance, advance),
                )
            )
    return scores


def _advance(advance: Advance, done: int, total: int) -> None:  # noqa: ARG001  # evaluate's protocol
    advance()


def as_json(score: SetScore) -> dict[str, Any]:
    """A set's scores: the mean, and each picture's."""
    return {**score.mean.figures, "images": {name: one.figures for name, one in score.images.items()}}
