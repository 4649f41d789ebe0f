"""Facts about the functions of torch that the tracer needs: whether a call writes in place or reads values, and so on.

The facts are given by name, and none is about a network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket

from fxptq.graph.calls import name_of_function, words

VALUE_READERS = words(
    "__bool__ __int__ __float__ __index__ __complex__ __array__ item tolist numpy equal allclose is_nonzero"
)
"""Calls that turn a tensor's values into Python values."""

SHAPED_LIKE = words(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty"
)
"""Calls that take the sizes of their tensor and not its values."""

RANDOM = words(
    "rand randn rand_like randn_like randint randint_like randperm bernoulli normal multinomial poisson binomial "
    "normal_ uniform_ bernoulli_ random_ exponential_ cauchy_ geometric_ log_normal_ gumbel_softmax "
    "fractional_max_pool2d fractional_max_pool3d trunc_normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_ "
    "xavier_normal_ orthogonal_ sparse_"
)
"""Calls whose values change from run to run."""

_RANDOM_IN_TRAINING = dict.fromkeys(
    words("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout"), 2
) | {"rrelu": 3, "rrelu_": 3}
"""Calls that draw random numbers in training alone, with the position of the argument that says so."""

RAGGED = words("nonzero argwhere masked_select unique unique_consecutive bincount _unique2")
"""Calls whose output sizes depend on the values of their input."""

_COUNTED = words("split chunk unbind unsafe_split unsafe_chunk")
"""Calls whose number of results depends on the sizes of their input."""

_ASKING = words("is_contiguous is_same_size is_set_to is_pinned is_nonzero is_non_overlapping_and_dense")
"""Calls that answer yes or no according to sizes."""

_SWAPPED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": torch.matmul,
}
_OPERATORS: dict[str, Callable[..., Any]] = {
    f"__{name}__": getattr(operator, name)
    for name in words("add sub mul truediv floordiv mod pow neg getitem eq ne lt le gt ge invert xor setitem")
} | {"__and__": operator.and_, "__or__": operator.or_}

_IN_PLACE_OPERATORS = words(
    "__iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ "
    "__ilshift__ __irshift__ iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift"
)
_MATRIX_PRODUCTS = words("matmul __matmul__ mm bmm")
_TWINS: dict[str, str] = {
    **{
        f"{name}_": name
        for name in words(
            "add sub mul div relu relu6 clamp clip clamp_min clamp_max sigmoid tanh exp abs neg pow sqrt rsqrt square "
            "round floor masked_fill leaky_relu elu silu hardtanh"
        )
    },
    **{f"__i{name}__": f"__{name}__" for name in words("add sub mul truediv pow")},
}


def property_of(func: Any) -> str:
    """The name of the property that a getter or setter belongs to."""
    return str(func.__self__.__name__)


def writes(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the call changes a tensor it is given."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        return any(schema.is_mutable for schema in _schemas(func))
    name = name_of_function(func)
    return (
        (name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "retain_grad_"))
        or name in ("__setitem__", "setitem")
        or (
            name.startswith("__i")
            and name.endswith("__")
            and name not in ("__invert__", "__index__", "__int__", "__iter__")
        )
        or kwargs.get("inplace") is True
        or kwargs.get("out") is not None
    )


def _schemas(func: OpOverload | OpOverloadPacket) -> list[Any]:
    if isinstance(func, OpOverload):
        return [func._schema]  # noqa: SLF001  # the only way to an operator's schema
    names: list[str] = func.overloads()  # type: ignore[no-untyped-call]  # torch's own
    return [getattr(func, name)._schema for name in names]  # noqa: SLF001  # as above


def is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call draws random numbers."""
    name = name_of_function(func)
    if name in _RANDOM_IN_TRAINING:
        position = _RANDOM_IN_TRAINING[name]
        given = args[position] if len(args) > position else "dropout" in name
        return bool(kwargs.get("training", kwargs.get("train", given)))
    return name in RANDOM


def is_ragged(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the sizes of the output depend on the values of the input."""
    name = name_of_function(func)
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) for item in index)
    return name in RAGGED or (name == "where" and len(args) == 1)


def is_counted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the number of results depends on the sizes of the input, because no list of sizes is given."""
    sections = args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections"))
    return name_of_function(func) in _COUNTED and not isinstance(sections, (list, tuple))


def asks_of_sizes(name: str) -> bool:
    """Whether the call answers yes or no according to sizes."""
    return name in _ASKING


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of `x` in which `x[index]` is `value`."""
    y = x.clone()
    y[index] = value
    return y


def twin_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """The functional form of an in-place call, as a function or method name, and keywords.

    It returns the values that the in-place call writes into its first operand. None when there is no such form, or when
    its result would have another type.
    """
    name, target = name_of_function(func), args[0]
    mixed = any(isinstance(other, Tensor) and other.dtype != target.dtype and other.dim() for other in args[1:])
    integer = not target.is_floating_point()
    if kwargs.get("inplace") is True:
        return func, {**kwargs, "inplace": False}
    if name == "__setitem__":
        return with_item, {}
    if name not in _TWINS or kwargs.get("out") is not None or (name != "masked_fill_" and (mixed or integer)):
        return None
    twin = _TWINS[name]
    return _OPERATORS.get(twin, twin if hasattr(torch.Tensor, twin) else getattr(F, twin, None)), kwargs


def _is_method(func: Any, name: str) -> bool:
    """Whether the function is a method of Tensor; operators such as `**` come as a Python wrapper of that name."""
    return type(func).__name__ == "method_descriptor" or (
        isinstance(func, FunctionType) and func.__module__ == "torch._tensor" and hasattr(torch.Tensor, name)
    )


def write_down(graph: fx.Graph, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    """Adds the call to the graph: methods as methods, operators as operators, properties as `getattr`."""
    if isinstance(func, str):
        return graph.call_method(func, args, kwargs)
    name = name_of_function(func)
    if name in _MATRIX_PRODUCTS and "out" not in kwargs:
        return graph.call_function(torch.matmul, (*args, *kwargs.values()))
    if _is_method(func, name) and name not in _SWAPPED and name not in _OPERATORS:
        return graph.call_method(name, args, kwargs)
    if name == "__get__":
        func, args = getattr, (args[0], property_of(func))
    elif name in _SWAPPED:
        func, args = _SWAPPED[name], args[::-1]
    elif name in _OPERATORS:
        func = _OPERATORS[name]
    return graph.call_function(func, args, kwargs)
