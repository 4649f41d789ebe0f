"""Integers equal the simulation or refuse: other batches, broadcast factors, keywords, NaN, channels, deep products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.errors import FxptqError
from fxptq.graph import Bits, Plan, Program
from fxptq.kernels.lower import IntegerModel, lower
from fxptq.quant.grid import Grid
from tests.kernels.helpers import Operators, arguments_of, codes, factors
from tests.kernels.networks import set_bounds


class Tokens(nn.Module):
    """Tokens of 4x4 patches, worked on by `change`, and pictures made of them again."""

    def __init__(self, change: Callable[[Any, Tensor], Tensor], width: int = 16, tokens: int = 16) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 48)
        self.mix, self.qkv = nn.Linear(width, width), nn.Linear(width, 3 * width)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.3)
        self.words = nn.Parameter(torch.randn(1, 12, width) * 0.3)
        self.heads_bias = nn.Parameter(torch.randn(4, tokens, tokens) * 0.3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        batch, _, height, width = y.shape
        t = self.out(self.change(self, y.flatten(2).transpose(1, 2)))
        return F.pixel_shuffle(t.transpose(1, 2).reshape(batch, 48, height, width), 4)


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (4, -1)).transpose(1, 2)


def attention(net: Any, t: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    q, k, v = (heads(part) for part in net.qkv(t).chunk(3, -1))
    return t + (logits(q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def picture_mask(net: Any, t: Tensor) -> Tensor:
    """A mask that each picture makes for itself: tokens attend to brighter ones."""
    bright = t.mean(-1)
    return attention(net, t, lambda x: x + (bright[:, None, :] - bright[:, :, None])[:, None].clamp(max=0) * 3)


CHANGES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "position map": lambda net, t: net.mix(t) + net.position,
    "position map first": lambda net, t: net.position + net.mix(t) * 0.5,
    "constant features plus the picture's": lambda net, t: net.mix(net.position) + t,
    "dictionary of words": lambda net, t: (net.mix(t) @ net.words.transpose(-2, -1)).softmax(-1) @ net.words,
    "words on the left": lambda net, t: ((net.words @ t.transpose(1, 2)).softmax(1).transpose(1, 2)) @ net.words,
    "matrix of two axes": lambda net, t: torch.matmul(net.mix(t), net.words[0].t()) @ net.words[0],
    "factors by keyword": lambda net, t: torch.matmul(input=net.mix(t), other=net.words.transpose(-2, -1)) @ net.words,
    "weight by keyword": lambda net, t: F.linear(t, weight=net.mix.weight, bias=net.mix.bias),
    "all by keyword": lambda net, t: F.linear(bias=net.mix.bias, weight=net.mix.weight, input=t),
    "bias for each head": lambda net, t: attention(net, t, lambda x: x + net.heads_bias),
    "bias made from the picture": lambda net, t: attention(
        net, t, lambda x: x + t.mean((1, 2))[:, None, None, None] * x
    ),
    "mask made from the picture": picture_mask,
    "bias of head and picture": lambda net, t: attention(
        net, t, lambda x: x + (t.mean((1, 2)).view(-1, 1, 1, 1) * net.heads_bias)
    ),
    "one for all of a batch": lambda net, t: t + net.mix(t).mean(0, keepdim=True),
}


def integers(network: nn.Module, *examples: Tensor, bits: int = 8) -> tuple[Program, IntegerModel]:
    program = Program(network.eval(), examples[0], Plan(Bits(bits, bits), edges=None, connective=None))
    set_bounds(program, torch.cat(examples))
    return program, lower(program, compile=False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_batch_equals_the_simulation(change: Callable[[Any, Tensor], Tensor], bits: int) -> None:
    torch.manual_seed(0)
    program, fast = integers(Tokens(change), torch.rand(1, 3, 16, 16), bits=bits)
    assert not fast.lowering.simulated
    for batch in (1, 2, 5):
        x = torch.rand(batch, 3, 16, 16)
        with torch.no_grad():
            expected = program(x)
            off = (fast(x) - expected).abs() / float(expected.max() - expected.min())
        assert float(off.median()) < 1e-4, batch
        assert float(off.mean()) < 2e-3, batch


class Windows(nn.Module):
    """Attention in windows of 4x4 with a mask for each window, of which the picture of the capture has one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(3, 16, 1), nn.Linear(16, 48), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        batch, width, high, wide = y.shape
        rows, columns = high // 4, wide // 4
        t = y.view(batch, width, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, width)
        q, k, v = (heads(part) for part in self.qkv(t).chunk(3, -1))
        number = torch.arange(rows * columns, dtype=torch.float32)
        mask = -0.3 * number.view(-1, 1, 1) * torch.eye(16).unsqueeze(0)
        attn = (q @ k.transpose(-2, -1)).view(batch, rows * columns, 4, 16, 16) + mask.unsqueeze(1).unsqueeze(0)
        t = t + (attn.view(-1, 4, 16, 16).softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = t.view(batch, rows, columns, 4, 4, width).permute(0, 5, 1, 3, 2, 4).reshape(batch, width, high, wide)
        return self.out(y)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 3, 8, 8), (3, 3, 4, 16), (2, 3, 8, 8)], ids=str)
