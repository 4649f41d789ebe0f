"""A row in the table of kinds is all that a new kind of site needs, from the plan to the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxptq
from fxptq.errors import InputError
from fxptq.graph import Bits, Plan, Site, kinds
from fxptq.graph.kinds import Kind, kind_named
from fxptq.recipe import QuantizeSettings
from tests.tiny import settings

PASSES = (
    '{ name = "observe" }, { name = "dobi2d" }, '
    '{ name = "dqc", steps = 1, batch = 1, patch = 8, holdout_crops = 1, eval_every = 1, rounding_lr = 0.1 }, '
    '{ name = "gptq" }'
)


class Net(nn.Module):
    """Convolutions of a picture around a layer that reads its pixels as a line, or its channels as a third axis."""

    def __init__(self, layer: nn.Module, view: str) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.layer, self.view = layer, view

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        z = y.flatten(2) if self.view == "line" else y.unsqueeze(1)
        return self.tail(y + self.layer(z).reshape(y.shape))  # type: ignore[no-any-return]


def conv1d() -> nn.Module:
    return Net(nn.Conv1d(8, 8, 4, padding="same", dilation=2, groups=2), "line").eval()


def conv3d() -> nn.Module:
    return Net(nn.Conv3d(1, 1, (3, 3, 3), padding=1), "volume").eval()


def conv_transpose1d() -> nn.Module:
    return Net(nn.ConvTranspose1d(8, 8, 3, padding=1), "line").eval()


NETWORKS = {"conv1d": conv1d, "conv3d": conv3d, "conv_transpose1d": conv_transpose1d}
ROWS = {
    "conv1d": replace(kind_named("conv1d"), reason=""),
    "conv3d": replace(kind_named("conv3d"), reason=""),
    "conv_transpose1d": kinds.transposed_convolution(1),
}


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """The table with one more row of kinds that can be quantized, for one test."""
    added = ROWS[request.param]
    others = tuple(kind for kind in kinds.KINDS if kind.name != added.name)
    monkeypatch.setattr(kinds, "KINDS", (added, *others))
    return added


def images() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.rand(1, 3, 8, 12) for _ in range(3)]


def layer_of(sites: list[Site]) -> Site:
    (found,) = (site for site in sites if site.name.startswith("layer"))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_row_the_site_stays_in_float(name: str) -> None:
    made = fxptq.quantize(NETWORKS[name](), images()[0], Bits(4, 4), images(), settings('{ name = "minmax" }'))
    site = layer_of(made.sites)
    assert (site.reason, site.bits) == (f"{name}: no quantizer for this operation", (None, None))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_with_the_row_it_goes_all_the_way(row: Kind, granularity: str, tmp_path: Path) -> None:
    model, calib = NETWORKS[row.name](), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    recipe = settings(PASSES, weight_granularity=granularity)
    made = fxptq.quantize(model, calib[0], Bits(4, 5), calib, recipe)

    site = layer_of(made.sites)
    assert (site.name, site.kind, site.bits, site.reason) == ("layer", row.name, (4, 5), "")
    assert site.operand("input").role == "one_sided"
    weight = site.operand("weight")
    outputs = site.shapes["weight"][row.weight_axis or 0]
    assert (weight.axis, weight.ranges) == (row.weight_axis, outputs if granularity == "channel" else 1)
    assert made.program.quantizers[weight.quantizer].mode == "on"

    searched, trained, rounded = made.report[1], made.report[2], made.report[-1]
    for key in (site.operand("input").quantizer, weight.quantizer):
        assert key in searched.quantizers
        assert key in trained.quantizers
    # The rows of a transposed convolution's weight are no outputs, so that it has no moments to round by.
    assert (weight.quantizer in rounded.quantizers) == (row.weight_axis == 0)

    made.save(tmp_path / "open.safetensors")
    read = fxptq.load(tmp_path / "open.safetensors", NETWORKS[row.name]())
    x = torch.rand(2, 3, 12, 8)
    with torch.no_grad():
        simulated = made(x)
        assert torch.equal(read(x), simulated)
        assert not torch.equal(simulated, model(x))
        values = made.program.weight_of(weight.quantizer)
        assert values is not None
        assert torch.unique(values).numel() <= 16 * weight.ranges

    integers = read.to_integer(compile=False)
    assert list(integers.lowering.simulated) == ["layer"]
    assert row.name in integers.lowering.simulated["layer"]
    error = (integers(x) - simulated).abs() / (simulated.max() - simulated.min())
    assert float(error.mean()) < 1e-2
    assert float(error.median()) < 1e-4


def test_plans_and_recipes_know_the_row_by_name(row: Kind) -> None:
    assert row.name in Plan(Bits(4, 4)).kinds
    assert row.name in QuantizeSettings().kinds
    assert Plan(Bits(4, 4), kinds=(row.name,)).kinds == (row.name,)
    left = settings('{ name = "minmax" }', kinds=["conv2d"])
    made = fxptq.quantize(NETWORKS[row.name](), images()[0], Bits(4, 4), images(), left)
    assert layer_of(made.sites).reason == f"{row.name} sites are left in float by the plan"
    with pytest.raises(InputError, match=rf"input should be '{row.name}', .* or 'matmul', not 'conv9d'"):
        settings('{ name = "minmax" }', kinds=["conv9d"])


def test_the_table_is_as_it_was() -> None:
    assert kinds.quantizable() == ("linear", "conv2d", "conv_transpose2d", "matmul")
