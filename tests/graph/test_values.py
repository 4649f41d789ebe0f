"""Traced numbers: the values of Python's own, and a graph that repeats them for other sizes."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fxptq.graph import values
from fxptq.graph.capture import capture
from fxptq.graph.holder import Holder
from fxptq.graph.stand_ins import MATH_IN_TRACE, IntInTrace, TypeInTrace, builtins_in_trace
from fxptq.graph.values import TracedInt, plain

NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda h, w: h + w + 1,
    "sub": lambda h, w: 3 - h - w,
    "mul": lambda h, w: 2 * h * w,
    "truediv": lambda h, w: h / w + 1 / h,
    "floordiv": lambda h, w: h // 3 + 100 // w,
    "mod": lambda h, w: -h % 8 + 50 % w,
    "pow": lambda h, w: h**2 + 2**-w + h**0.5,
    "neg": lambda h, w: -h + +w,
    "abs": lambda h, w: abs(h - 2 * w),
    "divmod": lambda h, w: sum(divmod(h, 7)) + sum(divmod(100, w)),
    "shift": lambda h, w: (h << 2) + (w >> 1) + (1 << (w % 5)),
    "bits": lambda h, w: (h & 7) | (w ^ 3),
    "round": lambda h, w: round(h / 7, 1) + round(w / 3),
    "floor": lambda h, w: math.floor(h / w),
    "trunc": lambda h, w: math.trunc(h / 3) + math.ceil(w / 3),
    "sum": lambda h, w: sum([h, w, 1]),
}


class Scaled(nn.Module):
    """The image times a number made of its sizes."""

    def __init__(self, number: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.number(x.shape[2], x.shape[3]))


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_arithmetic_stays_in_the_graph(number: Callable[[Any, Any], Any]) -> None:
    model = Scaled(number)
    taken = capture(model, (torch.rand(1, 3, 16, 24),))
    assert taken.conditions is None
    run = fx.GraphModule(Holder(model), taken.graph)
    for size in ((16, 24), (9, 31), (40, 5)):
        x = torch.rand(1, 3, *size)
        assert torch.equal(run(x), model(x))


QUESTIONS: dict[str, Callable[[Any, Any], bool]] = {
    "greater": lambda h, _: h > 20,
    "equal": lambda h, w: h == w,
    "unequal": lambda h, _: h % 8 != 0,
    "truth": lambda h, _: bool(h % 8),
    "not": lambda h, _: not h % 8,
    "float": lambda h, w: h / w >= 1,
    "in": lambda h, _: h in (16, 32),
    "chain": lambda h, w: 8 < h <= w,
    "tuple": lambda h, w: (h, w) == (16, 24),
}
STRICTER = ("in", "chain", "tuple")
"""Their parts are asked one by one, so that a graph may be refused where the whole comes out the same."""


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_become_conditions(name: str) -> None:
    question = QUESTIONS[name]
    model = Scaled(lambda h, w: 1 if question(h, w) else 2)
    taken = capture(model, (torch.rand(1, 3, 16, 24),))
    root = Holder(model)
    for height, width in ((16, 24), (32, 24), (9, 31), (40, 5), (24, 24), (16, 16)):
        holds = taken.holds(root, (torch.rand(1, 3, height, width),))
        same = question(height, width) == question(16, 24)
        assert holds == same or (not holds and name in STRICTER)


class Recorder:
    """Records nothing: for the numbers alone."""

    open = True

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def number(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function(*map(plain, args))

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self.asked.append(function(*map(plain, args)))
        return self.asked[-1]

    def pin(self, number: Any) -> None:
        self.answer(operator.eq, (number, plain(number)))


def traced(value: int) -> TracedInt:
    number: TracedInt = values.traced(value, fx.Graph().placeholder("x"), Recorder())
    return number


BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    divmod,
    operator.lt,
]


@settings(max_examples=60, deadline=None)
@given(a=st.integers(-50, 50), b=st.integers(-50, 50).filter(bool), function=st.sampled_from(BINARY))
def test_values_are_pythons_own(a: int, b: int, function: Callable[..., Any]) -> None:
    expected = function(a, b)
    assert function(traced(a), b) == function(a, traced(b)) == function(traced(a), traced(b)) == expected
    assert (hash(traced(a)), str(traced(a)), f"{traced(a):4d}") == (hash(a), str(a), f"{a:4d}")


def test_copies_forget() -> None:
    for copied in (copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))):  # noqa: S301  # our own number
        assert type(copied(traced(3))) is int


def test_after_the_trace_they_are_plain() -> None:
    number = traced(3)
    number.recorder.open = False  # type: ignore[misc]  # the trace is over
    assert type(number + 1) is int
    assert bool(number)
    assert number == 3
    assert not number.recorder.asked  # type: ignore[attr-defined]  # the stand-in's


def test_types_in_traced_files_are_the_real_ones_to_isinstance() -> None:
    assert isinstance(3, IntInTrace)
    assert isinstance(traced(3), IntInTrace)
    assert not isinstance(3.0, IntInTrace)
    assert issubclass(bool, IntInTrace)
    assert {int: 1}[IntInTrace] == 1  # type: ignore[index]  # it equals int and hashes alike
    assert isinstance(None, IntInTrace | None)
    assert IntInTrace("12") == 12
    assert IntInTrace.from_bytes(b"\x01", "big") == 1


def test_type_in_traced_files_is_the_real_one_to_everybody() -> None:
    assert TypeInTrace(3) is TypeInTrace(traced(3)) is IntInTrace
    assert TypeInTrace("a") is str
    assert TypeInTrace(traced(3)).__name__ == "int"
    assert isinstance(int, TypeInTrace)
    assert not isinstance(3, TypeInTrace)
    assert TypeInTrace("Made", (int,), {})(5) == 5

    class Meta(TypeInTrace):  # type: ignore[misc]  # its metaclass is no matter of types
        pass

    class Made(metaclass=Meta):
        pass

    assert isinstance(Made(), Made)
    assert type(Made) is Meta


def test_loops_ask_for_their_bounds() -> None:
    number = traced(3)
    assert list(builtins_in_trace()["range"](0, number)) == [0, 1, 2]
    assert number.recorder.asked == [True]  # type: ignore[attr-defined]  # the stand-in's
    assert MATH_IN_TRACE.pi == math.pi
    assert MATH_IN_TRACE.ceil(2.5) == 3
