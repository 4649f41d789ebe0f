"""Roles and floors: whatever precedes a layer, no value it reads lies below the floor that is claimed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxptq.graph import Operand, Program

Step = Callable[[Tensor], Tensor]


class Before(nn.Module):
    """A step, and a convolution that reads what comes out; the input is moved to both sides of zero."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.conv = step, nn.LazyConv2d(8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.step(x * 4 - 2))  # type: ignore[no-any-return]


class Reading(fx.Interpreter):
    """Runs a graph and notes the smallest value that each call of one node reads, at the moment it reads it."""

    def __init__(self, module: fx.GraphModule, reader: str) -> None:
        super().__init__(module)
        self.reader, self.smallest = reader, math.inf

    def run_node(self, n: fx.Node) -> Any:
        if n.name == self.reader:
            first = self.env[n.all_input_nodes[0]]
            self.smallest = min(self.smallest, float(first.min()))
        return super().run_node(n)


def observed(step: Step) -> tuple[Operand, float]:
    """What is claimed of the convolution's input, and the smallest value it reads from twelve images."""
    torch.manual_seed(0)
    network, images = Before(step).eval(), [torch.rand(2, 4, 6, 6) for _ in range(12)]
    network(images[0])
    program = Program(network, images[0])
    (site,) = (site for site in program.sites if site.name == "conv")
    reading = Reading(fx.GraphModule(program.holder, program.variants[0].capture.graph), site.node)
    with torch.no_grad():
        for image in images:
            reading.run(image.clone())
    return site.operand("input"), reading.smallest


