"""Maps to try for an input: a factor and a center for each of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import levels
from fxptq.quant.schemes.affine import Affine, short
from fxptq.quant.search import dobi2d

NONE, LATTICE = "none", "lattice"
"""Names of the map that changes nothing, and of the one whose grid loses nothing."""

_EXPONENTS = (0.5, 0.75, 1.0)
"""Powers of a channel's width that its factor may have: 0 would leave the widths, 1 makes them equal."""

_OFF_LATTICE = 0.05
"""Largest distance of a value from a lattice, in its steps."""


@dataclass(frozen=True)
class Candidate:
    """A map to try.

    Attributes:
        name: for the report.
        factor: of each channel, [C].
        center: of each channel, [C].
        width: the upper bound behind the map, above a lower bound of 0; bounds are searched if it is 0.
    """

    name: str
    factor: Tensor
    center: Tensor
    width: float = 0.0


def candidates(rows: Tensor, bits: int, weights: Sequence[Tensor], *, scalable: bool) -> Iterator[Candidate]:
    """Maps to try.

    Args:
        rows: values of the input, [positions, C].
        bits: the bits of the input, which decide how many values a good range clips.
        weights: the weights of the layers, [outputs, C, ...].
        scalable: whether factors are allowed.
    """
    ones, zeros = torch.ones_like(rows[0]), torch.zeros_like(rows[0])
    yield Candidate(NONE, ones, zeros)
    by_channel = Distribution.of(rows.T.contiguous(), rows.shape[1])
    range_of_each = dobi2d(by_channel, Affine(bits, rows.shape[1]), 40)
    width = _positive((range_of_each.upper - range_of_each.lower).float())
    middle = short(((range_of_each.upper + range_of_each.lower) / 2).float())
    yield Candidate("center", ones, middle)
    if not scalable:
        return
    strength = _positive(torch.stack([w.abs().transpose(0, 1).flatten(1).amax(1) for w in weights]).amax(0))
    for power in _EXPONENTS:
        yield Candidate(f"width^{power:g}, center", _scaled(width**power), middle)
    for power in _EXPONENTS[:-1]:
        shared = _scaled(width**power / strength ** (1 - power))
        yield Candidate(f"width^{power:g}/weight^{1 - power:g}, center", shared, middle)
    largest = _positive(torch.quantile(rows.abs(), 0.9995, 0))
    yield Candidate("largest", _scaled(largest), zeros)


def lattice(rows: Tensor, extremes: Tensor, bits: int) -> Iterator[Candidate]:
    """The grid that loses nothing, where the values of each channel lie on one, as those of a picture of 8 bits do.

    Args:
        rows: values of the input, [positions, C].
        extremes: the least and the largest values of each channel, by calibration input, [2 n, C] in turns.
        bits: the bits of the input.
    """
    gaps = rows.double().sort(0).values.diff(dim=0)
    real = gaps > 1e-4 * float(gaps.max().clamp(min=1e-30))  # equal values may differ by rounding
    if not bool(real.any()):
        return
    step = float(gaps[real].min())
    low, high = extremes.double().amin(0), extremes.double().amax(0)
    span = (high - low).max()
    step = float(span / (span / step).round())  # the smallest gap has the error of rounding of two values
    places = (torch.cat([rows.double(), high[None]]) - low) / step
    room = levels(bits) - places[-1].round()  # steps that no picture of the calibration has reached
    if float((places - places.round()).abs().max()) > _OFF_LATTICE or float(room.min()) < 0:
        return
    lows, highs = (_is_shared(extremes.double()[i::2], end, step) for i, end in enumerate((low, high)))
    below = torch.where(lows == highs, (room / 2).floor(), torch.where(lows, torch.zeros_like(room), room))
    center = (low - below * step).float()
    yield Candidate(LATTICE, torch.ones_like(rows[0]), center, levels(bits) * step)


def _is_shared(extremes: Tensor, end: Tensor, step: float) -> Tensor:
    """Whether several inputs, [n, C], end at the same value, [C]: black or white then, where no picture goes beyond."""
    return ((extremes - end).abs() < step / 2).sum(0) > 1


def _positive(x: Tensor) -> Tensor:
    """Numbers at least 1/4096 of the largest: a channel that is still in the sample may move in other pictures."""
    return x.clamp(min=float(x.max().clamp(min=1e-30)) / 4096)


def _scaled(factor: Tensor) -> Tensor:
    """Factors with the geometric mean 1."""
    return factor / factor.log().mean().exp()
