"""Whole networks on the Triton kernels: equal to the simulation, on weights packed at their width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

pytest.importorskip("triton", reason="Triton is not installed")

from fxptq.graph import Program
from fxptq.kernels.backend import get_backend
from fxptq.kernels.cuda.register import OPERATORS
from fxptq.kernels.lower import lower
from fxptq.kernels.rewrite import rewrite
from tests.kernels.cuda.helpers import INTERPRETED, Kernels
from tests.kernels.networks import ALL, NETWORKS, mapped, quantized
from tests.kernels.test_lower import assert_equal_up_to_rounding, run


class Interpreter(fx.Interpreter):
    """Runs a graph with the kernels in place of the operators."""

    def __init__(self, module: fx.GraphModule, operators: Kernels) -> None:
        super().__init__(module)
        self.swap = {getattr(torch.ops.fxptq, name).default: getattr(operators, name) for name in OPERATORS}

    def call_function(self, target, args, kwargs):  # type: ignore[no-untyped-def]  # fx's own
        return super().call_function(self.swap.get(target, target), args, kwargs)


def on_kernels(program: Program, x: Tensor, operators: Kernels, *, compile: bool = False) -> Tensor:  # noqa: A002  # as `lower`
    """The output of the lowered network: node by node in the interpreter, as it is on a GPU."""
    if not INTERPRETED:
        return run(lower(program.to("cuda"), compile=compile), x.cuda()).cpu()
    rewritten = rewrite(program.variant((x,)), program.holder, get_backend("triton"))
    with torch.no_grad():
        return Interpreter(rewritten.module, operators).run(x.clone())


@pytest.mark.parametrize(("granularity", "bits"), [("channel", 2), ("tensor", 4), ("tensor", 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_equal_the_simulation(operators: Kernels, name: str, granularity: str, bits: int) -> None:
    program, x = quantized(name, bits, granularity)
    expected = run(program, x)
    assert_equal_up_to_rounding(on_kernels(program, x, operators), expected)


@pytest.mark.parametrize("name", ["windows", "channels", "fused"])
def test_kernels_carry_maps_and_shares(operators: Kernels, name: str) -> None:
    program, x = mapped(name, 4, ALL)
    expected = run(program, x)
    assert_equal_up_to_rounding(on_kernels(program, x, operators), expected)


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter has nothing to compile for")
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_equals_the_simulation(operators: Kernels, name: str) -> None:
    program, x = quantized(name, 4)
    expected = run(program, x)
    torch._dynamo.reset()
    assert_equal_up_to_rounding(on_kernels(program, x, operators, compile=True), expected)


@pytest.mark.skipif(INTERPRETED, reason="needs two devices")
def test_a_lowered_network_can_move(operators: Kernels) -> None:
    program, x = quantized("windows", 4)
    model = lower(program, compile=False)
    on_cpu = run(model, x)
    assert "conv2d" in model.lowering.kernels.values()
    assert_equal_up_to_rounding(run(model.to("cuda"), x.cuda()).cpu(), on_cpu)
    assert model.lowering.backend.name == "triton"
    assert "rows_conv2d" in model.lowering.kernels.values()
    assert torch.equal(run(model.to("cpu"), x), on_cpu)
