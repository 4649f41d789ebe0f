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

import torch
from torch import Tensor

from fxptq.data.sources import Inputs
from fxptq.errors import FxptqError, InputError
from fxptq.passes.base import Context, Operand, Pass, PassReport, QuantizedNetwork, register
from fxptq.passes.judge import Judge, StagedSettings, State
from fxptq.passes.offsets import movable_weights
from fxptq.passes.products import ProductSearch
from fxptq.passes.samples import Take, in_memory, most_bytes, sample, turned_off
from fxptq.quant.schemes.affine import Affine
from fxptq.quant.schemes.shares import Shares

_MORE = 4
"""Bounds are searched on this many times the windows that products are computed for."""

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
        with turned_off(ctx.student, movable_weights(ctx.student)):
            judge = Judge.of(ctx, self.settings)
            start = judge.error
            states = self._states(ctx, judge.inputs, products)
            kept = judge.keeps_states(states, self.settings.stages)
        note = f"{len(products)} products, {len(states)} with a choice, {kept} kept"
        return PassReport(notes=(f"{note}; squared error of the output {start:.3g} -> {judge.error:.3g}",))

    def _states(self, ctx: Context, inputs: Sequence[Inputs], products: Sequence[Product]) -> list[State]:
        """The choice for each product that has one, by samples of these inputs."""
        keys = [operand.quantizer for product in products for operand in (product.lhs, product.rhs)]
        sizes = _shapes_elsewhere(ctx, keys)
        states: list[State] = []
        with ctx.progress.task("attention", len(products)) as advance:
            count = len(inputs)
            for part in in_memory(products, lambda one: self._nbytes(one, count) * count, most_bytes(ctx)):
                samples = sample(ctx, inputs, _takes([(one, self._windows(one, count)) for one in part]))
                for product in part:
                    factors = [samples.pop(operand.quantizer) for operand in (product.lhs, product.rhs)]
                    others = [sizes[operand.quantizer] for operand in (product.lhs, product.rhs)]
                    states.append(self._choose(ctx.student, product, factors, others))
                    advance()
        return [state for state in states if state]

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
