"""Contrasts of two networks: the worst patches by brute force, colours and ranges by definition, bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxptq.data.degrade import Degradation
from fxptq.evaluate import contrast
from fxptq.evaluate.contrast import Contrast, Range, Watch, joined_contrast, worst_places
from fxptq.evaluate.score import Score, SetScore
from fxptq.evaluate.sets import Pair


def pair(name: str, side: int = 40, scale: int = 2) -> Pair:
    rng = np.random.default_rng(len(name))
    lr = rng.integers(0, 256, (side // scale, side // scale, 3)).astype(np.float32)
    return Pair(name, lr, rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(20, 70), st.integers(20, 70), st.integers(0, 99))
def test_the_worst_patch_is_that_of_brute_force(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2))
    side = 24
    rows, columns = min(side, height), min(side, width)
    tops = sorted({*range(0, height - rows + 1, contrast.STRIDE), height - rows})
    lefts = sorted({*range(0, width - columns + 1, contrast.STRIDE), width - columns})

    def error(top: int, left: int) -> float:
        inside = slice(top, top + rows), slice(left, left + columns)
        return float(np.mean((first[inside].astype(int) - second[inside].astype(int)) ** 2))

    best = max(error(top, left) for top in tops for left in lefts)
    found = worst_places(first, second, side)
    assert found[0][0] == pytest.approx(best)
    for value, top, left in found:
        assert value == pytest.approx(error(top, left))
    assert [value for value, _, _ in found] == sorted((value for value, _, _ in found), reverse=True)
    if len(found) == 2:
        (_, top, left), (_, other_top, other_left) = found
        assert abs(top - other_top) >= rows or abs(left - other_left) >= columns


def test_ranges_are_of_the_values_before_they_are_clipped() -> None:
    output = torch.tensor([[[[-0.1, 0.5]], [[0.25, 1.5]], [[0.0, 1.0]]]])
    found = Range.of(output, 1.0)
    assert (found.lowest, found.highest) == pytest.approx((-25.5, 382.5))
    assert found.clipped == pytest.approx(2 / 6)
    assert found.means == pytest.approx((51.0, 223.125, 127.5))
    assert Range.of(output * 255, 255.0).means == pytest.approx(found.means)


def test_patches_come_worst_first_with_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "MOST_PATCHES", 3)
    watch = Watch(Degradation("bicubic", scale=2), 1.0)
    pairs = [pair("a" * n) for n in range(1, 6)]
    for one in pairs:
        watch.first("set", one, torch.full((1, 3, 40, 40), 0.5))
    for number, one in enumerate(pairs):
        watch.second("set", one, torch.full((1, 3, 40, 40), 0.5 + 0.1 * ((number * 2) % 5)))
    result = watch.result()
    assert [patch.picture for patch in result.patches] == ["aaa", "aaaaa", "aa"]
    assert [tone.picture for tone in result.tones] == [one.name for one in pairs]
    assert result.tones[2].shift == pytest.approx((102.0,) * 3, abs=1e-3)
    best = result.patches[0]
    assert best.layers.truth.shape == best.layers.plain.shape == (40, 40, 3)
    assert np.array_equal(best.layers.truth, pairs[2].hr)
    assert (best.layers.first == 128).all()
    assert best.error == pytest.approx((best.layers.second[0, 0, 0] - 128.0) ** 2)
    mse = np.mean((best.layers.truth.astype(float) - best.layers.second) ** 2)
    assert best.psnr("second") == pytest.approx(10 * np.log10(255**2 / mse))


def test_memory_is_bounded_and_what_is_left_out_is_counted() -> None:
    watch = Watch(Degradation("bicubic", scale=2), 1.0, memory=2 * 3 * 40 * 40)
    pairs = [pair("a" * n) for n in range(1, 5)]
    for see in (watch.first, watch.second):
        for one in pairs:
            see("set", one, torch.rand(1, 3, 40, 40))
    result = watch.result()
    assert {patch.picture for patch in result.patches} == {"a", "aa"}
    assert result.skipped == 2
    assert len(result.tones) == 4


def test_equal_errors_keep_the_order_of_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "MOST_PATCHES", 2)
    watch = Watch(Degradation("noise", sigma=5), 1.0)
    pairs = [pair("a" * n, scale=1) for n in range(1, 5)]
    for value, see in ((0.25, watch.first), (0.75, watch.second)):
        for one in pairs:
            see("set", one, torch.full((1, 3, 40, 40), value))
    assert [patch.picture for patch in watch.result().patches] == ["a", "aa"]


def test_processes_see_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where patches of two processes have equal errors, and where one has more of the worst patches."""
    monkeypatch.setattr(contrast, "MOST_PATCHES", 3)
    pairs = [pair("a" * n) for n in range(1, 7)]
    values = [0.6, 0.9, 0.9, 0.8, 0.9, 0.7]

    def seen(indices: Iterable[int]) -> Contrast:
        watch = Watch(Degradation("bicubic", scale=2), 1.0)
        for index in indices:
            watch.first("set", pairs[index], torch.full((1, 3, 40, 40), 0.5))
        for index in indices:
            watch.second("set", pairs[index], torch.full((1, 3, 40, 40), values[index]))
        return watch.result()

    whole = seen(range(6))
    score = Score(1.0, 1.0, 1.0)
    scores = [SetScore("set", score, {one.name: score for one in pairs})]
    joined = joined_contrast([seen([1, 2, 5]), seen([0, 3, 4])], scores)
    assert [patch.picture for patch in joined.patches] == [patch.picture for patch in whole.patches]
    assert joined.tones == whole.tones
    assert joined_contrast([whole], scores) is whole
