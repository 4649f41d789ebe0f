"""Whole networks on integer kernels equal the simulation up to float rounding, at every size, whatever is in them."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from fxptq.graph import Bits, Plan, Program
from fxptq.kernels import ops
from fxptq.kernels.build import backend
from fxptq.kernels.lower import IntegerModel, lower
from tests.kernels.networks import NETWORKS, quantized, set_bounds

KERNELS = {
    "plain": {"head": "conv2d", "first": "conv3x3", "second": "conv3x3", "tail": "conv2d"},
    "odd": {"stem": "conv2d", "depthwise": "depthwise_conv2d", "down": "conv2d", "up": "integers in floats"},
    "windows": {
        "qkv": "linear",
        "matmul_0": "attention",
        "matmul_1": "attention",
        "fc1": "linear",
        "last": "narrow_conv2d",
    },
    "rectangles": {"matmul_0": "attention", "matmul_1": "attention", "proj": "linear"},
    "channels": {"matmul_0": "matmul", "matmul_1": "matmul", "qkv": "conv2d"},
    "in-place": {"a": "conv2d", "b": "conv2d", "c": "narrow_conv2d"},
    "fused": {"q": "linear", "kv": "linear", "out": "linear"},
}


def assert_equal_up_to_rounding(found: Tensor, expected: Tensor) -> None:
    """Equal but for what one or two codes beside a tie may touch: rounding may put them on either side of it."""
    assert found.shape == expected.shape
    error = (found - expected).abs() / float(expected.max() - expected.min())
    assert float(error.median()) < 1e-4
    assert float(error.mean()) < 1e-3


def run(model: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("name", NETWORKS)
def test_integers_equal_the_simulation(name: str, granularity: str, bits: int) -> None:
    program, x = quantized(name, bits, granularity)
    model = lower(program, compile=False)
    assert not model.lowering.simulated
    assert set(model.lowering.kernels) == {site.name for site in program.sites}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_serve_the_sites_they_are_for(name: str) -> None:
    program, _ = quantized(name, 4)
    kernels = lower(program, compile=False).lowering.kernels
    assert {site: kernels[site] for site in KERNELS[name]} == KERNELS[name]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "windows"])
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 12, 16), (2, 8, 10)], ids=str)
def test_every_size(name: str, size: tuple[int, int, int]) -> None:
    program, _ = quantized(name, 4)
    x = torch.rand(size[0], 3, *size[1:])
    assert_equal_up_to_rounding(run(lower(program, compile=False), x), run(program, x))


def test_fused_attention_and_hoisted_quantizers_leave_no_float_between() -> None:
    program, x = quantized("windows", 4)
    model = lower(program, compile=False)
    run(model, x)
    calls = [str(node.target) for node in graph_of(model).nodes if node.op == "call_function"]
    assert sum("fxptq" in call for call in calls) == 10
    assert calls.count("fxptq.attention.default") == 1
    assert calls.count("fxptq.layer_norm_codes.default") == 2
    assert calls.count("fxptq.quantize.default") == 1  # of the image
    assert not any("softmax" in call or "gelu" in call for call in calls)


def graph_of(model: IntegerModel) -> torch.fx.Graph:
    return model.of(model.program.variants[0]).module.graph


def test_residual_is_added_in_the_epilogue() -> None:
    program, _ = quantized("plain", 4)
    nodes = [node for node in graph_of(lower(program, compile=False)).nodes if "fxptq.conv" in str(node.target)]
    assert [node.kwargs["residual"] is not None for node in nodes] == [False, False, True, False]


def test_plain_torch_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators in plain torch, as they run on a machine without a compiler."""
    program, x = quantized("windows", 4)
    model = lower(program, compile=False)
    native = run(model, x)
    plain = torch.fx.Interpreter(model.of(program.variants[0]).module)
    swap = {getattr(torch.ops.fxptq, name).default: function for name, function in ops.PLAIN.items()}
    original = torch.fx.Interpreter.call_function
    monkeypatch.setattr(
        torch.fx.Interpreter,
        "call_function",
        lambda self, target, args, kwargs: original(self, swap.get(target, target), args, kwargs),
    )
    with torch.no_grad():
        assert_equal_up_to_rounding(plain.run(x), native)


def test_lowering_leaves_the_program_as_it_was() -> None:
    program, x = quantized("windows", 4)
    before = run(program, x)
    state = {name: value.clone() for name, value in program.state_dict().items()}
    run(lower(program, compile=False), x)
    assert torch.equal(run(program, x), before)
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict().items())


def test_input_is_left_as_it_was() -> None:
    program, x = quantized("in-place", 4)
    before = x.clone()
    run(lower(program, compile=False), x)
    assert torch.equal(x, before)


