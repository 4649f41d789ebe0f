"""Arithmetic element by element, comparisons, and activations; also the arithmetic of sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from fxptq.export.builder import TYPES, Builder, Number, Size, Unsupported, Value, scalar
from fxptq.export.table import form_of

Operand = Value | Size | float


def as_type(b: Builder, x: Operand, dtype: torch.dtype) -> Value:
    """A tensor or a number as a tensor of a type."""
    if isinstance(x, Value):
        return x if x.dtype == dtype else Value(b.op("Cast", x, to=TYPES[dtype]), dtype, x.rank)
    if isinstance(x, Size):
        zero_axes = Value(b.op("Squeeze", x, torch.tensor([0])), torch.int64, 0)
        return as_type(b, zero_axes, dtype)
    return Value(b.constant(scalar(x, dtype)), dtype, 0)


def common_type(*operands: Operand) -> torch.dtype:
    """The type in which torch computes with these operands."""
    examples = [
        torch.empty((1,) * x.rank, dtype=x.dtype) if isinstance(x, Value) else 1 if isinstance(x, Size) else x
        for x in operands
    ]
    found = examples[0]
    for other in examples[1:]:
        found = torch.empty(_rank(found, other), dtype=torch.result_type(found, other))
    return found.dtype if isinstance(found, torch.Tensor) else torch.get_default_dtype()


def _rank(one: Any, other: Any) -> tuple[int, ...]:
    return (1,) * max(one.dim() if isinstance(one, torch.Tensor) else 0, getattr(other, "ndim", 0))


def binary(b: Builder, kind: str, one: Operand, other: Operand, dtype: torch.dtype | None = None) -> Value:
    """A node of two operands that are broadcast, computed in their common type."""
    common = dtype or common_type(one, other)
    left, right = as_type(b, one, common), as_type(b, other, common)
    return Value(b.op(kind, left, right), common, max(left.rank, right.rank))


_WHOLE: dict[str, Callable[[int, int], int]] = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


def _arithmetic(b: Builder, kind: str, one: Operand, other: Operand) -> Value | Number:
    """A sum, difference or product, of sizes or of tensors."""
    if isinstance(one, Value) or isinstance(other, Value):
        return binary(b, kind, one, other)
    return whole(b, kind, one, other)


def whole(b: Builder, kind: str, one: Operand, other: Operand) -> Number:
    """Arithmetic of sizes."""
    if not all(isinstance(x, (int, Size)) for x in (one, other)):
        raise Unsupported("a size is computed with fractions")
    if isinstance(one, int) and isinstance(other, int):
        return _WHOLE[kind](one, other)
    return Size(b.op(kind, *(b.numbers([x]) for x in (one, other) if isinstance(x, (int, Size)))))


@form_of("add", "iadd", "radd")
def _add(b: Builder, input: Operand, other: Operand, alpha: float = 1) -> Value | Number:  # noqa: A002
    scaled = other if alpha == 1 else _arithmetic(b, "Mul", other, alpha)
    return _arithmetic(b, "Add", input, scaled)


@form_of("sub", "subtract")
def _sub(b: Builder, input: Operand, other: Operand, alpha: float = 1) -> Value | Number:  # noqa: A002
    scaled = other if alpha == 1 else _arithmetic(b, "Mul", other, alpha)
    return _arithmetic(b, "Sub", input, scaled)


@form_of("rsub", "__rsub__")
def _rsub(b: Builder, input: Operand, other: Operand) -> Value | Number:  # noqa: A002
    return _arithmetic(b, "Sub", other, input)


@form_of("mul", "multiply", "rmul")
def _mul(b: Builder, input: Operand, other: Operand) -> Value | Number:  # noqa: A002
    return _arithmetic(b, "Mul", input, other)


@form_of("div", "true_divide", "truediv")
def _div(b: Builder, input: Operand, other: Operand, rounding_mode: str | None = None) -> Value:  # noqa: A002
    if rounding_mode is not None:
        raise Unsupported("a quotient is rounded")
    if not isinstance(input, Value) and not isinstance(other, Value):
        raise Unsupported("a size is computed with fractions")
    dtype = common_type(input, other)
    return binary(b, "Div", input, other, dtype if dtype.is_floating_point else torch.float32)


@form_of("__rtruediv__", "__rdiv__", "rdiv")
def _rdiv(b: Builder, input: Operand, other: Operand) -> Value:  # noqa: A002
    return _div(b, other, input)


@form_of("floordiv", "floor_divide")
def floor_divide(b: Builder, input: Operand, other: Operand) -> Value | Number:  # noqa: A002
    """Quotients rounded down, of sizes and of whole numbers."""
    if isinstance(input, int) and isinstance(other, int):
        return input // other
    if isinstance(input, Value) and input.dtype.is_floating_point:
        return b.like(input, "Floor", binary(b, "Div", input, other))
    rest = remainder(b, input, other)
    if isinstance(input, Value) or isinstance(other, Value):
        return binary(b, "Div", binary(b, "Sub", input, rest), other)
    return Size(b.op("Div", b.numbers([_number(whole(b, "Sub", input, rest))]), b.numbers([_number(other)])))


@form_of("mod", "remainder")
def remainder(b: Builder, input: Operand, other: Operand) -> Any:  # noqa: A002
    """Remainders with the sign of the divisor, as Python and torch have them."""
    if isinstance(input, int) and isinstance(other, int):
        return input % other
    if not isinstance(input, Value) and not isinstance(other, Value):
        return Size(b.op("Mod", b.numbers([_number(input)]), b.numbers([_number(other)]), fmod=0))
    if common_type(input, other).is_floating_point:
        quotient = floor_divide(b, input, other)
        return binary(b, "Sub", input, binary(b, "Mul", quotient, other))
    return Value(b.op("Mod", *(as_type(b, x, common_type(input, other)) for x in (input, other)), fmod=0),
                 common_type(input, other), getattr(input, "rank", 0))  # fmt: skip


def _number(x: Operand) -> Number:
    if isinstance(x, (int, Size)):
        return x
    raise Unsupported("a size is computed with fractions")


@form_of("pow", "rpow")
def _pow(b: Builder, input: Operand, exponent: Operand) -> Value:  # noqa: A002
    if isinstance(input, Value) and exponent == 2:
        return b.like(input, "Mul", input, input)
    return binary(b, "Pow", input, exponent)


@form_of("square")
def _square(b: Builder, input: Value) -> Value:  # noqa: A002
    return b.like(input, "Mul", input, input)


@form_of("neg", "negative")
def _neg(b: Builder, input: Operand) -> Value | Number:  # noqa: A002
    return b.like(input, "Neg", input) if isinstance(input, Value) else whole(b, "Sub", 0, input)


def _two(kind: str, *names: str) -> None:
    def form(b: Builder, input: Operand, other: Operand) -> Value:  # noqa: A002
        return binary(b, kind, input, other)

    form_of(*names)(form)


_two("Max", "maximum")
_two("Min", "minimum")


def _compare(kind: str, name: str, *, negated: bool = False) -> None:
    def form(b: Builder, input: Operand, other: Operand) -> Value:  # noqa: A002
        found = binary(b, kind, input, other)
        answer = Value(found.name, torch.bool, found.rank)
        return b.like(answer, "Not", answer) if negated else answer

    form_of(name)(form)


for _name, _kind in {
    "eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual",
}.items():  # fmt: skip
    _compare(_kind, _name)
_compare("Equal", "ne", negated=True)


def _one(kind: str, name: str, **attributes: Any) -> None:
    def form(b: Builder, input: Value, inplace: bool = False) -> Value:  # noqa: A002, ARG001
        return b.like(input, kind, input, **attributes)

    form_of(name)(form)


for _name in ("abs", "exp", "log", "sqrt", "relu", "sigmoid", "tanh", "erf", "sin", "cos", "floor", "ceil", "round"):
    _one(_name.capitalize(), _name)
for _name, _kind in {
    "hardswish": "HardSwish",
    "logical_not": "Not",
    "mish": "Mish",
    "reciprocal": "Reciprocal",
}.items():
    _one(_kind, _name)
_one("HardSigmoid", "hardsigmoid", alpha=1 / 6, beta=0.5)


@form_of("rsqrt")
def _rsqrt(b: Builder, input: Value) -> Value:  # noqa: A002
    return b.like(input, "Reciprocal", b.like(input, "Sqrt", input))


@form_of("silu")
def _silu(b: Builder, input: Value, inplace: bool = False) -> Value:  # noqa: A002, ARG001
    return b.like(input, "Mul", input, b.like(input, "Sigmoid", input))


@form_of("gelu")
def _gelu(b: Builder, input: Value, approximate: str = "none") -> Value:  # noqa: A002
    return b.like(input, "Gelu", input, approximate=approximate)


@form_of("leaky_relu")
def _leaky_relu(b: Builder, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:  # noqa: A002, ARG001
    return b.like(input, "LeakyRelu", input, alpha=float(negative_slope))


@form_of("elu")
def _elu(b: Builder, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:  # noqa: A002, ARG001
    return b.like(input, "Elu", input, alpha=float(alpha))


@form_of("softplus")
def _softplus(b: Builder, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:  # noqa: A002
    if beta != 1 or threshold != 20:
        raise Unsupported("softplus with a beta or a threshold of its own")
    return b.like(input, "Softplus", input)


@form_of("prelu")
def _prelu(b: Builder, input: Value, weight: Value) -> Value:  # noqa: A002
    shape = b.numbers([-1] + [1] * max(input.rank - 2, 0))
    return b.like(input, "PRelu", input, b.op("Reshape", weight, shape))


@form_of("clamp", "clip", "hardtanh")
def clamp(
    b: Builder,
    input: Value,  # noqa: A002
    min: Any = None,  # noqa: A002
    max: Any = None,  # noqa: A002
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,  # noqa: ARG001
) -> Value:
    """Values between two numbers; `min` and `max` of clamp, `min_val` and `max_val` of hardtanh."""
    if min is None and max is None:
        min, max = min_val, max_val  # noqa: A001
    ends = (None if end is None else as_type(b, end, input.dtype) for end in (min, max))
    return b.like(input, "Clip", input, *ends)


@form_of("relu6")
def _relu6(b: Builder, input: Value, inplace: bool = False) -> Value:  # noqa: A002, ARG001
    return clamp(b, input, 0.0, 6.0)


@form_of("where")
def _where(b: Builder, condition: Value, input: Operand, other: Operand) -> Value:  # noqa: A002
    dtype = common_type(input, other)
    one, two = as_type(b, input, dtype), as_type(b, other, dtype)
    return Value(b.op("Where", condition, one, two), dtype, max(condition.rank, one.rank, two.rank))


@form_of("masked_fill")
def _masked_fill(b: Builder, input: Value, mask: Value, value: Operand) -> Value:  # noqa: A002
    return b.like(input, "Where", mask, as_type(b, value, input.dtype), input)


@form_of(
    "clone", "contiguous", "detach", "dropout", "identity", "alpha_dropout", "feature_dropout", "cpu", "data", "item"
)
def _same(b: Builder, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002, ARG001
    return input
