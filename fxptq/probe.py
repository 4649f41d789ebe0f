"""Finds the pictures that a network takes and gives by trying, in a bounded number of runs on small pictures.

A network that fails on a picture does not take it; the kind of the error does not matter. Promises: the network is
never changed, and every answer was seen on at least one picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.data.synthetic import synthetic_image
from fxptq.errors import InputError
from fxptq.formats import PictureFormat
from fxptq.graph.outputs import PictureOutput, described, trained_output
from fxptq.graph.places import first_line
from fxptq.graph.verify import run_network
from fxptq.io.images import to_tensor
from fxptq.sizes import Size, Sizes

SIDES = (64, 48, 128, 56, 80, 72, 32, 256, 224, 16)
"""Sides of square pictures to begin with, so that one is a multiple of every usual window."""

CHANNELS = (3, 1)
FAR = 16
"""Up to this multiple a size three steps larger is tried, too, because one step may not meet paddings and halvings."""

NONSENSE, SENSE = 0.1, 0.5
"""A network takes 0..255 if its output on 0..1 is further than `NONSENSE` from the enlarged picture, in units of white,
and its output on 0..255 is nearer than that and nearer by the factor `SENSE`."""


@dataclass(frozen=True)
class Taken:
    """A picture that a network took.

    Attributes:
        channels: number of channels of the picture.
        size: height and width of the picture.
        output: the position of the restored picture in the output, and its scale; the scale is 0 if there is none.
        finite: whether all values of the restored picture were finite.
        restored: the restored picture, on the CPU.
    """

    channels: int
    size: Size
    output: PictureOutput
    finite: bool
    restored: Tensor


@cache
def _generated() -> Tensor:
    """A generated picture, [1, 3, 128, 128], 0..1; larger ones continue it by reflection."""
    return to_tensor(synthetic_image(128, 128, 3, np.random.default_rng(0)))


class Trials:
    """Runs a network on pictures to find the pictures that it takes.

    Args:
        model: the network in evaluation mode; it stays unchanged.
        white: the value of white in the pictures.
        scale: the scale of the restored picture, if it is known.

    Attributes:
        failure: the reason why the network did not take the first picture that it refused.
    """

    def __init__(self, model: nn.Module, white: float = 1.0, scale: int | None = None) -> None:
        weights = (x for x in chain(model.parameters(), model.buffers()) if x.is_floating_point())
        self._like = next(weights, torch.empty(0))
        self._model, self._white, self._scale = model, white, scale
        self.failure = ""

    def picture(self, channels: int, size: Size, batch: int = 1) -> Tensor:
        """A generated picture, [batch, channels, *size], 0..1."""
        x = Sizes(minimum=max(size)).padded(_generated())[:, :, : size[0], : size[1]]
        return x.repeat(batch, -(-channels // 3), 1, 1)[:, :channels]

    def run(self, x: Tensor) -> Any:
        """The network's output for pictures of float32 on the CPU."""
        return run_network(self._model, (x.to(self._like),))

    def take(self, channels: int, size: Size, batch: int = 1) -> Taken | None:
        """Tries one picture, or `batch` equal ones; None if the network does not take it."""
        x = self.picture(channels, size, batch) * self._white
        try:
            output = self.run(x)
            found = trained_output(x, output, self._scale)
        except InputError as error:
            self.failure = self.failure or str(error)
            return None
        except Exception as error:  # noqa: BLE001  # whatever a network raises for a picture that it does not take
            self.failure = self.failure or f"{type(error).__name__}: {first_line(error)}"
            return None
        picture = found.pick(output).detach()
        if len(picture) != batch:
            self.failure = self.failure or f"the network turned {tuple(x.shape)} into {described(output)}"
            return None
        return Taken(channels, size, found, bool(picture.isfinite().all()), picture.float().cpu())


