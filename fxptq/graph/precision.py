"""Networks in half and double precision are quantized in float32, because every grid is computed in float32.

A network of float16 still takes float16 and gives float16, and computes in float32 in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

OTHERS = (torch.float16, torch.bfloat16, torch.float64)
"""The types of networks that are converted."""


def precision_of(model: nn.Module) -> torch.dtype:
    """The one type that all floating-point parameters of a network have; float32 if there are several or none."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def to_float32(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Converts the tensors of that type to float32, in place: parameters, buffers and plain attributes."""

    def converted(value: Tensor) -> Tensor:
        return value.to(torch.float32) if value.dtype == dtype else value

    model._apply(converted)  # type: ignore[no-untyped-call]  # torch's own  # noqa: SLF001  # as `float()` does
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, converted(value))
    return model


def converted_inputs(inputs: Any) -> Any:
    """The same inputs, however nested, in float32 where they were in another floating-point type, fit for gradients."""

    def converted(x: Tensor) -> Tensor:
        x = x.to(torch.float32) if x.dtype in OTHERS else x
        return x.clone() if x.is_inference() else x

    return tree_map_only(Tensor, converted, inputs)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within, torch.autocast of the caller converts nothing: grids are in float32, and no file knows of an autocast."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def in_precision(dtype: torch.dtype, run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    """Runs a network of one floating-point type on inputs of another; the output is of the type of the inputs.

    Args:
        dtype: of the network.
        run: the network.
        inputs: tensors; those of floating point are converted.
    """
    with without_autocast():
        return _in_precision(dtype, run, inputs)


def _in_precision(dtype: torch.dtype, run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    floats = (torch.float32, *OTHERS)
    input_dtype = next((x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype in floats), dtype)
    if input_dtype == dtype or dtype not in floats:
        return run(*inputs)
    output = run(*(x.to(dtype) if isinstance(x, Tensor) and x.dtype in floats else x for x in inputs))
    return tree_map_only(Tensor, lambda y: y.to(input_dtype) if y.dtype == dtype else y, output)
