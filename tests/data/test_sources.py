"""Calibration inputs from each source: what they hold, that the seed decides, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.data.sources import Inputs, calibration_images
from fxptq.errors import InputError
from fxptq.io.folders import sample_digest, sample_pictures
from fxptq.io.writing import write_png
from fxptq.sizes import Sizes

NONE, X2 = Degradation("none"), Degradation("bicubic", scale=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(60, 41), (33, 90), (50, 50)]):
        write_png(tmp_path / f"{i}.png", rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("source", ["folder", "synthetic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_inputs_have_the_networks_shape_and_range(folder: Path, source: str, channels: int, value_range: float) -> None:
    chosen = folder if source == "folder" else source
    inputs, words = calibration_images(
        chosen, X2, channels=channels, value_range=value_range, sizes=Sizes(8), count=5, size=13
    )
    assert len(inputs) == 5
    for tensor in inputs:
        assert tensor.shape == (1, channels, 16, 16)
        assert tensor.dtype == torch.float32
        assert tensor.min() >= 0
        assert tensor.max() <= value_range
    assert torch.cat(inputs).max() > 0.5 * value_range
    assert "5 " in words
    assert "16x16, bicubic x2, seed 0" in words


@pytest.mark.parametrize("source", ["folder", "synthetic"])
def test_the_seed_decides_and_more_inputs_change_none(folder: Path, source: str) -> None:
    chosen = folder if source == "folder" else source
    noise = Degradation("noise", sigma=20)
    first, _ = calibration_images(chosen, noise, count=4, size=16, seed=3)
    again, _ = calibration_images(chosen, noise, count=6, size=16, seed=3)
    other, _ = calibration_images(chosen, noise, count=4, size=16, seed=4)
    for a, b, c in zip(first, again, other, strict=False):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_every_picture_is_used_before_any_is_used_again(tmp_path: Path) -> None:
    for level in range(7):
        write_png(tmp_path / f"{level}.png", np.full((20, 20, 3), 30 * level, np.uint8))
    inputs, _ = calibration_images(tmp_path, NONE, value_range=255.0, count=14, size=16)
    levels = [int(tensor.mean()) // 30 for tensor in inputs]
    assert sorted(levels[:7]) == sorted(levels[7:]) == list(range(7))
    assert levels[:7] != list(range(7)), "the order must not be that of the names"


def test_crops_are_cut_from_the_picture_turned_and_flipped(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", picture)
    inputs, _ = calibration_images(tmp_path, NONE, value_range=255.0, count=40, size=17)
    places = set()
    for tensor in inputs:
        crop = tensor[0].permute(1, 2, 0).numpy()
        views = [(k, flip, np.rot90(crop[:, ::-1] if flip else crop, -k)) for k in range(4) for flip in (0, 1)]
        places |= {
            (top, left, k, flip)
            for top in range(8)
            for left in range(4)
            for k, flip, view in views
            if np.array_equal(picture[top : top + 17, left : left + 17], view)
        }
    assert len(places) > 25
    for axis, values in enumerate((8, 4, 4, 2)):
        assert len({place[axis] for place in places}) == values


def test_crops_are_degraded_as_benchmarks_are(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    picture = np.stack([np.triu(picture[..., c]) + np.triu(picture[..., c], 1).T for c in range(3)], axis=2)
    picture = np.maximum(picture, picture[::-1, ::-1])  # unchanged, or mirrored, by any turn and flip
    write_png(tmp_path / "a.png", picture)
    (tensor,), _ = calibration_images(tmp_path, X2, value_range=255.0, count=1, size=16)
    small = imresize(picture, 1 / 2).astype(np.float32)
    levels = tensor[0].permute(1, 2, 0).numpy()
    assert any(np.array_equal(levels, np.rot90(small, k)) for k in range(4))


@pytest.mark.parametrize("size", [(16, 16), (17, 200), (300, 18)])
def test_small_pictures_are_continued_by_reflection(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(1, 256, (*size, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", picture)
    inputs, _ = calibration_images(tmp_path, X2, count=2, size=64)
    assert all(tensor.shape == (1, 3, 64, 64) and tensor.std() > 0.05 for tensor in inputs)


def test_tensors_pass_through_one_by_one() -> None:
    batches = (torch.rand(n, 3, 8, 9, dtype=dtype) for n, dtype in ((1, torch.float32), (2, torch.float64)))
    inputs, words = calibration_images(batches, NONE)
    assert [tuple(tensor.shape) for tensor in inputs] == [(1, 3, 8, 9)] * 3
    assert {tensor.dtype for tensor in inputs} == {torch.float32}
    assert words == "3 inputs given as tensors"
    own = torch.rand(1, 3, 4, 4)
    assert torch.equal(calibration_images([own], NONE)[0][0], own)
    assert torch.equal(calibration_images(own, NONE)[0][0], own)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "no calibration inputs were given"),
        ([torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4)], r"input 1 has shape \(3, 4, 4\)"),
        ([torch.zeros(1, 1, 4, 4)], r"\(1, 1, 4, 4\); expected \[N, 3, H, W\]"),
        ([torch.zeros(1, 3, 0, 4)], r"\(1, 3, 0, 4\)"),
        ([torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], "type torch.uint8"),
        ([torch.full((1, 3, 4, 4), torch.nan)], "input 0 holds values that are not finite"),
        ([np.zeros((1, 3, 4, 4))], "type ndarray"),
    ],
    ids=["none", "three axes", "grey", "empty", "uint8", "nan", "array"],
)
def test_unfit_tensors_are_named(tensors: list[torch.Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibration_images(tensors, NONE)


def test_unfit_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        calibration_images(tmp_path / "no", NONE)
    with pytest.raises(InputError, match="holds no pictures"):
        calibration_images(str(tmp_path), NONE)
    write_png(tmp_path / "dot.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match=r"dot\.png: is 1x1; .* at least 16"):
        calibration_images(tmp_path, NONE)


def test_damaged_pictures_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for level in range(9):
        write_png(tmp_path / "deep" / f"{level}.png", np.full((20, 20, 3), 20 * level, np.uint8))
    whole, words = calibration_images(tmp_path, NONE, value_range=255.0, count=9, size=16)
    assert "deep" not in words
    assert "(9 files, sample sha256:" in words
    levels = [int(tensor.mean()) // 20 for tensor in whole]
    (tmp_path / "deep" / f"{levels[2]}.png").write_bytes(b"no picture")
    write_png(tmp_path / "deep" / f"{levels[5]}.png", np.zeros((9, 40, 3), np.uint8))
    found, words = calibration_images(tmp_path, NONE, value_range=255.0, count=9, size=16)
    rest = [*levels[:2], *levels[3:5], *levels[6:]]
    assert [int(tensor.mean()) // 20 for tensor in found] == [*rest, *rest[:2]]
    assert "(9 files, 2 of 9 passed over, sample sha256:" in words
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 2
    assert f"{levels[2]}.png: not a picture" in named[0]
    assert f"{levels[5]}.png: is 40x9" in named[1]
    (tmp_path / "deep" / f"{levels[7]}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"png: .* \(3 of 9 pictures cannot be used, and 1 in 4 may be passed over\)"):
        calibration_images(tmp_path, NONE, count=9, size=16)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_the_share_of_damaged_pictures_is_held_in_folders_of_any_size(tmp_path: Path, count: int) -> None:
    for index in range(25):
        write_png(tmp_path / f"{index}.png", np.full((16, 16, 3), index, np.uint8))
    order = sample_pictures(tmp_path, 25, 0).files
    damaged = 0
    while 4 * (damaged + 1) <= count + damaged + 1:
        order[damaged].write_bytes(b"")
        damaged += 1
    inputs, words = calibration_images(tmp_path, NONE, value_range=255.0, count=count, size=16)
    assert [int(x.mean()) for x in inputs] == [int(path.stem) for path in order[damaged : damaged + count]]
    assert "passed over" in words or not damaged
    order[damaged].write_bytes(b"")
    with pytest.raises(InputError, match=r"of .* pictures cannot be used"):
        calibration_images(tmp_path, NONE, count=count, size=16)


def test_the_sample_has_a_digest_of_its_files(tmp_path: Path) -> None:
    for index in range(12):
        write_png(tmp_path / f"{index}.png", np.full((20, 20, 3), index, np.uint8))
    _, words = calibration_images(tmp_path, NONE, count=4, size=16)
    sample = sample_pictures(tmp_path, 4, 0).files
    assert f"(12 files, sample sha256:{sample_digest(sample, tmp_path)}), 16x16" in words
    (other,) = {path for path in tmp_path.iterdir() if path not in sample_pictures(tmp_path, 11, 0).files}
    other.write_bytes(b"not read")
    assert calibration_images(tmp_path, NONE, count=4, size=16)[1] == words
    write_png(sample[0], np.full((20, 20, 3), 99, np.uint8))
    assert calibration_images(tmp_path, NONE, count=4, size=16)[1] != words


@pytest.mark.parametrize(("count", "size"), [(0, 64), (4, 0)])
def test_nothing_to_make_is_refused(count: int, size: int) -> None:
    with pytest.raises(InputError, match=f"not {count} of {size}"):
        calibration_images("synthetic", NONE, count=count, size=size)


def test_pictures_do_not_fit_networks_of_other_channels() -> None:
    with pytest.raises(InputError, match="the network takes 4; give tensors"):
        calibration_images("synthetic", NONE, channels=4)
    assert len(calibration_images(torch.rand(2, 4, 5, 5), NONE, channels=4)[0]) == 2


@pytest.mark.parametrize("source", ["folder", "synthetic"])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(Sizes(fixed=(24, 40)), (24, 40)), (Sizes(minimum=30), (30, 30)), (Sizes(10, 24), (30, 30))],
    ids=str,
)
def test_inputs_have_a_size_that_the_network_takes(
    folder: Path, source: str, sizes: Sizes, expected: tuple[int, int]
) -> None:
    inputs, words = calibration_images(folder if source == "folder" else source, X2, count=6, size=20, sizes=sizes)
    assert {tuple(x.shape[2:]) for x in inputs} == {expected}
    assert f"{expected[0]}x{expected[1]}, bicubic x2" in words


# -- loaders of training code ----------------------------------------------------------------------------------------


class Training(Dataset):  # type: ignore[type-arg]
    """Pairs of 8 x 8 and 16 x 16 pixels, as dictionaries or as tuples."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> object:
        if index >= len(self):
            raise IndexError
        lq, gt = torch.full((3, 8, 8), index / 20), torch.zeros(3, 16, 16)
        return {"lq": lq, "gt": gt, "lq_path": str(index)} if self.form == "dict" else (lq, gt)


