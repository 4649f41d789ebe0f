"""Calls that move values and change none: shapes, slices, rolls, padding, the shuffling of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxptq.export.builder import Builder, Number, Size, Unsupported, Value
from fxptq.export.calls.elementwise import whole
from fxptq.export.table import form_of

_END = 2**62
"""The end of a slice that has none."""


def numbers_of(arguments: Sequence[Any]) -> list[Number]:
    """The numbers of `view(2, 3)` or of `view((2, 3))`."""
    items = list(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else list(arguments)
    if not all(isinstance(item, (int, Size)) for item in items):
        raise Unsupported("a shape that is not made of whole numbers")
    return items


def side(b: Builder, x: Value, axis: int) -> Number:
    """The length of an axis."""
    axis %= x.rank
    if x.shape is not None:
        return x.shape[axis]
    return Size(b.op("Shape", x, start=axis, end=axis + 1))


def sides(b: Builder, x: Value) -> list[Number]:
    """The lengths of all axes."""
    return [side(b, x, axis) for axis in range(x.rank)]


def divided(b: Builder, number: Number, by: int) -> Number:
    """A length that `by` divides, over `by`."""
    return number // by if isinstance(number, int) else Size(b.op("Div", number, b.numbers([by])))


def reshaped(b: Builder, x: Value, shape: Sequence[Number]) -> Value:
    """The values of `x`, in their order, in another shape."""
    return Value(b.op("Reshape", x, b.numbers(shape), allowzero=0), x.dtype, len(shape))


def permuted(b: Builder, x: Value, order: Sequence[int]) -> Value:
    """The axes of `x` in another order."""
    axes = [axis % x.rank for axis in order]
    return x if axes == list(range(x.rank)) else b.like(x, "Transpose", x, perm=axes)


def sliced(b: Builder, x: Value, axis: int, start: Number, end: Number, step: int = 1) -> Value:
    """A part of an axis."""
    starts, ends, axes, steps = (b.numbers([number]) for number in (start, end, axis % x.rank, step))
    return b.like(x, "Slice", x, starts, ends, axes, steps)


@form_of("size")
def _size(b: Builder, input: Value, dim: int | None = None) -> Any:  # noqa: A002
    return sides(b, input) if dim is None else side(b, input, dim)


@form_of("view", "reshape")
def _reshape(b: Builder, input: Value, *shape: Any, **keywords: Any) -> Value:  # noqa: A002
    if any(isinstance(item, torch.dtype) for item in shape):
        raise Unsupported("a view of another type")
    return reshaped(b, input, numbers_of(shape or tuple(keywords.values())))


@form_of("flatten")
def _flatten(b: Builder, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:  # noqa: A002
    first, last = start_dim % max(input.rank, 1), end_dim % max(input.rank, 1)
    shape = sides(b, input)
    return reshaped(b, input, [*shape[:first], -1, *shape[last + 1 :]])


@form_of("unflatten")
def _unflatten(b: Builder, input: Value, dim: int, sizes: Any) -> Value:  # noqa: A002
    axis, shape = dim % input.rank, sides(b, input)
    return reshaped(b, input, [*shape[:axis], *numbers_of([sizes]), *shape[axis + 1 :]])


@form_of("transpose", "swapaxes", "swapdims")
def _transpose(b: Builder, input: Value, dim0: int, dim1: int) -> Value:  # noqa: A002
    order = list(range(input.rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permuted(b, input, order)


@form_of("T", "t", "mT")
def _turned(b: Builder, input: Value) -> Value:  # noqa: A002
    return _transpose(b, input, -1, -2) if input.rank > 1 else input


@form_of("permute")
def _permute(b: Builder, input: Value, *dims: Any) -> Value:  # noqa: A002
    return permuted(b, input, [number for number in numbers_of(dims) if isinstance(number, int)])


@form_of("movedim", "moveaxis")
def _movedim(b: Builder, input: Value, source: Any, destination: Any) -> Value:  # noqa: A002
    marked = torch.empty(tuple(range(1, input.rank + 1)), device="meta").movedim(source, destination)
    return permuted(b, input, [length - 1 for length in marked.shape])


@form_of("squeeze")
def _squeeze(b: Builder, input: Value, dim: Any = None) -> Value:  # noqa: A002
    if dim is None:
        raise Unsupported("squeeze without an axis")
    axes = [dim] if isinstance(dim, int) else list(dim)
    return Value(b.op("Squeeze", input, b.numbers(axes)), input.dtype, input.rank - len(axes))


@form_of("unsqueeze")
def unsqueeze(b: Builder, input: Value, dim: int) -> Value:  # noqa: A002
    """A further axis of length 1."""
    return Value(b.op("Unsqueeze", input, b.numbers([dim % (input.rank + 1)])), input.dtype, input.rank + 1)


def expanded(b: Builder, x: Value, shape: Sequence[Number]) -> Value:
    """`x` broadcast to a shape, in which -1 keeps a length; as in ONNX, 1 keeps it too."""
    plain: list[Number] = [1 if number == -1 else number for number in shape]
    return Value(b.op("Expand", x, b.numbers(plain)), x.dtype, len(shape))


@form_of("expand", "broadcast_to")
def _expand(b: Builder, input: Value, *size: Any) -> Value:  # noqa: A002
    return expanded(b, input, numbers_of(size))


@form_of("expand_as")
def _expand_as(b: Builder, input: Value, other: Value) -> Value:  # noqa: A002
    return expanded(b, input, sides(b, other))


@form_of("repeat", "tile")
def _repeat(b: Builder, input: Value, *sizes: Any) -> Value:  # noqa: A002
    counts = numbers_of(sizes)
    for _ in range(len(counts) - input.rank):
        input = unsqueeze(b, input, 0)  # noqa: A001
    return Value(b.op("Tile", input, b.numbers(counts)), input.dtype, input.rank)


@form_of("cat", "concat", "concatenate")
def concatenate(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors end to end along an axis."""
    first = tensors[0]
    return first if len(tensors) == 1 else b.like(first, "Concat", *tensors, axis=dim % first.rank)


