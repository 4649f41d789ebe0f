"""Replacements of `int`, `range`, `math` and others that record calls on traced numbers, for files that are traced.

The real functions would pin the number, so that every size would need a graph of its own; a recorded call serves all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx.node import map_aggregate

from fxptq.graph.values import (
    FloatLike,
    IntLike,
    TracedFloat,
    TracedInt,
    TracedNumber,
    is_number,
    pinned,
    plain,
    recorder_of,
)


class _NumberType(type):
    """Stands in for `int` or `float` in a traced file: converts without forgetting; to isinstance, the real type."""

    real: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.real or other is (IntLike if cls.real is int else FloatLike)

    def __hash__(cls) -> int:
        return hash(cls.real)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and (recorder := recorder_of(args)) is not None:
            own = TracedInt if cls.real is int else TracedFloat
            return args[0] if isinstance(args[0], own) else recorder.number(cls.real, args)
        return cls.real(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.real, name)

    def __or__(cls, other: Any) -> Any:
        return cls.real | other


class IntInTrace(metaclass=_NumberType):
    """`int` for files that are being traced."""

    real = int


class FloatInTrace(metaclass=_NumberType):
    """`float` for files that are being traced."""

    real = float


for _stand_in in (IntInTrace, FloatInTrace):
    _stand_in.__name__ = _stand_in.__qualname__ = _stand_in.real.__name__


class _TypeType(type):
    """Makes a class a stand-in for `type`."""

    known: dict[type, type]
    """The replacements of types in the same file."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    def __hash__(cls) -> int:
        return hash(type)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or "known" not in vars(cls):
            return type.__call__(cls if "known" not in vars(cls) else type, *args, **kwargs)
        found = args[0].real_type if issubclass(type(args[0]), TracedNumber) else type(args[0])
        return cls.known.get(found, found)


class TypeInTrace(type, metaclass=_TypeType):
    """`type` for files that have an `int` and a `float` of their own."""

    known: dict[type, type] = {int: IntInTrace, float: FloatInTrace}  # noqa: RUF012  # the metaclass declares it


class PlainTypeInTrace(type, metaclass=_TypeType):
    """`type` for files that have Python's own `int` and `float`."""

    known: dict[type, type] = {}  # noqa: RUF012  # as above


def range_in_trace(*args: Any) -> range:
    """`range`, whose loop is unrolled in the graph; its bounds become guards."""
    return range(*map(pinned, args))


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        recorder = None if kwargs else recorder_of(args)
        if recorder is not None and is_number(function(*map_aggregate(args, plain))):
            return recorder.number(function, args)
        return function(*args, **kwargs)

    return method


def _len_in_trace(value: Any) -> int:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


class _ModuleInTrace:
    """`math` or `numpy`, recording calls on traced numbers."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._module, name)
        return _recording(attribute) if _is_function(attribute) else attribute


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def builtins_in_trace(*, number_types: bool = True) -> dict[str, Any]:
    """The replacements of builtins, by name.

    Args:
        number_types: whether `int` and `float` are replaced too; torch then does not accept them as a dtype.
    """
    types = (
        {"int": IntInTrace, "float": FloatInTrace, "type": TypeInTrace} if number_types else {"type": PlainTypeInTrace}
    )
    functions = {"range": range_in_trace, "min": _recording(min), "max": _recording(max), "len": _len_in_trace}
    return {**types, **functions}


MATH_IN_TRACE, NUMPY_IN_TRACE = _ModuleInTrace(math), _ModuleInTrace(np)


def global_in_trace(value: Any) -> Any:
    """The replacement of a global of a traced file: of `math`, `numpy` and their functions; None for any other.

    A function that remembers its results (`functools.lru_cache`) is called anew, because it would keep traced numbers.
    """
    if value is math or value is np:
        return MATH_IN_TRACE if value is math else NUMPY_IN_TRACE
    if isinstance(value, _Remembering):
        return value.__wrapped__
    name = getattr(value, "__name__", "")
    if not (_is_function(value) and isinstance(name, str) and name):
        return None
    is_numeric = value is getattr(math, name, None) or value is getattr(np, name, None)
    return _recording(value) if is_numeric else None


_Remembering = type(functools.lru_cache(maxsize=1)(abs))
