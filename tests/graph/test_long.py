"""Networks of a thousand steps, and deeply nested ones: captured without running into a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxptq.graph import Bits, Plan, Program

STEPS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "added": lambda _, y: y + 1,
    "moved": lambda _, y: y.transpose(2, 3),
    "joined": lambda _, y: torch.cat([y[:, 2:], y[:, :2]], 1),
    "sliced by its size": lambda _, y: y[:, :, : y.shape[2]],
    "one layer again and again": lambda layer, y: y + layer(y) * 0.01,
    "in place": lambda _, y: y.mul_(0.999),
}


class Long(nn.Module):
    """A step a thousand times between two convolutions."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.layer, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for _ in range(1000):
            y = self.step(self.layer, y)
        return self.tail(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_thousand_steps(step: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = Long(step).eval()
    program = Program(model, torch.rand(1, 3, 4, 6), Plan(Bits(4, 4)))
    for shape in ((1, 3, 4, 6), (2, 3, 5, 3)):
        x = torch.rand(shape)
        assert torch.equal(program(x), model(x))
    assert len(program.variants) == 1
    assert program.sites[-1].name == "tail"


class Nested(nn.Module):
    """A network inside a network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x  # type: ignore[no-any-return]


def test_two_hundred_levels() -> None:
    model: nn.Module = nn.Conv2d(3, 3, 1)
    for _ in range(200):
        model = Nested(model)
    limit = sys.getrecursionlimit()
    program = Program(model.eval(), torch.rand(1, 3, 4, 4), Plan(Bits(4, 4)))
    assert [site.name for site in program.sites] == [".".join(["inner"] * 200)]
    assert sys.getrecursionlimit() == limit
