"""Tries maps on the layers that read one input: by the error of their outputs, with inputs and weights quantized."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fxptq.passes.base import QuantizedNetwork, Site
from fxptq.passes.judge import State
from fxptq.passes.maps import LATTICE, NONE, Candidate, candidates, lattice
from fxptq.passes.multiples import exponents
from fxptq.passes.readers import Group, Sample, output_of
from fxptq.passes.samples import evenly
from fxptq.passes.tradeoff import LayerErrors, exchanged
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.schemes.affine import Affine, short
from fxptq.quant.search import Bounds, dobi2d

_VALUES = 30_000
"""Values of an input's sample that the bounds are searched on."""

FINE = 7
"""From so many bits on, the steps are small and clipping makes most of the error, so ranges reach to the extremes."""

_WORTH = 0.85
"""A map takes six bytes a channel in the file, so it must lower the error of the layers to this part at least."""


@dataclass(frozen=True)
class Trial:
    """What came of one candidate.

    Attributes:
        name: the candidate's.
        error: the sum of the layers' squared errors, each in units of its output, or what `tradeoff.exchanged` makes of
            them; of a map, over what makes it worth its bytes.
        entry: the input's quantizer with the map and the bounds of the trial.
        values: the values behind the map that the bounds were searched on.
        weights: the tensors of the weights' quantizers, by key.
    """

    name: str
    error: float
    entry: Affine
    values: Tensor
    weights: State


