"""Pictures made from a seed alone, with statistics that resemble the statistics of photographs.

A network can be calibrated on such pictures when no photograph is at hand. A picture is a dead-leaves scene (Lee,
Mumford and Huang, "Occlusion models for natural images", 2001): opaque shapes at random places, of sizes distributed as
r^-3, hide each other; each is lit by a gradient, carries a 1/f^a texture and may carry stripes or writing. Light,
contrast, colour and noise vary from picture to picture as among photographs (benchmarks/synthetic_statistics.py prints
the comparison).
Promises: the same generator state gives the same picture; the generator needs numpy alone, and some 30 ms for 256x256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fxptq.data.shapes import NUMBERS, OUTLINES, Plane, writing

SMALLEST, LARGEST = 2.5, 250.0  # radii of the shapes, in pixels
TILE = 256  # side of the periodic textures


@dataclass(frozen=True)
class Style:
    """The properties that all shapes of one picture share; each picture draws its own style.

    Attributes:
        brightness, contrast: mean and standard deviation of the luminance, in levels of 255.
        cover: total area of the shapes over the area of the picture.
        smallest: radius of the smallest shapes, in pixels.
        detail: contrast of the textures relative to the luminance they lie on.
        tint, tints: mean and spread of the chromaticity over the shapes, along (red - blue, magenta - green).
        blur: width of a typical edge, in pixels.
        noise: standard deviation of the sensor noise at mid grey, in levels.
    """

    brightness: float
    contrast: float
    cover: float
    smallest: float
    detail: float
    tint: tuple[float, float]
    tints: tuple[float, float]
    blur: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Style:
        """Draws a style; styles are distributed as the properties of photographs are."""
        return cls(
            brightness=float(np.clip(rng.normal(112, 28), 45, 190)),
            contrast=float(np.clip(rng.lognormal(np.log(47), 0.35), 15, 90)),
            cover=float(rng.uniform(0.8, 2.0)),
            smallest=float(SMALLEST * rng.lognormal(0.9, 0.5)),
            detail=float(rng.lognormal(np.log(0.18), 0.45)),
            tint=(float(rng.normal(0.09, 0.10)), float(rng.normal(-0.03, 0.03))),
            tints=(float(rng.lognormal(np.log(0.15), 0.5)), float(rng.lognormal(np.log(0.035), 0.6))),
            blur=float(1 + rng.exponential(0.5)),
            noise=float(rng.exponential(1.2)),
        )


class Leaf(NamedTuple):
    """One opaque shape: its position, its outline and its surface."""

    row: float
    column: float
    radius: float
    angle: float
    softness: float
    form: int
    numbers: list[float]
    luminance: float
    light: list[float]
    detail: float
    texture: int
    offset: list[int]
    tint: list[float]
    pattern: float


def synthetic_image(height: int, width: int, channels: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Makes one picture.

    Args:
        height: in pixels.
        width: in pixels.
        channels: 3 for RGB, 1 for the luminance alone.
        rng: source of all random numbers.

    Returns:
        `[height, width, channels]` uint8.
    """
    style = Style.draw(rng)
    textures = [np.pad(texture(rng), ((0, max(height, TILE)), (0, max(width, TILE))), mode="wrap") for _ in range(3)]
    # Three planes: luminance, and chromaticity along red - blue and along magenta - green.
    scene = np.zeros((3, height, width), np.float32)
    for leaf in leaves(height, width, style, rng):
        _paint(scene, leaf, textures, rng)
    return _develop(scene, style, channels, rng)


def sheet(seed: int, rows: int = 3, columns: int = 6, size: int = 256) -> npt.NDArray[np.uint8]:
    """Draws a contact sheet of `rows` by `columns` colour pictures of `size` by `size`, edge to edge, `[H, W, 3]`."""
    pictures = [synthetic_image(size, size, 3, np.random.default_rng([seed, i])) for i in range(rows * columns)]
    return np.concatenate([np.concatenate(pictures[row * columns :][:columns], axis=1) for row in range(rows)])


