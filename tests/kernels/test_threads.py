"""Threads and processes: integer models called by many at once, and kernels that many want to build at once."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxptq.errors import InputError
from fxptq.graph.exclusive import CAPTURING
from fxptq.kernels import build
from fxptq.kernels.lower import COMPILED_SIZES, IntegerModel, lower
from fxptq.kernels.once import once
from tests.graph.test_program import Unrolled
from tests.graph.test_threads import Residual, pictures, quantized
from tests.threads import at_once

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("limit", [16, 3], ids=["all graphs are kept", "graphs come and go"])
@pytest.mark.parametrize("network", [Unrolled, Residual])
def test_one_integer_model_at_many_sizes(network: type[nn.Module], limit: int) -> None:
    program = quantized(network(), limit)
    inputs = pictures(10)
    alone = lower(copy.deepcopy(program), compile=False)
    expected = [alone(x) for x in inputs]
    shared = lower(program, compile=False)
    for found in (at_once([functools.partial(shared, x) for x in inputs]), [shared(x) for x in inputs]):
        assert all(map(torch.equal, found, expected))


def test_the_same_sizes_again_and_again() -> None:
    model = lower(quantized(Unrolled()), compile=False)
    inputs = pictures(6)
    expected = [model(x) for x in inputs]
    for found, theirs in zip(at_once([functools.partial(model, x) for x in inputs], rounds=20), expected, strict=True):
        assert all(torch.equal(ours, theirs) for ours in found)


def test_simulation_and_integers_of_one_program() -> None:
    program = quantized(Unrolled())
    model = lower(program, compile=False)
    inputs = pictures(5)
    calls = [functools.partial(run, x) for x in inputs for run in (program, model)]
    alone = quantized(Unrolled())
    alone.load_state_dict(program.state_dict())
    integers = lower(alone, compile=False)
    assert all(map(torch.equal, at_once(calls), [run(x) for x in inputs for run in (alone, integers)]))


def test_several_integer_models_at_once() -> None:
    programs = [quantized(network()) for network in (Unrolled, Residual, Unrolled)]
    inputs = pictures(4)

    def work(program: Any) -> list[Tensor]:
        model = lower(program, compile=False)
        return [model(x) for x in inputs]

    expected = [work(copy.deepcopy(program)) for program in programs]
    found = at_once([functools.partial(work, program) for program in programs])
    assert all(map(torch.equal, chain(*found), chain(*expected)))


class Form(nn.Module):
    """Stands in for a lowered graph: counts how it is run, and compiles nothing."""

    def __init__(self, on_compiled: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()
        self.on_compiled = on_compiled

    def compile(self, **_: Any) -> None:
        """As `nn.Module.compile`, after which a call, and not `forward`, is of the compiled form."""

    def __call__(self, x: Tensor) -> Tensor:
        self.runs["compiled"] += 1
        self.on_compiled()
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.runs["uncompiled"] += 1
        return x


def with_form(form: Form) -> Any:
    """The record of a lowered graph, which is compiled for up to `COMPILED_SIZES` sizes, with a form of our own."""
    from fxptq.kernels.lower import _Lowered  # noqa: PLC0415
    from fxptq.kernels.rewrite import Rewritten  # noqa: PLC0415

    variant: Any = SimpleNamespace(inserted=fx.Graph())
    module: Any = form
    return _Lowered(variant, Rewritten(module, {}, {}), COMPILED_SIZES)


def test_while_another_thread_captures_or_compiles_the_graph_runs_uncompiled() -> None:
    lowered, x = with_form(Form()), (torch.rand(1),)
    form = lowered.rewritten.module
    with CAPTURING:
        at_once([lambda: lowered.run(x)])
    assert form.runs == {"uncompiled": 1}
    lowered.run(x)
    assert form.runs == {"uncompiled": 1, "compiled": 1}


def test_compiled_code_that_another_compilation_stops_runs_uncompiled() -> None:
    def fail() -> None:
        if form.runs["compiled"] > 1:
            raise RuntimeError("Detected that you are using FX to symbolically trace a dynamo-optimized function.")

    form = Form(fail)
    lowered, x = with_form(form), (torch.rand(1),)
    assert all(torch.equal(lowered.run(x), x[0]) for _ in range(2))
    assert form.runs == {"compiled": 2, "uncompiled": 1}


def test_other_errors_of_compiled_code_are_raised() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    lowered = with_form(Form(fail))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            lowered.run((torch.rand(1),))
    assert CAPTURING.acquire(blocking=False)
    CAPTURING.release()


@pytest.mark.slow
def test_compiled_models_in_threads() -> None:
    """Compiling takes seconds, in which other threads run what they can; all outputs are those of the simulation."""
    if not build.backend().native:
        pytest.skip("needs a C++ compiler")
    programs = [quantized(network()) for network in (Unrolled, Residual)]
    inputs = pictures(3)
    expected = [[lower(program, compile=False)(x) for x in inputs] for program in programs]
    models = [lower(program) for program in programs]
    calls = [functools.partial(model, x) for model in models for x in inputs]
    for found, theirs in zip(at_once(calls, rounds=4), chain(*expected), strict=True):
        for ours in found:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_lowered_graphs_are_bounded() -> None:
    program = quantized(Unrolled(), limit=3)
    model = lower(program, compile=False)

    def kept() -> tuple[int, int]:
        gc.collect()
        graphs = sum(issubclass(type(one), torch.fx.Graph) for one in gc.get_objects())
        return len(model._lowered), graphs

    found = []
    for _ in range(3):
        for x in pictures(8):
            model(x)
        found.append(kept())
    assert [lowered for lowered, _ in found] == [3] * 3
    assert found[2][1] <= found[1][1]  # graphs of earlier tests may still go meanwhile


def test_a_copy_of_a_model_runs() -> None:
    model = lower(quantized(Residual()), compile=False)
    again = copy.deepcopy(model)
    assert isinstance(again, IntegerModel)
    x = torch.rand(1, 3, 12, 8)
    assert torch.equal(again(x), model(x))


# -- what is done once -------------------------------------------------------------------------------------------------


def test_many_threads_do_it_once() -> None:
    calls: list[int] = []
    entered = threading.Event()

    @once
    def install() -> object:
        calls.append(threading.get_ident())
        entered.wait(0.2)  # the others arrive meanwhile
        return object()

    assert len({id(result) for result in at_once([install] * 8)}) == len(calls) == 1


def test_a_failure_is_tried_again() -> None:
    outcomes = [OSError("no room"), None]

    @once
    def install() -> str:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return "installed"

    with pytest.raises(OSError, match="no room"):
        install()
    assert install() == install() == "installed"
    assert not outcomes


def test_a_registry_asked_by_many_threads() -> None:
    """In a process of its own, in which nothing is imported yet."""
    program = (
        "from tests.threads import at_once\n"
        "from fxptq.kernels.backend import backend_names, get_backend\n"
        "from fxptq.passes.base import build_pass\n"
        "ask = lambda: (tuple(backend_names()), get_backend('cpu').name, type(build_pass('minmax', {})).__name__)\n"
        "found = at_once([ask] * 8)\n"
        "assert len(set(found)) == 1, found\n"
        "print(*found[0][0])"
    )
    done = ran([program])[0]
    assert done[0] == 0, done[2]
    assert {"cpu", "torch", "triton"} <= set(done[1].split())


# -- processes ---------------------------------------------------------------------------------------------------------


def ran(programs: Sequence[str], **environment: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of Python programs that run at once, each in a process of its own."""
    started = [
        subprocess.Popen(  # noqa: S603  # this very interpreter, on programs written here
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=dict(os.environ) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program in programs
    ]
    outputs = [process.communicate() for process in started]
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


@pytest.mark.slow
def test_many_processes_build_at_once(tmp_path: Path) -> None:
    """All have the kernels, which one of them has built, and nothing else is left in the cache."""
    real = shutil.which(os.environ.get("CXX", "")) or shutil.which("c++")
    if real is None:
        pytest.skip("needs a C++ compiler")
    wrapper = tmp_path / "bin" / "c++"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*-o*) echo built >> {tmp_path}/builds;; esac\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    program = "from fxptq.kernels import build; found = build.backend(); print(found.native, found.name)"
    cache = tmp_path / "cache"
    found = ran([program] * 6, XDG_CACHE_HOME=str(cache), CXX=str(wrapper))
    assert {(status, output.split()[0]) for status, output, _ in found} == {(0, "True")}, found
    assert len({output for _, output, _ in found}) == 1
    names = sorted(path.name for path in cache.rglob("*") if path.is_file())
    assert names == ["fxptq_kernels.sha256", "fxptq_kernels.so"]
    assert (tmp_path / "builds").read_text().split() == ["built"]


def test_an_unknown_back_end_is_unknown_to_every_thread() -> None:
    from fxptq.kernels.backend import get_backend  # noqa: PLC0415

    def ask() -> str:
        with pytest.raises(InputError) as caught:
            get_backend("nothing")
        return str(caught.value)

    assert len(set(at_once([ask] * 4))) == 1
