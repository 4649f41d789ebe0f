"""Integers beside float: which kernels are left to the simulation, what is said of a network, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from fxptq.io.measured import keep_record, read_record
from fxptq.kernels import pace
from fxptq.kernels.lower import IntegerModel, lower
from fxptq.kernels.pace import MOST_PIXELS, Pace, alike
from tests.kernels.networks import quantized
from tests.kernels.test_lower import assert_equal_up_to_rounding, run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known of this machine yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fxptq"


class Clock:
    """Stands for the stopwatch: integer calls take `integer` seconds, float ones `in_float`, slow sites a second."""

    def __init__(self, slow: tuple[str, ...] = (), integer: float = 0.010, in_float: float = 0.030) -> None:
        self.slow, self.integer, self.in_float = slow, integer, in_float
        self.calls = self.graphs = 0

    def call(self, function: Callable[[], Any], device: torch.device) -> float:  # noqa: ARG002  # as the stopwatch
        """Integers are timed first, in turns."""
        function()
        self.calls += 1
        return self.integer if self.calls % 2 else self.in_float

    def nodes(self, module: fx.GraphModule, inputs: Any) -> dict[fx.Node, float]:  # noqa: ARG002  # likewise
        """Times of the nodes of either graph."""
        self.graphs += 1
        return {node: 1.0 if set(self.slow) & set(node.meta.get("sites", ())) else 0.001 for node in module.graph.nodes}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clock]]:
    def wind(**settings: Any) -> Clock:
        made = Clock(**settings)
        monkeypatch.setattr(pace, "least_seconds", made.call)
        monkeypatch.setattr(pace, "node_seconds", made.nodes)
        return made

    return wind


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level(logging.INFO, "fxptq")
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records if "integers are" in r.getMessage()]


def test_a_network_that_gains(clock: Callable[..., Clock], said: Callable[[], list[tuple[str, str]]]) -> None:
    clock()
    program, x = quantized("plain", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    assert model.lowering.paces == ()
    run(model, x)
    (found,) = model.lowering.paces
    assert (found.speed_up, found.gains, found.shape) == (pytest.approx(3.0), True, tuple(x.shape))
    ((level, line),) = said()
    assert level == "INFO"
    assert line.startswith("integers are 3.0 times as fast as float here: 10 against 30 ms for 1x3x")


def test_a_network_that_loses_is_told_of(
    clock: Callable[..., Clock], said: Callable[[], list[tuple[str, str]]]
) -> None:
    clock(integer=0.060)
    program, x = quantized("plain", 4, "tensor")
    run(lower(program, compile=False, compare=True), x)
    ((level, line),) = said()
    assert level == "WARNING"
    assert line.startswith("integers are SLOWER (0.50x) than float here: 60 against 30 ms for 1x3x")


def test_nothing_is_timed_unless_asked_for(clock: Callable[..., Clock]) -> None:
    watch = clock(slow=("head",))
    program, x = quantized("plain", 4, "tensor")
    run(lower(program, compile=False), x)
    assert (watch.calls, watch.graphs) == (0, 0)


@pytest.mark.parametrize("sites", [("head",), ("first", "tail")], ids=",".join)
def test_kernels_that_lose_are_left_to_the_simulation(sites: tuple[str, ...], clock: Callable[..., Clock]) -> None:
    # The first two calls compare the whole network with and without those kernels.
    clock(slow=sites, integer=0.002, in_float=0.003)
    program, x = quantized("plain", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    assert set(model.lowering.simulated) == set(sites)
    assert set(model.lowering.kernels) == {site.name for site in program.sites} - set(sites)
    for reason in model.lowering.simulated.values():
        assert reason.startswith("slower on integers here: 1000.00 ms against ")
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_an_attention_is_left_whole(clock: Callable[..., Clock]) -> None:
    clock(slow=("matmul_0",), integer=0.002, in_float=0.003)
    program, x = quantized("windows", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    assert set(model.lowering.simulated) == {"matmul_0", "matmul_1"}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


def test_kernels_stay_where_the_whole_network_does_not_gain(clock: Callable[..., Clock]) -> None:
    clock(slow=("head",), integer=0.003, in_float=0.002)
    model = lower(quantized("plain", 4, "tensor")[0], compile=False, compare=True)
    assert not model.lowering.simulated


def test_what_is_known_is_not_timed_again(clock: Callable[..., Clock]) -> None:
    watch = clock(slow=("head",), integer=0.002, in_float=0.003)
    program, x = quantized("plain", 4, "tensor")
    first = lower(program, compile=False, compare=True)
    run(first, x)
    timed = watch.calls, watch.graphs
    second = lower(program, compile=False, compare=True)
    run(second, x)
    assert (watch.calls, watch.graphs) == timed
    assert second.lowering == first.lowering


@pytest.mark.parametrize("content", ["", "[]", '{"integer_ms": 1}', '{"integer_ms": null, "float_ms": 2}', "{" * 9999])
def test_a_damaged_record_is_measured_again(content: str, clock: Callable[..., Clock], own_cache: Path) -> None:
    watch = clock()
    program, x = quantized("plain", 4, "tensor")
    run(lower(program, compile=False, compare=True), x)
    (record,) = (own_cache / "pace").iterdir()
    record.write_text(content)
    model = lower(program, compile=False, compare=True)
    run(model, x)
    assert model.lowering.paces[0].speed_up == pytest.approx(3.0)
    assert watch.calls == 4


def test_a_cache_that_cannot_be_written(
    clock: Callable[..., Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    program, x = quantized("plain", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    run(model, x)
    assert len(model.lowering.paces) == 1


def test_sizes_that_differ_little_share_a_pace(clock: Callable[..., Clock]) -> None:
    clock()
    program, _ = quantized("plain", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    for side in (16, 20, 30, 33, 64):
        run(model, torch.rand(1, 3, side, side))
    assert [found.shape[-1] for found in model.lowering.paces] == [16, 33]


def test_large_inputs_are_not_timed_themselves(clock: Callable[..., Clock]) -> None:
    watch = clock()
    program, x = quantized("plain", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    for side in (200, 210):
        run(model, torch.rand(1, 3, side, side))
    assert [found.shape for found in model.lowering.paces] == [tuple(x.shape)]
    assert watch.calls == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (256, 1023, True),
        (256, 1024, False),
        (MOST_PIXELS, MOST_PIXELS + 1, False),
        (MOST_PIXELS + 1, 99 * MOST_PIXELS, True),
    ],
)
def test_what_is_alike(one: int, other: int, same: bool) -> None:
    assert alike(one, other) is same
    assert alike(other, one) is same


def test_records_depend_on_their_key(own_cache: Path) -> None:
    keep_record("pace", "this machine", {"ms": 1.5})
    assert read_record("pace", "this machine") == {"ms": 1.5}
    assert read_record("pace", "another machine") is None
    assert read_record("losers", "this machine") is None


def test_true_times(own_cache: Path) -> None:
    """With the true stopwatch: every figure is there, and the output is that of the simulation."""
    program, x = quantized("windows", 4, "tensor")
    model = lower(program, compile=False, compare=True)
    assert isinstance(model, IntegerModel)
    assert_equal_up_to_rounding(run(model, x), run(program, x))
    (found,) = model.lowering.paces
    assert isinstance(found, Pace)
    assert found.integer_ms > 0
    assert found.float_ms > 0
