"""Layers and products: convolutions, linear layers, norms, softmax, pooling, resizing, and sums over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxptq.export.builder import Builder, Number, Size, Turned, Unsupported, Value, scalar
from fxptq.export.calls.elementwise import as_type, binary, whole
from fxptq.export.calls.moves import expanded, numbers_of, reshaped, side, sides
from fxptq.export.table import form_of


def _all(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value] * count


@form_of("linear")
def _linear(b: Builder, input: Value, weight: Value, bias: Value | None = None) -> Value:  # noqa: A002
    factor = weight if isinstance(weight, Turned) else b.op("Transpose", weight, perm=[1, 0])
    return _with_bias(b, b.like(input, "MatMul", input, factor), bias)


def _with_bias(b: Builder, x: Value, bias: Value | None) -> Value:
    return x if bias is None else b.like(x, "Add", x, bias)


@form_of("conv1d", "conv2d", "conv3d")
def _convolution(
    b: Builder,
    input: Value,  # noqa: A002
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    axes = input.rank - 2
    if axes != weight.rank - 2:
        raise Unsupported("a convolution of an input without a batch")
    where: dict[str, Any] = {}
    if padding == "same":
        if weight.shape is None:
            raise Unsupported("a convolution with the padding 'same' whose weight is computed from the image")
        total = [each * (length - 1) for each, length in zip(_all(dilation, axes), weight.shape[2:], strict=True)]
        where["pads"] = [each // 2 for each in total] + [each - each // 2 for each in total]
    elif padding != "valid":
        where["pads"] = _all(padding, axes) * 2
    strides, dilations = _all(stride, axes), _all(dilation, axes)
    return b.like(input, "Conv", input, weight, bias, strides=strides, dilations=dilations, group=groups, **where)


@form_of("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    b: Builder,
    input: Value,  # noqa: A002
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    axes = input.rank - 2
    return b.like(
        input, "ConvTranspose", input, weight, bias, strides=_all(stride, axes), pads=_all(padding, axes) * 2,
        output_padding=_all(output_padding, axes), dilations=_all(dilation, axes), group=groups,
    )  # fmt: skip


@form_of("matmul", "rmatmul")
def _matmul(b: Builder, input: Value, other: Value | None = None, mat2: Value | None = None) -> Value:  # noqa: A002
    factor = other if other is not None else mat2
    assert factor is not None  # noqa: S101  # torch has run the call
    rank = max(input.rank, factor.rank) - (input.rank == 1) - (factor.rank == 1)
    return Value(b.op("MatMul", input, factor), input.dtype, rank)


@form_of("einsum")
def _einsum(b: Builder, equation: Any, *operands: Any) -> Value:
    factors = list(operands[0]) if operands and isinstance(operands[0], (tuple, list)) else list(operands)
    if not isinstance(equation, str) or not all(isinstance(factor, Value) for factor in factors):
        raise Unsupported("einsum without an equation")
    return Value(b.op("Einsum", *factors, equation=equation.replace(" ", "")), factors[0].dtype, 0)


@form_of("softmax")
def _softmax(b: Builder, input: Value, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Value:  # noqa: A002
    x = input if dtype is None else as_type(b, input, dtype)
    return b.like(x, "Softmax", x, axis=dim % x.rank)


@form_of("batch_norm")
def _batch_norm(
    b: Builder,
    input: Value,  # noqa: A002
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Value:
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch_norm with the statistics of the batch")
    ones, zeros = (_everywhere(b, running_mean, number) for number in (1.0, 0.0))
    return b.like(
        input, "BatchNormalization", input, weight or ones, bias or zeros, running_mean, running_var, epsilon=float(eps)
    )


def _everywhere(b: Builder, like: Value, number: float) -> Value:
    return b.like(like, "Expand", scalar(number, like.dtype), b.numbers(sides(b, like)))


@form_of("layer_norm")
def _layer_norm(
    b: Builder,
    input: Value,  # noqa: A002
    normalized_shape: Sequence[Number],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Value:
    scale = weight
    if scale is None:
        one = Value(b.constant(scalar(1.0, input.dtype)), input.dtype, 0)
        scale = b.like(input, "Expand", one, b.numbers(list(normalized_shape)))
    return b.like(input, "LayerNormalization", input, scale, bias, axis=-len(normalized_shape), epsilon=float(eps))


@form_of("group_norm")
def _group_norm(
    b: Builder,
    input: Value,  # noqa: A002
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Value:
    shape = sides(b, input)
    x = reshaped(b, input, [shape[0], num_groups, -1])
    one, zero = (b.constant(torch.full((num_groups,), value, dtype=input.dtype)) for value in (1.0, 0.0))
    x = reshaped(b, b.like(x, "InstanceNormalization", x, one, zero, epsilon=float(eps)), shape)
    along = [-1] + [1] * (input.rank - 2)
    for kind, tensor in (("Mul", weight), ("Add", bias)):
        if tensor is not None:
            x = b.like(x, kind, x, reshaped(b, tensor, along))
    return x


@form_of("instance_norm")
def _instance_norm(
    b: Builder,
    input: Value,  # noqa: A002
    running_mean: Value | None = None,
    running_var: Value | None = None,  # noqa: ARG001
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Value:
    if running_mean is not None or not use_input_stats or weight is None or bias is None:
        raise Unsupported("instance_norm with running statistics, or without a weight and a bias")
    return b.like(input, "InstanceNormalization", input, weight, bias, epsilon=float(eps))


@form_of("rms_norm")
def _rms_norm(
    b: Builder,
    input: Value,  # noqa: A002
    normalized_shape: Sequence[Number],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    axes = [input.rank - 1 - index for index in range(len(normalized_shape))]
    power = _reduced(b, "ReduceMean", b.like(input, "Mul", input, input), axes, keepdim=True)
    least = torch.finfo(input.dtype).eps if eps is None else eps
    x = binary(b, "Div", input, b.like(power, "Sqrt", binary(b, "Add", power, least)))
    return x if weight is None else b.like(x, "Mul", x, weight)


@form_of("normalize")
def _normalize(
    b: Builder,
    input: Value,  # noqa: A002
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: None = None,  # noqa: ARG001
) -> Value:
    if p != 2 or not isinstance(dim, int):
        raise Unsupported("normalize by another norm than the Euclidean one")
    length = b.like(input, "ReduceL2", input, b.numbers([dim % input.rank]), keepdims=1)
    return binary(b, "Div", input, b.like(input, "Max", length, scalar(eps, input.dtype)))


def _reduced(b: Builder, kind: str, x: Value, dim: Any, keepdim: bool) -> Value:
    axes = [] if dim is None else [axis % x.rank for axis in ([dim] if isinstance(dim, int) else dim)]
    rank = x.rank if keepdim else x.rank - len(axes) if axes else 0
    return Value(b.op(kind, x, b.numbers(axes) if axes else None, keepdims=int(keepdim)), x.dtype, rank)


def _reduction(kind: str, *names: str) -> None:
    def form(b: Builder, input: Value, dim: Any = None, keepdim: bool = False) -> Value:  # noqa: A002
        return _reduced(b, kind, input, dim, keepdim)

    for name in names:
        form_of(name)(form)


_reduction("ReduceMean", "mean")
_reduction("ReduceSum", "sum")
_reduction("ReduceMax", "amax")
_reduction("ReduceMin", "amin")
_reduction("ReduceProd", "prod")


@form_of("var")
def _variance(
    b: Builder,
    input: Value,  # noqa: A002
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> Value:
    axes = list(range(input.rank)) if dim is None else [axis % input.rank for axis in _all(dim, 1)]
    apart = binary(b, "Sub", input, _reduced(b, "ReduceMean", input, axes, keepdim=True))
    total = _reduced(b, "ReduceSum", b.like(apart, "Mul", apart, apart), axes, keepdim)
    count: Number = 1
    for axis in axes:
        count = whole(b, "Mul", count, side(b, input, axis))
    return binary(b, "Div", total, whole(b, "Sub", count, int(unbiased) if correction is None else correction))


@form_of("std")
def _deviation(b: Builder, input: Value, *args: Any, **kwargs: Any) -> Value:  # noqa: A002
    variance = _variance(b, input, *args, **kwargs)
    return b.like(variance, "Sqrt", variance)


@form_of("max_pool2d")
def _max_pool(
    b: Builder,
    input: Value,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        raise Unsupported("max_pool2d that returns places")
    kernel = _all(kernel_size, 2)
    return b.like(
        input, "MaxPool", input, kernel_shape=kernel, strides=_all(stride, 2) if stride else kernel,
        pads=_all(padding, 2) * 2, dilations=_all(dilation, 2), ceil_mode=int(ceil_mode),
    )  # fmt: skip


@form_of("avg_pool2d")
def _average_pool(
    b: Builder,
    input: Value,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value:
    if divisor_override is not None or ceil_mode:
        raise Unsupported("avg_pool2d with a divisor of its own, or with ceil_mode")
    kernel = _all(kernel_size, 2)
    return b.like(
        input, "AveragePool", input, kernel_shape=kernel, strides=_all(stride, 2) if stride else kernel,
        pads=_all(padding, 2) * 2, count_include_pad=int(count_include_pad),
    )  # fmt: skip


@form_of("adaptive_avg_pool2d")
def _adaptive_pool(b: Builder, input: Value, output_size: Any) -> Value:  # noqa: A002
    if _all(output_size, 2) != [1, 1]:
        raise Unsupported("adaptive_avg_pool2d to more than one place")
    return b.like(input, "GlobalAveragePool", input)


_RESIZING = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


@form_of("interpolate", "upsample")
def _interpolate(
    b: Builder,
    input: Value,  # noqa: A002
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    if antialias or recompute_scale_factor or mode not in _RESIZING or input.rank != 4:
        raise Unsupported(f"interpolate with the mode {mode}, antialiasing or a recomputed scale")
    where = "asymmetric" if mode == "nearest" else "align_corners" if align_corners else "half_pixel"
    how: dict[str, Any] = {"coordinate_transformation_mode": where, "mode": _RESIZING[mode]}
    if mode == "nearest":
        how["nearest_mode"] = "floor"
    if mode == "bicubic":
        how["cubic_coeff_a"] = -0.75
    if size is not None:
        shape = [*sides(b, input)[:2], *(size if isinstance(size, (tuple, list)) else (size, size))]
        return b.like(input, "Resize", input, None, None, b.numbers(shape), **how)
    factors = [float(factor) for factor in _all(scale_factor, 2)]
    return b.like(input, "Resize", input, None, torch.tensor([1.0, 1.0, *factors]), **how)


@form_of("arange")
def _arange(b: Builder, *numbers: Any, dtype: Any = None, device: Any = None, **others: Any) -> Value:  # noqa: ARG001
    start, end, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    if not all(isinstance(number, (int, Size)) for number in (start, end, step)):
        raise Unsupported("arange of fractions")
    ends = (b.op("Squeeze", b.numbers([number]), torch.tensor([0])) for number in (start, end, step))
    whole_numbers = Value(b.op("Range", *ends), torch.int64, 1)
    return whole_numbers if dtype is None else as_type(b, whole_numbers, dtype)


@form_of("linspace")
def _linspace(b: Builder, start: float, end: float, steps: Number, **others: Any) -> Value:
    last = whole(b, "Sub", steps, 1)
    places = binary(b, "Mul", as_type(b, _arange(b, steps), torch.float32), float(end - start))
    return as_type(b, binary(b, "Add", binary(b, "Div", places, last), start), others.get("dtype") or torch.float32)


@form_of("meshgrid")
def _meshgrid(b: Builder, *tensors: Any, indexing: str = "ij") -> list[Value]:
    axes = list(tensors[0]) if isinstance(tensors[0], (tuple, list)) else list(tensors)
    if indexing != "ij" and len(axes) > 1:
        axes[:2] = axes[1::-1]
    shape = [side(b, axis, 0) for axis in axes]
    lines = [reshaped(b, x, [-1 if at == place else 1 for at in range(len(axes))]) for place, x in enumerate(axes)]
    grids = [expanded(b, line, shape) for line in lines]
    if indexing != "ij" and len(grids) > 1:
        grids[:2] = grids[1::-1]
    return grids


def _filled_like(name: str, number: float) -> None:
    def form(b: Builder, input: Value, dtype: Any = None, device: Any = None, **others: Any) -> Value:  # noqa: A002, ARG001
        kind = dtype or input.dtype
        return Value(b.op("Expand", scalar(number, kind), b.numbers(sides(b, input))), kind, input.rank)

    form_of(name)(form)


def _filled(name: str, number: float) -> None:
    def form(b: Builder, *size: Any, dtype: Any = None, device: Any = None, **others: Any) -> Value:  # noqa: ARG001
        shape, kind = numbers_of(size), dtype or torch.get_default_dtype()
        return Value(b.op("Expand", scalar(number, kind), b.numbers(shape)), kind, len(shape))

    form_of(name)(form)


for _name, _number in (("zeros", 0.0), ("ones", 1.0)):
    _filled(_name, _number)
    _filled_like(f"{_name}_like", _number)


@form_of("grid_sample")
def _grid_sample(
    b: Builder,
    input: Value,  # noqa: A002
    grid: Value,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Value:
    kind = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return b.like(
        input, "GridSample", input, grid, mode=kind, padding_mode=padding_mode, align_corners=int(bool(align_corners))
    )


@form_of("numel")
def _numel(b: Builder, input: Value) -> Number:  # noqa: A002
    count: Number = 1
    for axis in range(input.rank):
        count = whole(b, "Mul", count, side(b, input, axis))
    return count
