"""Moments of convolutions of every geometry, against the convolution itself in float64.

For any weight W, the sum over all positions of (W x)^2 is the trace of W M W^T, with M the moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxptq.graph import Bits, Plan, Program
from fxptq.passes.base import Context, run_passes


class Around(nn.Module):
    """A layer between two that make its channels and the picture."""

    def __init__(self, middle: nn.Module, channels: int = 4, outputs: int = 8) -> None:
        super().__init__()
        self.head, self.middle, self.tail = nn.Conv2d(3, channels, 1), middle, nn.Conv2d(outputs, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.middle(self.head(x)))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """A convolution written as a call."""

    def __init__(self, call: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(4, 8, *args, **kwargs)


def function(call: Callable[..., Tensor], *shape: int) -> Callable[[], nn.Module]:
    return lambda: Functional(call, *shape)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "padded": (conv(3, padding=1), lambda x, w: F.conv2d(x, w, padding=1)),
    "unpadded": (conv(3), F.conv2d),
    "padded too much": (conv(3, padding=4), lambda x, w: F.conv2d(x, w, padding=4)),
    "pointwise": (conv(1), F.conv2d),
    "dilated": (conv(3, padding=2, dilation=2), lambda x, w: F.conv2d(x, w, padding=2, dilation=2)),
    "dilated, unpadded": (conv(3, dilation=3), lambda x, w: F.conv2d(x, w, dilation=3)),
    "strided": (conv(3, stride=2, padding=1), lambda x, w: F.conv2d(x, w, stride=2, padding=1)),
    "strided past its kernel": (conv(1, stride=3), lambda x, w: F.conv2d(x, w, stride=3)),
    "grouped": (conv(3, padding=1, groups=2), lambda x, w: F.conv2d(x, w, padding=1, groups=2)),
    "depthwise, dilated": (
        conv(3, padding=2, dilation=2, groups=4),
        lambda x, w: F.conv2d(x, w, padding=2, dilation=2, groups=4),
    ),
    "even kernel": (conv(2, padding=1), lambda x, w: F.conv2d(x, w, padding=1)),
    "even kernel, strided": (conv(4, stride=2, padding=1), lambda x, w: F.conv2d(x, w, stride=2, padding=1)),
    "same": (conv(3, padding="same"), lambda x, w: F.conv2d(x, w, padding="same")),
    "same, even kernel": (conv((4, 2), padding="same"), lambda x, w: F.conv2d(x, w, padding="same")),
    "same, dilated": (
        conv((2, 3), padding="same", dilation=(3, 2)),
        lambda x, w: F.conv2d(x, w, padding="same", dilation=(3, 2)),
    ),
    "valid": (conv(3, padding="valid"), F.conv2d),
    "of two axes unlike each other": (
        conv((1, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    ),
    # The border is padded before the convolution, which then pads nothing.
    "reflected": (conv(3, padding=2, padding_mode="reflect"), F.conv2d),
    "replicated, dilated": (
        conv(3, padding=1, dilation=2, padding_mode="replicate"),
        lambda x, w: F.conv2d(x, w, dilation=2),
    ),
    "circular, same, even kernel": (conv(4, padding="same", padding_mode="circular"), F.conv2d),
    # Functional calls, by names and with numbers made of sizes.
    "by names": (
        function(lambda x, w: F.conv2d(stride=(2,), weight=w, dilation=[2, 1], input=x, groups=2), 8, 2, 3, 3),
        lambda x, w: F.conv2d(x, w, stride=2, dilation=(2, 1), groups=2),
    ),
    "groups from sizes": (
        function(lambda x, w: F.conv2d(x, w, padding="same", groups=x.shape[1]), 8, 1, 4, 4),
        lambda x, w: F.conv2d(x, w, padding="same", groups=4),
    ),
    "without a batch": (
        function(lambda x, w: F.conv2d(x[0], w, None, 1, 2, 2, 2).unsqueeze(0), 8, 2, 3, 3),
        lambda x, w: F.conv2d(x, w, padding=2, dilation=2, groups=2),
    ),
    "one weight, two dilations": (
        function(lambda x, w: F.conv2d(x, w, padding=1) + F.conv2d(x, w, padding=2, dilation=2), 8, 4, 3, 3),
        lambda x, w: torch.cat([F.conv2d(x, w, padding=1), F.conv2d(x, w, padding=2, dilation=2)], 2),
    ),
}


def calibrated(middle: nn.Module) -> tuple[Context, Program]:
    """Quantizers on, moments of all positions taken."""
    torch.manual_seed(0)
    model, images = Around(middle).eval(), [torch.rand(1, 3, 15, 13 + 2 * i) for i in range(3)]
    student = Program(model, images[0], Plan(Bits(4, 6), edges=None))
    context = Context(student, Program(model, images[0]), images)
    run_passes([("minmax", {}), ("moments", {"rows": 10**6})], context)
    return context, student


def seen(program: Program, key: str, images: list[Tensor]) -> list[Tensor]:
    """What a quantizer hands on for each image, float64."""
    values: list[Tensor] = []
    handle = program.quantizers[key].register_forward_hook(lambda _m, _i, x: values.append(x.detach().double()))
    with torch.no_grad():
        for image in images:
            program(image)
    handle.remove()
    return [x if x.dim() == 4 else x.unsqueeze(0) for x in values]


def middle_of(program: Program) -> tuple[str, str]:
    """The keys of the input and the weight of the layer in the middle."""
    site = next(site for site in program.sites if site.name.startswith("middle"))
    return site.operand("input").quantizer, site.operand("weight").quantizer


@pytest.mark.parametrize(("layer", "same_by_hand"), LAYERS.values(), ids=LAYERS)
def test_moments_give_the_power_of_every_output(
    layer: Callable[[], nn.Module], same_by_hand: Callable[[Tensor, Tensor], Tensor]
) -> None:
    context, program = calibrated(layer())
    source, key = middle_of(program)
    weight, moments = program.weight_of(key), context.moments[key]
    assert weight is not None
    for _ in range(2):
        w = torch.randn(weight.shape, dtype=torch.float64)
        outputs = [same_by_hand(x, w) for x in seen(program, source, context.images)]  # type: ignore[arg-type]
        power = sum(y.square().sum((0, 2, 3)) for y in outputs)
        rows = w.flatten(1).unflatten(0, (len(moments), -1))
        torch.testing.assert_close(((rows @ moments) * rows).sum(2).flatten(), power)


@pytest.mark.parametrize("name", ["dilated, unpadded", "same, even kernel", "grouped", "one weight, two dilations"])
def test_gptq_reports_the_error_of_the_output(name: str) -> None:
    layer, same_by_hand = LAYERS[name]
    context, program = calibrated(layer())
    source, key = middle_of(program)
    weight = program.weight_of(key)
    assert weight is not None
    before, nearest = weight.double().clone(), program.quantizers[key](weight).detach().double()
    inputs = seen(program, source, context.images)  # type: ignore[arg-type]
    figures = run_passes([("gptq", {})], context)[-1].quantizers[key]

    def decibels(rounded: Tensor) -> Tensor:
        power = sum(same_by_hand(x, before).square().sum() for x in inputs)
        error = sum(same_by_hand(x, rounded - before).square().sum() for x in inputs)
        return 10 * torch.log10(power / error)  # type: ignore[operator]

    assert not torch.equal(weight.double(), before)
    torch.testing.assert_close(torch.tensor(figures["snr_db"]), decibels(weight.double()), check_dtype=False)
    torch.testing.assert_close(torch.tensor(figures["nearest_snr_db"]), decibels(nearest), check_dtype=False)
    assert figures["snr_db"] > figures["nearest_snr_db"]


@pytest.mark.parametrize(
    "middle",
    [
        nn.ConvTranspose2d(4, 8, 3),
        Functional(lambda x, w: F.conv2d(x, w, padding=x.shape[2] // 8), 8, 4, 3, 3),
        Functional(lambda x, w: F.conv2d(x, w, stride=(1, 1 + x.shape[3] // 100)), 8, 4, 3, 3),
    ],
    ids=["transposed", "padding from sizes", "stride from sizes"],
)
def test_what_one_geometry_cannot_tell_is_left_out(middle: nn.Module) -> None:
    context, program = calibrated(middle)
    _, key = middle_of(program)
    assert key not in context.moments
    assert list(context.moments) == ["tail.weight"]


class Shared(nn.Module):
    """One weight over four channels in two groups, and over eight channels in four."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1, groups=2)
        return F.conv2d(y, self.weight, padding=1, groups=4)