def test_masks_of_windows_stay_masks_when_the_capture_had_one_window(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    program, fast = integers(Windows(), torch.rand(1, 3, 4, 4))
    x = torch.rand(shape)  # four windows are as many as there are heads
    with torch.no_grad():
        assert float((fast(x) - program(x)).abs().max()) < 0.02


@pytest.mark.parametrize("where", ["input", "division", "residual"])
def test_nan_is_seen_as_in_the_simulation(where: str) -> None:
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.c = nn.Conv2d(16, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            if where == "division":
                y = y / (x.amax((1, 2, 3), keepdim=True) + x.amin())
            if where == "residual":
                y = self.b(y) + (y / x.amax((1, 2, 3), keepdim=True)) * 0.1
            return self.c(F.relu(y))

    torch.manual_seed(0)
    x = torch.rand(1, 3, 12, 12)
    program, fast = integers(Divides(), x)
    bad = x.clone() if where == "input" else torch.zeros_like(x)
    if where == "input":
        bad[..., 3:5, 3:5] = float("nan")
    with torch.no_grad():
        expected, found = program(bad), fast(bad)
        assert expected.isnan().any() or where != "input"
        assert torch.equal(found.isnan(), expected.isnan())
        assert fast(x).isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_another_number_of_channels_is_refused_as_the_network_refuses_it(channels: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    program, fast = integers(network, torch.rand(1, 3, 8, 8))
    for model in (program, fast):
        with pytest.raises(FxptqError, match="the network fails"):
            model(torch.rand(1, channels, 8, 8))


@pytest.mark.parametrize("depth", [65_535, 65_536, 65_537, 70_000, 200_001])
@pytest.mark.parametrize("kind", ["highest", "random"])
def test_sums_over_deep_products_are_exact(operators: Operators, depth: int, kind: str) -> None:
    a, b = codes((1, 2, depth), 8, kind), codes((1, depth, 3), 8, kind, seed=1)
    left, right = Grid(0.01, -0.5, 8), Grid(0.02, 0.3, 8)
    found = operators.matmul(a, b, bits=8, **arguments_of(factors(left, right)))
    expected = (a.double() * left.scale + left.offset) @ (b.double() * right.scale + right.offset)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_batches_of_factors_are_repeated_as_torch_does(operators: Operators) -> None:
    left, right = Grid(0.01, -0.5, 4), Grid(0.02, 0.3, 4)
    for shape_a, shape_b in (((1, 5, 6), (3, 6, 7)), ((3, 5, 6), (6, 7)), ((2, 1, 5, 6), (3, 6, 7)), ((5, 6), (6, 7))):
        a, b = codes(shape_a, 4), codes(shape_b, 4, seed=1)
        found = operators.matmul(a, b, bits=4, **arguments_of(factors(left, right)))
        expected = (a.double() * left.scale + left.offset) @ (b.double() * right.scale + right.offset)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= 1e-6


class Tries(nn.Module):
    """Adds a map of its own where that fits, and goes another way where torch refuses the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.position = nn.Parameter(torch.rand(1, 16, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        try:
            y = y + self.position
        except RuntimeError:
            y = y * 2
        return self.tail(F.relu(y))


def test_a_network_that_catches_an_error_goes_its_other_way_on_integers() -> None:
    torch.manual_seed(0)
    program, fast = integers(Tries(), torch.rand(1, 3, 8, 8))
    for x in (torch.rand(1, 3, 12, 10), torch.rand(2, 3, 8, 8), torch.rand(3, 3, 6, 7)):
        with torch.no_grad():
            assert torch.allclose(fast(x), program(x), atol=2e-2)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 3, 8, 8, 8), (1, 3, 1, 0)], ids=str)
def test_inputs_that_the_network_refuses_are_refused_by_both(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 3))
    program, fast = integers(network, torch.rand(1, 3, 8, 8))
    for model in (program, fast):
        with pytest.raises(FxptqError, match="the network fails"):
            model(torch.rand(shape))


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(11, 7)),
        lambda x: F.pad(x, (1, 2, 1, 2), "reflect"),
        lambda x: F.pad(x, (1, 2, 1, 2), "replicate"),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.channel_shuffle(x, 4),
        lambda x: x.roll(1, 2).flip(3),
    ],
    ids=["nearest", "nearest to a size", "reflect", "replicate", "pixel shuffle", "channel shuffle", "roll and flip"],
)
def test_layers_of_other_widths_read_what_was_moved(move: Callable[[Tensor], Tensor]) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 16, 3, padding=1)
            width = move(torch.zeros(1, 16, 8, 8)).shape[1]
            self.a, self.b = nn.Conv2d(width, 8, 3, padding=1), nn.Conv2d(width, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x)
            return self.a(move(y)) + self.b(move(y))

    torch.manual_seed(0)
    plan = Plan(Bits(8, 8), edges=None, connective=None, overrides=(("b", Bits(4, 4)),))
    x = torch.rand(1, 3, 8, 8)
    program = Program(Reads().eval(), x, plan)
    set_bounds(program, x)
    fast = lower(program, compile=False)
    assert not fast.lowering.simulated
    with torch.no_grad():
        expected = program(x)
        off = (fast(x) - expected).abs() / float(expected.max() - expected.min())
    assert float(off.median()) < 1e-4
    assert float(off.mean()) < 1e-3


class BiasOfThePicture(nn.Module):
    """A linear layer and a convolution whose weights are constant and whose biases the picture makes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.mix, self.tail = nn.Conv2d(3, 16, 1), nn.Linear(16, 16), nn.Conv2d(16, 3, 1)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.head.weight, bias=self.bias * x.mean())
        y = F.linear(y.movedim(1, 3), self.mix.weight, self.bias * x.amax()).movedim(3, 1)
        return self.tail(y)


def test_a_bias_made_from_the_picture_is_not_lost() -> None:
    torch.manual_seed(0)
    program, fast = integers(BiasOfThePicture(), torch.rand(1, 3, 8, 8))
    reason = "the bias is computed from the image"
    assert fast.lowering.simulated == {"conv2d_0": reason, "linear_0": reason}
    for scale in (1.0, 0.2):
        x = torch.rand(1, 3, 8, 8) * scale
        with torch.no_grad():
            assert float((fast(x) - program(x)).abs().max()) < 0.05


def test_a_dead_channel_leaves_its_layer_on_integers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    with torch.no_grad():
        network[0].weight[[2, 7]] = 0.0
        network[0].weight[4] = 0.125
    program, fast = integers(network, torch.rand(1, 3, 8, 8))
    for channel in range(16):
        weight = network[0].weight[channel]
        lower, upper = program.quantizers["0.weight"].lower.clone(), program.quantizers["0.weight"].upper.clone()
        lower[channel], upper[channel] = weight.min(), weight.max()
        program.quantizers["0.weight"].set_bounds(lower, upper)
    fast = lower_again(program)
    assert not fast.lowering.simulated
    x = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        assert torch.allclose(fast(x), program(x), atol=2e-2)


def lower_again(program: Program) -> IntegerModel:
    return lower(program, compile=False)
