"""The uniform grid: real bounds, `2**bits` levels, and the gradients that move the bounds.

A grid is a `lower` bound, a `width` (> 0) and a number of bits; `step = width / (2**bits - 1)`. Everything in fxptq
that quantizes goes through the operations of `encode` and `decode`, in that order and in the tensor's own precision, so
that a stored model repeats the simulated one bit for bit. Clipping is done in units of the step (0 .. 2**bits - 1): the
same number as clipping to [lower, lower + width] first, but the rounding of `lower + width` can then take no code out
of its range.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 17
"""Elements a CPU thread takes through all operations before the next block: they stay in its cache."""


def levels(bits: int) -> int:
    """The largest code of a `bits`-bit grid: `2**bits - 1`."""
    return (1 << bits) - 1


def encode(x: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Nearest code of each value: `round(clip((x - lower) / step, 0, 2**bits - 1))`, ties to even.

    Args:
        x: values, any shape.
        lower: lower bound, broadcastable to `x`.
        width: upper - lower, > 0, of `lower`'s shape.
        bits: 1 to 8.

    Returns:
        uint8 codes 0 .. 2**bits - 1, of `x`'s shape.
    """
    n = levels(bits)
    return torch.sub(x, lower).div_(width / n).clamp_(0, n).round_().to(torch.uint8)


def decode(codes: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """Value of each code: `step * code + lower`, in the precision of the bounds.

    Args:
        codes: integers 0 .. 2**bits - 1, any shape and integer type.
        lower: lower bound, broadcastable to `codes`.
        width: upper - lower, of `lower`'s shape.
        bits: 1 to 8.

    Returns:
        Values of `codes`' shape and `lower`'s dtype.
    """
    return codes.to(lower.dtype).mul_(width / levels(bits)).add_(lower)


def fake_quantize(x: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
    """`decode(encode(x))` in one differentiable step, bit for bit the same values.

    Gradients (2DQuant, arXiv 2406.06649), with n = 2**bits - 1, z = (x - lower) / step, r = round(z) and
    upper = lower + width: round passes the gradient through; inside the bounds dy/dx = 1, dy/dupper = (r - z) / n and
    dy/dlower = -(r - z) / n; a clipped element passes nothing to x and 1 to the bound that clipped it. In the
    parameters used here that is dy/dwidth = dy/dupper, and dy/dlower = 1 for clipped elements and 0 inside.
    Only `x` and the bounds are kept for the backward pass.

    Args:
        x: values, any shape and floating-point type.
        lower: lower bound, broadcastable to `x`.
        width: upper - lower, > 0, of `lower`'s shape.
        bits: 1 to 8.

    Returns:
        Values on the grid, of `x`'s shape and memory format.
    """
    out: Tensor = _FakeQuantize.apply(x, lower, width, bits)  # type: ignore[no-untyped-call]  # torch's own
    return out


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, width: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, lower, width)
        ctx.bits = bits
        n = levels(bits)
        out = torch.empty_like(x)
        (low, step), (source, target) = _flatten((lower, width / n), (x, out))
        for values, result in zip(_blocks(source, low), _blocks(target, low), strict=True):
            torch.sub(values, low, out=result).div_(step).clamp_(0, n).round_().mul_(step).add_(low)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, lower, width = ctx.saved_tensors
        n = levels(ctx.bits)
        need_bounds = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad_x = torch.empty_like(x)
        if grad.stride() != grad_x.stride():
            grad = torch.empty_like(x).copy_(grad)
        (low, step), (source, upstream, target) = _flatten((lower, width / n), (x, grad, grad_x))
        grad_lower, grad_width = torch.zeros_like(low), torch.zeros_like(low)
        for values, g, result in zip(_blocks(source, low), _blocks(upstream, low), _blocks(target, low), strict=True):
            z = torch.sub(values, low).div_(step)
            clipped = z.clamp(0, n)
            outside = z.ne_(clipped)  # 1.0 or 0.0
            torch.addcmul(g, g, outside, value=-1, out=result)
            if need_bounds:
                # r - z inside; r = n above and 0 below: n * dy/dwidth in all three cases.
                dwidth = clipped.round().sub_(clipped).addcmul_(clipped, outside)
                grad_width += _inner(dwidth, g, low)
                grad_lower += _inner(outside, g, low)
        return grad_x, grad_lower.view_as(lower), grad_width.div_(n).view_as(width), None


def _inner(a: Tensor, b: Tensor, low: Tensor) -> Tensor:
    """Sum of a * b over what shares a bound; `a` is spent."""
    return torch.dot(a, b) if low.dim() == 0 else a.mul_(b).sum_to_size(low.shape)


def _flatten(bounds: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per-tensor bounds as scalars and dense tensors as flat views in the order of memory; anything else as it is.

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
