"""The uniform grid: `2**bits` levels a `scale` apart, and the gradients that move them.

A grid gives each code 0 .. 2**bits - 1 the value `scale * code + offset`. The clipping range is [lower, upper] with
`lower = offset` and `upper = offset + (2**bits - 1) * scale`. Everything in fxptq that quantizes goes through the
operations of `encode` and `decode`, in that order and in the tensor's own precision, so that a stored model repeats the
simulated one bit for bit. Clipping is done in units of the scale (0 .. 2**bits - 1): the same number as clipping to
[lower, upper] first, but the rounding of `upper` can then take no code out of its range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 17
"""Elements that a CPU thread takes through all operations before the next block, so that they stay in its cache."""

_ROUNDING = 2.0**-21
"""Offsets of signed codes below this share of the largest value are the float32 rounding of a symmetric range."""


@dataclass(frozen=True)
class Grid:
    """The grid of one range as kernels and exporters use it: `value = scale * code + offset`, codes 0 .. levels.

    Attributes:
        scale: distance of neighbouring values, > 0.
        offset: value of code 0, the lower end of the clipping range.
        bits: 1 to 8.
    """

    scale: float
    offset: float
    bits: int

    @property
    def levels(self) -> int:
        """The largest code."""
        return levels(self.bits)

    @property
    def zero_point(self) -> float:
        """The code of the value 0, a real number: `value = scale * (code - zero_point)`."""
        return -self.offset / self.scale

    def signed(self, *, odd: bool = False) -> tuple[float, float]:
        """(scale, offset) of the same values by signed codes: `value = scale * signed code + offset`.

        Signed codes are the odd integers 2 code - levels up to 7 bits, so that a symmetric range has the offset 0, and
        code - 128 for 8 bits, which fit a byte; with `odd` they are the odd integers for 8 bits too.
        """
        width = self.scale * self.levels
        if self.bits < 8 or odd:
            scale, offset = self.scale / 2, self.offset + width / 2
        else:
            scale, offset = self.scale, self.offset + 128 * self.scale
        largest = max(abs(self.offset), abs(self.offset + width))
        return scale, 0.0 if abs(offset) <= _ROUNDING * largest else offset


def levels(bits: int) -> int:
    """The largest code of a `bits`-bit grid: `2**bits - 1`."""
    return (1 << bits) - 1


def encode(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Nearest code of each value: `round(clip((x - offset) / scale, 0, 2**bits - 1))`, ties to even.

    Args:
        x: values, any shape.
        scale: distance of neighbouring values, > 0, broadcastable to `x`.
        offset: value of code 0, of `scale`'s shape.
        bits: 1 to 8.

    Returns:
        uint8 codes 0 .. 2**bits - 1, of `x`'s shape.
    """
    n = levels(bits)
    return torch.sub(x, offset).div_(scale).clamp_(0, n).round_().to(torch.uint8)


def decode(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Value of each code: `scale * code + offset`, in the precision of the scale.

    Args:
        codes: integers 0 .. 2**bits - 1, any shape and integer type.
        scale: distance of neighbouring values, broadcastable to `codes`.
        offset: value of code 0, of `scale`'s shape.

    Returns:
        Values of `codes`' shape and `scale`'s dtype.
    """
    return codes.to(scale.dtype).mul_(scale).add_(offset)


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """`decode(encode(x))` in one differentiable step, bit for bit the same values.

    Gradients (2DQuant, arXiv 2406.06649), with n = 2**bits - 1, z = (x - offset) / scale, r = round(z), lower = offset
    and upper = offset + n scale: round passes the gradient through; inside the bounds dy/dx = 1,
    dy/dupper = (r - z) / n and dy/dlower = -(r - z) / n; a clipped element passes nothing to x and 1 to the bound that
    clipped it. In the parameters used here dy/dscale = n dy/dupper, and dy/doffset = 1 for clipped elements and 0
    inside. Only `x` and the two parameters are kept for the backward pass.

    Args:
        x: values, any shape and floating-point type.
        scale: distance of neighbouring values, > 0, broadcastable to `x`.
        offset: value of code 0, of `scale`'s shape.
        bits: 1 to 8.

    Returns:
        Values on the grid, of `x`'s shape and memory format.
    """
    out: Tensor = _FakeQuantize.apply(x, scale, offset, bits)  # type: ignore[no-untyped-call]  # torch's own
    return out


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.bits = bits
        n = levels(bits)
        out = torch.empty_like(x)
        (low, step), (source, target) = _flatten((offset, scale), (x, out))
        for values, result in zip(_blocks(source, low), _blocks(target, low), strict=True):
            torch.sub(values, low, out=result).div_(step).clamp_(0, n).round_().mul_(step).add_(low)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, offset = ctx.saved_tensors
        n = levels(ctx.bits)
        need_bounds = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad_x = torch.empty_like(x)
        if grad.stride() != grad_x.stride():
            grad = torch.empty_like(x).copy_(grad)
        (low, step), (source, upstream, target) = _flatten((offset, scale), (x, grad, grad_x))
        grad_offset, grad_scale = torch.zeros_like(low), torch.zeros_like(low)
        for values, g, result in zip(_blocks(source, low), _blocks(upstream, low), _blocks(target, low), strict=True):
            z = torch.sub(values, low).div_(step)
            clipped = z.clamp(0, n)
            outside = z.ne_(clipped)  # 1.0 or 0.0
            torch.addcmul(g, g, outside, value=-1, out=result)
            if need_bounds:
                # r - z inside; n above and 0 below.
                dscale = clipped.round().sub_(clipped).addcmul_(clipped, outside)
                grad_scale += _inner(dscale, g, low)
                grad_offset += _inner(outside, g, low)
        return grad_x, grad_scale.view_as(scale), grad_offset.view_as(offset), None


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
