"""PSNR and SSIM against brute-force evaluations of their definitions, and against the field's published scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fxptq.data.resize import imresize
from fxptq.errors import InputError
from fxptq.evaluate.metrics import luma, psnr, psnr_b, psnr_y, ssim, ssim_y


def _pair(shape: tuple[int, ...], seed: int, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, shape).astype(np.uint8)
    return np.clip(np.round(truth + noise * rng.standard_normal(shape)), 0, 255).astype(np.uint8), truth


def _direct_psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    total = 0.0
    for p, q in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        total += (p - q) ** 2
    return 10 * math.log10(peak**2 / (total / a.size))


def _direct_ssim(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """One window at a time, moments about the window's own mean: no filtering, no E[x^2] - E[x]^2."""
    window = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)])
    window /= window.sum()
    a, b = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    scores = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            scores.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(scores))


def _direct_luma(image: np.ndarray) -> np.ndarray:
    return np.array([[16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255 for r, g, b in row] for row in image.tolist()])


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9), crop=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_psnr_equals_its_definition(seed: int, height: int, width: int, crop: int) -> None:
    a, b = _pair((height + 2 * crop, width + 2 * crop, 3), seed)
    inner = (slice(crop, crop + height), slice(crop, crop + width))
    if (a[inner] == b[inner]).all():
        assert psnr(a, b, crop) == math.inf
    else:
        assert psnr(a, b, crop) == pytest.approx(_direct_psnr(a[inner], b[inner], 255), abs=1e-10)


@pytest.mark.parametrize(("shape", "peak"), [((11, 11), 255.0), ((17, 13), 255.0), ((14, 15), 1.0)])
def test_ssim_equals_its_definition(shape: tuple[int, int], peak: float) -> None:
    a, b = _pair(shape, 3)
    scaled_a, scaled_b = a * (peak / 255), b * (peak / 255)
    assert ssim(scaled_a, scaled_b, peak=peak) == pytest.approx(_direct_ssim(scaled_a, scaled_b, peak), abs=1e-10)


def test_ssim_of_colour_is_the_mean_of_its_channels() -> None:
    a, b = _pair((16, 18, 3), 5)
    expected = np.mean([_direct_ssim(a[2:-2, 2:-2, c], b[2:-2, 2:-2, c], 255) for c in range(3)])
    assert ssim(a, b, crop=2) == pytest.approx(expected, abs=1e-10)


def test_luma_scores_equal_their_definitions() -> None:
    a, b = _pair((19, 20, 3), 7)
    ya, yb = _direct_luma(a)[3:-3, 3:-3], _direct_luma(b)[3:-3, 3:-3]
    assert psnr_y(a, b, 3) == pytest.approx(_direct_psnr(ya, yb, 255), abs=1e-10)
    assert ssim_y(a, b, 3) == pytest.approx(_direct_ssim(ya, yb, 255), abs=1e-10)


def _direct_psnr_b(a: np.ndarray, b: np.ndarray) -> float:
    """Every pair of neighbours by itself."""
    height, width = a.shape
    across, inside = [], []
    for i in range(height):
        for j in range(width):
            if j + 1 < width:
                (across if j % 8 == 7 else inside).append((float(a[i, j]) - float(a[i, j + 1])) ** 2)
            if i + 1 < height:
                (across if i % 8 == 7 else inside).append((float(a[i, j]) - float(a[i + 1, j])) ** 2)
    more = max(0.0, sum(across) / len(across) - sum(inside) / len(inside)) * math.log2(8) / math.log2(min(a.shape))
    return 10 * math.log10(255**2 / (float(np.mean((a.astype(float) - b) ** 2)) + more))


@pytest.mark.parametrize("steps", [0, 30], ids=["without blocks", "with blocks"])
@pytest.mark.parametrize("shape", [(9, 9), (24, 33)], ids=str)
def test_psnr_b_equals_its_definition(shape: tuple[int, int], steps: int) -> None:
    rng = np.random.default_rng(4)
    blocks = np.kron(rng.integers(-1, 2, (5, 5)), np.ones((8, 8)))[: shape[0], : shape[1]]
    truth = rng.integers(118, 138, shape).astype(np.uint8)
    restored = np.clip(truth + steps * blocks + rng.integers(-3, 4, shape), 0, 255).astype(np.uint8)
    score = psnr_b(restored[..., None], truth[..., None])
    assert score == pytest.approx(_direct_psnr_b(restored, truth), abs=1e-10)
    assert score <= psnr_y(restored, truth, 0)
    assert (score < psnr_y(restored, truth, 0)) or steps == 0


def test_psnr_b_of_colour_is_of_the_luma() -> None:
    a, b = _pair((17, 20, 3), 11)
    assert psnr_b(a, b) == pytest.approx(_direct_psnr_b(_direct_luma(a), _direct_luma(b)), abs=1e-10)


def test_psnr_b_needs_a_border_of_blocks() -> None:
    a, b = _pair((8, 20), 1)
    with pytest.raises(InputError, match="at least 9 pixels each way"):
        psnr_b(a, b)


def test_luma_has_studio_range() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert luma(black)[0, 0] == 16
    assert luma(white)[0, 0] == pytest.approx(235, abs=1e-12)


def test_one_channel_is_luma_already() -> None:
    a, b = _pair((15, 15), 2)
    assert psnr_y(a[..., None], b[..., None], 1) == psnr(a, b, 1)
    assert ssim_y(a, b, 1) == ssim(a, b, 1)


def test_equal_images_score_infinity_and_one() -> None:
    a, _ = _pair((12, 12, 3), 0)
    assert psnr_y(a, a, 0) == math.inf
    assert ssim_y(a, a, 0) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.67), (3, 30.40), (4, 28.43)])
def test_bicubic_upscaling_of_set5_scores_what_the_field_publishes(shared: Path, scale: int, expected: float) -> None:
    scores = []
    for file in sorted((shared / "data/benchmarks/Set5/HR").glob("*.png")):
        hr = np.asarray(Image.open(file).convert("RGB"))
        lr = np.asarray(Image.open(file.parents[1] / f"LR_bicubic/X{scale}/{file.stem}x{scale}.png").convert("RGB"))
        sr = imresize(lr, scale)
        scores.append(psnr_y(sr, hr[: sr.shape[0], : sr.shape[1]], crop=scale))
    assert round(float(np.mean(scores)), 2) == expected


@pytest.mark.parametrize(
    ("a", "b", "crop", "words"),
    [
        ((12, 12, 3), (12, 11, 3), 0, "differ in shape"),
        ((12, 12, 4), (12, 12, 4), 0, r"\(12, 12, 4\) cannot be scored"),
        ((12, 14), (12, 14), 2, "14x12; with 2 pixels cropped at each side, at least 15"),
        ((12, 12), (12, 12), -1, "-1 pixels cropped"),
    ],
    ids=["shapes differ", "four channels", "too small", "negative crop"],
)
def test_what_cannot_be_scored_is_refused(a: tuple[int, ...], b: tuple[int, ...], crop: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ssim(np.zeros(a, np.uint8), np.zeros(b, np.uint8), crop)
