"""Channels: a factor and a center for each input channel of a layer, chosen by the error of the layer's output.

With the input's quantizer at the factor f and the center z, and the weight's at the factor 1 / f, the layer computes
the sum of W f (x - z) / f and the constant W z. In float this changes nothing. On grids, wide channels no longer decide
the step of narrow ones, and the weights share the burden. Integer kernels need one multiply-add a channel where the
input becomes codes, and a larger bias; sums of codes stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.passes.base import Context, Pass, PassReport, QuantizedNetwork, Site, register
from fxptq.passes.crops import training_crops
from fxptq.passes.judge import Judge, StagedSettings, State
from fxptq.passes.samples import Take, evenly, in_memory, most_bytes, sample
from fxptq.passes.sensitivity import estimate
from fxptq.quant.distribution import Distribution
from fxptq.quant.grid import levels
from fxptq.quant.quantizer import BITS, Quantizer
from fxptq.quant.schemes.affine import Affine, short
from fxptq.quant.search import Bounds, dobi2d

_EXPONENTS = (0.5, 0.75, 1.0)
"""Powers of a channel's width that its factor may have: 0 would leave the widths, 1 makes them equal."""

_VALUES = 30_000
"""Values of an input's sample that the bounds are searched on."""

_FINE = 7
"""From so many bits on, the steps are small and clipping makes most of the error, so ranges reach to the extremes."""

_WORTH = 0.85
"""A map takes six bytes a channel in the file, so it must lower the error of the layers to this part at least."""


_LATTICE = "lattice"
_OFF_LATTICE = 0.05
"""Largest distance of a value from a lattice, in its steps."""

_DRAWS = 2
"""Random output directions that the errors of layers of 8 bits are estimated with."""

_SHARE = 0.002
"""An input of 8 bits gets a map if it makes more than this part of the sum of all operands' errors."""


@dataclass(frozen=True)
class Group:
    """The layers that read one input through one quantizer.

    Attributes:
        key: the quantizer of the input.
        lowest: the known floor of the input.
        layers: each layer's site, and the key of its weight's quantizer.
        scalable: whether the channels may have factors, because no other input meets the weights.
    """

    key: str
    lowest: float | None
    layers: tuple[tuple[Site, str], ...]
    scalable: bool

    @property
    def is_linear(self) -> bool:
        """Whether the channels are the last axis of the input."""
        return self.layers[0][0].kind == "linear"

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.layers[0][0].shapes["weight"][1]

    def axes(self, by_channel: Tensor) -> Tensor:
        """Numbers [C] in the shape that broadcasts to the input and to the weights."""
        return by_channel if self.is_linear else by_channel.view(-1, 1, 1)

    def vectors(self, rows: Tensor) -> Tensor:
        """Rows [n, C] as inputs of one position each."""
        return rows if self.is_linear else rows[..., None, None]


@dataclass(frozen=True)
class Sample:
    """Values of one calibration input at the input of a group.

    Attributes:
        x: rows [n, C] of a linear layer's input; a crop [B, C, h, w] out of the middle of a convolution's.
        extremes: the least and the largest value of each channel at all positions, [2, C].
    """

    x: Tensor
    extremes: Tensor


