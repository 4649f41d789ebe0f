"""Threads: each sees what it would see alone, whatever the others capture, run or compute."""

from __future__ import annotations

import copy
import functools
import gc
import math
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import add
from torch import Tensor, nn
from torch.fx import graph_module

import fxptq
from fxptq.graph import Bits, Plan, Program
from fxptq.graph.cache import SIZES, Cache
from fxptq.graph.exclusive import CAPTURING
from tests.graph.test_program import Unrolled, switch_on
from tests.threads import at_once

WAIT = 120
"""Seconds after which a thread that waits for another gives up; nothing here takes as long."""


class Residual(nn.Module):
    """One graph for all sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


def quantized(model: nn.Module, limit: int = 16) -> Program:
    torch.manual_seed(0)
    return switch_on(Program(model.eval(), torch.rand(1, 3, 8, 8), Plan(Bits(4, 4), edges=None), limit=limit))


def pictures(count: int) -> list[Tensor]:
    return [torch.rand(1, 3, 8 + 4 * index, 8 + index) for index in range(count)]


# -- one program, several programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "limit"), [(12, 16), (12, 3)], ids=["all graphs are kept", "graphs come and go"])
def test_one_program_at_many_sizes(count: int, limit: int) -> None:
    program = quantized(Unrolled(), limit)
    alone = copy.deepcopy(program)
    inputs = pictures(count)
    expected = [alone(x) for x in inputs]
    for found in (at_once([functools.partial(program, x) for x in inputs]), [program(x) for x in inputs]):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
    assert len(program.variants) == min(count, limit)


def test_a_size_that_many_threads_ask_for_is_captured_once() -> None:
    program = quantized(Unrolled())
    x = torch.rand(1, 3, 16, 8)
    found = at_once([lambda: program.variant((x,))] * 8)
    assert {id(variant) for variant in found} == {id(program.variants[1])}
    assert len(program.variants) == 2


def test_several_programs_at_once() -> None:
    models: list[nn.Module] = [Unrolled(), Residual(), Unrolled(), Residual()]
    inputs = pictures(3)

    def work(model: nn.Module) -> list[Tensor]:
        program = switch_on(Program(model.eval(), torch.ones(1, 3, 8, 8), Plan(Bits(4, 4), edges=None)))
        return [program(x) for x in inputs]

    expected = [work(model) for model in models]
    found = at_once([functools.partial(work, model) for model in models])
    assert all(map(torch.equal, chain(*found), chain(*expected)))


def test_quantized_in_two_threads_the_checkpoints_are_the_same_bytes(tmp_path: Path) -> None:
    models: list[nn.Module] = [Unrolled().eval(), Residual().eval()]
    example = torch.rand(1, 3, 24, 24)

    def made(index: int, name: str) -> bytes:
        path = tmp_path / f"{name}_{index}.safetensors"
        fxptq.quantize(models[index % 2], example, fxptq.Bits(4, 4), calib=[example], preset="quick", seed=3).save(path)
        return path.read_bytes()

    expected = [made(index, "alone") for index in range(2)]
    found = at_once([functools.partial(made, index, "at_once") for index in range(4)])
    assert found == expected * 2


def test_gradients_in_threads() -> None:
    program = quantized(Unrolled())
    inputs = pictures(4)

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(program(x).square().sum(), [x])
        return slope

    expected = [gradient(x) for x in inputs]
    again = quantized(Unrolled())
    again.load_state_dict(program.state_dict())
    assert all(map(torch.equal, at_once([functools.partial(gradient, x) for x in inputs]), expected))


# -- what other threads see while one captures -------------------------------------------------------------------------


class Paused(nn.Module):
    """Stops in the middle of its forward, in whichever thread it runs, while `gate` says so."""

    gate: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        Paused.gate()
        return x * int(x.shape[2] // 2)


def all_ways(value: int) -> list[Any]:
    """What Python code may do with the names that a trace replaces; every entry as plain Python has it."""
    return [
        int is type(value),
        (0).__class__ is int,
        isinstance(range(value), range),
        type(range(value)) is range,
        type(value),
        type("of int", (int,), {})(value) + 1,
        torch.zeros(value, dtype=int).dtype,
        torch.zeros(value, dtype=float).dtype,
        np.zeros(value, dtype=int).dtype,
        math.floor(value / 2),
        type(math),
        sqrt(value),
        add.reduce([value, 1]),
        max([value, 7], key=lambda one: -one),
        remembered(value),
        remembered.cache_info().maxsize,
        Holding.double.cache_info().maxsize,
        Holding().double(value),
        len("four"),
        list(map(int, generated(value))),
        COUNT,
    ]


@functools.lru_cache(maxsize=7)
def remembered(value: int) -> int:
    return int(value) + 1


def generated(value: int) -> Iterator[int]:
    for index in range(int(value)):
        yield min(index, 2)


COUNT = 0


class Holding(nn.Module):
    @functools.lru_cache(maxsize=5)  # noqa: B019  # it is what networks do
    def double(self, value: int) -> int:
        return 2 * int(value)


class PausedWithAll(Paused):
    """The file of this network is replaced while it is traced, and `Holding` is a class of it."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = Holding()


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * slope


