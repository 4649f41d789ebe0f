"""Tiles by free memory: what a network needs is measured, what is free is never passed, and memory that ends is met."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import Tensor, nn

import fxptq
from fxptq.errors import FxptqError, InputError, MemoryEndedError
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.tiling import _SCRATCH, _SHARE, TiledRun, Tiling, is_memory_end, least_tile
from fxptq.evaluate.working import working_bytes
from fxptq.formats import PictureFormat
from fxptq.memory import free_bytes
from fxptq.sizes import Sizes

CPU = torch.device("cpu")


class Limited:
    """Copies pixels, twice as large; memory ends above so many pixels, as torch says it."""

    def __init__(self, most: float) -> None:
        self.most, self.seen = most, [(0, 0)][:0]

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append((x.shape[2], x.shape[3]))
        if x.shape[2] * x.shape[3] > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 4194304 bytes. Error code 12 (Cannot allocate memory)"
            )
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def tiled(run: Limited, sizes: Sizes, free: float | None = 1e12, **tiling: int) -> TiledRun:
    known = None if free is None else int(free)
    return TiledRun(NetworkRun(run, CPU), PictureFormat(3, 1.0, 2, sizes), Tiling(**tiling), CPU, lambda: known)


def expected(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(8), Sizes(4, minimum=48), Sizes(8, square=True)], ids=str)
@pytest.mark.parametrize("asked", [{}, {"tile": 0}, {"tile": 128}], ids=str)
def test_tiles_become_smaller_when_memory_ends(
    sizes: Sizes, asked: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.rand(1, 3, 200, 260)
    network = Limited(70 * 70)
    run = tiled(network, sizes, **asked)
    assert torch.equal(run(x), expected(x))
    sides = [int(side) for side in re.findall(r"memory has ended: going on with tiles of (\d+)", caplog.text)]
    assert sides == sorted(set(sides), reverse=True)
    assert sides[-1] <= 70
    network.seen.clear()
    assert torch.equal(run(x), expected(x))  # the next picture begins with tiles that fit
    assert max(height * width for height, width in network.seen) <= network.most
    small = torch.rand(1, 3, 56, 56)
    network.seen.clear()
    assert torch.equal(run(small), expected(small))
    assert network.seen == [(56, 56)]


def test_memory_that_suffices_for_no_tile_is_an_error() -> None:
    with pytest.raises(MemoryEndedError, match="can't allocate memory"):
        tiled(Limited(30 * 30), Sizes(8))(torch.rand(1, 3, 200, 200))


def test_memory_that_ends_beside_the_network_is_met_too() -> None:
    """Such as in the rounding of its output."""
    x = torch.rand(1, 3, 200, 200)
    largest: list[int] = []

    def finish(y: Tensor) -> Tensor:
        if y.shape[2] > 150:
            raise MemoryError
        largest.append(y.shape[2])
        return y

    assert torch.equal(tiled(Limited(1e9), Sizes())(x, finish), expected(x))
    assert max(largest) <= 150

    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        tiled(Limited(1e9), Sizes())(x, fail)


def test_another_failure_is_not_tried_again() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    network = NetworkRun(fail, CPU)
    with pytest.raises(FxptqError, match="cannot be multiplied") as caught:
        TiledRun(network, PictureFormat(), Tiling(), CPU)(torch.rand(1, 3, 200, 200))
    assert not isinstance(caught.value, MemoryEndedError)


def test_memory_that_ends_in_a_capture_is_met() -> None:
    def run(x: Tensor) -> Tensor:
        if x.shape[2] > 150:
            raise fxptq.CaptureError("net: fails on the example (DefaultCPUAllocator: can't allocate memory)")
        return x

    x = torch.rand(1, 3, 200, 200)
    assert torch.equal(TiledRun(NetworkRun(run, CPU), PictureFormat(), Tiling(), CPU)(x), x)


class Wide(nn.Module):
    """Needs memory that is known: 30 floats a pixel, as many for the sum, and 3 for the result."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.repeat(1, 10, 1, 1)
        return (wide + 1.0)[:, :3] - 1.0


