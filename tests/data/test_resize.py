"""imresize against the published low-resolution files and against a direct evaluation of its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fxptq.data.resize import contributions, imresize
from fxptq.errors import InputError


def _keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x <= 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def _direct_1d(values: list[float], scale: float) -> list[float]:
    """The definition, sample by sample: a kernel stretched by 1/scale over the signal mirrored for ever."""
    n, shrink = len(values), min(scale, 1.0)
    mirrored = values + values[::-1]
    out = []
    for i in range(math.ceil(n * scale)):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / shrink) + 1
        taps = range(math.floor(centre) - reach, math.floor(centre) + reach + 1)
        weights = [_keys(shrink * (centre - tap)) for tap in taps]
        out.append(sum(w * mirrored[tap % (2 * n)] for w, tap in zip(weights, taps, strict=True)) / sum(weights))
    return out


def _direct(image: np.ndarray, scale: float) -> np.ndarray:
    rows = np.array([_direct_1d(list(column), scale) for column in image.T]).T
    if image.dtype == np.uint8:
        rows = np.clip(np.floor(rows + 0.5), 0, 255)
    both = np.array([_direct_1d(list(row), scale) for row in rows])
    return np.clip(np.floor(both + 0.5), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else both


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_published_low_resolution_files_are_reproduced_bit_for_bit(shared: Path, name: str, scale: int) -> None:
    files = sorted((shared / "data/benchmarks" / name / "HR").glob("*.png"))
    assert len(files) == {"Set5": 5, "Set14": 14}[name]
    for file in files:
        hr = np.asarray(Image.open(file).convert("RGB"))
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        lr = np.asarray(Image.open(file.parents[1] / f"LR_bicubic/X{scale}/{file.stem}x{scale}.png").convert("RGB"))
        np.testing.assert_array_equal(imresize(hr, 1 / scale), lr, err_msg=file.name)


@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    scale=st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(shape: tuple[int, int], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal(shape)
    np.testing.assert_allclose(imresize(image, scale), _direct(image, scale), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2, 3])
def test_uint8_is_rounded_after_each_pass(scale: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, (12, 17)).astype(np.uint8)
    result = imresize(image, scale)
    np.testing.assert_array_equal(result, _direct(image, scale))
    once = np.clip(np.floor(_direct(image.astype(np.float64), scale) + 0.5), 0, 255)
    assert (result != once).any(), "rounding once gives the same picture here, so this input tests nothing"


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 1, 3])
def test_a_flat_image_stays_flat(scale: float) -> None:
    assert (imresize(np.full((9, 8, 3), 201, np.uint8), scale) == 201).all()


def test_channels_are_resized_alone_and_types_kept() -> None:
    image = np.random.default_rng(0).random((10, 7, 3)).astype(np.float32)
    result = imresize(image, 0.5)
    assert result.shape == (5, 4, 3)
    assert result.dtype == np.float32
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], imresize(image[..., channel], 0.5))


def test_scale_one_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(imresize(image, 1), image)


def test_weights_sum_to_one_and_positions_stay_inside() -> None:
    for length in (1, 2, 5, 40):
        for scale in (0.25, 1 / 3, 2):
            weights, positions = contributions(length, scale)
            np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-15)
            assert positions.min() >= 0
            assert positions.max() < length


@pytest.mark.parametrize(
    ("image", "scale", "words"),
    [
        (np.zeros((4, 4), np.uint8), 0, "scale is 0"),
        (np.zeros((4, 4), np.uint8), float("nan"), "scale is nan"),
        (np.zeros((4, 0), np.uint8), 2, r"shape \(4, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), 2, r"shape \(1, 4, 4, 3\)"),
        (np.zeros((4, 4), np.int64), 2, "type int64"),
    ],
    ids=["zero scale", "nan scale", "empty", "batch", "int64"],
)
def test_bad_input_is_named(image: np.ndarray, scale: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        imresize(image, scale)
