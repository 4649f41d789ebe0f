"""PSNR and SSIM as image-restoration papers report them.

Promises: all arithmetic is in float64, and results depend on pixel values alone; every function states the range that
it expects. The `_y` forms are the protocol of super-resolution (luma of BT.601, border cropped); the plain forms serve
denoising (all channels) and grey images; `psnr_b` is for repaired JPEGs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fxptq.errors import InputError

Image = npt.NDArray[np.uint8] | npt.NDArray[np.float32] | npt.NDArray[np.float64]

WINDOW = 11  # side of SSIM's Gaussian window; images must be at least this large after cropping
SIGMA = 1.5
BLOCK = 8  # side of JPEG's blocks


def luma(image: Image) -> npt.NDArray[np.float64]:
    """Converts an image to Y of BT.601 in studio range, not rounded.

    Args:
        image: RGB `[H, W, 3]` in 0..255; a single channel (`[H, W]` or `[H, W, 1]`) is taken to be Y already.

    Returns:
        `[H, W]`, in 16..235 for RGB input.
    """
    _check_layout(image)
    values = image.astype(np.float64)
    if values.ndim == 2:
        return values
    if values.shape[2] == 1:
        return values[:, :, 0]
    red, green, blue = values[:, :, 0], values[:, :, 1], values[:, :, 2]
    return (65.481 * red + 128.553 * green + 24.966 * blue) / 255.0 + 16.0


def psnr(restored: Image, truth: Image, crop: int = 0, peak: float = 255.0) -> float:
    """Computes the peak signal-to-noise ratio over all channels together, in dB.

    Args:
        restored: `[H, W]` or `[H, W, C]`, in 0..peak.
        truth: the same shape and range.
        crop: pixels left out on every side.
        peak: the largest value a pixel can have.

    Returns:
        `10 log10(peak^2 / MSE)`; infinity for equal images.

    Raises:
        InputError: shapes differ, or nothing is left after cropping.
    """
    first, second = _prepare(restored, truth, crop, smallest=1)
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else 10.0 * math.log10(peak * peak / error)


def ssim(restored: Image, truth: Image, crop: int = 0, peak: float = 255.0) -> float:
    """Computes the structural similarity, averaged over positions and channels.

    The window is an 11x11 Gaussian with sigma 1.5; only windows that lie inside the image count; K1 = 0.01, K2 = 0.03
    (Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, equation 13).

    Args:
        restored: `[H, W]` or `[H, W, C]`, in 0..peak, at least 11x11 after cropping.
        truth: the same shape and range.
        crop: pixels left out on every side.
        peak: the largest value a pixel can have.

    Returns:
        At most 1; equal images have 1.

    Raises:
        InputError: shapes differ, or less than 11x11 pixels are left after cropping.
    """
    x, y = _prepare(restored, truth, crop, smallest=WINDOW)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float(np.mean(luminance * structure))


def psnr_y(restored: Image, truth: Image, crop: int) -> float:
    """Computes the PSNR of the luma, in dB, with peak 255, as papers do although luma ends at 235.

    Args:
        restored: RGB `[H, W, 3]` (or one channel) in 0..255, already rounded to whole levels.
        truth: the same shape and range.
        crop: pixels left out on every side: the scale for super-resolution, else 0.
    """
    _same_shape(restored, truth)
    return psnr(luma(restored), luma(truth), crop)


def ssim_y(restored: Image, truth: Image, crop: int) -> float:
    """Computes the SSIM of the luma with peak 255; the arguments are as for `psnr_y`."""
    _same_shape(restored, truth)
    return ssim(luma(restored), luma(truth), crop)


def psnr_b(restored: Image, truth: Image) -> float:
    """Computes the PSNR of the luma with a penalty for visible 8x8 blocks, in dB.

    Where steps at the borders of blocks are larger than steps elsewhere, their difference times
    log2(8) / log2(min(H, W)) is added to the mean squared error (Yim and Bovik, "Quality assessment of deblocked
    images", 2011, equations 4-9).

    Args:
        restored: RGB `[H, W, 3]` (or one channel) in 0..255, its blocks beginning at the upper left corner, at least
            9x9.
        truth: the same shape and range.

    Returns:
        At most `psnr_y` without a crop; infinity for equal images without blocks.

    Raises:
        InputError: shapes differ, or the images hold no border of blocks.
    """
    _same_shape(restored, truth)
    first, second = _prepare(luma(restored), luma(truth), 0, smallest=BLOCK + 1)
    at_borders, elsewhere = (np.concatenate(steps) for steps in zip(_steps(first), _steps(first.T), strict=True))
    blockiness = float(at_borders.mean() - elsewhere.mean())
    error = float(np.mean((first - second) ** 2))
    if blockiness > 0:
        error += blockiness * math.log2(BLOCK) / math.log2(min(first.shape))
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)


def _steps(image: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Squared differences of neighbours in a row: the differences across borders of blocks, and all others."""
    squares = np.diff(image, axis=1) ** 2
    border = np.arange(1, image.shape[1]) % BLOCK == 0
    return squares[:, border].ravel(), squares[:, ~border].ravel()


def _blur(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian mean at every position where the window fits: `[H, W, ...]` to `[H - 10, W - 10, ...]`."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = image.shape[0] - WINDOW + 1, image.shape[1] - WINDOW + 1
    rows = np.zeros((height, *image.shape[1:]))
    for i, weight in enumerate(weights):
        rows += weight * image[i : i + height]
    result = np.zeros((height, width, *image.shape[2:]))
    for i, weight in enumerate(weights):
        result += weight * rows[:, i : i + width]
    return result


def _prepare(
    restored: Image, truth: Image, crop: int, smallest: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    _same_shape(restored, truth)
    _check_layout(truth)
    height, width = truth.shape[0] - 2 * crop, truth.shape[1] - 2 * crop
    if crop < 0 or min(height, width) < smallest:
        raise InputError(
            f"the image is {truth.shape[1]}x{truth.shape[0]}; with {crop} pixels cropped at each side, "
            f"at least {smallest + 2 * max(crop, 0)} pixels each way are needed to score it"
        )
    inside = (slice(crop, crop + height), slice(crop, crop + width))
    return restored[inside].astype(np.float64), truth[inside].astype(np.float64)


def _same_shape(restored: Image, truth: Image) -> None:
    if restored.shape != truth.shape:
        raise InputError(f"the images to compare differ in shape: {restored.shape} and {truth.shape}")


def _check_layout(image: Image) -> None:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise InputError(f"an image of shape {image.shape} cannot be scored; expected [H, W], [H, W, 1] or [H, W, 3]")
