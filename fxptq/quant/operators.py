"""Fake quantization, histograms and errors of grids as operators of torch, with their definition in plain torch.

The dispatcher of torch is the interface: compiled kernels take over where a library registers them
(fxptq/kernels/native), and everywhere else the functions here run. Values are the same bit for bit in both; the sums of
gradients, of histograms and of errors differ by rounding. The operators of fake quantization take values as runs
[outer, ranges, inner], float32 and contiguous, whose middle axis has the grids; the functions take any shape that
broadcasts and any floating-point type. Those of mapped fake quantization take values [outer, heads, rows, channels] on
one grid, with a factor and a center for each of [heads, channels], and those of shares take rows [outer, ranges, rows,
length].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1 << 17
"""Elements that a CPU thread takes through all operations before the next block, so that they stay in its cache."""

_TINY = 1e-30
"""The smallest divisor, for rows without a positive value."""

_BINNED = 1 << 15
"""Values binned at a time: they stay in the processor's cache through the three counts."""


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor, levels: int) -> Tensor:
    """The nearest values on a grid: `scale * round(clip((x - offset) / scale, 0, levels)) + offset`.

    Args:
        x: values, any shape and floating-point type.
        scale: distance of neighbouring values, > 0, broadcastable to `x`.
        offset: value of code 0, of `scale`'s shape.
        levels: the largest code.

    Returns:
        Values on the grid, of `x`'s shape and memory format.
    """
    out = torch.empty_like(x)
    (low, step), (source, target) = _flatten((offset, scale), (x, out))
    for values, result in zip(_blocks(source, low), _blocks(target, low), strict=True):
        torch.sub(values, low, out=result).div_(step).clamp_(0, levels).round_().mul_(step).add_(low)
    return out


