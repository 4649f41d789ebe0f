"""The Triton kernels as operators on CPU tensors, wherever they run."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxptq.kernels.cuda.register import OPERATORS, backend
from fxptq.kernels.layouts import Packed
from tests.kernels.helpers import epilogue

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Kernels:
    """As `tests.kernels.helpers.Operators`: the kernels themselves in the interpreter, else the operators on CUDA."""

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        if name not in OPERATORS:
            raise AttributeError(name)
        if INTERPRETED:
            return getattr(import_module(f"fxptq.kernels.cuda.{OPERATORS[name]}"), name)
        assert backend().name == "triton", backend().reason
        operator = getattr(torch.ops.fxptq, name)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            args, kwargs = tree_map_only(Tensor, lambda x: x.cuda(), (args, kwargs))
            return operator(*args, **kwargs).cpu()

        return call


def run(operators: Any, served: Packed, a: Tensor, **changes: Any) -> Tensor:
    """A layer as `Rows` serves it."""
    call = getattr(operators, served.operator)
    layer = served.layer
    return call(a, columns=layer.columns, **epilogue(**changes) | layer.epilogue() | served.arguments)