@register("channels")
class Channels(Pass):
    """Gives the inputs of layers with an affine scheme factors and centers, and sets their bounds and their weights'.

    Candidates are powers of the widths and largest values of channels (as in SmoothQuant, arXiv 2211.10438, and
    RepQ-ViT, arXiv 2212.08254). The best for the outputs of the layers, with inputs and weights quantized, is tried in
    the network, a stage of layers at a time; a stage that makes the network's output worse is taken back. Layers of 8
    bits keep their grid where it is fine enough, as estimated by `sensitivity`. The pass needs bounds that are set.
    """

    @dataclass(frozen=True)
    class Settings(StagedSettings):
        """Settings; see also `StagedSettings`.

        While maps are compared, the bounds of an input get half of the `k` candidates, and those of a weight a quarter.

        Attributes:
            rows: number of positions of each input that errors are measured on.
        """

        rows: int = 1536

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rows < 1:
                raise InputError(f"rows must be at least 1, not {self.rows}")

    settings: Settings

    @torch.no_grad()
    def run(self, ctx: Context) -> PassReport:
        """See Pass.

        Raises:
            InputError: if there are no images.
        """
        groups = self._groups(ctx)
        if not groups:
            return PassReport(notes=("no layer has affine quantizers whose bounds are set and whose grid is coarse",))
        judge = Judge.of(ctx, self.settings)
        start = judge.error
        chosen: list[tuple[Group, str, State]] = []
        with ctx.progress.task("channels", len(groups)) as advance:
            for part in in_memory(groups, self._nbytes, most_bytes(ctx)):
                samples = sample(ctx, judge.inputs, {group.key: self._take(group, judge) for group in part})
                for group in part:
                    name, state = self._choose(ctx.student, group, samples.pop(group.key))
                    chosen.append((group, name, state))
                    advance(note=name)
        changed = [(group, name, state) for group, name, state in chosen if state]
        kept = judge.keeps_states([state for _, _, state in changed], self.settings.stages)
        return PassReport(
            notes=(
                f"{len(groups)} inputs, {len(changed)} with a better map for their layers, {kept} kept; "
                f"squared error of the output {start:.3g} -> {judge.error:.3g}",
                *sorted({f"{name}: {sum(n == name for _, n, _ in chosen)}" for _, name, _ in chosen}),
            )
        )

    def _groups(self, ctx: Context) -> list[Group]:
        """The groups below 8 bits, and those of 8 bits that make a share of the error worth a map."""
        groups, quantizers = list(_groups(ctx.student)), ctx.student.quantizers
        keys = {group.key: [group.key, *(key for _, key in group.layers)] for group in groups}
        fine = {key for key, own in keys.items() if all(quantizers[each].bits == BITS[-1] for each in own)}
        if not fine or any(quantizer.mode != "on" for quantizer in quantizers.values()):
            return [group for group in groups if group.key not in fine]
        ctx.install_kernels()
        crops = training_crops(ctx, crops=8, batch=4, patch=self.settings.judge_patch, fraction=self.settings.holdout)
        errors = estimate(ctx, crops, _DRAWS)
        least = _SHARE * sum(errors.values())
        return [group for group in groups if group.key not in fine or errors[group.key] > least]

    def _nbytes(self, group: Group) -> int:
        return 4 * self.settings.rows * group.channels * (1 if group.is_linear else 3)  # crops have rims

    def _take(self, group: Group, judge: Judge) -> Take[Sample]:
        rows = -(-self.settings.rows // len(judge.inputs))
        if group.is_linear:

            def take_rows(x: Tensor) -> Sample:
                x = x.reshape(-1, x.shape[-1])
                return Sample(evenly(x, rows).cpu(), torch.stack(x.aminmax(dim=0)).cpu())

            return take_rows
        rim = max(max(_spans(site)) for site, _ in group.layers) - 1
        side = int(rows**0.5) + rim

        def take_crop(x: Tensor) -> Sample:
            x = x if x.dim() == 4 else x[None]
            top, left = ((size - min(size, side)) // 2 for size in x.shape[-2:])
            extremes = torch.stack(x.movedim(1, -1).reshape(-1, x.shape[1]).aminmax(dim=0))
            return Sample(x[..., top : top + side, left : left + side].clone().cpu(), extremes.cpu())

        return take_crop

    def _choose(self, student: QuantizedNetwork, group: Group, samples: Sequence[Sample]) -> tuple[str, State]:
        """The name of the best candidate and the quantizers' tensors for it; none where no map is better."""
        x = torch.cat([part.x for part in samples if part.x.shape[1:] == samples[0].x.shape[1:]])
        extremes = torch.cat([part.extremes for part in samples])
        rows = x if group.is_linear else x.movedim(1, -1).reshape(-1, x.shape[1])
        weights = {key: _weight(student, key).cpu() for _, key in group.layers}
        references = [_about_mean(_apply(site, x, weights[key])) for site, key in group.layers]
        input_quantizer = student.quantizers[group.key]
        is_fine = input_quantizer.bits >= _FINE
        best, best_name, best_state = float("inf"), "none", State()
        candidates = _candidates(
            extremes if is_fine else rows, input_quantizer.bits, list(weights.values()), scalable=group.scalable
        )
        for candidate in chain(_lattice(rows, extremes, input_quantizer.bits), candidates):
            name = candidate.name
            own_factor = short(1 / candidate.factor)  # of the weights; the input has its inverse exactly
            probe = _probe(input_quantizer)
            probe.set_map(group.axes(1 / own_factor), group.axes(candidate.center))
            values = evenly(probe.normalize(x).flatten(), _VALUES)
            if is_fine:
                values = torch.cat([values, probe.normalize(group.vectors(extremes)).flatten()])
            if candidate.width:
                probe.set_bounds(0.0, candidate.width)
            else:
                floor = group.lowest if name == "none" else None
                _set_bounds(probe, dobi2d(Distribution.of(values), probe, max(1, self.settings.k // 2), floor))
            coded, state, error = probe(x), {group.key: probe.stored()}, 0.0
            for (site, key), reference in zip(group.layers, references, strict=True):
                own = _probe(student.quantizers[key])
                own.set_map(group.axes(own_factor))
                values_of = Distribution.of(own.normalize(weights[key]), own.ranges, own.axis)
                _set_bounds(own, dobi2d(values_of, own, max(1, self.settings.k // 4)))
                off = _about_mean(_apply(site, coded, own(weights[key]))) - reference
                error += float(off.square().sum() / reference.square().sum().clamp(min=1e-30))
                state[key] = own.stored()
            least = error if name == "none" else error / _WORTH
            if least < best:
                best, best_name, best_state, best_probe, best_values = least, name, state, probe, values
        if best_name == "none":
            return best_name, {}
        if best_name != _LATTICE:
            _set_bounds(best_probe, dobi2d(Distribution.of(best_values), best_probe, 2 * self.settings.k))
        return best_name, {**best_state, group.key: best_probe.stored()}


def _groups(student: QuantizedNetwork) -> Iterator[Group]:
    """The groups of plain layers whose quantizers are affine and on."""
    readers: dict[str, list[tuple[Site, str, str, float | None]]] = {}
    inputs: dict[str, set[str]] = {}
    for site in student.sites:
        by_slot = {operand.slot: operand.quantizer for operand in site.operands}
        weight = by_slot.get("weight", "")
        inputs.setdefault(weight, set()).add(by_slot.get("input", ""))
        for operand in site.operands:
            readers.setdefault(operand.quantizer, []).append((site, operand.slot, weight, operand.lowest))
    for key, reads in readers.items():
        layers = {(site.kind, site.geometry, weight): (site, weight) for site, _, weight, _ in reads}.values()
        keys = [key, *(weight for _, weight in layers)]
        one_layout = len({site.kind == "linear" for site, _ in layers}) == 1
        plain = all(slot == "input" and _is_plain(site) for site, slot, _, _ in reads)
        plain = plain and all(student.weight_of(weight) is not None for _, weight in layers)  # none is computed
        affine = all(_is_affine(student.quantizers.get(each)) for each in keys)
        if plain and one_layout and affine:
            yield Group(key, reads[0][3], tuple(layers), all(len(inputs[weight]) == 1 for _, weight in layers))


def _is_plain(site: Site) -> bool:
    """Whether the layer multiplies every input channel with the same axis of its weight, in one group."""
    weight = site.shapes.get("weight", ())
    if site.geometry is None:
        return site.kind == "linear" and len(weight) == 2 and weight[1] == site.shapes["input"][-1]
    return len(weight) == 4 and site.geometry.groups == 1 and not site.geometry.transposed


def _is_affine(quantizer: Quantizer | None) -> bool:
    return isinstance(quantizer, Affine) and quantizer.mode == "on"


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


def _candidates(rows: Tensor, bits: int, weights: Sequence[Tensor], *, scalable: bool) -> Iterator[Candidate]:
    """Maps to try.

    Args:
        rows: values of the input, [positions, C].
        bits: the bits of the input, which decide how many values a good range clips.
        weights: the weights of the layers, [outputs, C, ...].
        scalable: whether factors are allowed.
    """
    ones, zeros = torch.ones_like(rows[0]), torch.zeros_like(rows[0])
    yield Candidate("none", ones, zeros)
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


def _lattice(rows: Tensor, extremes: Tensor, bits: int) -> Iterator[Candidate]:
    """The grid that loses nothing, where the values of each channel lie on one, as those of a picture of 8 bits do.

    Args:
        rows: values of the input, [positions, C].
        extremes: the least and largest values of each channel, [n, C].
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
    center = (low - (room / 2).floor() * step).float()
    yield Candidate(_LATTICE, torch.ones_like(rows[0]), center, levels(bits) * step)


def _positive(x: Tensor) -> Tensor:
    """Numbers at least 1/4096 of the largest: a channel that is still in the sample may move in other pictures."""
    return x.clamp(min=float(x.max().clamp(min=1e-30)) / 4096)


def _scaled(factor: Tensor) -> Tensor:
    """Factors with the geometric mean 1."""
    return factor / factor.log().mean().exp()


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


def _spans(site: Site) -> list[int]:
    """Height and width of the input that one output of a convolution sees."""
    assert site.geometry is not None  # a convolution  # noqa: S101
    kernel = site.shapes["weight"][2:]
    return [step * (side - 1) + 1 for step, side in zip(site.geometry.dilation, kernel, strict=True)]


def _apply(site: Site, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's output without bias, [positions, outputs] or [B, outputs, h, w]; crops of pictures get no padding."""
    geometry = site.geometry
    if geometry is None:
        return x @ weight.T
    if all(size >= span for size, span in zip(x.shape[-2:], _spans(site), strict=True)):
        geometry = replace(geometry, padding=(0, 0), trailing=(0, 0))
    return geometry.apply(x, weight, 1)


def _about_mean(y: Tensor) -> Tensor:
    """Values about the mean of their output channel, because a bias makes up for the error of a mean."""
    return y - y.mean([axis for axis in range(y.dim()) if axis != 1], keepdim=True)