class relu(torch.autograd.Function):  # noqa: N801  # the name is the trap
    """Not what its name says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004  # torch's signature
        return x.clamp(min=-1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004  # likewise
        return grads[0]


@torch.jit.script
def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x)) - 0.6931


@torch.library.custom_op("fxptq_tests::sigmoid", mutates_args=())
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid() - 0.5


@sigmoid.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def written(change: Callable[[Tensor], Any], view: Step = lambda y: y[:, :2]) -> Step:
    """ReLU, and then a change of a view of its output."""

    def step(x: Tensor) -> Tensor:
        y = x.relu()
        change(view(y))
        return y

    return step


def item_set(x: Tensor) -> Tensor:
    y = x.relu()
    y[:, 0] = -1.0
    return y


def item_set_after_reading(x: Tensor) -> Tensor:
    y = x.relu()
    mean = y.mean()
    y[:, 0] = -1.0
    return y * mean / mean


def view_made_after_the_write(x: Tensor) -> Tensor:
    y = x.relu()
    y.view(2, -1)[:, 0] -= 3
    return y.reshape(2, 4, 6, 6).contiguous()


def bits(x: Tensor) -> Tensor:
    return F.relu((x * 512).floor() / 512 + 3).view(torch.float16).to(x.dtype)


ONE, MANY, NONE = ("one_sided", 0.0), ("one_sided", None), ("symmetric", None)
CASES: dict[str, tuple[Step, tuple[str, float | None]]] = {
    # Padding: with what, and how it is said.
    "pad with -1": (lambda x: F.pad(x.relu(), (1, 1, 1, 1), value=-1), ("one_sided", -1.0)),
    "pad with -1 by position": (lambda x: F.pad(x.relu(), (1, 1), "constant", -1.0), ("one_sided", -1.0)),
    "pad with 2": (lambda x: F.pad(x.relu(), (1, 1), value=2.0), ONE),
    "pad with nothing said": (lambda x: F.pad(x.relu(), (1, 1)), ONE),
    "pad by names alone": (lambda x: F.pad(input=x.relu(), pad=(1, 1), value=-3.0), ("one_sided", -3.0)),
    "pad with None": (lambda x: F.pad(x.relu(), (1, 1), mode="constant", value=None), ONE),
    "pad by reflection": (lambda x: F.pad(x.relu(), (1, 1, 1, 1), "reflect"), ONE),
    "pad of no floor": (lambda x: F.pad(F.gelu(x), (1, 1), value=-4.0), MANY),
    "pad of both signs": (lambda x: F.pad(x, (1, 1), value=0.0), NONE),
    "pad twice": (lambda x: F.pad(F.pad(x.relu(), (1, 1), value=-5.0), (1, 1), value=-1.0), ("one_sided", -5.0)),
    "pad module": (lambda x: nn.ConstantPad2d(1, -2.0)(x.sigmoid()), ("one_sided", -2.0)),
    "pad with -inf for a maximum": (lambda x: F.max_pool2d(F.pad(x.relu(), (1, 1), value=-math.inf), 3, 1), NONE),
    "pad with a number made of sizes": (lambda x: F.pad(x.relu(), (1, 1), value=-float(x.shape[2])), NONE),
    "crop by padding": (lambda x: F.pad(x.relu(), (-1, -1), value=-1.0), ("one_sided", -1.0)),
    # Resizing.
    "bicubic by name": (lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"), NONE),
    "bicubic by position": (lambda x: F.interpolate(x.relu(), None, 2.0, "bicubic"), NONE),
    "bicubic module": (lambda x: nn.Upsample(scale_factor=2, mode="bicubic")(x.relu()), NONE),
    "bicubic, smoothed": (lambda x: F.interpolate(x.relu(), size=(4, 4), mode="bicubic", antialias=True), NONE),
    "bicubic, then padded": (lambda x: F.pad(F.interpolate(x.relu(), None, 2.0, "bicubic"), (1, 1)), NONE),
    "bilinear": (lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bilinear"), ONE),
    "bilinear, smoothed": (lambda x: F.interpolate(x.relu(), (4, 4), mode="bilinear", antialias=True), ONE),
    "nearest by names alone": (lambda x: F.interpolate(input=x.relu(), scale_factor=2.0), ONE),
    # Several tensors.
    "cat of one floor and none": (lambda x: torch.cat([x.relu(), F.silu(x)], 1), MANY),
    "cat of two floors": (
        lambda x: torch.cat([x.relu(), F.pad(x.relu(), (0, 0, 1, -1), value=-2.0)], 1),
        ("one_sided", -2.0),
    ),
    "cat with both signs": (lambda x: torch.cat([x.relu(), x], 1), NONE),
    "cat by names alone": (lambda x: torch.cat(tensors=[x.relu(), x.sigmoid()], dim=1), ONE),
    "cat by names alone with both signs": (lambda x: torch.cat(tensors=[x.relu(), x], dim=1), NONE),
    "cat inside a cat": (lambda x: torch.cat([x.relu(), torch.cat(tensors=[x, x], dim=1)], 1), NONE),
    "cat with a constant": (lambda x: torch.cat([x.relu(), -torch.ones(2, 1, 6, 6)], 1), NONE),
    "moved by names alone": (lambda x: torch.cat([x.relu(), torch.roll(input=x, shifts=1)], 1), NONE),
    "where": (lambda x: torch.where(x > 0, x.relu(), x), NONE),
    "where of two floors": (lambda x: torch.where(x > 0, x.relu(), x.sigmoid() - 3), NONE),
    "masked_fill": (lambda x: x.relu().masked_fill(x < 0, -3.0), NONE),
    "clamp below zero": (lambda x: x.clamp(min=-0.5), NONE),
    "clamp of a floor": (lambda x: x.relu().clamp(max=-0.5), NONE),
    # Pools and windows.
    "pooled": (lambda x: F.avg_pool2d(F.max_pool2d(x.relu(), 3, 1, 1), 3, 1, 1), ONE),
    "pooled by a divisor below zero": (lambda x: F.avg_pool2d(x.relu(), 3, 1, 1, divisor_override=-1), NONE),
    "unfolded": (lambda x: F.unfold(x.relu(), 3, padding=1).view(2, 36, 6, 6), ONE),
    "dropped": (lambda x: F.dropout(x.relu(), 0.5, training=False), ONE),
    # Writes in place.
    "item set": (item_set, NONE),
    "item set after reading": (item_set_after_reading, NONE),
    "view shifted": (written(lambda part: part.sub_(2)), NONE),
    "view overwritten": (written(lambda part: part.copy_(0.25 - part)), NONE),
    "view filled": (written(lambda part: part.fill_(-7.0)), NONE),
    "view filled where": (written(lambda part: part.masked_fill_(part < 0.1, -7.0)), NONE),
    "view of another shape": (written(lambda part: part.mul_(-1), lambda y: y.view(2, -1)), NONE),
    "written by out": (written(lambda part: torch.neg(part, out=part)), NONE),
    "item of a view": (written(lambda part: part.__setitem__((0, 0), -4.0)), NONE),
    "view made after the write": (view_made_after_the_write, NONE),
    "relu in place of a view": (lambda x: F.relu(x.view(2, 4, 6, 6), inplace=True), ONE),
    # What functions are called, and their options.
    "autograd function of a known name": (lambda x: relu.apply(x.clone()), NONE),
    "scripted function of a known name": (lambda x: softplus(x.clone()), NONE),
    "operator of a known name": (lambda x: sigmoid(x.clone()), NONE),
    "softplus": (lambda x: F.softplus(x, 2.0), ONE),
    "softplus below zero": (lambda x: F.softplus(x, beta=-1.0), NONE),
    "softplus below zero by position": (lambda x: F.softplus(x, -1), NONE),
    "the same bits as other numbers": (bits, NONE),
}  # fmt: skip


@pytest.mark.parametrize(("step", "expected"), CASES.values(), ids=CASES)
def test_no_value_lies_below_the_floor(step: Step, expected: tuple[str, float | None]) -> None:
    operand, smallest = observed(step)
    assert (operand.role, operand.lowest) == expected
    assert operand.lowest is None or smallest >= operand.lowest


MAKERS: dict[str, Step] = {
    "nothing": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "softmax": lambda x: x.softmax(1),
    "abs": torch.abs,
    "tanh": torch.tanh,
}
MOVERS: dict[str, Step] = {
    "pad -1": lambda x: F.pad(x, (1, 0, 1, 0), value=-1.0),
    "pad 1": lambda x: F.pad(x, (1, 0), "constant", 1.0),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "bicubic": lambda x: F.interpolate(x, None, 1.5, "bicubic"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "cat": lambda x: torch.cat([x, x.flip(1)], 1),
    "cat with relu": lambda x: torch.cat([x, x.relu()], 1),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pool": lambda x: F.avg_pool2d(x, 2, 1, 1),
    "minus": lambda x: x - 0.25,
    "written": lambda x: x.clone().index_fill_(1, torch.tensor([0]), -0.5),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.lists(st.sampled_from(sorted(MOVERS)), max_size=4))
def test_no_chain_of_calls_leads_below_its_floor(maker: str, movers: list[str]) -> None:
    if movers.count("shuffle") > 1:
        movers = [name for name in movers if name != "shuffle"]
    operand, smallest = observed(lambda x: reduce(lambda y, name: MOVERS[name](y), movers, MAKERS[maker](x)))
    assert operand.lowest is None or smallest >= operand.lowest
