"""Storage in half precision rounds, and does no more: small constants, LayerScale and tables keep their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxptq
from fxptq.checkpoint.file import read
from fxptq.checkpoint.state import coded_weights, round_floats
from tests.tiny import edsr, inputs


def rounded(**tensors: Tensor) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=False))
    round_floats(module, torch.float16)
    return module


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.tensor(1e-8), id="epsilon"),
        pytest.param(torch.full((16,), 3e-8), id="LayerScale"),
        pytest.param(torch.full((1, 16, 1, 1), 3e-8), id="LayerScale, broadcast"),
        pytest.param(torch.full((8, 8), 3e-8), id="tiny matrix"),
        pytest.param(torch.tensor([1.0, 2e-8]), id="one tiny gate"),
        pytest.param(torch.tensor([70_000.0]), id="beyond the largest"),
    ],
)
def test_parameters_that_half_precision_would_change_are_kept(tensor: Tensor) -> None:
    assert torch.equal(rounded(p=tensor).p, tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(64, 64) / 20, torch.randn(64) / 10, torch.zeros(5), torch.tensor([1.0, float("inf")])],
    ids=["matrix", "bias", "zeros", "infinite"],
)
def test_others_are_rounded(tensor: Tensor) -> None:
    assert torch.equal(rounded(p=tensor).p, tensor.half().float())


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20))
def test_no_value_of_a_bias_moves_by_more_than_one_part_in_64(values: list[float]) -> None:
    tensor = torch.tensor(values)
    found = rounded(p=tensor).p
    assert bool(((found - tensor).abs() <= tensor.abs() / 64).all())


def test_buffers_are_never_rounded() -> None:
    module = nn.Module()
    module.register_buffer("position", torch.arange(4096.0))
    module.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.404]), persistent=False)
    round_floats(module, torch.float16)
    assert torch.equal(module.position, torch.arange(4096.0))
    assert torch.equal(module.mean, torch.tensor([0.4488, 0.4371, 0.404]))


class Coordinates(nn.Module):
    """Reads pixel coordinates beyond those that half precision can tell apart, and divides by a small constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.register_buffer("position", torch.arange(4096.0))
        self.eps = nn.Parameter(torch.tensor(1e-8))

    def forward(self, x: Tensor) -> Tensor:
        place = (self.position[4000 : 4000 + x.shape[-1]] % 8 / 8).expand(len(x), 1, x.shape[-2], -1)
        y = torch.relu(self.a(torch.cat([x, place], 1)))
        return self.c(y / (y.norm(dim=1, keepdim=True) + self.eps))


def test_a_network_of_such_tensors_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Coordinates().eval(), torch.rand(1, 3, 24, 24)
    q = fxptq.quantize(network, x, 8, calib=[x], preset="quick")
    q.save(tmp_path / "m.safetensors")
    loaded = fxptq.load(tmp_path / "m.safetensors", Coordinates())
    with torch.no_grad():
        assert torch.equal(loaded(x), q(x))
        assert float((q(x) - network(x)).norm() / network(x).norm()) < 0.05


def test_bounds_of_output_channels_take_two_bytes_each(tmp_path: Path) -> None:
    q = fxptq.quantize(edsr(), inputs(1), 4, list(inputs(2).split(1)), preset="quick", scale=2, value_range=1.0)
    q.save(tmp_path / "m.safetensors")
    content = read(tmp_path / "m.safetensors")
    weights = [key for key in coded_weights(q.program) if q.program.quantizers[key].ranges > 1]
    halves = [key for key in weights if f".{key}.exponents" not in content.floats]
    assert halves
    for key in weights:  # rounding would take 0 off the grid where there are exponents
        dtype = torch.float16 if key in halves else torch.float32
        assert {content.floats[f".{key}.{name}"].dtype for name in ("lower", "width")} == {dtype}
    assert torch.equal(fxptq.load(tmp_path / "m.safetensors", edsr())(inputs(1)), q(inputs(1)))


def test_biases_that_a_pass_corrected_are_stored_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1)).eval()
    before = model[2].bias.detach().clone()
    found = fxptq.quantize(model, torch.rand(1, 3, 32, 32), bits=3, preset="quick")
    bias = found.program.holder.model[2].bias
    assert (bias - before).abs().max() > 1e-4, "refit has corrected nothing: the test shows nothing"
    assert torch.equal(bias, bias.half().float())
    found.save(tmp_path / "half.safetensors")
    loaded, x = fxptq.load(tmp_path / "half.safetensors", model=model), torch.rand(1, 3, 24, 40)
    with torch.no_grad():
        assert torch.equal(loaded(x), found(x))
