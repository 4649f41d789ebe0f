"""One weight read by several sites: each reads it on a grid of its own, and file and integers equal the simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxptq
from fxptq.quantized import QuantizedModel
from fxptq.recipe import Recipe
from tests.tiny import settings

TRAINED = (
    '{ name = "dobi" }, '
    '{ name = "dqc", steps = 2, batch = 1, patch = 8, holdout_crops = 1, eval_every = 1, rounding_lr = 0.1 }, '
    '{ name = "gptq" }'
)


def uneven(*shape: int) -> nn.Parameter:
    """Outputs along the first and the second axis have ranges far apart, so that the axis of a grid shows."""
    rows, columns = (torch.logspace(-1, 1, size) for size in shape[:2])
    return nn.Parameter(torch.randn(shape) * torch.outer(rows, columns).view(*shape[:2], *(1 for _ in shape[2:])))


class Tied(nn.Module):
    """A convolution, and a transposed one or another call with the same weight."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], weight: nn.Parameter) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.call, self.weight = call, weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        return self.tail(y + self.call(y, self.weight) / 100)  # type: ignore[no-any-return]


def both(x: Tensor, w: Tensor) -> Tensor:
    return F.conv_transpose2d(F.conv2d(x, w, padding=1).relu(), w, padding=1)


def both_in_groups(x: Tensor, w: Tensor) -> Tensor:
    return F.conv_transpose2d(F.conv2d(x, w, padding=1, groups=2), w, padding=1, groups=2)


def dictionary(x: Tensor, w: Tensor) -> Tensor:
    return F.conv_transpose2d(F.conv2d(x, w, stride=2), w, stride=2, output_padding=0)


def turned(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(x, w, padding=1), w.transpose(0, 1), padding=1)


def linear_and_product(x: Tensor, w: Tensor) -> Tensor:
    pixels = x.permute(0, 2, 3, 1)
    return (F.linear(pixels, w) @ w).permute(0, 3, 1, 2)


def read_in_float(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, padding=1) + w.sum()


NETWORKS: dict[str, Callable[[], Tied]] = {
    "convolution and transposed convolution": lambda: Tied(both, uneven(8, 8, 3, 3)),
    "in groups": lambda: Tied(both_in_groups, uneven(8, 4, 3, 3)),
    "of another size": lambda: Tied(dictionary, uneven(12, 8, 2, 2)),
    "turned": lambda: Tied(turned, uneven(8, 8, 3, 3)),
    "linear and product": lambda: Tied(linear_and_product, uneven(8, 8)),
    "convolution and a sum": lambda: Tied(read_in_float, uneven(8, 8, 3, 3)),
}


def quantized(network: str, recipe: Recipe, bits: int = 4) -> tuple[Tied, QuantizedModel]:
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    images = [torch.rand(1, 3, 12, 16) for _ in range(3)]
    return model, fxptq.quantize(model, images[0], fxptq.Bits(bits, bits), images, recipe)


@pytest.mark.parametrize("passes", ['{ name = "minmax" }', TRAINED], ids=["minmax", "trained"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("network", NETWORKS)
def test_file_and_integers_equal_the_simulation(network: str, granularity: str, passes: str, tmp_path: Path) -> None:
    _, made = quantized(network, settings(passes, weight_granularity=granularity))
    made.save(tmp_path / "tied.safetensors")
    torch.manual_seed(1)
    read = fxptq.load(tmp_path / "tied.safetensors", NETWORKS[network]().eval())
    x = torch.rand(2, 3, 12, 16)
    with torch.no_grad():
        expected, integers = made(x), made.to_integer(compile=False)(x)
        assert torch.equal(read(x), expected)
    # Rounding in float may tip single codes of the last layer's input; a wrong grid shows nearly everywhere.
    apart = (integers - expected).abs() > 1e-4 * expected.abs().max()
    assert float(apart.float().mean()) < 0.05


@pytest.mark.parametrize("network", ["convolution and transposed convolution", "in groups", "of another size"])
def test_every_output_is_quantized_in_its_own_range(network: str) -> None:
    """With eight bits between the extremes, no value is off by more than half a step of its own output's range."""
    model, made = quantized(network, settings('{ name = "minmax" }', edges="low", float_dtype="fp32"), bits=8)
    weight, axes = model.weight.detach(), {"conv2d": 0, "conv_transpose2d": 1}
    seen = set()
    for site in made.sites:
        if site.shapes["weight"] != tuple(weight.shape):
            continue
        rows = weight.movedim(axes[site.kind], 0).flatten(1)
        step = (rows.amax(1) - rows.amin(1)) / 255
        with torch.no_grad():
            values = made.program.quantizers[site.operand("weight").quantizer](weight)
        error = (values - weight).movedim(axes[site.kind], 0).flatten(1).abs().amax(1)
        assert (error <= step * 0.501).all()
        seen.add(site.kind)
    assert seen == set(axes)


def test_sites_that_agree_on_the_axis_still_share() -> None:
    model = Tied(lambda x, w: F.conv2d(F.conv2d(x, w, padding=1), w, padding=2, dilation=2), uneven(8, 8, 3, 3))
    made = fxptq.quantize(model.eval(), torch.rand(1, 3, 12, 16), fxptq.Bits(4, 4), [torch.rand(1, 3, 12, 16)])
    first, second = (site.operand("weight") for site in made.sites if site.name.startswith("conv2d"))
    assert first.quantizer == second.quantizer


@pytest.mark.parametrize("network", ["convolution and transposed convolution", "convolution and a sum"])
def test_a_weight_with_other_readers_is_not_moved(network: str) -> None:
    model, made = quantized(network, settings(TRAINED, float_dtype="fp32"))
    assert torch.equal(made.program.holder.model.weight, model.weight)


def test_a_weight_that_a_float_layer_reads_too_is_not_moved() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.up, self.tail = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            self.up.weight = self.body.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x)
            return self.tail(self.up(y + F.gelu(self.body(y))))  # type: ignore[no-any-return]

    model, images = Net().eval(), [torch.rand(1, 3, 12, 16) for _ in range(3)]
    made = fxptq.quantize(
        model, images[0], fxptq.Bits(3, 3), images, settings(TRAINED, float_dtype="fp32"), sites={"up": "float"}
    )
    assert torch.equal(made.program.holder.model.body.weight, model.body.weight)