def while_captured(model: nn.Module, call: Callable[[], Any]) -> Any:
    """The result of a call in another thread than the one that is in the middle of capturing `model`.

    Each time the network runs for the capture the call is made once; all results must agree.
    """
    results: list[Any] = []
    capturing = threading.get_ident()

    def elsewhere() -> None:
        if threading.get_ident() == capturing:
            thread = threading.Thread(target=lambda: results.append(call()))
            thread.start()
            thread.join(WAIT)
            assert not thread.is_alive(), "the other thread waits for the capture"

    Paused.gate = staticmethod(elsewhere)
    try:
        Program(model.eval(), torch.rand(1, 3, 8, 8))
    finally:
        Paused.gate = staticmethod(lambda: None)
    assert len(results) > 3
    assert all(repr(result) == repr(results[0]) for result in results)
    return results[0]


def test_names_are_pythons_own_in_other_threads() -> None:
    expected = all_ways(5)
    assert expected[:4] == [True] * 4
    assert repr(while_captured(PausedWithAll(), lambda: all_ways(5))) == repr(expected)
    assert repr(all_ways(5)) == repr(expected)


def test_the_users_network_in_other_threads() -> None:
    model = PausedWithAll().eval()
    x = torch.rand(2, 3, 10, 12)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(while_captured(model, torch.no_grad()(lambda: model(x))), expected)


def test_gradients_of_own_functions_in_other_threads() -> None:
    def slope() -> Tensor:
        x = torch.arange(3.0, requires_grad=True)
        Squared.apply(x).sum().backward()
        assert x.grad is not None
        return x.grad

    assert while_captured(PausedWithAll(), slope).tolist() == [0, 2, 4]


def test_a_known_graph_runs_while_another_network_is_captured() -> None:
    program = quantized(Unrolled())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(while_captured(PausedWithAll(), lambda: program(x)), program(x))


def test_calls_of_other_threads_are_not_recorded() -> None:
    model, other = PausedWithAll().eval(), Residual().eval()

    def nodes() -> list[str]:
        program = Program(model, torch.rand(1, 3, 8, 8))
        return [f"{node} {node.meta.get('path')}" for node in program.variants[0].capture.graph.nodes]

    def elsewhere() -> None:
        thread = threading.Thread(target=other, args=(torch.rand(1, 3, 8, 8),))
        thread.start()
        thread.join(WAIT)

    calm = nodes()
    Paused.gate = staticmethod(elsewhere)
    try:
        assert nodes() == calm
    finally:
        Paused.gate = staticmethod(lambda: None)


def test_what_a_network_assigns_to_a_global_is_there_afterwards() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            global COUNT  # noqa: PLW0603  # it is what networks do
            COUNT = 3
            return x * COUNT

    global COUNT  # noqa: PLW0603
    try:
        Program(Counting().eval(), torch.rand(1, 3, 8, 8))
        assert globals()["COUNT"] == 3
    finally:
        COUNT = 0


def test_everything_is_put_back() -> None:
    before = {name: value.__code__ for name, value in globals().items() if hasattr(value, "__code__")}
    names, limit = dict(globals()), sys.getrecursionlimit()
    Program(PausedWithAll().eval(), torch.rand(1, 3, 8, 8))
    assert dict(globals()) == names
    assert all(globals()[name].__code__ is code for name, code in before.items())
    assert sys.getrecursionlimit() == limit
    assert CAPTURING.acquire(blocking=False)
    CAPTURING.release()


def test_deep_networks_in_threads_leave_the_limit_of_recursion() -> None:
    def deep(depth: int) -> nn.Module:
        model: nn.Module = nn.Conv2d(3, 3, 3, 1, 1)
        for _ in range(depth):
            model = nn.Sequential(model)
        return model.eval()

    limit = sys.getrecursionlimit()
    models = [deep(60), deep(90), deep(120)]
    at_once([functools.partial(Program, model, torch.rand(1, 3, 8, 8)) for model in models])
    assert sys.getrecursionlimit() == limit


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_cache_bounds_values_and_sizes() -> None:
    cache: Cache[str] = Cache()
    cache.add(0, "first", 2)
    for size in range(1, 2 * SIZES):
        cache.remember(size, "first")
    assert cache.sizes == SIZES
    assert (cache.get(0), cache.get(2 * SIZES - 1)) == (None, "first")
    cache.add("a", "second", 2)
    assert cache.get(2 * SIZES - 1) == "first"
    cache.add("b", "third", 2)
    assert cache.values == ("first", "third")
    assert cache.get("a") is None
    cache.remember("a", "second")
    assert cache.get("a") is None


class Frozen(nn.Module):
    """Numbers of numpy, which a graph holds for one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.from_numpy(np.full(x.shape[2:], x.shape[2], np.float32)))  # type: ignore[no-any-return]


def test_nothing_piles_up() -> None:
    """No more graphs, constants, sizes, sources and objects after sixty sizes than after forty."""
    program = quantized(Frozen(), limit=3)

    def kept() -> tuple[int, ...]:
        gc.collect()
        sources = graph_module._loader.eval_cache  # torch has no other way to ask
        graphs = sum(issubclass(type(one), torch.fx.Graph) for one in gc.get_objects())
        constants = list(program.holder.constants.buffers())
        return len(program.variants), len(constants), program._cache.sizes, len(sources), graphs

    found = []
    for start in (0, 20, 40):
        for index in range(start, start + 20):
            x = torch.rand(1, 3, 12 + 4 * index, 8)
            assert program(x).isfinite().all()
        found.append(kept())
    assert {one[:3] for one in found} == {(3, 5, 3)}
    # Sources and graphs of earlier tests may still go meanwhile.
    assert all(later <= earlier for earlier, later in zip(found[1], found[2], strict=True))
