"""The outlines that synthetic pictures are made of, and lines of writing.

An outline is a function of the position, in units of the shape's radius, and of a few uniform random numbers, so that a
shape can be drawn at any size and place. Promises: an outline is negative inside the shape and grows outwards with a
slope near 1; the shape lies within the circle of radius 1, except for its soft edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.floating[Any]]
Outline = Callable[[Plane, Plane, Sequence[float]], Plane]


def ellipse(u: Plane, v: Plane, numbers: Sequence[float]) -> Plane:
    """An ellipse with the half axes 1 and 1 / aspect, and an aspect of 1 to 2.5."""
    aspect = 1 + 1.5 * numbers[0]
    distance: Plane = np.hypot(u, v * aspect)
    return (distance - 1) / aspect


def blob(u: Plane, v: Plane, numbers: Sequence[float]) -> Plane:
    """A disk whose rim waves two, three and five times around: leaves, stones, clouds."""
    angle = np.arctan2(v, u)
    rim = 0.75 + 0.12 * numbers[0] * np.cos(2 * angle + 6.3 * numbers[1])
    rim += 0.08 * numbers[2] * np.cos(3 * angle + 6.3 * numbers[3])
    rim += 0.05 * numbers[4] * np.cos(5 * angle + 6.3 * numbers[5])
    return np.hypot(u, v) - rim


def rectangle(u: Plane, v: Plane, numbers: Sequence[float]) -> Plane:
    """A rectangle inscribed in the circle of radius 1, with a half height of 0.2 to 0.7."""
    half = 0.2 + 0.5 * numbers[0]
    return np.maximum(np.abs(u) - float(np.sqrt(1 - half * half)), np.abs(v) - half)


def bar(u: Plane, v: Plane, numbers: Sequence[float]) -> Plane:
    """A long, thin and slightly bent bar: branches, wires, window frames."""
    half = 0.02 + 0.1 * numbers[0] ** 2
    return np.maximum(np.abs(u) - 0.95, np.abs(v - (0.3 * numbers[1] - 0.15) * u * u) - half)


def polygon(u: Plane, v: Plane, numbers: Sequence[float]) -> Plane:
    """A convex polygon with three to five sides; the circle cuts corners that would reach beyond it."""
    sides = 3 + int(3 * numbers[0])
    edges: list[Plane] = [np.hypot(u, v) - 1]
    for side in range(sides):
        angle = (side + 0.6 * numbers[side + 1] - 0.3) * 2 * np.pi / sides
        distance = 0.45 + (0.3 * numbers[5 - side] if sides > 3 else 0.0)
        edges.append(float(np.cos(angle)) * u + float(np.sin(angle)) * v - distance)
    return np.asarray(np.maximum.reduce(edges))


OUTLINES: tuple[Outline, ...] = (ellipse, blob, rectangle, bar, polygon)
NUMBERS = 6  # random numbers an outline may use


def writing(height: int, width: int, cell: int, rng: np.random.Generator) -> Plane:
    """Draws lines of text-like strokes: an alphabet of random glyphs, set in lines.

    Args:
        height: of the mask, in pixels.
        width: of the mask, in pixels.
        cell: height of a line, in pixels, 8 or more.
        rng: source of the alphabet and of the text.

    Returns:
        Cover, 0..1, `[height, width]`.
    """
    advance = round(cell * 0.55)
    rows, columns = np.arange(cell, dtype=np.float32)[:, None], np.arange(advance, dtype=np.float32)
    thickness = max(0.6, cell * float(rng.uniform(0.05, 0.11)))
    alphabet = np.zeros((10, cell, advance), np.float32)
    for glyph in alphabet[2:]:  # the first two are spaces
        for _ in range(rng.integers(2, 5)):
            # Strokes run between the points of a 3x3 grid, as the strokes of most scripts nearly do.
            (x0, y0), (x1, y1) = rng.permutation(_ANCHORS)[:2] * (advance - 1, cell - 1)
            dx, dy = float(x1 - x0), float(y1 - y0)
            along = np.clip(((columns - float(x0)) * dx + (rows - float(y0)) * dy) / (dx * dx + dy * dy), 0, 1)
            distance = np.hypot(columns - float(x0) - along * dx, rows - float(y0) - along * dy)
            np.maximum(glyph, np.clip(thickness + 0.5 - distance, 0, 1), out=glyph)
    lines, letters = -(-height // cell), -(-width // advance)
    text = alphabet[rng.integers(0, len(alphabet), (lines, letters))]
    return text.transpose(0, 2, 1, 3).reshape(lines * cell, letters * advance)[:height, :width]


_ANCHORS = np.array([(x, y) for x in (0.2, 0.5, 0.8) for y in (0.1, 0.45, 0.8)])
