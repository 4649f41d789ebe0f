"""Faults that the eye sees and PSNR does not: a mesh of sub-pixel phases, a shift of colours, bands in gradients.

Every figure compares a restored picture with a reference, which may be the ground truth or the picture of the float
network. Arrays are `[..., H, W, C]`, not rounded; figures have the unit of the arrays, levels if those are in 0..255.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fxptq.errors import InputError

Floats = npt.NDArray[np.float64]


def phase_errors(restored: Floats, reference: Floats, period: int) -> Floats:
    """Computes the mean error at each sub-pixel phase: at all pixels whose row and column leave the same remainders.

    A network that enlarges by a pixel shuffle makes each phase by channels of its own, whose mean errors differ.

    Args:
        restored: [..., H, W, C].
        reference: of the same shape.
        period: the number of phases each way, such as the scale; at least 1.

    Returns:
        [period, period, C].

    Raises:
        InputError: shapes differ, or a picture is smaller than the period.
    """
    error = _difference(restored, reference)
    height, width, channels = error.shape[-3:]
    rows, columns = height // period, width // period
    if min(rows, columns) < 1:
        raise InputError(f"a picture of {width}x{height} has no {period}x{period} phases")
    whole = error[..., : rows * period, : columns * period, :]
    blocks = whole.reshape(-1, rows, period, columns, period, channels)
    means: Floats = blocks.mean((0, 1, 3))
    return means


def mesh(restored: Floats, reference: Floats, period: int) -> float:
    """Computes the peak-to-peak difference of `phase_errors`, of the channel where it is largest.

    Smooth areas show it as a faint regular pattern from about one level on.
    """
    phases = phase_errors(restored, reference, period)
    return float(np.ptp(phases, axis=(0, 1)).max())


def colour_shift(restored: Floats, reference: Floats) -> Floats:
    """Computes the mean error of each channel, [C]."""
    error = _difference(restored, reference)
    means: Floats = error.reshape(-1, error.shape[-1]).mean(0)
    return means


def banding(restored: Floats, reference: Floats, period: int = 1) -> float:
    """Computes the largest step of the error along the width, of the channel where it is largest.

    For pictures of a gradient along the width, errors are means over columns, and over `period` neighbouring columns,
    so that a mesh is no band. A network whose codes follow a gradient in steps gives a saw tooth, whose jumps are
    bands.

    Args:
        restored: [..., H, W, C], W at least twice the period.
        reference: of the same shape, such as the float network's picture.
        period: see `phase_errors`.

    Raises:
        InputError: shapes differ, or a picture is too narrow.
    """
    error = _difference(restored, reference)
    width, channels = error.shape[-2:]
    columns = width // period
    if columns < 2:
        raise InputError(f"a picture of width {width} has no two columns of {period} pixels")
    whole = error.reshape(-1, width, channels)[:, : columns * period]
    profile = whole.reshape(-1, columns, period, channels).mean((0, 2))
    return float(np.abs(np.diff(profile, axis=0)).max())


def _difference(restored: Floats, reference: Floats) -> Floats:
    if restored.shape != reference.shape or restored.ndim < 3:
        raise InputError(f"the pictures to compare are [..., H, W, C], not {restored.shape} and {reference.shape}")
    difference: Floats = restored.astype(np.float64) - reference.astype(np.float64)
    return difference