def test_one_weight_in_different_groups() -> None:
    context, program = calibrated(Shared())
    first, second = (site for site in program.sites if site.name.startswith("middle"))
    key = first.operand("weight").quantizer
    assert second.operand("weight").quantizer == key
    w = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    power = torch.zeros(8, dtype=torch.float64)
    for site, groups in ((first, 2), (second, 4)):
        for x in seen(program, site.operand("input").quantizer, context.images):  # type: ignore[arg-type]
            power += F.conv2d(x, w, padding=1, groups=groups).square().sum((0, 2, 3))
    rows = w.flatten(1).unflatten(0, (4, -1))
    torch.testing.assert_close(((rows @ context.moments[key]) * rows).sum(2).flatten(), power)


@pytest.mark.parametrize("positions", [(8, 128, 128), (4, 96, 64), (512, 64), (1, 7, 9)])
@pytest.mark.parametrize("rows", [100, 2048, 10**6])
def test_positions_that_are_used_lie_at_every_phase(positions: tuple[int, ...], rows: int) -> None:
    from fxptq.passes.moments import _step  # noqa: PLC0415  # private: the promise is about its numbers

    step, count = _step(positions, rows), math.prod(positions)
    used = range(0, count, step)
    assert len(used) <= rows
    for period in (2, 4, 8):
        if len(used) > 8 * period and positions[-1] % period == 0:
            assert {index % positions[-1] % period for index in used} == set(range(period))