class Trials:
    """The candidates of one group of layers.

    Args:
        student: the network with the quantizers, which stay as they are.
        group: the layers.
        samples: what was kept of their input.
        beyond: extremes of the channels, [n, C], that a fine range reaches to beside those of the samples.
        bounds: candidates of the search for the input's bounds; a trial takes half of it for the input and a quarter
            for a weight, and the winner twice as many.
        widths_move: whether operands will get other widths, so that errors are exchanged for bits.
    """

    def __init__(
        self,
        student: QuantizedNetwork,
        group: Group,
        samples: Sequence[Sample],
        beyond: Sequence[Tensor],
        bounds: int,
        widths_move: bool = False,
    ) -> None:
        self._student, self._group, self._bounds, self._widths_move = student, group, bounds, widths_move
        self._x = torch.cat([part.x for part in samples if part.x.shape[1:] == samples[0].x.shape[1:]])
        self._extremes = torch.cat([part.extremes for part in samples])
        self._reach = torch.cat([self._extremes, *beyond])
        self._weights = {key: _weight(student, key).cpu() for _, key in group.layers}
        self._references = [_about_mean(output_of(site, self._x, self._weights[key])) for site, key in group.layers]
        self._quantizer = student.quantizers[group.key]
        self._is_fine = self._quantizer.bits >= FINE

    def best(self) -> tuple[str, State]:
        """The name of the best candidate and the quantizers' tensors for it; none where no map is better."""
        trials = (self.tried(candidate) for candidate in self._candidates())
        sound = (trial for trial in trials if math.isfinite(trial.error))
        best = min(sound, key=lambda trial: trial.error, default=None)
        if best is None:
            return NONE, {}
        stepped = self._stepped(best)
        if best.name == NONE and not self._is_fine:
            return NONE, stepped
        if best.name != LATTICE:
            found = dobi2d(Distribution.of(best.values), best.entry, 2 * self._bounds, self._floor(best.name))
            _set_bounds(best.entry, found)
        weights = best.weights if best.name != NONE else {}
        return best.name, {self._group.key: best.entry.stored(), **weights, **stepped}

    def _stepped(self, best: Trial) -> State:
        """The tensors of the weights for which columns of several steps lower the error, behind the best map."""
        if not self._group.scalable:  # another input meets the weights, and has a choice of its own
            return {}
        plain = {key: _probe(self._student.quantizers[key]) for _, key in self._group.layers}
        for key, quantizer in plain.items():
            quantizer.restore(best.weights[key])
        tries = {key: list(exponents(own.normalize(self._weights[key]), own.bits)) for key, own in plain.items()}
        if not any(tries.values()):
            return {}
        seen = self._x if self._widths_move else best.entry(self._x)  # the weight has a price of its own, or not
        states: State = {}
        for (site, key), reference in zip(self._group.layers, self._references, strict=True):
            weight = self._weights[key]
            least = _WORTH * _off(site, seen, plain[key](weight), reference)
            for steps in tries[key]:
                own = _probe(plain[key])
                own.set_map(plain[key].factor, plain[key].center, steps)
                values = Distribution.of(own.normalize(weight), own.ranges, own.axis)
                _set_bounds(own, dobi2d(values, own, max(1, self._bounds // 4)))
                off = _off(site, seen, own(weight), reference)
                if off < least:
                    least, states[key] = off, own.stored()
        return states

    def tried(self, candidate: Candidate) -> Trial:
        """The error with a candidate, with bounds searched behind its map."""
        own_factor = short(1 / candidate.factor)  # of the weights; the input has its inverse exactly
        entry, values = self._entry(candidate, 1 / own_factor)
        coded, states, error, layers = entry(self._x), {}, 0.0, []
        for (site, key), reference in zip(self._group.layers, self._references, strict=True):
            weight = self._weights[key]
            own = _probe(self._student.quantizers[key])
            own.set_map(self._group.axes(own_factor))
            values_of = Distribution.of(own.normalize(weight), own.ranges, own.axis)
            _set_bounds(own, dobi2d(values_of, own, max(1, self._bounds // 4)))
            power, rounded = float(reference.square().sum().clamp(min=1e-30)), own(weight)
            if self._widths_move:
                of_input, of_weight = _off(site, coded, weight, reference), _off(site, self._x, rounded, reference)
                layers.append(LayerErrors(of_input / power, of_weight / power, site.macs, own.bits))
            else:
                error += _off(site, coded, rounded, reference) / power
            states[key] = own.stored()
        if self._widths_move:
            error = exchanged(layers, entry.bits)
        return Trial(candidate.name, error if candidate.name == NONE else error / _WORTH, entry, values, states)

    def _candidates(self) -> Iterator[Candidate]:
        bits, weights = self._quantizer.bits, list(self._weights.values())
        rows = self._x if self._group.is_linear else self._x.movedim(1, -1).reshape(-1, self._x.shape[1])
        # A channel that is still in the sample may be wide elsewhere, and would then stretch the grid of all others.
        ranged = self._reach if self._is_fine else torch.cat([rows, self._extremes])
        return chain(
            lattice(rows, self._extremes, bits), candidates(ranged, bits, weights, scalable=self._group.scalable)
        )

    def _entry(self, candidate: Candidate, factor: Tensor) -> tuple[Affine, Tensor]:
        """The input's quantizer for a candidate, and the values behind its map that decide the bounds."""
        entry = _probe(self._quantizer)
        entry.set_map(self._group.axes(factor), self._group.axes(candidate.center))
        values = evenly(entry.normalize(self._x).flatten(), _VALUES)
        if self._is_fine:
            values = torch.cat([values, entry.normalize(self._group.vectors(self._reach)).flatten()])
        if candidate.width:
            entry.set_bounds(0.0, candidate.width)
        else:
            values_of = Distribution.of(values)
            _set_bounds(entry, dobi2d(values_of, entry, max(1, self._bounds // 2), self._floor(candidate.name)))
        return entry, values

    def _floor(self, candidate: str) -> float | None:
        """The known floor of the input; none behind a map, which moves it channel by channel."""
        return self._group.lowest if candidate == NONE else None


def _probe(quantizer: Quantizer) -> Affine:
    """A quantizer of the same bits, ranges and axis, on the CPU, whose map and bounds are yet to be set."""
    probe = Affine(quantizer.bits, quantizer.ranges, quantizer.axis, quantizer.role)
    probe.mode = "on"
    return probe


def _set_bounds(quantizer: Quantizer, bounds: Bounds) -> None:
    quantizer.set_bounds(bounds.lower, bounds.upper)


def _weight(student: QuantizedNetwork, key: str) -> Tensor:
    weight = student.weight_of(key)
    assert weight is not None  # a quantizer of a weight  # noqa: S101
    return weight


def _off(site: Site, x: Tensor, weight: Tensor, reference: Tensor) -> float:
    """The squared error of a layer's output about its mean."""
    return float((_about_mean(output_of(site, x, weight)) - reference).square().sum())


def _about_mean(y: Tensor) -> Tensor:
    """Values about the mean of their output channel, because a bias makes up for the error of a mean."""
    return y - y.mean([axis for axis in range(y.dim()) if axis != 1], keepdim=True)
