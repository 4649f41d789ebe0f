"""Scoring a network on a benchmark set, picture by picture, by the protocol of the field.

Promises: the network sees exactly the set's inputs; its output is clamped and rounded to 8 bits before it is compared;
`scale` pixels are cropped at each border for super-resolution, none for other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from fxptq.errors import FxptqError
from fxptq.evaluate.metrics import psnr, psnr_y, ssim_y
from fxptq.evaluate.sets import BenchmarkSet, Pair
from fxptq.io.images import to_image, to_tensor


@dataclass(frozen=True)
class Score:
    """What one picture, or the mean of a set, scores.

    Attributes:
        psnr_y, ssim_y: of the luma (BT.601), as super-resolution reports them, or of the only channel; dB and 0..1.
        psnr: of all channels together, as denoising reports it; dB.
    """

    psnr_y: float
    ssim_y: float
    psnr: float


@dataclass(frozen=True)
class SetScore:
    """What a set scores.

    Attributes:
        name: of the set.
        mean: over its pictures, each counting the same.
        images: by picture name.
    """

    name: str
    mean: Score
    images: Mapping[str, Score]


def evaluate(
    run: Callable[[Tensor], Tensor],
    benchmark: BenchmarkSet,
    *,
    value_range: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> SetScore:
    """Score a network on a set.

    Args:
        run: the network, `[1, C, h, w]` to `[1, C, h * scale, w * scale]` for any size; wrap it with
            `tiles.run_padded` or `tiles.run_tiled` if it needs a size multiple or bounded memory.
        benchmark: the set.
        value_range: what the network takes white to be.
        progress: called after each picture with (done, total).

    Raises:
        InputError: a picture cannot be read, or is too small to score.
        FxptqError: the network's output is not finite or has another size than the clean picture.
    """
    scores: dict[str, Score] = {}
    for done, pair in enumerate(benchmark, start=1):
        with torch.no_grad():  # not inference_mode: what a network captures on the way must stay usable for training
            output = run(to_tensor(pair.lr, value_range))
        try:
            scores[pair.name] = score_pair(output, pair, benchmark.scale, value_range)
        except FxptqError as error:
            raise type(error)(f"{benchmark.name}, {pair.name}: {error}") from None
        if progress is not None:
            progress(done, len(benchmark))
    mean = Score(*np.mean([astuple(score) for score in scores.values()], axis=0).tolist())
    return SetScore(benchmark.name, mean, scores)


def score_pair(output: Tensor, pair: Pair, scale: int, value_range: float) -> Score:
    """Compare a network's output `[1, C, H, W]`, in 0..value_range, with the clean picture."""
    restored = to_image(output, value_range)
    crop = scale if scale > 1 else 0
    return Score(
        psnr_y(restored, pair.hr, crop),
        ssim_y(restored, pair.hr, crop),
        psnr(restored, pair.hr, crop),
    )
