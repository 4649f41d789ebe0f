"""Scoring runs for commands: the sets asked for, a network fitted to pictures of any size, scores as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fxptq.errors import InputError
from fxptq.evaluate.restore import fitted
from fxptq.evaluate.score import SetScore, evaluate, pictures_of
from fxptq.evaluate.sets import BenchmarkSet, Pair, open_set, parse_data, samples
from fxptq.evaluate.tiles import Run
from fxptq.progress import Advance, Progress
from fxptq.ranks import ALONE, Ranks
from fxptq.recipe import Recipe


def open_sets(options: Sequence[str], recipe: Recipe) -> list[BenchmarkSet]:
    """The sets of `NAME=DIR` options; generated samples when there are none.

    Raises:
        InputError: an option is malformed, a folder or picture is missing.
    """
    channels = recipe.input.channels
    if not options:
        return [samples(recipe.task, channels=channels, count=4, size=48, sizes=recipe.input.sizes)]
    named = [parse_data(option) for option in options]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise InputError(f"there are two sets named {twice[0]!r}; give each a name of its own")
    return [open_set(name, folder, recipe.task, channels=channels) for name, folder in named]


def score_sets(
    run: Run,
    sets: Sequence[BenchmarkSet],
    recipe: Recipe,
    progress: Progress,
    what: str,
    seen: Callable[[str, Pair, Tensor], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[SetScore]:
    """Scores a network on each set.

    Args:
        run: the network.
        sets: the sets.
        recipe: what the network takes and gives.
        progress: shows the pictures of this process.
        what: names the network there.
        seen: gets the set's name, each pair, and the output for it; in each process its own pairs.
        ranks: the processes that share the pictures by size; each of them gets all scores.
    """
    scores = []
    for benchmark in sets:
        with progress.task(f"{what} on {benchmark.name}", len(pictures_of(benchmark, ranks))) as advance:
            scores.append(
                evaluate(
                    fitted(run, recipe.pictures),
                    benchmark,
                    value_range=recipe.input.range,
                    progress=partial(_advance, advance),
                    seen=partial(seen, benchmark.name) if seen is not None else None,
                    ranks=ranks,
                )
            )
    return scores


def _advance(advance: Advance, done: int, total: int) -> None:  # noqa: ARG001  # evaluate's protocol
    advance()


def as_json(score: SetScore) -> dict[str, Any]:
    """A set's scores: the mean, and each picture's."""
    return {**score.mean.figures, "images": {name: one.figures for name, one in score.images.items()}}
