"""Python numbers that remember the graph node that computes them.

While a network is traced, sizes come back as `TracedInt` and `TracedFloat`: real numbers, so that Python's ifs, ranges
and assertions run, which also record every arithmetic operation. A comparison is a guard: the graph holds only for
inputs on which it comes out the same. The files being traced get an `int`, `range`, `math`, ... that do not forget.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from torch import Tensor, fx


class NumberRecorder(Protocol):
    """What traced numbers need of the tracer."""

    @property
    def open(self) -> bool:
        """Whether the trace is still going on; numbers that outlive it are plain."""

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records `function(*args)`, whose value is a Python number, and returns it traced."""

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records `function(*args)`, requires that it always comes out as it does now, and returns that plain value."""


class TracedInt(int):
    """An int computed from the sizes of the input."""

    node: fx.Node
    recorder: NumberRecorder

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__pos__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int.__pos__(self)

    def __pos__(self) -> TracedInt:
        return self

    __hash__ = int.__hash__


class TracedFloat(float):
    """A float computed from the sizes of the input."""

    node: fx.Node
    recorder: NumberRecorder

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float.__pos__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float.__pos__(self)

    def __pos__(self) -> TracedFloat:
        return self

    __hash__ = float.__hash__


Traced = (TracedInt, TracedFloat)


def plain(value: Any) -> Any:
    """The number without its memory; anything else unchanged."""
    if isinstance(value, TracedInt):
        return int.__pos__(value)
    if isinstance(value, TracedFloat):
        return float.__pos__(value)
    return value


def traced(value: Any, node: fx.Node, recorder: NumberRecorder) -> Any:
    """`value` as a traced number; bools and anything that is not a number stay as they are."""
    if isinstance(value, np.number):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
    number.node, number.recorder = node, recorder
    return number


def _recorder_of(values: Iterable[Any]) -> NumberRecorder | None:
    for value in values:
        if isinstance(value, Traced) and value.recorder.open:
            return value.recorder
        if isinstance(value, (tuple, list)) and (recorder := _recorder_of(value)) is not None:
            return recorder
    return None


def _arithmetic(function: Callable[..., Any], name: str, *, swapped: bool) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        if any(not isinstance(other, (int, float)) for other in others):
            return NotImplemented
        args = (*others, self) if swapped else (self, *others)
        recorder = _recorder_of(args)
        return function(*map(plain, args)) if recorder is None else recorder.number(function, args)

    method.__name__ = name
    return method


def _comparison(function: Callable[[Any, Any], bool], name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        recorder = _recorder_of((self, other))
        return function(plain(self), plain(other)) if recorder is None else recorder.answer(function, (self, other))

    method.__name__ = name
    return method


def _truth(self: Any) -> bool:
    return bool(self.recorder.answer(operator.ne, (self, 0)) if self.recorder.open else plain(self))


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "abs": builtins.abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "round": builtins.round,
}


def _equip(kind: type) -> None:
    for name in _BINARY:
        if hasattr(kind, f"__{name}__"):
            function = getattr(operator, f"__{name}__")
            setattr(kind, f"__{name}__", _arithmetic(function, name, swapped=False))
            setattr(kind, f"__r{name}__", _arithmetic(function, f"r{name}", swapped=True))
    for name, function in _UNARY.items():
        setattr(kind, f"__{name}__", _arithmetic(function, name, swapped=False))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(kind, f"__{name}__", _comparison(getattr(operator, name), name))

    def both(self: Any, other: Any) -> Any:
        return self // other, self % other

    def both_swapped(self: Any, other: Any) -> Any:
        return other // self, other % self

    for name, method in (("__bool__", _truth), ("__divmod__", both), ("__rdivmod__", both_swapped)):
        setattr(kind, name, method)


_equip(TracedInt)
_equip(TracedFloat)


class _NumberType(type):
    """Stands in for `int` or `float` in a traced file: converts without forgetting; to isinstance, the real type."""

    real: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.real

    def __hash__(cls) -> int:
        return hash(cls.real)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and (recorder := _recorder_of(args)) is not None:
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


def _fixed(value: Any) -> Any:
    """A number whose very value shapes the graph (a loop count): required to stay what it is."""
    if isinstance(value, Traced) and value.recorder.open:
        value.recorder.answer(operator.eq, (value, plain(value)))
    return plain(value)


def range_in_trace(*args: Any) -> range:
    """`range`, whose loop is unrolled in the graph; its bounds become guards."""
    return range(*map(_fixed, args))


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        recorder = None if kwargs else _recorder_of(args)
        if recorder is None:
            return function(*args, **kwargs)
        result = function(*args)
        return recorder.number(function, args) if isinstance(result, (int, float, np.number)) else result

    method.__name__ = getattr(function, "__name__", "function")
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


BUILTINS_IN_TRACE: dict[str, Any] = {
    "int": IntInTrace,
    "float": FloatInTrace,
    "range": range_in_trace,
    "min": _recording(min),
    "max": _recording(max),
    "len": _len_in_trace,
}
MATH_IN_TRACE, NUMPY_IN_TRACE = _ModuleInTrace(math), _ModuleInTrace(np)


def global_in_trace(value: Any) -> Any:
    """What stands in for a global of a traced file: for `math`, `numpy` and their functions; None for the rest."""
    if value is math or value is np:
        return MATH_IN_TRACE if value is math else NUMPY_IN_TRACE
    name = getattr(value, "__name__", "")
    if not (_is_function(value) and isinstance(name, str) and name):
        return None
    known = value is getattr(math, name, None) or value is getattr(np, name, None)
    return _recording(value) if known else None