@pytest.mark.parametrize(
    "wrap", [DataLoader, lambda d: DataLoader(d, batch_size=3), lambda d: d], ids=["1", "3", "set"]
)
@pytest.mark.parametrize("form", ["dict", "pair"])
def test_loaders_of_training_code_give_their_inputs(form: str, wrap: Callable[[object], Iterable[Inputs]]) -> None:
    inputs, described = calibration_images(wrap(Training(form)), NONE, count=7)
    assert described == "7 inputs of a data loader"
    for index, x in enumerate(inputs):
        assert isinstance(x, torch.Tensor)
        assert torch.equal(x, torch.full((1, 3, 8, 8), index / 20))


def test_a_loader_of_several_inputs() -> None:
    loader = DataLoader([(torch.rand(3, 8, 8), torch.rand(1)) for _ in range(4)], batch_size=2)
    inputs, _ = calibration_images(loader, NONE, tensors=2)
    assert [tuple(t.shape for t in x) for x in inputs] == [((2, 3, 8, 8), (2, 1))] * 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"lr": torch.rand(1, 3, 8, 8)}, "calibration input 0 has the keys 'lr'; expected a tensor under 'lq'"),
        ([torch.rand(1, 3, 8, 8)] * 3, "calibration input 0 is a list of 3; expected the input and its clean picture"),
    ],
    ids=["key", "list"],
)
def test_unfit_items_of_loaders(item: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_images([item], NONE)  # type: ignore[list-item]