def test_what_cannot_be_lowered_is_simulated_and_listed() -> None:
    program, x = quantized("plain", 4)
    program.quantizers["second.weight"].set_bounds(0.5, 0.5)
    program.quantizers["tail.input"].mode = "off"
    model = lower(program, compile=False)
    assert model.lowering.simulated == {
        "second": "a range of the weight has zero width",
        "tail": "a quantizer is off",
    }
    assert set(model.lowering.kernels) == {"head", "first"}
    assert_equal_up_to_rounding(run(model, x), run(program, x))


@pytest.mark.skipif(not backend().native, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["plain", "windows", "odd"])
def test_compiled_equals_uncompiled_and_is_one_graph(name: str) -> None:
    program, x = quantized(name, 4)
    expected = run(lower(program, compile=False), x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_equal_up_to_rounding(run(lower(program, compile=True), x), expected)
    counted = torch._dynamo.utils.counters
    assert (counted["stats"]["unique_graphs"], dict(counted["graph_break"])) == (1, {})


class Shifted(torch.nn.Module):
    """A convolution between two 1x1 convolutions that shift the mean, one that mixes colours behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.mix = (torch.nn.Conv2d(3, 3, 1) for _ in range(3))
        self.body = torch.nn.Conv2d(3, 3, 3, padding=1)
        for shift in (self.down, self.up):
            shift.weight.data = torch.diag(torch.tensor([1.0, 0.5, 2.0])).view(3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.up(self.body(self.down(x))))


@pytest.mark.skipif(not backend().native, reason="needs a C++ compiler")
def test_sizes_beyond_the_bound_run_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fxptq.kernels.lower.COMPILED_SIZES", 1)
    program, _ = quantized("plain", 4)
    model = lower(program)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with caplog.at_level(logging.INFO, "fxptq"):
        for size in (8, 10, 8, 12):
            x = torch.rand(1, 3, size, size)
            assert_equal_up_to_rounding(run(model, x), run(program, x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    assert caplog.text.count("compiled for 1 sizes already, runs uncompiled") == 2


class Repeated(torch.nn.Module):
    """As many convolutions as the input is wide: another graph for every eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // 8):
            x = self.body(x)
        return x


def test_graphs_that_the_program_drops_are_dropped() -> None:
    torch.manual_seed(1)
    program = Program(Repeated().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(8, 8), edges=None), limit=2)
    set_bounds(program, torch.rand(1, 3, 8, 8))
    model = lower(program, compile=False)
    for size in (8, 16, 24, 32):
        run(model, torch.rand(1, 3, size, size))
    assert len(model._lowered) == 2


def test_shifts_of_the_mean_are_no_convolutions() -> None:
    torch.manual_seed(1)
    x = torch.rand(1, 3, 8, 8)
    left = tuple((name, "float") for name in ("down", "up", "mix"))
    program = Program(Shifted().eval(), x, Plan(Bits(4, 4), edges=None, overrides=left))
    set_bounds(program, x)
    model = lower(program, compile=False)
    names = [str(getattr(node.target, "__name__", node.target)) for node in graph_of(model).nodes]
    assert (names.count("addcmul"), names.count("conv2d")) == (2, 1)
    assert_equal_up_to_rounding(run(model, x), run(program, x))


class Overwritten(torch.nn.Module):
    """Two convolutions read one tensor; a part of it is written over between them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.first, self.second = (torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        z, part = self.first(y), y[:, :4]
        part.zero_()
        return self.tail(z + self.second(y))


def test_codes_are_made_again_of_what_was_written_over() -> None:
    """On equal grids, too, where the codes of the one reader could pass for those of the other."""
    torch.manual_seed(1)
    program = Program(Overwritten().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(8, 8), edges=None))
    set_bounds(program, torch.rand(1, 3, 8, 8))
    first, second = (program.quantizers[f"{name}.input"] for name in ("first", "second"))
    second.restore(first.stored())
    x = torch.rand(1, 3, 8, 8)
    assert_equal_up_to_rounding(run(lower(program, compile=False), x), run(program, x))


class Computed(torch.nn.Module):
    """Convolutions whose groups, or whose padding, are made of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 3, 3, padding=1)
        self.blur, self.mix = torch.nn.Parameter(torch.rand(6, 1, 3, 3)), torch.nn.Parameter(torch.rand(6, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.conv2d(self.head(x), self.blur, padding=1, groups=6 * x.shape[1] // 3)
        return self.tail(torch.nn.functional.conv2d(y, self.mix, padding=x.shape[2] // 8))


def test_groups_made_of_sizes_are_known_and_padding_is_not() -> None:
    torch.manual_seed(1)
    program = Program(Computed().eval(), torch.rand(1, 3, 8, 8), Plan(Bits(8, 8), edges=None))
    set_bounds(program, torch.rand(1, 3, 8, 8))
    model = lower(program, compile=False)
    assert model.lowering.simulated == {"conv2d_1": "its stride, padding or dilation is computed from sizes"}
    assert model.lowering.kernels["conv2d_0"] == "depthwise_conv2d"
    for size in (8, 16, 24):
        x = torch.rand(1, 3, size, size)
        assert_equal_up_to_rounding(run(model, x), run(program, x))
