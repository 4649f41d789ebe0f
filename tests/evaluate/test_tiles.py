"""Padding and tiling: exact where they promise to be, bounded where they cannot, and no tile larger than asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.restore import fitted
from fxptq.evaluate.tiles import run_padded, run_tiled
from fxptq.formats import PictureFormat
from fxptq.sizes import Sizes


def _integer_conv(channels: int, out: int, kernel: int, seed: int) -> nn.Conv2d:
    """Weights and sums that float64 holds exactly: equality is then equality, whatever order a kernel sums in."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    conv.weight.data = torch.randint(-3, 4, conv.weight.shape, generator=generator).double()
    return conv


def _net(scale: int) -> nn.Module:
    """Receptive radius 2 + 1 + 1 = 4."""
    return nn.Sequential(
        _integer_conv(2, 4, 5, 0), nn.ReLU(), _integer_conv(4, 4, 3, 1), _integer_conv(4, 3 * scale**2, 3, 2),
        nn.PixelShuffle(scale),
    ).eval()  # fmt: skip


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (1, 2, height, width), generator=torch.Generator().manual_seed(seed)).double()


@given(height=st.integers(1, 20), width=st.integers(1, 20), multiple=st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_padding_reflects_as_numpy_does(height: int, width: int, multiple: int) -> None:
    x = _image(height, width)
    padding = [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)]
    np.testing.assert_array_equal(Sizes(multiple).padded(x).numpy(), np.pad(x.numpy(), padding, mode="reflect"))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (16, 8), (9, 23)], ids=str)
def test_padded_runs_see_the_multiple_and_return_the_size(size: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []

    def run(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return x.repeat_interleave(3, 2).repeat_interleave(3, 3)

    x = _image(*size)
    result = run_padded(run, x, sizes=Sizes(8), scale=3)
    assert torch.equal(result[:, :, ::3, ::3], x)
    assert result.shape == (1, 2, 3 * size[0], 3 * size[1])
    assert seen == [tuple(-(-side // 8) * 8 for side in size)]


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    scale=st.sampled_from([1, 2]),
    tile=st.integers(16, 40),
    multiple=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=25, deadline=None)
def test_tiles_equal_the_whole_where_the_overlap_holds_the_receptive_field(
    height: int, width: int, scale: int, tile: int, multiple: int
) -> None:
    net, x = _net(scale), _image(height, width)
    with torch.inference_mode():
        whole = run_padded(net, x, sizes=Sizes(multiple), scale=scale)
        tiled = run_tiled(net, x, tile=tile, overlap=4, sizes=Sizes(multiple), scale=scale)
    assert torch.equal(whole, tiled)


def test_too_little_overlap_shows_only_at_the_seams() -> None:
    net, x = _net(1), _image(64, 64)
    with torch.inference_mode():
        whole = net(x)
        tiled = run_tiled(net, x, tile=32, overlap=1)
    wrong = (whole != tiled).any(dim=1)[0]
    # Tiles start at 0, 30 and 32 and are cut at 31 and 47; the receptive radius is 4.
    seams = torch.zeros(64, dtype=torch.bool)
    seams[28:34] = seams[44:50] = True
    assert wrong.any(), "an overlap smaller than the receptive field must differ, or this test cannot fail"
    assert not wrong[~seams][:, ~seams].any()


def test_aligned_windows_make_tiles_exact_for_window_networks() -> None:
    def windows(x: Tensor) -> Tensor:
        blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
        return blocks.sum(dim=(3, 5), keepdim=True).expand_as(blocks).flatten(4, 5).flatten(2, 3)

    x = _image(61, 90)
    whole = run_padded(windows, x, sizes=Sizes(8))
    assert torch.equal(whole, run_tiled(windows, x, tile=43, overlap=5, sizes=Sizes(8)))


@pytest.mark.parametrize("multiple", [1, 8])
def test_no_tile_is_larger_than_asked_and_full_tiles_are_alike(multiple: int) -> None:
    seen: list[tuple[int, int]] = []
    calls: list[tuple[int, int]] = []

    def run(x: Tensor) -> Tensor:
        seen.append((x.shape[2], x.shape[3]))
        return x

    x = _image(150, 203)
    result = run_tiled(run, x, tile=50, overlap=6, sizes=Sizes(multiple), progress=lambda *done: calls.append(done))
    assert torch.equal(result, x)
    assert set(seen) == {(50 // multiple * multiple,) * 2}
    assert calls == [(i + 1, len(seen)) for i in range(len(seen))]


def test_a_picture_within_one_tile_runs_once_whole() -> None:
    seen: list[tuple[int, ...]] = []

    def run(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    assert torch.equal(run_tiled(run, _image(30, 20), tile=64, overlap=8, sizes=Sizes(8)), _image(30, 20))
    assert seen == [(1, 2, 32, 24)]


def test_a_tile_of_overlaps_only_is_refused() -> None:
    with pytest.raises(InputError, match=r"tile of 32 with an overlap of 16 .* give 40 or more"):
        run_tiled(lambda x: x, _image(99, 99), tile=34, overlap=16, sizes=Sizes(8))


@pytest.mark.parametrize("runner", [run_padded, lambda run, x, **options: run_tiled(run, x, tile=40, **options)])
def test_a_network_of_another_scale_is_named(runner: object) -> None:
    with pytest.raises(FxptqError, match=r"expected 24x16 \(rows x columns\) at scale 2"):
        runner(lambda x: x, _image(12, 8), scale=2)


class Picky:
    """A network of scale 2 that takes some sizes only, and remembers them."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.seen: set[tuple[int, ...]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.add(tuple(x.shape[2:]))
        if not self.sizes.takes(*x.shape[2:]):
            raise RuntimeError(f"not {tuple(x.shape)}")
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


RULES = [Sizes(8, 24), Sizes(minimum=33), Sizes(8, square=True), Sizes(4, 24, square=True), Sizes(fixed=(24, 40))]


@pytest.mark.parametrize("sizes", RULES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (24, 40), (23, 61), (90, 30), (90, 101)], ids=str)
@pytest.mark.parametrize("tile", [0, 48])
def test_a_network_meets_only_sizes_that_it_takes(sizes: Sizes, size: tuple[int, int], tile: int) -> None:
    run, x = Picky(sizes), _image(*size)
    result = fitted(run, PictureFormat(2, 1.0, 2, sizes), tile)(x)
    assert torch.equal(result[:, :, ::2, ::2], x)
    assert result.shape[2:] == (2 * size[0], 2 * size[1])
    assert not tile or sizes.fixed or max(max(seen) for seen in run.seen) <= tile


def test_a_tile_smaller_than_the_network_takes_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"a tile of 40 is too small: the network takes sizes of at least 64; give 64 or"
    ):
        run_tiled(lambda x: x, _image(99, 99), tile=40, overlap=4, sizes=Sizes(minimum=64))
