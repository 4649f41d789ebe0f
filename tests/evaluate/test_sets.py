"""Benchmark sets on disk and generated: what a pair holds, and how what is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.data.sources import calibration_images
from fxptq.errors import InputError
from fxptq.evaluate.score import evaluate
from fxptq.evaluate.sets import open_set, parse_data, samples
from fxptq.io.images import to_image
from fxptq.io.writing import write_png
from fxptq.sizes import Sizes

X3, NOISE = Degradation("bicubic", scale=3), Degradation("noise", sigma=25)


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, height, width) in enumerate([("b", 40, 33), ("a", 37, 50)]):
        hr = _picture(height, width, i)
        write_png(tmp_path / f"HR/{name}.png", hr)
        write_png(tmp_path / f"LR_bicubic/X3/{name}x3.png", imresize(hr[: height // 3 * 3, : width // 3 * 3], 1 / 3))
    return tmp_path


def test_pairs_are_cropped_to_the_scale_and_sorted(folder: Path) -> None:
    benchmark = open_set("Mine", folder, X3)
    assert (benchmark.name, benchmark.scale, len(benchmark)) == ("Mine", 3, 2)
    a, b = benchmark
    assert (a.name, b.name) == ("a", "b")
    assert a.lr.shape == (12, 16, 3)
    np.testing.assert_array_equal(a.hr, _picture(37, 50, 1)[:36, :48])
    np.testing.assert_array_equal(b.lr, imresize(_picture(40, 33)[:39, :33], 1 / 3))


def test_published_sets_open_at_every_scale(shared: Path) -> None:
    for scale in (2, 3, 4):
        benchmark = open_set("Set5", shared / "data/benchmarks/Set5", Degradation("bicubic", scale=scale))
        pairs = list(benchmark)
        assert [pair.name for pair in pairs] == ["baby", "bird", "butterfly", "head", "woman"]
        for pair in pairs:
            assert pair.hr.shape[:2] == (pair.lr.shape[0] * scale, pair.lr.shape[1] * scale)


@pytest.mark.parametrize("flat", [False, True])
def test_other_tasks_degrade_the_clean_pictures(tmp_path: Path, flat: bool) -> None:
    place = tmp_path if flat else tmp_path / "HR"
    for name in ("p", "q"):
        write_png(place / f"{name}.png", _picture(20, 30))
    first, second = open_set("Mine", tmp_path, NOISE, seed=1)
    np.testing.assert_array_equal(first.hr, second.hr)
    assert (first.lr - first.hr).std() == pytest.approx(25, rel=0.1)
    assert (first.lr != second.lr).any(), "each picture has noise of its own"
    (place / "p.png").unlink()
    (alone,) = open_set("Mine", tmp_path, NOISE, seed=1)
    np.testing.assert_array_equal(alone.lr, second.lr)
    (other,) = open_set("Mine", tmp_path, NOISE, seed=2)
    assert (other.lr != second.lr).any()


def test_grey_sets(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", _picture(24, 24))
    (pair,) = open_set("Mine", tmp_path, Degradation("jpeg", quality=30), channels=1)
    assert pair.hr.shape == pair.lr.shape == (24, 24, 1)
    assert 1 < np.abs(pair.lr - pair.hr).mean() < 60


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("HR", "Mine: .* has no folder HR; expected HR/NAME.png and LR_bicubic/X3/NAMEx3.png"),
        ("LR_bicubic/X3", "Mine: there is no folder .*X3; expected the inputs there, named NAMEx3.png"),
        ("LR_bicubic/X3/ax3.png", r"Mine: a\.png has no input; expected .*ax3\.png"),
    ],
    ids=["HR", "X3", "one input"],
)
def test_what_is_missing_is_named(folder: Path, remove: str, words: str) -> None:
    (folder / remove).rename(folder / "away")
    with pytest.raises(InputError, match=words):
        open_set("Mine", folder, X3)


@pytest.mark.parametrize("place", ["HR", "LR_bicubic/X3"])
def test_two_pictures_of_one_name_are_refused(folder: Path, place: str) -> None:
    name = "a" if place == "HR" else "ax3"
    Image.fromarray(_picture(12, 16)).save(folder / place / f"{name}.bmp")
    with pytest.raises(
        InputError, match=rf"Mine: {name}\.bmp and {name}\.png in .*{place} are both named {name}; rename"
    ):
        open_set("Mine", folder, X3)


def test_two_clean_pictures_of_one_name_keep_their_suffixes(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(_picture(24, 24)).save(tmp_path / name)
    benchmark = open_set("Mine", tmp_path, NOISE)
    assert [pair.name for pair in benchmark] == ["a.bmp", "a.png", "b"]
    assert set(evaluate(lambda x: x, benchmark).images) == {"a.bmp", "a.png", "b"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_set("Mine", tmp_path / "no", NOISE)


@pytest.mark.parametrize("size", [(13, 16), (12, 12), (11, 16)])
def test_an_input_of_another_size_is_named(folder: Path, size: tuple[int, int]) -> None:
    write_png(folder / "LR_bicubic/X3/ax3.png", _picture(*size))
    with pytest.raises(InputError, match=rf"ax3\.png: is {size[1]}x{size[0]}; expected 16x12"):
        next(iter(open_set("Mine", folder, X3)))


@pytest.mark.parametrize("option", ["Set5", "=dir", "Set5=", ""])
def test_options_without_name_or_folder_are_refused(option: str) -> None:
    with pytest.raises(InputError, match="expected NAME=DIR"):
        parse_data(option)


def test_options_split_at_the_first_sign() -> None:
    assert parse_data("Set5=a=b/c") == ("Set5", Path("a=b/c"))


@pytest.mark.parametrize("degradation", [X3, NOISE, Degradation("jpeg", quality=40)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_need_no_files(degradation: Degradation, channels: int) -> None:
    benchmark = samples(degradation, channels=channels, count=3, size=32)
    side = 32 * degradation.scale
    pairs = list(benchmark)
    assert [pair.name for pair in pairs] == ["sample0", "sample1", "sample2"]
    for pair, again in zip(pairs, benchmark, strict=True):
        assert pair.lr.shape == (32, 32, channels)
        assert pair.hr.shape == (side, side, channels)
        assert pair.hr.std() > 5
        np.testing.assert_array_equal(pair.lr, again.lr)


def test_samples_are_not_what_was_calibrated_on() -> None:
    none = Degradation("none")
    tensors, _ = calibration_images("synthetic", none, count=8, size=32)
    calibrated = {to_image(tensor).tobytes() for tensor in tensors}
    assert not any(pair.hr.tobytes() in calibrated for pair in samples(none, count=8, size=32))


@pytest.mark.parametrize(("sizes", "expected"), [(Sizes(fixed=(24, 40)), (24, 40)), (Sizes(7, 50), (56, 56))], ids=str)
def test_samples_have_a_size_that_the_network_takes(sizes: Sizes, expected: tuple[int, int]) -> None:
    for pair in samples(Degradation("bicubic", scale=2), count=2, size=48, sizes=sizes):
        assert pair.lr.shape[:2] == expected
        assert pair.hr.shape[:2] == tuple(2 * side for side in expected)
