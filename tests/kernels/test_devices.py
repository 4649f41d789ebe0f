"""Lowering for the device a network is on: nothing is made on another one by the way, and moving lowers anew."""

from __future__ import annotations

import pytest
import torch

from fxptq.kernels import lower as lowering
from fxptq.kernels.backend import Backend, Installed, get_backend
from fxptq.kernels.cuda import register
from fxptq.kernels.lower import lower
from fxptq.kernels.rewrite import rewrite
from tests.kernels.networks import NETWORKS, quantized
from tests.kernels.test_lower import run

CPU, TRITON = get_backend("cpu"), get_backend("triton")


@pytest.mark.parametrize("backend", [CPU, TRITON], ids=["cpu", "triton"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_made_on_the_default_device(name: str, backend: Backend) -> None:
    """A tensor made without saying where would be a meta tensor here, which meets the network's own nowhere."""
    program, x = quantized(name, 4, "tensor")
    variant = program.variant((x,))
    expected = run(rewrite(variant, program.holder, backend).module, x.clone())
    with torch.device("meta"):
        module = rewrite(variant, program.holder, backend).module
        found = run(module, x.clone())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_equal_panels(name: str) -> None:
    program, x = quantized(name, 4)
    variant = program.variant((x,))
    found, expected = (run(rewrite(variant, program.holder, backend).module, x.clone()) for backend in (TRITON, CPU))
    assert float((found - expected).abs().mean()) <= 1e-3 * float(expected.max() - expected.min())


def test_moving_lowers_anew() -> None:
    program, x = quantized("windows", 4)
    model = lower(program, compile=False)
    before, expected = model.of(program.variants[0]), run(model, x)
    assert model.of(program.variants[0]) is before
    assert model.to("cpu") is model
    assert model.of(program.variants[0]) is not before
    assert torch.equal(run(model, x), expected)


def test_the_device_decides_and_the_lowering_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = quantized("plain", 4)
    on_cpu = lower(program, compile=False)
    assert on_cpu.lowering.kernels["first"] == "conv3x3"
    monkeypatch.setattr(lowering, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(register, "backend", lambda: Installed("torch", "PyTorch finds no CUDA device"))
    on_gpu = lower(program, compile=True)  # plain torch is not compiled
    assert set(on_gpu.lowering.kernels.values()) == {"rows_conv2d"}
    assert on_gpu.lowering.backend == Installed("torch", "PyTorch finds no CUDA device")
    assert torch.allclose(run(on_gpu, x), run(on_cpu, x), atol=1e-4)


class OnMeta(torch.fx.Interpreter):
    """Runs a graph on tensors without content on a device of their own, as torch.compile traces it."""

    def fetch_attr(self, target: str) -> object:
        found = super().fetch_attr(target)
        return emptied(found) if isinstance(found, torch.Tensor) else found


def emptied(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "odd"])  # which holds modules, not tensors
def test_operators_can_be_traced_on_another_device(name: str) -> None:
    program, x = quantized(name, 4, "tensor")
    module = rewrite(program.variant((x,)), program.holder, TRITON).module
    with torch.no_grad():
        found = OnMeta(module).run(emptied(x))
    expected = run(module, x.clone())
    assert found.device.type == "meta"
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