def fake_quantize_backward(
    x: Tensor, grad: Tensor, scale: Tensor, offset: Tensor, levels: int, of_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `fake_quantize` (fxptq.quant.grid states them).

    Args:
        x: as in `fake_quantize`, and so are the scale, the offset and the levels.
        grad: the gradient of the result, of `x`'s shape and strides.
        scale: distance of neighbouring values.
        offset: value of code 0.
        levels: the largest code.
        of_values: whether the gradient of `x` is needed.

    Returns:
        The gradients of `x` (empty if it is not needed), of the scale and of the offset.
    """
    grad_x = torch.empty_like(x)
    (low, step), (source, upstream, target) = _flatten((offset, scale), (x, grad, grad_x))
    grad_offset, grad_scale = torch.zeros_like(low), torch.zeros_like(low)
    for values, g, result in zip(_blocks(source, low), _blocks(upstream, low), _blocks(target, low), strict=True):
        z = torch.sub(values, low).div_(step)
        clipped = z.clamp(0, levels)
        outside = z.ne_(clipped)  # 1.0 or 0.0
        if of_values:
            torch.addcmul(g, g, outside, value=-1, out=result)
        # r - z inside; n above and 0 below.
        slope = clipped.round().sub_(clipped).addcmul_(clipped, outside)
        grad_scale += _inner(slope, g, low)
        grad_offset += _inner(outside, g, low)
    return grad_x if of_values else x.new_empty(0), grad_scale.view_as(scale), grad_offset.view_as(offset)


def mapped_fake_quantize(
    x: Tensor, scale: Tensor, offset: Tensor, factor: Tensor, center: Tensor, levels: int
) -> Tensor:
    """`factor * fake_quantize((x - center) / factor) + center`: the nearest values of a grid behind a map.

    Args:
        x: values [outer, heads, rows, channels], any floating-point type.
        scale: distance of neighbouring values of the grid, > 0, [1].
        offset: value of code 0 of the grid, [1].
        factor: > 0, [heads, channels].
        center: [heads, channels].
        levels: the largest code.

    Returns:
        Values of `x`'s shape.
    """
    factor, center = factor[:, None], center[:, None]
    return fake_quantize((x - center) / factor, scale, offset, levels) * factor + center


def mapped_fake_quantize_backward(
    x: Tensor,
    grad: Tensor,
    scale: Tensor,
    offset: Tensor,
    factor: Tensor,
    center: Tensor,
    levels: int,
    of_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `mapped_fake_quantize`, of `x`, the scale and the offset; see `fake_quantize_backward`."""
    factor, center = factor[:, None], center[:, None]
    on_grid = (x - center) / factor
    _, of_scale, of_offset = fake_quantize_backward(on_grid, grad * factor, scale, offset, levels, of_values=False)
    if not of_values:
        return x.new_empty(0), of_scale, of_offset
    z = on_grid.sub_(offset).div_(scale)
    return torch.where(z == z.clamp(0, levels), grad, torch.zeros((), dtype=grad.dtype)), of_scale, of_offset


def shares(x: Tensor, factor: Tensor, levels: int) -> Tensor:
    """The codes `round(clip(factor * x / largest of the row, 0, levels))` over the sum of the codes of their row.

    Args:
        x: rows along the last axis, any floating-point type.
        factor: levels over the ceiling, > 0, broadcastable to `x`.
        levels: the largest code.

    Returns:
        Values of `x`'s shape: rows that sum to 1, or 0 where no code is above 0.
    """
    return in_shares((relative(x) * factor).clamp(0, levels).round())


def shares_backward(x: Tensor, grad: Tensor, factor: Tensor, levels: int, of_values: bool) -> tuple[Tensor, Tensor]:
    """The gradients of `shares`: of `x` (empty if it is not needed) and of the factor.

    Rounding passes the gradient through, and a clipped value passes none; the largest of a row counts as a constant.
    """
    ratio = relative(x)
    place = ratio * factor
    clipped = place.clamp(0, levels)
    codes = clipped.round()
    divisor = _divisor(codes)
    # Where all codes are 0 the divisor is a constant, and the mean is 0.
    mean = (grad * codes).sum(-1, keepdim=True) / divisor
    of_place = torch.where(place == clipped, (grad - mean) / divisor, torch.zeros((), dtype=grad.dtype))
    of_factor = (of_place * ratio).sum_to_size(factor.shape)
    return of_place * (factor / _largest(x)) if of_values else x.new_empty(0), of_factor


def relative(x: Tensor) -> Tensor:
    """`x / largest of its row`, which counts as a constant; a row without a positive value has a tiny divisor."""
    return x / _largest(x)


def in_shares(codes: Tensor) -> Tensor:
    """Codes over the sum of the codes of their row, [..., length] in floats; 0 in a row of zeros."""
    return codes / _divisor(codes)


def _largest(x: Tensor) -> Tensor:
    return x.detach().amax(-1, keepdim=True).clamp(min=_TINY)


def _divisor(codes: Tensor) -> Tensor:
    return codes.sum(-1, keepdim=True).clamp(min=1.0)


def histogram(x: Tensor, scale: float, first: float, bins: int) -> Tensor:
    """Counts, sums and sums of squares of values in equal bins.

    Args:
        x: values [n]; the operator takes contiguous float32.
        scale: a power of two: bins are 1 / scale wide and begin at multiples of it.
        first: the whole number of the first bin; bin i begins at i / scale.
        bins: how many bins there are; every value lies in one of them.

    Returns:
        float64 [3, bins].
    """
    table = torch.zeros(3, bins, dtype=torch.float64, device=x.device)
    for block in torch.split(x, _BINNED << (7 if x.is_cuda else 0)):
        values = block.double()
        # Scaling by a power of two and floor are exact, so that a value's bin does not depend on rounding.
        index = values.mul(scale).floor_().sub_(first).long()
        table[0] += torch.bincount(index, minlength=bins)
        table[1] += torch.bincount(index, values, minlength=bins)
        table[2] += torch.bincount(index, values.square(), minlength=bins)
    return table


def grid_errors(
    values: Tensor,
    counts: Tensor,
    sums: Tensor,
    squares: Tensor,
    center: Tensor,
    lower: Tensor,
    upper: Tensor,
    levels: int,
) -> Tensor:
    """The squared error of rounding sorted values to each of many grids (fxptq.quant.distribution states the formula).

    Args:
        values: support, ascending along each row, float64 [ranges, support].
        counts: number of elements before each support value, and of all, [ranges, support + 1].
        sums: the sums of these elements about `center`, [ranges, support + 1].
        squares: the sums of their squares about `center`, [ranges, support + 1].
        center: the origin of the sums, [ranges].
        lower: value of code 0 of each grid, [ranges, candidates].
        upper: value of the largest code, not below `lower`, [ranges, candidates].
        levels: the largest code.

    Returns:
        Sums of squares, [ranges, candidates], not negative.
    """
    step, origin = (upper - lower) / levels, center[:, None]
    thresholds = lower[..., None] + step[..., None] * (torch.arange(levels, dtype=torch.float64) + 0.5)
    flat = thresholds.flatten(1)
    index = torch.searchsorted(values, flat)
    bends = sums.gather(1, index) - (flat - origin) * counts.gather(1, index)
    top = upper - origin
    clipped_to_top = squares[:, -1:] - 2 * top * sums[:, -1:] + top.square() * counts[:, -1:]
    return (clipped_to_top + 2 * step * bends.view_as(thresholds).sum(-1)).clamp_(min=0.0)


def _inner(a: Tensor, b: Tensor, low: Tensor) -> Tensor:
    """The sum of a * b over the elements that share a bound; `a` is overwritten."""
    return torch.dot(a, b) if low.dim() == 0 else a.mul_(b).sum_to_size(low.shape)


def _flatten(bounds: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per-tensor bounds as scalars, and dense tensors as flat views in the order of memory; others stay unchanged.

    The last of `tensors` comes from `empty_like(first)`: it has the strides of the first only if that one is dense.
    """
    first, last = tensors[0], tensors[-1]
    if bounds[0].numel() != 1 or first.stride() != last.stride():
        return bounds, tensors
    flat = tuple(t.as_strided((t.numel(),), (1,)) for t in tensors)
    return tuple(b.reshape(()) for b in bounds), flat


def _blocks(x: Tensor, low: Tensor) -> Iterator[Tensor]:
    """Views of cache size of a flat CPU tensor; the whole tensor otherwise."""
    if low.dim() == 0 and not x.is_cuda:
        yield from torch.split(x, _BLOCK * torch.get_num_threads())
    else:
        yield x


def _runs(x: Tensor, scale: Tensor, offset: Tensor, levels: int) -> Tensor:
    return fake_quantize(x, scale[:, None], offset[:, None], levels)


def _runs_backward(
    x: Tensor, grad: Tensor, scale: Tensor, offset: Tensor, levels: int, of_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_scale, grad_offset = fake_quantize_backward(
        x, grad, scale[:, None], offset[:, None], levels, of_values
    )
    return grad_x, grad_scale[:, 0], grad_offset[:, 0]


def _rows(x: Tensor, factor: Tensor, levels: int) -> Tensor:
    return shares(x, factor[:, None, None], levels)


def _rows_backward(x: Tensor, grad: Tensor, factor: Tensor, levels: int, of_values: bool) -> tuple[Tensor, Tensor]:
    of_x, of_factor = shares_backward(x, grad, factor[:, None, None], levels, of_values)
    return of_x, of_factor[:, 0, 0]


_library: Any = torch.library.Library("fxptq", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own
for _name, _schema, _plain in (
    ("fake_quantize", "(Tensor x, Tensor scale, Tensor offset, int levels) -> Tensor", _runs),
    (
        "fake_quantize_backward",
        "(Tensor x, Tensor grad, Tensor scale, Tensor offset, int levels, bool of_values) -> (Tensor, Tensor, Tensor)",
        _runs_backward,
    ),
    (
        "mapped_fake_quantize",
        "(Tensor x, Tensor scale, Tensor offset, Tensor factor, Tensor center, int levels) -> Tensor",
        mapped_fake_quantize,
    ),
    (
        "mapped_fake_quantize_backward",
        "(Tensor x, Tensor grad, Tensor scale, Tensor offset, Tensor factor, Tensor center, int levels, "
        "bool of_values) -> (Tensor, Tensor, Tensor)",
        mapped_fake_quantize_backward,
    ),
    ("shares", "(Tensor x, Tensor factor, int levels) -> Tensor", _rows),
    (
        "shares_backward",
        "(Tensor x, Tensor grad, Tensor factor, int levels, bool of_values) -> (Tensor, Tensor)",
        _rows_backward,
    ),
    ("histogram", "(Tensor x, float scale, float first, int bins) -> Tensor", histogram),
    (
        "grid_errors",
        "(Tensor values, Tensor counts, Tensor sums, Tensor squares, Tensor center, Tensor lower, Tensor upper, "
        "int levels) -> Tensor",
        grid_errors,
    ),
):
    _library.define(_name + _schema)
    _library.impl(_name, _plain, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fxptq::{_name}", _plain, lib=_library)
