"""Bicubic resizing as MATLAB's `imresize` does it: the degradation of every super-resolution benchmark.

Promises: `imresize` reproduces the low-resolution files published for Set5 bit for bit; results do not depend on the
BLAS or the number of threads, because the weighted samples are summed one by one in a fixed order.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fxptq.errors import InputError

Pixel = TypeVar("Pixel", np.uint8, np.float32, np.float64)


def imresize(image: npt.NDArray[Pixel], scale: float) -> npt.NDArray[Pixel]:
    """Resizes by bicubic interpolation, with a wider kernel for shrinking (antialiasing).

    Rows are resized first, then columns, each in float64. A `uint8` image is rounded (half up) and clipped to 0..255
    after each of the two passes, as MATLAB does for its own `uint8` images; floats are neither rounded nor clipped, so
    they may overshoot.

    Args:
        image: `[H, W]` or `[H, W, C]`, uint8 or floating point.
        scale: output size over input size, above 0; the output is `[ceil(H * scale), ceil(W * scale)]`.

    Returns:
        The resized image, in the type of the input.

    Raises:
        InputError: an empty image, another number of axes, another type, or a scale that is not a positive number.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"imresize: the scale is {scale}; expected a number above 0, such as 1/4 or 2")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(
            f"imresize: the image has shape {image.shape}; expected [H, W] or [H, W, C] with at least one pixel"
        )
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"imresize: the image is of type {image.dtype}; expected uint8 or a float type")
    resized = image
    for axis in (0, 1):
        resized = _resize_axis(resized, scale, axis)
    return resized


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, equation 15); zero beyond |x| = 2."""
    distance = np.abs(x)
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance <= 1, near, np.where(distance <= 2, far, 0.0))


def contributions(length: int, scale: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Weights and source positions of each output sample along one axis.

    Args:
        length: samples of the input.
        scale: output size over input size.

    Returns:
        Weights `[out, samples]`, each row summing to 1, and the 0-based positions `[out, samples]` of the input samples
        that they multiply. Positions beyond the ends are mirrored with the edge sample repeated, as often as
        necessary, so that an input of one sample is enough.
    """
    out = math.ceil(length * scale)
    shrink = min(scale, 1.0)
    width = 4.0 / shrink
    # The centre of output sample i, in 0-based input coordinates: pixels are areas, so centres are half a pixel in.
    centre = (np.arange(out) + 0.5) / scale - 0.5
    samples = math.ceil(width) + 2
    positions = np.floor(centre - width / 2).astype(np.intp)[:, None] + np.arange(samples)
    weights = shrink * cubic(shrink * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    periodic = positions % (2 * length)
    positions = np.where(periodic < length, periodic, 2 * length - 1 - periodic)
    used = weights.any(axis=0)
    return weights[:, used], positions[:, used]


def _resize_axis(image: npt.NDArray[Pixel], scale: float, axis: int) -> npt.NDArray[Pixel]:
    weights, positions = contributions(image.shape[axis], scale)
    weight_shape = (-1,) + (1,) * (image.ndim - 1 - axis)
    total = np.zeros((*image.shape[:axis], len(weights), *image.shape[axis + 1 :]))
    for weight, position in zip(weights.T, positions.T, strict=True):
        total += weight.reshape(weight_shape) * np.take(image, position, axis=axis)
    if image.dtype == np.uint8:
        total = np.clip(np.floor(total + 0.5), 0, 255)
    return total.astype(image.dtype)
