"""Python numbers that remember the graph node that computes them.

While a network is traced, its sizes come back as `TracedInt` and `TracedFloat`. Arithmetic on them is recorded, and a
comparison is a guard: the graph holds only for inputs on which it comes out the same. Every other way in which Python
or C code can learn the value (an index, a hash, a text, a call of `math`) *pins* the number: the guard requires its
present value.

They are no subclasses of int and float, because C code would then read the value without asking. Instead they say that
their class is one, as `unittest.mock` does, so that `isinstance` finds an int, and C code must call `__index__` or
`__float__`. That class is a `torch.SymInt` too, so that the functions of torch take the number for a size.
"""

from __future__ import annotations

import builtins
import math
import numbers
import operator
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import fx


class NumberRecorder(Protocol):
    """The part of the tracer that traced numbers use."""

    @property
    def open(self) -> bool:
        """Whether the trace is still going on; numbers that outlive it are plain."""

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records `function(*args)` and returns its value: traced if it is a number, else plain, and a guard."""

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Records `function(*args)`, requires that its value never changes, and returns the plain value."""

    def pin(self, number: Any) -> None:
        """Requires that the traced number always has its present value."""


class IntLike(int, torch.SymInt):  # type: ignore[misc]  # their signatures differ; nobody calls them
    """The class that a traced int reports as its own; it has no objects."""


class FloatLike(float, torch.SymFloat):  # type: ignore[misc]  # as above
    """The class that a traced float reports as its own; it has no objects."""


for _like, _real in ((IntLike, int), (FloatLike, float)):
    _like.__name__ = _like.__qualname__ = _real.__name__


class TracedNumber:
    """A number computed from the sizes of the input; see the module's description.

    Attributes:
        origin: the node that computes it.
        recorder: the trace it belongs to.
    """

    __slots__ = ("__weakref__", "_value", "origin", "recorder")
    _value: Any
    real_type: ClassVar[type] = int
    like: ClassVar[type] = IntLike
    origin: fx.Node
    recorder: NumberRecorder

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`type(n)(5)` is a plain number."""
        return cls.real_type(*args, **kwargs)

    @property  # type: ignore[misc]  # this is how an object says that it is of another class
    def __class__(self) -> type:
        return self.like if self.recorder.open else self.real_type

    def __getattr__(self, name: str) -> Any:
        """The other attributes of int and float: `h.bit_length()`, `h.real`."""
        if name.startswith("__"):
            raise AttributeError(f"a traced {self.real_type.__name__} has no {name}")
        if not callable(getattr(self.real_type, name)):  # raises what an int would
            return _calculated(getattr, (self, name))
        return lambda *args, **kwargs: _calculated(_method, (self, name, *args, *kwargs.values()))

    def __hash__(self) -> int:
        return hash(pinned(self))

    def __str__(self) -> str:
        return str(pinned(self))

    def __repr__(self) -> str:
        return repr(pinned(self))

    def __format__(self, spec: str) -> str:
        return format(pinned(self), spec)

    def __int__(self) -> int:
        return int(pinned(self))

    def __float__(self) -> float:
        return float(pinned(self))

    def __complex__(self) -> complex:
        return complex(pinned(self))

    def __bool__(self) -> bool:
        return bool(self.recorder.answer(operator.ne, (self, 0)) if self.recorder.open else plain(self))

    def __pos__(self) -> Any:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __reduce__(self) -> Any:
        return self.real_type, (pinned(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return pinned(self)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:  # numpy's signature
        return np.array(pinned(self), dtype)

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """A function of numpy on numbers is recorded, one with an array pins."""
        if method == "__call__" and not kwargs and all(isinstance(arg, (int, float, np.number)) for arg in args):
            return _calculated(function, args)
        return getattr(function, method)(*map(pinned, args), **kwargs)


class TracedInt(TracedNumber):
    """An int computed from the sizes of the input."""

    __slots__ = ()

    def __index__(self) -> int:
        return int(pinned(self))


class TracedFloat(TracedNumber):
    """A float computed from the sizes of the input."""

    __slots__ = ()
    real_type = float
    like = FloatLike


def plain(value: Any) -> Any:
    """The plain number of a traced one, without a guard: only the tracer may use it; anything else unchanged."""
    return value._value if isinstance(value, TracedNumber) else value  # noqa: SLF001  # its own


def pinned(value: Any) -> Any:
    """The plain number, which from now on the graph requires; anything else unchanged."""
    if isinstance(value, TracedNumber) and value.recorder.open:
        value.recorder.pin(value)
    return plain(value)


def traced(value: Any, origin: fx.Node, recorder: NumberRecorder) -> Any:
    """`value` as a traced number; bools and anything that is not a number stay as they are."""
    if not is_number(value):
        return value
    value = plain(value.item() if isinstance(value, np.number) else value)
    kind: type[TracedNumber] = TracedInt if isinstance(value, int) else TracedFloat
    number: TracedNumber = object.__new__(kind)
    number._value, number.origin, number.recorder = value, origin, recorder  # noqa: SLF001  # its own
    return number


def is_number(value: Any) -> bool:
    """Whether a traced number can stand for the value: an int or float of Python's or numpy's, no bool."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, (np.integer, np.floating))


def recorder_of(values: Iterable[Any]) -> NumberRecorder | None:
    """The open recorder of the first traced number among the values, looking into tuples and lists."""
    for value in values:
        if isinstance(value, TracedNumber):
            if value.recorder.open:
                return value.recorder
        elif isinstance(value, (tuple, list)) and (recorder := recorder_of(value)) is not None:
            return recorder
    return None


def _method(number: Any, name: str, *args: Any) -> Any:
    return getattr(number, name)(*args)


def _calculated(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    recorder = recorder_of(args)
    return function(*map(plain, args)) if recorder is None else recorder.number(function, args)


def _arithmetic(function: Callable[..., Any], name: str, *, swapped: bool) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        args = (*others, self) if swapped else (self, *others)
        called = builtins.pow if len(args) == 3 else function
        if all(isinstance(other, (int, float, np.number)) or other is None for other in others):
            return _calculated(called, args)
        if all(isinstance(other, numbers.Number) for other in others):  # complex, fractions
            return called(*map(pinned, args))
        return NotImplemented

    method.__name__ = name
    return method


def _comparison(function: Callable[[Any, Any], bool], name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float, np.number)):
            return function(pinned(self), other) if isinstance(other, numbers.Number) else NotImplemented
        recorder = recorder_of((self, other))
        return function(plain(self), plain(other)) if recorder is None else recorder.answer(function, (self, other))

    method.__name__ = name
    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "invert": operator.invert,
    "abs": builtins.abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "round": builtins.round,
}


def _equip(kind: type[TracedNumber]) -> None:
    for name in _BINARY:
        if hasattr(kind.real_type, f"__{name}__"):
            function = getattr(operator, f"__{name}__")
            setattr(kind, f"__{name}__", _arithmetic(function, name, swapped=False))
            setattr(kind, f"__r{name}__", _arithmetic(function, f"r{name}", swapped=True))
    for name, function in _UNARY.items():
        if hasattr(kind.real_type, f"__{name}__"):
            setattr(kind, f"__{name}__", _arithmetic(function, name, swapped=False))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(kind, f"__{name}__", _comparison(getattr(operator, name), name))


_equip(TracedInt)
_equip(TracedFloat)
