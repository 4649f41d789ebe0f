"""Attention: maps for the query, key and value of each attention, and the ceiling of its weights.

What a static map may do depends on the axes of a product whose size never changes with the picture. Two factors of a
product may share a factor s and 1 / s along the summed axis; the outer axes may have factors of their own, which leave
the sum. The center of a key adds to all logits of a row alike, and a softmax does not see it. So integer kernels need
sums of codes, factors in the epilogue, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fxptq.errors import FxptqError, InputError
from fxptq.passes.base import Context, Operand, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.judge import Judge, StagedSettings, State
from fxptq.passes.offsets import movable_weights
from fxptq.passes.samples import Take, evenly, in_memory, most_bytes, sample, turned_off
from fxptq.quant.distribution import Distribution
from fxptq.quant.quantizer import Quantizer
from fxptq.quant.schemes.affine import Affine, short
from fxptq.quant.schemes.shares import Shares
from fxptq.quant.schemes.uniform import Uniform
from fxptq.quant.search import dobi2d

_BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Powers of the query's ranges in the factor that query and key share: 0 makes the key's ranges equal."""

_CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

_WIDENINGS = (1.0, 1.1, 1.25, 1.5)
"""Factors of the widths that have the least squared error of each value. A sum over many positions averages the errors
of rounding, but not those of clipping, which all have the same sign; so wider ranges are often better for the sum."""

_MORE = 4
"""Bounds are searched on this many times the windows that products are computed for."""

_VALUES = 60_000
"""Values that a search for bounds reads, spread over the ranges; each range gets at least `_LEAST`."""

_LEAST = 2048
_QUERY, _KEY, _ATTENTION, _VALUE = "query", "key", "attention", "value"


@dataclass(frozen=True)
class Product:
    """A product of an attention.

    Attributes:
        lhs: the query, or the attention weights.
        rhs: the key, or the value.
        windows: number of windows in one picture at the example's size, at least 1.
        rows: number of rows of the left factor of a window, at least 1.
        nbytes: memory of each factor of one window.
    """

    lhs: Operand
    rhs: Operand
    windows: int
    rows: int
    nbytes: tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """A sample of a factor of a product.

    Attributes:
        x: some windows of one input, [windows, heads, rows, columns].
        stride: the distance of two of them in the input.
    """

    x: Tensor
    stride: int