@form_of("stack")
def _stack(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % (tensors[0].rank + 1)
    return concatenate(b, [unsqueeze(b, tensor, axis) for tensor in tensors], axis)


@form_of("split", "split_with_sizes")
def _split(b: Builder, tensor: Value, split_size: Any, dim: int = 0) -> Any:
    if not isinstance(split_size, (list, tuple)):
        return _Pieces(b, tensor, split_size, dim)
    names = b.outputs("Split", len(split_size), tensor, b.numbers(list(split_size)), axis=dim % tensor.rank)
    return [Value(name, tensor.dtype, tensor.rank) for name in names]


class _Pieces:
    """The pieces of one length of an axis, each cut when it is asked for: their number need not be known."""

    def __init__(self, b: Builder, x: Value, length: Number, axis: int) -> None:
        self._b, self._x, self._length, self._axis = b, x, length, axis

    def __getitem__(self, index: int) -> Value:
        if index < 0:
            raise Unsupported("a piece of a split, counted from the end")
        start, end = (whole(self._b, "Mul", self._length, place) for place in (index, index + 1))
        return sliced(self._b, self._x, self._axis, start, end)


@form_of("chunk")
def _chunk(b: Builder, input: Value, chunks: int, dim: int = 0) -> list[Value]:  # noqa: A002
    names = b.outputs("Split", chunks, input, axis=dim % input.rank, num_outputs=chunks)
    return [Value(name, input.dtype, input.rank) for name in names]


def selected(b: Builder, x: Value, axis: int, index: Number) -> Value:
    """One place of an axis, which goes."""
    place = torch.tensor(index) if isinstance(index, int) else b.op("Squeeze", index, torch.tensor([0]))
    return Value(b.op("Gather", x, place, axis=axis % x.rank), x.dtype, x.rank - 1)


@form_of("select")
def _select(b: Builder, input: Value, dim: int, index: Number) -> Value:  # noqa: A002
    return selected(b, input, dim, index)


@form_of("narrow")
def _narrow(b: Builder, input: Value, dim: int, start: Number, length: Number) -> Value:  # noqa: A002
    return sliced(b, input, dim, start, whole(b, "Add", start, length))


@form_of("index_select")
def _index_select(b: Builder, input: Value, dim: int, index: Value) -> Value:  # noqa: A002
    return b.like(input, "Gather", input, index, axis=dim % input.rank)


@form_of("getitem")
def _getitem(b: Builder, container: Any, key: Any) -> Any:
    if not isinstance(container, Value):
        return container[key]
    keys = list(key) if isinstance(key, tuple) else [key]
    used = sum(1 for item in keys if item is not None and item is not Ellipsis)
    if Ellipsis in [item for item in keys if not isinstance(item, (Value, Size))]:
        at = next(place for place, item in enumerate(keys) if item is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (container.rank - used)
    if sum(isinstance(item, Value) for item in keys) > 1:
        raise Unsupported("several tensors as an index")
    x, axis = container, 0
    for item in keys:
        if item is None:
            x, axis = unsqueeze(b, x, axis), axis + 1
        elif isinstance(item, slice):
            x, axis = _slice(b, x, axis, item), axis + 1
        elif isinstance(item, Value):
            if item.dtype is torch.bool:
                raise Unsupported("a mask as an index")
            rank = x.rank - 1 + item.rank
            x, axis = Value(b.op("Gather", x, item, axis=axis), x.dtype, rank), axis + item.rank
        elif isinstance(item, (int, Size)) and not isinstance(item, bool):
            x = selected(b, x, axis, item)
        else:
            raise Unsupported(f"{type(item).__name__} as an index")
    return x


def _slice(b: Builder, x: Value, axis: int, item: slice) -> Value:
    start, end = item.start if item.start is not None else 0, item.stop if item.stop is not None else _END
    step = item.step if item.step is not None else 1
    return x if (start, end, step) == (0, _END, 1) else sliced(b, x, axis, start, end, step)


@form_of("unbind")
def _unbind(b: Builder, input: Value, dim: int = 0) -> Any:  # noqa: A002
    return _Unbound(b, input, dim)


class _Unbound:
    """The places of an axis, each taken when it is asked for: their number need not be known."""

    def __init__(self, b: Builder, x: Value, axis: int) -> None:
        self._b, self._x, self._axis = b, x, axis

    def __getitem__(self, index: int) -> Value:
        return selected(self._b, self._x, self._axis, index)


@form_of("roll")
def _roll(b: Builder, input: Value, shifts: Any, dims: Any = None) -> Value:  # noqa: A002
    if dims is None:
        raise Unsupported("roll without axes")
    pairs = zip(*(item if isinstance(item, (tuple, list)) else (item,) for item in (shifts, dims)), strict=True)
    x = input
    for shift, axis in pairs:
        cut = whole(b, "Sub", 0, shift)  # a negative place counts from the end, as in Python
        if cut != 0:
            x = concatenate(b, [sliced(b, x, axis, cut, _END), sliced(b, x, axis, 0, cut)], axis)
    return x


@form_of("flip")
def _flip(b: Builder, input: Value, *dims: Any) -> Value:  # noqa: A002
    x = input
    for axis in numbers_of(dims):
        assert isinstance(axis, int)  # noqa: S101  # axes are written down
        x = sliced(b, x, axis, -1, -_END, -1)
    return x


_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@form_of("pad")
def _pad(b: Builder, input: Value, pad: Sequence[Number], mode: str = "constant", value: float | None = None) -> Value:  # noqa: A002
    # torch names pairs from the last axis on; ONNX has all beginnings, then all ends.
    axes = [input.rank - 1 - index for index in range(len(pad) // 2)]
    widths = b.numbers([*pad[0::2], *pad[1::2]])
    fill = torch.tensor(value or 0, dtype=input.dtype) if mode == "constant" else None
    return b.like(input, "Pad", input, widths, fill, torch.tensor(axes), mode=_PADDING[mode])


@form_of("pixel_shuffle")
def _pixel_shuffle(b: Builder, input: Value, upscale_factor: int) -> Value:  # noqa: A002
    if input.rank != 4:
        raise Unsupported("pixel_shuffle of a tensor without four axes")
    return b.like(input, "DepthToSpace", input, blocksize=upscale_factor, mode="CRD")


@form_of("pixel_unshuffle")
def _pixel_unshuffle(b: Builder, input: Value, downscale_factor: int) -> Value:  # noqa: A002
    if input.rank != 4:
        raise Unsupported("pixel_unshuffle of a tensor without four axes")
    by = downscale_factor
    n, c, h, w = sides(b, input)
    high, wide = (divided(b, number, by) for number in (h, w))
    parts = permuted(b, reshaped(b, input, [n, c, high, by, wide, by]), [0, 1, 3, 5, 2, 4])
    return reshaped(b, parts, [n, -1, high, wide])


@form_of("channel_shuffle")
def _channel_shuffle(b: Builder, input: Value, groups: int) -> Value:  # noqa: A002
    n, c, *others = sides(b, input)
    each = divided(b, c, groups)
    parts = reshaped(b, input, [n, groups, each, *others])
    return reshaped(b, permuted(b, parts, [0, 2, 1, *range(3, parts.rank)]), [n, c, *others])