def test_working_memory_is_that_of_the_largest_moment() -> None:
    x = torch.rand(1, 3, 32, 32)
    pixel = 4 * (30 + 30 + 3)
    assert working_bytes(lambda: Wide()(x), CPU) == 32 * 32 * pixel
    assert working_bytes(lambda: [Wide()(x).sum() for _ in range(3)], CPU) < 32 * 32 * pixel + 64
    assert working_bytes(lambda: x.view(-1).add_(0), CPU) == 0


def test_a_picture_is_cut_as_the_free_memory_wants(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    x = torch.rand(1, 3, 400, 300)
    seen = []

    class Seen(Wide):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.shape[2], x.shape[3]))
            return super().forward(x)

    pixel = 4 * (30 + 30 + 3) * _SCRATCH / _SHARE
    for free, most in ((pixel * 400 * 301, None), (pixel * 128 * 129, 128 * 128), (None, None)):
        seen.clear()
        known = None if free is None else int(free)
        run = TiledRun(NetworkRun(Seen(), CPU), PictureFormat(), Tiling(), CPU, lambda known=known: known)
        assert torch.allclose(run(x), x, atol=1e-6)
        whole = (400, 300) in seen
        assert whole == (most is None)
        assert most is None or 64 * 64 < max(height * width for height, width in seen) <= most
    half = TiledRun(NetworkRun(Seen(), CPU), PictureFormat(), Tiling(share=0.5), CPU, lambda: int(pixel * 128 * 129))
    seen.clear()
    half(x)
    assert max(height * width for height, width in seen) <= 128 * 128 / 2


def test_a_small_picture_costs_no_measurement() -> None:
    network = Limited(1e9)
    tiled(network, Sizes(8), free=1.0)(torch.rand(1, 3, 90, 90))
    assert network.seen == [(96, 96)]


def test_each_tile_is_finished_and_counted() -> None:
    x = torch.rand(1, 3, 100, 100)
    counts: list[tuple[int, int]] = []
    made = tiled(Limited(1e9), Sizes(), tile=64)(
        x, lambda y: (y.mean(1, keepdim=True) * 255).round().to(torch.uint8), lambda *count: counts.append(count)
    )
    assert (made.dtype, made.shape) == (torch.uint8, (1, 1, 200, 200))
    assert torch.equal(made, (expected(x).mean(1, keepdim=True) * 255).round().to(torch.uint8))
    assert counts == [(done, 9) for done in range(1, 10)]


@pytest.mark.parametrize("overlap", [0, 5, 40])
def test_the_overlap_is_the_callers(overlap: int) -> None:
    x = torch.rand(1, 3, 150, 90)
    network = Limited(1e9)
    tiled(network, Sizes(), tile=90, overlap=overlap)(x)
    assert len(network.seen) == len(range(0, 150 - 90, 90 - 2 * overlap)) + 1


@pytest.mark.parametrize("settings", [{"tile": -1}, {"overlap": -1}], ids=str)
def test_unfit_tilings(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="is -1; expected"):
        Tiling(**settings)


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(8), Sizes(4, minimum=70)], ids=str)
def test_the_least_tile_leaves_something(sizes: Sizes) -> None:
    least = least_tile(sizes, 16)
    x = torch.rand(1, 3, 100, 100)
    assert torch.equal(tiled(Limited(1e9), sizes, tile=least)(x), expected(x))
    with pytest.raises(InputError, match=f"give {least} or more"):
        tiled(Limited(1e9), sizes, tile=least - sizes.multiple)(x)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (fxptq.CaptureError("the network fails on (1, 3, 9, 9) (DefaultCPUAllocator: can't allocate memory)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_ends_of_memory(error: Exception, ends: bool) -> None:
    assert is_memory_end(error) is ends
    outer = FxptqError("the network failed")
    outer.__cause__ = error
    assert is_memory_end(outer) is ends


def test_free_memory_is_a_number_of_bytes() -> None:
    free = free_bytes()
    assert free is None or 1 << 20 < free < 1 << 50


def test_restoring_in_python_meets_the_end_of_memory() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Limited(70 * 70)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    x = torch.rand(1, 3, 200, 200)
    assert torch.equal(fxptq.restore(Network(), x, scale=2), expected(x))
