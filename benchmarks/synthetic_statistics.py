"""Compares the generated calibration pictures with photographs, statistic by statistic.

    python benchmarks/synthetic_statistics.py FOLDER [--count 100] [--size 256]

FOLDER holds photographs; a random crop of each is measured. Each row gives the 10 %, 50 % and 90 % quantiles over the
pictures, and the distance of the synthetic median from the photographs' median in units of half their 10-90 % spread.
Within +-1, the median picture is an ordinary photograph in that respect.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from fxptq.data.synthetic import synthetic_image
from fxptq.io.images import list_images, read_image

Array = npt.NDArray[np.float64]


def luma(picture: Array) -> Array:
    return picture @ np.array([0.299, 0.587, 0.114])


def gradients(picture: Array) -> Array:
    grey = luma(picture)
    return np.concatenate([np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()])


def kurtosis(values: Array) -> float:
    centred = values - values.mean()
    return float(np.mean(centred**4) / max(np.mean(centred**2) ** 2, 1e-12))


def laplacian(picture: Array) -> Array:
    grey = luma(picture)
    inner = grey[1:-1, 1:-1]
    return 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]


def spectrum_exponent(picture: Array) -> float:
    """Fits the exponent a of power ~ 1/f^a to the radial mean between 0.02 and 0.4 cycles per pixel."""
    grey = luma(picture)
    height, width = grey.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    edges = np.geomspace(0.02, 0.4, 16)
    which = np.digitize(radius, edges)
    centres = np.sqrt(edges[1:] * edges[:-1])
    means = np.array([power[which == i].mean() for i in range(1, len(edges))])
    return float(-np.polyfit(np.log(centres), np.log(means + 1e-9), 1)[0])


def correlation(first: int, second: int) -> Callable[[Array], float]:
    def measure(picture: Array) -> float:
        a, b = picture[..., first].ravel(), picture[..., second].ravel()
        return float(np.corrcoef(a, b)[0, 1]) if a.std() * b.std() > 0 else 1.0

    return measure


def saturation(picture: Array) -> float:
    largest = picture.max(axis=2)
    return float(np.mean((largest - picture.min(axis=2)) / np.maximum(largest, 1)))


def local_contrast_spread(picture: Array) -> float:
    """Computes the standard deviation over 8x8 blocks of log2 of their contrast, the uneven spread of detail."""
    grey = luma(picture)
    height, width = grey.shape[0] // 8 * 8, grey.shape[1] // 8 * 8
    blocks = grey[:height, :width].reshape(height // 8, 8, width // 8, 8).std(axis=(1, 3))
    return float(np.log2(blocks + 1).std())


STATISTICS: dict[str, Callable[[Array], float]] = {
    "luma mean": lambda p: float(luma(p).mean()),
    "luma standard deviation": lambda p: float(luma(p).std()),
    "dark pixels (< 16), %": lambda p: 100 * float((luma(p) < 16).mean()),
    "bright pixels (> 239), %": lambda p: 100 * float((luma(p) > 239).mean()),
    "gradient rms": lambda p: float(gradients(p).std()),
    "gradient kurtosis": lambda p: kurtosis(gradients(p)),
    "flat gradients (< 2 levels), %": lambda p: 100 * float((np.abs(gradients(p)) < 2).mean()),
    "steep gradients (> 40 levels), %": lambda p: 100 * float((np.abs(gradients(p)) > 40).mean()),
    "Laplacian rms": lambda p: float(laplacian(p).std()),
    "Laplacian kurtosis": lambda p: kurtosis(laplacian(p)),
    "local contrast spread, octaves": local_contrast_spread,
    "power spectrum exponent": spectrum_exponent,
    "correlation R-G": correlation(0, 1),
    "correlation G-B": correlation(1, 2),
    "correlation R-B": correlation(0, 2),
    "saturation": saturation,
    "R - B mean": lambda p: float((p[..., 0] - p[..., 2]).mean()),
}


def photographs(folder: Path, count: int, size: int) -> Iterator[Array]:
    rng = np.random.default_rng(0)
    for file in list_images(folder)[:count]:
        image = read_image(file)
        top, left = (int(rng.integers(0, max(side - size, 0) + 1)) for side in image.shape[:2])
        yield image[top : top + size, left : left + size].astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    real = list(photographs(options.folder, options.count, options.size))
    start = time.perf_counter()
    synthetic = [
        synthetic_image(options.size, options.size, 3, np.random.default_rng([0, i])).astype(np.float64)
        for i in range(options.count)
    ]
    milliseconds = 1000 * (time.perf_counter() - start) / options.count
    table = Table(
        title=f"{options.count} pictures of {options.size}x{options.size}, {milliseconds:.1f} ms each to make"
    )
    for heading in ("statistic", "photographs 10/50/90 %", "synthetic 10/50/90 %", "distance"):
        table.add_column(heading, justify="left" if heading == "statistic" else "right")
    for name, measure in STATISTICS.items():
        p, s = (np.quantile([measure(x) for x in pictures], [0.1, 0.5, 0.9]) for pictures in (real, synthetic))
        distance = (s[1] - p[1]) / max((p[2] - p[0]) / 2, 1e-9)
        table.add_row(name, *(" ".join(f"{v:8.2f}" for v in q) for q in (p, s)), f"{distance:+.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
