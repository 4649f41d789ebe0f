"""Scoring a network on a benchmark set, picture by picture, by the protocol of the field.

Promises: the network sees exactly the set's inputs; its output is clamped and rounded to 8 bits before it is compared;
`scale` pixels are cropped at each border for super-resolution, none for other tasks; each task names the figures its
papers report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxptq.data.degrade import Degradation
from fxptq.data.tasks import task_named
from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.metrics import psnr, psnr_b, psnr_y, ssim_y
from fxptq.evaluate.sets import BenchmarkSet, Pair
from fxptq.io.images import to_image, to_tensor
from fxptq.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Score:
    """What one picture, or the mean of a set, scores.

    Attributes:
        psnr_y, ssim_y: of the luma (BT.601), as super-resolution reports them, or of the only channel; dB and 0..1.
        psnr: of all channels together, as denoising reports it; dB.
        psnr_b: of the luma, with a penalty for blocks; dB. Of repaired JPEGs alone.
    """

    psnr_y: float
    ssim_y: float
    psnr: float
    psnr_b: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def shown(self, name: str, digits: int = 2) -> str:
        """A figure as tables show it: decibels to `digits` places, SSIM to four."""
        return f"{self.figures[name]:.{4 if name == 'ssim_y' else digits}f}"


@dataclass(frozen=True)
class SetScore:
    """What a set scores.

    Attributes:
        name: of the set.
        mean: over its pictures, each counting the same.
        images: by picture name.
        reported: the figures of the set's task, in the order of `fxptq.data.tasks`.
    """

    name: str
    mean: Score
    images: Mapping[str, Score]
    reported: tuple[str, ...] = task_named("bicubic").figures


def to_json(score: SetScore) -> dict[str, Any]:
    """A set's scores as JSON that keeps every bit."""
    return asdict(score)


def from_json(content: Mapping[str, Any]) -> SetScore:
    """The scores that `to_json` has written."""
    images = {name: Score(**figures) for name, figures in content["images"].items()}
    return SetScore(content["name"], Score(**content["mean"]), images, tuple(content["reported"]))


def evaluate(
    run: Callable[[Tensor], Tensor],
    benchmark: BenchmarkSet,
    *,
    value_range: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[Pair, Tensor], None] | None = None,
    ranks: Ranks = ALONE,
) -> SetScore:
    """Score a network on a set.

    Args:
        run: the network, `[1, C, h, w]` to `[1, C, h * scale, w * scale]` for any size; wrap it with
            `tiles.run_padded` or `tiles.run_tiled` if it needs a size multiple or bounded memory.
        benchmark: the set.
        value_range: what the network takes white to be.
        progress: called after each picture with (done, total), of the pictures of this process.
        seen: called with each pair and the network's output for it, `[1, C, H, W]`, once it is scored; each process
            sees its own pictures.
        ranks: the processes that share the pictures by size; all of them get the scores of all pictures.

    Raises:
        InputError: a picture cannot be read, is too small to score, or has the name of another.
        FxptqError: the network's output is not finite or has another size than the clean picture.
    """
    own = pictures_of(benchmark, ranks)
    scores: dict[str, Scored] = {}

    def score_share() -> None:
        names: set[str] = set()
        for done, index in enumerate(own, start=1):
            scored = score_one(run, benchmark, index, value_range, seen)
            if scored.name in names:
                raise _two_of_a_name(benchmark, scored.name)
            names.add(scored.name)
            scores[str(index)] = scored
            if progress is not None:
                progress(done, len(own))

    ranks.together(score_share)
    found = ranks.exchange(scores)
    return in_all(benchmark, [found[str(index)] for index in range(len(benchmark))])


def pictures_of(benchmark: BenchmarkSet, ranks: Ranks) -> Sequence[int]:
    """The numbers of the pictures that this process scores."""
    if ranks.world == 1:
        return range(len(benchmark))
    return ranks.share_by_size([make.pixels for make in benchmark.makers])


@dataclass(frozen=True)
class Scored:
    """The score of the picture of a name."""

    name: str
    score: Score


def score_one(
    run: Callable[[Tensor], Tensor],
    benchmark: BenchmarkSet,
    index: int,
    value_range: float,
    seen: Callable[[Pair, Tensor], None] | None = None,
) -> Scored:
    """Scores a network on one pair of a set; see `evaluate`."""
    pair = benchmark.makers[index]()
    with torch.no_grad():  # not inference_mode: what a network captures on the way must stay usable for training
        output = run(to_tensor(pair.lr, value_range))
    try:
        score = score_pair(output, pair, benchmark.task, value_range)
    except FxptqError as error:
        raise type(error)(f"{benchmark.name}, {pair.name}: {error}") from None
    if seen is not None:
        seen(pair, output)
    return Scored(pair.name, score)


def in_all(benchmark: BenchmarkSet, scored: Sequence[Scored]) -> SetScore:
    """The scores of a set from those of all of its pictures, in their order.

    Raises:
        InputError: two pictures have one name.
    """
    scores: dict[str, Score] = {}
    for one in scored:
        if one.name in scores:
            raise _two_of_a_name(benchmark, one.name)
        scores[one.name] = one.score
    columns = [score.figures for score in scores.values()]
    mean = Score(**{name: float(np.mean([column[name] for column in columns])) for name in columns[0]})
    return SetScore(benchmark.name, mean, scores, benchmark.task.task.figures)


def _two_of_a_name(benchmark: BenchmarkSet, name: str) -> InputError:
    return InputError(f"{benchmark.name}: there are two pictures named {name!r}; rename one")


def score_pair(output: Tensor, pair: Pair, task: Degradation, value_range: float) -> Score:
    """Compare a network's output `[1, C, H, W]`, in 0..value_range, with the clean picture."""
    restored = to_image(output, value_range)
    crop = task.scale if task.scale > 1 else 0
    return Score(
        psnr_y(restored, pair.hr, crop),
        ssim_y(restored, pair.hr, crop),
        psnr(restored, pair.hr, crop),
        psnr_b(restored, pair.hr) if "psnr_b" in task.task.figures else None,
    )
