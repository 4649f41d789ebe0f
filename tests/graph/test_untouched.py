"""Capturing leaves everything of the user's as it was, also when it fails."""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from fxptq.errors import CaptureError
from fxptq.graph import Program

GRID = torch.arange(4.0)


class Network(nn.Module):
    """Changes all it can reach, and reads a value of the image when it is told to fail."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(1))
        self.mean = torch.tensor([0.5])
        self.scale = 1.0
        self.cache: dict[int, Tensor] = {}
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean()
        self.mean = self.mean.type_as(x)
        self.scale = x.shape[2] * 2.0
        self.cache[x.shape[3]] = GRID.to(x) + ceil(x.shape[2] / 3)
        x -= self.mean
        if self.fails and x.mean() > 0:
            return x
        return self.norm(self.conv(x)) * GRID.view(1, 4, 1, 1) + int(x.shape[2] / 2)


def state(model: Network) -> dict[str, Any]:
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    plain = {"mean": model.mean.clone(), "scale": model.scale, "cache": dict(model.cache)}
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    return {"tensors": tensors, "plain": plain, "attributes": attributes, "training": model.training}


@pytest.mark.parametrize("fails", [False, True], ids=["captured", "refused"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_model_and_surroundings_are_left_alone(fails: bool, training: bool) -> None:
    model = Network(fails=fails).train(training)
    before, mean = state(model), model.mean
    x = torch.rand(1, 3, 12, 8)
    kept, random = x.clone(), torch.get_rng_state()
    names = dict(vars(sys.modules[__name__]))
    globally = {
        name: len(held)
        for name, held in vars(hooks).items()
        if name.startswith("_global_") and hasattr(held, "__len__")
    }
    apply = torch.autograd.Function.__dict__["apply"]
    if fails:
        with pytest.raises(CaptureError):
            Program(model, x)
    else:
        Program(model, x)
    after = state(model)
    assert model.mean is mean
    torch.testing.assert_close(after["tensors"], before["tensors"], rtol=0, atol=0)
    assert after["plain"] == before["plain"]
    assert type(model.scale) is float
    assert after["attributes"] == before["attributes"]
    assert after["training"] == training
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert {key: value for key, value in vars(sys.modules[__name__]).items() if names.get(key) is not value} == {}
    assert names.keys() == vars(sys.modules[__name__]).keys()
    assert globally == {n: len(h) for n, h in vars(hooks).items() if n in globally}
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert (math.ceil, builtins.int, torch.overrides._get_current_function_mode()) == (ceil, int, None)
    assert all(not parameter.__dict__ for parameter in (*model.parameters(), *model.buffers(), mean, GRID))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_tensors_with_a_history_are_copied() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.last: list[Tensor] = []
            self.record = SimpleNamespace(feature=None)

        def forward(self, x: Tensor) -> Tensor:
            self.last = [self.conv(x)]
            self.record.feature = self.last[0] * 2
            return self.last[0]

    model = Remembers().eval()
    x = torch.rand(1, 3, 4, 4)
    y = model(x)
    assert torch.equal(Program(model, x)(x), y)
    assert model.last[0] is y


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Conv2d(3, 3, 1)
    model.handle = (number for number in range(3))  # type: ignore[assignment]
    with pytest.raises(CaptureError, match=r"Conv2d cannot be copied .*generator"):
        Program(model, torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_capturing_under_any_mode(context: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval()
    with context():
        program = Program(model, torch.rand(1, 3, 4, 4))
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    program(x).sum().backward()
    assert x.grad is not None
