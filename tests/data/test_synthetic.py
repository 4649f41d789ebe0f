"""Generated pictures: shape, repeatability, and the statistics that make them resemble photographs."""

from __future__ import annotations

import numpy as np
import pytest

from fxptq.data.shapes import NUMBERS, OUTLINES, writing
from fxptq.data.synthetic import Style, leaves, sheet, synthetic_image, texture


def _luma(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [synthetic_image(160, 160, 3, np.random.default_rng([1, i])).astype(np.float64) for i in range(40)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 200), (64, 33), (300, 270)])
def test_every_size_is_made(height: int, width: int, channels: int) -> None:
    picture = synthetic_image(height, width, channels, np.random.default_rng(0))
    assert picture.shape == (height, width, channels)
    assert picture.dtype == np.uint8


def test_the_seed_decides() -> None:
    first, again, other = (synthetic_image(64, 64, 3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_grey_pictures_are_not_flat() -> None:
    assert synthetic_image(96, 96, 1, np.random.default_rng(2)).std() > 5


def test_gradients_are_heavy_tailed_as_those_of_photographs(pictures: list[np.ndarray]) -> None:
    kurtoses = []
    for picture in pictures:
        gradient = np.diff(_luma(picture), axis=1).ravel()
        kurtoses.append(np.mean(gradient**4) / np.mean(gradient**2) ** 2)
    assert 8 < np.median(kurtoses) < 34, "photographs have 8 to 34 (10 to 90 %), a Gaussian 3"


def test_power_falls_with_frequency_as_in_photographs(pictures: list[np.ndarray]) -> None:
    window = np.hanning(160)[:, None] * np.hanning(160)
    radius = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160))
    low, high = (radius > 0.03) & (radius < 0.06), (radius > 0.24) & (radius < 0.48)
    exponents = []
    for picture in pictures:
        power = np.abs(np.fft.rfft2((_luma(picture) - _luma(picture).mean()) * window)) ** 2
        exponents.append(np.log2(power[low].mean() / power[high].mean()) / 3)
    assert 1.8 < np.median(exponents) < 2.9, "photographs have 1.8 to 2.9 (10 to 90 %)"


def test_colours_go_together_as_in_photographs(pictures: list[np.ndarray]) -> None:
    correlations = np.median(
        [np.corrcoef(picture.reshape(-1, 3).T)[[0, 1, 0], [1, 2, 2]] for picture in pictures], axis=0
    )
    assert (correlations > (0.77, 0.77, 0.5)).all()
    assert (correlations < 0.995).all(), "the pictures are grey"


def test_light_varies_and_both_ends_of_the_range_occur(pictures: list[np.ndarray]) -> None:
    means = [_luma(picture).mean() for picture in pictures]
    assert np.std(means) > 12
    values = np.concatenate([picture.ravel() for picture in pictures])
    assert 0.001 < (values < 8).mean() < 0.15
    assert 0.001 < (values > 247).mean() < 0.15


def test_sizes_follow_the_inverse_cube() -> None:
    style = Style(112, 47, 1.5, 4.0, 0.1, (0, 0), (0, 0), 1, 0)
    radii = np.array([leaf.radius for i in range(400) for leaf in leaves(64, 64, style, np.random.default_rng(i))[1:]])
    # Shapes that touch a 64x64 window, in octaves of radius: r^-3 dr (64 + 2r)^2 integrated over each.
    edges = np.array([4, 8, 16, 32, 64, 128])
    counts = np.histogram(radii, edges)[0]
    fine = np.geomspace(edges[:-1], edges[1:], 1001)
    expected = np.sum(fine**-2 * (64 + 2 * fine) ** 2, axis=0)  # one power more: dr = r d(log r)
    shares, expected = counts / counts.sum(), expected / expected.sum()
    np.testing.assert_allclose(shares, expected, rtol=0.12)


@pytest.mark.parametrize("seed", range(6))
def test_textures_are_normalized_and_periodic(seed: int) -> None:
    field = texture(np.random.default_rng(seed))
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.2
    assert field.std() == pytest.approx(1, abs=1e-3)
    seam = np.abs(field[:, 0] - field[:, -1]).mean()
    inside = np.abs(np.diff(field, axis=1)).mean()
    assert seam < 1.5 * inside


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.__name__)
def test_outlines_are_negative_inside_and_stay_within_their_circle(outline: object) -> None:
    rows, columns = np.mgrid[-1.6:1.6:161j, -1.6:1.6:161j].astype(np.float32)
    for numbers in np.random.default_rng(0).random((20, NUMBERS)).tolist():
        inside = outline(columns, rows, numbers)
        assert inside.dtype == np.float32
        assert (inside < 0).any()
        assert (inside[np.hypot(columns, rows) > 1.3] > 0).all()


def test_writing_fills_its_lines() -> None:
    mask = writing(50, 90, 12, np.random.default_rng(0))
    assert mask.shape == (50, 90)
    assert mask.min() == 0
    assert mask.max() == 1
    assert 0.05 < mask.mean() < 0.6


def test_the_sheet_holds_every_picture() -> None:
    picture = sheet(seed=3, rows=2, columns=3, size=32)
    assert picture.shape == (64, 96, 3)
    np.testing.assert_array_equal(picture[32:, 32:64], synthetic_image(32, 32, 3, np.random.default_rng([3, 4])))
