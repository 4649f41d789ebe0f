"""Networks that one graph cannot hold: the error names the module, the line, the reason and what to try."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxptq.errors import CaptureError, InputError
from fxptq.graph import Program


class Inner(nn.Module):
    def __init__(self, step: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Any:
        return self.step(x)


class Outer(nn.Module):
    def __init__(self, step: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), Inner(step))

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def branches(x: Tensor) -> Tensor:
    return x * 2 if x.mean() > 0 else x


def reads_an_item(x: Tensor) -> Tensor:
    return x * x.max().item()


def lists(x: Tensor) -> Tensor:
    return x * sum(x[0, :, 0, 0].tolist())


def goes_through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 2)


def makes_an_index(x: Tensor) -> Tensor:
    return x[:, int(x.argmax() % 2) :]


def routes(x: Tensor) -> Tensor:
    chosen = (x.mean((2, 3)) > 0).nonzero()
    return x if len(chosen) == 0 else x * 2


def routes_by_mask(x: Tensor) -> Tensor:
    chosen = x[x > 0]
    if chosen.numel() > 3:
        return x * chosen.mean()
    return x


def casts(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.transpose(2, 3)


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "bool": (branches, r"bool\(\) of a tensor that depends on the image"),
    "item": (reads_an_item, r"\.item\(\) of a tensor that depends on the image"),
    "tolist": (lists, r"\.tolist\(\) of a tensor"),
    "numpy": (goes_through_numpy, r"\.numpy\(\) of a tensor"),
    "int": (makes_an_index, r"int\(\) of a tensor"),
    "routing": (routes, r"the number of values that pass a mask"),
    "routing by a mask": (routes_by_mask, r"the number of values that pass a mask"),
    "autocast": (casts, r"torch\.autocast"),
}


@pytest.mark.parametrize(("step", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name_line_and_reason(step: Callable[[Tensor], Any], reason: str) -> None:
    _, start = inspect.getsourcelines(step)
    with pytest.raises(CaptureError, match=reason) as refusal:
        Program(Outer(step).eval(), torch.rand(1, 3, 8, 8))
    message = str(refusal.value)
    place, _, line = message.split(")", 1)[0].rpartition(":")
    assert place == "body.1 (test_refusals.py"
    assert start < int(line) <= start + 3
    assert "\n" not in message


def test_a_mask_without_a_decision_is_fine(agrees: Callable[..., Program]) -> None:
    def masks(x: Tensor) -> Tensor:
        out = x.clone()
        out[x > 0] = 0.5
        return out + x[x < 0].sum()

    agrees(Outer(masks))


def test_a_frozen_tensor_is_named() -> None:
    def frozen(x: Tensor) -> Tensor:
        return x + torch.frombuffer(bytearray(x.detach().contiguous().untyped_storage()), dtype=torch.float32).view(
            x.shape
        )

    with pytest.raises(
        CaptureError, match=r"body\.1 \(test_refusals\.py:\d+\): a tensor appears that no torch call made"
    ):
        Program(Outer(frozen).eval(), torch.rand(1, 3, 8, 8))


def test_state_outside_the_input_is_refused() -> None:
    with pytest.raises(CaptureError, match="does not reproduce the network"):
        Program(Outer(lambda x: x * random.random()).eval(), torch.rand(1, 3, 8, 8))  # noqa: S311


def test_no_tensor_comes_out() -> None:
    with pytest.raises(CaptureError, match="the output holds no tensor"):
        Program(Outer(lambda x: x.shape).eval(), torch.rand(1, 3, 8, 8))


def test_an_example_it_does_not_take() -> None:
    with pytest.raises(CaptureError, match=r"fails on the example of shape \(1, 4, 8, 8\).*RuntimeError"):
        Program(Outer(lambda x: x).eval(), torch.rand(1, 4, 8, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_as_a_whole() -> None:
    with pytest.raises(CaptureError, match="pass the Python module"):
        Program(torch.jit.script(nn.Conv2d(3, 3, 1)).eval(), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("inputs", [(), (3,), ([torch.rand(1, 3, 4, 4)],)], ids=["none", "number", "list"])
def test_inputs_that_are_no_tensors(inputs: tuple[Any, ...]) -> None:
    program = Program(nn.Conv2d(3, 3, 1).eval(), torch.rand(1, 3, 4, 4))
    with pytest.raises(InputError, match="takes one tensor or more"):
        program(*inputs)