@register("attention")
class Attention(Pass):
    """Sets the maps and bounds of attentions with affine queries, keys and values and with weights as shares.

    Each product is judged by the error of its output with both factors quantized (of logits: about the mean of their
    row), and the network by its output on held-out inputs, a stage of products at a time; a stage that makes it worse
    is taken back. Weights of layers are in float meanwhile: a later pass rounds them, and until then their errors are
    mostly a wrong mean. Products of 8 bits keep their grids, which are fine enough. The pass needs bounds that are set.
    """

    @dataclass(frozen=True)
    class Settings(StagedSettings):
        """Settings; see also `StagedSettings`.

        Attributes:
            rows: number of rows of attention weights, over all calibration inputs, that errors are measured on; each
                input gives one whole window at least.
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
        products = list(_products(ctx.student))
        if not products:
            return PassReport(notes=("no attention has affine quantizers below 8 bits whose bounds are set",))
        weights = movable_weights(ctx.student)
        judge = Judge.of(ctx, self.settings)
        with turned_off(ctx.student, weights):
            start = judge.error
        inputs = len(judge.inputs)
        keys = [operand.quantizer for product in products for operand in (product.lhs, product.rhs)]
        sizes = _shapes_elsewhere(ctx, keys)
        states: list[State] = []
        with ctx.progress.task("attention", len(products)) as advance:
            nbytes = partial(self._nbytes, inputs=inputs)
            for part in in_memory(products, lambda one: nbytes(one) * inputs, most_bytes(ctx)):
                samples = sample(ctx, judge.inputs, _takes([(one, self._windows(one, inputs)) for one in part]))
                for product in part:
                    factors = [samples.pop(operand.quantizer) for operand in (product.lhs, product.rhs)]
                    others = [sizes[operand.quantizer] for operand in (product.lhs, product.rhs)]
                    states.append(self._choose(ctx.student, product, factors, others))
                    advance()
        states = [state for state in states if state]
        with turned_off(ctx.student, weights):
            kept = judge.keeps_states(states, self.settings.stages)
        note = f"{len(products)} products, {len(states)} with a choice, {kept} kept"
        return PassReport(notes=(f"{note}; squared error of the output {start:.3g} -> {judge.error:.3g}",))

    def _windows(self, product: Product, inputs: int) -> int:
        """The number of windows of one input that products are computed for."""
        return -(-self.settings.rows // (product.rows * inputs))

    def _nbytes(self, product: Product, inputs: int) -> int:
        """The memory of the samples of one input."""
        windows = self._windows(product, inputs)
        times = 1 if product.lhs.part == _ATTENTION else _MORE
        few, many = (min(windows * each, product.windows) for each in (times, _MORE))
        return product.nbytes[0] * few + product.nbytes[1] * many

    def _choose(
        self,
        student: QuantizedNetwork,
        product: Product,
        factors: Sequence[Sequence[Windows]],
        others: Sequence[Sequence[torch.Size]],
    ) -> State:
        """The quantizers' tensors for a product; none where its factors do not lie as those of an attention."""
        pairs = [_joined([sample.x for sample in samples]) for samples in factors]
        if any(x is None or x.dim() != 4 for x in pairs) or not all(others):
            return {}
        lhs, rhs = (x for x in pairs if x is not None)
        if lhs.shape[1] != rhs.shape[1]:
            return {}
        fixed = [
            frozenset(axis for axis in (-3, -2, -1) if x.shape[axis] == sizes[0][axis])
            for x, sizes in zip((lhs, rhs), others, strict=True)
        ]
        own = [student.quantizers[operand.quantizer] for operand in (product.lhs, product.rhs)]
        searches = ProductSearch(self.settings.k)
        if product.lhs.part == _QUERY and len(lhs) == len(rhs):
            most = max(self._windows(product, len(factors[0])) * len(factors[0]), 1)
            chosen = searches.scores(own, lhs, rhs, fixed, max(1, len(lhs) // most))
        elif product.lhs.part == _ATTENTION:
            both = list(zip(*factors, strict=False))
            if any(attention.stride % value.stride for attention, value in both):
                return {}
            met = _joined([value.x[:: attention.stride // value.stride] for attention, value in both])
            if met is None or len(met) != len(lhs):
                return {}
            chosen = searches.mix(own, lhs, met, fixed, rhs)
        else:
            return {}
        return {
            operand.quantizer: quantizer.stored()
            for operand, quantizer in zip((product.lhs, product.rhs), chosen, strict=True)
        }


class ProductSearch:
    """The choice of quantizers for the two kinds of product.

    Args:
        k: number of candidates for each bound.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def scores(
        self, own: Sequence[Quantizer], query: Tensor, key: Tensor, fixed: Sequence[frozenset[int]], stride: int = 1
    ) -> tuple[Quantizer, Quantizer]:
        """Quantizers of the query [windows, heads, N, d] and the key [windows, heads, d, M].

        Bounds are searched on all windows, and products are computed for every `stride`-th.
        """
        heads = frozenset((-3,))
        if -1 not in fixed[0] or -2 not in fixed[1]:
            # The sum runs over positions, so the channels are the outer axes.
            outer = fixed[0] & {-3, -2}, fixed[1] & {-3, -1}
            return self._ranged(own[0], query, outer[0]), self._ranged(own[1], key, outer[1])
        some, others = query[::stride], key[::stride]
        reference = _about_row(some @ others)
        mean = key.mean((0, 3), keepdim=True) if -3 in fixed[1] else key.mean((0, 1, 3), keepdim=True)
        pairs = [self._pair(own, query, key, mean, None, heads & fixed[0])]
        ranges = [_spread(query, 2, fixed[0]), _spread(key, 3, fixed[1]).transpose(-2, -1)]  # [1, H or 1, 1, d]
        for power in _BALANCES:
            factor = ranges[0] ** power / ranges[1] ** (1 - power)
            factor = factor / factor.log().mean(-1, keepdim=True).exp()
            pairs.append(self._pair(own, query, key, mean, factor, heads & fixed[0]))

        def error(pair: tuple[Affine, Affine]) -> float:
            return float((_about_row(pair[0](some) @ pair[1](others)) - reference).square().mean())

        return min(pairs, key=error)

    def _pair(
        self,
        own: Sequence[Quantizer],
        query: Tensor,
        key: Tensor,
        mean: Tensor,
        factor: Tensor | None,
        heads: frozenset[int],
    ) -> tuple[Affine, Affine]:
        """Quantizers with a factor [1, H or 1, 1, d] for the query and its inverse for the key.

        The query's grid is symmetric, so that the offset of the key's codes gives the same number for all keys.
        """
        factor = torch.ones(1, 1, 1, 1, dtype=torch.float32) if factor is None else factor
        largest = self._symmetric(own[0].bits, query / factor, heads)
        first = _affine(own[0], short(factor[0] * largest), torch.zeros((), dtype=torch.float32), -1.0, 1.0)
        across = (first.factor / largest)[None].transpose(-2, -1)  # of the rounded factor, so that the sum stays one
        centred = (key - mean) * across
        lower, width = self._bounds(own[1].bits, centred, heads)
        second = _affine(own[1], width / across[0], mean[0] + lower / across[0], 0.0, 1.0)
        return first, second

    def mix(
        self,
        own: Sequence[Quantizer],
        attention: Tensor,
        value: Tensor,
        fixed: Sequence[frozenset[int]],
        values: Tensor | None = None,
    ) -> tuple[Quantizer, Quantizer]:
        """Quantizers of the attention weights [windows, heads, N, M] and the value [windows, heads, M, d].

        Bounds are searched on `values`, the value in more windows, if they are given.
        """
        narrow = self._ranged(own[1], value if values is None else values, fixed[1] & {-3, -1})
        reference = attention @ value
        seconds = [_wider(narrow, widening) for widening in _WIDENINGS]
        second = min(seconds, key=lambda wider: float((attention @ wider(value) - reference).square().mean()))
        coded = second(value)
        firsts = []
        for ceiling in _CEILINGS:
            first = Shares(own[0].bits)
            first.set_bounds(0.0, ceiling)
            first.mode = "on"
            firsts.append(first)
        errors = [float((first(attention) @ coded - reference).square().mean()) for first in firsts]
        return firsts[errors.index(min(errors))], second

    def _ranged(self, own: Quantizer, x: Tensor, axes: frozenset[int]) -> Affine:
        """A quantizer with bounds of its own along some axes."""
        lower, width = self._bounds(own.bits, x, axes)
        return _affine(own, short(width), lower, 0.0, 1.0)

    def _bounds(self, bits: int, x: Tensor, axes: frozenset[int]) -> tuple[Tensor, Tensor]:
        """Lower bounds and widths along some of the last three axes, of length 1 along the others of them."""
        values, shape = _by_range(x, axes)
        found = dobi2d(Distribution.of(values, len(values)), Uniform(bits, len(values)), self.k)
        width = (found.upper - found.lower).clamp(min=1e-9)
        return found.lower.float().view(shape), width.float().view(shape)

    def _symmetric(self, bits: int, x: Tensor, axes: frozenset[int]) -> Tensor:
        """The ends of ranges about zero along some axes, shaped as by `_bounds`."""
        values, shape = _by_range(x, axes)
        distribution = Distribution.of(values, len(values))
        ends = (
            values.abs().amax(1, keepdim=True).double().clamp(min=1e-9)
            * torch.linspace(1, 0.2, self.k, dtype=torch.float32).double()
        )
        error = distribution.squared_error(-ends, ends, bits)
        return ends.gather(1, error.argmin(1, keepdim=True)).float().view(shape)


def _by_range(x: Tensor, axes: frozenset[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Values as rows, one for each place along `axes` among the last three axes, and the shape of such numbers."""
    kept = sorted(axes)
    others = [axis for axis in range(-x.dim(), 0) if axis not in axes]
    shape = tuple(x.shape[axis] if axis in axes else 1 for axis in (-3, -2, -1))
    rows = x.permute(*kept, *others).reshape(max(1, torch.Size(shape).numel()), -1)
    return evenly(rows, max(_LEAST, _VALUES // len(rows)), 1), shape


def _spread(x: Tensor, positions: int, fixed: frozenset[int]) -> Tensor:
    """The range of nearly all values of each head and channel; axis `positions` and the windows are gone over."""
    gone = [0, positions] + ([] if -3 in fixed else [1])
    kept = [axis for axis in range(4) if axis not in gone]
    rows = x.permute(*kept, *gone).flatten(len(kept))
    rows = evenly(rows, 1 << 14, -1)
    # numpy partitions the values, ten times faster than torch sorts them.
    low, high = np.quantile(rows.numpy(), (0.001, 0.999), axis=-1)
    wide = torch.from_numpy(high - low).float().clamp(min=1e-5)
    return wide.view([1 if axis in gone else x.shape[axis] for axis in range(4)])


def _about_row(logits: Tensor) -> Tensor:
    """Logits about the mean of their row, because a softmax sees no more."""
    return logits - logits.mean(-1, keepdim=True)


def _affine(own: Quantizer, factor: Tensor, center: Tensor, lower: float, upper: float) -> Affine:
    quantizer = Affine(own.bits, own.ranges, own.axis, own.role)
    quantizer.set_map(factor, short(center))
    quantizer.set_bounds(lower, upper)
    quantizer.mode = "on"
    return quantizer


def _wider(quantizer: Affine, widening: float) -> Affine:
    """A quantizer whose ranges are wider by a factor about their middles."""
    middle = quantizer.center + quantizer.factor * (quantizer.lower + quantizer.upper) / 2
    half = widening * quantizer.factor * (quantizer.upper - quantizer.lower) / 2
    if bool((quantizer.lower == -quantizer.upper).all()):
        return _affine(quantizer, short(half), quantizer.center, -1.0, 1.0)
    return _affine(quantizer, short(2 * half), middle - half, 0.0, 1.0)


def _products(student: QuantizedNetwork) -> Iterator[Product]:
    """The products of attentions, one factor below 8 bits, with quantizers of the right schemes that are on."""
    readers: dict[str, int] = {}
    for site in student.sites:
        for operand in site.operands:
            readers[operand.quantizer] = readers.get(operand.quantizer, 0) + 1
    for site in student.sites:
        parts = [operand.part for operand in site.operands]
        schemes = (Affine, Affine) if parts == [_QUERY, _KEY] else (Shares, Affine)
        if parts not in ([_QUERY, _KEY], [_ATTENTION, _VALUE]) or min(len(site.shapes[s]) for s in ("lhs", "rhs")) < 3:
            continue
        quantizers = [student.quantizers.get(operand.quantizer) for operand in site.operands]
        fit = all(
            isinstance(quantizer, scheme) and quantizer.mode == "on" and readers[operand.quantizer] == 1
            for quantizer, scheme, operand in zip(quantizers, schemes, site.operands, strict=True)
        )
        if fit and any(quantizer is not None and quantizer.bits < 8 for quantizer in quantizers):
            shapes = [site.shapes[slot] for slot in ("lhs", "rhs")]
            windows = max(torch.Size(shape[:-3]).numel() for shape in shapes)
            lhs, rhs = (4 * torch.Size(shape[-3:]).numel() for shape in shapes)
            yield Product(site.operands[0], site.operands[1], windows, max(1, shapes[0][-2]), (lhs, rhs))


def _takes(windows: Sequence[tuple[Product, int]]) -> Mapping[str, Take[Windows]]:
    """How to take so many windows of the attention weights of an input for each product, and more of the others."""

    def take(x: Tensor, count: int, times: int) -> Windows:
        lead = (-1, 1) if x.dim() == 3 else (-1, x.shape[-3])  # a product without heads
        x = x.reshape(*lead, *x.shape[-2:])
        fine, coarse = (-(-len(x) // (count * each)) for each in (_MORE, times))
        stride = -(-coarse // fine) * fine  # so that a coarse sample is a part of the fine one
        return Windows(x[::stride].clone().cpu(), stride)

    return {
        operand.quantizer: partial(take, count=count, times=1 if operand.part == _ATTENTION else _MORE)
        for product, count in windows
        for operand in (product.lhs, product.rhs)
    }


def _joined(samples: Sequence[Tensor]) -> Tensor | None:
    """Samples of one shape as one tensor; None where there are none."""
    alike = [x for x in samples if x.shape[1:] == samples[0].shape[1:]]
    return torch.cat(alike) if alike else None


def _shape(x: Tensor) -> torch.Size:
    return x.shape


def _shapes_elsewhere(ctx: Context, keys: Sequence[str]) -> dict[str, list[torch.Size]]:
    """The shapes of operands for an input of another size and batch, as far as the network takes one."""
    takes = dict.fromkeys(keys, _shape)
    first = ctx.images[0]
    if isinstance(first, Tensor) and ctx.sizes.fixed is None:
        height, width = first.shape[-2:]
        smaller, larger = (  # both sides change, because strips of one direction count the pixels of the other
            ctx.sizes.at_least(*(max(1, times * side // 2) for side in (height, width))) for times in (1, 4)
        )
        size = smaller if smaller != (height, width) else larger  # a small input is captured sooner
        tiled = first.repeat(1, 1, *(-(-side // own) for side, own in zip(size, (height, width), strict=True)))
        tiled = tiled[..., : size[0], : size[1]]
        with suppress(FxptqError):  # a network of fewer sizes than it seemed: no map can fail at others
            return sample(ctx, [tiled.repeat(2, 1, 1, 1) if ctx.batches else tiled], takes)
    return sample(ctx, [first], takes)
