"""Figures of artefacts on pictures whose faults were put in by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fxptq.errors import InputError
from fxptq.evaluate.artifacts import banding, colour_shift, mesh, phase_errors

RNG = np.random.default_rng(0)
CLEAN = RNG.uniform(0, 255, (2, 30, 41, 3))
TINTED = CLEAN + np.array([4.0, 0.0, -1.0])


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_each_phase_has_the_mean_of_its_own_pixels(period: int) -> None:
    restored = CLEAN + RNG.normal(0, 3, CLEAN.shape)
    found = phase_errors(restored, CLEAN, period)
    assert found.shape == (period, period, 3)
    whole = (restored - CLEAN)[:, : 30 // period * period, : 41 // period * period]
    for row in range(period):
        for column in range(period):
            assert found[row, column] == pytest.approx(whole[:, row::period, column::period].mean((0, 1, 2)))


def test_a_mesh_has_the_height_that_was_put_in_and_a_shift_of_colours_has_none() -> None:
    pattern = np.zeros((4, 4, 3))
    pattern[1, 2, 1], pattern[3, 0, 1] = 2.5, -0.5
    restored = CLEAN[:, :28, :40] + np.tile(pattern, (7, 10, 1)) + [4.0, 0.0, -1.0]
    assert mesh(restored, CLEAN[:, :28, :40], 4) == pytest.approx(3.0)
    assert mesh(TINTED, CLEAN, 4) == pytest.approx(0.0, abs=1e-9)
    assert colour_shift(TINTED, CLEAN) == pytest.approx([4.0, 0.0, -1.0])


def test_bands_are_the_steps_of_a_gradient_whatever_its_mesh() -> None:
    ramp = np.broadcast_to(np.linspace(20, 230, 64)[None, :, None], (16, 64, 3))
    assert banding(ramp + 5, ramp) == pytest.approx(0)
    step = np.where(np.arange(64) < 30, 0.0, 6.0)[None, :, None]
    assert banding(ramp + step, ramp) == pytest.approx(6)
    meshed = ramp + np.tile([0.0, 8.0], 32)[None, :, None]
    assert banding(meshed, ramp) == pytest.approx(8)
    assert banding(meshed, ramp, period=2) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mesh(CLEAN, CLEAN[:, :20], 2), "the pictures to compare"),
        (lambda: phase_errors(CLEAN[0, 0], CLEAN[0, 0], 2), "the pictures to compare"),
        (lambda: phase_errors(CLEAN, CLEAN, 31), "a picture of 41x30 has no 31x31 phases"),
        (lambda: banding(CLEAN, CLEAN, 21), "no two columns of 21 pixels"),
    ],
    ids=["shapes", "layout", "phases", "columns"],
)
def test_pictures_that_cannot_be_compared_are_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
