"""How a captured network is compared with the network itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from fxptq.graph import Program

Shapes = tuple[tuple[int, ...], ...]
SIZES: Shapes = ((1, 3, 16, 24), (1, 3, 24, 16), (2, 3, 20, 28))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(torch.rand(shape).to(dtype) for shape in shapes)


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    assert tree_structure(ours) == tree_structure(theirs)
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        if isinstance(b, Tensor) and tolerance and b.is_floating_point():
            assert (a - b).abs().max() <= tolerance * b.abs().max()
        elif isinstance(b, Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b


def gradient(run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = [y for y in tree_leaves(run(*leaves)) if isinstance(y, Tensor) and y.requires_grad]
    torch.autograd.backward([(y * torch.linspace(0, 1, y.numel()).view(y.shape).to(y.dtype)).sum() for y in outputs])
    return [x.grad for x in leaves]


@pytest.fixture(scope="session")
def agrees() -> Callable[..., Program]:
    """Captures a network at the first size and compares it with eager at all of them, output and gradient of the input.

    Each entry of `sizes` is one shape, or a tuple of shapes for several inputs.
    """

    def check(
        model: nn.Module,
        *sizes: Any,
        tolerance: float = 0.0,
        dtype: torch.dtype = torch.float32,
        gradients: bool = True,
    ) -> Program:
        model.eval()
        every = [images((s,) if isinstance(s[0], int) else s, dtype) for s in (sizes or SIZES)]
        program = Program(model, every[0])
        for inputs in every:
            with torch.no_grad():
                assert_same(program(*inputs), model(*(x.clone() for x in inputs)), tolerance)
            if gradients:
                theirs = gradient(lambda *x: model(*(one.clone() for one in x)), inputs)
                assert_same(gradient(program, inputs), theirs, max(tolerance, 1e-6))
        return program

    return check