def leaves(height: int, width: int, style: Style, rng: np.random.Generator) -> list[Leaf]:
    """Draws the shapes of a scene from the back to the front; the first covers the whole scene.

    The picture is a window on an endless plane: the density of radii is r^-3, and a shape of radius r touches the
    window if its centre lies within r of it.
    """
    radii = np.geomspace(style.smallest, LARGEST, 64)
    touching = (height + 2 * radii) * (width + 2 * radii)
    odds = radii**-2 * touching  # one power less than r^-3: the radii are spaced evenly in log r
    odds /= odds.sum()
    covered = float(np.sum(odds * np.pi / 2 * radii**2 * height * width / touching))
    # The background comes first; the limit keeps pictures of very small shapes from taking long.
    limit = 160 * max(1.0, height * width / 256**2)
    count = 1 + int(np.clip(style.cover * height * width / covered, 4, limit))
    radius = rng.choice(radii, count, p=odds)
    centre = rng.random((2, count)) * (np.array([[height], [width]]) + 2 * radius) - radius
    upright = rng.choice([0.0, np.pi / 2], count) + 0.03 * rng.standard_normal(count)
    angle = np.where(rng.random(count) < 0.4, upright, rng.uniform(0, np.pi, count))
    form = rng.integers(0, len(OUTLINES), count)
    # The background is a disk that reaches over every corner.
    radius[0], centre[:, 0], form[0] = 2.6 * max(height, width), (height / 2, width / 2), 0
    tints = np.array(style.tint) + np.array(style.tints) * rng.standard_normal((count, 2))
    columns = (
        centre[0],
        centre[1],
        radius,
        angle,
        style.blur * (1 + rng.exponential(0.02, count) * np.minimum(radius, 100)),
        form,
        rng.random((count, NUMBERS)),
        rng.lognormal(0, 0.42, count),
        rng.normal(0, 0.25, (count, 3)),
        style.detail * rng.lognormal(-0.2, 0.7, count),
        rng.integers(0, 3, count),
        rng.integers(0, TILE, (count, 2)),
        tints,
        rng.random(count),
    )
    return [Leaf(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def texture(rng: np.random.Generator) -> Plane:
    """Draws a periodic random field of zero mean and unit variance, with amplitude near 1/f^a, blurred as by a lens.

    Some fields are stretched along one direction, as grass or cloth is; some have sparse, strong detail; some fall into
    patches with borders, as foliage does.

    Returns:
        `[TILE, TILE]`.
    """
    kind = rng.choice(["plain", "sparse", "patches"])
    exponent = rng.uniform(0.95, 1.6) if kind == "patches" else rng.uniform(0.4, 1.5)
    angle, stretch = rng.uniform(0, np.pi), 1 + rng.exponential(0.8)
    across = np.fft.fftfreq(TILE).astype(np.float32)[:, None]
    along = np.fft.rfftfreq(TILE).astype(np.float32)[None, :]
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    square = ((cos * along + sin * across) * stretch) ** 2 + (cos * across - sin * along) ** 2
    square[0, 0] = np.inf
    lens = np.exp(-4 * (across * across + along * along))
    white = rng.standard_normal((2, *square.shape), dtype=np.float32)
    field: Plane = np.fft.irfft2((white[0] + 1j * white[1]) * lens * square ** (-exponent / 2), s=(TILE, TILE))
    field /= field.std()
    if kind == "sparse":
        field *= np.abs(field)
    elif kind == "patches":
        field = np.tanh(4 * field - 2) + np.tanh(4 * field + 3)
        field -= field.mean()
    field /= field.std()
    return field


def _paint(scene: npt.NDArray[np.float32], leaf: Leaf, textures: list[Plane], rng: np.random.Generator) -> None:
    """Paints one shape over the scene: its luminance with light, texture, stripes or writing, and its colour."""
    _, height, width = scene.shape
    reach = leaf.radius + leaf.softness
    top, bottom = max(0, int(leaf.row - reach)), min(height, int(leaf.row + reach) + 2)
    left, right = max(0, int(leaf.column - reach)), min(width, int(leaf.column + reach) + 2)
    if top >= bottom or left >= right:
        return
    rows = (np.arange(top, bottom, dtype=np.float32)[:, None] - leaf.row) / leaf.radius
    columns = (np.arange(left, right, dtype=np.float32) - leaf.column) / leaf.radius
    cos, sin = float(np.cos(leaf.angle)), float(np.sin(leaf.angle))
    u, v = cos * columns + sin * rows, cos * rows - sin * columns
    cover = np.clip(0.5 - OUTLINES[leaf.form](u, v, leaf.numbers) * (leaf.radius / leaf.softness), 0, 1)

    y, x = leaf.offset
    surface = leaf.detail * textures[leaf.texture][y : y + bottom - top, x : x + right - left]
    surface += 1 + leaf.light[0] * u + (leaf.light[1] + leaf.light[2] * v) * v
    if leaf.pattern < 0.06:
        surface += (1 - 10 * leaf.pattern) * np.clip(4 * np.sin((10 + 500 * leaf.pattern) * v), -1, 1)
    elif leaf.pattern < 0.12 and min(surface.shape) > 24:
        ink = -0.8 if leaf.pattern < 0.09 else 1.5
        surface += ink * writing(bottom - top, right - left, int(rng.integers(9, 28)), rng)
    luminance = leaf.luminance * np.maximum(surface, 0.02)
    for plane, value in zip(scene, (luminance, *leaf.tint), strict=True):
        background = plane[top:bottom, left:right]
        background += cover * (value - background)


def _develop(
    scene: npt.NDArray[np.float32], style: Style, channels: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Turns a scene into a picture of the style's brightness, contrast and noise, rounded to 8-bit levels."""
    luminance, warm, magenta = scene
    tone = np.sqrt(luminance)
    tone -= tone.mean()
    tone *= np.float32(style.contrast) / max(tone.std(), np.float32(1e-3))
    tone += np.float32(style.brightness)
    tone = _soft_positive(tone, 30)
    tone = 255 - _soft_positive(255 - tone, 15)
    if channels == 1:
        picture = tone[:, :, None]
    else:
        picture = np.stack([1 + warm + magenta, 1 - 2 * magenta, 1 - warm + magenta], axis=2) * tone[:, :, None]
    noise = np.sqrt(np.maximum(tone, 0) / 128 + np.float32(0.1)) * np.float32(style.noise)
    picture += noise[:, :, None] * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _soft_positive(x: Plane, knee: float) -> Plane:
    """Returns max(x, 0) with its corner rounded over about `knee`, as film rounds shadows and highlights."""
    rounded: Plane = (x + np.sqrt(x * x + knee * knee)) / 2
    return rounded
