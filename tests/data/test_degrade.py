"""Each degradation against what it is defined to do."""

from __future__ import annotations

import numpy as np
import pytest

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.errors import InputError


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / 7 + np.arange(channels))
    return waves.astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_bicubic_is_the_benchmarks_own(channels: int) -> None:
    hr = _picture(14, 19, channels)
    lr = Degradation("bicubic", scale=4).apply(hr, _rng())
    assert lr.dtype == np.float32
    np.testing.assert_array_equal(lr, imresize(hr[:12, :16], 1 / 4))


def test_noise_has_its_sigma_and_its_seed() -> None:
    hr = _picture(200, 200)
    noisy = Degradation("noise", sigma=25).apply(hr, _rng(4))
    noise = noisy - hr
    assert noise.std() == pytest.approx(25, rel=0.01)
    assert abs(noise.mean()) < 0.3
    assert noisy.min() < 0, "noise must not be clipped"
    np.testing.assert_array_equal(noisy, Degradation("noise", sigma=25).apply(hr, _rng(4)))
    assert (noisy != Degradation("noise", sigma=25).apply(hr, _rng(5))).mean() > 0.99


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_lower_quality(channels: int) -> None:
    hr = _picture(32, 40, channels)
    errors = []
    for quality in (10, 40, 90):
        lr = Degradation("jpeg", quality=quality).apply(hr, _rng())
        assert lr.shape == hr.shape
        assert lr.dtype == np.float32
        errors.append(np.abs(lr - hr).mean())
    assert errors[0] > errors[1] > errors[2] > 0


def test_none_changes_nothing() -> None:
    hr = _picture(5, 6)
    np.testing.assert_array_equal(Degradation("none").apply(hr, _rng()), hr)


@pytest.mark.parametrize(
    ("degradation", "words"),
    [
        (Degradation("bicubic", scale=2), "bicubic x2"),
        (Degradation("noise", sigma=15), "noise sigma 15"),
        (Degradation("jpeg", quality=40), "jpeg quality 40"),
        (Degradation("none"), "none"),
    ],
    ids=str,
)
def test_reads_as_words(degradation: Degradation, words: str) -> None:
    assert str(degradation) == words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "blur"}, "'blur' is unknown; expected one of bicubic, noise, jpeg, none"),
        ({"kind": "bicubic", "scale": 0}, "scale 0"),
        ({"kind": "noise", "sigma": 5, "scale": 2}, "'noise' cannot have scale 2"),
        ({"kind": "noise"}, "sigma 0"),
        ({"kind": "jpeg", "quality": 101}, "quality 101"),
        ({"kind": "jpeg"}, "quality 0"),
        ({"kind": "none", "sigma": 3}, "sigma 3"),
        ({"kind": "bicubic", "scale": 2, "quality": 50}, "quality 50"),
        ({"kind": "noise", "sigma": float("nan")}, "sigma nan"),
        ({"kind": "noise", "sigma": float("inf")}, "sigma inf"),
        ({"kind": "none", "sigma": -3}, "sigma -3"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_levels_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Degradation(**settings)


def test_a_picture_smaller_than_the_scale_is_refused() -> None:
    with pytest.raises(InputError, match="3x9 cannot be shrunk 4 times"):
        Degradation("bicubic", scale=4).apply(_picture(9, 3), _rng())
