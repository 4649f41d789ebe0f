"""Scoring a network on a set: the protocol, the mean, and errors that name the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.metrics import psnr, psnr_b, psnr_y, ssim_y
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import open_set, samples
from fxptq.io.images import to_image, to_tensor
from fxptq.io.writing import write_png


def _bicubic(scale: int, value_range: float = 1.0):
    return lambda x: to_tensor(imresize(to_image(x, value_range), scale), value_range)


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.67), (3, 30.40), (4, 28.43)])
def test_bicubic_scores_on_set5(shared: Path, scale: int, expected: float) -> None:
    benchmark = open_set("Set5", shared / "data/benchmarks/Set5", Degradation("bicubic", scale=scale))
    assert round(evaluate(_bicubic(scale), benchmark).mean.psnr_y, 2) == expected


@pytest.mark.parametrize("value_range", [1.0, 255.0])
@pytest.mark.parametrize("degradation", [Degradation("bicubic", scale=2), Degradation("noise", sigma=10)], ids=str)
def test_scores_are_the_metrics_of_each_picture(degradation: Degradation, value_range: float) -> None:
    benchmark = samples(degradation, count=3, size=24)
    calls: list[tuple[int, int]] = []
    scale = degradation.scale
    result = evaluate(
        _bicubic(scale, value_range),
        benchmark,
        value_range=value_range,
        progress=lambda done, total: calls.append((done, total)),
    )
    crop = 2 if scale == 2 else 0
    for pair in benchmark:
        restored = imresize(np.clip(np.round(pair.lr), 0, 255).astype(np.uint8), scale)
        expected = {metric.__name__: metric(restored, pair.hr, crop) for metric in (psnr_y, ssim_y, psnr)}
        assert result.images[pair.name].figures == pytest.approx(expected, abs=1e-12)
    for name, value in result.mean.figures.items():
        assert value == pytest.approx(np.mean([score.figures[name] for score in result.images.values()]))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert result.name == "samples"


@pytest.mark.parametrize(
    ("degradation", "channels", "reported"),
    [
        (Degradation("bicubic", scale=2), 3, ("psnr_y", "ssim_y")),
        (Degradation("noise", sigma=25), 3, ("psnr",)),
        (Degradation("noise", sigma=25), 1, ("psnr",)),
        (Degradation("jpeg", quality=10), 1, ("psnr_y", "ssim_y", "psnr_b")),
        (Degradation("none"), 3, ("psnr_y", "ssim_y")),
    ],
    ids=str,
)
def test_each_task_reports_its_figures(degradation: Degradation, channels: int, reported: tuple[str, ...]) -> None:
    result = evaluate(_bicubic(degradation.scale), samples(degradation, channels=channels, count=1, size=32))
    assert result.reported == reported
    assert set(reported) <= set(result.mean.figures)
    assert ("psnr_b" in result.mean.figures) == (degradation.kind == "jpeg")


def test_blocks_of_a_jpeg_are_counted() -> None:
    benchmark = samples(Degradation("jpeg", quality=10), channels=1, count=1, size=48)
    score, pair = evaluate(lambda x: x, benchmark).mean, next(iter(benchmark))
    assert score.psnr_b == pytest.approx(psnr_b(pair.lr.astype(np.uint8), pair.hr), abs=1e-12)
    assert score.psnr_b < score.psnr_y


def test_the_network_sees_noise_unclipped() -> None:
    seen: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    evaluate(run, samples(Degradation("noise", sigma=50), count=2, size=32))
    assert torch.cat(seen).min() < -0.02
    assert torch.cat(seen).max() > 1.02


def test_outputs_are_rounded_to_levels_before_they_are_compared() -> None:
    benchmark = samples(Degradation("none"), count=1, size=16)
    assert evaluate(lambda x: x + 0.4 / 255, benchmark).mean.psnr == np.inf
    assert evaluate(lambda x: x + 0.6 / 255, benchmark).mean.psnr < 60


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda x: x[:, :, 1:], "samples, sample0: the images to compare differ in shape"),
        (lambda x: x * torch.nan, "samples, sample0: the network returned values that are not finite"),
    ],
    ids=["another size", "nan"],
)
def test_a_bad_output_names_the_picture(run: object, words: str) -> None:
    with pytest.raises(FxptqError, match=words):
        evaluate(run, samples(Degradation("none"), count=1, size=16))


def test_a_picture_too_small_to_score_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "tiny.png", np.zeros((5, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"Mine, tiny: the image is 40x5; .* at least 11"):
        evaluate(lambda x: x, open_set("Mine", tmp_path, Degradation("none")))


def test_what_is_scored_can_be_seen() -> None:
    benchmark = samples(Degradation("bicubic", scale=2), count=2, size=24)
    seen: list[tuple[str, Tensor]] = []
    evaluate(_bicubic(2), benchmark, seen=lambda pair, output: seen.append((pair.name, output)))
    assert [name for name, _ in seen] == ["sample0", "sample1"]
    for pair, (_, output) in zip(benchmark, seen, strict=True):
        assert output.shape == (1, 3, *pair.hr.shape[:2])
