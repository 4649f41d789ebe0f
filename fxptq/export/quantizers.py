"""Quantizers as ONNX nodes: QuantizeLinear and DequantizeLinear, with what they cannot say in nodes around them.

ONNX has grids whose zero is one of the codes. A grid of fxptq may have its zero between two codes; then its codes are
those of `x - offset`, and the offset is added behind them. Maps and shares are nodes around a grid as well. So the
values are those of the simulation, and a runtime computes such a site in float.
Codes of weights have 4 bits where that suffices and 8 elsewhere; codes of activations have 8, and stay in their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxptq.errors import InputError
from fxptq.export.builder import Builder, Turned, Value, scalar
from fxptq.quant.coding import Coding
from fxptq.quant.grid import Grid
from fxptq.quant.quantizer import Quantizer
from fxptq.refusal import Refusal

_TINY = 1e-30
"""The smallest divisor of a row of shares."""


def obstacle(coding: Coding | Refusal) -> str:
    """Why a runtime cannot compute on the codes of an operand; empty if it can."""
    if isinstance(coding, Refusal):
        return coding.reason
    if coding.shares:
        return "its codes are shares of a row"
    if coding.factor is not None:
        return "its channels have factors and centers of their own"
    if any(grid.scale == 0 for grid in coding.grids):
        return "a range has zero width"
    if any(grid.zero_code is None for grid in coding.grids):
        return "0 lies between two codes"
    return ""


def weight(b: Builder, quantizer: Quantizer, tensor: Tensor, key: str, *, turned: bool = False) -> Value:
    """The values of a constant on its grid: codes and DequantizeLinear, or the values where no codes stand for them.

    Args:
        b: takes the nodes.
        quantizer: of the constant.
        tensor: the constant.
        key: the key of the quantizer, for names.
        turned: whether the weight is a matrix whose axes the graph wants exchanged, as `Turned` says.
    """
    coding, axis = quantizer.coding(), quantizer.axis % tensor.dim()
    with torch.no_grad():
        quantized = quantizer(tensor)
        codes = quantizer.encode(tensor) if quantizer.stores_codes else None
        exact = codes is not None and torch.equal(quantizer.decode(codes), quantized)
    kind = Turned if turned else Value
    if isinstance(coding, Refusal) or coding.shares or not exact or codes is None:
        values = quantized.t() if turned else quantized
        return kind(b.constant(values, key), torch.float32, tensor.dim(), tuple(values.shape))
    count = tensor.shape[axis] if len(coding.grids) > 1 else 1
    if turned:
        codes, axis = codes.t(), 1 - axis
    scales, offsets = (_each([getattr(grid, name) for grid in coding.grids], count) for name in ("scale", "offset"))
    scales[scales == 0] = 1  # the codes of a range of zero width are 0
    points = [grid.zero_code for grid in coding.grids]
    middle = 1 << (quantizer.bits - 1)
    signed = middle if set(points) == {middle} else 0  # the form of weights that runtimes compute on
    zero = None
    if None not in points and any(points) and not signed:
        zero = b.codes(_each(points, count).to(torch.uint8), quantizer.bits, f"{key}.zero_point")
    stored = b.codes(codes, quantizer.bits, f"{key}.codes", zero=signed)
    steps = b.constant(scales, f"{key}.scale")
    along = {"axis": axis} if count > 1 else {}
    shape = tuple(codes.shape)
    x = kind(b.op("DequantizeLinear", stored, steps, zero, **along), torch.float32, tensor.dim(), shape)
    if None in points:
        after = (-1,) + (1,) * (tensor.dim() - 1 - axis) if count > 1 else ()
        x = _like(b, x, "Add", b.constant(offsets.reshape(after), f"{key}.offset"))
    if coding.factor is None or coding.center is None:
        return x
    factor, center = (_turned(part) if turned else part for part in (coding.factor, coding.center))
    return _like(b, _like(b, x, "Mul", factor), "Add", center)


def _like(b: Builder, x: Value, kind: str, other: Tensor | str) -> Value:
    return replace(x, name=b.op(kind, x, other))


def _turned(part: Tensor) -> Tensor:
    """A map of the last axes of a matrix, for the matrix with its axes exchanged."""
    return part if part.dim() == 0 else part.unsqueeze(1) if part.dim() == 1 else part.t()


def _each(numbers: Sequence[float | None], count: int) -> Tensor:
    """A number for each place of an axis, or one number for all of it, without an axis."""
    each = torch.tensor(numbers, dtype=torch.float32)
    return each.repeat_interleave(count // len(numbers)) if count > 1 else each.reshape(())


def activation(b: Builder, quantizer: Quantizer, x: Value, key: str) -> Value:
    """The values of an activation on its grid.

    Raises:
        InputError: its scheme has no ONNX form.
    """
    coding = quantizer.coding()
    if isinstance(coding, Refusal):
        raise InputError(f"{key}: the scheme {quantizer.scheme!r} has no ONNX form: {coding.reason}")
    if len(coding.grids) > 1:
        raise InputError(f"{key}: an activation with {len(coding.grids)} ranges has no ONNX form; give it one range")
    if coding.shares:
        return _shares(b, coding.grid, x)
    if coding.grid.scale == 0:
        return x
    if coding.factor is not None and coding.center is not None:
        x = b.like(x, "Div", b.like(x, "Sub", x, coding.center), coding.factor)
    return _mapped(b, _on_grid(b, coding.grid, x), coding)


def _on_grid(b: Builder, grid: Grid, x: Value) -> Value:
    """The nearest values on a grid, by the operations of `fxptq.quant.grid` in their order."""
    zero = grid.zero_code
    scale, offset = scalar(grid.scale, torch.float32), scalar(grid.offset, torch.float32)
    if zero is None:
        return b.like(x, "Add", _codes(b, grid.bits, b.like(x, "Sub", x, offset), scale, 0), offset)
    return _codes(b, grid.bits, x, scale, zero)


def _codes(b: Builder, bits: int, x: Value, scale: Tensor, zero: int) -> Value:
    levels = 2**bits - 1
    if bits < 8:  # a byte ends at 255
        x = b.like(x, "Min", x, scale * (levels - zero))
    point = torch.tensor(zero, dtype=torch.uint8)
    codes = b.op("QuantizeLinear", x, scale, point)
    return b.like(x, "DequantizeLinear", codes, scale, point)


def _mapped(b: Builder, x: Value, coding: Coding) -> Value:
    if coding.factor is None or coding.center is None:
        return x
    return b.like(x, "Add", b.like(x, "Mul", x, coding.factor), coding.center)


def _shares(b: Builder, grid: Grid, x: Value) -> Value:
    """Codes over the sum of the codes of their row, the last axis; see fxptq.quant.schemes.shares."""
    last = torch.tensor([x.rank - 1])
    largest = b.like(x, "Max", b.like(x, "ReduceMax", x, last, keepdims=1), scalar(_TINY, torch.float32))
    ceiling = scalar(grid.scale, torch.float32) * grid.levels
    steps = b.like(x, "Mul", b.like(x, "Div", x, largest), grid.levels / ceiling)
    codes = _codes(b, grid.bits, steps, scalar(1.0, torch.float32), 0)
    total = b.like(x, "ReduceSum", codes, last, keepdims=1)
    return b.like(x, "Div", codes, b.like(x, "Max", total, scalar(1.0, torch.float32)))