def first_taken(trials: Trials, size: Size | None = None) -> Taken:
    """The first picture that a network takes and restores, of usual sizes and numbers of channels.

    Args:
        trials: runs the network.
        size: the only size to try; None for squares of the usual sides.

    Raises:
        InputError: it takes none.
    """
    for height, width in [(side, side) for side in SIDES] if size is None else [size]:
        for channels in CHANNELS:
            taken = trials.take(channels, (height, width))
            if taken is not None and taken.output.scale:
                return taken
    why = trials.failure or "it returns none"
    if size is not None:
        pixels = f"{size[0]}x{size[1]}"
        raise InputError(f"the network restores no picture of 3 or 1 channels and {pixels} pixels ({why})")
    sides = f"{min(SIDES)} to {max(SIDES)}"
    raise InputError(
        f"the network restores no square picture of 3 or 1 channels and {sides} pixels ({why}); say the height and "
        "width of its input (--size), or describe it in a recipe and give that (--recipe)"
    )


def sizes_of(trials: Trials, known: Taken) -> Sizes:
    """The sizes that a network takes, found around the size of a picture that it takes.

    A size counts if the network runs, its output has the same scale, and it is finite if the known output is.
    """
    small = trials.take(known.channels, (SIDES[0], SIDES[0])) if known.size != (SIDES[0], SIDES[0]) else None
    if small is not None and _alike(small, known):
        found = _sizes_around(trials, small)
        if found.takes(*known.size):
            return found
    return _sizes_around(trials, known)


def _alike(taken: Taken | None, known: Taken) -> bool:
    return taken is not None and taken.output == known.output and (taken.finite or not known.finite)


def _sizes_around(trials: Trials, known: Taken) -> Sizes:
    height, width = known.size

    def takes(rows: int, columns: int) -> bool:
        return _alike(trials.take(known.channels, (rows, columns)), known)

    def steps(by: int) -> bool:
        return takes(height + by, width + by) and (by > FAR or takes(height + 3 * by, width + 3 * by))

    multiple = next(filter(steps, _divisors(math.gcd(height, width))), 0)
    if not multiple:
        return Sizes(fixed=known.size)
    square = height == width and not (takes(height, width + multiple) and takes(height + multiple, width))
    minimum = multiple * _least(
        lambda count: (
            takes(count * multiple, count * multiple) and takes((count + 1) * multiple, (count + 1) * multiple)
        ),
        min(height, width) // multiple,
    )
    return Sizes(multiple, minimum if minimum > multiple else 1, square)


def _least(holds: Callable[[int], bool], most: int) -> int:
    """The least number from 1 on that holds, if all larger ones hold: doubled up to `most`, and halved in between."""
    doublings = (1 << power for power in range(most.bit_length()))
    high = next((number for number in doublings if holds(number)), most)
    low = (1 << (high - 1).bit_length()) // 2  # the largest power of two below it, which does not hold
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)


def takes_batches(trials: Trials, known: Taken) -> bool:
    """Whether the network takes two pictures at once as it takes one."""
    return _alike(trials.take(known.channels, known.size, batch=2), known)


def value_range_of(model: nn.Module, known: Taken) -> float:
    """The value of white in a network's input: 1, unless it restores pictures in 0..255 and no others.

    A restored picture resembles the enlarged input. A network whose outputs resemble no input counts as one in 0..1.
    """
    trials = Trials(model)
    far = {white: _distance(trials, known, white) for white in (1.0, 255.0)}
    return 255.0 if far[1.0] > NONSENSE > far[255.0] and far[255.0] < SENSE * far[1.0] else 1.0


def _distance(trials: Trials, known: Taken, white: float) -> float:
    """The mean distance of the restored picture from the enlarged input, in units of white."""
    x = trials.picture(known.channels, known.size)
    enlarged = F.interpolate(x, scale_factor=float(known.output.scale), mode="bicubic")
    try:
        restored = known.output.pick(trials.run(x * white)).float().cpu() / white
    except Exception:  # noqa: BLE001  # as in `take`
        return math.inf
    if restored.shape != enlarged.shape or not bool(restored.isfinite().all()):
        return math.inf
    return float((restored - enlarged).abs().mean())


def pictures_of(model: nn.Module, known: Taken, white: float | None = None) -> PictureFormat:
    """The pictures that a network takes and gives.

    Args:
        model: the network in evaluation mode; it stays unchanged.
        known: a picture that it takes.
        white: the value of white, if it is known.
    """
    scale = known.output.scale
    value_range = white or (value_range_of(model, known) if scale else 1.0)
    sizes = sizes_of(Trials(model, value_range, scale or None), known)
    return PictureFormat(known.channels, value_range, max(1, scale), sizes)
