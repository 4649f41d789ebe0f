"""What two networks make of the same pictures, side by side: colours, the range of values, and the worst patches.

Promises: memory is bounded, however many pictures there are; the networks are not run for it, since it looks at outputs
that were computed to be scored; the same outputs give the same patches.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fxptq.data.degrade import Degradation
from fxptq.data.resize import imresize
from fxptq.evaluate.metrics import psnr
from fxptq.evaluate.score import SetScore
from fxptq.evaluate.sets import Pair
from fxptq.io.images import to_image

Pixels = npt.NDArray[np.uint8]

SIDE = 192  # pixels of a patch
STRIDE = 16  # pixels between the candidates for a patch
MOST_PATCHES = 12
EACH = 2  # patches of one picture at most
MEMORY = 1 << 28  # bytes for the outputs of the first network


@dataclass(frozen=True)
class Layers:
    """One patch, as every source shows it; each [h, w, C] uint8.

    Attributes:
        first: of the first network.
        second: of the second network.
        truth: of the clean picture.
        plain: of the network's input; enlarged by bicubic interpolation for super-resolution.
    """

    first: Pixels
    second: Pixels
    truth: Pixels
    plain: Pixels


@dataclass(frozen=True)
class Patch:
    """A patch in which the networks differ.

    Attributes:
        benchmark: name of the set.
        picture: name of the picture.
        top: row of its first pixel in the clean picture.
        left: column of its first pixel.
        error: mean squared difference of the two networks in it, in squared levels of 0..255.
        layers: its pixels.
    """

    benchmark: str
    picture: str
    top: int
    left: int
    error: float
    layers: Layers

    def psnr(self, layer: str) -> float:
        """PSNR of a layer against the clean picture within the patch, over all channels, in dB."""
        return psnr(getattr(self.layers, layer), self.layers.truth)


@dataclass(frozen=True)
class Range:
    """The values of a network's output for one picture, before they are clipped, on the scale 0..255.

    Attributes:
        lowest: smallest value.
        highest: largest value.
        clipped: the share of values below 0 or above 255, 0..1.
        means: mean of each channel.
    """

    lowest: float
    highest: float
    clipped: float
    means: tuple[float, ...]

    @classmethod
    def of(cls, output: Tensor, value_range: float) -> Range:
        """Measures an output `[1, C, H, W]` whose white is at `value_range`."""
        levels = output.detach()[0].double().cpu() * (255 / value_range)
        outside = ((levels < 0) | (levels > 255)).double().mean()
        means = tuple(float(mean) for mean in levels.flatten(1).mean(1))
        return cls(float(levels.min()), float(levels.max()), float(outside), means)


@dataclass(frozen=True)
class Tones:
    """Colours and ranges of one picture.

    Attributes:
        benchmark: name of the set.
        picture: name of the picture.
        first: of the first network.
        second: of the second network.
        truth: mean of each channel of the clean picture, on the scale 0..255.
    """

    benchmark: str
    picture: str
    first: Range
    second: Range
    truth: tuple[float, ...]

    @property
    def shift(self) -> tuple[float, ...]:
        """How much lighter the second network makes each channel than the first, in levels of 0..255."""
        return tuple(b - a for a, b in zip(self.first.means, self.second.means, strict=True))


@dataclass(frozen=True)
class Contrast:
    """What was seen.

    Attributes:
        patches: the patches in which the networks differ most, the worst first.
        tones: colours and ranges, one a picture.
        skipped: number of pictures without patches, because memory for their outputs was used up.
    """

    patches: tuple[Patch, ...] = ()
    tones: tuple[Tones, ...] = ()
    skipped: int = 0


NOTHING_SEEN = Contrast()


class Watch:
    """Looks at the outputs of two networks, all of the first before any of the second.

    Args:
        task: the task of the pictures.
        value_range: the value of white in the outputs.
        memory: bytes for the outputs of the first network.
    """

    def __init__(self, task: Degradation, value_range: float, memory: int = MEMORY) -> None:
        self._task, self._white, self._memory = task, value_range, memory
        self._ranges: dict[tuple[str, str], Range] = {}
        self._outputs: dict[tuple[str, str], Pixels] = {}
        self._tones: list[Tones] = []
        self._worst: list[tuple[float, int, Patch]] = []
        self._skipped = self._number = 0

    def first(self, benchmark: str, pair: Pair, output: Tensor) -> None:
        """Takes in what the first network makes of a pair, `[1, C, H, W]`."""
        key = benchmark, pair.name
        self._ranges[key] = Range.of(output, self._white)
        if output.numel() <= self._memory:
            self._memory -= output.numel()
            self._outputs[key] = to_image(output, self._white)

    def second(self, benchmark: str, pair: Pair, output: Tensor) -> None:
        """Takes in what the second network makes of it."""
        key = benchmark, pair.name
        means = tuple(float(mean) for mean in pair.hr.reshape(-1, pair.hr.shape[2]).mean(0))
        self._tones.append(Tones(*key, self._ranges[key], Range.of(output, self._white), means))
        first = self._outputs.pop(key, None)
        if first is None:
            self._skipped += 1
            return
        second, plain = to_image(output, self._white), plain_of(pair, self._task)
        for error, top, left in worst_places(first, second):
            inside = slice(top, top + SIDE), slice(left, left + SIDE)
            layers = Layers(*(np.ascontiguousarray(image[inside]) for image in (first, second, pair.hr, plain)))
            self._add(Patch(*key, top, left, error, layers))

    def result(self) -> Contrast:
        """Everything seen so far."""
        ordered = sorted(self._worst, key=lambda item: (-item[0], -item[1]))
        return Contrast(tuple(patch for _, _, patch in ordered), tuple(self._tones), self._skipped)

    def _add(self, patch: Patch) -> None:
        self._number -= 1  # of equal errors the earlier patch stays, because later numbers are smaller
        heapq.heappush(self._worst, (patch.error, self._number, patch))
        if len(self._worst) > MOST_PATCHES:
            heapq.heappop(self._worst)


def joined_contrast(parts: Sequence[Contrast], scores: Sequence[SetScore]) -> Contrast:
    """What several processes have seen of their shares of the pictures, as one process sees all of them.

    Args:
        parts: one for each process.
        scores: of all pictures, in the order of the sets.
    """
    if len(parts) == 1:
        return parts[0]
    every = [(score.name, name) for score in scores for name in score.images]
    order = {key: number for number, key in enumerate(every)}
    tones = sorted((tone for part in parts for tone in part.tones), key=lambda one: order[one.benchmark, one.picture])
    patches = sorted(
        (patch for part in parts for patch in part.patches),
        key=lambda one: (-one.error, order[one.benchmark, one.picture]),
    )
    return Contrast(tuple(patches[:MOST_PATCHES]), tuple(tones), sum(part.skipped for part in parts))


def worst_places(first: Pixels, second: Pixels, side: int = SIDE, count: int = EACH) -> list[tuple[float, int, int]]:
    """The patches in which two pictures differ most, without overlap, the worst first.

    Args:
        first: `[H, W, C]`.
        second: of the same shape.
        side: height and width of a patch; a smaller picture is one patch.
        count: number of patches at most.

    Returns:
        For each patch the mean squared difference, its top row and its left column.
    """
    squares = ((first.astype(np.float64) - second) ** 2).mean(2)
    height, width = squares.shape
    rows, columns = min(side, height), min(side, width)
    sums = np.pad(squares.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = _starts(height, rows), _starts(width, columns)
    y, x = tops[:, None], lefts[None]
    errors = (sums[y + rows, x + columns] - sums[y, x + columns] - sums[y + rows, x] + sums[y, x]) / (rows * columns)
    found: list[tuple[float, int, int]] = []
    while len(found) < count and np.isfinite(errors).any():
        at = np.unravel_index(np.argmax(errors), errors.shape)
        top, left = int(tops[at[0]]), int(lefts[at[1]])
        found.append((max(0.0, float(errors[at])), top, left))
        errors[(abs(y - top) < rows) & (abs(x - left) < columns)] = -np.inf
    return found


def _starts(length: int, side: int) -> npt.NDArray[np.intp]:
    """Where patches may begin along an axis, the last possible place included."""
    return np.unique(np.append(np.arange(0, length - side + 1, STRIDE), length - side)).astype(np.intp)


def plain_of(pair: Pair, task: Degradation) -> Pixels:
    """The network's input as a picture of the size of the clean one."""
    image = imresize(pair.lr, task.scale) if task.scale > 1 else pair.lr
    height, width = pair.hr.shape[:2]
    return np.clip(np.round(image), 0, 255).astype(np.uint8)[:height, :width]
